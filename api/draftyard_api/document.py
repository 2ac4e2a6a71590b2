"""A DraftTraining in a YAML file: read, checked as a whole, and refused with everything that is wrong at once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import ConfigDict, Field

from draftyard_api import mistakes, rules, storage_uri
from draftyard_api.names import API_VERSION, KIND
from draftyard_api.rule import Violation, violations
from draftyard_api.schema import Model, TextMap
from draftyard_api.spec import DraftTrainingSpec

Json = Any

STAND_INS: Mapping[str, Json] = {
    "apiVersion": API_VERSION,
    "kind": KIND,
    "metadata": {"name": "placeholder"},
    "spec": {},
    "mode": "Offline",
    "target": {"model": "org/name"},
    "model": "org/name",
    "data": {"source": {"file": {"uri": "pvc://claim/path"}}},
    "source": {"file": {"uri": "pvc://claim/path"}},
    "workspace": {"pvc": {"existingClaim": "claim"}},
    "uri": "pvc://claim/path",
    "size": "1Gi",
}
"""For required fields that are missing or wrong, so that the rest of a document can still be checked."""
OPEN_OBJECTS = ("templateKwargs", "affinity", "topologySpreadConstraints")
"""Passed on as they are, so that a null in them means something."""


class SpecErrors(Exception):
    """All that is wrong with a document: one line each, with the field's path, what was given, what is accepted."""

    def __init__(self, errors: Sequence[str]) -> None:
        super().__init__("\n".join(errors))
        self.errors = list(errors)


class Metadata(Model):
    """The part of an object's metadata that a run reads; what else a cluster writes there is left alone."""

    model_config = ConfigDict(extra="ignore")

    name: Annotated[str, Field(min_length=1, max_length=253)]
    """Name of the run: at most 40 characters."""
    namespace: str | None = None
    """Kubernetes namespace."""
    labels: TextMap | None = None
    """Kubernetes labels."""
    annotations: TextMap | None = None
    """Kubernetes annotations."""


class DraftTraining(Model):
    """The object as a person writes it."""

    api_version: Literal["draftyard.dev/v1alpha1"]
    """API group and version."""
    kind: Literal["DraftTraining"]
    """Kind."""
    metadata: Metadata
    """Name and namespace."""
    spec: DraftTrainingSpec
    """What is wanted."""


class OneKeyOnce(yaml.SafeLoader):
    """Reads YAML as the API server does: a field that is written twice is a mistake, not the last one's win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A block of fields. Raises yaml.YAMLError for a field that is there already."""
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen and key.value != "<<":
                raise yaml.MarkedYAMLError(problem=f"given {key.value} twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def load(path: Path, local: bool = True) -> DraftTraining:
    """Read a file. Raises SpecErrors with all that is wrong; `local` runs may use `file://` locations."""
    return check(read(path), local)


def read(path: Path) -> Json:
    """The one document of a file, as JSON. Raises SpecErrors."""
    try:
        found = [one for one in yaml.load_all(path.read_text(), OneKeyOnce) if one is not None]
    except OSError as error:
        raise SpecErrors([f"{path}: {error.strerror}; accepted: a file with one DraftTraining"]) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SpecErrors([f"{path}: {' '.join(str(error).split())}; accepted: YAML"]) from error
    if len(found) != 1:
        raise SpecErrors([f"{path}: given {len(found)} documents; accepted: one DraftTraining"])
    if not isinstance(found[0], dict):
        raise SpecErrors([f"{path}: given {mistakes.show(found[0])}; accepted: a DraftTraining, a block of fields"])
    # What YAML takes for a date was written as text.
    return json.loads(json.dumps(found[0], default=str))


def check(raw: Mapping[str, Json], local: bool = True) -> DraftTraining:
    """Check a document as JSON. Raises SpecErrors with schema errors and broken rules together."""
    # The status of an object that was read from a cluster is nothing that one asks for.
    asked = without_nulls({name: value for name, value in raw.items() if name != "status"})
    found = mistakes.find(DraftTraining, asked, STAND_INS)
    training = mistakes.parse(DraftTraining, found.repaired)
    told = training.model_dump(mode="json", by_alias=True, exclude_none=True)
    broken = [
        f"{violation.path}: {violation.message}"
        for violation in violations(rules.RULES, told)
        if not found.touches(violation.reads) and not (local and is_only_local(violation))
    ]
    if found.messages or broken:
        raise SpecErrors([*found.messages, *broken])
    return training


def is_only_local(violation: Violation) -> bool:
    """Whether a rule refuses no more than a location that one machine can open."""
    return violation.rule.takes_files and storage_uri.is_file(str(violation.values[0]))


def without_nulls(value: Json) -> Json:
    """A document as the API server stores it: a field without a value is absent, and takes its default."""
    if isinstance(value, list):
        return [without_nulls(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    return {
        name: inner if name in OPEN_OBJECTS else without_nulls(inner)
        for name, inner in value.items()
        if inner is not None
    }
