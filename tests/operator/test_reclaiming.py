"""`hiddenStates.reclaim: Delete`: the stage that publishes removes them, and the status says whether it did."""

from __future__ import annotations

import json

import pytest
from world import GATED, NAME, OFFLINE, ONLINE, World, spec

from draftyard_api.names import Stage
from draftyard_api.status import Phase

STATES = OFFLINE["hiddenStates"]
DELETES = STATES | {"reclaim": "Delete"}
REF = {"key": "k1", "numShards": 4}


def reclaims_of(world: World, stage: Stage):
    return json.loads(world.task(f"{NAME}-{stage}-a1")).get("reclaims")


@pytest.mark.parametrize(
    ("blocks", "last"),
    [
        pytest.param({}, Stage.TRAIN, id="train is the last stage"),
        pytest.param(GATED, Stage.EVALUATE, id="evaluate is"),
    ],
)
@pytest.mark.parametrize(("states", "told"), [(DELETES, REF), (STATES, None)], ids=["Delete", "Retain"])
def test_only_the_stage_that_publishes_is_told_to_remove_them(blocks, last, states, told):
    world = World(spec(OFFLINE, hiddenStates=states, **blocks)).at_stage(last)
    assert reclaims_of(world, last) == told
    if last is Stage.EVALUATE:
        assert reclaims_of(world, Stage.TRAIN) is None


@pytest.mark.parametrize(("said", "reclaimed"), [(True, True), (False, False), (None, None)])
def test_the_status_says_what_was_done(said, reclaimed):
    world = World(spec(OFFLINE, hiddenStates=DELETES)).at_stage(Stage.TRAIN)
    assert world.status.hidden_states.reclaimed is None
    world.finish(Stage.TRAIN, states_reclaimed=said)
    assert world.status.phase is Phase.SUCCEEDED
    assert world.status.hidden_states.reclaimed is reclaimed
    assert world.status.hidden_states.bytes > 0


def test_an_attempt_that_starts_after_a_change_of_mind_does_as_it_says_now():
    world = World(spec(OFFLINE, hiddenStates=DELETES)).at_stage(Stage.TRAIN)
    world.edit(hiddenStates={"reclaim": "Retain"}, suspend=True)
    world.settle()
    world.edit(suspend=False)
    world.settle()
    assert json.loads(world.task(f"{NAME}-train-a2")).get("reclaims") is None


def test_online_there_is_nothing_to_remove():
    world = World(spec(ONLINE)).at_stage(Stage.TRAIN)
    assert reclaims_of(world, Stage.TRAIN) is None
    world.run_all()
    assert world.status.hidden_states is None
