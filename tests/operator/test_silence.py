"""Faults of watches and connections that last: F9 of the operator's design. Patience is short here."""

from __future__ import annotations

import asyncio

import pytest
from live import SLOW, play
from test_end_to_end import finish, holding, pods
from test_timing import all_watch, fault
from world import NAMESPACE, spec

from draftyard_api.names import PLURAL, Stage
from draftyard_api.status import Phase
from draftyard_operator import handlers
from draftyard_operator.testing import faults


@pytest.fixture
def impatient(monkeypatch):
    """kopf gives a stream up after two seconds of silence, and a server after three failures."""
    configure = handlers.configure

    def quickly(settings, namespaces=()):
        configure(settings, namespaces)
        settings.watching.inactivity_timeout = 2.0
        settings.networking.error_backoffs = [0.05, 0.05, 0.05]

    monkeypatch.setattr(handlers, "configure", quickly)


# -- Streams that say nothing ---------------------------------------------------------------------


def test_f9_a_stream_that_is_silent_for_long_is_opened_anew(tmp_path, impatient):
    """No resync helps here: it is minutes away."""

    async def story(scene):
        async with scene.operator(SLOW):
            await all_watch(scene)
            server = scene.fake.server
            silent = {watch.kind for watch in server.watches}
            server.silence_watches()
            scene.fake.add_run(NAMESPACE, "unseen", spec())
            assert (await scene.until_over("unseen")).phase is Phase.SUCCEEDED
            # The old ones stay in this list: a server that writes nothing does not see that nobody reads.
            await scene.until(lambda: silent == {watch.kind for watch in server.watches if not watch.is_silent})

    play(story, tmp_path)


def test_f9_streams_that_are_always_silent_are_no_hot_loop(tmp_path, impatient):
    async def story(scene):
        fault(scene, faults.Silence(), "watch", times=None)
        async with scene.operator() as process:
            await all_watch(scene)
            scene.fake.server.record.clear()
            await asyncio.sleep(4)
            # each stream every two seconds
            assert 1 <= len(scene.fake.server.record.of("watch")) <= 3 * 3
            scene.fake.add_run(NAMESPACE, "demo", spec())
            assert (await scene.until_over("demo")).phase is Phase.SUCCEEDED
            process.shell.check()

    play(story, tmp_path)


# -- Streams that end badly -----------------------------------------------------------------------

BAD_ENDS = [
    pytest.param(faults.WatchError(410), id="gone"),
    pytest.param(faults.Break(0), id="cut at once"),
    pytest.param(faults.Answer(429, "TooManyRequests", retry_after=1), id="busy"),
    pytest.param(faults.Answer(503), id="unavailable"),
    pytest.param(faults.Answer(502, html=True), id="a page of a proxy"),
]


@pytest.mark.parametrize("effect", BAD_ENDS)
def test_f9_a_stream_that_ends_badly_is_opened_again(tmp_path, impatient, effect):
    async def story(scene):
        fault(scene, effect, "watch", resource=PLURAL, times=2)
        async with scene.operator(SLOW):
            scene.fake.add_run(NAMESPACE, "demo", spec())
            assert (await scene.until_over("demo")).phase is Phase.SUCCEEDED

    play(story, tmp_path)


FATAL = [
    pytest.param(faults.WatchError(500), ("watch",), id="an error in the stream"),
    pytest.param(faults.Answer(403, "Forbidden", "drafttrainings is forbidden"), ("watch",), id="forbidden"),
    pytest.param(faults.Answer(503), ("list", "watch"), id="a server that stays unwell for longer than all tries"),
]


@pytest.mark.parametrize(("effect", "verbs"), FATAL)
def test_f9_what_kopf_cannot_mend_ends_the_process_and_the_next_one_goes_on(tmp_path, impatient, effect, verbs):
    """No zombie that serves probes and watches nothing: training goes on meanwhile, and nothing is lost."""

    async def story(scene):
        scene.fake.kubelet.script = holding(Stage.TRAIN)
        async with scene.operator(SLOW, ends_by_itself=True) as process:
            scene.fake.add_run(NAMESPACE, "demo", spec())
            await scene.until(lambda: pods(scene, Stage.TRAIN))
            broken = fault(scene, effect, *verbs, resource=PLURAL, times=None)
            scene.fake.server.cut_watches()
            await scene.until(scene.tasks[process].done, 20)
            scene.fake.server.faults.remove(broken)
        assert len(pods(scene, Stage.TRAIN)) == 1
        await finish(scene, Stage.TRAIN)
        async with scene.operator(SLOW):
            assert (await scene.until_over("demo")).phase is Phase.SUCCEEDED
        assert all(name.endswith("-a1") for name in scene.children())

    play(story, tmp_path)


def test_f9_connections_that_break_again_and_again_are_outlived(tmp_path, impatient):
    """kopf opens them anew without an end, with its waits in between."""

    async def story(scene):
        async with scene.operator(SLOW) as process:
            await all_watch(scene)
            broken = fault(scene, faults.Drop(), "list", "watch", resource=PLURAL, times=None)
            scene.fake.server.cut_watches()
            scene.fake.add_run(NAMESPACE, "demo", spec())
            await scene.until(lambda: broken.struck > 8)
            assert not scene.tasks[process].done()
            scene.fake.server.faults.remove(broken)
            assert (await scene.until_over("demo")).phase is Phase.SUCCEEDED

    play(story, tmp_path)
