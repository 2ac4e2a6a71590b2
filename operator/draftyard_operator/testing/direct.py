"""The fake cluster without HTTP: what a pass asks for, answered at once, with a write that a test may cut short."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from draftyard_api.progress import Progress
from draftyard_operator import kinds as wanted
from draftyard_operator.cluster import resource
from draftyard_operator.refusals import ApiError, Request
from draftyard_operator.testing import errors
from draftyard_operator.testing.fake_cluster import FakeCluster
from draftyard_operator.testing.kinds import Kind

Json = Any
NOT_SERVED = "the server could not find the requested resource"


class Crash(BaseException):
    """The operator is killed here."""


class DirectCluster:
    """`cluster.Cluster` over a fake cluster in the same process."""

    def __init__(self, fake: FakeCluster) -> None:
        self.fake = fake
        self.writes: list[tuple[Request, Json]] = []
        """Every write that was stored, and what was sent."""
        self.reads = 0
        self.crash_after: int | None = None
        """The operator is killed right after this many more writes."""
        self.refusals: dict[str, ApiError] = {}
        """Answers by request, such as `create jobs.batch`, instead of doing it."""
        self.readings: dict[str, Progress] = {}
        """What pods report, by address; `*` is any."""

    async def get(self, kind: wanted.Kind, namespace: str, name: str) -> Json | None:
        """One object."""
        self._read("get", kind)
        found = self._kind(kind)
        return None if found is None else self.fake.store.find(found, namespace, name)

    async def list(
        self, kind: wanted.Kind, namespace: str, labels: Mapping[str, str], fields: Mapping[str, str] | None = None
    ) -> Sequence[Json] | None:
        """Objects by labels and fields."""
        self._read("list", kind)
        found = self._kind(kind)
        if found is None:
            return None
        both = {"labelSelector": labels, "fieldSelector": fields or {}}
        selector = {name: ",".join(f"{key}={value}" for key, value in terms.items()) for name, terms in both.items()}
        return self.fake.api.page(found, namespace, selector).items

    async def each(
        self, kind: wanted.Kind, namespace: str, labels: Mapping[str, str], fields: Mapping[str, str] | None = None
    ) -> AsyncIterator[Json]:
        """Objects by labels and fields, one after the other."""
        found = await self.list(kind, namespace, labels, fields)
        if found is None:
            raise ApiError(Request("list", resource(kind)), 404, "NotFound", NOT_SERVED)
        for one in found:
            yield one

    async def create(self, kind: wanted.Kind, namespace: str, manifest: Json) -> Json:
        """Make an object."""
        return self._write(Request("create", resource(kind)), kind, namespace, manifest)

    async def patch(self, kind: wanted.Kind, namespace: str, name: str, patch: Json, part: str = "") -> Json:
        """Change an object."""
        return self._write(Request("patch", resource(kind, part)), kind, namespace, patch, name, part)

    async def delete(self, kind: wanted.Kind, namespace: str, name: str, uid: str) -> None:
        """Delete an object, its pods first."""
        options = {"propagationPolicy": "Foreground", "preconditions": {"uid": uid}}
        try:
            self._write(Request("delete", resource(kind)), kind, namespace, options, name)
        except ApiError as error:
            if not (error.is_missing or error.is_conflict):
                raise

    async def progress(self, ip: str) -> Progress | None:
        """What the test says."""
        return self.readings.get(ip) or self.readings.get("*")

    # -- Within -----------------------------------------------------------------------------------------------------

    def _kind(self, kind: wanted.Kind) -> Kind | None:
        place = (kind.group, kind.version, kind.plural)
        served = (one for one in self.fake.api.kinds() if (one.group, one.version, one.plural) == place)
        return next(served, None)

    def _read(self, verb: str, kind: wanted.Kind) -> None:
        self.reads += 1
        self._refuse(Request(verb, resource(kind)))

    def _refuse(self, request: Request) -> None:
        refusal = self.refusals.get(str(request))
        if refusal is not None:
            raise refusal

    def _write(
        self, request: Request, kind: wanted.Kind, namespace: str, body: Json, name: str = "", part: str = ""
    ) -> Json:
        self._refuse(request)
        found, api = self._kind(kind), self.fake.api
        if found is None:
            raise ApiError(request, 404, "NotFound", NOT_SERVED)
        try:
            if request.verb == "create":
                stored = api.create(found, namespace, body)
            elif request.verb == "patch":
                stored = api.patch(found, namespace, name, body, part)
            else:
                stored = api.delete(found, namespace, name, body)
        except errors.ApiError as error:
            raise ApiError(request, error.code, error.reason, error.message) from error
        self.writes.append((request, body))
        if self.crash_after is not None:
            self.crash_after -= 1
            if self.crash_after <= 0:
                self.crash_after = None
                raise Crash
        return stored
