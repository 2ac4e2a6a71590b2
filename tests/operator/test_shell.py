"""Beside the watches: what events mean, what the resync finds, and when the operator asks to be restarted."""

from __future__ import annotations

import asyncio
import logging

import pytest

from draftyard_operator import shell as shells
from draftyard_operator.budget import IS_URGENT
from draftyard_operator.metrics import Metrics, RunLabels
from draftyard_operator.refusals import ApiError, Request
from draftyard_operator.shell import Rhythm, Shell, Unhealthy, is_answered, is_over
from draftyard_operator.work_queue import Key, Priority

A, B, C = (Key("team", name) for name in "abc")


def run(key=A, generation=1, observed=1, condition="", **metadata):
    """A DraftTraining as it is listed; `condition` is one that is True."""
    conditions = [{"type": condition, "status": "True"}] if condition else []
    return {
        "metadata": {"namespace": key.namespace, "name": key.name, "generation": generation, **metadata},
        "status": {"observedGeneration": observed, "conditions": conditions},
    }


class Scene:
    """A shell, what it looks at, and a clock that stands still until it is moved."""

    def __init__(self, rhythm=None):
        self.now = 100.0
        self.looked = []
        self.urgent = []
        self.existing = []
        self.resting = ()
        self.asked = 0
        self.failure = None
        self.after = None
        self.refusal = None
        self.metrics = Metrics()
        self.shell = Shell(self.look, self.list_runs, self.at_rest, self.metrics, rhythm, lambda: self.now)

    @property
    def queue(self):
        return self.shell.queue

    async def look(self, key):
        self.looked.append(key)
        self.urgent.append(IS_URGENT.get())
        if self.failure is not None:
            raise self.failure
        return self.after

    async def list_runs(self):
        if self.refusal is not None:
            raise self.refusal
        for one in self.existing:
            yield one

    async def at_rest(self):
        self.asked += 1
        return lambda one: one["metadata"]["name"] in self.resting

    def resync(self):
        asyncio.run(self.shell.resync())

    def work(self):
        """Passes over everything that waits. Returns the keys."""
        done = []
        while (key := self.queue.take_now()) is not None:
            asyncio.run(self.shell.work_on(key))
            done.append(key)
        return done

    def value(self, name, **labels):
        return self.metrics.registry.get_sample_value(f"draftyard_{name}", labels)


@pytest.fixture
def scene():
    return Scene()


def refused(code=500, retry_after=0.0):
    return ApiError(Request("list", "drafttrainings.draftyard.dev"), code, "InternalError", "no", retry_after)


# -- What is read off an object -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "over"),
    [
        (run(condition="Complete"), True),
        (run(condition="Failed"), True),
        (run(condition="Ready"), False),
        (run(), False),
        ({"metadata": {}, "status": {"conditions": [{"type": "Complete", "status": "False"}]}}, False),
        ({"metadata": {}}, False),
    ],
)
def test_over_is_what_has_ended(given, over):
    assert is_over(given) is over


def test_answered_is_a_status_of_the_present_spec():
    assert is_answered(run(generation=2, observed=2))
    assert not is_answered(run(generation=2, observed=1))
    assert not is_answered({"metadata": {"generation": 1}})


# -- Events -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "given", "waits"),
    [
        (None, run(), True),
        ("ADDED", run(), True),
        ("ADDED", run(observed=None), True),
        ("MODIFIED", run(generation=2), True),
        ("MODIFIED", run(), False),
        (None, run(condition="Complete"), False),
        (None, run(condition="Complete", generation=2), True),
        ("MODIFIED", run(generation=2, deletionTimestamp="2026-11-20T08:00:00Z"), False),
        ("DELETED", run(), False),
    ],
)
def test_an_event_says_look_again_where_there_is_news(scene, kind, given, waits):
    scene.shell.saw_run(kind, given)
    assert scene.work() == ([A] if waits else [])


def test_a_changed_spec_goes_before_what_came_earlier(scene):
    scene.shell.saw_child("team", "a")
    scene.shell.saw_run("MODIFIED", run(B, generation=2))
    assert scene.work() == [B, A]
    assert scene.urgent == [True, False]


