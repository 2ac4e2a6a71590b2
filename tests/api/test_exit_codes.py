"""Exit codes and reasons: what a pod's end means to the one who started it."""

from __future__ import annotations

import re

import pytest

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.reasons import Reason

CODES = {
    0: "OK", 1: "ERROR", 64: "BAD_TASK", 65: "BAD_DATA", 66: "NOT_FOUND", 69: "UNAVAILABLE", 70: "NOT_CONFORMANT",
    71: "DIVERGED", 73: "EXISTS", 75: "INTERRUPTED", 77: "DENIED", 78: "UNSUPPORTED", 79: "NO_SPACE", 80: "BAD_SHARD",
    81: "FENCED", 82: "GATE_MISSED", 83: "STALE_INPUT",
}  # fmt: skip
IGNORED, GIVES_UP_A_SHARD = {69, 75, 81}, {80}
ENDS_THE_JOB = {64, 65, 66, 70, 71, 73, 77, 78, 79, 82, 83}


def test_codes_are_what_manifests_and_people_rely_on():
    assert {code.value: code.name for code in ExitCode} == CODES


def test_every_code_has_an_effect():
    """0 is success, 1 is counted; a pod failure policy names each of the others exactly once."""
    assert ENDS_THE_JOB | IGNORED | GIVES_UP_A_SHARD | {0, 1} == set(CODES)
    assert len(ENDS_THE_JOB) + len(IGNORED) + len(GIVES_UP_A_SHARD) + 2 == len(CODES)


def test_no_code_means_something_to_a_shell_or_a_kernel():
    assert all(code < 126 for code in ExitCode)


def test_a_failure_carries_what_the_user_reads():
    failure = Failure(ExitCode.GATE_MISSED, Reason.ACCEPTANCE_TOO_LOW, "acceptance length 2.31, required 2.5")
    assert (failure.code, failure.reason, failure.message) == (82, "AcceptanceTooLow", str(failure))


@pytest.mark.parametrize("reason", Reason)
def test_a_reason_is_its_name_in_camel_case(reason):
    assert re.sub(r"(?<!^)(?=[A-Z])", "_", reason.value).upper() == reason.name
