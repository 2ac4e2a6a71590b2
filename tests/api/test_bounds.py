"""Every field of the spec, at its limits and beyond: a run here and an API server take and refuse the same."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from draftyard_api import crd, document
from draftyard_api.document import SpecErrors

Json = Any
SPEC = crd.root_schema()["properties"]["spec"]
FULL: Json = {
    "apiVersion": "draftyard.dev/v1alpha1",
    "kind": "DraftTraining",
    "metadata": {"name": "r1"},
    "spec": {
        "mode": "Offline",
        "target": {"model": "org/name", "tokenSecretRef": {"name": "hf"}, "s3": {"region": "a"}},
        "draft": {"auxLayers": [2, 16], "intermediateSize": 64, "keepTokens": ["a"], "initFrom": "org/draft"},
        "data": {"source": {"preset": {"name": "a"}}, "maxSamples": 9, "templateKwargs": {"a": 1}, "stopTokens": ["b"]},
        "workspace": {
            "pvc": {"claimTemplate": {"storageClassName": "a", "accessModes": ["ReadWriteMany"], "size": "1Gi"}}
        },
        "hiddenStates": {"shards": 9},
        "generate": {"gpusPerPod": 1},
        "evaluate": {"minAcceptanceLength": 2, "gpusPerPod": 1},
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


def errors_of(made: Json) -> list[str]:
    """What is wrong with a document; nothing when it is good."""
    try:
        document.check(made, local=False)
    except SpecErrors as error:
        return error.errors
    return []


def test_the_full_document_is_good():
    assert errors_of(FULL) == []


def test_every_field_is_probed():
    assert len(PROBES) > 1500
    assert {probe.place[0] for probe in PROBES} == set(SPEC["properties"])


def test_both_take_and_refuse_the_same(ask_server):
    definition, *told = ask_server([{"name": str(probe.place), "object": probe.document} for probe in PROBES])
    assert definition["errors"] == []
    differ = [
        (probe.place, probe.value, answer["errors"])
        for probe, answer in zip(PROBES, told, strict=True)
        if bool(errors_of(probe.document)) != bool(answer["errors"])
    ]
    assert differ == []
    refused = sum(bool(answer["errors"]) for answer in told)
    assert 500 < refused < len(PROBES) - 200


def paths(value: Json, place: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every place of a document."""
    if place:
        yield place
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in parts:
        yield from paths(inner, (*place, name))


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 10**12) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def put(made: Json, place: tuple[Any, ...], value: Json) -> None:
    """Set a value, unless an earlier one took the way to it."""
    with contextlib.suppress(KeyError, IndexError, TypeError):
        block = made
        for part in place[:-1]:
            block = block[part]
        block[place[-1]] = value


@settings(max_examples=300, deadline=None)
@given(changes=st.lists(st.tuples(st.sampled_from(sorted(paths(FULL), key=str)), ANYTHING), min_size=1, max_size=4))
def test_any_document_is_judged(changes):
    """Whatever stands anywhere, the answer is a list of lines, each with a path and what is accepted."""
    made = copy.deepcopy(FULL)
    for place, value in changes:
        put(made, place, value)
    errors = errors_of(json.loads(json.dumps(made)))
    assert all(": given " in line and "accepted: " in line for line in errors)
    assert len(set(errors)) == len(errors)
