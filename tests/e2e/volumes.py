"""Volumes of the node: folders of this machine, which claims are bound to, and what the runs train on."""

from __future__ import annotations

from typing import Any

import cluster
import layout
import yaml

CLASS = "local"
MODELS = "models"
WORKSPACES = tuple(f"workspace-{number}" for number in range(12))
SIZE = "1Gi"
MANY = 1500
"""Conversations of the runs that something happens to: their stages must have a middle."""


def add(namespace: str) -> None:
    """The class, a volume for each run, and the claim `models`, bound to the folder that `write_inputs` fills."""
    kind = {
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": CLASS},
        "provisioner": "kubernetes.io/no-provisioner", "volumeBindingMode": "WaitForFirstConsumer",
    }  # fmt: skip
    claim = {
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": MODELS, "namespace": namespace},
        "spec": {
            "accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": SIZE}}, "storageClassName": CLASS,
            "volumeName": MODELS,
        },
    }  # fmt: skip
    reserved = {"claimRef": {"namespace": namespace, "name": MODELS}}
    objects = [kind, volume(MODELS, reserved), claim, *(volume(name, {}) for name in WORKSPACES)]
    cluster.apply(yaml.safe_dump_all(objects))


def volume(name: str, more: dict[str, Any]) -> dict[str, Any]:
    """A folder as a volume. `local` and not `hostPath`: only there the kubelet gives it the group of the pod."""
    folder = layout.VOLUMES / name
    folder.mkdir(parents=True, exist_ok=True)
    here = {"key": "kubernetes.io/hostname", "operator": "In", "values": [layout.NODE]}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": SIZE},
            "accessModes": ["ReadWriteMany"],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": CLASS,
            "local": {"path": str(folder)},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}},
            **more,
        },
    }


def write_inputs() -> None:
    """A tiny Llama with random weights, its tokenizer, and conversations, where the claim `models` will find them."""
    from draftyard_trainer import testing  # noqa: PLC0415  torch takes seconds, and a cluster needs none

    folder = layout.VOLUMES / MODELS
    folder.mkdir(parents=True, exist_ok=True)
    testing.write_target(folder / "tiny")
    testing.write_conversations(folder / "conversations.json")
    testing.write_conversations(folder / "many.json", count=MANY)
    # pods read as another user, and weights are written for their owner alone
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
