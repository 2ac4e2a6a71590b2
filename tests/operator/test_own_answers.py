"""Runs in which the target answers before anything is prepared: a plan from a guess, a Job of shards, what follows."""

from __future__ import annotations

import json

import pytest
from live import play
from world import NAME, NAMESPACE, OFFLINE, OWN, World, badly, prepared, reading, regenerated, spec, well

from draftyard_api import plan
from draftyard_api.exit_codes import ExitCode
from draftyard_api.names import Stage
from draftyard_api.reasons import Reason
from draftyard_api.status import ConditionType as C
from draftyard_api.status import Phase
from draftyard_operator.run import read_run
from draftyard_operator.testing.kinds import JOB
from draftyard_operator.testing.pods import Ends

A1, A2 = f"{NAME}-regenerate-a1", f"{NAME}-regenerate-a2"
COMMIT = regenerated().target_commit
SMALL = {"free_bytes": 10**9}
"""What prepare says of a workspace that is too small."""


def world(**changes) -> World:
    made = World(spec(**{**OWN, **changes}))
    made.settle()
    return made


def end_one(given: World, end: Ends) -> None:
    """Let the first pod that lives end so: the end of one may be that of all."""
    given.fake.kubelet.end(NAMESPACE, given.live_pods()[0], end)
    given.settle()


# -- The order of things ------------------------------------------------------------------------


def test_a_guess_is_the_first_plan_and_freezes_the_run():
    given = world()
    status = given.status
    assert (status.plan.basis, status.plan.regenerate_shards, status.plan.samples) == ("Assumed", 4, 70000)
    assert float(status.plan.gpu_hours.regenerate) > 0
    assert status.frozen_time is not None
    assert (given.reason(C.PLANNED), given.reason(C.REGENERATED)) == (Reason.PLAN_FITS, Reason.STAGE_RUNNING)
    assert given.condition(C.PLANNED).message.startswith("assumed, before prepare has counted: needs ")
    assert given.jobs == [A1]
    assert "Planned" in given.events


def test_a_target_of_unknown_shape_is_planned_without_its_bytes():
    given = world(target={"model": "org/unknown"}, data=OWN["data"] | {"regenerate": {}})
    assert (given.status.plan.basis, given.status.plan.regenerate_shards) == ("Assumed", 2)
    assert "the target's shape is not known before prepare" in given.status.plan.assumes


def test_a_run_that_is_suspended_from_the_start_is_not_frozen():
    given = world(suspend=True)
    assert (given.status.plan, given.status.frozen_time, given.jobs) == (None, None, [])
    given.edit(suspend=False)
    given.settle()
    assert given.jobs == [A1]


def test_it_goes_to_the_end_and_counts_what_it_guessed():
    given = world()
    given.finish(Stage.REGENERATE)
    assert given.status.stage is Stage.PREPARE
    given.finish(Stage.PREPARE)
    assert (given.status.plan.basis, given.status.plan.regenerate_shards) == ("Counted", 4)
    assert given.status.resolved.conversations == "c1"
    given.run_all()
    assert given.status.phase is Phase.SUCCEEDED
    assert [one.name for one in given.status.stages] == [Stage.REGENERATE, Stage.PREPARE, Stage.TRAIN]
    assert given.reason(C.REGENERATED) == Reason.STAGE_COMPLETED
    assert given.events.count("Planned") == 1


def test_prepare_is_told_where_the_conversations_are_and_whose():
    given = world()
    given.finish(Stage.REGENERATE)
    task = json.loads(given.task(f"{NAME}-prepare-a1"))
    assert task["conversations"] == {"key": "c1", "numShards": 4}
    assert task["target"]["revision"] == COMMIT
    # the hash is that of what was asked for, or no other run would find the draft
    assert task["frozenSha256"] == plan.frozen_sha256(read_run(given.object).wanted)


def test_offline_both_stages_have_shards_of_their_own():
    given = World(spec(OFFLINE, **OWN | {"hiddenStates": {"shards": 7}})).at_stage(Stage.GENERATE)
    assert given.job(f"{NAME}-generate-a1")["spec"]["completions"] == 7
    assert given.job(A1)["spec"]["completions"] == 4


def test_a_run_without_it_has_no_such_condition():
    given = World()
    given.run_all()
    assert given.condition(C.REGENERATED) is None
    assert given.status.plan.regenerate_shards is None


# -- While it runs ------------------------------------------------------------------------------


def test_progress_counts_shards():
    given = world()
    given.cluster.readings["*"] = reading(Stage.REGENERATE, done=1, total=1000)
    pod = given.fake.pods(NAMESPACE, A1)[0]
    given.fake.kubelet.end(NAMESPACE, pod["metadata"]["name"], well(Stage.REGENERATE, pod))
    given.later(20)
    given.settle()
    assert given.status.progress.percentage == "25%"
    assert given.stage(Stage.REGENERATE).completed_shards == "0"


def test_parallelism_may_change_at_any_time():
    given = world()
    given.edit(regenerate={"parallelism": 3})
    given.settle()
    assert given.job(A1)["spec"]["parallelism"] == 3


# -- What goes wrong ----------------------------------------------------------------------------


