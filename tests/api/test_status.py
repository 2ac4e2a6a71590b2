"""The status: every reason that is promised exists, and nothing in it can grow without bound."""

from __future__ import annotations

import json
import re

import pytest
from full_status import FULL_STATUS

from draftyard_api import crd, status
from draftyard_api.reasons import Reason
from draftyard_api.status import Condition, ConditionType, DraftTrainingStatus, Phase

PROMISED = {
    "Accepted": "SpecAccepted InvalidSpec BackendUnavailable ClaimNotFound ClaimAccessMode",
    "Regenerated, Prepared, Generated, Trained, Evaluated": "StageCompleted StageNotStarted StageRunning StageFailed",
    "Planned": "PlanFits WaitingForPrepare WorkspaceTooSmall",
    "Queued": "WaitingForQuota Preempted Admitted NoQueue",
    "Running": "PodsReady Pending Unschedulable ImagePullFailed VolumeNotBound SecretNotFound QuotaExceeded Backoff "
    "NotNeeded PodSecurityViolation ChildRejected ChildConflict Forbidden PodStuckTerminating WorkspaceFull",
    "ProgressReporting": "Fresh Unreachable NotNeeded Stale",
    "Suspended; Complete": "Suspended DraftPublished AlreadyTrained Suspending Resumed NotSuspended InProgress",
    "Failed": "RetriesExhausted DeadlineExceeded StartDeadlineExceeded ShardsFailed OutputMissing OutputExists "
    "TaskRejected DataRejected DataNotFound ModelNotFound StorageAccessDenied ModelAccessDenied TargetUnsupported "
    "Diverged ConformanceFailed AcceptanceTooLow InProgress",
    "history": "PodFailed OutOfMemory Disrupted Interrupted Fenced StorageUnavailable WorkspaceFull "
    "ProgressDeadlineExceeded ChildDeleted StaleInput ResultLost",
}


ENDED_ONLY = {"completionTime"}
"""Fields that a running one cannot have."""


def test_reasons_are_exactly_the_promised_ones():
    promised = {reason for reasons in PROMISED.values() for reason in reasons.split()}
    assert {reason.value for reason in Reason} == promised


def test_reasons_are_camel_case_words():
    assert all(re.fullmatch(r"([A-Z][a-z]+)+", reason) for reason in Reason)


def test_a_fresh_status_says_that_nobody_looked_yet():
    assert DraftTrainingStatus().model_dump(by_alias=True, exclude_none=True) == {"observedGeneration": -1}


def condition(message: str = "") -> Condition:
    return Condition(
        type=ConditionType.RUNNING, status="True", reason=Reason.PODS_READY, message=message, last_transition_time="t"
    )


def test_messages_are_bounded():
    assert condition("x" * 1024).message
    with pytest.raises(ValueError, match="at most 1024"):
        condition("x" * 1025)


def test_lists_are_bounded():
    conditions = (condition(),) * status.MAX_CONDITIONS
    assert DraftTrainingStatus(conditions=conditions).conditions == conditions
    with pytest.raises(ValueError, match="at most 24"):
        DraftTrainingStatus(conditions=(*conditions, condition()))


def test_a_status_survives_json():
    told = DraftTrainingStatus(
        observed_generation=3,
        phase=Phase.RUNNING,
        conditions=(condition("train a2: step 1330 of 3168"),),
        export=status.ExportStatus(published=True, manifest_sha256="sha"),
        acceptance=status.AcceptanceStatus(
            length="NaN", per_position=("0.78",), draft_tokens=3, prompts=256, source="Measured"
        ),
    )
    text = told.model_dump_json(by_alias=True, exclude_none=True)
    assert '"manifestSHA256":"sha"' in text
    assert DraftTrainingStatus.model_validate_json(text) == told


def test_everything_that_is_told_has_a_field():
    text = json.dumps(FULL_STATUS)
    read = DraftTrainingStatus.model_validate_json(text)
    assert json.loads(read.model_dump_json(by_alias=True, exclude_none=True)) == FULL_STATUS


def test_every_field_is_told():
    """So that what an API server keeps of it is all that it could lose."""
    schema = crd.model_schema(DraftTrainingStatus)
    assert {path for path in field_paths(schema) if path not in told_paths(FULL_STATUS)} == ENDED_ONLY


def field_paths(schema, path=""):
    """The path of every field; entries of a list are one place."""
    for name, inner in schema.get("properties", {}).items():
        yield f"{path}.{name}".lstrip(".")
        yield from field_paths(inner.get("items", inner), f"{path}.{name}")


def told_paths(value, path=""):
    """Likewise of a document."""
    if isinstance(value, list):
        return {found for entry in value for found in told_paths(entry, path)}
    if not isinstance(value, dict):
        return {path}
    return {path} | {
        found for name, inner in value.items() for found in told_paths(inner, f"{path}.{name}".lstrip("."))
    }


def test_numbers_with_a_fraction_are_texts():
    """Floats do not survive every client; texts do, and may say NaN."""
    kinds = {type(value) for value in leaves(FULL_STATUS)}
    assert kinds == {str, int, bool}


def leaves(value):
    """Every value in a document."""
    if not isinstance(value, dict | list):
        yield value
        return
    for inner in value.values() if isinstance(value, dict) else value:
        yield from leaves(inner)
