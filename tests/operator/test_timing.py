"""Faults that need time and a network, by their numbers in the operator's design: F2, F7 to F11, F28, F30."""

from __future__ import annotations

import asyncio

import pytest
from live import SLOW, play
from test_end_to_end import finish, holding, pods
from world import NAMESPACE, spec

from draftyard_api.names import PLURAL, Stage
from draftyard_api.reasons import Reason
from draftyard_api.status import Phase
from draftyard_operator.testing import errors, faults, watches
from draftyard_operator.testing.faults import Fault
from draftyard_operator.work_queue import Key

DEMO = Key(NAMESPACE, "demo")
WATCHES = 3
"""Definitions, DraftTrainings and Jobs."""


async def goes_to_the_end(scene, name="demo"):
    assert (await scene.until_over(name)).phase is Phase.SUCCEEDED


def all_watch(scene):
    return scene.until(lambda: len(scene.fake.server.watches) >= WATCHES)


def fault(scene, effect, *verbs, **picked):
    return scene.fake.server.faults.add(Fault(effect, verbs, **picked))


# -- F7, F8: the API server is slow, or breaks ----------------------------------------------------


@pytest.mark.parametrize("code", [429, 500, 503])
def test_f7_a_burst_of_refusals_is_outlived(tmp_path, code):
    async def story(scene):
        async with scene.operator() as process:
            await all_watch(scene)
            for verb in ("get", "create", "patch"):
                fault(scene, faults.Answer(code, retry_after=1 if code == 429 else None), verb)
            scene.fake.add_run(NAMESPACE, "demo", spec())
            await goes_to_the_end(scene)
            process.shell.check()
            assert process.shell.queue.failures(DEMO) == 0
        assert len(scene.children()) == len(set(scene.children())) == 2

    play(story, tmp_path)


def test_f7_retry_after_is_kept_by_all_requests(tmp_path):
    async def story(scene):
        async with scene.operator(SLOW):
            await all_watch(scene)
            fault(scene, faults.Answer(429, "TooManyRequests", retry_after=2), "get", resource=PLURAL)
            scene.fake.add_run(NAMESPACE, "demo", spec())
            await scene.until(lambda: scene.fake.server.record.of("get", resource=PLURAL))
            asked = len(scene.fake.server.record.calls)
            await asyncio.sleep(1.5)
            assert len(scene.fake.server.record.calls) == asked
            await goes_to_the_end(scene)

    play(story, tmp_path)


def test_f7_an_outage_makes_no_hot_loop(tmp_path):
    async def story(scene):
        scene.fake.kubelet.script = holding(Stage.TRAIN)
        async with scene.operator() as process:
            scene.fake.add_run(NAMESPACE, "demo", spec())
            await scene.until(lambda: pods(scene, Stage.TRAIN))
            outage = fault(scene, faults.Drop(), "get", "list", "create", "patch", "delete", times=None)
            process.shell.queue.add(DEMO)
            before = len(scene.fake.server.record.calls)
            await asyncio.sleep(4)
            # doubling waits of one key, and a list a second
            assert len(scene.fake.server.record.calls) - before < 16
            process.shell.check()
            scene.fake.server.faults.remove(outage)
            await finish(scene, Stage.TRAIN)
            await goes_to_the_end(scene)

    play(story, tmp_path)


@pytest.mark.parametrize("resource", ["configmaps", "jobs", "persistentvolumeclaims"])
def test_f8_a_reply_to_a_create_is_lost(tmp_path, resource):
    async def story(scene):
        lost = fault(scene, faults.LoseReply(), "create", resource=resource)
        async with scene.operator():
            scene.fake.add_run(NAMESPACE, "demo", spec())
            await goes_to_the_end(scene)
        assert lost.struck == 1
        assert scene.children() == ["demo-prepare-a1", "demo-train-a1"]

    play(story, tmp_path)


# -- F9 to F11: watches ---------------------------------------------------------------------------


def test_f9_watches_are_dropped_and_told_to_list_again(tmp_path):
    async def story(scene):
        async with scene.operator():
            scene.fake.add_run(NAMESPACE, "demo", spec())
            for last in (None, watches.error(errors.ApiError(410, "Expired", "too old resource version"))):
                await all_watch(scene)
                scene.fake.server.cut_watches(last)
            await goes_to_the_end(scene)

    play(story, tmp_path)


