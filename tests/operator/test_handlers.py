"""What kopf is told to do, and that it does nothing else."""

from __future__ import annotations

import asyncio
import dataclasses

import aiohttp
import kopf
import pytest
from live import SLOW, play
from world import NAMESPACE, spec

from draftyard_api.names import GROUP, LABEL_MANAGED, LABEL_RUN, PLURAL
from draftyard_operator import handlers, kinds
from draftyard_operator.metrics import Metrics
from draftyard_operator.shell import Rhythm, Shell
from draftyard_operator.testing import faults
from draftyard_operator.testing.faults import Fault
from draftyard_operator.testing.kinds import JOB
from draftyard_operator.testing.pods import Runs
from draftyard_operator.testing.ports import free_port
from draftyard_operator.work_queue import Key


async def nothing(*_):
    return None


async def no_runs():
    for run in ():
        yield run


def made(namespaces=()):
    shell = Shell(nothing, no_runs, nothing, Metrics())
    return shell, handlers.registry(shell, handlers.Hooks(nothing, nothing), namespaces)


# -- Handlers and settings ----------------------------------------------------------------------


def test_only_low_level_handlers_are_registered():
    """Any other kind puts finalizers or annotations on the object."""
    _, registry = made()
    others = (registry._indexing, registry._spawning, registry._changing, registry._webhooks)
    assert [list(one.get_all_handlers()) for one in others] == [[], [], [], []]
    watched = [(one.selector.group, one.selector.any_name or one.selector.plural) for one in all_events(registry)]
    assert watched == [(GROUP, PLURAL), ("batch", "jobs"), ("kubeflow.org", "pytorchjobs")]


def test_a_kind_that_is_switched_off_is_not_watched():
    shell, _ = made()
    registry = handlers.registry(shell, handlers.Hooks(nothing, nothing), children=[kinds.JOB])
    assert [one.selector.any_name or one.selector.plural for one in all_events(registry)] == [PLURAL, "jobs"]


def all_events(registry):
    return list(registry._watching.get_all_handlers())


def test_settings_keep_kopf_quiet():
    settings = kopf.OperatorSettings()
    handlers.configure(settings)
    assert settings.peering.standalone
    assert not settings.posting.enabled
    assert (settings.networking.request_timeout, settings.networking.connect_timeout) == (30, 10)
    assert list(settings.networking.error_backoffs) == [1, 2, 4, 8, 16]
    assert (settings.watching.server_timeout, settings.watching.client_timeout) == (600, 660)
    assert settings.watching.chunk_size == 500
    assert settings.process.ultimate_exiting_timeout == 60
    assert settings.persistence.finalizer == "draftyard.dev/kopf"
    assert not settings.scanning.disabled
    selected = {"draftyard.dev/managed=true"}
    assert set(settings.watching.label_selectors.values()) == selected


def test_with_namespaces_nothing_of_the_cluster_is_scanned():
    settings = kopf.OperatorSettings()
    handlers.configure(settings, ("team",))
    assert settings.scanning.disabled


def test_every_setting_that_is_set_exists():
    """kopf's settings are plain dataclasses: a name of another version would be taken, and ignored."""
    before, after = kopf.OperatorSettings(), kopf.OperatorSettings()
    handlers.configure(after)
    for field in dataclasses.fields(after):
        names = {one.name for one in dataclasses.fields(getattr(before, field.name))}
        assert set(vars(getattr(after, field.name))) <= names | set(vars(getattr(before, field.name)))


@pytest.mark.parametrize("labels", [{}, {LABEL_MANAGED: "true"}, {LABEL_RUN: "demo"}])
def test_a_child_says_which_run_to_look_at(labels):
    shell, registry = made()
    child = all_events(registry)[1]
    asyncio.run(child.fn(namespace="team", labels=labels, event={"type": "MODIFIED"}))
    assert shell.queue.take_now() == (Key("team", "demo") if LABEL_RUN in labels else None)


# -- Running ------------------------------------------------------------------------------------


async def answer(url):
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return response.status, await response.text()


def port_url(process, path):
    setup = process.setup
    return f"http://127.0.0.1:{setup.health_port if path == 'healthz' else setup.metrics_port}/{path}"


def test_no_trace_of_kopf_is_left_on_any_object(tmp_path):
    async def story(scene):
        async with scene.operator():
            scene.fake.add_run(NAMESPACE, "demo", spec())
            await scene.until_over("demo")
        everything = [one for kind in scene.fake.api.kinds() for one in scene.fake.store.every(kind)]
        assert len(everything) > 10
        for one in everything:
            metadata = one["metadata"]
            assert not metadata.get("finalizers"), metadata
            assert not [name for name in metadata.get("annotations") or {} if "kopf" in name], metadata
        written = scene.fake.server.record.of("update", "patch", resource=PLURAL)
        assert {call.subresource for call in written} == {"status"}

    play(story, tmp_path)


def test_children_of_others_are_not_watched(tmp_path):
    async def story(scene):
        scene.fake.kubelet.script = lambda _: Runs()
        async with scene.operator(SLOW) as process:
            await scene.until(lambda: len(scene.fake.server.watches) >= 3)
            stranger = {
                "metadata": {"name": "stranger", "labels": {LABEL_RUN: "demo"}},
                "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "a", "image": "b"}]}}},
            }
            scene.fake.api.create(JOB, NAMESPACE, stranger)
            seen = process.metrics.reconcile_total.labels("ok")._value.get()
            await asyncio.sleep(0.5)
            assert process.metrics.reconcile_total.labels("ok")._value.get() == seen
            managed = {**stranger, "metadata": {"name": "ours", "labels": {LABEL_RUN: "demo", LABEL_MANAGED: "true"}}}
            scene.fake.api.create(JOB, NAMESPACE, managed)
            await scene.until(lambda: process.metrics.reconcile_total.labels("ok")._value.get() > seen)

    play(story, tmp_path)


def test_health_readiness_and_metrics_are_served(tmp_path):
    async def story(scene):
        async with scene.operator() as process:
            assert await answer(port_url(process, "readyz")) == (200, "ok\n")
            status, text = await answer(port_url(process, "metrics"))
            assert status == 200
            assert "draftyard_last_resync_timestamp_seconds" in text
            status, text = await answer(port_url(process, "healthz"))
            assert (status, "ok" in text) == (200, True)

    play(story, tmp_path)


def test_a_resync_that_is_too_old_fails_the_probe_at_once(tmp_path):
    async def story(scene):
        async with scene.operator(Rhythm(0.05, 5.0)) as process:
            await scene.until(lambda: len(scene.fake.server.watches) >= 3)
            scene.fake.server.faults.add(Fault(faults.Answer(403, "Forbidden"), ["list"], PLURAL, times=None))
            await asyncio.sleep(1.0)
            status, text = await asyncio.wait_for(answer(port_url(process, "healthz")), 5)
            assert status >= 500, text

    play(story, tmp_path)


def test_a_port_in_use_ends_the_operator_and_is_told(tmp_path, monkeypatch, caplog):
    async def story(scene):
        taken = free_port()
        monkeypatch.setattr("live.free_port", lambda: taken)
        async with await asyncio.start_server(nothing, "127.0.0.1", taken):
            with pytest.raises(Exception, match="handlers failed"):
                async with scene.operator():
                    pass

    play(story, tmp_path)
    assert "address already in use" in caplog.text
