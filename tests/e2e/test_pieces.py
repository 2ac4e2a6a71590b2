"""What the points of the node are computed with."""

from __future__ import annotations

import drafts
import layout
import numpy as np
import pytest
import team
import whole_runs
from safetensors.numpy import save_file

from report import Bar


def test_changes_go_into_a_tree_and_none_takes_out():
    given = {"a": {"b": 1, "c": 2}, "d": [1]}
    assert team.merged(given, {"a": {"b": 3, "c": None}, "e": {"f": None, "g": 4}}) == {
        "a": {"b": 3}, "d": [1], "e": {"f": None, "g": 4},
    }  # fmt: skip
    assert given == {"a": {"b": 1, "c": 2}, "d": [1]}


def test_a_slow_run_is_its_example_under_another_name():
    made = team.slow("e2e-offline", "slow", workspace={"pvc": {"claimTemplate": {"reclaim": "Retain"}}})
    assert made["metadata"]["name"] == "slow"
    assert made["spec"]["retry"] == {"maxAttempts": 1, "backoffSeconds": 5}
    template = made["spec"]["workspace"]["pvc"]["claimTemplate"]
    assert (template["reclaim"], template["size"]) == ("Retain", "1Gi")


@pytest.mark.parametrize(
    ("metadata", "is_ours"),
    [
        ({"labels": {"draftyard.dev/run": "r1"}}, True),
        ({"labels": {"draftyard.dev/run": "r10"}}, False),
        ({"ownerReferences": [{"name": "r1"}]}, True),
        ({"ownerReferences": [{"name": "r1-train-a1"}]}, True),
        ({"ownerReferences": [{"name": "r10-train-a1"}]}, False),
        ({}, False),
    ],
    ids=["labelled", "of another run", "owned", "owned by a child", "owned by another's child", "nobody's"],
)
def test_labels_and_owners_say_whose_an_object_is(metadata, is_ours):
    assert team.belongs(metadata, "r1") is is_ours


def pod(*spans: tuple[str, str]):
    states = [{"state": {"terminated": {"startedAt": start, "finishedAt": end}}} for start, end in spans]
    return {"status": {"containerStatuses": states}}


def test_pods_that_ran_at_the_same_moment_are_counted():
    first, second, third = pod(("10:00", "10:05")), pod(("10:04", "10:09")), pod(("10:05", "10:06"))
    assert whole_runs.most_at_a_time([first]) == 1
    assert whole_runs.most_at_a_time([first, second]) == 2
    assert whole_runs.most_at_a_time([first, third]) == 1
    assert whole_runs.most_at_a_time([first, second, third]) == 2
    assert whole_runs.most_at_a_time([{"status": {}}]) == 0


@pytest.fixture
def kept(tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "FOLDER", tmp_path)
    (tmp_path / "drafts").mkdir()
    return lambda name, **tensors: save_file(tensors, drafts.kept(name))


def test_drafts_differ_by_their_largest_weight(kept):
    ones, whole = np.ones((2, 3), np.float32), np.arange(4)
    kept("a", w=ones, d2t=whole)
    kept("b", w=ones + np.float32(0.25), d2t=whole)
    kept("c", w=ones, d2t=whole + 2)
    assert drafts.largest_difference("a", "a") == 0
    assert drafts.largest_difference("a", "b") == 0.25
    assert drafts.largest_difference("a", "c") == 2


def test_a_draft_of_another_shape_or_none_is_infinitely_far(kept):
    kept("a", w=np.ones(3, np.float32))
    kept("b", w=np.ones(4, np.float32))
    kept("c", v=np.ones(3, np.float32))
    assert drafts.largest_difference("a", "b") == drafts.largest_difference("a", "c") == float("inf")
    assert drafts.largest_difference("a", "none") == float("inf")


def test_both_keys_are_searched_for_as_they_are_and_as_a_secret_writes_them():
    assert len(set(whole_runs.secrets())) == 4
    assert all(len(secret) > 15 for secret in whole_runs.secrets()), "a short word may stand anywhere"


def test_a_bar_says_whether_it_is_met():
    assert Bar("x", 1, "<=", 1).is_met
    assert not Bar("x", float("inf"), "<=", 120).is_met
    assert str(Bar("x", float("inf"), "<=", 120)) == "bar x inf (needs <= 120) short"
