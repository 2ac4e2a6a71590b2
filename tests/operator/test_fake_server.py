"""The fake API server speaks as a real one does: judged through the official client and bare HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json

import aiohttp
import pytest
import runs
from kubernetes.aio import client
from kubernetes.aio.client.exceptions import ApiException

from draftyard_api.names import GROUP, PLURAL, VERSION
from draftyard_operator.testing import faults
from draftyard_operator.testing.errors import forbidden
from draftyard_operator.testing.fake_cluster import FakeCluster
from draftyard_operator.testing.faults import Fault
from draftyard_operator.testing.kinds import JOB, PYTORCH_JOB, WORKLOAD
from draftyard_operator.testing.pods import Ends

RUNS = (GROUP, VERSION, "default", PLURAL)
MERGE = {"_content_type": "application/merge-patch+json"}


@contextlib.asynccontextmanager
async def connected(**options):
    """A cluster and the official client of it."""
    async with (
        FakeCluster(**options) as cluster,
        client.ApiClient(client.Configuration(host=cluster.server.url)) as api,
    ):
        yield cluster, api


def scene(story, **options):
    """Run a story, which gets a cluster and the client."""

    async def played():
        async with connected(**options) as (cluster, api):
            return await asyncio.wait_for(story(cluster, api), 20)

    return asyncio.run(played())


def run_object(name="demo", **spec):
    return {"apiVersion": f"{GROUP}/{VERSION}", "kind": "DraftTraining", "metadata": {"name": name}, "spec": spec}


async def refusal(call):
    """Code, reason and message of a refused call."""
    with pytest.raises(ApiException) as caught:
        await call
    body = json.loads(caught.value.body)
    return caught.value.status, body["reason"], body["message"]


# -- Objects ------------------------------------------------------------------------------------


def test_a_new_object_has_what_a_server_gives_it():
    async def story(cluster, api):
        custom = client.CustomObjectsApi(api)
        made = await custom.create_namespaced_custom_object(*RUNS, run_object(**runs.ONLINE))
        return made, await custom.get_namespaced_custom_object(*RUNS, "demo")

    made, read = scene(story)
    assert made == read
    metadata = made["metadata"]
    assert (metadata["namespace"], metadata["generation"]) == ("default", 1)
    assert len(metadata["uid"]) == 36
    assert metadata["creationTimestamp"].endswith("Z")
    assert int(metadata["resourceVersion"]) > 0


def test_defaults_come_from_our_definition_and_unknown_fields_go():
    async def story(cluster, api):
        given = runs.merged(runs.ONLINE, {"train": {"epochs": 2, "nonsense": 1}, "surprise": {}})
        return await client.CustomObjectsApi(api).create_namespaced_custom_object(*RUNS, run_object(**given))

    made = scene(story)
    assert made["status"] == {"observedGeneration": -1}
    assert made["spec"]["backend"] == "Auto"
    assert made["spec"]["train"]["gpusPerNode"] == 1
    assert "nonsense" not in made["spec"]["train"]
    assert "surprise" not in made["spec"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"train": {"epochs": "two"}}, "spec.train.epochs"),
        ({"backend": "Magic"}, "spec.backend"),
        ({"data": {"evalFraction": 0.7}}, "spec.data.evalFraction"),
        ({"hiddenStates": {"shards": 0}, "mode": "Offline"}, "spec.hiddenStates.shards"),
    ],
    ids=["type", "enum", "maximum", "minimum"],
)
def test_what_the_schema_refuses_is_invalid(changes, told):
    async def story(cluster, api):
        given = run_object(**runs.merged(runs.ONLINE, changes))
        return await refusal(client.CustomObjectsApi(api).create_namespaced_custom_object(*RUNS, given))

    code, reason, message = scene(story)
    assert (code, reason) == (422, "Invalid")
    assert told in message


def test_the_status_is_apart():
    async def story(cluster, api):
        custom = client.CustomObjectsApi(api)
        await custom.create_namespaced_custom_object(*RUNS, run_object(**runs.ONLINE))
        both = {"spec": {"suspend": True}, "status": {"phase": "Running"}}
        by_status = await custom.patch_namespaced_custom_object_status(*RUNS, "demo", both, **MERGE)
        by_object = await custom.patch_namespaced_custom_object(*RUNS, "demo", both | {"status": None}, **MERGE)
        return by_status, by_object

    by_status, by_object = scene(story)
    assert (by_status["spec"]["suspend"], by_status["status"]["phase"]) == (False, "Running")
    assert by_status["metadata"]["generation"] == 1
    assert (by_object["spec"]["suspend"], by_object["status"]["phase"]) == (True, "Running")
    assert by_object["metadata"]["generation"] == 2


def test_a_status_that_the_schema_refuses_is_a_422():
    async def story(cluster, api):
        cluster.add_run("default", "demo", runs.ONLINE)
        patch = {"status": {"message": "x" * 1025}}
        custom = client.CustomObjectsApi(api)
        return await refusal(custom.patch_namespaced_custom_object_status(*RUNS, "demo", patch, **MERGE))

    code, _, message = scene(story)
    assert code == 422
    assert "status.message: Too long" in message


def test_a_write_that_changes_nothing_moves_nothing():
    async def story(cluster, api):
        custom = client.CustomObjectsApi(api)
        before = await custom.create_namespaced_custom_object(*RUNS, run_object(**runs.ONLINE))
        patch = {"spec": {"suspend": False}}
        return before, await custom.patch_namespaced_custom_object(*RUNS, "demo", patch, **MERGE)

    before, after = scene(story)
    assert after["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]


def test_a_stale_resource_version_is_a_conflict():
    async def story(cluster, api):
        custom = client.CustomObjectsApi(api)
        made = await custom.create_namespaced_custom_object(*RUNS, run_object(**runs.ONLINE))
        cluster.edit_run("default", "demo", {"suspend": True})
        metadata = {"resourceVersion": made["metadata"]["resourceVersion"]}
        patch = {"metadata": metadata, "status": {"phase": "Running"}}
        return await refusal(custom.patch_namespaced_custom_object_status(*RUNS, "demo", patch, **MERGE))

    assert scene(story)[:2] == (409, "Conflict")


def test_a_taken_name_and_an_unknown_one():
    async def story(cluster, api):
        batch = client.BatchV1Api(api)
        await batch.create_namespaced_job("default", runs.job())
        taken = await refusal(batch.create_namespaced_job("default", runs.job()))
        return taken, await refusal(batch.read_namespaced_job("other", "default"))

    taken, unknown = scene(story)
    assert taken == (409, "AlreadyExists", 'jobs.batch "work" already exists')
    assert unknown == (404, "NotFound", 'jobs.batch "other" not found')


def test_null_in_a_merge_patch_takes_a_field_away():
    async def story(cluster, api):
        cluster.add_run("default", "demo", runs.ONLINE)
        custom = client.CustomObjectsApi(api)
        for status in ({"stage": "train", "progress": {"step": 3}}, {"stage": None}):
            made = await custom.patch_namespaced_custom_object_status(*RUNS, "demo", {"status": status}, **MERGE)
        return made["status"]

    assert scene(story) == {"observedGeneration": -1, "progress": {"step": 3}}


def test_a_strategic_patch_is_refused():
    """What the official client sends for a dict and a built-in kind when nobody says otherwise."""

    async def story(cluster, api):
        batch = client.BatchV1Api(api)
        await batch.create_namespaced_job("default", runs.job())
        patch = {"spec": {"parallelism": 2}}
        refused = await refusal(batch.patch_namespaced_job("work", "default", patch))
        return refused, (await batch.patch_namespaced_job("work", "default", patch, **MERGE)).spec.parallelism

    (code, _, message), parallelism = scene(story)
    assert code == 415
    assert "merge-patch" in message
    assert parallelism == 2


def test_the_template_of_a_job_cannot_be_changed():
    async def story(cluster, api):
        batch = client.BatchV1Api(api)
        await batch.create_namespaced_job("default", runs.job())
        patch = {"spec": {"template": {"spec": {"nodeSelector": {"zone": "b"}}}}}
        return await refusal(batch.patch_namespaced_job("work", "default", patch, **MERGE))

    assert scene(story)[2].endswith("spec.template: Invalid value: field is immutable")


def test_admission_can_refuse_and_change():
    async def story(cluster, api):
        def quota(verb, kind, given):
            if kind == JOB and verb == "create":
                raise forbidden(kind, given["metadata"]["name"], "exceeded quota: gpus")
            return given

        cluster.api.admission.append(quota)
        return await refusal(client.BatchV1Api(api).create_namespaced_job("default", runs.job()))

    assert scene(story) == (403, "Forbidden", 'jobs.batch "work" is forbidden: exceeded quota: gpus')


# -- Lists and selectors --------------------------------------------------------------------------


def test_lists_come_in_pieces_that_fit_together():
    async def story(cluster, api):
        for number in range(7):
            cluster.add_run("default", f"run-{number}", runs.ONLINE)
        custom = client.CustomObjectsApi(api)
        seen, token = [], None
        while token != "":
            page = await custom.list_cluster_custom_object(GROUP, VERSION, PLURAL, limit=3, _continue=token)
            seen.append([item["metadata"]["name"] for item in page["items"]])
            token = page["metadata"].get("continue", "")
        return seen

    assert scene(story) == [["run-0", "run-1", "run-2"], ["run-3", "run-4", "run-5"], ["run-6"]]


def test_a_piece_from_before_a_compaction_is_gone():
    async def story(cluster, api):
        for number in range(3):
            cluster.add_run("default", f"run-{number}", runs.ONLINE)
        custom = client.CustomObjectsApi(api)
        page = await custom.list_cluster_custom_object(GROUP, VERSION, PLURAL, limit=2)
        cluster.add_run("default", "late", runs.ONLINE)
        cluster.store.compact()
        token = page["metadata"]["continue"]
        return await refusal(custom.list_cluster_custom_object(GROUP, VERSION, PLURAL, limit=2, _continue=token))

    assert scene(story)[:2] == (410, "Expired")


@pytest.mark.parametrize(
    ("selector", "found"),
    [
        ("stage=train", {"b"}),
        ("stage==train", {"b"}),
        ("stage!=train", {"a", "c"}),
        ("stage in (train, prepare)", {"a", "b"}),
        ("stage notin (train)", {"a", "c"}),
        ("stage", {"a", "b"}),
        ("!stage", {"c"}),
        ("draftyard.dev/managed=true,stage in (prepare)", {"a"}),
        ("", {"a", "b", "c"}),
    ],
)
def test_label_selectors(selector, found):
    async def story(cluster, api):
        for name, stage in (("a", "prepare"), ("b", "train"), ("c", None)):
            made = runs.job(name)
            made["metadata"]["labels"] |= {"stage": stage} if stage else {}
            cluster.api.create(JOB, "default", made)
        listed = await client.BatchV1Api(api).list_namespaced_job("default", label_selector=selector)
        return {item.metadata.name for item in listed.items}

    assert scene(story) == found


def test_a_selector_that_cannot_be_read_is_a_400():
    async def story(cluster, api):
        return await refusal(client.BatchV1Api(api).list_namespaced_job("default", label_selector="a=b=c"))

    assert scene(story)[:2] == (400, "BadRequest")


def test_field_selectors():
    async def story(cluster, api):
        for name in "ab":
            cluster.api.create(JOB, "default", runs.job(name))
        listed = await client.BatchV1Api(api).list_namespaced_job("default", field_selector="metadata.name=b")
        return [item.metadata.name for item in listed.items]

    assert scene(story) == ["b"]


# -- Watches ------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def stream(cluster, path, **query):
    """Events of a watch, one by one."""
    async with (
        aiohttp.ClientSession() as session,
        session.get(cluster.server.url + path, params={"watch": "true"} | query) as response,
    ):

        async def following():
            line = await asyncio.wait_for(response.content.readline(), 5)
            return json.loads(line) if line else None

        yield following


def seen(event):
    return event["type"], event["object"]["metadata"]["name"]


JOBS = "/apis/batch/v1/namespaces/default/jobs"


def test_a_watch_tells_what_happens_after_its_revision():
    async def story(cluster, api):
        cluster.api.create(JOB, "default", runs.job("before"))
        revision = str(cluster.store.revision)
        cluster.api.create(JOB, "default", runs.job("missed"))
        cluster.end("default", "missed", Ends(0))
        async with stream(cluster, JOBS, resourceVersion=revision) as following:
            events = [await following() for _ in range(2)]
            cluster.api.delete(JOB, "default", "before", {"propagationPolicy": "Background"})
            while events[-1]["type"] != "DELETED":
                events.append(await following())
        return events

    events = scene(story)
    assert seen(events[0]) == ("ADDED", "missed")
    assert seen(events[1]) == ("MODIFIED", "missed")
    assert seen(events[-1]) == ("DELETED", "before")
    revisions = [int(event["object"]["metadata"]["resourceVersion"]) for event in events]
    assert revisions == sorted(revisions)
    assert len(set(revisions)) == len(revisions)


def test_a_watch_out_of_the_window_gets_410():
    async def story(cluster, api):
        revision = str(cluster.store.revision)
        cluster.api.create(JOB, "default", runs.job())
        cluster.store.compact()
        async with stream(cluster, JOBS, resourceVersion=revision) as following:
            return await following(), await following()

    error, end = scene(story)
    assert (error["type"], error["object"]["code"], error["object"]["reason"]) == ("ERROR", 410, "Expired")
    assert end is None


def test_bookmarks_move_the_revision():
    async def story(cluster, api):
        cluster.server.bookmark_seconds = 0.05
        query = {"resourceVersion": str(cluster.store.revision), "allowWatchBookmarks": "true"}
        async with stream(cluster, JOBS, **query) as following:
            first = await following()
            cluster.add_namespace("other")
            return first, await following(), cluster.store.revision

    first, second, revision = scene(story)
    assert (first["type"], second["type"]) == ("BOOKMARK", "BOOKMARK")
    assert int(second["object"]["metadata"]["resourceVersion"]) == revision
    assert second["object"]["kind"] == "Job"


def test_an_object_that_stops_to_match_is_gone_for_the_watcher():
    async def story(cluster, api):
        cluster.api.create(JOB, "default", runs.job())
        query = {"resourceVersion": str(cluster.store.revision), "labelSelector": "draftyard.dev/managed=true"}
        async with stream(cluster, JOBS, **query) as following:
            patch = {"metadata": {"labels": {"draftyard.dev/managed": "false"}}}
            cluster.api.patch(JOB, "default", "work", patch)
            gone = await following()
            cluster.api.patch(JOB, "default", "work", {"metadata": {"labels": {"draftyard.dev/managed": "true"}}})
            return gone, await following()

    gone, back = scene(story)
    assert (seen(gone), seen(back)) == (("DELETED", "work"), ("ADDED", "work"))


def test_a_watch_ends_with_its_time():
    async def story(cluster, api):
        query = {"resourceVersion": str(cluster.store.revision), "timeoutSeconds": "0.1"}
        async with stream(cluster, JOBS, **query) as following:
            return await following()

    assert scene(story) is None


# -- Discovery ----------------------------------------------------------------------------------


def test_discovery_names_every_kind_with_a_singular():
    async def story(cluster, api):
        found = {}
        async with aiohttp.ClientSession(cluster.server.url) as session:
            for path in ("/api/v1", "/apis/batch/v1", f"/apis/{GROUP}/{VERSION}", "/apis/apiextensions.k8s.io/v1"):
                async with session.get(path) as response:
                    for entry in (await response.json())["resources"]:
                        found[entry["name"]] = entry["singularName"]
        return found

    found = scene(story)
    assert found["drafttrainings"] == "drafttraining"
    assert found["customresourcedefinitions"] == "customresourcedefinition"
    assert "drafttrainings/status" in found
    assert "configmaps/status" not in found


def test_a_custom_kind_is_served_from_its_definition_on():
    async def story(cluster, api):
        custom = client.CustomObjectsApi(api)
        at = ("kubeflow.org", "v1", "default", "pytorchjobs")
        before = await refusal(custom.list_namespaced_custom_object(*at))
        cluster.define(PYTORCH_JOB)
        return before, await custom.list_namespaced_custom_object(*at)

    before, after = scene(story)
    assert before[:2] == (404, "NotFound")
    assert (after["kind"], after["items"]) == ("PyTorchJobList", [])


def test_kueues_workloads_can_be_served():
    cluster = FakeCluster()
    cluster.define(WORKLOAD)
    made = cluster.api.create(WORKLOAD, "default", {"metadata": {"name": "w"}, "spec": {"queueName": "gpus"}})
    assert made["spec"] == {"queueName": "gpus"}


# -- Faults -------------------------------------------------------------------------------------


def test_a_lost_reply_has_done_its_work():
    async def story(cluster, api):
        cluster.server.faults.add(Fault(faults.LoseReply(), verbs={"create"}, resource="jobs"))
        batch = client.BatchV1Api(api)
        with pytest.raises(aiohttp.ClientError):
            await batch.create_namespaced_job("default", runs.job())
        return (await batch.read_namespaced_job("work", "default")).metadata.name

    assert scene(story) == "work"


def test_a_dropped_request_has_done_nothing():
    async def story(cluster, api):
        cluster.server.faults.add(Fault(faults.Drop(), verbs={"create"}, resource="jobs"))
        batch = client.BatchV1Api(api)
        with pytest.raises(aiohttp.ClientError):
            await batch.create_namespaced_job("default", runs.job())
        return (await refusal(batch.read_namespaced_job("work", "default")))[0]

    assert scene(story) == 404


def test_a_server_that_is_busy_says_when_to_come_again():
    async def story(cluster, api):
        cluster.server.faults.add(Fault(faults.Answer(429, "TooManyRequests", retry_after=3), times=2))
        codes = []
        for _ in range(3):
            try:
                await client.BatchV1Api(api).list_namespaced_job("default")
                codes.append(200)
            except ApiException as error:
                codes.append((error.status, error.headers["Retry-After"]))
        return codes

    assert scene(story) == [(429, "3"), (429, "3"), 200]


def test_a_page_of_a_proxy_is_no_json():
    async def story(cluster, api):
        cluster.server.faults.add(Fault(faults.Answer(502, html=True)))
        with pytest.raises(ApiException) as caught:
            await client.BatchV1Api(api).list_namespaced_job("default")
        return caught.value.status, caught.value.body

    status, body = scene(story)
    assert status == 502
    assert body.startswith("<html>")


def test_faults_strike_what_they_name_and_let_the_first_ones_pass():
    async def story(cluster, api):
        fault = cluster.server.faults.add(
            Fault(faults.Answer(500), verbs={"get"}, resource="jobs", name="a", after=1, times=None)
        )
        for name in "ab":
            cluster.api.create(JOB, "default", runs.job(name))
        batch, codes = client.BatchV1Api(api), []
        for name in ("a", "b", "a", "a"):
            try:
                await batch.read_namespaced_job(name, "default")
                codes.append(200)
            except ApiException as error:
                codes.append(error.status)
        return codes, fault.struck

    assert scene(story) == ([200, 200, 500, 500], 2)


def test_a_delay_and_an_error_add_up():
    async def story(cluster, api):
        loop = asyncio.get_running_loop()
        cluster.server.faults.add(Fault(faults.Delay(0.2)))
        cluster.server.faults.add(Fault(faults.Answer(503)))
        begin = loop.time()
        code = (await refusal(client.BatchV1Api(api).list_namespaced_job("default")))[0]
        return code, loop.time() - begin

    code, seconds = scene(story)
    assert code == 503
    assert seconds >= 0.2


def test_a_crash_comes_right_after_the_write():
    async def story(cluster, api):
        crashed = asyncio.Event()
        cluster.server.faults.add(Fault(faults.Crash(crashed.set), verbs=faults.WRITES))
        with pytest.raises(aiohttp.ClientError):
            await client.BatchV1Api(api).create_namespaced_job("default", runs.job())
        return crashed.is_set(), cluster.store.find(JOB, "default", "work") is not None

    assert scene(story) == (True, True)


@pytest.mark.parametrize(
    ("effect", "first"),
    [
        (faults.WatchError(500), ("ERROR", 500)),
        (faults.WatchError(410), ("ERROR", 410)),
        (faults.Break(events=1), ("ADDED", "one")),
    ],
    ids=["error", "gone", "cut"],
)
def test_watches_can_fail(effect, first):
    async def story(cluster, api):
        cluster.server.faults.add(Fault(effect, verbs={"watch"}))
        for name in ("one", "two"):
            cluster.api.create(JOB, "default", runs.job(name))
        async with stream(cluster, JOBS) as following:
            events = []
            with contextlib.suppress(aiohttp.ClientError):
                while (event := await following()) is not None:
                    found = event["object"]
                    events.append((event["type"], found.get("code") or found["metadata"]["name"]))
                    if isinstance(effect, faults.WatchError) and event["type"] != "ERROR":
                        continue
        return events

    assert first in scene(story)


def test_a_silent_watch_stays_open():
    async def story(cluster, api):
        cluster.server.bookmark_seconds = 0.02
        cluster.server.faults.add(Fault(faults.Silence(), verbs={"watch"}))
        async with stream(cluster, JOBS, allowWatchBookmarks="true", resourceVersion="1") as following:
            cluster.api.create(JOB, "default", runs.job())
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(following(), 0.2)
            return len(cluster.server.watches)

    assert scene(story) == 1


def test_every_call_is_recorded_as_rbac_sees_it():
    async def story(cluster, api):
        batch, custom = client.BatchV1Api(api), client.CustomObjectsApi(api)
        cluster.add_run("default", "demo", runs.ONLINE)
        await batch.create_namespaced_job("default", runs.job())
        await batch.list_job_for_all_namespaces()
        await custom.patch_namespaced_custom_object_status(*RUNS, "demo", {"status": {"stage": "train"}}, **MERGE)
        await refusal(batch.delete_namespaced_job("other", "default"))
        return cluster.server.record

    record = scene(story)
    assert record.granted == {
        ("batch", "jobs", "create"),
        ("batch", "jobs", "list"),
        ("batch", "jobs", "delete"),
        (GROUP, "drafttrainings/status", "patch"),
    }
    assert [call.code for call in record.calls] == [201, 200, 200, 404]
    assert [call.namespace for call in record.of("create", "list", resource="jobs")] == ["default", ""]
    assert record.counts()["patch drafttrainings/status"] == 1
    assert len(record.writes) == 3