def test_a_deleted_run_leaves_no_backoff_and_no_series(scene):
    scene.metrics.see(*A, RunLabels("Online", "Job", "Training"))
    scene.queue.add(A)
    scene.failure = ValueError("broken")
    scene.work()
    assert scene.queue.failures(A) == 1
    scene.shell.saw_run("DELETED", run())
    assert scene.queue.failures(A) == 0
    assert scene.metrics.runs == {}
    scene.now += 400
    assert scene.work() == []


# -- Passes -------------------------------------------------------------------------------------


def test_a_pass_says_when_to_look_again(scene):
    scene.after = 20.0
    scene.queue.add(A)
    assert scene.work() == [A]
    scene.now += 19.9
    assert scene.work() == []
    scene.now += 0.2
    assert scene.work() == [A]
    assert scene.value("reconcile_total", result="ok") == 2


def test_looks_that_were_put_off_come_together(scene):
    """And short waits are kept to the second."""
    scene.now = 101.0
    scene.after = 20.0
    for key in (A, B):
        scene.queue.add(key)
        scene.work()
        scene.now += 2.0
    scene.now = 119.9
    assert scene.work() == []
    scene.now = 120.0
    assert scene.work() == [A, B]
    scene.after = 19.0
    scene.queue.add(C)
    scene.work()
    scene.now = 138.9
    assert scene.work() == []
    scene.now = 139.0
    assert scene.work() == [C]


def test_what_fails_is_held_back_alone_and_told_in_one_line(scene, caplog):
    scene.failure = ValueError("first line\nsecond line")
    scene.queue.add(A)
    scene.work()
    scene.failure = None
    scene.queue.add(B)
    assert scene.work() == [B]
    scene.now += 1.0
    assert scene.work() == [A]
    (record,) = [one for one in caplog.records if one.levelno == logging.ERROR]
    assert (record.namespace, record.run, record.action) == ("team", "a", "reconcile")
    assert record.getMessage() == "pass failed, again in 1 s"
    assert scene.value("reconcile_total", result="error") == 1
    assert scene.value("workqueue_retries_total") == 1


def test_what_the_server_asks_to_wait_is_waited(scene):
    scene.failure = refused(429, retry_after=30.0)
    scene.queue.add(A)
    scene.work()
    scene.failure = None
    scene.now += 29.0
    assert scene.work() == []
    scene.now += 1.1
    assert scene.work() == [A]


# -- Resync -------------------------------------------------------------------------------------


def test_the_first_resync_looks_at_all_and_later_ones_at_what_goes_on():
    scene = Scene(Rhythm(60, 600))
    scene.existing = [run(A), run(B, condition="Complete"), run(C, condition="Failed")]
    assert not scene.shell.is_ready
    scene.resync()
    assert scene.shell.is_ready
    assert scene.work() == [A, B, C]
    scene.now += 599
    scene.resync()
    assert scene.work() == [A]
    scene.now += 1
    scene.resync()
    assert scene.work() == [A, B, C]


def test_ended_runs_at_rest_are_left_alone_and_asked_about_once():
    scene = Scene(Rhythm(60, 600))
    scene.existing = [run(A), run(B, condition="Complete"), run(C, condition="Failed")]
    scene.resting = ("a", "b")
    scene.resync()
    assert (scene.work(), scene.asked) == ([A, C], 1)
    scene.resync()
    assert scene.asked == 1


def test_a_spec_that_no_event_told_of_goes_first(scene):
    scene.existing = [run(A), run(B, generation=3, observed=2)]
    scene.resync()
    assert scene.work() == [B, A]


def test_a_resync_does_not_wake_what_is_in_its_backoff(scene):
    scene.existing = [run(A, generation=2)]
    scene.failure = ValueError("always")
    scene.resync()
    assert scene.work() == [A]
    scene.resync()
    assert scene.work() == []
    scene.now += 1.1
    assert scene.work() == [A]


def test_a_resync_takes_back_series_of_what_is_gone(scene):
    for key in (A, B):
        scene.metrics.see(*key, RunLabels("Online", "Job", "Training"))
    scene.existing = [run(B)]
    scene.resync()
    assert set(scene.metrics.runs) == {B}


