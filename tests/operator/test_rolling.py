"""Faults of two operators at a time, and of two versions: F2 and F32 of the operator's design."""

from __future__ import annotations

import asyncio
import copy
import time

import pytest
from live import play
from test_end_to_end import finish, holding, pods
from world import GATED, NAMESPACE, OFFLINE, World, spec

from draftyard_api.names import PLURAL, Stage
from draftyard_api.status import Phase
from draftyard_operator.testing import faults
from draftyard_operator.testing.faults import Fault
from draftyard_operator.testing.kinds import DEFINITION

EXIT_SECONDS = 30

# -- F2: stopped in a pass, and replaced ----------------------------------------------------------

SLOW_CALLS = [
    pytest.param("create", "jobs", id="while it makes a Job"),
    pytest.param("create", "configmaps", id="while it makes a task"),
    pytest.param("patch", PLURAL, id="while it tells a status"),
    pytest.param("list", "pods", id="while it looks"),
]


def slow(scene, verb, resource, seconds=0.5):
    return scene.fake.server.faults.add(Fault(faults.Delay(seconds), (verb,), resource=resource, times=None))


def attempts(scene, name):
    return {one.name: (one.attempt, one.counted, one.uncounted) for one in scene.status(name).stages}


@pytest.mark.parametrize(("verb", "resource"), SLOW_CALLS)
def test_f2_an_operator_that_is_told_to_stop_in_a_pass_ends_in_time_and_loses_nothing(tmp_path, verb, resource):
    async def story(scene):
        async with scene.operator() as old:
            delay = slow(scene, verb, resource)
            scene.fake.add_run(NAMESPACE, "demo", spec(OFFLINE, **GATED))
            await scene.until(lambda: delay.struck)
            old.stop.set()
            began = time.monotonic()
        assert time.monotonic() - began < EXIT_SECONDS
        scene.fake.server.faults.clear()
        async with scene.operator():
            assert (await scene.until_over("demo")).phase is Phase.SUCCEEDED
        assert set(attempts(scene, "demo").values()) == {(1, 0, 0)}
        assert all(name.endswith("-a1") for name in scene.children())

    play(story, tmp_path)


def test_f2_a_newer_operator_beside_an_older_one_makes_nothing_twice(tmp_path):
    """As in a rolling update that somebody has asked for in place of Recreate: both work on the same runs."""
    names = [f"run-{number}" for number in range(4)]

    async def story(scene):
        # replies take a while, so that the passes of both overlap
        slow(scene, "list", "pods", 0.1)
        slow(scene, "create", "jobs", 0.1)
        async with scene.other_process() as old:
            for name in names:
                scene.fake.add_run(NAMESPACE, name, spec(OFFLINE, **GATED))
            await scene.until(scene.children)
            async with scene.operator():
                await scene.until(lambda: len(scene.children()) > len(names))
                old.terminate()
                began = time.monotonic()
                assert await old.wait() == 0
                assert time.monotonic() - began < EXIT_SECONDS
                for name in names:
                    assert (await scene.until_over(name)).phase is Phase.SUCCEEDED
        for name in names:
            assert set(attempts(scene, name).values()) == {(1, 0, 0)}
        made = [call for call in scene.fake.server.record.of("create", resource="jobs") if call.code == 201]
        assert len(made) == len(scene.children()) == 4 * len(names)

    play(story, tmp_path)


def test_f2_two_operators_side_by_side_do_not_end_each_others_attempts(tmp_path):
    async def story(scene):
        scene.fake.kubelet.script = holding(Stage.TRAIN)
        async with scene.other_process(), scene.operator():
            scene.fake.add_run(NAMESPACE, "demo", spec())
            await scene.until(lambda: scene.status("demo").phase is Phase.RUNNING and pods(scene, Stage.TRAIN))
            await asyncio.sleep(1)
            before = scene.fake.run(NAMESPACE, "demo")
            await asyncio.sleep(5)
            assert scene.fake.run(NAMESPACE, "demo") == before, "no write, since nothing has happened"
            await finish(scene, Stage.TRAIN)
            assert (await scene.until_over("demo")).phase is Phase.SUCCEEDED
        assert set(attempts(scene, "demo").values()) == {(1, 0, 0)}

    play(story, tmp_path)


# -- F32: an operator that is older than the stored status ----------------------------------------

NEWER = {
    "forecast": {"endsBefore": "2026-11-21T08:00:00Z"},
    "acceptance": {"byTask": {"code": "3.1"}},
    "phase": "Hibernating",
}


def of_a_newer_version(world: World) -> None:
    """The kind knows more by now: fields, a condition, a phase."""
    definition = copy.deepcopy(world.fake.store.find(DEFINITION, "", world.fake.kind.resource))
    schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]
    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    schema["forecast"] = anything
    schema["acceptance"]["properties"]["byTask"] = anything
    # with it alone there is an acceptance
    schema["acceptance"].pop("required", None)
    schema["phase"]["enum"].append("Hibernating")
    schema["conditions"]["items"]["properties"]["type"]["enum"].append("Audited")
    schema["conditions"]["items"]["properties"]["severity"] = {"type": "string"}
    schema["stages"]["items"]["properties"]["cost"] = {"type": "string"}
    world.fake.store.replace(DEFINITION, definition)


def told_by_a_newer_version(world: World) -> None:
    stored = world.object["status"]
    audited = stored["conditions"][0] | {"type": "Audited", "reason": "InOrder"}
    conditions = [stored["conditions"][0] | {"severity": "low"}, *stored["conditions"][1:], audited]
    stages = [one | {"cost": "1.20"} for one in stored["stages"]]
    patch = {"status": NEWER | {"conditions": conditions, "stages": stages}}
    world.fake.api.patch(world.fake.kind, NAMESPACE, world.object["metadata"]["name"], patch, "status")


def test_f32_what_a_newer_operator_has_written_is_left_alone():
    """To the end, through every status that an older one writes."""
    world = World(spec(OFFLINE, **GATED))
    of_a_newer_version(world)
    world.at_stage(Stage.TRAIN)
    told_by_a_newer_version(world)
    world.run_all()
    status = world.object["status"]
    assert status["phase"] == "Succeeded"
    assert status["forecast"] == NEWER["forecast"]
    assert status["acceptance"]["byTask"] == {"code": "3.1"}
    assert status["acceptance"]["length"] == "2.71"
    assert {one["name"]: one["cost"] for one in status["stages"]} == dict.fromkeys(
        ("prepare", "generate", "train", "evaluate"), "1.20"
    )
    conditions = {one["type"]: one for one in status["conditions"]}
    assert conditions["Audited"]["reason"] == "InOrder"
    assert status["conditions"][0]["severity"] == "low"
    assert conditions["Complete"]["status"] == "True"


def test_f32_what_it_does_not_know_makes_no_write_again_and_again():
    world = World(spec(OFFLINE, **GATED))
    of_a_newer_version(world)
    world.at_stage(Stage.TRAIN)
    told_by_a_newer_version(world)
    world.settle()
    before = world.object
    assert before["status"]["phase"] == "Running", "a phase of its own, since the conditions say so"
    for _ in range(3):
        world.look()
    assert world.object == before
