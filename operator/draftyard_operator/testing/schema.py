"""What the API server does with a structural schema: drop unknown fields, fill in defaults, refuse the rest.

CEL rules are not evaluated: a real API server runs them in tests/cluster.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any

Json = Any
TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
}
ROOT = ("apiVersion", "kind", "metadata")
"""Fields that the API server handles itself."""


def pruned(value: Json, schema: Json, *, root: bool = False) -> Json:
    """The value without fields that the schema does not know, and without null."""
    if isinstance(value, list):
        return [pruned(item, schema.get("items", {})) for item in value]
    if not isinstance(value, dict):
        return value
    known = schema.get("properties", {})
    values = schema.get("additionalProperties")
    open_ended = schema.get("x-kubernetes-preserve-unknown-fields", False)
    kept = {}
    for name, inner in value.items():
        if root and name in ROOT:
            kept[name] = inner
        elif inner is None:
            continue
        elif name in known:
            kept[name] = pruned(inner, known[name])
        elif values is not None:
            kept[name] = pruned(inner, values)
        elif open_ended:
            kept[name] = inner
    return kept


def defaulted(value: Json, schema: Json) -> Json:
    """The value with defaults where a field is missing. A default is itself filled in from below."""
    if isinstance(value, list):
        return [defaulted(item, schema.get("items", {})) for item in value]
    if not isinstance(value, dict):
        return value
    filled = dict(value)
    for name, inner in schema.get("properties", {}).items():
        if name not in filled and "default" in inner:
            filled[name] = copy.deepcopy(inner["default"])
        if name in filled:
            filled[name] = defaulted(filled[name], inner)
    values = schema.get("additionalProperties")
    if values:
        filled |= {name: defaulted(inner, values) for name, inner in filled.items() if name in value}
    return filled


def mistakes(value: Json, schema: Json, path: str = "") -> Iterator[tuple[str, str]]:
    """Fields and what is wrong with them."""
    if schema.get("x-kubernetes-int-or-string"):
        if isinstance(value, bool) or not isinstance(value, int | str):
            yield path, f"Invalid value: {value!r}: must be of type integer or string"
        elif isinstance(value, str):
            yield from of_text(value, schema, path)
        return
    wanted = schema.get("type")
    if wanted and not has_type(value, wanted):
        yield path, f'Invalid value: "{type(value).__name__}": must be of type {wanted}'
        return
    if "enum" in schema and value not in schema["enum"]:
        yield path, f"Unsupported value: {value!r}: supported values: {', '.join(map(repr, schema['enum']))}"
    match value:
        case dict():
            yield from of_object(value, schema, path)
        case list():
            yield from of_list(value, schema, path)
        case str():
            yield from of_text(value, schema, path)
        case int() | float():
            yield from of_number(value, schema, path)


def has_type(value: Json, wanted: str) -> bool:
    """Whether a value has a type; true is no number."""
    if isinstance(value, bool):
        return wanted == "boolean"
    if wanted == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, TYPES[wanted])


def of_object(value: Json, schema: Json, path: str) -> Iterator[tuple[str, str]]:
    """What is wrong with an object."""
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{path}.{name}".lstrip("."), "Required value"
    if len(value) > schema.get("maxProperties", len(value)):
        yield path, f"Too many: {len(value)}: must have at most {schema['maxProperties']} items"
    known, values = schema.get("properties", {}), schema.get("additionalProperties")
    for name, inner in value.items():
        below = known.get(name, values)
        if below:
            yield from mistakes(inner, below, f"{path}.{name}".lstrip("."))


def of_list(value: Json, schema: Json, path: str) -> Iterator[tuple[str, str]]:
    """What is wrong with a list."""
    if len(value) > schema.get("maxItems", len(value)):
        yield path, f"Too many: {len(value)}: must have at most {schema['maxItems']} items"
    if len(value) < schema.get("minItems", 0):
        yield path, f"Invalid value: {len(value)}: should have at least {schema['minItems']} items"
    keys = schema.get("x-kubernetes-list-map-keys")
    if keys:
        seen = [tuple(item.get(key) for key in keys) for item in value if isinstance(item, dict)]
        for at, entry in enumerate(seen):
            if entry in seen[:at]:
                yield f"{path}[{at}]", f"Duplicate value: {entry!r}"
    for at, item in enumerate(value):
        yield from mistakes(item, schema.get("items", {}), f"{path}[{at}]")


def of_text(value: str, schema: Json, path: str) -> Iterator[tuple[str, str]]:
    """What is wrong with a text."""
    if len(value) > schema.get("maxLength", len(value)):
        yield path, f"Too long: may not be more than {schema['maxLength']} bytes"
    if len(value) < schema.get("minLength", 0):
        yield path, f"Invalid value: {value!r}: should be at least {schema['minLength']} chars long"
    if "pattern" in schema and not re.search(schema["pattern"], value):
        yield path, f"Invalid value: {value!r}: should match '{schema['pattern']}'"


def of_number(value: float, schema: Json, path: str) -> Iterator[tuple[str, str]]:
    """What is wrong with a number."""
    least, most = schema.get("minimum"), schema.get("maximum")
    if least is not None and (value < least or (schema.get("exclusiveMinimum") and value == least)):
        yield path, f"Invalid value: {value}: should be greater than or equal to {least}"
    if most is not None and (value > most or (schema.get("exclusiveMaximum") and value == most)):
        yield path, f"Invalid value: {value}: should be less than or equal to {most}"
