"""One LIST per kind for all runs: it says what a look of its own would say, is never older than what it is asked for,
and nothing is ever written for it.
"""

from __future__ import annotations

import asyncio

import pytest
from live import play
from test_end_to_end import holding, pods
from test_rest import ended
from world import NAME, NAMESPACE, OFFLINE, World, badly, reading, spec

from draftyard_api.names import PLURAL, Stage
from draftyard_api.status import Phase
from draftyard_operator import census as censuses
from draftyard_operator import schedule
from draftyard_operator.census import MANY, Surveys, take
from draftyard_operator.looking import look
from draftyard_operator.reconcile import reconcile
from draftyard_operator.refusals import ApiError, Request
from draftyard_operator.run import read_run
from draftyard_operator.testing.kinds import CLAIM, JOB


def fresh() -> World:
    return World()


def training() -> World:
    return World(pytorch_jobs=True).at_stage(Stage.TRAIN)


def generating() -> World:
    return World(spec(OFFLINE)).at_stage(Stage.GENERATE)


def between_attempts() -> World:
    world = training()
    world.end(badly(1))
    return world


def without_pods() -> World:
    world = World()
    world.fake.pod_rules.append(lambda _: "exceeded quota: team")
    world.settle()
    return world


def with_a_claim_of_somebody() -> World:
    world = World(spec(workspace={"pvc": {"existingClaim": "scratch"}}))
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    world.fake.api.create(CLAIM, NAMESPACE, {"metadata": {"name": "scratch"}, "spec": claim})
    world.settle()
    return world


WORLDS = (fresh, training, generating, between_attempts, without_pods, with_a_claim_of_somebody, ended)


def taken(world: World, namespaces=()):
    return asyncio.run(take(world.cluster, world.operator.config, namespaces, lambda: 0.0))


@pytest.mark.parametrize("namespaces", [(), (NAMESPACE,)], ids=["everywhere", "one namespace"])
@pytest.mark.parametrize("make", WORLDS, ids=lambda make: make.__name__)
def test_a_census_says_what_a_look_of_its_own_says(make, namespaces):
    world = make()
    run, census = read_run(world.object), taken(world, namespaces)
    own = asyncio.run(look(world.cluster, world.operator.config, run, world.now))
    assert asyncio.run(look(census, world.operator.config, run, world.now)) == own


def test_a_namespace_that_is_not_watched_is_not_in_it():
    world = training()
    world.fake.add_namespace("other")
    census = taken(world, ("other",))
    assert all(not found for found in census.listed.values())
    assert census.claims == {}


# -- A pass with one ----------------------------------------------------------------------------


def look_with(world: World, census) -> float | None:
    return asyncio.run(reconcile(world.operator, NAMESPACE, NAME, world.now, census))


def test_a_run_at_rest_costs_one_request_and_waits_as_long_as_ever():
    world = training()
    world.cluster.readings["*"] = reading(done=10, total=100)
    world.settle()
    census, before, reads = taken(world), world.object, world.cluster.reads
    assert look_with(world, census) == schedule.WORKING_SECONDS
    assert (world.cluster.reads - reads, world.object) == (1, before)


def test_what_a_census_has_missed_is_not_believed():
    """It was read before the child was there: a pass of its own does not take the child for deleted."""
    world = World()
    census = taken(world)
    world.settle()
    assert world.stage(Stage.PREPARE).start_time is not None
    before = world.object
    look_with(world, census)
    assert world.object == before


def test_news_are_read_again_before_anything_is_written():
    world = training()
    census = taken(world)
    world.cluster.readings["*"] = reading(done=50, total=100)
    reads = world.cluster.reads
    look_with(world, census)
    assert world.status.progress.percent == 50
    assert world.cluster.reads - reads > 3


def test_what_cannot_be_read_beside_it_is_told_by_a_pass_of_its_own():
    world = World()
    world.settle()
    census = taken(world)
    text = 'configmaps is forbidden: User "a" cannot get resource "configmaps" in API group ""'
    world.cluster.refusals["get configmaps"] = ApiError(Request("get", "configmaps"), 403, "Forbidden", text)
    look_with(world, census)
    assert world.status.phase is Phase.BLOCKED


# -- Sharing ------------------------------------------------------------------------------------


class Counter:
    """A clock, and censuses as they are taken."""

    def __init__(self):
        self.now, self.taken, self.refusal = 0.0, 0, None

    async def take(self):
        self.taken += 1
        began = self.now
        await asyncio.sleep(0)
        if self.refusal is not None:
            raise self.refusal
        return censuses.Census(None, began, {}, {})


def story(play):
    async def played():
        counter = Counter()
        return await play(counter, Surveys(counter.take, lambda: counter.now))

    return asyncio.run(played())


def test_all_that_wait_share_one():
    async def told(counter, surveys):
        found = await asyncio.gather(*(surveys.since(0.0, MANY) for _ in range(4)))
        return counter.taken, len({id(one) for one in found})

    assert story(told) == (1, 1)


def test_nobody_gets_one_that_is_older_than_the_reason_to_look():
    async def told(counter, surveys):
        first = await surveys.since(0.0, MANY)
        counter.now = 5.0
        assert await surveys.since(0.0, 0) is first
        assert await surveys.since(5.0, 0) is None
        second = await surveys.since(5.0, MANY)
        return first.began, second.began

    assert story(told) == (0.0, 5.0)


def test_few_read_for_themselves():
    async def told(counter, surveys):
        return await surveys.since(0.0, MANY - 1), counter.taken

    assert story(told) == (None, 0)


def test_a_census_that_is_refused_is_not_tried_again_at_once():
    async def told(counter, surveys):
        counter.refusal = ApiError(Request("list", "pods"), 403, "Forbidden", "no")
        for _ in range(3):
            assert await surveys.since(0.0, MANY) is None
        counter.refusal, counter.now = None, censuses.RETRY_SECONDS
        assert await surveys.since(0.0, MANY) is not None
        return counter.taken

    assert story(told) == 2


# -- All together -------------------------------------------------------------------------------


def test_many_runs_that_train_are_looked_at_with_few_lists(tmp_path):
    """Each has a look every few seconds here, by the resync; a request for the run itself is what is left of it."""
    runs = 12

    async def story(scene):
        scene.fake.kubelet.script = holding(Stage.TRAIN)
        async with scene.operator():
            for number in range(runs):
                scene.fake.add_run(NAMESPACE, f"run-{number}", spec())
            await scene.until(lambda: len(pods(scene, Stage.TRAIN)) == runs)
            await scene.until(lambda: all(scene.status(f"run-{n}").phase is Phase.RUNNING for n in range(runs)))
            await asyncio.sleep(2)
            scene.fake.server.record.clear()
            asked = scene.fake.server.record
            await scene.until(lambda: len(asked.of("get", resource=PLURAL)) >= 3 * runs)
            looks = len(asked.of("get", resource=PLURAL))
            assert 1 <= len(asked.of("list", resource=JOB.plural)) <= looks / MANY
            assert len(asked.of("list", resource="pods")) <= looks / MANY
            assert asked.writes == []

    play(story, tmp_path)
