"""Workers of a PyTorchJob that are taken away: the attempt is over at once, is not counted, and the next completes."""

from __future__ import annotations

import pytest
from world import NAME, NAMESPACE, World, badly, reading, spec, well

from draftyard_api.names import Stage
from draftyard_api.reasons import Reason
from draftyard_api.status import ConditionType as C
from draftyard_api.status import Phase
from draftyard_operator.testing.kinds import POD, PYTORCH_JOB
from draftyard_operator.testing.pods import Ends

FIRST, SECOND = f"{NAME}-train-a1-worker-0", f"{NAME}-train-a1-worker-1"
SHARED = {"pvc": {"claimTemplate": {"size": "1Ti", "accessModes": ["ReadWriteMany"]}}}
SAVED = badly(75, reason="Interrupted", text="train: stopped by a signal; finished work is kept")
CUT_OFF = badly(1, reason="Disrupted", text="connection reset by peer")


def two_workers(step: int | None = 5) -> World:
    """Training of two workers that has taken some steps."""
    world = World(spec(workspace=SHARED, train={"nodes": 2}), pytorch_jobs=True).at_stage(Stage.TRAIN)
    world.fake.kubelet.on_term = lambda _: SAVED
    world.cluster.readings["*"] = reading(step=step, total_steps=24)
    watch(world, 20)
    return world


def watch(world: World, seconds: int, every: int = 1) -> None:
    """Looks, as the queue makes them."""
    for _ in range(0, seconds, every):
        world.later(every)
        world.settle()


def take_away(world: World, name: str) -> None:
    """Delete a pod, as a person or a drain does."""
    world.fake.api.delete(POD, NAMESPACE, name, {})


def take_away_unseen(world: World, name: str) -> None:
    """It is gone before the training-operator has seen it go."""
    world.fake.is_paused = True
    world.fake.api.delete(POD, NAMESPACE, name, {"gracePeriodSeconds": 0})
    world.fake.is_paused = False
    world.fake.settle()


def goes_on_and_completes(world: World) -> None:
    """The next attempt starts after the shortest wait, and nothing was counted."""
    watch(world, 12, every=4)
    held = world.stage(Stage.TRAIN)
    assert (held.state, held.attempt, held.counted, held.uncounted) == ("Running", 2, 0, 1)
    assert world.pytorch_jobs == [f"{NAME}-train-a2"]
    assert len(world.live_pods()) == 2
    world.run_all()
    assert world.status.phase is Phase.SUCCEEDED


@pytest.mark.parametrize("is_behind", [False, True], ids=["gone", "made again after the end"])
def test_a_worker_that_is_taken_away_ends_the_attempt_and_nobody_waits_for_the_others(is_behind):
    world = two_workers()
    world.fake.training_operator.is_behind = is_behind
    take_away(world, FIRST)
    assert world.live_pods() == ([FIRST] if is_behind else []) + [SECOND]
    world.settle()
    assert world.status.history[-1].reason == Reason.DISRUPTED
    goes_on_and_completes(world)


@pytest.mark.parametrize(
    ("end", "reason"),
    [pytest.param(SAVED, Reason.INTERRUPTED, id="saved"), pytest.param(CUT_OFF, Reason.DISRUPTED, id="was cut off")],
)
@pytest.mark.parametrize("is_behind", [False, True], ids=["gone", "made again after the end"])
def test_what_the_other_one_says_is_no_failure_of_the_run(is_behind, end, reason):
    """It ends first: the one that is told to stop takes its time."""
    world = two_workers()
    world.fake.training_operator.is_behind = is_behind
    world.fake.kubelet.on_term = lambda _: None
    take_away(world, FIRST)
    watch(world, 5, every=5)
    assert world.stage(Stage.TRAIN).state == "Running", "both still save"
    world.fake.kubelet.on_term = lambda _: SAVED
    world.fake.kubelet.end(NAMESPACE, SECOND, end)
    world.fake.kubelet.end(NAMESPACE, FIRST, SAVED)
    world.settle()
    assert world.status.history[-1].reason == reason
    goes_on_and_completes(world)


