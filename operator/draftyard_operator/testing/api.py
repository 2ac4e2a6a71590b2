"""The operations of the API server on its store, without HTTP: tests call them too."""

from __future__ import annotations

import base64
import binascii
import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from draftyard_operator.testing import defaults, errors, kinds, schema
from draftyard_operator.testing.deletion import Collector, is_leaving
from draftyard_operator.testing.kinds import DEFINITION, NAMESPACE, Kind
from draftyard_operator.testing.patching import merged
from draftyard_operator.testing.selectors import selector
from draftyard_operator.testing.store import Store

Json = Any
Admission = Callable[[str, Kind, Json], Json]
"""Called with `create` or `update`, the kind and the object; returns it, changed or not, or raises ApiError."""


@dataclass(frozen=True)
class Page:
    """A LIST, or a piece of one."""

    items: list[Json]
    revision: int
    token: str = ""
    """To go on; empty at the end."""
    remaining: int = 0


class Api:
    """Create, read, change and delete objects, as an API server does."""

    def __init__(self, store: Store, collector: Collector) -> None:
        self.store = store
        self.collector = collector
        self.admission: list[Admission] = []

    # -- Kinds ------------------------------------------------------------------------------------------------------

    def kinds(self) -> list[Kind]:
        """Everything that is served now."""
        return [*kinds.BUILT_IN, *map(kinds.defined_kind, self.store.every(DEFINITION))]

    def schema(self, kind: Kind) -> Json | None:
        """The structural schema of a custom kind."""
        definition = self.store.find(DEFINITION, "", kind.resource)
        return kinds.definition_schema(definition) if definition else None

    # -- Reading ----------------------------------------------------------------------------------------------------

    def page(self, kind: Kind, namespace: str, query: Mapping[str, str]) -> Page:
        """A LIST by selectors, `limit` and `continue`. Raises ApiError 400, 410."""
        matches = selector(query)
        start, revision = token_parts(query.get("continue", ""))
        if revision and revision < self.store.gone_before:
            raise errors.expired("The provided continue parameter is too old")
        found = [
            one
            for one in self.store.every(kind, namespace)
            if (one["metadata"].get("namespace", ""), one["metadata"]["name"]) > start and matches(one)
        ]
        limit = int(query.get("limit") or 0)
        revision = revision or self.store.revision
        if not limit or len(found) <= limit:
            return Page(found, revision)
        items = list(islice(found, limit))
        last = items[-1]["metadata"]
        return Page(items, revision, token(last.get("namespace", ""), last["name"], revision), len(found) - limit)

    # -- Writing ----------------------------------------------------------------------------------------------------

    def create(self, kind: Kind, namespace: str, given: Json) -> Json:
        """Store a new object. Raises ApiError 400, 403, 404, 409, 422."""
        given = copy.deepcopy(given)
        metadata = given.setdefault("metadata", {})
        metadata.pop("resourceVersion", None)
        if not metadata.get("name"):
            metadata["name"] = metadata.get("generateName", "") + self.store.suffix()
        name = metadata["name"]
        if kind.namespaced:
            metadata["namespace"] = namespace
            self._check_namespace(kind, name, namespace)
        if kind.has_status:
            given.pop("status", None)
        for admit in self.admission:
            given = admit("create", kind, given)
        found = list(defaults.mistakes(kind, given))
        if found:
            raise errors.invalid(kind, name, found)
        made = self._checked(kind, name, defaults.filled(kind, given))
        if kind == NAMESPACE:
            made["status"] = {"phase": "Active"}
        return self.store.create(kind, made)

    def replace(self, kind: Kind, namespace: str, name: str, given: Json, part: str = "") -> Json:
        """Store a whole new state. Raises ApiError 404, 409, 422."""
        given = copy.deepcopy(given)
        return self._change(kind, namespace, name, lambda _: given, part)

    def patch(self, kind: Kind, namespace: str, name: str, given: Json, part: str = "") -> Json:
        """Put a merge patch into an object, or into its status. Raises ApiError 404, 409, 422."""
        return self._change(kind, namespace, name, lambda known: merged(known, given), part)

    def delete(self, kind: Kind, namespace: str, name: str, options: Json) -> Json:
        """Delete an object. Raises ApiError 404, 409, 422."""
        return self.collector.delete(kind, namespace, name, options)

    # -- Within -----------------------------------------------------------------------------------------------------

    def _check_namespace(self, kind: Kind, name: str, namespace: str) -> None:
        home = self.store.get(NAMESPACE, "", namespace)
        if is_leaving(home):
            raise errors.terminating(kind, name, namespace)

    def _change(self, kind: Kind, namespace: str, name: str, change: Callable[[Json], Json], part: str) -> Json:
        known = self.store.get(kind, namespace, name)
        if part not in ("", "status") or (part == "status" and not kind.has_status):
            raise errors.no_such_path()
        wanted = change(known)
        revision = wanted.get("metadata", {}).get("resourceVersion")
        if revision is not None and revision != known["metadata"]["resourceVersion"]:
            raise errors.conflict(kind, name)
        made = one_part(kind, known, wanted, part)
        if not part:
            for admit in self.admission:
                made = admit("update", kind, made)
            found = list(defaults.frozen(kind, known, made))
            if found:
                raise errors.invalid(kind, name, found)
        return self.store.replace(kind, self._checked(kind, name, made))

    def _checked(self, kind: Kind, name: str, given: Json) -> Json:
        """A custom object as its schema wants it. Raises ApiError 422."""
        wanted = self.schema(kind)
        if wanted is None:
            return given
        made = schema.defaulted(schema.pruned(given, wanted, root=True), wanted)
        found = list(schema.mistakes(made, wanted))
        if found:
            raise errors.invalid(kind, name, found)
        return made


def one_part(kind: Kind, known: Json, wanted: Json, part: str) -> Json:
    """The known object with the wanted status, or the wanted object with the known status."""
    if part == "status":
        return known | {"status": wanted.get("status", {})}
    kept = {"metadata": known["metadata"] | wanted.get("metadata", {})}
    if not kind.has_status:
        return {**wanted, **kept}
    status = {"status": known["status"]} if "status" in known else {}
    return {name: value for name, value in wanted.items() if name != "status"} | kept | status


def token(namespace: str, name: str, revision: int) -> str:
    """Where a LIST goes on."""
    return base64.urlsafe_b64encode(json.dumps([namespace, name, revision]).encode()).decode()


def token_parts(text: str) -> tuple[tuple[str, str], int]:
    """Namespace and name of the last object, and the revision of the LIST. Raises ApiError 400."""
    if not text:
        return ("", ""), 0
    try:
        namespace, name, revision = json.loads(base64.urlsafe_b64decode(text))
    except (ValueError, binascii.Error) as error:
        raise errors.ApiError(400, "BadRequest", f"continue key is not valid: {text}") from error
    return (namespace, name), revision
