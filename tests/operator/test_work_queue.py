"""When a key is looked at: one place each, one pass at a time, failures alone in their backoff."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from draftyard_operator.work_queue import Closed, Key, Priority, WorkQueue, retry_seconds

A, B, C = (Key("team", name) for name in "abc")


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def queue(clock):
    return WorkQueue(clock)


def drain(queue):
    """Everything that can be worked on now, in order; it stays in work."""
    taken = []
    while (key := queue.take_now()) is not None:
        taken.append(key)
    return taken


# -- Waiting ------------------------------------------------------------------------------------


def test_a_key_waits_once(queue):
    for _ in range(3):
        queue.add(A)
    assert queue.depth == 1
    assert drain(queue) == [A]


def test_who_came_first_is_served_first(queue):
    for key in (B, A, C, A):
        queue.add(key)
    assert drain(queue) == [B, A, C]


def test_a_changed_spec_goes_before_everything_else(queue):
    queue.add(A)
    queue.add(B)
    queue.add(C, Priority.SPEC)
    assert drain(queue) == [C, A, B]


def test_a_waiting_key_moves_up_when_its_spec_changes_and_never_down(queue):
    queue.add(A)
    queue.add(B)
    queue.add(B, Priority.SPEC)
    queue.add(B, Priority.NORMAL)
    assert drain(queue) == [B, A]


# -- In work ------------------------------------------------------------------------------------


def test_a_key_in_work_is_not_handed_out_again(queue):
    queue.add(A)
    assert queue.take_now() == A
    queue.add(A)
    assert queue.take_now() is None
    assert (queue.depth, queue.working) == (0, 1)


def test_added_while_in_work_means_once_more_afterwards(queue):
    queue.add(A)
    queue.take_now()
    for _ in range(3):
        queue.add(A)
    queue.finish(A)
    assert drain(queue) == [A]
    queue.finish(A)
    assert drain(queue) == []


def test_once_more_keeps_the_best_priority(queue):
    queue.add(A)
    queue.take_now()
    queue.add(B)
    queue.add(A, Priority.SPEC)
    queue.add(A)
    queue.finish(A)
    assert drain(queue) == [A, B]


def test_finishing_what_nobody_took_is_our_mistake(queue):
    with pytest.raises(ValueError, match="nobody has taken it"):
        queue.finish(A)


# -- Later --------------------------------------------------------------------------------------


def test_a_delayed_key_comes_when_it_is_due(queue, clock):
    queue.add_after(A, 20)
    clock.now += 19.9
    assert queue.take_now() is None
    clock.now += 0.1
    assert queue.take_now() == A


def test_of_two_delays_the_earlier_one_counts(queue, clock):
    queue.add_after(A, 20)
    queue.add_after(A, 5)
    queue.add_after(A, 60)
    assert queue.next_due() == clock.now + 5
    clock.now += 5
    assert drain(queue) == [A]
    queue.finish(A)
    clock.now += 100
    assert drain(queue) == []


def test_an_event_brings_a_delayed_key_forward(queue, clock):
    queue.add_after(A, 20)
    queue.add(A)
    assert drain(queue) == [A]
    queue.finish(A)
    clock.now += 20
    assert drain(queue) == []


def test_a_pass_says_when_it_wants_to_look_again(queue, clock):
    queue.add(A)
    queue.take_now()
    queue.finish(A, after=20)
    clock.now += 20
    assert queue.take_now() == A


def test_an_event_during_the_pass_comes_before_what_the_pass_wants(queue, clock):
    queue.add(A)
    queue.take_now()
    queue.add(A)
    queue.finish(A, after=20)
    assert queue.take_now() == A


def test_delayed_while_in_work_waits_for_the_end_of_the_pass(queue, clock):
    queue.add(A)
    queue.take_now()
    queue.add_after(A, 1)
    clock.now += 2
    assert queue.take_now() is None
    queue.finish(A)
    assert queue.take_now() == A


# -- Failures -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("failures", "seconds"), [(1, 1), (2, 2), (3, 4), (9, 256), (10, 300), (11, 300), (5000, 300)])
def test_waits_double_up_to_five_minutes(failures, seconds):
    assert retry_seconds(failures) == seconds


def test_each_key_backs_off_alone(queue, clock):
    queue.add(A)
    for expected in (1, 2, 4):
        assert queue.take_now() == A
        assert queue.fail(A) == expected
        clock.now += expected
    queue.add(B)
    assert drain(queue) == [A, B]
    assert queue.fail(B) == 1
    assert (queue.failures(A), queue.failures(B)) == (3, 1)


def test_a_pass_that_goes_well_ends_the_backoff(queue, clock):
    queue.add(A)
    queue.take_now()
    queue.fail(A)
    clock.now += 1
    queue.take_now()
    queue.finish(A)
    queue.add(A)
    queue.take_now()
    assert queue.fail(A) == 1


def test_what_the_server_asks_for_is_kept(queue, clock):
    queue.add(A)
    queue.take_now()
    assert queue.fail(A, at_least=7) == 7
    clock.now += 6.9
    queue.add(A)
    assert queue.take_now() is None
    clock.now += 0.1
    assert queue.take_now() == A


def test_events_do_not_shorten_a_backoff(queue, clock):
    """Or a key that always raises, and whose children change all the time, would be a hot loop."""
    queue.add(A)
    queue.take_now()
    queue.add(A)
    queue.fail(A)
    queue.add(A)
    queue.add_after(A, 0)
    assert queue.take_now() is None
    clock.now += 1
    assert drain(queue) == [A]


@pytest.mark.parametrize("when", ["during the pass", "after it"])
def test_a_changed_spec_ends_the_wait(queue, when):
    queue.add(A)
    queue.take_now()
    if when == "during the pass":
        queue.add(A, Priority.SPEC)
    queue.fail(A)
    if when == "after it":
        queue.add(A, Priority.SPEC)
    assert queue.take_now() == A


def test_a_forgotten_key_has_no_past(queue, clock):
    queue.add(A)
    queue.take_now()
    queue.fail(A)
    queue.forget(A)
    clock.now += 1000
    assert queue.take_now() is None
    queue.add(A)
    assert queue.take_now() == A
    assert queue.fail(A) == 1


# -- Waiting for a key ----------------------------------------------------------------------------


def test_take_waits_for_an_event():
    async def scene():
        queue = WorkQueue()
        taker = asyncio.create_task(queue.take())
        await asyncio.sleep(0.01)
        assert not taker.done()
        queue.add(A)
        return await asyncio.wait_for(taker, 1)

    assert asyncio.run(scene()) == A


def test_take_waits_for_a_due_time():
    async def scene():
        queue = WorkQueue()
        queue.add_after(A, 60)
        queue.add_after(B, 0.02)
        return await asyncio.wait_for(queue.take(), 1)

    assert asyncio.run(scene()) == B


def test_many_takers_get_a_key_each():
    async def scene():
        queue = WorkQueue()
        takers = [asyncio.create_task(queue.take()) for _ in range(3)]
        await asyncio.sleep(0)
        for key in (A, B, C):
            queue.add(key)
        return await asyncio.wait_for(asyncio.gather(*takers), 1)

    assert sorted(asyncio.run(scene())) == [A, B, C]


def test_a_closed_queue_lets_everybody_go():
    async def scene():
        queue = WorkQueue()
        takers = [asyncio.create_task(queue.take()) for _ in range(2)]
        await asyncio.sleep(0)
        queue.add(A)
        queue.close()
        ends = await asyncio.wait_for(asyncio.gather(*takers, return_exceptions=True), 1)
        return [type(end) for end in ends], queue.depth

    types, depth = asyncio.run(scene())
    assert types == [Closed, Closed]
    assert depth == 1, "what waits is not lost; the next operator lists it"


# -- Any order of events ----------------------------------------------------------------------------


class Story(RuleBasedStateMachine):
    """Beside the queue stands a model that is slow and plain: what must be looked at, and not before when."""

    KEYS = st.sampled_from([A, B, C])

    def __init__(self):
        super().__init__()
        self.clock = Clock()
        self.queue = WorkQueue(self.clock)
        self.working = set()
        self.wanted = {}
        """Key to the earliest time from which a pass must happen."""
        self.held = {}
        """Key to the time before which only a changed spec may start a pass."""

    def want(self, key, due):
        self.wanted[key] = min(due, self.wanted.get(key, due))

    @rule(key=KEYS)
    def event(self, key):
        self.queue.add(key)
        self.want(key, max(self.clock.now, self.held.get(key, 0)))

    @rule(key=KEYS)
    def spec_changes(self, key):
        self.queue.add(key, Priority.SPEC)
        self.held.pop(key, None)
        self.want(key, self.clock.now)

    @rule(key=KEYS, seconds=st.sampled_from([0, 1, 30]))
    def later(self, key, seconds):
        self.queue.add_after(key, seconds)
        self.want(key, max(self.clock.now + seconds, self.held.get(key, 0)))

    @rule(seconds=st.sampled_from([0.5, 1, 10, 300]))
    def time_passes(self, seconds):
        self.clock.now += seconds

    @rule()
    def take(self):
        key = self.queue.take_now()
        due = {key for key, since in self.wanted.items() if since <= self.clock.now and key not in self.working}
        if key is None:
            assert due == set(), "something is due, and is not handed out"
            return
        assert key in due, "handed out without need, too early, or twice"
        self.working.add(key)
        del self.wanted[key]
        self.held.pop(key, None)

    @precondition(lambda self: self.working)
    @rule(data=st.data(), after=st.sampled_from([None, 0, 20]))
    def finish(self, data, after):
        key = data.draw(st.sampled_from(sorted(self.working)))
        self.working.remove(key)
        self.queue.finish(key, after)
        if after is not None:
            self.want(key, self.clock.now + after)

    @precondition(lambda self: self.working)
    @rule(data=st.data(), at_least=st.sampled_from([0, 40]))
    def fail(self, data, at_least):
        key = data.draw(st.sampled_from(sorted(self.working)))
        again = self.queue._again.get(key)
        seconds = self.queue.fail(key, at_least)
        self.working.remove(key)
        if again is Priority.SPEC:
            assert seconds == 0
            self.wanted[key] = self.clock.now
            return
        assert seconds >= max(1, at_least)
        self.held[key] = self.wanted[key] = self.clock.now + seconds

    @invariant()
    def the_due_time_is_no_later_than_needed(self):
        idle = [since for key, since in self.wanted.items() if key not in self.working]
        later = [since for since in idle if since > self.clock.now]
        due = self.queue.next_due()
        if later and due is not None:
            assert due <= min(later) or self.queue.depth
        assert self.queue.working == len(self.working)


TestStory = Story.TestCase
TestStory.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


# -- How old what a pass reads may be -----------------------------------------------------------


def test_a_look_is_for_the_last_reason_that_was_told(queue, clock):
    queue.add(A)
    clock.now += 5
    queue.add(A)
    clock.now += 5
    assert queue.take_now() == A
    assert queue.since(A) == clock.now - 5


def test_a_reason_may_have_been_found_before_it_is_told(queue, clock):
    queue.add(A, since=clock.now - 3)
    queue.add(B)
    queue.add(B, since=clock.now - 3)
    queue.take_now(), queue.take_now()
    assert (queue.since(A), queue.since(B)) == (clock.now - 3, clock.now)


def test_a_delayed_look_is_for_when_it_was_due(queue, clock):
    queue.add_after(A, 10)
    clock.now += 12
    assert queue.take_now() == A
    assert queue.since(A) == clock.now - 2


def test_what_comes_while_in_work_is_for_after_it(queue, clock):
    queue.add(A)
    queue.take_now()
    queue.add(A)
    clock.now += 7
    queue.finish(A)
    assert queue.take_now() == A
    assert queue.since(A) == clock.now
