"""What exists of all runs, by one LIST per kind: for passes that come together, in place of one per kind and run.

A pass that reads from it only finds out whether there is anything to do or to say. If there is, it reads again what
exists of its own run: nothing is ever written for what somebody else's LIST has said.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from draftyard_api import names
from draftyard_api.progress import Progress
from draftyard_operator.backends import allowed
from draftyard_operator.cluster import Reader
from draftyard_operator.config import OperatorConfig
from draftyard_operator.kinds import CLAIM, POD, Kind
from draftyard_operator.logs import LOG
from draftyard_operator.refusals import ApiError

Json = Any
MANY = 4
"""So many others wait for a look, and a LIST for all is cheaper than one for each: a look takes four of them."""
RETRY_SECONDS = 60.0
"""After a census that was refused: each pass lists for itself meanwhile, and says what is wrong."""
READ = ("suspend", "parallelism", "runPolicy", "nodeName", "accessModes", "resources")
"""Fields of specs that a look reads, besides the names of containers."""


class Lister(Reader, Protocol):
    """A cluster that is read page by page."""

    def each(
        self, kind: Kind, namespace: str, labels: Mapping[str, str], fields: Mapping[str, str] | None = None
    ) -> AsyncIterator[Json]:
        """Objects by labels and fields, of one namespace or (empty) of all. Raises ApiError."""
        ...


@dataclass(frozen=True)
class Census:
    """A reader of a cluster: what was listed is taken from there, anything else is asked."""

    cluster: Reader
    began: float
    """Nothing in it is older than this, on the clock of the queue."""
    listed: Mapping[Kind, Mapping[str, Sequence[Json]] | None]
    """By the uid of the run that they belong to; None for a kind that is not served."""
    claims: Mapping[tuple[str, str], Json]
    """Those that were made for runs, by namespace and name."""

    async def get(self, kind: Kind, namespace: str, name: str) -> Json | None:
        """One object; None when it does not exist. Raises ApiError."""
        known = self.claims.get((namespace, name)) if kind == CLAIM else None
        return known or await self.cluster.get(kind, namespace, name)

    async def list(
        self, kind: Kind, namespace: str, labels: Mapping[str, str], fields: Mapping[str, str] | None = None
    ) -> Sequence[Json] | None:
        """Objects by labels and fields; None when the kind is not served. Raises ApiError."""
        if kind not in self.listed or names.LABEL_UID not in labels:
            return await self.cluster.list(kind, namespace, labels, fields)
        found = self.listed[kind]
        return None if found is None else found.get(labels[names.LABEL_UID], ())

    async def progress(self, ip: str) -> Progress | None:
        """What the pod at an address reports."""
        return await self.cluster.progress(ip)


# -- Taking one -------------------------------------------------------------------------------------------------------


async def take(
    cluster: Lister, config: OperatorConfig, namespaces: Sequence[str], clock: Callable[[], float] = time.monotonic
) -> Census:
    """List children, pods and claims of all runs of the watched namespaces. Raises ApiError."""
    began, homes = clock(), namespaces or ("",)
    kinds = [*(row.kind for row in allowed(config).values()), POD]
    listed = {kind: await by_run(cluster, kind, homes) for kind in kinds}
    claims = {
        (one["metadata"]["namespace"], one["metadata"]["name"]): lean(one)
        for home in homes
        async for one in cluster.each(CLAIM, home, {names.LABEL_MANAGED: "true"})
    }
    return Census(cluster, began, listed, claims)


async def by_run(cluster: Lister, kind: Kind, namespaces: Sequence[str]) -> dict[str, list[Json]] | None:
    """Objects of a kind by the uid of their run; None when the kind is not served. Raises ApiError."""
    found: dict[str, list[Json]] = {}
    try:
        for namespace in namespaces:
            async for one in cluster.each(kind, namespace, {names.LABEL_MANAGED: "true"}):
                uid = one["metadata"]["labels"].get(names.LABEL_UID, "")
                found.setdefault(uid, []).append(lean(one))
    except ApiError as error:
        if error.is_missing:
            return None
        raise
    return found


def lean(found: Json) -> Json:
    """An object without what no look reads, which is most of it."""
    spec = found.get("spec") or {}
    kept = {name: spec[name] for name in READ if name in spec}
    if "containers" in spec:
        kept["containers"] = [{"name": one["name"]} for one in spec["containers"]]
    metadata = {name: value for name, value in found["metadata"].items() if name != "managedFields"}
    return {"metadata": metadata, "spec": kept, "status": found.get("status") or {}}


# -- Sharing it -------------------------------------------------------------------------------------------------------


class Surveys:
    """The last census, and a new one where enough passes would use it. One is taken at a time."""

    def __init__(self, take: Callable[[], Awaitable[Census]], clock: Callable[[], float] = time.monotonic) -> None:
        self._take = take
        self._clock = clock
        self._last: Census | None = None
        self._not_before = 0.0
        self._lock = asyncio.Lock()

    async def anew(self) -> Census:
        """A new one. Raises ApiError."""
        async with self._lock:
            self._last = await self._take()
            return self._last

    async def since(self, moment: float, waiting: int) -> Census | None:
        """One that began at a moment or later; None where a pass should read for itself, since few others wait."""
        async with self._lock:
            if self._last is not None and self._last.began >= moment:
                return self._last
            if waiting < MANY or self._clock() < self._not_before:
                return None
            try:
                self._last = await self._take()
            except ApiError as error:
                self._not_before = self._clock() + RETRY_SECONDS
                LOG.warning("no census", extra={"action": "list", "error": error})
                return None
            return self._last