def test_a_resync_that_fails_leaves_all_as_it_was(scene):
    scene.refusal = refused()
    with pytest.raises(ApiError):
        scene.resync()
    assert not scene.shell.is_ready


def test_intervals_are_drawn_between_one_and_two(monkeypatch):
    drawn, waits = [], []

    def uniform(low, high):
        drawn.append((low, high))
        return 1.5

    async def sleep(seconds):
        waits.append(seconds)
        if len(waits) == 3:
            raise asyncio.CancelledError

    scene = Scene(Rhythm(60))
    monkeypatch.setattr(shells.random, "uniform", uniform)
    monkeypatch.setattr(shells.asyncio, "sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(scene.shell._resync_forever())
    assert (waits, set(drawn)) == ([90.0, 90.0, 90.0], {(1, 2)})


def test_after_a_failed_list_the_next_comes_soon(monkeypatch):
    waits = []

    async def sleep(seconds):
        waits.append(seconds)
        if len(waits) == 2:
            raise asyncio.CancelledError

    scene = Scene(Rhythm(60))
    scene.refusal = refused(403)
    monkeypatch.setattr(shells.asyncio, "sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(scene.shell._resync_forever())
    assert waits == [5.0, 5.0]


# -- Health -------------------------------------------------------------------------------------


def test_five_intervals_without_a_list_are_unhealthy():
    scene = Scene(Rhythm(60))
    scene.shell.check()
    scene.now += 600
    scene.shell.check()
    scene.now += 1
    with pytest.raises(Unhealthy, match="no list of DraftTrainings has succeeded for 601 s"):
        scene.shell.check()
    scene.resync()
    scene.shell.check()


def test_a_dead_worker_is_unhealthy():
    async def story():
        scene = Scene()
        scene.shell.start()
        await asyncio.sleep(0)
        scene.shell.check()
        scene.shell._tasks[2].cancel()
        await asyncio.sleep(0.01)
        with pytest.raises(Unhealthy, match="worker 2 has ended"):
            scene.shell.check()
        await scene.shell.stop()

    asyncio.run(story())


# -- Start and stop -----------------------------------------------------------------------------


def test_a_stop_waits_for_passes_under_way_and_begins_no_more():
    async def story():
        scene, gate, ended = Scene(), asyncio.Event(), []

        async def look(key):
            await gate.wait()
            ended.append(key)

        scene.shell._look = look
        scene.shell.start()
        scene.queue.add(A)
        await asyncio.sleep(0.01)
        stopping = asyncio.create_task(scene.shell.stop())
        await asyncio.sleep(0.01)
        assert not stopping.done()
        scene.queue.add(B)
        gate.set()
        await stopping
        assert ended == [A]

    asyncio.run(story())


def test_a_stop_cuts_off_a_pass_that_hangs(monkeypatch, caplog):
    monkeypatch.setattr(shells, "SETTLE_SECONDS", 0.05)

    async def story():
        scene = Scene()

        async def look(_):
            await asyncio.Event().wait()

        scene.shell._look = look
        scene.shell.start()
        scene.queue.add(A)
        await asyncio.sleep(0.01)
        await asyncio.wait_for(scene.shell.stop(), 5)
        assert all(task.done() for task in scene.shell._tasks)

    asyncio.run(story())
    assert "passes under way are cut off" in caplog.text


def test_a_shell_that_never_started_stops():
    asyncio.run(Scene().shell.stop())


def test_four_keys_are_worked_on_at_a_time():
    async def story():
        scene, most, now = Scene(), 0, 0

        async def look(_):
            nonlocal most, now
            now += 1
            most = max(most, now)
            await asyncio.sleep(0.01)
            now -= 1

        scene.shell._look = look
        scene.shell.start()
        for number in range(20):
            scene.queue.add(Key("team", str(number)), Priority.NORMAL)
        await asyncio.sleep(0.2)
        assert (most, now, scene.queue.depth) == (4, 0, 0)
        assert scene.value("workqueue_depth") == 0
        await scene.shell.stop()

    asyncio.run(story())
