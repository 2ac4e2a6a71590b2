"""What is wrong with a document, in words: every mistake with its path, what was given and what is accepted.

pydantic stops at the schema, and rules need a whole document. So wrong values are taken out, stand-ins are put where
something is required, and the rest is checked; whoever reads what is left is told which paths are not as written.
"""

from __future__ import annotations

import copy
import difflib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, TypeVar, get_args

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from draftyard_api.schema import ENV_NAME_PATTERN, NAME_PATTERN, QUANTITY_PATTERN, Model

Json = Any
Parsed = TypeVar("Parsed", bound=Model)
Place = tuple[int | str, ...]

MAX_ROUNDS = 20
ALIKE = 0.7
MAX_SHOWN = 80
TYPES = {
    "float_type": "a number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "finite_number": "a number",
    "string_type": "a text",
    "bool_type": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "model_type": "a block of fields",
    "dict_type": "a block of fields",
}
BOUNDS = {
    "ge": "at least",
    "gt": "above",
    "le": "at most",
    "lt": "below",
}
PATTERNS = {
    QUANTITY_PATTERN: "a quantity such as 8, 500m or 32Gi",
    NAME_PATTERN: 'a name of a-z, 0-9, "-" and "."',
    ENV_NAME_PATTERN: 'letters, digits and "_", no digit first',
}


@dataclass(frozen=True)
class Mistakes:
    """What the schema has against a document."""

    messages: tuple[str, ...]
    repaired: Json
    """A copy that the schema takes."""
    wrong: tuple[str, ...]
    """Paths that are not there as they were written."""

    def touches(self, paths: Iterable[str]) -> bool:
        """Whether one of the paths is, or lies in, something that is not as it was written."""
        return any(is_within(path, self.wrong) for path in paths)


def find(model: type[Model], document: Mapping[str, Json], stand_ins: Mapping[str, Json]) -> Mistakes:
    """Everything that the schema refuses, one message per field."""
    messages: list[str] = []
    wrong: list[str] = []
    repaired = copy.deepcopy(dict(document))
    for _ in range(MAX_ROUNDS):
        try:
            parse(model, repaired)
            return Mistakes(tuple(messages), repaired, tuple(wrong))
        except ValidationError as error:
            found = list(distinct(error.errors(), repaired))
        # A stand-in that is wrong again is no mistake of the document.
        known = tuple(wrong)
        misspelled = misspellings(model, found)
        for place, details in found:
            if not is_within(dotted(place), known) and place not in misspelled:
                messages.append(f"{dotted(place)}: {explain(model, place, details)}")
        for place, details in found:
            wrong.append(dotted(repair(repaired, place, details["type"], stand_ins)))
    raise AssertionError(f"no repair of {messages}")


def parse(model: type[Parsed], document: Json) -> Parsed:
    """Read JSON as a person writes it: names in camelCase only. Raises pydantic.ValidationError."""
    return model.model_validate_json(json.dumps(document), by_alias=True, by_name=False)


def is_within(path: str, others: Sequence[str]) -> bool:
    """Whether a path is one of the others, or lies below one."""
    return any(path == other or path.startswith((f"{other}.", f"{other}[")) for other in others)


def distinct(errors: Sequence[ErrorDetails], document: Json) -> Iterator[tuple[Place, ErrorDetails]]:
    """One error per field: the members of a union each complain about the same value."""
    seen: set[Place] = set()
    for details in errors:
        place = place_of(details, document)
        if place not in seen:
            seen.add(place)
            yield place, details


def place_of(details: ErrorDetails, document: Json) -> Place:
    """Where an error is; pydantic's path also names the member of a union, which no document has."""
    place: list[int | str] = []
    block = document
    for part in details["loc"]:
        if isinstance(block, dict) and (part in block or details["type"] == "missing"):
            block = block.get(str(part))
        elif isinstance(block, list) and isinstance(part, int):
            block = block[part]
        else:
            break
        place.append(part)
    return tuple(place)


def misspellings(model: type[Model], found: Sequence[tuple[Place, ErrorDetails]]) -> set[Place]:
    """Required fields that are missing because they are there under another name: one mistake, not two."""
    unknown = [place for place, details in found if details["type"] == "extra_forbidden"]
    meant = {(*place[:-1], alike) for place in unknown if (alike := nearest(model, place))}
    return {place for place, details in found if details["type"] == "missing" and place in meant}


