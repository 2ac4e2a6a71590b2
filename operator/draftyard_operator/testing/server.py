"""The HTTP side of the fake API server: paths to operations, faults in front of them, a record of all behind."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, replace
from typing import Any

from aiohttp import web

from draftyard_operator.testing import errors, faults, kinds, watches
from draftyard_operator.testing.api import Api
from draftyard_operator.testing.errors import ApiError
from draftyard_operator.testing.faults import Call, Effect, Faults, Record
from draftyard_operator.testing.kinds import Kind
from draftyard_operator.testing.patching import checked_type
from draftyard_operator.testing.watches import Watch

Json = Any
VERBS = {"GET": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
PAGE = "<html><body><h1>502 Bad Gateway</h1></body></html>"


@dataclass(frozen=True)
class Target:
    """What a path is about."""

    kind: Kind
    namespace: str = ""
    name: str = ""
    part: str = ""


class Server:
    """Serves an Api on a port of this machine."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.faults = Faults()
        self.record = Record()
        self.bookmark_seconds = 1.0
        self.watches: list[Watch] = []
        self.url = ""
        self._runner: web.AppRunner | None = None

    async def start(self, port: int = 0) -> None:
        """Serve; port 0 takes a free one. Raises OSError."""
        app = web.Application(client_max_size=8 * 1024**2)
        app.router.add_route("*", "/{path:.*}", self.handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", port).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        """Cut every watch, and serve no more."""
        self.cut_watches()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def cut_watches(self, last: Json | None = None) -> None:
        """End every open watch, after a last event."""
        for watch in list(self.watches):
            watch.cut(last)

    def silence_watches(self) -> None:
        """Open watches stay open, and tell nothing more."""
        for watch in self.watches:
            watch.is_silent = True

    # -- One request ------------------------------------------------------------------------------------------------

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request."""
        try:
            target = self._target(request.path)
        except ApiError as refusal:
            return refused(refusal)
        if isinstance(target, dict):
            return web.json_response(target)
        call = self._call(request, target)
        effects = self.faults.strike(call)
        try:
            return await self._serve(request, target, call, effects)
        except ApiError as refusal:
            self._note(call, refusal.code)
            return refused(refusal)

    async def _serve(
        self, request: web.Request, target: Target, call: Call, effects: list[Effect]
    ) -> web.StreamResponse:
        for effect in effects:
            match effect:
                case faults.Delay(seconds):
                    await asyncio.sleep(seconds)
                case faults.Answer():
                    self._note(call, effect.code)
                    return answered(effect)
                case faults.Drop():
                    self._note(call, 0)
                    return dropped(request)
        if call.verb == "watch":
            return await self._watch(request, target, call, effects)
        code, body = await self._execute(request, target, call)
        last = effects[-1] if effects else None
        if isinstance(last, faults.LoseReply | faults.Crash):
            self._note(call, 0)
            if isinstance(last, faults.Crash):
                last.hook()
            return dropped(request)
        self._note(call, code)
        return web.json_response(body, status=code)

    async def _execute(self, request: web.Request, target: Target, call: Call) -> tuple[int, Json]:
        kind, at = target.kind, (target.kind, target.namespace, target.name)
        api = self.api
        match call.verb:
            case "get":
                return 200, api.store.get(*at)
            case "list":
                return 200, listed(kind, api.page(kind, target.namespace, request.query))
            case "create":
                return 201, api.create(kind, target.namespace, await body_of(request))
            case "update":
                return 200, api.replace(*at, await body_of(request), target.part)
            case "patch":
                checked_type(request.content_type)
                return 200, api.patch(*at, await body_of(request), target.part)
            case "delete":
                given = await body_of(request) if request.can_read_body else {}
                return 200, api.delete(*at, {**given, **delete_options(request)})
        raise errors.no_such_path()

    async def _watch(
        self, request: web.Request, target: Target, call: Call, effects: list[Effect]
    ) -> web.StreamResponse:
        watch = Watch(self.api.store, target.kind, target.namespace, request.query)
        left = None
        for effect in effects:
            match effect:
                case faults.Silence():
                    watch.is_silent = True
                case faults.Break(events):
                    left = events
                case faults.WatchError(code):
                    watch.cut(watches.error(ApiError(code, "Expired" if code == 410 else "InternalError", "fault")))
        self._note(call, 200)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        self.watches.append(watch)
        try:
            async for event in watch.events(self.bookmark_seconds):
                if left is not None and left <= 0:
                    return dropped(request)
                await response.write(json.dumps(event, separators=(",", ":")).encode() + b"\n")
                left = None if left is None else left - 1
        except ConnectionError:
            pass
        finally:
            self.watches.remove(watch)
        return response

    # -- Paths ------------------------------------------------------------------------------------------------------

    def _target(self, path: str) -> Target | Json:
        """What a path is about, or the answer itself for discovery. Raises ApiError 404."""
        parts = [part for part in path.split("/") if part]
        served = self.api.kinds()
        match parts:
            case ["version"]:
                return {"major": "1", "minor": "36", "gitVersion": "v1.36.3"}
            case ["api"]:
                return {"kind": "APIVersions", "versions": ["v1"]}
            case ["apis"]:
                return kinds.group_list(served)
            case ["api", version, *rest]:
                api_version = version
            case ["apis", group, version, *rest]:
                api_version = f"{group}/{version}"
            case _:
                raise errors.no_such_path()
        here = [kind for kind in served if kind.api_version == api_version]
        if not here:
            raise errors.no_such_path()
        return object_target(here, rest) if rest else kinds.resource_list(api_version, here)

    def _call(self, request: web.Request, target: Target) -> Call:
        verb = VERBS.get(request.method, request.method.lower())
        if verb == "get" and not target.name:
            verb = "watch" if request.query.get("watch") in ("true", "1", "True") else "list"
        agent = request.headers.get("User-Agent", "")
        kind = target.kind
        return Call(verb, kind.group, kind.plural, target.namespace, target.name, target.part, agent)

    def _note(self, call: Call, code: int) -> None:
        self.record.calls.append(replace(call, code=code))


def object_target(here: list[Kind], rest: list[str]) -> Target:
    """The part of a path behind its version. Raises ApiError 404."""
    namespace = ""
    if len(rest) > 2 and rest[0] == "namespaces" and rest[2] not in ("status", "finalize"):
        namespace, rest = rest[1], rest[2:]
    plural, name, part = (*rest, "", "")[:3]
    for kind in here:
        if kind.plural == plural and len(rest) <= 3:
            return Target(kind, namespace, name, part)
    raise errors.no_such_path()


async def body_of(request: web.Request) -> Json:
    """The JSON of a request. Raises ApiError 400."""
    try:
        return await request.json() or {}
    except json.JSONDecodeError as error:
        raise ApiError(400, "BadRequest", f"the body is no JSON: {error}") from error


def delete_options(request: web.Request) -> Json:
    """DeleteOptions that stand in the query."""
    found: Json = {}
    if "propagationPolicy" in request.query:
        found["propagationPolicy"] = request.query["propagationPolicy"]
    if "gracePeriodSeconds" in request.query:
        found["gracePeriodSeconds"] = int(request.query["gracePeriodSeconds"])
    return found


def listed(kind: Kind, page: Any) -> Json:
    """A LIST as JSON. Items of built-in kinds carry no kind, those of custom kinds do."""
    built_in = kind in kinds.BUILT_IN
    items = [
        {name: value for name, value in item.items() if not built_in or name not in ("kind", "apiVersion")}
        for item in page.items
    ]
    metadata = {"resourceVersion": str(page.revision)}
    metadata |= {"continue": page.token, "remainingItemCount": page.remaining} if page.token else {}
    return {"kind": f"{kind.name}List", "apiVersion": kind.api_version, "metadata": metadata, "items": items}


def refused(refusal: ApiError) -> web.Response:
    """A Status object."""
    return web.json_response(refusal.body, status=refusal.code, headers=refusal.headers)


def answered(effect: faults.Answer) -> web.Response:
    """What a fault answers."""
    if effect.html:
        return web.Response(status=effect.code, text=PAGE, content_type="text/html")
    headers = {} if effect.retry_after is None else {"Retry-After": str(effect.retry_after)}
    return refused(ApiError(effect.code, effect.reason, effect.message, headers=headers))


def dropped(request: web.Request) -> web.StreamResponse:
    """Break the connection without a word."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=500)
