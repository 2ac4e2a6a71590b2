"""Small values: intervals, times, configuration, and objects as runs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from world import ONLINE, spec

from draftyard_api.status import Phase
from draftyard_operator import config, intervals, times
from draftyard_operator.run import is_terminal, named_claims, read_run, read_status

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


@given(st.sets(st.integers(0, 300)))
def test_intervals_say_the_same_numbers(numbers):
    text = intervals.render(numbers)
    assert intervals.parse(text) == tuple(sorted(numbers))
    assert intervals.count(text) == len(numbers)


@pytest.mark.parametrize(
    ("text", "most", "shown"),
    [
        ("0-9,12", 6, "0-9,12"),
        ("", 6, ""),
        ("0,2,4,6,8,10,12,14,16", 20, "0,2,4,6,… (9 in all)"),
        ("100-199,300-399,500", 18, "… (201 in all)"),
    ],
)
def test_a_set_that_is_cut_says_so_and_how_many_there_are(text, most, shown):
    assert intervals.shorten(text, most) == shown
    assert len(shown) <= most


@settings(deadline=None)
@given(st.sets(st.integers(0, 9999)), st.integers(40, 2000))
def test_any_set_that_is_cut_begins_with_whole_intervals(numbers, most):
    text = intervals.render(numbers)
    shown = intervals.shorten(text, most)
    assert len(shown) <= most
    if shown != text:
        begin, _, tail = shown.rpartition("…")
        assert set(intervals.parse(begin.rstrip(","))) <= numbers
        assert f",{text},".startswith(f",{begin}" if begin else "")
        assert tail == f" ({len(numbers)} in all)"


def test_intervals_are_written_as_kubernetes_writes_them():
    assert intervals.render([0, 1, 2, 9, 12, 13]) == "0-2,9,12-13"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (40, "40s"), (90, "1m30s"), (21517, "5h58m"), (3600, "1h"), (90000, "1d1h"), (86430, "1d")],
)
def test_durations(seconds, text):
    assert times.duration(seconds) == text


def test_times_survive_and_never_run_backwards():
    assert times.parse(times.render(NOON)) == NOON
    assert times.render(NOON) == "2026-11-20T12:00:00Z"
    assert times.seconds_since(times.render(NOON), NOON + timedelta(seconds=5)) == 5
    assert times.seconds_since(times.render(NOON), NOON - timedelta(days=5)) == 0


# -- Configuration ------------------------------------------------------------------------------


def test_a_configuration_is_read(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(
        "trainerImage: registry.example/trainer:1\ngpuResource: ''\nallowedImages: ['registry.example/*']\n"
    )
    read = config.load(path)
    assert (read.gpu_resource, read.resync_seconds, read.max_parallelism) == ("", 60, 1000)
    assert read.allows_image("registry.example/other:2")
    assert read.allows_image(read.trainer_image)
    assert not read.allows_image("elsewhere.example/other:2")
    assert not read.allows_service_account("admin")


@pytest.mark.parametrize(
    ("pattern", "fits", "does_not"),
    [
        ("a/b*", "a/b:1", "a/c:1"),
        ("a/[bc]", "a/[bc]", "a/b"),
        ("a?", "a?", "ab"),
        ("*/trainer@*", "x/trainer@1", "x/t"),
    ],
)
def test_nothing_but_a_star_is_special_in_an_allowed_name(pattern, fits, does_not):
    """As in the chart's admission policy: both must let the same runs through."""
    assert config.matches(fits, [pattern])
    assert not config.matches(does_not, [pattern])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}", "trainerImage"),
        ("trainerImage: x\nresyncSeconds: 1", "resyncSeconds"),
        ("trainerImage: x\ntypo: 1", "typo"),
        ("a: [", "accepted: YAML"),
    ],
)
def test_a_wrong_configuration_names_the_field(tmp_path, text, words):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=words):
        config.load(path)


def test_a_configuration_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="accepted: a YAML file with trainerImage"):
        config.load(tmp_path / "none.yaml")


# -- Objects ------------------------------------------------------------------------------------


def found(given, **status):
    metadata = {"name": "r1", "namespace": "team", "uid": "u", "resourceVersion": "1"}
    return {
        "apiVersion": "draftyard.dev/v1alpha1",
        "kind": "DraftTraining",
        "metadata": metadata,
        "spec": given,
        "status": status,
    }


def test_an_object_that_cannot_be_read_says_all_that_is_wrong():
    run = read_run(found(spec(ONLINE, mode="Sideways", train={"epochs": "two"})))
    assert run.spec is None
    assert {error.partition(":")[0] for error in run.spec_errors} >= {"spec.mode", "spec.train.epochs"}


@pytest.mark.parametrize(
    "status",
    [
        {"phase": "Dreaming"},
        {"phase": "Running", "newer": {"deep": [1]}},
        {"phase": "Running", "plan": {"basis": "Guessed"}, "stages": [{"name": "odd", "state": "Running"}]},
        {"phase": "Running", "conditions": [{"type": "Odd"}, 5]},
        {"phase": "Running", "history": "none"},
    ],
    ids=["an unknown phase", "an unknown field", "unknown values", "broken conditions", "another type"],
)
def test_a_status_of_another_version_is_read_as_far_as_it_goes(status):
    read = read_status(status | {"observedGeneration": 7})
    assert read.observed_generation == 7
    assert read.phase in (None, Phase.RUNNING)


@pytest.mark.parametrize(
    ("kind", "truth", "is_over"), [("Complete", "True", True), ("Failed", "False", False), ("Failed", "True", True)]
)
def test_an_ended_run_is_known_by_its_conditions(kind, truth, is_over):
    told = {"type": kind, "status": truth, "reason": "x", "message": "", "lastTransitionTime": "t"}
    assert is_terminal(read_status({"conditions": [told]})) is is_over


def test_claims_that_locations_name():
    blocks = {
        "target": {"model": "pvc://models/llama"},
        "draft": {"initFrom": "pvc://drafts/r0"},
        "data": {"source": {"file": {"uri": "pvc://models/chat.jsonl"}}},
    }
    assert named_claims(read_run(found(spec(ONLINE, **blocks))).wanted) == ("models", "drafts")
    asked = {"promptSets": ["file"], "promptFile": {"uri": "pvc://prompts/mine.jsonl"}}
    assert named_claims(read_run(found(spec(ONLINE, **blocks, evaluate=asked))).wanted)[-1] == "prompts"
