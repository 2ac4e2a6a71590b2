"""What becomes of Jobs: one table for the controller of Kubernetes and for the fake one, which must not differ."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from draftyard_api.exit_codes import ExitCode

Json = Any
CONTAINER = "generate"
NOT_COUNTED = (ExitCode.UNAVAILABLE, ExitCode.INTERRUPTED, ExitCode.FENCED)
ONE_SHARD = (ExitCode.BAD_SHARD,)
PERMANENT = tuple(sorted(set(ExitCode) - {ExitCode.OK, ExitCode.ERROR, *NOT_COUNTED, *ONE_SHARD}))


def on_codes(action: str, codes: tuple[int, ...]) -> Json:
    return {"action": action, "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": [*codes]}}


POLICY: Json = {
    "rules": [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        on_codes("Ignore", NOT_COUNTED),
        on_codes("FailIndex", ONE_SHARD),
        on_codes("FailJob", PERMANENT),
    ]
}
SHARDS: Json = {
    "completionMode": "Indexed",
    "completions": 2,
    "parallelism": 2,
    "backoffLimitPerIndex": 1,
    "maxFailedIndexes": 0,
    "podReplacementPolicy": "Failed",
    "podFailurePolicy": POLICY,
}
"""Two shards, with what the operator asks for."""
ONE_POD: Json = {
    "completions": 1,
    "parallelism": 1,
    "backoffLimit": 0,
    "podReplacementPolicy": "Failed",
    "podFailurePolicy": {"rules": [rule for rule in POLICY["rules"] if rule["action"] != "FailIndex"]},
}
"""One pod, likewise."""


@dataclass(frozen=True)
class End:
    """How the pod of an index ends."""

    index: int
    code: int
    disrupted: bool = False


@dataclass(frozen=True)
class Case:
    """A Job, how its pods end one after the other, and how it ends."""

    spec: Json
    ends: tuple[End, ...]
    condition: str
    reason: str
    completed: str | None = None
    """Indexes, as the status writes them."""
    failed: str | None = None
    changes: Json = field(default_factory=dict)
    """Of the spec."""


def case(about: str, *given: Any, **more: Any) -> Any:
    return pytest.param(Case(*given, **more), id=about)


DONE = ("Complete", "CompletionsReached")
CASES = [
    case("all shards are made", SHARDS, (End(0, 0), End(1, 0)), *DONE, completed="0,1", failed=""),
    case(
        "what is not counted is tried again", SHARDS,
        (*(End(0, code) for code in NOT_COUNTED), End(0, 0), End(1, 0)), *DONE, completed="0,1", failed="",
    ),
    case(
        "a disruption is not counted", SHARDS, (End(0, 137, True), End(0, 0), End(1, 0)), *DONE,
        changes={"backoffLimitPerIndex": 0},
    ),
    case("a permanent end ends all", SHARDS, (End(0, PERMANENT[0]), End(1, 75)), "Failed", "PodFailurePolicy"),
    case("the last permanent one too", SHARDS, (End(0, PERMANENT[-1]), End(1, 75)), "Failed", "PodFailurePolicy"),
    case(
        "a bad shard is given up at once", SHARDS, (End(0, 80), End(1, 0)), "Failed", "FailedIndexes",
        completed="1", failed="0", changes={"maxFailedIndexes": 1},
    ),
    case(
        "more bad shards than may be", SHARDS, (End(0, 80), End(1, 75)), "Failed", "MaxFailedIndexesExceeded",
        failed="0",
    ),
    case(
        "a shard that fails too often", SHARDS, (End(0, 1), End(1, 0)), "Failed", "FailedIndexes",
        completed="1", failed="0", changes={"maxFailedIndexes": 1, "backoffLimitPerIndex": 0},
    ),
    case("one pod that is done", ONE_POD, (End(0, 0),), *DONE),
    case("one pod that fails", ONE_POD, (End(0, 1),), "Failed", "BackoffLimitExceeded"),
    case("one pod with a permanent end", ONE_POD, (End(0, 71),), "Failed", "PodFailurePolicy"),
    case("one pod that was disrupted", ONE_POD, (End(0, 143, True), End(0, 0)), *DONE),
    case("one pod that was interrupted", ONE_POD, (End(0, 75), End(0, 75), End(0, 0)), *DONE),
]  # fmt: skip
