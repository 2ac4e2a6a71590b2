"""Who gets quota, who waits, and who is evicted."""

from __future__ import annotations

import pytest
from quota import Claim, Flavor, schedule

FLAVOR = Flavor("spot")
QUEUES = {"gpus": 4}


def claim(uid, pods=1, **fields):
    return Claim(**{"uid": uid, "queue": "gpus", "pods": pods, "age": uid} | fields)


def decide(*claims):
    return schedule(QUEUES, FLAVOR, claims)


ADMITTED = [
    pytest.param([claim("a", 3), claim("b")], {"a": 3, "b": 1}, id="both fit"),
    pytest.param([claim("b", 3), claim("a", 3)], {"a": 3}, id="the older one first"),
    pytest.param([claim("a", 3), claim("b", 3, priority=1)], {"b": 3}, id="the more important one first"),
    pytest.param([claim("a", 5), claim("b")], {}, id="nobody overtakes"),
    pytest.param([claim("a", 6, least=2)], {"a": 4}, id="a part is enough"),
    pytest.param([claim("a", 3, has_quota=True), claim("b", 6, least=2)], {}, id="the part is too small"),
    pytest.param([claim("a", 4, has_quota=True), claim("b", queue="cpus")], {}, id="no such queue"),
]


@pytest.mark.parametrize(("claims", "admitted"), ADMITTED)
def test_quota_is_given(claims, admitted):
    assert decide(*claims).admitted == admitted


EVICTED = [
    pytest.param([claim("a", 3, has_quota=True), claim("b", 3, has_quota=True)], {"b"}, id="quota was taken away"),
    pytest.param([claim("a", 4, has_quota=True), claim("b", 2, priority=1)], {"a"}, id="for a more important one"),
    pytest.param([claim("a", 4, has_quota=True), claim("b", 2)], set(), id="never for an equal one"),
    pytest.param([claim("a", 4, has_quota=True), claim("b", 6, priority=1)], set(), id="not if it would not be enough"),
    pytest.param(
        [claim("a", 2, has_quota=True, priority=1), claim("b", 2, has_quota=True), claim("c", 2, priority=2)],
        {"b"}, id="the least important one",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("claims", "evicted"), EVICTED)
def test_quota_is_taken(claims, evicted):
    assert set(decide(*claims).evicted) == evicted


def test_who_waits_is_told_why():
    told = decide(claim("a", 3, has_quota=True), claim("b", 3), claim("c", queue="cpus")).waiting
    why = "insufficient unused quota for pods in flavor spot, 2 more needed"
    assert told["b"] == ("Pending", f"couldn't assign flavors to pod set main: {why}")
    assert told["c"] == ("Inadmissible", "LocalQueue cpus doesn't exist")
