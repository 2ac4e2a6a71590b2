"""One JSON line per action, and nothing that should not be in it."""

from __future__ import annotations

import io
import json
import logging

import pytest
from world import NAME, NAMESPACE, World

from draftyard_operator import logs


@pytest.fixture
def lines():
    """Lines that the process has logged since; the root logger is put back afterwards."""
    root, objects = logging.getLogger(), logging.getLogger("kopf.objects")
    before = root.handlers[:], root.level, objects.level
    stream = io.StringIO()
    logs.configure(stream)
    yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    objects.setLevel(before[2])


def test_a_line_says_what_was_given_in_one_order(lines):
    given = {"error": ValueError("no\nmore"), "child": "c", "action": "create", "run": "r", "namespace": "n",
             "attempt": 2, "stage": "train", "generation": 3, "uid": "u", "duration_ms": 7}  # fmt: skip
    logs.LOG.warning("made %s", "c", extra=given)
    (line,) = lines()
    assert list(line) == [
        "ts", "level", "msg", "namespace", "name", "uid", "generation", "stage", "attempt", "action", "child",
        "duration_ms", "error",
    ]  # fmt: skip
    assert (line["level"], line["msg"], line["name"]) == ("warning", "made c", "r")
    assert (line["attempt"], line["duration_ms"], line["error"]) == (2, 7, "ValueError: no")
    assert line["ts"].endswith("+00:00")


def test_a_line_is_one_line_whatever_is_in_it(lines):
    logs.LOG.error("first\nsecond", extra={"error": "x" * 5000, "child": 'a"\nb'})
    (line,) = lines()
    assert (line["msg"], len(line["error"])) == ("first", logs.MAX_TEXT)
    assert line["child"] == 'a"\nb'


def test_an_exception_is_told_in_short(lines):
    try:
        raise RuntimeError("broken\nTOKEN=secret")
    except RuntimeError:
        logs.LOG.exception("it failed")
    (line,) = lines()
    assert line["error"] == "RuntimeError: broken"
    assert logs.short(KeyError()) == "KeyError"


def test_kopf_says_nothing_of_objects(lines):
    logging.getLogger("kopf.objects").info("a whole object")
    logging.getLogger("kopf._core").debug("a whole request")
    logging.getLogger("kopf._core").info("starts")
    assert [line["msg"] for line in lines()] == ["starts"]


def test_a_pass_tells_each_action_once_and_no_bodies(lines):
    World().settle()
    made = [line for line in lines() if line.get("action") == "create"]
    assert {line["kind"] for line in made} == {"configmaps", "jobs", "persistentvolumeclaims"}
    assert len({(line["kind"], line["child"]) for line in made}) == len(made)
    assert {(line["namespace"], line["name"]) for line in made} == {(NAMESPACE, NAME)}
    assert [(line["stage"], line["attempt"]) for line in made if line["kind"] == "jobs"] == [("prepare", "1")]
    assert all("spec" not in json.dumps(line) for line in made)
