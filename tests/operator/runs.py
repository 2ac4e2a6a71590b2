"""DraftTrainings, Jobs and pods that tests start from."""

from __future__ import annotations

import copy
from typing import Any

from draftyard_api.names import LABEL_MANAGED

Json = Any

ONLINE: Json = {
    "mode": "Online",
    "target": {"model": "org/target"},
    "data": {"source": {"preset": {"name": "sharegpt"}}},
    "workspace": {"pvc": {"claimTemplate": {"size": "200Gi"}}},
}
OFFLINE: Json = ONLINE | {"mode": "Offline", "hiddenStates": {}}


def merged(base: Json, changes: Json) -> Json:
    """A copy of a spec with changes put into its blocks."""
    made = copy.deepcopy(base)
    for name, value in changes.items():
        known = made.get(name)
        made[name] = merged(known, value) if isinstance(value, dict) and isinstance(known, dict) else value
    return made


def job(name: str = "work", owner: Json | None = None, **spec: Json) -> Json:
    """A Job of one container."""
    pod = {"restartPolicy": "Never", "containers": [{"name": "work", "image": "trainer:1"}]}
    reference = [owner_reference(owner)] if owner else []
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "labels": {LABEL_MANAGED: "true"}, "ownerReferences": reference},
        "spec": {"backoffLimit": 0, "template": {"spec": pod}} | spec,
    }


def owner_reference(owner: Json) -> Json:
    """A reference that makes one object the controller of another."""
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }
