"""What an API server stores: objects with uid, generation and resourceVersion, and a window of what happened.

Stored objects are never changed in place: whoever reads one may keep it, and whoever changes one stores a new one.
"""

from __future__ import annotations

import itertools
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from draftyard_operator.testing import errors
from draftyard_operator.testing.kinds import Kind

Json = Any
WINDOW = 10_000
KEPT = ("uid", "creationTimestamp", "generation", "deletionTimestamp", "deletionGracePeriodSeconds")
"""Metadata that a writer cannot change."""


@dataclass(frozen=True)
class Change:
    """Something that happened to one object."""

    type: str
    """ADDED, MODIFIED or DELETED."""
    kind: Kind
    object: Json
    previous: Json | None
    revision: int


@dataclass(frozen=True)
class Place:
    """Where an object is. The namespace is empty for what has none."""

    kind: Kind
    namespace: str
    name: str


def place(kind: Kind, found: Json) -> Place:
    """Where a stored object is."""
    return Place(kind, found["metadata"].get("namespace", ""), found["metadata"]["name"])


class Store:
    """All objects, and the clock that dates them."""

    def __init__(self, clock: Callable[[], float] = time.time, window: int = WINDOW) -> None:
        self.clock = clock
        self.revision = 1
        self.window = window
        self.history: deque[Change] = deque()
        self.gone_before = 0
        """Changes up to this revision are no longer in the window."""
        self.listeners: list[Callable[[Change], None]] = []
        self.follow: Callable[[Change], None] = lambda _: None
        """Called after all listeners: it may write, and they must hear of changes in their order."""
        self._objects: dict[Kind, dict[tuple[str, str], Json]] = {}
        self._dependents: dict[str, dict[Place, None]] = {}
        self._numbers = itertools.count(1)

    # -- Reading ----------------------------------------------------------------------------------------------------

    def find(self, kind: Kind, namespace: str, name: str) -> Json | None:
        """An object, or None."""
        return self._objects.get(kind, {}).get((namespace, name))

    def get(self, kind: Kind, namespace: str, name: str) -> Json:
        """An object. Raises ApiError 404."""
        found = self.find(kind, namespace, name)
        if found is None:
            raise errors.not_found(kind, name)
        return found

    def every(self, kind: Kind, namespace: str = "") -> list[Json]:
        """All objects of a kind, by namespace and name; of one namespace, or of all."""
        found = self._objects.get(kind, {})
        return [found[at] for at in sorted(found) if not namespace or at[0] == namespace]

    def kinds(self) -> list[Kind]:
        """Kinds of which there is, or has been, an object."""
        return list(self._objects)

    def in_namespace(self, namespace: str) -> list[Place]:
        """Everything that goes with a namespace."""
        return [
            Place(kind, namespace, name)
            for kind, found in self._objects.items()
            for at, name in found
            if at == namespace
        ]

    def dependents(self, uid: str) -> list[tuple[Place, Json]]:
        """What names this uid among its owners."""
        listed = self._dependents.get(uid, {})
        return [(at, found) for at in listed if (found := self.find(at.kind, at.namespace, at.name)) is not None]

    def owner_exists(self, namespace: str, reference: Json) -> bool:
        """Whether an owner is there, with the uid of the reference."""
        for kind, found in self._objects.items():
            if (kind.api_version, kind.name) == (reference["apiVersion"], reference["kind"]):
                owner = found.get((namespace, reference["name"]))
                return owner is not None and owner["metadata"]["uid"] == reference["uid"]
        return False

    def now(self) -> str:
        """The time, as objects write it."""
        return datetime.fromtimestamp(self.clock(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    def suffix(self) -> str:
        """Five letters that no other name has."""
        number, text = next(self._numbers), ""
        for _ in range(5):
            number, rest = divmod(number, 26)
            text = chr(ord("a") + rest) + text
        return text

    # -- Writing ----------------------------------------------------------------------------------------------------

    def create(self, kind: Kind, given: Json) -> Json:
        """Store a new object. Raises ApiError 409 for a name that is taken."""
        metadata = given["metadata"]
        at = (metadata.get("namespace", ""), metadata["name"])
        known = self.find(kind, *at)
        if known is not None:
            raise errors.already_exists(kind, at[1], leaving="deletionTimestamp" in known["metadata"])
        fresh = {
            "uid": str(uuid.UUID(int=next(self._numbers), version=4)),
            "creationTimestamp": self.now(),
            "generation": 1,
        }
        cleaned = {name: value for name, value in metadata.items() if name not in (*KEPT, "resourceVersion")}
        made = {"apiVersion": kind.api_version, "kind": kind.name, **given, "metadata": cleaned | fresh}
        return self._record("ADDED", kind, made, None)

    def replace(self, kind: Kind, changed: Json) -> Json:
        """Store a new state of an object that is there; nothing happens when it is the same. Raises ApiError 404.

        Whoever takes away the last finalizer of an object that is being deleted removes it.
        """
        metadata = changed["metadata"]
        known = self.get(kind, metadata.get("namespace", ""), metadata["name"])
        before = known["metadata"]
        kept = {name: before[name] for name in (*KEPT, "resourceVersion") if name in before}
        cleaned = {name: value for name, value in metadata.items() if name not in KEPT and value not in (None, [], {})}
        made = changed | {"metadata": cleaned | kept}
        if without_status(made) != without_status(known):
            made["metadata"]["generation"] = before["generation"] + 1
        if made == known:
            return known
        if "deletionTimestamp" in kept and before.get("finalizers") and not made["metadata"].get("finalizers"):
            return self.remove(kind, made)
        return self._record("MODIFIED", kind, made, known)

    def start_deletion(self, kind: Kind, found: Json, finalizers: list[str], grace: int = 0) -> Json:
        """Mark an object as being deleted. It goes when its finalizers are gone, or by `remove`."""
        metadata = found["metadata"] | {"deletionTimestamp": self.now(), "deletionGracePeriodSeconds": grace}
        metadata |= {"finalizers": finalizers} if finalizers else {}
        metadata["generation"] += 1
        return self._record("MODIFIED", kind, found | {"metadata": metadata}, found)

    def remove(self, kind: Kind, found: Json) -> Json:
        """Take an object out, at once."""
        known = self.get(kind, found["metadata"].get("namespace", ""), found["metadata"]["name"])
        return self._record("DELETED", kind, found, known)

    def compact(self) -> None:
        """Forget the past: every watch from an older revision gets 410."""
        self.history.clear()
        self.gone_before = self.revision

    # -- Watching ---------------------------------------------------------------------------------------------------

    def since(self, kind: Kind, revision: int) -> Iterator[Change]:
        """What happened to a kind after a revision. Raises ApiError 410 when that is out of the window."""
        if revision < self.gone_before:
            raise errors.expired(f"too old resource version: {revision} ({self.gone_before})")
        return (change for change in list(self.history) if change.revision > revision and change.kind == kind)

    # -- Within -----------------------------------------------------------------------------------------------------

    def _record(self, kind_of_change: str, kind: Kind, made: Json, previous: Json | None) -> Json:
        self.revision += 1
        made = made | {"metadata": made["metadata"] | {"resourceVersion": str(self.revision)}}
        change = Change(kind_of_change, kind, made, previous, self.revision)
        at = place(kind, made)
        self._index(at, previous, None if kind_of_change == "DELETED" else made)
        self.history.append(change)
        while len(self.history) > self.window:
            self.gone_before = self.history.popleft().revision
        for listener in list(self.listeners):
            listener(change)
        self.follow(change)
        return made

    def _index(self, at: Place, previous: Json | None, current: Json | None) -> None:
        objects = self._objects.setdefault(at.kind, {})
        if current is None:
            objects.pop((at.namespace, at.name), None)
        else:
            objects[at.namespace, at.name] = current
        for reference in (previous or {"metadata": {}})["metadata"].get("ownerReferences", ()):
            self._dependents.get(reference["uid"], {}).pop(at, None)
        for reference in (current or {"metadata": {}})["metadata"].get("ownerReferences", ()):
            self._dependents.setdefault(reference["uid"], {})[at] = None


def without_status(found: Json) -> Json:
    """What counts for the generation."""
    return {name: value for name, value in found.items() if name not in ("metadata", "status")}
