"""Which object is looked at next: one waiting place per key, and never two passes of one key at a time.

A key is waiting, delayed, in work, or not here. What fails is held back alone, 1 s and then twice as long each time up
to 5 minutes; only a change of its spec brings it forward, since that is what a person does to mend it.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

FIRST_RETRY_SECONDS = 1.0
LAST_RETRY_SECONDS = 300.0


class Key(NamedTuple):
    """Which object."""

    namespace: str
    name: str


class Priority(IntEnum):
    """Who is looked at first; among equals, who came first."""

    SPEC = 0
    """A person waits for this one."""
    NORMAL = 1
    """Something happened, or time has passed."""


class Closed(Exception):
    """No more keys are handed out."""


@dataclass(frozen=True)
class Delay:
    """A key that is looked at later."""

    due: float
    held: bool
    """After a failure: what happens meanwhile does not bring it forward."""


def retry_seconds(failures: int) -> float:
    """How long a key waits after this many failures in a row."""
    return min(FIRST_RETRY_SECONDS * 2.0 ** min(failures - 1, 16), LAST_RETRY_SECONDS)


class WorkQueue:
    """Keys and when to look at them. For one event loop; nothing here blocks.

    `take` hands a key out, and `finish` or `fail` must follow, exactly once.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._numbers = itertools.count()
        self._order: list[tuple[Priority, int, Key]] = []
        self._waiting: dict[Key, tuple[Priority, int]] = {}
        self._dues: list[tuple[float, Key]] = []
        self._delayed: dict[Key, Delay] = {}
        self._asked: dict[Key, float] = {}
        """Since when what a pass finds must not be older, of keys that wait or are worked on."""
        self._working: dict[Key, Priority] = {}
        self._again: dict[Key, Priority] = {}
        self._failures: dict[Key, int] = {}
        self._changed = asyncio.Event()
        self._closed = False

    # -- In ---------------------------------------------------------------------------------------------------------

    def add(self, key: Key, priority: Priority = Priority.NORMAL, since: float | None = None) -> None:
        """Look at this key as soon as there is time, or once more after the pass under way.

        `since` is when the reason to look was found, if not now.
        """
        if key in self._working:
            self._again[key] = min(priority, self._again.get(key, priority))
            return
        self._wake()
        delay = self._delayed.get(key)
        if delay and delay.held and priority is not Priority.SPEC:
            return
        self._delayed.pop(key, None)
        self._wait(key, priority, since)

    def add_after(self, key: Key, seconds: float) -> None:
        """Look at this key in this many seconds, unless it is looked at before. A pass under way is not interrupted."""
        if key not in self._waiting:
            self._delay(key, seconds, held=False)

    def forget(self, key: Key) -> None:
        """The object is gone: drop its delay and its failures. A pass that waits, or is under way, still happens."""
        self._delayed.pop(key, None)
        self._failures.pop(key, None)

    # -- Out --------------------------------------------------------------------------------------------------------

    async def take(self) -> Key:
        """Wait for the next key. Raises Closed once the queue is closed."""
        while True:
            if self._closed:
                raise Closed
            self._changed.clear()
            key = self.take_now()
            if key is not None:
                return key
            due = self.next_due()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), None if due is None else max(due - self._clock(), 0))

    def take_now(self) -> Key | None:
        """The next key, if one is waiting or due."""
        self._wake()
        while self._order:
            priority, number, key = heapq.heappop(self._order)
            if self._waiting.get(key) == (priority, number):
                del self._waiting[key]
                self._working[key] = priority
                return key
        return None

    def next_due(self) -> float | None:
        """When the first delayed key is due, on the clock of this queue."""
        while self._dues:
            due, key = self._dues[0]
            delay = self._delayed.get(key)
            if delay is not None and delay.due == due:
                return due
            heapq.heappop(self._dues)
        return None

    def finish(self, key: Key, after: float | None = None) -> None:
        """A pass went well. Look again in `after` seconds (None: when something happens)."""
        self._failures.pop(key, None)
        self._release(key)
        if key in self._again:
            self._delayed.pop(key, None)
            self._wait(key, self._again.pop(key))
        elif after is not None:
            self._delay(key, after, held=False)

    def fail(self, key: Key, at_least: float = 0.0) -> float:
        """A pass failed. Returns how many seconds this key is held back: `at_least`, or as long as its failures say."""
        self._failures[key] = self._failures.get(key, 0) + 1
        seconds = max(retry_seconds(self._failures[key]), at_least)
        self._release(key)
        self._delayed.pop(key, None)
        if self._again.pop(key, Priority.NORMAL) is Priority.SPEC:
            self._wait(key, Priority.SPEC)
            return 0.0
        self._delay(key, seconds, held=True)
        return seconds

    def close(self) -> None:
        """Hand out no more keys; who waits for one gets Closed."""
        self._closed = True
        self._changed.set()

    # -- How it is --------------------------------------------------------------------------------------------------

    @property
    def depth(self) -> int:
        """Keys that could be worked on now."""
        self._wake()
        return len(self._waiting)

    @property
    def working(self) -> int:
        """Keys that are worked on."""
        return len(self._working)

    def is_urgent(self, key: Key) -> bool:
        """Whether a key that is worked on was taken since its spec has changed."""
        return self._working.get(key) is Priority.SPEC

    def since(self, key: Key) -> float:
        """When somebody last asked for the look that is under way: what is older says nothing of the reason."""
        return self._asked.get(key, self._clock())

    def failures(self, key: Key) -> int:
        """Failures in a row."""
        return self._failures.get(key, 0)

    # -- Within -----------------------------------------------------------------------------------------------------

    def _wait(self, key: Key, priority: Priority, since: float | None = None) -> None:
        known = self._waiting.get(key)
        asked = self._clock() if since is None else since
        self._asked[key] = max(asked, self._asked[key]) if known is not None else asked
        if known is not None and known[0] <= priority:
            return
        # Whoever is moved up keeps its number: it has waited since then.
        number = known[1] if known is not None else next(self._numbers)
        self._waiting[key] = (priority, number)
        heapq.heappush(self._order, (priority, number, key))
        self._changed.set()

    def _delay(self, key: Key, seconds: float, *, held: bool) -> None:
        due = self._clock() + max(seconds, 0.0)
        known = self._delayed.get(key)
        if known is not None and (known.held or known.due <= due):
            return
        self._delayed[key] = Delay(due, held)
        heapq.heappush(self._dues, (due, key))
        self._changed.set()

    def _wake(self) -> None:
        """Delayed keys whose time has come start to wait."""
        now = self._clock()
        while (due := self.next_due()) is not None and due <= now:
            _, key = heapq.heappop(self._dues)
            if key in self._working:
                # Asked for with add_after while in work: once more afterwards.
                del self._delayed[key]
                self._again.setdefault(key, Priority.NORMAL)
                continue
            del self._delayed[key]
            self._wait(key, Priority.NORMAL, due)

    def _release(self, key: Key) -> None:
        if key not in self._working:
            raise ValueError(f"{key} is finished, but nobody has taken it")
        del self._working[key]
        self._asked.pop(key, None)
