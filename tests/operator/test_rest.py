"""Ended runs that a resync leaves alone: never one over which a pass would do or say something."""

from __future__ import annotations

import asyncio

import pytest
from world import NAME, NAMESPACE, World

from draftyard_api.names import LABEL_MANAGED, LABEL_UID
from draftyard_operator import rest
from draftyard_operator.kinds import JOB, PYTORCH_JOB
from draftyard_operator.refusals import ApiError, Request


class Lists:
    """The LISTs of a client, counted."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.asked = []
        self.refusal = None

    async def each(self, kind, namespace, labels):
        self.asked.append((kind, namespace, labels))
        if self.refusal is not None:
            raise self.refusal
        found = await self.world.cluster.list(kind, namespace, labels)
        if found is None:
            raise ApiError(Request("list", kind.plural), 404, "NotFound", "no such kind")
        for one in found:
            yield one


def rests(world: World, lists: Lists | None = None, namespaces=()) -> bool:
    told = asyncio.run(rest.at_rest(world.operator, lists or Lists(world), namespaces, world.now))
    return told(world.object)


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


def test_each_kind_is_listed_once_for_all():
    world = ended()
    lists = Lists(world)
    rests(world, lists)
    assert lists.asked == [(kind, "", {LABEL_MANAGED: "true"}) for kind in (JOB, PYTORCH_JOB)]
    lists = Lists(world)
    rests(world, lists, ("a", "b"))
    assert {namespace for _, namespace, _ in lists.asked} == {"a", "b"}


def test_a_list_that_fails_is_no_rest():
    world = ended()
    lists = Lists(world)
    lists.refusal = ApiError(Request("list", "jobs.batch"), 500, "InternalError", "no")
    with pytest.raises(ApiError):
        rests(world, lists)


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
