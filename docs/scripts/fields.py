"""Every field of a DraftTraining, from the schema of the kind: what `kubectl explain` says, as a page."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from tables import table

from draftyard_api import crd, frozen
from draftyard_api.rules import RULES

Json = Any
PODS = ("spec.prepare.pod", "spec.generate.pod", "spec.train.pod", "spec.evaluate.pod")
"""They have the fields of spec.pod."""


def spec() -> str:
    """What is asked for."""
    return "\n".join(sections("spec"))


def status() -> str:
    """What is told."""
    return "\n".join(sections("status"))


def sections(block: str) -> Iterator[str]:
    """One heading and one table for each block of fields, from the outside in."""
    schema = crd.root_schema()["properties"][block]
    for path, node in blocks(block, schema):
        rows = [row(path, name, inner, node) for name, inner in node["properties"].items()]
        heads = ["field", "type", "default", "what it is"] if block == "spec" else ["field", "type", "what it is"]
        about = node.get("description", "").replace("\n", " ")
        yield f"### {path}\n\n{about}\n\n{table(heads, [[*one] for one in columns(rows, block)])}{rules(path)}"


def columns(rows: list[list[str]], block: str) -> Iterator[list[str]]:
    """A status has no defaults."""
    for name, kind, default, what in rows:
        yield [name, kind, default, what] if block == "spec" else [name, kind, what]


def blocks(path: str, node: Json) -> Iterator[tuple[str, Json]]:
    """Every schema with fields, with its path; pods of stages are told once."""
    if path in PODS:
        return
    if "properties" in node:
        yield path, node
    for name, inner in node.get("properties", {}).items():
        yield from blocks(f"{path}.{name}", inner)
        if "items" in inner:
            yield from blocks(f"{path}.{name}[]", inner["items"])


def row(path: str, name: str, node: Json, parent: Json) -> list[str]:
    """One field."""
    what = node.get("description", "").replace("\n", " ")
    if name in parent.get("required", ()):
        what = f"**Required.** {what}"
    if f"{path}.{name}" in PODS:
        what = f"{what} As [spec.pod](#specpod)."
    elif "properties" in node or "properties" in node.get("items", {}):
        suffix = "[]" if "items" in node else ""
        what = f"{what} [More](#{anchor(f'{path}.{name}{suffix}')})."
    return [f"`{name}`", kind(node), default(node), what]


def anchor(path: str) -> str:
    """The anchor of a block's heading, as MyST and GitHub make them: without dots."""
    return "".join(letter for letter in path.lower() if letter.isalnum() or letter in "-_")


def kind(node: Json) -> str:
    """The type, with its choices and bounds."""
    if "enum" in node:
        return ", ".join(f"`{value}`" for value in node["enum"])
    if node.get("x-kubernetes-int-or-string"):
        return "quantity"
    if "items" in node:
        return f"list of {kind(node['items'])}"
    if "additionalProperties" in node:
        return "map of texts"
    words = {"integer": "whole number", "string": "text", "boolean": "`true`, `false`", "object": "block"}
    told = words.get(node.get("type", "object"), node.get("type", "object"))
    return f"{told}{bounds(node)}"


def bounds(node: Json) -> str:
    """Smallest and largest number, where there are some."""
    low, high = node.get("minimum"), node.get("maximum")
    if low is not None and node.get("exclusiveMinimum"):
        return f", above {low:g}" + (f", up to {high:g}" if high is not None else "")
    if low is not None and high is not None:
        return f", {low} to {high}"
    return f", from {low}" if low is not None else ""


def default(node: Json) -> str:
    """The default, as one writes it; a block shows its own."""
    if "default" not in node or "properties" in node:
        return ""
    return f"`{json.dumps(node['default'])}`"


def rules(path: str) -> str:
    """What several fields must be together: what is accepted, as the error says it."""
    found = [(rule.field, rule.text) for rule in RULES if rule.at == path]
    found += [(field.field, field.text) for field in frozen.GROWING if field.at == path]
    if not found:
        return ""
    told = [f"- `{field or path.rpartition('.')[2]}`: {accepted(text)}" for field, text in found]
    return "\nRules, beside the types:\n\n" + "\n".join(told) + "\n"


def accepted(text: str) -> str:
    """What an error says to be accepted, without the numbers of one document."""
    said = text.partition("accepted: ")[2] or text
    return re.sub(r" \(%[.\d]*[dfs]\)| = %[.\d]*[dfs]", "", said)
