"""Label and field selectors, as LIST and WATCH take them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from draftyard_operator.testing.errors import ApiError

Json = Any
Selector = Callable[[Json], bool]
Term = Callable[[Mapping[str, str]], bool]

SPLIT = re.compile(r",(?![^()]*\))")
SET = re.compile(r"^(\S+)\s+(in|notin)\s+\(([^()]*)\)$")
EQUAL = re.compile(r"^([^=!\s]+)\s*(==|=|!=)\s*([^=!\s]*)$")
PRESENT = re.compile(r"^(!?)\s*([^=!\s()]+)$")


def label_selector(text: str) -> Selector:
    """Whether the labels of an object match. Raises ApiError 400 for what cannot be read."""
    terms = [label_term(part.strip()) for part in SPLIT.split(text) if part.strip()]
    return lambda found: all(term(found["metadata"].get("labels") or {}) for term in terms)


def label_term(text: str) -> Term:
    """One requirement. `!=` and `notin` also hold where the label is missing, as in Kubernetes."""
    if match := SET.match(text):
        key, operator, listed = match.groups()
        values = {value.strip() for value in listed.split(",")}
        if operator == "in":
            return lambda labels: labels.get(key) in values
        return lambda labels: labels.get(key) not in values
    if match := EQUAL.match(text):
        key, operator, value = match.groups()
        if operator == "!=":
            return lambda labels: labels.get(key) != value
        return lambda labels: labels.get(key) == value
    if match := PRESENT.match(text):
        absent, key = match.groups()
        return lambda labels: (key not in labels) if absent else (key in labels)
    raise ApiError(400, "BadRequest", f"unable to parse requirement: given {text!r}")


def field_selector(text: str) -> Selector:
    """Whether fields such as `metadata.name` have a value. Raises ApiError 400."""
    terms = [field_term(part.strip()) for part in text.split(",") if part.strip()]
    return lambda found: all(term(found) for term in terms)


def field_term(text: str) -> Selector:
    """One requirement."""
    match = EQUAL.match(text)
    if not match:
        raise ApiError(400, "BadRequest", f"unable to parse field requirement: given {text!r}")
    path, operator, value = match.groups()

    def holds(found: Json) -> bool:
        for part in path.split("."):
            found = found.get(part, "") if isinstance(found, dict) else ""
        return (str(found) == value) is (operator != "!=")

    return holds


def selector(query: Mapping[str, str]) -> Selector:
    """Both selectors of a request."""
    labels = label_selector(query.get("labelSelector", ""))
    fields = field_selector(query.get("fieldSelector", ""))
    return lambda found: labels(found) and fields(found)
