"""The plan of a run that works: what finished shards and steps took, in place of what was assumed."""

from __future__ import annotations

import pytest
from test_faults import end_shards, generating, training, watch
from world import GATED, NAME, NAMESPACE, OFFLINE, OWN, World, badly, reading, spec, well

from draftyard_api import crd
from draftyard_api.names import Stage
from draftyard_operator.testing.kinds import POD

HOURS_OF_GENERATE = 740 * 1000 / 100 / 3600
"""All tokens at the rate of the finished shards, on one GPU."""


def end_one_shard(world: World) -> None:
    pod = next(pod for pod in world.fake.pods(NAMESPACE, f"{NAME}-generate") if pod["status"]["phase"] == "Running")
    world.fake.kubelet.end(NAMESPACE, pod["metadata"]["name"], well(Stage.GENERATE, pod))
    world.settle()


def test_the_first_finished_shard_says_how_fast_and_how_large():
    world = generating()
    before = world.status.plan
    assert before.basis == "Counted"
    end_one_shard(world)
    plan = world.status.plan
    assert plan.basis == "Measured"
    assert float(plan.gpu_hours.generate) == pytest.approx(HOURS_OF_GENERATE, abs=0.05)
    assert plan.assumes.endswith("generate as measured on 1 of 4 shards")
    assert plan.bytes.needed - plan.bytes.hidden_states == before.bytes.needed - before.bytes.hidden_states
    assert (plan.shards, plan.bytes.free, plan.bytes.capacity) == (4, before.bytes.free, before.bytes.capacity)


def test_all_finished_shards_count_and_are_told_once():
    world = generating()
    end_shards(world, bad=set())
    plan = world.status.plan
    assert plan.assumes.endswith("generate as measured on 4 of 4 shards")
    assert plan.assumes.count("measured") == 1
    # four shards of a gigabyte hold all documents
    assert plan.bytes.hidden_states == pytest.approx(4 * 10**9, rel=0.01)
    assert world.status.hidden_states.bytes == 4 * 10**9


def test_steps_say_how_long_training_takes():
    world = training()
    assumed = world.status.plan
    world.cluster.readings["*"] = reading(done=10, total=100, tokens_per_second="365")
    world.settle()
    plan = world.status.plan
    assert (assumed.basis, plan.basis) == ("Counted", "Measured")
    epochs = world.object["spec"]["train"]["epochs"]
    assert float(plan.gpu_hours.train) == pytest.approx(epochs * 730 * 1000 / 365 / 3600, abs=0.05)
    assert plan.gpu_hours.total == plan.gpu_hours.train
    world.cluster.readings["*"] = reading(heartbeat=200.0, done=20, total=100, tokens_per_second="730")
    watch(world, 40)
    assert world.status.plan.assumes == f"{assumed.assumes}; train as measured"
    assert float(world.status.plan.gpu_hours.train) == pytest.approx(float(plan.gpu_hours.train) / 2, abs=0.06)


@pytest.mark.parametrize("rate", ["NaN", "inf", "0", "-3", "fast", None], ids=str)
def test_a_rate_that_makes_no_sense_changes_nothing(rate):
    world = training()
    assumed = world.status.plan
    world.cluster.readings["*"] = reading(done=10, total=100, tokens_per_second=rate)
    world.settle()
    assert world.status.progress.percent == 10
    assert world.status.plan == assumed


def test_without_the_pod_that_counted_the_plan_stays():
    world = training()
    assumed = world.status.plan
    (name,) = [pod["metadata"]["name"] for pod in world.fake.pods(NAMESPACE, f"{NAME}-prepare")]
    world.fake.api.delete(POD, NAMESPACE, name, {})
    world.cluster.readings["*"] = reading(done=10, total=100, tokens_per_second="365")
    world.settle()
    assert world.status.plan == assumed


# -- Checkpoints --------------------------------------------------------------------------------


def test_checkpoints_are_told_while_training_goes_on():
    world = training()
    world.cluster.readings["*"] = reading(done=5, total=100, checkpoint_step=5)
    world.settle()
    assert (world.status.checkpoint.last_step, world.status.checkpoint.best_step) == (5, None)
    world.cluster.readings["*"] = reading(done=5, total=100, checkpoint_step=10, best_step=5)
    world.settle()
    assert (world.status.checkpoint.last_step, world.status.checkpoint.best_step) == (10, 5)
    assert world.stage(Stage.TRAIN).resumed_from_step is None


def test_an_attempt_says_at_which_step_it_went_on():
    world = training()
    world.cluster.readings["*"] = reading(done=10, total=100, checkpoint_step=10)
    world.settle()
    world.cluster.readings.clear()
    world.end(badly(1))
    world.later(31)
    world.settle()
    assert (world.stage(Stage.TRAIN).attempt, world.stage(Stage.TRAIN).resumed_from_step) == (2, None)
    world.cluster.readings["*"] = reading(done=10, total=100, checkpoint_step=10, resumed_from_step=10)
    world.settle()
    assert world.stage(Stage.TRAIN).resumed_from_step == 10
    assert world.events.count("CheckpointResumed") == 1
    watch(world, 60)
    assert world.events.count("CheckpointResumed") == 1


def test_a_reading_of_another_stage_says_nothing_of_checkpoints():
    world = training()
    world.cluster.readings["*"] = reading(Stage.EVALUATE, done=10, total=100, checkpoint_step=3, resumed_from_step=3)
    world.settle()
    assert world.status.checkpoint is None
    assert world.stage(Stage.TRAIN).resumed_from_step is None


# -- Every field --------------------------------------------------------------------------------


def fields(schema: dict, at: str = "") -> set[str]:
    """Paths of all fields of a schema; below a map of texts and in lists of values there are none."""
    if "properties" in schema:
        inner = [fields(found, f"{at}.{name}".lstrip(".")) for name, found in schema["properties"].items()]
        return set().union(*inner)
    return fields(schema["items"], at) if "properties" in schema.get("items", {}) else {at}


def told(found, at: str = "") -> set[str]:
    """Paths of all fields that a status has."""
    if isinstance(found, dict):
        return {at}.union(*(told(value, f"{at}.{name}".lstrip(".")) for name, value in found.items()))
    if isinstance(found, list) and found and isinstance(found[0], dict):
        return set().union(*(told(one, at) for one in found))
    return {at}


def test_every_field_of_the_status_is_written_by_somebody():
    """A field that nobody writes promises what nobody keeps."""
    schema = crd.definition()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]
    written = set()
    whole = {"step": 10, "total_steps": 100, "epoch": "0.4", "loss": "1.9", "tokens_per_second": "365",
             "on_policy": "0.6"}  # fmt: skip
    saved = {"checkpoint_step": 10, "best_step": 5, "resumed_from_step": 10, "estimated_remaining_seconds": 60}
    for given in (spec(OFFLINE, **GATED, **OWN), spec()):
        world = World(given, pytorch_jobs=True).at_stage(Stage.TRAIN)
        world.cluster.readings["*"] = reading(done=10, total=100, **whole, **saved)
        world.settle()
        written |= told(world.object["status"])
        world.cluster.readings.clear()
        world.end(badly(1))
        written |= told(world.object["status"])
        world.later(31)
        world.run_all()
        written |= told(world.object["status"])
    world = World(spec(OFFLINE, hiddenStates=OFFLINE["hiddenStates"] | {"reclaim": "Delete"})).at_stage(Stage.TRAIN)
    world.finish(Stage.TRAIN, states_reclaimed=True)
    written |= told(world.object["status"])
    assert fields(schema) - written == set()