def test_a_worker_that_is_made_again_while_the_job_goes_on_ends_the_attempt_at_once():
    world = two_workers()
    take_away_unseen(world, FIRST)
    assert world.live_pods() == [FIRST, SECOND]
    world.settle()
    last = world.status.history[-1]
    assert (last.reason, last.message) == (
        Reason.DISRUPTED, f"{FIRST} was taken away and made again, and the others cannot go on with it",
    )  # fmt: skip
    assert world.events.count("Disrupted") == 1
    goes_on_and_completes(world)


def test_a_worker_that_was_made_again_before_the_other_failed_is_no_failure():
    """Nobody looked in between."""
    world = two_workers()
    take_away_unseen(world, FIRST)
    world.later(5)
    world.fake.kubelet.end(NAMESPACE, SECOND, CUT_OFF)
    world.settle()
    assert world.status.history[-1].reason == Reason.DISRUPTED
    goes_on_and_completes(world)


def test_a_worker_that_is_made_again_before_the_first_step_meets_the_others():
    world = two_workers(step=None)
    take_away_unseen(world, FIRST)
    watch(world, 60, every=20)
    assert (world.status.phase, world.stage(Stage.TRAIN).attempt) == (Phase.RUNNING, 1)
    world.run_all()
    assert world.status.phase is Phase.SUCCEEDED


def test_a_worker_that_knows_why_wins_over_the_one_that_is_gone():
    world = two_workers()
    world.fake.training_operator.is_behind = True
    take_away(world, FIRST)
    world.fake.kubelet.end(NAMESPACE, SECOND, badly(71, reason="Diverged", text="the loss is NaN at step 6"))
    world.settle()
    assert (world.reason(C.FAILED), world.status.message) == (Reason.DIVERGED, "the loss is NaN at step 6")


def test_workers_that_all_fail_by_themselves_are_counted():
    world = two_workers()
    for name in (FIRST, SECOND):
        world.fake.kubelet.end(NAMESPACE, name, badly(1))
    world.settle()
    assert world.status.history[-1].reason == Reason.POD_FAILED
    assert world.stage(Stage.TRAIN).counted == 1


def test_the_only_worker_may_be_made_again_within_its_attempt():
    world = World(spec(), pytorch_jobs=True).at_stage(Stage.TRAIN)
    world.cluster.readings["*"] = reading(step=5, total_steps=24)
    watch(world, 20)
    take_away_unseen(world, f"{NAME}-train-a1-master-0")
    watch(world, 60, every=20)
    assert (world.status.phase, world.stage(Stage.TRAIN).attempt) == (Phase.RUNNING, 1)
    world.run_all()
    assert world.status.phase is Phase.SUCCEEDED


def test_workers_that_a_queue_brought_back_are_the_attempt():
    world = two_workers()
    for suspends in (True, False):
        change = {"spec": {"runPolicy": {"suspend": suspends}}}
        world.fake.api.patch(PYTORCH_JOB, NAMESPACE, f"{NAME}-train-a1", change)
    watch(world, 40, every=20)
    held = world.stage(Stage.TRAIN)
    assert (held.attempt, held.counted, held.uncounted) == (1, 0, 0)


@pytest.mark.parametrize(
    ("end", "reason", "counted"),
    [
        pytest.param(Ends(137, disrupted=True), Reason.DISRUPTED, 0, id="its node went"),
        pytest.param(badly(69, reason="StorageUnavailable"), Reason.STORAGE_UNAVAILABLE, 0, id="the store was away"),
        pytest.param(badly(1), Reason.POD_FAILED, 1, id="it failed"),
    ],
)
def test_a_success_of_one_worker_does_not_hide_how_the_one_with_the_result_ended(end, reason, counted):
    world = two_workers()
    world.fake.kubelet.end(NAMESPACE, SECOND, Ends(0))
    world.fake.kubelet.end(NAMESPACE, FIRST, end)
    world.settle()
    assert world.status.history[-1].reason == reason
    assert world.stage(Stage.TRAIN).counted == counted
    watch(world, 40, every=10)
    world.run_all()
    assert world.status.phase is Phase.SUCCEEDED


def test_the_one_that_is_taken_away_before_the_end_has_its_result_verified_again():
    world = two_workers()
    world.fake.kubelet.end(NAMESPACE, FIRST, well(Stage.TRAIN))
    take_away(world, FIRST)
    world.fake.kubelet.end(NAMESPACE, SECOND, Ends(0))
    world.settle()
    assert world.status.history[-1].reason == Reason.RESULT_LOST
    goes_on_and_completes(world)
