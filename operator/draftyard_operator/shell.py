"""What runs beside the watches: workers that take keys, and a resync that finds what events have missed.

Knows neither kopf nor a client: a pass and a LIST are handed in.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from draftyard_operator.budget import IS_URGENT
from draftyard_operator.logs import LOG
from draftyard_operator.metrics import Metrics
from draftyard_operator.refusals import ApiError
from draftyard_operator.work_queue import Closed, Key, Priority, WorkQueue

Json = Any
Look = Callable[[Key], Awaitable[float | None]]
"""One pass over one object. Returns the seconds to the next look, or None; raises what the queue shall retry."""
ListRuns = Callable[[], AsyncIterator[Json]]
"""Every DraftTraining, listed piece by piece. Raises ApiError when the API server does not answer."""
AtRest = Callable[[], Awaitable[Callable[[Json], bool]]]
"""Reads once what is needed to say of any ended run whether a pass over it would find nothing to do."""

WORKERS = 4
STALE_INTERVALS = 5
"""So many longest intervals without a good resync, and the operator asks to be restarted."""
SETTLE_SECONDS = 10.0
"""How long a stop waits for passes under way."""
ROUND_SECONDS = 10.0
"""Looks that were put off come together at multiples of this, so that one census serves many."""
RETRY_SECONDS = 5.0
"""After a resync that failed."""


@dataclass(frozen=True)
class Rhythm:
    """When the resync comes. An interval is drawn anew each time, so that operators do not list in step."""

    resync_seconds: float = 60.0
    """Shortest interval; the longest is twice as long."""
    full_seconds: float = 600.0
    """How often ended runs are looked at too."""

    @property
    def longest_seconds(self) -> float:
        """Longest interval."""
        return 2 * self.resync_seconds


class Unhealthy(Exception):
    """The operator should be restarted."""


def is_over(run: Json) -> bool:
    """Whether a DraftTraining has ended."""
    conditions = (run.get("status") or {}).get("conditions") or ()
    return any(found.get("type") in ("Complete", "Failed") and found.get("status") == "True" for found in conditions)


def is_answered(run: Json) -> bool:
    """Whether the status speaks of the present spec."""
    generation = run["metadata"].get("generation")
    return bool((run.get("status") or {}).get("observedGeneration") == generation)


class Shell:
    """A queue, workers and a resync. `start` and `stop` belong to kopf's startup and cleanup."""

    def __init__(
        self,
        look: Look,
        list_runs: ListRuns,
        at_rest: AtRest,
        metrics: Metrics,
        rhythm: Rhythm | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.queue = WorkQueue(clock)
        self.metrics = metrics
        self.rhythm = rhythm or Rhythm()
        self._look = look
        self._list_runs = list_runs
        self._at_rest = at_rest
        self._clock = clock
        self._tasks: list[asyncio.Task[None]] = []
        self._began = clock()
        self._last_resync: float | None = None
        self._last_full: float | None = None

    # -- Up and down ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start workers and the resync, in the running loop."""
        self._began = self._clock()
        queue = self.queue
        self.metrics.workqueue_depth.set_function(lambda: queue.depth)
        self._tasks = [asyncio.create_task(self._work(), name=f"worker {number}") for number in range(WORKERS)]
        self._tasks.append(asyncio.create_task(self._resync_forever(), name="resync"))

    async def stop(self) -> None:
        """Hand out no more keys, and wait for passes under way, at most SETTLE_SECONDS."""
        self.queue.close()
        if not self._tasks:
            return
        self._tasks[-1].cancel()
        _, late = await asyncio.wait(self._tasks, timeout=SETTLE_SECONDS)
        if late:
            LOG.warning("passes under way are cut off", extra={"action": "stop"})
            for task in late:
                task.cancel()
            await asyncio.wait(late)

    # -- Events -----------------------------------------------------------------------------------------------------

    def saw_run(self, kind: str | None, run: Json) -> None:
        """An event of a DraftTraining; `kind` is None for what was there before. What the operator wrote itself says
        nothing new: that status answers the spec.
        """
        key = Key(run["metadata"]["namespace"], run["metadata"]["name"])
        if kind == "DELETED":
            self.forget(key)
        elif "deletionTimestamp" in run["metadata"]:
            return
        elif not is_answered(run):
            self.queue.add(key, Priority.SPEC)
        elif kind != "MODIFIED" and not is_over(run):
            self.queue.add(key)

    def saw_child(self, namespace: str, run: str) -> None:
        """Something happened to a Job or PyTorchJob of a run."""
        self.queue.add(Key(namespace, run))

    def forget(self, key: Key) -> None:
        """The object is gone."""
        self.queue.forget(key)
        self.metrics.forget(*key)

    # -- Health -----------------------------------------------------------------------------------------------------

    @property
    def is_ready(self) -> bool:
        """Whether all objects have been listed once."""
        return self._last_resync is not None

    def check(self) -> None:
        """Raise Unhealthy when a task has died, or the last good resync is too long ago."""
        dead = [task.get_name() for task in self._tasks if task.done()]
        if dead:
            raise Unhealthy(f"{', '.join(dead)} has ended")
        silent = self._clock() - (self._began if self._last_resync is None else self._last_resync)
        if silent > STALE_INTERVALS * self.rhythm.longest_seconds:
            raise Unhealthy(f"no list of DraftTrainings has succeeded for {silent:.0f} s")

    # -- Workers ----------------------------------------------------------------------------------------------------

    async def _work(self) -> None:
        with contextlib.suppress(Closed):
            while True:
                await self.work_on(await self.queue.take())

    async def work_on(self, key: Key) -> None:
        """One pass over a key that was taken, and what the queue makes of it."""
        begin = self._clock()
        IS_URGENT.set(self.queue.is_urgent(key))
        try:
            after = await self._look(key)
        except ApiError as error:
            self._failed(key, begin, error, at_least=error.retry_after)
        except Exception as error:
            # whatever it was, it is of this object alone
            self._failed(key, begin, error)
        else:
            self.queue.finish(key, None if after is None else self._together(after))
            self.metrics.reconciled("ok", self._clock() - begin)

    def _together(self, seconds: float) -> float:
        """A wait that ends with those of others, where it is long enough for that to make no difference."""
        if seconds < 2 * ROUND_SECONDS:
            return seconds
        now = self._clock()
        return round((now + seconds) / ROUND_SECONDS) * ROUND_SECONDS - now

    def _failed(self, key: Key, begin: float, error: Exception, at_least: float = 0.0) -> None:
        seconds = self.queue.fail(key, at_least)
        took = self._clock() - begin
        self.metrics.reconciled("error", took)
        self.metrics.workqueue_retries.inc()
        LOG.error(
            "pass failed, again in %.0f s",
            seconds,
            extra={
                "namespace": key.namespace,
                "run": key.name,
                "action": "reconcile",
                "duration_ms": round(took * 1000),
                "error": error,
            },
        )

    # -- Resync -----------------------------------------------------------------------------------------------------

    async def _resync_forever(self) -> None:
        while True:
            try:
                await self.resync()
            except Exception as error:
                LOG.error("resync failed", extra={"action": "resync", "error": error})
                await asyncio.sleep(min(RETRY_SECONDS, self.rhythm.resync_seconds))
            else:
                await asyncio.sleep(random.uniform(1, 2) * self.rhythm.resync_seconds)  # noqa: S311  no secret

    async def resync(self) -> None:
        """List everything once. Raises what the list raises."""
        now = self._clock()
        is_full = self._last_full is None or now - self._last_full >= self.rhythm.full_seconds
        rests = await self._at_rest() if is_full else is_over
        existing: set[Key] = set()
        later: list[Key] = []
        async for run in self._list_runs():
            key = Key(run["metadata"]["namespace"], run["metadata"]["name"])
            existing.add(key)
            if not (is_over(run) and rests(run)):
                priority = self._priority(key, run)
                if priority is Priority.SPEC:
                    self.queue.add(key, priority, now)
                else:
                    later.append(key)
            # a page holds 500 objects, and others want to go on meanwhile
            await asyncio.sleep(0)
        # all at once: one census serves all of them
        for key in later:
            self.queue.add(key, since=now)
        self.metrics.keep_only(existing)
        self._last_resync = self._clock()
        self._last_full = now if is_full else self._last_full
        self.metrics.last_resync.set_to_current_time()

    def _priority(self, key: Key, run: Json) -> Priority:
        """A change of a spec that no event told goes first; one that fails stays in its backoff."""
        return Priority.NORMAL if is_answered(run) or self.queue.failures(key) else Priority.SPEC
