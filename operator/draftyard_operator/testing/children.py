"""What all controllers do with their pods: make them, find them, and find whose they are."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

from draftyard_operator.testing import errors
from draftyard_operator.testing.deletion import is_ended
from draftyard_operator.testing.kinds import EVENT, NAMESPACE, POD, Kind
from draftyard_operator.testing.store import Store

Json = Any
PodRule = Callable[[Json], str]
"""Why a pod may not be made, as an admission would say it; empty when it may."""
RETRY_SECONDS = 1.0
"""Between two tries of a pod that was refused."""


def owned(store: Store, owner: Json, kind: Kind) -> list[Json]:
    """Objects of a kind that this owner has, by name."""
    found = [found for at, found in store.dependents(owner["metadata"]["uid"]) if at.kind == kind]
    return sorted(found, key=lambda pod: str(pod["metadata"]["name"]))


def live(found: list[Json]) -> list[Json]:
    """Pods that have not ended; those that are being deleted count."""
    return [pod for pod in found if not is_ended(pod)]


def controller_of(store: Store, kind: Kind, dependent: Json) -> Json | None:
    """The object of this kind that controls another one, if it is there."""
    for reference in dependent["metadata"].get("ownerReferences", ()):
        is_of_kind = (reference["apiVersion"], reference["kind"]) == (kind.api_version, kind.name)
        if is_of_kind and reference.get("controller"):
            found = store.find(kind, dependent["metadata"]["namespace"], reference["name"])
            if found is not None and found["metadata"]["uid"] == reference["uid"]:
                return found
    return None


class PodMaker:
    """Makes pods from templates. What a rule refuses is told by an event, as controllers do, and tried again."""

    def __init__(self, store: Store, rules: Sequence[PodRule] = (), told_as: str = "FailedCreate") -> None:
        self.store = store
        self.rules = rules
        self.told_as = told_as
        self._again: dict[str, tuple[float, Json]] = {}

    def due(self) -> list[Json]:
        """Owners whose pods were refused, and that should try again now."""
        now = self.store.clock()
        found = [uid for uid, (due, _) in self._again.items() if due <= now]
        return [self._again.pop(uid)[1] for uid in found]

    def make(self, owner: Json, name: str, template: Json, labels: Json, annotations: Json | None = None) -> None:
        """Create a pod of an owner, unless the namespace goes, the pod is there, or one was refused just now."""
        namespace = owner["metadata"]["namespace"]
        home = self.store.find(NAMESPACE, "", namespace)
        if home is None or "deletionTimestamp" in home["metadata"] or self.store.find(POD, namespace, name):
            return
        if owner["metadata"]["uid"] in self._again:
            # controllers wait between two tries
            return
        metadata = template.get("metadata") or {}
        reference = {
            "apiVersion": owner["apiVersion"],
            "kind": owner["kind"],
            "name": owner["metadata"]["name"],
            "uid": owner["metadata"]["uid"],
            "controller": True,
            "blockOwnerDeletion": True,
        }
        pod = {
            "metadata": {
                "name": name,
                "namespace": namespace,
                "labels": {**(metadata.get("labels") or {}), **labels},
                "annotations": {**(metadata.get("annotations") or {}), **(annotations or {})},
                "ownerReferences": [reference],
            },
            "spec": copy.deepcopy(template["spec"]),
            "status": {"phase": "Pending"},
        }
        refusals = [why for rule in self.rules if (why := rule(pod))]
        if refusals:
            self._tell(owner, errors.forbidden(POD, name, refusals[0]).message)
        else:
            self.store.create(POD, pod)

    def _tell(self, owner: Json, why: str) -> None:
        metadata, now = owner["metadata"], self.store.now()
        involved = {"apiVersion": owner["apiVersion"], "kind": owner["kind"]}
        involved |= {field: metadata[field] for field in ("namespace", "name", "uid")}
        event = {
            "metadata": {"name": f"{metadata['name']}.{self.store.suffix()}", "namespace": metadata["namespace"]},
            "involvedObject": involved, "type": "Warning", "reason": self.told_as, "message": f"Error creating: {why}",
            "firstTimestamp": now, "lastTimestamp": now, "count": 1,
        }  # fmt: skip
        self.store.create(EVENT, event)
        self._again[metadata["uid"]] = (self.store.clock() + RETRY_SECONDS, owner)
