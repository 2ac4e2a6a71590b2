"""The only Kubernetes client, and the one who asks pods for their progress. Thin: it decides nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlencode

import aiohttp
from kubernetes.aio.client import ApiClient
from kubernetes.aio.client.exceptions import ApiException
from pydantic import ValidationError

from draftyard_api import names
from draftyard_api.progress import Progress
from draftyard_operator.budget import Budget
from draftyard_operator.kinds import Kind
from draftyard_operator.refusals import ApiError, Request, read_error

Json = Any

REQUEST_SECONDS = 30
PAGE = 500
MERGE_PATCH = "application/merge-patch+json"
"""Said with every patch: a dict goes to a Job as a strategic merge otherwise."""
PROGRESS_SECONDS = 2.0
PROGRESS_BYTES = 64 * 1024


class Meter(Protocol):
    """Who counts requests."""

    def request(self, verb: str, resource: str, code: int, seconds: float) -> None:
        """A request was answered; code 0 when no answer came."""
        ...


class Reader(Protocol):
    """What a pass reads of a cluster. Every call may raise ApiError."""

    async def get(self, kind: Kind, namespace: str, name: str) -> Json | None:
        """One object; None when it does not exist."""
        ...

    async def list(
        self, kind: Kind, namespace: str, labels: Mapping[str, str], fields: Mapping[str, str] | None = None
    ) -> Sequence[Json] | None:
        """Objects by labels and fields, of one namespace or (empty) of all; None when the kind is not served."""
        ...

    async def progress(self, ip: str) -> Progress | None:
        """What the pod at an address reports; None when it does not answer, or not as it should."""
        ...


class Cluster(Reader, Protocol):
    """What a pass reads and writes. Every call may raise ApiError."""

    async def create(self, kind: Kind, namespace: str, manifest: Json) -> Json:
        """Make an object. Returns what was stored."""
        ...

    async def patch(self, kind: Kind, namespace: str, name: str, patch: Json, part: str = "") -> Json:
        """Put a merge patch into an object, or into its status."""
        ...

    async def delete(self, kind: Kind, namespace: str, name: str, uid: str) -> None:
        """Delete an object and wait for what it owns (Foreground); nothing when it is gone or another one."""
        ...


@dataclass(frozen=True)
class Answer:
    """What the server said."""

    code: int
    body: str
    retry_after: str | None = None


class KubernetesCluster:
    """A real cluster, through the official client: its login, its TLS, and none of its models or retries."""

    def __init__(self, client: ApiClient, meter: Meter | None = None, budget: Budget | None = None) -> None:
        self._client = client
        self._meter = meter
        self._budget = budget or Budget()
        self._session: aiohttp.ClientSession | None = None
        self.requests: Counter[Request] = Counter()
        """Every request so far, to be compared with the rights that the chart grants."""

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()
        if self._session is not None:
            await self._session.close()

    # -- Objects ----------------------------------------------------------------------------------------------------

    async def get(self, kind: Kind, namespace: str, name: str) -> Json | None:
        """One object; None when it does not exist. Raises ApiError."""
        try:
            return await self._send(Request("get", resource(kind)), "GET", kind.path(namespace, name))
        except ApiError as error:
            if error.is_missing:
                return None
            raise

    async def list(
        self, kind: Kind, namespace: str, labels: Mapping[str, str], fields: Mapping[str, str] | None = None
    ) -> Sequence[Json] | None:
        """Objects by labels and fields; None when the kind is not served. Raises ApiError."""
        try:
            return [found async for found in self.each(kind, namespace, labels, fields)]
        except ApiError as error:
            if error.is_missing:
                return None
            raise

    async def each(
        self, kind: Kind, namespace: str, labels: Mapping[str, str], fields: Mapping[str, str] | None = None
    ) -> AsyncIterator[Json]:
        """Objects by labels and fields, of one namespace or (empty) of all, read page by page. Raises ApiError."""
        query = {"limit": str(PAGE)}
        for name, wanted in (("labelSelector", labels), ("fieldSelector", fields)):
            if wanted:
                query[name] = ",".join(f"{key}={value}" for key, value in wanted.items())
        request = Request("list", resource(kind))
        while True:
            found = await self._send(request, "GET", f"{kind.path(namespace)}?{urlencode(query)}")
            for item in found["items"]:
                yield item
            token = found["metadata"].get("continue")
            if not token:
                return
            query["continue"] = token

    async def create(self, kind: Kind, namespace: str, manifest: Json) -> Json:
        """Make an object. Raises ApiError."""
        return await self._send(Request("create", resource(kind)), "POST", kind.path(namespace), manifest)

    async def patch(self, kind: Kind, namespace: str, name: str, patch: Json, part: str = "") -> Json:
        """Put a merge patch into an object, or into its status. Raises ApiError."""
        request = Request("patch", resource(kind, part))
        return await self._send(request, "PATCH", kind.path(namespace, name, part), patch, MERGE_PATCH)

    async def delete(self, kind: Kind, namespace: str, name: str, uid: str) -> None:
        """Delete an object, its pods first. Raises ApiError."""
        # Without a policy, batch/v1 leaves the pods of a Job running.
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Foreground",
                   "preconditions": {"uid": uid}}  # fmt: skip
        try:
            await self._send(Request("delete", resource(kind)), "DELETE", kind.path(namespace, name), options)
        except ApiError as error:
            # gone, or another object by now: either way this one is not there
            if not (error.is_missing or error.is_conflict):
                raise

    # -- Requests ---------------------------------------------------------------------------------------------------

    async def _send(
        self, request: Request, method: str, path: str, body: Json = None, content: str = "application/json"
    ) -> Json:
        await self._budget.take()
        self.requests[request] += 1
        started = time.monotonic()
        answer = Answer(0, "")
        try:
            answer = await self._ask(method, path, body, content)
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise ApiError(request, 0, type(error).__name__, str(error) or "no answer") from error
        finally:
            if self._meter is not None:
                self._meter.request(request.verb, request.resource, answer.code, time.monotonic() - started)
        if answer.code >= 300:
            refused = read_error(request, answer.code, answer.body, answer.retry_after)
            if refused.retry_after and refused.code in (429, 503):
                self._budget.close_for(refused.retry_after)
            raise refused
        try:
            return json.loads(answer.body)
        except ValueError as error:
            raise ApiError(request, answer.code, "NotJSON", answer.body[:200]) from error

    async def _ask(self, method: str, path: str, body: Json, content: str) -> Answer:
        headers = {"Accept": "application/json", "Content-Type": content}
        verb, url, sent, given, *_ = await self._client.param_serialize(
            method, path, header_params=headers, body=body, auth_settings=["BearerToken"]
        )
        try:
            response = await self._client.call_api(verb, url, sent, given, _request_timeout=REQUEST_SECONDS)
            data = await response.read()
        except ApiException as error:
            raise aiohttp.ClientError(str(error.reason)) from error
        return Answer(response.status, data.decode(errors="replace"), response.getheader("Retry-After"))

    # -- Pods -------------------------------------------------------------------------------------------------------

    async def progress(self, ip: str) -> Progress | None:
        """What the pod at an address reports: within 2 s, at most 64 KiB, from there and nowhere else."""
        host = f"[{ip}]" if ":" in ip else ip
        url = f"http://{host}:{names.PROGRESS_PORT}{names.PROGRESS_PATH}"
        with contextlib.suppress(TimeoutError, aiohttp.ClientError, OSError, ValidationError):
            async with asyncio.timeout(PROGRESS_SECONDS), self._pods().get(url, allow_redirects=False) as response:
                body = await response.content.read(PROGRESS_BYTES + 1)
                while len(body) <= PROGRESS_BYTES and not response.content.at_eof():
                    body += await response.content.read(PROGRESS_BYTES + 1 - len(body))
                if response.status == 200 and len(body) <= PROGRESS_BYTES:
                    return Progress.model_validate_json(body)
        return None

    def _pods(self) -> aiohttp.ClientSession:
        # its own session: no token of ours, and no proxy, may come near a pod
        if self._session is None:
            self._session = aiohttp.ClientSession(trust_env=False, cookie_jar=aiohttp.DummyCookieJar())
        return self._session


def resource(kind: Kind, part: str = "") -> str:
    """As RBAC writes it, with its group."""
    name = f"{kind.plural}.{kind.group}" if kind.group else kind.plural
    return f"{name}/{part}" if part else name
