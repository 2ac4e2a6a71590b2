"""Ended runs that a resync leaves alone: never one over which a pass would do or say something."""

from __future__ import annotations

import asyncio

from world import NAME, NAMESPACE, World

from draftyard_api.names import LABEL_MANAGED, LABEL_UID
from draftyard_operator import rest
from draftyard_operator.census import take


def rests(world: World) -> bool:
    census = asyncio.run(take(world.cluster, world.operator.config, ()))
    return rest.at_rest(world.operator, census, world.now)(world.object)


def ended() -> World:
    """A run that has ended, and whose children are gone."""
    world = World().run_all()
    world.later(30 * 24 * 3600)
    world.settle()
    assert world.jobs == []
    return world


def test_an_ended_run_without_children_rests_and_keeps_its_series():
    world = ended()
    world.operator.metrics.forget(NAMESPACE, NAME)
    before = len(world.cluster.writes)
    assert rests(world)
    assert {key.name for key in world.operator.metrics.runs} == {NAME}
    assert len(world.cluster.writes) == before


def test_what_rests_is_what_a_pass_would_leave_as_it_is():
    world = ended()
    before, writes = world.object, len(world.cluster.writes)
    assert world.look() is None
    assert (world.object, len(world.cluster.writes)) == (before, writes)


def test_an_ended_run_with_children_does_not_rest():
    world = World().run_all()
    assert world.jobs
    assert not rests(world)


def test_a_run_that_goes_on_does_not_rest():
    world = World()
    world.settle()
    assert not rests(world)


def test_an_ended_run_whose_spec_has_changed_does_not_rest():
    world = ended()
    world.edit(suspend=True)
    assert not rests(world)


def test_a_child_that_names_no_run_is_passed_over():
    world = ended()
    container = {"name": "a", "image": "b"}
    world.fake.api.create(
        next(one for one in world.fake.api.kinds() if one.plural == "jobs"),
        NAMESPACE,
        {
            "metadata": {"name": "odd", "labels": {LABEL_MANAGED: "true"}},
            "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [container]}}},
        },
    )
    assert LABEL_UID not in world.job("odd")["metadata"]["labels"]
    assert rests(world)
