"""The only client, over HTTP: what it sends, what it makes of answers, and how it asks pods."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest
from aiohttp import web
from kubernetes.aio import client
from world import NAME, NAMESPACE, START, World, reading, spec

from draftyard_api import names
from draftyard_operator import cluster as clusters
from draftyard_operator import kinds
from draftyard_operator.budget import IS_URGENT, Budget
from draftyard_operator.cluster import KubernetesCluster
from draftyard_operator.reconcile import Operator, reconcile
from draftyard_operator.refusals import ApiError, Request
from draftyard_operator.testing import faults
from draftyard_operator.testing.fake_cluster import FakeCluster
from draftyard_operator.testing.faults import Fault

UNLIMITED = 1e9
JOB = {
    "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "work", "labels": {"a": "b"}},
    "spec": {
        "backoffLimit": 0,
        "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "work", "image": "x"}]}},
    },
}  # fmt: skip


class Meter:
    """Remembers what was counted."""

    def __init__(self):
        self.codes = []

    def request(self, verb, resource, code, _seconds):
        self.codes.append((verb, resource, code))


def scene(story, **options):
    """Run a story, which gets a fake cluster and our client of it."""

    async def played():
        async with FakeCluster(**options) as fake:
            fake.add_namespace(NAMESPACE)
            api = client.ApiClient(client.Configuration(host=fake.server.url))
            ours = KubernetesCluster(api, Meter(), Budget(UNLIMITED, UNLIMITED))
            try:
                return await asyncio.wait_for(story(fake, ours), 30)
            finally:
                await ours.close()

    return asyncio.run(played())


# -- Objects ------------------------------------------------------------------------------------


def test_objects_come_and_go_and_are_found_by_labels():
    async def story(fake, ours):
        made = await ours.create(kinds.JOB, NAMESPACE, JOB)
        assert (await ours.get(kinds.JOB, NAMESPACE, "work"))["metadata"]["uid"] == made["metadata"]["uid"]
        assert len(await ours.list(kinds.JOB, NAMESPACE, {"a": "b"})) == 1
        assert await ours.list(kinds.JOB, NAMESPACE, {"a": "c"}) == []
        assert await ours.get(kinds.JOB, NAMESPACE, "other") is None
        await ours.delete(kinds.JOB, NAMESPACE, "work", made["metadata"]["uid"])
        assert await ours.get(kinds.JOB, NAMESPACE, "work") is None
        assert fake.pods(NAMESPACE) == []
        await ours.delete(kinds.JOB, NAMESPACE, "work", made["metadata"]["uid"])

    scene(story)


def test_another_object_of_that_name_is_not_deleted():
    async def story(_, ours):
        await ours.create(kinds.JOB, NAMESPACE, JOB)
        await ours.delete(kinds.JOB, NAMESPACE, "work", "an-older-uid")
        assert await ours.get(kinds.JOB, NAMESPACE, "work") is not None

    scene(story)


def test_a_patch_of_a_job_is_a_merge_patch():
    async def story(fake, ours):
        seen = []

        def look(verb, kind, given):
            seen.append((verb, given["spec"].get("suspend")))
            return given

        await ours.create(kinds.JOB, NAMESPACE, JOB)
        fake.api.admission.append(look)
        await ours.patch(kinds.JOB, NAMESPACE, "work", {"spec": {"suspend": True}, "metadata": {"labels": {"a": None}}})
        assert ("update", True) in seen
        assert "a" not in (await ours.get(kinds.JOB, NAMESPACE, "work"))["metadata"].get("labels", {})

    scene(story)


def test_a_kind_that_is_not_served_is_none_and_not_an_empty_list():
    async def story(_, ours):
        return await ours.list(kinds.PYTORCH_JOB, NAMESPACE, {})

    assert scene(story) is None
    assert scene(story, pytorch_jobs=True) == []


def test_lists_come_in_pieces(monkeypatch):
    monkeypatch.setattr(clusters, "PAGE", 2)

    async def story(_, ours):
        for number in range(5):
            await ours.create(kinds.CONFIG_MAP, NAMESPACE, {"metadata": {"name": f"map-{number}"}})
        found = await ours.list(kinds.CONFIG_MAP, NAMESPACE, {})
        return [one["metadata"]["name"] for one in found], ours.requests[Request("list", "configmaps")]

    assert scene(story) == ([f"map-{number}" for number in range(5)], 3)


# -- Answers that are none ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("effect", "code"),
    [
        pytest.param(faults.Answer(500), 500, id="500"),
        pytest.param(faults.Answer(502, html=True), 502, id="a page of a proxy"),
        pytest.param(faults.Drop(), 0, id="a connection that breaks"),
        pytest.param(faults.LoseReply(), 0, id="a reply that is lost"),
    ],
)
def test_f8_what_is_no_answer_is_an_error_that_says_what_was_asked(effect, code):
    async def story(fake, ours):
        fake.server.faults.add(Fault(effect, verbs=("create",), resource="jobs"))
        with pytest.raises(ApiError, match=r"create jobs\.batch") as caught:
            await ours.create(kinds.JOB, NAMESPACE, JOB)
        return caught.value, ours._meter.codes

    error, counted = scene(story)
    assert (error.code, error.is_final) == (code, False)
    assert ("create", "jobs.batch", code) in counted


def test_f7_nothing_is_asked_while_the_server_wants_to_be_left_alone():
    async def story(fake, ours):
        loop = asyncio.get_running_loop()
        fake.server.faults.add(Fault(faults.Answer(429, "TooManyRequests", retry_after=1), verbs=("list",)))
        with pytest.raises(ApiError) as caught:
            await ours.list(kinds.JOB, NAMESPACE, {})
        started = loop.time()
        await ours.list(kinds.JOB, NAMESPACE, {})
        return caught.value.retry_after, loop.time() - started

    retry_after, waited = scene(story)
    assert retry_after == 1
    assert 0.9 < waited < 5


def test_f7_a_server_that_does_not_answer_is_given_up(monkeypatch):
    monkeypatch.setattr(clusters, "REQUEST_SECONDS", 0.2)

    async def story(fake, ours):
        fake.server.faults.add(Fault(faults.Delay(5), verbs=("get",)))
        with pytest.raises(ApiError) as caught:
            await ours.get(kinds.JOB, NAMESPACE, "work")
        return caught.value.code

    assert scene(story) == 0


# -- A whole run over HTTP ----------------------------------------------------------------------

GRANTED = {
    ("draftyard.dev", "drafttrainings", "get"), ("draftyard.dev", "drafttrainings/status", "patch"),
    ("batch", "jobs", "list"), ("batch", "jobs", "create"), ("kubeflow.org", "pytorchjobs", "list"),
    ("", "configmaps", "get"), ("", "configmaps", "create"), ("", "persistentvolumeclaims", "get"),
    ("", "persistentvolumeclaims", "create"), ("", "pods", "list"), ("", "events", "create"),
}  # fmt: skip
"""What a run without trouble asks for: a part of the table of rights, and nothing beside it."""


def test_a_run_asks_for_nothing_but_its_rights():
    async def story(fake, ours):
        fake.add_run(NAMESPACE, NAME, spec())
        operator = Operator(ours, World().operator.config)
        for _ in range(4):
            await reconcile(operator, NAMESPACE, NAME, START)
        counted = {(request.verb, request.resource) for request in ours.requests}
        return fake.server.record.granted, counted

    granted, counted = scene(story, pytorch_jobs=True)
    assert granted == GRANTED
    assert counted == {(verb, as_counted(group, plural)) for group, plural, verb in granted}


def as_counted(group: str, plural: str) -> str:
    """A resource of a Role, as our client counts it."""
    name, _, part = plural.partition("/")
    whole = f"{name}.{group}" if group else name
    return f"{whole}/{part}" if part else whole


# -- Pods ---------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def pod_serving(handler, monkeypatch):
    """A pod on this machine."""
    app = web.Application()
    app.router.add_get(names.PROGRESS_PATH, handler)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    monkeypatch.setattr(names, "PROGRESS_PORT", site._server.sockets[0].getsockname()[1])
    try:
        yield
    finally:
        await runner.cleanup()


def asked(handler, monkeypatch):
    """What our client makes of a pod."""

    async def story(_, ours):
        async with pod_serving(handler, monkeypatch):
            return await ours.progress("127.0.0.1")

    return scene(story)


GOOD = reading(done=5, total=10, loss="NaN")


def text(body, status=200, **options):
    async def handler(_):
        return web.Response(text=body, status=status, **options)

    return handler


def test_a_pod_says_how_far_it_is(monkeypatch):
    assert asked(text(GOOD.model_dump_json(by_alias=True, exclude_none=True)), monkeypatch) == GOOD


async def endless(request):
    response = web.StreamResponse()
    await response.prepare(request)
    with contextlib.suppress(ConnectionError):
        while True:
            await response.write(b"x" * 65536)
    return response


async def silent(_):
    await asyncio.sleep(10)


async def elsewhere(_):
    raise web.HTTPFound("/metrics")


@pytest.mark.parametrize(
    "handler",
    [
        pytest.param(text("{broken"), id="broken JSON"),
        pytest.param(text(json.dumps({"stage": "train"})), id="a field is missing"),
        pytest.param(text(json.dumps({"stage": "train", "heartbeat": 1.0, "done": "x"})), id="another type"),
        pytest.param(text(GOOD.model_dump_json(by_alias=True), 500), id="an error"),
        pytest.param(text(" " * 70000 + GOOD.model_dump_json(by_alias=True)), id="more than 64 KiB"),
        pytest.param(endless, id="a flood"),
        pytest.param(silent, id="silence"),
        pytest.param(elsewhere, id="a way to somewhere else"),
    ],
)
def test_f35_a_pod_that_does_not_answer_as_it_should_is_not_heard(handler, monkeypatch):
    monkeypatch.setattr(clusters, "PROGRESS_SECONDS", 0.5)
    assert asked(handler, monkeypatch) is None


def test_a_pod_that_is_not_there(monkeypatch):
    monkeypatch.setattr(names, "PROGRESS_PORT", 1)

    async def story(_, ours):
        return await ours.progress("127.0.0.1")

    assert scene(story) is None


# -- The budget ---------------------------------------------------------------------------------


def test_a_burst_is_free_and_the_rest_comes_at_a_steady_rate():
    async def story():
        budget, loop = Budget(rate=50, burst=5), asyncio.get_running_loop()
        started = loop.time()
        await asyncio.gather(*(budget.take() for _ in range(15)))
        return loop.time() - started

    assert 0.15 < asyncio.run(story()) < 2


def test_changes_of_specs_go_first():
    async def story():
        budget, order = Budget(rate=20, burst=1), []

        async def take(name, urgent):
            IS_URGENT.set(urgent)
            await budget.take()
            order.append(name)

        await budget.take()
        tasks = [asyncio.create_task(take(f"resync {number}", False)) for number in range(3)]
        await asyncio.sleep(0)
        tasks.append(asyncio.create_task(take("a change", True)))
        await asyncio.gather(*tasks)
        return order

    assert asyncio.run(story()) == ["a change", "resync 0", "resync 1", "resync 2"]


def test_who_gives_up_does_not_hold_the_others():
    async def story():
        budget = Budget(rate=50, burst=1)
        await budget.take()
        first, second = asyncio.create_task(budget.take()), asyncio.create_task(budget.take())
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait_for(second, 2)

    asyncio.run(story())