def repair(document: Json, place: Place, kind: str, stand_ins: Mapping[str, Json]) -> Place:
    """Take a wrong value out, and put a stand-in where one is required. Returns the place that is not as written."""
    *parents, last = place
    block = document
    for part in parents:
        block = inside(block, part)
    if kind == "missing":
        block[last] = copy.deepcopy(stand_ins.get(str(last), "placeholder"))
    elif isinstance(last, int):
        # The whole list goes: what is left of it would be judged as something that nobody wrote.
        return repair(document, tuple(parents), kind, stand_ins)
    else:
        block.pop(last, None)
    return place


def inside(block: Json, part: int | str) -> Json:
    """What stands in a block; an empty block where it has gone with its list."""
    try:
        return block[part]
    except (KeyError, IndexError):
        return {}


def dotted(place: Place) -> str:
    """`spec.pod.env[0].name`."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")


# -- Words ------------------------------------------------------------------------------------------


def explain(model: type[Model], place: Place, details: ErrorDetails) -> str:
    """What was given and what is accepted."""
    kind, value = details["type"], details["input"]
    if kind == "missing":
        return "given nothing; accepted: a value, since it is required"
    if kind == "extra_forbidden":
        return f"given an unknown field; accepted: {legal_names(model, place)}"
    if len(details["loc"]) > len(place):
        # A member of the only union that there is.
        return f"given {show(value)}; accepted: {PATTERNS[QUANTITY_PATTERN]}"
    if kind in TYPES:
        return f"given {show(value)}{type_words(value, kind)}; accepted: {TYPES[kind]}{number_hint(value, kind)}"
    return f"given {show(value)}; accepted: {accepted_words(details)}"


def accepted_words(details: ErrorDetails) -> str:
    """Values that a field of the right type accepts."""
    context = details.get("ctx", {})
    if "expected" in context:
        return str(context["expected"]).replace("'", '"')
    if "pattern" in context:
        return PATTERNS.get(context["pattern"], f"what matches {context['pattern']}")
    return bound_words(context) or details["msg"].lower()


def bound_words(context: Mapping[str, Any]) -> str | None:
    """A limit on a number, a text or a list."""
    for name, words in BOUNDS.items():
        if name in context:
            bound = context[name]
            return f"{words} {int(bound) if bound == int(bound) else bound}"
    what = "characters" if "actual_length" not in context else "entries"
    for name, words in (("max_length", "at most"), ("min_length", "at least")):
        if name in context:
            return f"{words} {context[name]} {what}"
    return None


def type_words(value: Json, kind: str) -> str:
    """Says that a number in quotes is none; other types can be seen."""
    return " (a text)" if isinstance(value, str) and kind != "string_type" else ""


def number_hint(value: Json, kind: str) -> str:
    """How a number must be written that YAML takes for a text."""
    if kind not in ("float_type", "int_type") or not isinstance(value, str):
        return ""
    try:
        number = Decimal(value)
    except InvalidOperation:
        return ""
    return f", write {number:f}" if number.is_finite() else ""


def show(value: Json) -> str:
    """A value as JSON, cut when it is long."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."


def legal_names(model: type[Model], place: Place) -> str:
    """The fields of the block in which an unknown one stands; the most alike alone, if there is one."""
    alike = nearest(model, place)
    return f"{alike} (did you mean that?)" if alike else ", ".join(field_names(model, place[:-1]))


def nearest(model: type[Model], place: Place) -> str | None:
    """The field that an unknown one looks like, or whose words begin with its letters: `lr` for `learningRate`."""
    given = str(place[-1]).lower()
    names = {name.lower(): name for name in field_names(model, place[:-1])}
    short = {name[0] + "".join(filter(str.isupper, name[1:])).lower(): name for name in names.values()}
    alike = difflib.get_close_matches(given, names, n=1, cutoff=ALIKE)
    return names[alike[0]] if alike else short.get(given)


def field_names(model: type[Model], parents: Place) -> list[str]:
    """Names of the fields of the block at a place."""
    for part in parents:
        if isinstance(part, int):
            continue
        field = next((info for info in model.model_fields.values() if info.alias == part), None)
        inner = inner_model(field.annotation) if field else None
        if inner is None:
            return []
        model = inner
    return [str(info.alias) for info in model.model_fields.values()]


def inner_model(annotation: Any) -> type[Model] | None:
    """The model inside an optional, a list or an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, Model):
        return annotation
    return next((model for inner in get_args(annotation) if (model := inner_model(inner)) is not None), None)
