"""How many requests the operator may make: a bucket of tokens, in which changes of specs go first."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable
from contextvars import ContextVar

RATE, BURST = 50.0, 100.0

IS_URGENT: ContextVar[bool] = ContextVar("is_urgent", default=False)
"""Set by a pass that follows a change of a spec: a person waits for it."""


class Budget:
    """Tokens that come back at a steady rate. For one event loop."""

    def __init__(self, rate: float = RATE, burst: float = BURST, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._tokens = burst
        self._filled = clock()
        self._closed_until = 0.0
        self._numbers = itertools.count()
        self._waiting: list[tuple[bool, int, asyncio.Future[None]]] = []
        self._server: asyncio.Task[None] | None = None

    async def take(self) -> None:
        """Wait for a token. Urgent ones are served first; among equals, who came first."""
        if not self._waiting and self._take_now():
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (not IS_URGENT.get(), next(self._numbers), future))
        if self._server is None or self._server.done():
            self._server = asyncio.create_task(self._serve())
        await future

    def close_for(self, seconds: float) -> None:
        """Make no request for a while: the server has asked for it."""
        self._closed_until = max(self._closed_until, self._clock() + seconds)

    def _take_now(self) -> bool:
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._filled) * self._rate)
        self._filled = now
        if self._tokens < 1 or now < self._closed_until:
            return False
        self._tokens -= 1
        return True

    async def _serve(self) -> None:
        while self._waiting:
            if not self._take_now():
                await asyncio.sleep(max(1 / self._rate, min(self._closed_until - self._clock(), 1.0)))
                continue
            future = heapq.heappop(self._waiting)[2]
            # who was cancelled meanwhile leaves its token to the next
            if future.done():
                self._tokens += 1
            else:
                future.set_result(None)
