"""Every field of the spec, at its limits and beyond: what one judge takes, the other must take too."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from draftyard_api import crd

Json = Any
SPEC = crd.root_schema()["properties"]["spec"]
FULL: Json = {
    "apiVersion": "draftyard.dev/v1alpha1",
    "kind": "DraftTraining",
    "metadata": {"name": "r1"},
    "spec": {
        "mode": "Offline",
        "target": {"model": "org/name", "tokenSecretRef": {"name": "hf"}, "s3": {"region": "a"}},
        "draft": {
            "auxLayers": [2, 16], "intermediateSize": 64, "keepTokens": ["a"], "initFrom": "org/draft",
            "s3": {"region": "a"},
        },
        "data": {
            "source": {"preset": {"name": "a"}}, "maxSamples": 9, "templateKwargs": {"a": 1}, "stopTokens": ["b"],
            "regenerate": {"shards": 9, "engine": {"url": "https://a/v1", "model": "b", "secretRef": {"name": "a"}}},
        },
        "workspace": {
            "pvc": {"claimTemplate": {"storageClassName": "a", "accessModes": ["ReadWriteMany"], "size": "1Gi"}}
        },
        "hiddenStates": {"shards": 9},
        "regenerate": {"parallelism": 2},
        "generate": {"gpusPerPod": 1},
        "train": {"earlyStop": {}},
        "evaluate": {
            "minAcceptanceLength": 2, "gpusPerPod": 1, "promptSets": ["file"], "promptFile": {"uri": "pvc://a/b"},
            "proposal": "tree", "tree": {}, "engine": {"url": "http://a:1", "secretRef": {"name": "a", "key": "b"}},
        },
        "tracking": {
            "reportTo": ["wandb", "swanlab", "mlflow"],
            "wandb": {"project": "a", "entity": "b", "secretRef": {"name": "a", "key": "b"}},
            "swanlab": {"project": "a", "workspace": "b"},
            "mlflow": {"uri": "https://a", "experiment": "b"},
        },
        "scheduling": {"queueName": "a", "workloadPriorityClass": "b", "priorityClassName": "c", "schedulerName": "d"},
        "deadlines": {"activeSeconds": 600},
        "pod": {
            "image": "a", "imagePullPolicy": "Never", "imagePullSecrets": [{"name": "a"}],
            "resources": {"requests": {"cpu": 1}, "limits": {"memory": "1Gi"}},
            "nodeSelector": {"a": "b"}, "tolerations": [{"key": "a", "operator": "Exists", "tolerationSeconds": 1}],
            "affinity": {}, "topologySpreadConstraints": [{}], "runtimeClassName": "a", "serviceAccountName": "b",
            "env": [
                {"name": "A", "value": "b"}, {"name": "B", "valueFrom": {"secretKeyRef": {"name": "a", "key": "b"}}}
            ],
            "volumes": [
                {"name": "a", "emptyDir": {"sizeLimit": "1Gi"}}, {"name": "b", "secret": {"secretName": "a"}},
                {"name": "c", "configMap": {"name": "a", "items": [{"key": "a", "path": "b"}]}},
            ],
            "volumeMounts": [{"name": "a", "mountPath": "/a", "subPath": "b"}],
            "labels": {"a": "b"}, "annotations": {"a": "b"},
            "securityContext": {"runAsUser": 1, "supplementalGroups": [1]},
            "terminationGracePeriodSeconds": 30, "shmSize": 1,
        },
    },
}  # fmt: skip
"""A spec in which nearly every field is there."""


@dataclass(frozen=True)
class Probe:
    """One value at one place."""

    place: tuple[str | int, ...]
    value: Any

    @property
    def document(self) -> Json:
        made = copy.deepcopy(FULL)
        block = made["spec"]
        for part in self.place[:-1]:
            block = block[part]
        block[self.place[-1]] = self.value
        return made


def values(schema: Json) -> Iterator[Any]:
    """Values at and beyond the limits of a schema, and of other types."""
    yield from (7, "x", [], {}, True, 0.5, -1, "", "3")
    for name, step in (("minimum", -1), ("maximum", 1)):
        if name in schema:
            yield from (schema[name], schema[name] + step)
    if "maxLength" in schema:
        yield from ("a" * schema["maxLength"], "a" * (schema["maxLength"] + 1))
    if "maxItems" in schema:
        yield from ([entry] * count for count in (schema["maxItems"], schema["maxItems"] + 1) for entry in (2, "a", {}))
    if "maxProperties" in schema:
        yield from (
            {f"k{i}": "1" for i in range(count)} for count in (schema["maxProperties"], schema["maxProperties"] + 1)
        )
    yield from schema.get("enum", ())


def probes(schema: Json, block: Json, place: tuple[str | int, ...] = ()) -> Iterator[Probe]:
    """Every field that is there or could be, with every value to try."""
    for name, inner in schema.get("properties", {}).items():
        yield from (Probe((*place, name), value) for value in values(inner))
        if isinstance(block.get(name), dict):
            yield from probes(inner, block[name], (*place, name))
        elif isinstance(block.get(name), list) and isinstance(block[name][0], dict):
            for index, entry in enumerate(block[name]):
                yield from probes(inner["items"], entry, (*place, name, index))


PROBES = list(probes(SPEC, FULL["spec"]))
