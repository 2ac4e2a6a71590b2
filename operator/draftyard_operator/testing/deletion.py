"""How objects go: in the foreground, in the background, as orphans, and with their namespace.

The garbage collector looks at owner references only. A pod that runs goes when its kubelet has stopped it.
"""

from __future__ import annotations

from typing import Any

from draftyard_operator.testing import errors
from draftyard_operator.testing.kinds import DEFINITION, JOB, NAMESPACE, POD, Kind
from draftyard_operator.testing.store import Change, Place, Store, place

Json = Any
FOREGROUND = "foregroundDeletion"
POLICIES = ("Foreground", "Background", "Orphan")
ENDED = ("Succeeded", "Failed")


def is_leaving(found: Json) -> bool:
    """Whether an object is being deleted."""
    return "deletionTimestamp" in found["metadata"]


def is_ended(pod: Json) -> bool:
    """Whether a pod has run to its end."""
    return pod.get("status", {}).get("phase") in ENDED


def default_policy(kind: Kind) -> str:
    """What happens to dependents without a propagationPolicy: `batch/v1` orphans them."""
    return "Orphan" if kind == JOB else "Background"


class Collector:
    """Deletes objects, and what depends on them."""

    def __init__(self, store: Store) -> None:
        self.store = store

    # -- Asked for --------------------------------------------------------------------------------------------------

    def delete(self, kind: Kind, namespace: str, name: str, options: Json) -> Json:
        """Delete an object as DeleteOptions say. Returns it as it is then. Raises ApiError 404, 409, 422."""
        found = self.store.get(kind, namespace, name)
        wanted = options.get("preconditions") or {}
        if any(found["metadata"][field] != value for field, value in wanted.items()):
            raise errors.conflict(kind, name)
        policy = options.get("propagationPolicy") or default_policy(kind)
        if policy not in POLICIES:
            raise errors.invalid(kind, name, [("propagationPolicy", f"given {policy}; accepted: {POLICIES}")])
        if policy == "Orphan":
            self._orphan(found)
        return self._remove(kind, found, foreground=policy == "Foreground", grace=options.get("gracePeriodSeconds"))

    def _remove(self, kind: Kind, found: Json, *, foreground: bool, grace: int | None = None) -> Json:
        if is_leaving(found):
            return self.store.remove(kind, found) if kind == POD and grace == 0 else found
        finalizers = list(found["metadata"].get("finalizers", ()))
        if foreground and self.store.dependents(found["metadata"]["uid"]):
            finalizers.append(FOREGROUND)
        running = kind == POD and found["spec"].get("nodeName") and not is_ended(found) and grace != 0
        if finalizers or running or kind == NAMESPACE:
            seconds = found.get("spec", {}).get("terminationGracePeriodSeconds", 30) if running else 0
            return self.store.start_deletion(kind, found, finalizers, grace or seconds)
        return self.store.remove(kind, found)

    def _orphan(self, owner: Json) -> None:
        uid = owner["metadata"]["uid"]
        for at, found in self.store.dependents(uid):
            kept = [ref for ref in found["metadata"]["ownerReferences"] if ref["uid"] != uid]
            self.store.replace(at.kind, found | {"metadata": found["metadata"] | {"ownerReferences": kept}})

    # -- By itself --------------------------------------------------------------------------------------------------

    def see(self, change: Change) -> None:
        """Follow a change: collect what lost its owner, let go of what waited for its dependents."""
        found = change.object
        if change.type == "DELETED":
            self._collect_dependents(found)
            self._release_owners(found)
            self._release_namespace(found["metadata"].get("namespace", ""))
            self._forget_definition(change)
        elif is_leaving(found):
            self._push_dependents(change.kind, found)
        elif change.type == "ADDED":
            self._collect_stray(change.kind, found)

    def _collect_dependents(self, owner: Json) -> None:
        for at, found in self.store.dependents(owner["metadata"]["uid"]):
            self._collect_stray(at.kind, found)

    def _collect_stray(self, kind: Kind, found: Json) -> None:
        """Delete an object whose owners are all gone."""
        references = found["metadata"].get("ownerReferences", ())
        namespace = found["metadata"].get("namespace", "")
        if references and not any(self.store.owner_exists(namespace, reference) for reference in references):
            self._remove(kind, found, foreground=False)

    def _push_dependents(self, kind: Kind, found: Json) -> None:
        """In the foreground, dependents go first."""
        if kind == NAMESPACE:
            for at in self.store.in_namespace(found["metadata"]["name"]):
                self._remove(at.kind, self.store.get(at.kind, at.namespace, at.name), foreground=False)
            self._release_namespace(found["metadata"]["name"])
            return
        if FOREGROUND not in found["metadata"].get("finalizers", ()):
            return
        uid = found["metadata"]["uid"]
        for at, dependent in self.store.dependents(uid):
            if blocks(dependent, uid) or len(dependent["metadata"]["ownerReferences"]) == 1:
                self._remove(at.kind, dependent, foreground=True)
        self._release(place(kind, found))

    def _release_owners(self, gone: Json) -> None:
        for reference in gone["metadata"].get("ownerReferences", ()):
            for kind in self.store.kinds():
                if (kind.api_version, kind.name) == (reference["apiVersion"], reference["kind"]):
                    self._release(Place(kind, gone["metadata"].get("namespace", ""), reference["name"]))

    def _release(self, at: Place) -> None:
        """Take the finalizer off an owner whose blocking dependents are gone."""
        owner = self.store.find(at.kind, at.namespace, at.name)
        if owner is None or FOREGROUND not in owner["metadata"].get("finalizers", ()):
            return
        uid = owner["metadata"]["uid"]
        if any(blocks(dependent, uid) for _, dependent in self.store.dependents(uid)):
            return
        kept = [name for name in owner["metadata"]["finalizers"] if name != FOREGROUND]
        self.store.replace(at.kind, owner | {"metadata": owner["metadata"] | {"finalizers": kept}})

    def _release_namespace(self, name: str) -> None:
        found = self.store.find(NAMESPACE, "", name) if name else None
        if found is not None and is_leaving(found) and not self.store.in_namespace(name):
            self.store.remove(NAMESPACE, found)

    def _forget_definition(self, change: Change) -> None:
        """With a CustomResourceDefinition all its objects go."""
        if change.kind != DEFINITION:
            return
        names = change.object["spec"]["names"]
        for kind in self.store.kinds():
            if (kind.group, kind.plural) == (change.object["spec"]["group"], names["plural"]):
                for found in self.store.every(kind):
                    self._remove(kind, found, foreground=False)


def blocks(dependent: Json, uid: str) -> bool:
    """Whether an object keeps its owner until it is gone itself."""
    references = dependent["metadata"].get("ownerReferences", ())
    return any(reference["uid"] == uid and reference.get("blockOwnerDeletion") for reference in references)
