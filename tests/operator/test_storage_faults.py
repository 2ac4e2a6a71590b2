"""Faults of storage as the operator sees them: F23 of the operator's design.

What a stage does about torn files and slow buckets is tested where stages are; here is what becomes of the run.
"""

from __future__ import annotations

import pytest
from test_faults import GENERATE_A1, GENERATE_A2, TRAIN_A2, end_shards, generating, training, watch
from world import NAME, NAMESPACE, OFFLINE, World, badly, reading, spec, well

from draftyard_api.exit_codes import ExitCode
from draftyard_api.names import Stage
from draftyard_api.reasons import Reason
from draftyard_api.status import ConditionType as C
from draftyard_api.status import Phase


def shard_pod(world: World, index: int) -> str:
    """The pod of a shard that runs."""
    (name,) = [
        pod["metadata"]["name"] for pod in world.fake.pods(NAMESPACE, f"{GENERATE_A1}-{index}-")
        if pod["status"]["phase"] == "Running"
    ]  # fmt: skip
    return name


def end_shard(world: World, index: int, end) -> None:
    world.fake.kubelet.end(NAMESPACE, shard_pod(world, index), end)
    world.settle()


# -- Torn files -----------------------------------------------------------------------------------


def test_f23_a_shard_that_was_torn_is_written_anew_within_its_attempt():
    """By another pod of its index, as often as `retriesPerShard` says."""
    world = generating()
    for _ in range(3):
        end_shard(world, 0, badly(1, Stage.GENERATE, text="the shard was cut off"))
    assert (world.stage(Stage.GENERATE).attempt, world.stage(Stage.GENERATE).counted) == (1, 0)
    end_shards(world, bad=set())
    assert world.status.stage is Stage.TRAIN
    assert world.stage(Stage.GENERATE).completed_shards == "0-3"


def test_f23_a_shard_that_training_finds_broken_is_made_again():
    world = World(spec(OFFLINE)).at_stage(Stage.TRAIN)
    world.end(badly(ExitCode.STALE_INPUT, reason="StaleInput", text="shard 2: its checksum differs"), Stage.TRAIN)
    assert GENERATE_A2 in world.jobs
    assert "shard 2" in world.status.history[-1].message
    world.run_all()
    assert (world.status.phase, world.stage(Stage.TRAIN).attempt) == (Phase.SUCCEEDED, 2)


def test_f23_a_checkpoint_that_was_torn_leaves_the_one_before():
    """Training says at which step it went on, and that it has the older one only."""
    world = training()
    world.cluster.readings["*"] = reading(done=40, total=100, checkpoint_step=40, best_step=20)
    world.settle()
    world.cluster.readings.clear()
    world.end(badly(1, text="killed while it saved step 60"))
    world.later(31)
    world.settle()
    assert world.status.checkpoint.last_step == 40
    world.cluster.readings["*"] = reading(done=20, total=100, resumed_from_step=20, checkpoint_step=20, best_step=20)
    world.settle()
    assert world.stage(Stage.TRAIN).resumed_from_step == 20
    assert world.status.checkpoint.last_step == 20
    world.run_all()
    assert world.status.phase is Phase.SUCCEEDED


# -- A full disk ----------------------------------------------------------------------------------


def test_f23_a_disk_that_is_full_while_shards_are_made_stops_all_of_them_until_it_grows():
    world = generating()
    end_shard(world, 1, badly(ExitCode.NO_SPACE, Stage.GENERATE, "WorkspaceFull", "workspace: no space left"))
    assert (world.status.phase, world.reason(C.RUNNING)) == (Phase.BLOCKED, Reason.WORKSPACE_FULL)
    assert world.live_pods() == []
    watch(world, 120)
    assert world.status.phase is Phase.BLOCKED
    world.edit(workspace={"pvc": {"claimTemplate": {"size": "8Ti"}}})
    watch(world, 40)
    assert (world.status.phase, world.stage(Stage.GENERATE).attempt) == (Phase.RUNNING, 2)
    assert world.stage(Stage.GENERATE).counted == 0


