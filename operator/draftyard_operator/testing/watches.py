"""Streams of changes: from a revision on, by selector, with bookmarks, until their time is over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

from draftyard_operator.testing.errors import ApiError
from draftyard_operator.testing.kinds import Kind
from draftyard_operator.testing.selectors import Selector, selector
from draftyard_operator.testing.store import Change, Store

Json = Any
CLOSE = object()


def event(change: Change, matches: Selector, namespace: str) -> Json | None:
    """What one watcher sees of a change: an object that stops to match is gone for it, and the reverse."""
    if namespace and change.object["metadata"].get("namespace") != namespace:
        return None
    after = change.type != "DELETED" and matches(change.object)
    before = change.previous is not None and matches(change.previous)
    if not after and not before:
        return None
    word = "MODIFIED" if after and before else "ADDED" if after else "DELETED"
    return {"type": word, "object": change.object}


def error(refusal: ApiError) -> Json:
    """The last event of a stream that cannot go on."""
    return {"type": "ERROR", "object": refusal.body}


class Watch:
    """One stream. `cut` ends it from outside, as a restart of the API server does."""

    def __init__(self, store: Store, kind: Kind, namespace: str, query: Mapping[str, str]) -> None:
        self.store = store
        self.kind = kind
        self.namespace = namespace
        self.matches = selector(query)
        self.revision = int(query.get("resourceVersion") or 0)
        self.seconds = float(query.get("timeoutSeconds") or 1800)
        self.bookmarks = query.get("allowWatchBookmarks") in ("true", "1")
        self.is_silent = False
        self._incoming: asyncio.Queue[Any] = asyncio.Queue()

    def cut(self, last: Json | None = None) -> None:
        """End the stream, after a last event."""
        if last is not None:
            self._incoming.put_nowait(last)
        self._incoming.put_nowait(CLOSE)

    async def events(self, bookmark_seconds: float) -> AsyncIterator[Json]:
        """Events until the time is over, or somebody cuts the stream."""
        self.store.listeners.append(self._hear)
        try:
            for first in self._beginning():
                yield first
            async for later in self._rest(bookmark_seconds):
                yield later
        finally:
            self.store.listeners.remove(self._hear)

    def _beginning(self) -> list[Json]:
        """What is there (revision 0), or what happened since the revision."""
        if self.revision == 0:
            found = self.store.every(self.kind, self.namespace)
            return [{"type": "ADDED", "object": one} for one in found if self.matches(one)]
        try:
            past = [
                event(change, self.matches, self.namespace) for change in self.store.since(self.kind, self.revision)
            ]
        except ApiError as refusal:
            self.cut()
            return [error(refusal)]
        return [one for one in past if one is not None]

    async def _rest(self, bookmark_seconds: float) -> AsyncIterator[Json]:
        loop = asyncio.get_running_loop()
        end = loop.time() + self.seconds
        mark = loop.time() + bookmark_seconds
        while (now := loop.time()) < end:
            try:
                found = await asyncio.wait_for(self._incoming.get(), max(min(mark, end) - now, 0.001))
            except TimeoutError:
                if loop.time() >= mark:
                    mark = loop.time() + bookmark_seconds
                    if self.bookmarks and not self.is_silent:
                        yield self._bookmark()
                continue
            if found is CLOSE:
                return
            if not self.is_silent:
                yield found

    def _hear(self, change: Change) -> None:
        if change.kind == self.kind:
            seen = event(change, self.matches, self.namespace)
            if seen is not None:
                self._incoming.put_nowait(seen)

    def _bookmark(self) -> Json:
        metadata = {"resourceVersion": str(self.store.revision), "creationTimestamp": None}
        marked = {"kind": self.kind.name, "apiVersion": self.kind.api_version, "metadata": metadata}
        return {"type": "BOOKMARK", "object": marked}
