"""What is told: conditions, phases, events, the patch of the status, and when to look again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from world import GATED, NAMESPACE, OFFLINE, World, badly, prepared, reading, spec, well

from draftyard_api.names import Stage
from draftyard_api.reasons import Reason
from draftyard_api.status import ConditionType, Phase
from draftyard_operator import reporting, status
from draftyard_operator.refusals import ApiError, Request
from draftyard_operator.status import BLOCKING, Fact, summarize
from draftyard_operator.testing.patching import merged

C = ConditionType
QUIET = {
    C.ACCEPTED: Fact("True", Reason.SPEC_ACCEPTED),
    C.PLANNED: Fact("True", Reason.PLAN_FITS),
    C.QUEUED: Fact("False", Reason.NO_QUEUE),
    C.RUNNING: Fact("False", Reason.PENDING),
    C.SUSPENDED: Fact("False", Reason.NOT_SUSPENDED),
    C.COMPLETE: Fact("False", Reason.IN_PROGRESS),
    C.FAILED: Fact("False", Reason.IN_PROGRESS),
}

PHASES = [
    pytest.param({}, Phase.PENDING, C.RUNNING, id="nothing yet"),
    pytest.param({C.RUNNING: Fact("True", Reason.PODS_READY)}, Phase.RUNNING, C.RUNNING, id="pods work"),
    pytest.param({C.RUNNING: Fact("False", Reason.BACKOFF)}, Phase.RETRYING, C.RUNNING, id="between attempts"),
    pytest.param({C.QUEUED: Fact("True", Reason.PREEMPTED)}, Phase.QUEUED, C.QUEUED, id="in a queue"),
    pytest.param({C.PLANNED: Fact("False", Reason.WORKSPACE_TOO_SMALL)}, Phase.BLOCKED, C.PLANNED, id="too small"),
    pytest.param(
        {C.QUEUED: Fact("True", Reason.PREEMPTED), C.RUNNING: Fact("False", Reason.FORBIDDEN)},
        Phase.BLOCKED, C.RUNNING, id="blocked wins over queued",
    ),
    pytest.param(
        {C.SUSPENDED: Fact("False", Reason.SUSPENDING), C.ACCEPTED: Fact("False", Reason.INVALID_SPEC)},
        Phase.SUSPENDING, C.SUSPENDED, id="suspending wins over blocked",
    ),
    pytest.param({C.SUSPENDED: Fact("True", Reason.SUSPENDED)}, Phase.SUSPENDED, C.SUSPENDED, id="suspended"),
    pytest.param(
        {C.FAILED: Fact("True", Reason.DIVERGED), C.SUSPENDED: Fact("True", Reason.SUSPENDED)},
        Phase.FAILED, C.FAILED, id="an end wins over all",
    ),
    pytest.param({C.COMPLETE: Fact("True", Reason.DRAFT_PUBLISHED)}, Phase.SUCCEEDED, C.COMPLETE, id="done"),
]  # fmt: skip


@pytest.mark.parametrize(("facts", "phase", "explains"), PHASES)
def test_the_phase_is_the_first_that_matches(facts, phase, explains):
    found = summarize(QUIET | facts)
    assert (found.phase, found.explains) == (phase, explains)


@pytest.mark.parametrize(("facts", "phase", "explains"), PHASES)
def test_what_generic_tools_read_follows_from_the_phase(facts, phase, explains):
    told = status.overall_facts(QUIET | facts, summarize(QUIET | facts))
    held = {kind for kind, fact in told.items() if fact.truth == "True"}
    hopeful = phase not in (Phase.SUCCEEDED, Phase.FAILED, Phase.BLOCKED, Phase.SUSPENDED)
    expected = {C.RECONCILING} if hopeful else set()
    expected |= {C.STALLED} if phase in (Phase.FAILED, Phase.BLOCKED) else set()
    expected |= {C.READY} if phase is Phase.SUCCEEDED else set()
    assert held == expected
    assert {fact.reason for fact in told.values()} == {(QUIET | facts)[explains].reason}


def test_blocking_reasons_are_the_ones_that_are_promised():
    assert {reason.value for reason in BLOCKING} == {
        "InvalidSpec", "BackendUnavailable", "ClaimNotFound", "ClaimAccessMode", "WorkspaceTooSmall",
        "PodSecurityViolation", "ChildRejected", "ChildConflict", "Forbidden", "PodStuckTerminating", "WorkspaceFull",
    }  # fmt: skip


# -- Conditions and events of a run -------------------------------------------------------------


def test_transition_times_move_only_when_a_condition_flips():
    world = World().at_stage(Stage.TRAIN)
    before = {one.type: (one.status, one.last_transition_time) for one in world.status.conditions}
    world.later(300)
    world.end(badly(1))
    for one in world.status.conditions:
        flipped = before[one.type][0] != one.status
        assert (one.last_transition_time != before[one.type][1]) is flipped, one.type


def test_a_run_has_conditions_of_its_own_stages_only():
    world = World().run_all()
    kinds = {one.type for one in world.status.conditions}
    assert {C.GENERATED, C.EVALUATED} & kinds == set()
    offline = World(spec(OFFLINE, **GATED)).run_all()
    assert {C.GENERATED, C.EVALUATED} <= {one.type for one in offline.status.conditions}


def test_every_event_is_told_once():
    world = World(spec(OFFLINE, **GATED)).run_all()
    world.look()
    counted = {name: world.events.count(name) for name in set(world.events)}
    assert counted == {
        "Accepted": 1, "Planned": 1, "StageStarted": 4, "StageCompleted": 4, "DraftPublished": 1,
    }  # fmt: skip


def test_a_low_coverage_is_a_warning():
    world = World()
    world.settle()
    world.end(well(Stage.PREPARE, prepared=prepared(vocab_coverage="0.9012")))
    assert "LowVocabCoverage" in world.events


def test_an_event_that_cannot_be_posted_is_dropped():
    world = World()
    world.cluster.refusals["create events"] = ApiError(Request("create", "events"), 500, "", "down")
    world.run_all()
    assert (world.status.phase, world.events) == (Phase.SUCCEEDED, [])


# -- Progress -----------------------------------------------------------------------------------


def test_progress_is_stored_in_steps_of_a_percent_and_the_message_follows_it():
    world = World().at_stage(Stage.TRAIN)
    writes = []
    for step in range(60):
        world.later(20)
        world.cluster.readings["*"] = reading(heartbeat=float(step), done=step, total=3000, step=step, total_steps=3000)
        before = len(world.cluster.writes)
        world.settle()
        writes.append(len(world.cluster.writes) - before)
    # a first one, one at each percent, and one now and then to say that it is alive
    assert sum(writes) <= 8
    assert world.status.message == f"train a1: step {world.status.progress.step} of 3000"
    assert world.status.progress.percentage == "1%"


def test_progress_of_generate_counts_shards():
    world = World(spec(OFFLINE)).at_stage(Stage.GENERATE)
    world.cluster.readings["*"] = reading(Stage.GENERATE, done=1, total=1000)
    pod = world.fake.pods(NAMESPACE, "llama-r1-generate")[0]
    world.fake.kubelet.end(NAMESPACE, pod["metadata"]["name"], well(Stage.GENERATE, pod))
    world.later(20)
    world.settle()
    assert world.status.progress.percentage == "25%"
    assert world.stage(Stage.GENERATE).completed_shards == "0"


def test_progress_ends_with_its_attempt():
    world = World().at_stage(Stage.TRAIN)
    world.cluster.readings["*"] = reading(done=5, total=10)
    world.settle()
    assert world.status.progress.percent == 50
    world.end(badly(1))
    assert world.status.progress is None
    assert "progress" not in world.object["status"]


def test_the_checkpoint_at_which_training_went_on_is_told_once():
    world = World().at_stage(Stage.TRAIN)
    world.cluster.readings["*"] = reading(done=2, total=10)
    world.settle()
    assert world.stage(Stage.TRAIN).resumed_from_step is None
    world.end(badly(75))
    world.later(60)
    world.settle()
    for heartbeat in (200.0, 300.0):
        world.cluster.readings["*"] = reading(heartbeat=heartbeat, done=5, total=10, resumed_from_step=4)
        world.later(20)
        world.settle()
    assert world.stage(Stage.TRAIN).resumed_from_step == 4
    assert world.events.count("CheckpointResumed") == 1


def test_what_resumed_between_two_readings_is_told_by_its_result():
    world = World().at_stage(Stage.TRAIN)
    world.end(well(Stage.TRAIN, resumed_from_step=8))
    assert world.stage(Stage.TRAIN).resumed_from_step == 8
    assert "CheckpointResumed" in world.events


# -- The patch ----------------------------------------------------------------------------------

VALUES = st.recursive(
    st.one_of(st.integers(0, 3), st.text("ab", max_size=2), st.lists(st.integers(0, 2), max_size=2)),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.dictionaries(st.sampled_from("abcd"), VALUES, max_size=4)


@given(OBJECTS, OBJECTS)
def test_a_patch_leads_from_one_object_to_the_other(before, after):
    patch = reporting.difference(before, after)
    stored = merged(before, patch)
    assert without_empty(stored) == without_empty(after)
    assert (patch == {}) or without_empty(before) != without_empty(after) or before != after


def without_empty(value):
    """A block without fields and no block are the same to a merge patch."""
    if not isinstance(value, dict):
        return value
    inner = {name: without_empty(one) for name, one in value.items()}
    return {name: one for name, one in inner.items() if one != {}}


@given(OBJECTS)
def test_nothing_is_written_when_nothing_differs(found):
    assert reporting.difference(found, found) == {}


# -- When to look again -------------------------------------------------------------------------


def test_a_working_run_is_looked_at_every_20_seconds_and_a_decision_at_once():
    world = World()
    assert world.look() == 0.0
    world.settle()
    assert world.due == 20.0


def test_a_wait_is_slept_through():
    world = World(spec(retry={"maxAttempts": 3, "backoffSeconds": 7})).at_stage(Stage.TRAIN)
    world.end(badly(1))
    assert world.due == 7.0
