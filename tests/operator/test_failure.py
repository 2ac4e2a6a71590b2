"""How an attempt ended, from the ends of its pods."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from draftyard_api.exit_codes import ExitCode
from draftyard_api.names import Stage
from draftyard_api.progress import StageResult
from draftyard_api.reasons import Reason
from draftyard_operator import failure
from draftyard_operator.failure import Effect, classify
from draftyard_operator.observe import End, Pod

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


def pod(code: int = 1, said: str = "", reason: Reason = Reason.POD_FAILED, after: int = 0, **end) -> Pod:
    """A pod that ended with a code, `after` seconds later than noon, and said why."""
    result = StageResult(stage=Stage.TRAIN, exit_code=code, reason=reason, message=said) if said else None
    ended = End(exit_code=code, result=result, finished_at=NOON + timedelta(seconds=after), **end)
    name = f"train-{code}-{after}"
    return Pod(name=name, uid=name, owner_uid="job", stage=Stage.TRAIN, attempt=1, node="gpu-7", end=ended)


LIVE = Pod(name="live", uid="live", owner_uid="job", stage=Stage.TRAIN, attempt=1)

CASES = [
    pytest.param([pod(1)], Effect.COUNTED, Reason.POD_FAILED, id="an error"),
    pytest.param([pod(3)], Effect.COUNTED, Reason.POD_FAILED, id="a code that nobody knows"),
    pytest.param([pod(143)], Effect.COUNTED, Reason.POD_FAILED, id="killed by somebody"),
    pytest.param([pod(1, "x", Reason.OUT_OF_MEMORY)], Effect.COUNTED, Reason.OUT_OF_MEMORY, id="says: no memory"),
    pytest.param([pod(137, is_disrupted=True)], Effect.UNCOUNTED, Reason.DISRUPTED, id="a drained node"),
    pytest.param(
        [pod(1), pod(71), pod(143, after=9, is_disrupted=True)], Effect.UNCOUNTED, Reason.DISRUPTED,
        id="one disrupted pod makes it a disruption, whatever the others say",
    ),
    pytest.param([pod(1), pod(71, after=5)], Effect.PERMANENT, Reason.DIVERGED, id="a permanent code wins over ERROR"),
    pytest.param([pod(71, after=5), pod(65, after=1)], Effect.PERMANENT, Reason.DATA_REJECTED, id="the earliest"),
    pytest.param([pod(71, after=1), pod(65, after=5)], Effect.PERMANENT, Reason.DIVERGED, id="whichever it was"),
    pytest.param([pod(1), pod(75, after=5)], Effect.UNCOUNTED, Reason.INTERRUPTED, id="the one that was told to stop"),
    pytest.param([pod(75), pod(79, after=5)], Effect.WORKSPACE_FULL, Reason.WORKSPACE_FULL, id="no space"),
    pytest.param([pod(83)], Effect.STALE_INPUT, Reason.STALE_INPUT, id="an input that is gone"),
    pytest.param([pod(81)], Effect.UNCOUNTED, Reason.FENCED, id="fenced"),
    pytest.param([pod(69)], Effect.UNCOUNTED, Reason.STORAGE_UNAVAILABLE, id="storage out of reach"),
    pytest.param([LIVE, pod(71)], Effect.PERMANENT, Reason.DIVERGED, id="a pod that still runs says nothing"),
    pytest.param([pod(0), pod(1, after=1)], Effect.COUNTED, Reason.POD_FAILED, id="a pod that ended well says nothing"),
    pytest.param([], Effect.COUNTED, Reason.POD_FAILED, id="no pod is left"),
]  # fmt: skip


@pytest.mark.parametrize(("pods", "effect", "reason"), CASES)
def test_an_attempt_is_judged_as_a_whole(pods, effect, reason):
    assert (classify(pods).effect, classify(pods).reason) == (effect, reason)
    assert classify(list(reversed(pods))) == classify(pods)


def test_every_exit_code_has_one_meaning():
    plain = {ExitCode.OK, ExitCode.ERROR, ExitCode.BAD_SHARD}
    assert set(ExitCode) - plain == set(failure.MEANINGS)


@pytest.mark.parametrize(
    ("code", "said", "reason"),
    [
        (66, Reason.MODEL_NOT_FOUND, Reason.MODEL_NOT_FOUND),
        (66, Reason.DATA_NOT_FOUND, Reason.DATA_NOT_FOUND),
        (66, Reason.POD_FAILED, Reason.DATA_NOT_FOUND),
        (77, Reason.MODEL_ACCESS_DENIED, Reason.MODEL_ACCESS_DENIED),
        (77, Reason.PENDING, Reason.STORAGE_ACCESS_DENIED),
    ],
)
def test_a_code_of_several_meanings_takes_the_pods_own_word_if_it_is_one_of_them(code, said, reason):
    assert classify([pod(code, "see here", said)]).reason is reason


def test_the_earliest_pod_speaks_among_equals():
    assert classify([pod(1, "later", after=9), pod(1, "first", after=2)]).message == "first"


def test_a_killed_container_says_what_to_raise():
    end = End(exit_code=137, reason="OOMKilled", finished_at=NOON)
    killed = Pod(name="p", uid="p", owner_uid="job", stage=Stage.TRAIN, attempt=1, end=end)
    verdict = classify([killed, pod(1, "connection reset", after=-5)])
    assert (verdict.effect, verdict.reason) == (Effect.COUNTED, Reason.OUT_OF_MEMORY)
    assert "pod.resources.limits.memory" in verdict.message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Traceback\n  line\nValueError: it is wrong\n\n", "ValueError: it is wrong"),
        ("", "train-1-0: ended with code 1"),
    ],
    ids=["the last line of a log", "nothing"],
)
def test_a_pod_without_a_result_is_quoted(text, message):
    assert classify([pod(1, text=text)]).message == message


def test_a_signal_is_named():
    assert classify([pod(139)]).message == "train-139-0: ended with code 139 (killed by signal 11)"


def test_without_pods_the_child_is_quoted():
    assert (
        classify([], "train-a1: BackoffLimitExceeded: too many").message == "train-a1: BackoffLimitExceeded: too many"
    )


def test_a_disruption_names_pod_and_node():
    message = classify([pod(137, is_disrupted=True, disruption="node was drained")]).message
    assert message == "train-137-0 on node gpu-7: node was drained"