def test_f9_silent_watches_are_caught_up_by_the_resync(tmp_path):
    async def story(scene):
        scene.fake.kubelet.script = holding(Stage.TRAIN)
        async with scene.operator():
            scene.fake.add_run(NAMESPACE, "demo", spec())
            await scene.until(lambda: pods(scene, Stage.TRAIN))
            scene.fake.server.silence_watches()
            await finish(scene, Stage.TRAIN)
            await scene.until(lambda: scene.status("demo").completion_time, 10)

    play(story, tmp_path)


def test_f9_a_run_deleted_in_a_gap_of_the_watch_is_forgotten(tmp_path):
    async def story(scene):
        scene.fake.kubelet.script = holding(Stage.TRAIN)
        async with scene.operator() as process:
            scene.fake.add_run(NAMESPACE, "demo", spec())
            await scene.until(lambda: pods(scene, Stage.TRAIN))
            scene.fake.server.silence_watches()
            scene.fake.api.delete(scene.fake.kind, NAMESPACE, "demo", {"propagationPolicy": "Background"})
            await scene.until(lambda: not process.metrics.runs, 10)
            assert scene.children() == []

    play(story, tmp_path)


def test_f10_a_child_that_ended_while_the_operator_was_away_counts(tmp_path):
    async def story(scene):
        scene.fake.kubelet.script = holding(Stage.TRAIN)
        async with scene.operator(SLOW):
            scene.fake.add_run(NAMESPACE, "demo", spec())
            await scene.until(lambda: pods(scene, Stage.TRAIN))
        await finish(scene, Stage.TRAIN)
        async with scene.operator(SLOW):
            await goes_to_the_end(scene)

    play(story, tmp_path)


def test_f11_repeated_and_stale_events_have_no_effect(tmp_path):
    async def story(scene):
        async with scene.operator(SLOW) as process:
            scene.fake.add_run(NAMESPACE, "demo", spec())
            stale = scene.fake.run(NAMESPACE, "demo")
            await goes_to_the_end(scene)
            await asyncio.sleep(1.5)
            before, children = scene.fake.run(NAMESPACE, "demo"), scene.children()
            for kind in ("ADDED", "MODIFIED", None, "MODIFIED"):
                process.shell.saw_run(kind, stale)
                process.shell.saw_child(NAMESPACE, "demo")
            await asyncio.sleep(0.5)
            assert scene.fake.run(NAMESPACE, "demo") == before
            assert scene.children() == children

    play(story, tmp_path)


# -- F28: a right is missing ----------------------------------------------------------------------


@pytest.mark.parametrize(("verb", "resource"), [("create", "jobs"), ("create", "configmaps"), ("list", "pods")])
def test_f28_a_missing_right_blocks_and_is_named_until_it_is_given(tmp_path, verb, resource):
    group = "batch" if resource == "jobs" else ""
    message = f'{resource} is forbidden: User "draftyard" cannot {verb} resource "{resource}" in API group "{group}"'

    async def story(scene):
        missing = fault(scene, faults.Answer(403, "Forbidden", message), verb, resource=resource, times=None)
        async with scene.operator() as process:
            scene.fake.add_run(NAMESPACE, "demo", spec())
            await scene.until(lambda: scene.status("demo").phase is Phase.BLOCKED)
            held = next(one for one in scene.status("demo").conditions if one.reason == Reason.FORBIDDEN)
            assert f"{verb} {resource}" in held.message
            process.shell.check()
            scene.fake.server.faults.remove(missing)
            await goes_to_the_end(scene)

    play(story, tmp_path)


# -- F30: one that always raises ------------------------------------------------------------------


def test_f30_one_that_always_fails_is_alone_in_its_backoff(tmp_path):
    async def story(scene):
        fault(scene, faults.Answer(500), "get", resource=PLURAL, name="broken", times=None)
        async with scene.operator() as process:
            scene.fake.add_run(NAMESPACE, "broken", spec())
            for number in range(5):
                scene.fake.add_run(NAMESPACE, f"good-{number}", spec())
            for number in range(5):
                await goes_to_the_end(scene, f"good-{number}")
            failures = process.shell.queue.failures(Key(NAMESPACE, "broken"))
            assert 1 <= failures <= 6
            process.shell.check()

    play(story, tmp_path)
