"""The whole operator: real kopf, the real client, and a fake cluster over HTTP."""

from __future__ import annotations

import asyncio

import pytest
from live import SLOW, ends_well, play
from rights import CLUSTER, WATCHED, triples
from world import CONFIG, GATED, NAMESPACE, OFFLINE, is_live, spec, well

from draftyard_api.names import LABEL_STAGE, Stage
from draftyard_api.reasons import Reason
from draftyard_api.status import Phase
from draftyard_operator.testing.kinds import CLAIM, CONFIG_MAP, JOB, PYTORCH_JOB
from draftyard_operator.testing.pods import Runs

GRANTED = triples(WATCHED + CLUSTER)
"""What the chart grants; optional rights are left out."""
NEVER_ASKED = {("draftyard.dev", "drafttrainings/finalizers", "update")}
"""Never asked for: the server looks for it where owner references are made that hold up a deletion."""
TAKEN = ((JOB, "online-prepare-a1"), (PYTORCH_JOB, "online-train-a1"))
"""Names of children that somebody else has taken."""


def pods(scene, stage=None):
    return [pod["metadata"]["name"] for pod in scene.fake.pods(NAMESPACE) if is_live(pod, stage)]


def holding(*stages):
    """A script of the kubelet: all goes well, and these stages go on until they are told to end."""
    goes = ends_well()
    return lambda pod: Runs() if pod["metadata"]["labels"][LABEL_STAGE] in stages else goes(pod)


async def finish(scene, stage):
    """End what was held well."""
    scene.fake.kubelet.script = ends_well()
    for pod in scene.fake.pods(NAMESPACE):
        if is_live(pod, stage):
            scene.fake.kubelet.end(NAMESPACE, pod["metadata"]["name"], well(stage, pod))


# -- To the end ---------------------------------------------------------------------------------


def test_online_and_offline_go_to_the_end_with_the_rights_of_the_table(tmp_path):
    async def story(scene):
        async with scene.operator():
            scene.fake.add_run(NAMESPACE, "online", spec())
            scene.fake.add_run(NAMESPACE, "offline", spec(OFFLINE, **GATED))
            online, offline = await scene.until_over("online"), await scene.until_over("offline")
            assert (online.phase, online.backend) == (Phase.SUCCEEDED, "PyTorchJob")
            assert (offline.phase, offline.backend) == (Phase.SUCCEEDED, "Job")
            states = [one.name for one in offline.stages if one.state == "Succeeded"]
            assert states == [Stage.PREPARE, Stage.GENERATE, Stage.TRAIN, Stage.EVALUATE]
            assert all(name.endswith("-a1") for name in scene.children())
            scene.fake.edit_run(NAMESPACE, "offline", {"cleanup": {"ttlSecondsAfterFinished": 0}})
            await scene.until(lambda: not [name for name in scene.children() if name.startswith("offline")])
        assert scene.calls() - GRANTED == set()

    play(story, tmp_path, pytorch_jobs=True)


def test_the_table_grants_nothing_that_nobody_needs(tmp_path):
    async def story(scene):
        scene.fake.kubelet.script = holding(Stage.GENERATE, Stage.TRAIN)
        for kind, name in TAKEN:
            theirs = {"suspend": True, "runPolicy": {"suspend": True}}
            scene.fake.store.create(kind, {"metadata": {"name": name, "namespace": NAMESPACE}, "spec": theirs})
        async with scene.operator():
            scene.fake.add_run(NAMESPACE, "online", spec())
            for kind, name in TAKEN:
                await scene.until(lambda: scene.status("online").reason == Reason.CHILD_CONFLICT)
                scene.fake.pod_rules.append(lambda _: "exceeded quota: pods, requested: pods=1")
                scene.fake.api.delete(kind, NAMESPACE, name, {})
                await scene.until(lambda: scene.status("online").reason == Reason.QUOTA_EXCEEDED)
                scene.fake.pod_rules.clear()
            scene.fake.add_run(NAMESPACE, "offline", spec(OFFLINE))
            await scene.until(lambda: pods(scene, Stage.TRAIN))
            await scene.until(lambda: len(pods(scene, Stage.GENERATE)) == 2)
            scene.fake.edit_run(NAMESPACE, "offline", {"hiddenStates": {"parallelism": 3}})
            await scene.until(lambda: len(pods(scene, Stage.GENERATE)) == 3)
            for name in ("online", "offline"):
                larger = {"workspace": {"pvc": {"claimTemplate": {"size": "8Ti"}}}}
                scene.fake.edit_run(NAMESPACE, name, larger | {"suspend": True})
            await scene.until(lambda: scene.status("online").phase is Phase.SUSPENDED)
            await scene.until(lambda: scene.status("offline").phase is Phase.SUSPENDED)
        asked = scene.calls()
        assert asked - GRANTED == set()
        assert GRANTED - asked == NEVER_ASKED

    play(story, tmp_path, pytorch_jobs=True)