# -- Buckets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["SlowDown: reduce your request rate", "503 Service Unavailable"])
def test_f23_a_bucket_that_is_out_of_reach_for_hours_uses_no_attempt_up(text):
    """Each time the wait is twice as long, up to five minutes: an outage is no hot loop."""
    world = World(spec(backend="PyTorchJob", retry={"maxAttempts": 1}), pytorch_jobs=True).at_stage(Stage.TRAIN)
    waits = []
    for _ in range(8):
        world.end(badly(ExitCode.UNAVAILABLE, reason="StorageUnavailable", text=text))
        assert (world.status.phase, world.status.history[-1].message) == (Phase.RETRYING, text)
        before = world.now
        while world.status.phase is Phase.RETRYING:
            world.later(10)
            world.settle()
        waits.append((world.now - before).total_seconds())
    assert waits == [10, 20, 40, 80, 160, 300, 300, 300]
    assert (world.stage(Stage.TRAIN).counted, world.stage(Stage.TRAIN).uncounted) == (0, 8)
    world.run_all()
    assert world.status.phase is Phase.SUCCEEDED


def test_f23_a_job_waits_out_a_bucket_within_its_attempt():
    """The pods that the Job controller makes anew count as nothing."""
    world = training(retry={"maxAttempts": 1})
    for _ in range(5):
        world.end(badly(ExitCode.UNAVAILABLE, reason="StorageUnavailable", text="503"))
    assert (world.stage(Stage.TRAIN).attempt, world.stage(Stage.TRAIN).counted) == (1, 0)
    world.finish(Stage.TRAIN)
    assert world.status.phase is Phase.SUCCEEDED


@pytest.mark.parametrize("stage", [Stage.PREPARE, Stage.GENERATE, Stage.TRAIN], ids=str)
def test_f23_credentials_that_have_expired_end_the_run_with_one_clear_message(stage):
    """Another attempt would have the same ones."""
    world = World(spec(OFFLINE)).at_stage(stage)
    message = "workspace: s3://drafts: ExpiredToken; renew the keys in Secret s3"
    pod = world.live_pods()[0]
    world.fake.kubelet.end(NAMESPACE, pod, badly(ExitCode.DENIED, stage, "StorageAccessDenied", message))
    world.settle()
    assert (world.status.phase, world.reason(C.FAILED)) == (Phase.FAILED, Reason.STORAGE_ACCESS_DENIED)
    assert (world.status.message, world.stage(stage).attempt) == (message, 1)
    assert world.live_pods() == []
    assert [one.reason for one in world.status.history if one.stage is stage] == [Reason.STORAGE_ACCESS_DENIED]


# -- Clocks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [0.0, 4e9], ids=["in 1970", "in 2096"])
@pytest.mark.parametrize("step", [20, -20], ids=["forward", "backward"])
def test_f23_a_pods_clock_may_be_anywhere_as_long_as_it_moves(start, step):
    world = training(deadlines={"progressSeconds": 600})
    for beat in range(60):
        world.cluster.readings["*"] = reading(heartbeat=start + 2000 + step * beat, done=10, total=100)
        world.later(20)
        world.settle()
    assert (world.status.phase, world.reason(C.PROGRESS_REPORTING)) == (Phase.RUNNING, Reason.FRESH)
    assert world.stage(Stage.TRAIN).attempt == 1


def test_f23_what_ended_by_a_clock_that_is_off_is_judged_all_the_same():
    """Stored times are the operator's own."""
    world = training()
    world.fake.store.clock = lambda: world.now.timestamp() - 5 * 365 * 24 * 3600
    world.end(badly(1))
    assert world.status.phase is Phase.RETRYING
    world.later(31)
    world.settle()
    assert TRAIN_A2 in world.jobs
    world.end(well(Stage.TRAIN))
    assert world.status.phase is Phase.SUCCEEDED
    assert world.status.completion_time.startswith(f"{world.now.year}")
    assert NAME in world.status.export.uri
