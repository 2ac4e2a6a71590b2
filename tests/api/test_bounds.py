"""Any document at all gets an answer that helps."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Iterator
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from probes import FULL, PROBES, SPEC
from rule_cases import errors_of

Json = Any


def test_the_full_document_is_good():
    assert errors_of(FULL) == []


def test_every_field_is_probed():
    assert len(PROBES) > 1500
    assert {probe.place[0] for probe in PROBES} == set(SPEC["properties"])


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