def test_with_the_switch_off_no_pytorch_job_is_asked_for(tmp_path):
    """Though the cluster serves them."""
    config = CONFIG.model_copy(update={"pytorch_jobs": False})
    workspace = {"pvc": {"claimTemplate": {"size": "1Ti", "accessModes": ["ReadWriteMany"]}}}

    async def story(scene):
        async with scene.operator(config=config):
            scene.fake.add_run(NAMESPACE, "one", spec())
            scene.fake.add_run(NAMESPACE, "two", spec(workspace=workspace, train={"nodes": 2}))
            one = await scene.until_over("one")
            assert (one.phase, one.backend) == (Phase.SUCCEEDED, "Job")
            await scene.until(lambda: scene.status("two").phase is Phase.BLOCKED)
            assert scene.status("two").message.startswith("train.nodes: given 2")
        assert [call for call in scene.calls() if "pytorchjobs" in call] == []
        assert scene.calls() - triples(WATCHED + CLUSTER, ()) == set()

    play(story, tmp_path, pytorch_jobs=True)


# -- In the middle ------------------------------------------------------------------------------


@pytest.mark.parametrize(("reclaim", "kept"), [("Delete", 0), ("Retain", 1)])
def test_a_deleted_run_takes_along_what_is_not_retained(tmp_path, reclaim, kept):
    claim = {"size": "200Gi", "reclaim": reclaim}

    async def story(scene):
        scene.fake.kubelet.script = holding(Stage.TRAIN)
        async with scene.operator() as process:
            scene.fake.add_run(NAMESPACE, "demo", spec(workspace={"pvc": {"claimTemplate": claim}}))
            await scene.until(lambda: pods(scene, Stage.TRAIN))
            scene.fake.api.delete(scene.fake.kind, NAMESPACE, "demo", {"propagationPolicy": "Background"})
            await scene.until(lambda: not scene.children() and not pods(scene))
            await asyncio.sleep(2.5)
            assert scene.children() == []
            assert scene.fake.store.every(CONFIG_MAP, NAMESPACE) == []
            assert len(scene.fake.store.every(CLAIM, NAMESPACE)) == kept
            assert process.metrics.runs == {}

    play(story, tmp_path, pytorch_jobs=True)


def test_suspend_gives_the_gpus_back_and_resume_goes_on(tmp_path):
    async def story(scene):
        scene.fake.kubelet.script = holding(Stage.TRAIN)
        async with scene.operator():
            scene.fake.add_run(NAMESPACE, "demo", spec())
            await scene.until(lambda: pods(scene, Stage.TRAIN))
            scene.fake.edit_run(NAMESPACE, "demo", {"suspend": True})
            await scene.until(lambda: scene.status("demo").phase is Phase.SUSPENDED)
            assert pods(scene) == []
            scene.fake.edit_run(NAMESPACE, "demo", {"suspend": False})
            await scene.until(lambda: pods(scene, Stage.TRAIN))
            assert "demo-train-a2" in scene.children()
            await finish(scene, Stage.TRAIN)
            assert (await scene.until_over("demo")).phase is Phase.SUCCEEDED

    play(story, tmp_path, pytorch_jobs=True)


def test_training_goes_on_while_the_operator_is_away(tmp_path):
    async def story(scene):
        scene.fake.kubelet.script = holding(Stage.TRAIN)
        async with scene.operator():
            scene.fake.add_run(NAMESPACE, "demo", spec())
            await scene.until(lambda: pods(scene, Stage.TRAIN))
            before = scene.children()
        assert len(pods(scene, Stage.TRAIN)) == 1
        await finish(scene, Stage.TRAIN)
        writes = len(scene.fake.server.record.writes)
        await asyncio.sleep(0.3)
        assert len(scene.fake.server.record.writes) == writes
        async with scene.operator():
            assert (await scene.until_over("demo")).phase is Phase.SUCCEEDED
        assert set(before) <= set(scene.children())
        assert all(name.endswith("-a1") for name in scene.children())

    play(story, tmp_path, pytorch_jobs=True)


# -- What events have missed --------------------------------------------------------------------


def test_the_resync_finds_what_no_watch_has_told(tmp_path):
    async def story(scene):
        async with scene.operator():
            await scene.until(lambda: len(scene.fake.server.watches) >= 3)
            scene.fake.server.silence_watches()
            scene.fake.add_run(NAMESPACE, "unseen", spec())
            assert (await scene.until_over("unseen")).phase is Phase.SUCCEEDED

    play(story, tmp_path)


def test_without_a_resync_events_alone_do(tmp_path):
    async def story(scene):
        async with scene.operator(SLOW):
            scene.fake.add_run(NAMESPACE, "demo", spec())
            assert (await scene.until_over("demo")).phase is Phase.SUCCEEDED

    play(story, tmp_path)
