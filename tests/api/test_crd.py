"""From models to a structural schema: one test for every difference, and the definition as a whole."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import BaseModel, Field

from draftyard_api import crd
from draftyard_api.schema import Model, Quantity
from draftyard_api.spec import DraftTrainingSpec
from draftyard_api.status import DraftTrainingStatus

Json = Any
ROOT = Path(__file__).parents[2]
FILE = ROOT / "crds/draftyard.dev_drafttrainings.yaml"
ROOT_SCHEMA = crd.root_schema()
SPEC = ROOT_SCHEMA["properties"]["spec"]
OPEN = {"affinity", "topologySpreadConstraints", "templateKwargs"}
MAX_APPLIED = 262144
"""Bytes of an annotation, which is where a client-side `kubectl apply` keeps the object."""


class Inner(Model):
    """Says what an inner block is."""

    count: int = 1
    """How many."""


class Outer(Model):
    """Says what an outer block is."""

    plain: Inner
    described: Inner = Inner(count=7)
    """Said beside the reference."""
    optional: Inner | None = None
    maybe: Annotated[int, Field(ge=1)] | None = None
    word: Literal["only"] = "only"
    words: Literal["a", "b"] = "a"
    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    size: Quantity
    free_size: Quantity | None = None
    sizes: dict[str, Quantity] | None = None
    anything: dict[str, Any] = Field(default={})
    list_of_blocks: tuple[Inner, ...] = ()
    env: tuple[Inner, ...] | None = None
    report_to: tuple[Literal["x", "y"], ...] = ()
    pair: tuple[int, int] | None = None
    snake_case_name: bool = False


SCHEMA = crd.model_schema(Outer)
FIELDS = SCHEMA["properties"]


def nodes(schema: Json, path: str = "") -> Iterator[tuple[str, Json]]:
    """Every schema inside a schema, with its path."""
    yield path, schema
    for name, inner in schema.get("properties", {}).items():
        yield from nodes(inner, f"{path}.{name}")
    for name in ("items", "additionalProperties"):
        if name in schema:
            yield from nodes(schema[name], f"{path}.{name}")


# -- Each difference --------------------------------------------------------------------------------


def test_references_are_written_out():
    assert FIELDS["plain"]["properties"]["count"] == {"default": 1, "description": "How many.", "type": "integer"}
    assert FIELDS["plain"]["description"] == "Says what an inner block is."


def test_what_stands_beside_a_reference_wins():
    assert FIELDS["described"]["default"] == {"count": 7}
    assert FIELDS["described"]["description"] == "Said beside the reference."


def test_recursion_is_refused():
    class Tree(BaseModel):
        children: list[Tree]

    Tree.model_rebuild(_types_namespace={"Tree": Tree})
    with pytest.raises(ValueError, match="Tree contains itself; accepted: a tree"):
        crd.model_schema(Tree)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["optional", "maybe", "freeSize", "env", "pair"])
def test_null_is_no_value(name: str):
    assert "default" not in FIELDS[name]
    assert "nullable" not in FIELDS[name]
    assert {"type": "null"} not in FIELDS[name].get("anyOf", [])
    assert name not in SCHEMA["required"]


def test_an_optional_field_keeps_its_bounds():
    assert FIELDS["maybe"] == {"minimum": 1, "type": "integer"}


def test_unions_are_refused():
    class Union(Model):
        either: Inner | Outer

    with pytest.raises(ValueError, match="optional members side by side"):
        crd.model_schema(Union)


@pytest.mark.parametrize("schema", [FIELDS["size"], FIELDS["freeSize"], FIELDS["sizes"]["additionalProperties"]])
def test_quantities_are_numbers_or_texts(schema: Json):
    assert schema["anyOf"] == [{"type": "integer"}, {"type": "string"}]
    assert schema["x-kubernetes-int-or-string"] is True
    assert schema["pattern"].startswith("^")
    assert schema["maxLength"] == 64
    assert "type" not in schema


def test_one_word_is_a_list_of_one():
    assert FIELDS["word"]["enum"] == ["only"]
    assert "const" not in FIELDS["word"]
    assert FIELDS["words"]["enum"] == ["a", "b"]


def test_open_bounds_are_flags():
    assert FIELDS["share"]["minimum"] == 0
    assert FIELDS["share"]["exclusiveMinimum"] is True
    assert FIELDS["share"]["maximum"] == 1
    assert FIELDS["share"]["exclusiveMaximum"] is True


def test_places_of_a_tuple_become_entries():
    assert FIELDS["pair"]["items"] == {"type": "integer"}
    assert "prefixItems" not in FIELDS["pair"]


def test_places_that_differ_are_refused():
    class Mixed(Model):
        both: tuple[int, str]

    with pytest.raises(ValueError, match="entries are alike"):
        crd.model_schema(Mixed)


def test_blocks_are_closed_by_pruning():
    assert "additionalProperties" not in SCHEMA
    assert "x-kubernetes-preserve-unknown-fields" not in SCHEMA


def test_objects_of_any_shape_are_kept():
    assert FIELDS["anything"] == {"default": {}, "type": "object", "x-kubernetes-preserve-unknown-fields": True}


def test_lists_say_how_they_merge():
    assert FIELDS["listOfBlocks"]["x-kubernetes-list-type"] == "atomic"
    assert FIELDS["reportTo"]["x-kubernetes-list-type"] == "set"
    assert FIELDS["env"]["x-kubernetes-list-type"] == "map"
    assert FIELDS["env"]["x-kubernetes-list-map-keys"] == ["name"]


def test_keywords_that_nobody_reads_are_dropped():
    found = {key for _, schema in nodes(SCHEMA) for key in schema}
    assert found & {"title", "examples", "$defs", "$ref", "discriminator", "oneOf", "uniqueItems"} == set()


def test_an_unknown_keyword_is_refused():
    with pytest.raises(ValueError, match="contentEncoding"):
        crd.structural({"type": "string", "contentEncoding": "base64"}, {})


def test_names_are_camel_case():
    assert "snakeCaseName" in FIELDS


# -- The definition ---------------------------------------------------------------------------------


def test_defaults_of_blocks_are_written_whole():
    """Defaults inside a default are not applied, and rules would look for fields that are not there."""
    train = SPEC["properties"]["train"]
    written = {name for name, inner in train["properties"].items() if "default" in inner}
    assert set(train["default"]) == written
    assert train["default"]["checkpoint"] == {"everySteps": 500, "keepLast": 3}


def test_defaults_are_those_of_the_models():
    for name, field in DraftTrainingSpec.model_fields.items():
        schema = SPEC["properties"][str(field.alias)]
        if field.is_required() or field.default is None:
            assert "default" not in schema, name
        elif isinstance(field.default, Model):
            expected = field.default.model_dump(mode="json", by_alias=True, exclude_none=True)
            assert schema["default"] == expected, name
        else:
            assert schema["default"] == field.default, name


def test_a_status_that_nobody_wrote_is_in_progress():
    assert ROOT_SCHEMA["properties"]["status"]["default"] == {"observedGeneration": -1}


def test_every_status_field_is_in_the_schema():
    """What is missing there is silently lost."""
    assert set(ROOT_SCHEMA["properties"]["status"]["properties"]) == {
        str(field.alias) for field in DraftTrainingStatus.model_fields.values()
    }


def test_only_objects_of_foreign_shape_are_open():
    found = {
        path.removesuffix(".items").rpartition(".")[2]
        for path, schema in nodes(ROOT_SCHEMA)
        if "x-kubernetes-preserve-unknown-fields" in schema
    }
    assert found == OPEN


def test_every_text_of_the_spec_is_bounded():
    unbounded = [
        path
        for path, schema in nodes(SPEC)
        if schema.get("type") == "string" and not {"maxLength", "enum"} & set(schema)
    ]
    assert unbounded == []


def test_every_list_and_map_is_bounded():
    lists = [path for path, schema in nodes(ROOT_SCHEMA) if schema.get("type") == "array" and "maxItems" not in schema]
    maps = [
        path
        for path, schema in nodes(ROOT_SCHEMA)
        if "additionalProperties" in schema and "maxProperties" not in schema
    ]
    assert (lists, maps) == ([], [])


def test_patterns_are_anchored_and_plain():
    patterns = [schema["pattern"] for _, schema in nodes(ROOT_SCHEMA) if "pattern" in schema]
    assert patterns
    assert all(pattern.startswith("^") and pattern.endswith("$") for pattern in patterns)
    assert not any(look in pattern for pattern in patterns for look in ("(?=", "(?!", "(?<"))


def test_every_field_is_described():
    assert [path for path, schema in nodes(SPEC) if path.rpartition(".")[2] not in
            ("items", "additionalProperties") and not schema.get("description")] == []  # fmt: skip


def test_columns_read_fields_that_exist():
    known = {path for path, _ in nodes(ROOT_SCHEMA)} | {".metadata.creationTimestamp"}
    version = crd.definition()["spec"]["versions"][0]
    columns = version["additionalPrinterColumns"]
    assert {column["jsonPath"] for column in columns} - known == set()
    assert [column["name"] for column in columns if "priority" not in column] == [
        "Phase", "Stage", "Progress", "ETA", "Acceptance", "Reason", "Age",
    ]  # fmt: skip


def test_names():
    made = crd.definition()
    assert made["metadata"]["name"] == "drafttrainings.draftyard.dev"
    assert made["spec"]["names"] == {
        "kind": "DraftTraining",
        "listKind": "DraftTrainingList",
        "plural": "drafttrainings",
        "singular": "drafttraining",
        "shortNames": ["dt"],
        "categories": ["draftyard"],
    }
    assert made["spec"]["versions"][0]["subresources"] == {"status": {}}


def test_it_fits_into_an_annotation():
    assert len(crd.to_yaml(crd.definition()).encode()) < MAX_APPLIED


def test_it_is_written_without_anchors_and_reads_back():
    text = crd.to_yaml(crd.definition())
    assert yaml.safe_load(text) == crd.definition()
    assert not any(
        line.strip().startswith(("*id", "&id")) or ": *id" in line or ": &id" in line for line in text.splitlines()
    )


def test_the_file_is_what_the_models_make():
    """Another process, so that no order of a set or a hash can differ."""
    done = subprocess.run(
        [sys.executable, "-m", "draftyard_api.crd"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0].startswith("# Generated by")
    assert "do not edit" in done.stdout.splitlines()[0]
    assert done.stdout == FILE.read_text(), "make crds"