def test_a_shard_that_cannot_be_made_fails_the_run():
    given = world()
    end_one(given, badly(ExitCode.BAD_SHARD, Stage.REGENERATE))
    given.later(120)
    given.settle()
    assert (given.status.phase, given.reason(C.FAILED)) == (Phase.FAILED, Reason.SHARDS_FAILED)
    assert given.reason(C.REGENERATED) == Reason.STAGE_FAILED


def test_an_engine_that_is_away_costs_no_attempt():
    given = world()
    end_one(given, badly(ExitCode.UNAVAILABLE, Stage.REGENERATE, "StorageUnavailable", "out of reach"))
    given.later(30)
    given.settle()
    assert (given.stage(Stage.REGENERATE).attempt, given.stage(Stage.REGENERATE).counted) == (1, 0)
    given.run_all()
    assert given.status.phase is Phase.SUCCEEDED


def test_shards_of_different_targets_are_no_conversations():
    """A branch that moved between two pods."""
    given = world()
    pods = given.fake.pods(NAMESPACE, A1)
    other = regenerated(0, key="c2", target_commit="00")
    given.fake.kubelet.end(NAMESPACE, pods[0]["metadata"]["name"], well(Stage.REGENERATE, pods[0], regenerated=other))
    given.finish(Stage.REGENERATE)
    assert (given.status.phase, given.reason(C.FAILED)) == (Phase.FAILED, Reason.OUTPUT_MISSING)


def test_conversations_that_are_gone_are_made_again():
    given = world()
    given.finish(Stage.REGENERATE)
    given.end(badly(ExitCode.STALE_INPUT, Stage.PREPARE, "StaleInput", "shard-00001: the shard is not complete"))
    given.later(30)
    given.settle()
    assert (given.status.stage, given.stage(Stage.REGENERATE).attempt) == (Stage.REGENERATE, 2)
    assert A2 in given.jobs
    given.run_all()
    assert given.status.phase is Phase.SUCCEEDED


def test_what_was_counted_may_not_fit_and_goes_on_when_the_claim_has_grown():
    given = world()
    given.finish(Stage.REGENERATE)
    given.finish(Stage.PREPARE, prepared=prepared(**SMALL))
    assert (given.status.phase, given.reason(C.PLANNED)) == (Phase.BLOCKED, Reason.WORKSPACE_TOO_SMALL)
    given.later(600)
    given.settle()
    assert given.live_pods() == []
    given.edit(workspace={"pvc": {"claimTemplate": {"size": "8Ti"}}})
    given.settle()
    given.later(30)
    given.settle()
    assert given.status.stage is Stage.PREPARE
    given.finish(Stage.PREPARE)
    assert (given.reason(C.PLANNED), given.status.stage) == (Reason.PLAN_FITS, Stage.TRAIN)


@pytest.mark.parametrize("stage", [Stage.REGENERATE, Stage.PREPARE])
def test_suspended_and_resumed_it_goes_on(stage):
    given = world().at_stage(stage)
    given.edit(suspend=True)
    given.settle()
    given.later(120)
    given.settle()
    assert given.status.phase is Phase.SUSPENDED
    given.edit(suspend=False)
    given.settle()
    assert given.stage(stage).attempt == 2
    given.run_all()
    assert given.status.phase is Phase.SUCCEEDED


# -- Data that is somebody else's ---------------------------------------------------------------


def train_until(given: World, share: str) -> World:
    given.at_stage(Stage.TRAIN)
    for step in (1, 2):
        given.cluster.readings["*"] = reading(heartbeat=float(step), step=step, total_steps=24, on_policy=share)
        given.later(20)
        given.settle()
    return given


def test_off_policy_data_is_told_once():
    given = train_until(World(), "0.5123")
    assert given.status.plan.on_policy_share == "0.5123"
    given.run_all()
    assert given.events.count("OffPolicyData") == 1


@pytest.mark.parametrize(
    ("own", "share"),
    [pytest.param({}, "0.9123", id="the target's text"), pytest.param(OWN, "0.5123", id="drawn by the target itself")],
)
def test_no_warning_about_the_targets_own_text(own, share):
    assert "OffPolicyData" not in train_until(World(spec(**own)), share).run_all().events


@pytest.mark.parametrize("share", ["NaN", "inf", "much", "0." + "5" * 40])
def test_a_share_that_is_none_is_not_stored(share):
    assert train_until(World(), share).status.plan.on_policy_share is None


# -- With the real shell ------------------------------------------------------------------------


def test_with_the_whole_operator_it_goes_to_the_end(tmp_path):
    async def story(scene):
        async with scene.operator():
            scene.fake.add_run(NAMESPACE, "own", spec(OFFLINE, **OWN))
            status = await scene.until_over("own")
            assert status.phase is Phase.SUCCEEDED
            states = [one.name for one in status.stages if one.state == "Succeeded"]
            assert states == [Stage.REGENERATE, Stage.PREPARE, Stage.GENERATE, Stage.TRAIN]
            job = scene.fake.store.get(JOB, NAMESPACE, "own-regenerate-a1")
            assert (job["spec"]["completionMode"], job["status"]["completedIndexes"]) == ("Indexed", "0-3")

    play(story, tmp_path)
