"""The status: every reason that is promised exists, and nothing in it can grow without bound."""

from __future__ import annotations

import json
import re

import pytest

from draftyard_api import status
from draftyard_api.reasons import Reason
from draftyard_api.status import Condition, ConditionType, DraftTrainingStatus, Phase

PROMISED = {
    "Accepted": "SpecAccepted InvalidSpec BackendUnavailable ClaimNotFound ClaimAccessMode",
    "Prepared, Generated, Trained, Evaluated": "StageCompleted StageNotStarted StageRunning StageFailed",
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


TOLD = {
    "observedGeneration": 3,
    "phase": "Running",
    "stage": "train",
    "backend": "Job",
    "attempt": 2,
    "reason": "PodsReady",
    "message": "train a2: step 1330 of 3168",
    "startTime": "2026-11-20T08:00:03Z",
    "frozenTime": "2026-11-20T08:21:40Z",
    "activeSeconds": 31220,
    "fingerprint": "sha256:6f0c",
    "resolved": {
        "targetCommit": "6f6073b4", "dataRevision": "sha256:91ab", "chatTemplate": "tokenizer",
        "auxLayers": [2, 40, 77],
        "image": "registry.example/trainer@sha256:00",
    },
    "plan": {
        "basis": "Counted", "samples": 91200, "droppedSamples": {"empty": 12, "noLoss": 40}, "truncatedSamples": 1210,
        "tokens": 104857600, "lossTokens": 61865984, "shards": 24, "steps": 3168, "vocabCoverage": "0.984",
        "bytes": {
            "prepare": 436207616, "hiddenStates": 2820334097006, "checkpoints": 84000000000, "export": 2800000000,
            "needed": 2907570304622, "free": 4398046511104,
        },
        "gpuHours": {"generate": "10.1", "train": "10.2", "evaluate": "0.6", "total": "20.9"},
        "assumes": "H100; 40 % of peak in generate, 30 % in train",
    },
    "stages": [
        {
            "name": "generate", "state": "Succeeded", "attempt": 1, "child": "Job/llama33-70b-r2-generate-a1",
            "completedShards": "0-23", "failedShards": "", "counted": 0, "uncounted": 1,
            "startTime": "2026-11-20T08:22:00Z", "completionTime": "2026-11-20T11:02:00Z",
        },
        {
            "name": "train", "state": "Running", "attempt": 2, "child": "Job/llama33-70b-r2-train-a2",
            "resumedFromStep": 1104, "counted": 0, "uncounted": 1, "startTime": "2026-11-20T11:02:30Z",
        },
    ],
    "history": [
        {
            "stage": "train", "attempt": 1, "reason": "Disrupted",
            "message": "node gpu-7 was drained; saved at step 1104",
            "startTime": "2026-11-20T11:02:30Z", "completionTime": "2026-11-20T13:00:00Z",
        }
    ],
    "progress": {
        "percent": 42, "percentage": "42%", "step": 1330, "totalSteps": 3168, "epoch": "0.84", "loss": "1.873",
        "tokensPerSecond": "5598", "eta": "5h58m", "estimatedRemainingSeconds": 21517,
        "lastUpdatedTime": "2026-11-20T13:40:00Z",
    },
    "checkpoint": {"lastStep": 1104, "bestStep": 1000},
    "acceptance": {
        "length": "2.71", "perPosition": ["0.78", "0.55", "0.38"], "draftTokens": 3, "prompts": 256,
        "source": "Simulated",
    },
    "hiddenStates": {"bytes": 2790112000000, "argmaxAgreement": "0.994", "reclaimed": False},
    "export": {
        "published": True, "uri": "pvc://scratch/export/r2", "manifestSHA256": "ab",
        "serve": {"vllm": "vllm serve ...", "sglang": "python -m sglang.launch_server ..."},
    },
    "conditions": [
        {
            "type": "Running", "status": "True", "reason": "PodsReady", "message": "train a2: step 1330 of 3168",
            "lastTransitionTime": "2026-11-20T11:03:00Z", "observedGeneration": 3,
        }
    ],
}  # fmt: skip
"""A status in which every field is there that one can have."""


def test_everything_that_is_told_has_a_field():
    text = json.dumps(TOLD)
    read = DraftTrainingStatus.model_validate_json(text)
    assert json.loads(read.model_dump_json(by_alias=True, exclude_none=True)) == TOLD


def test_the_server_keeps_all_of_it(ask_server):
    """It prunes what is not in the schema, without a word."""
    spec = {
        "mode": "Online",
        "target": {"model": "org/name"},
        "data": {"source": {"preset": {"name": "a"}}},
        "workspace": {"pvc": {"existingClaim": "scratch"}},
    }
    made = {"apiVersion": "draftyard.dev/v1alpha1", "kind": "DraftTraining", "metadata": {"name": "r2"}, "spec": spec}
    _, told = ask_server([{"name": "status", "object": made | {"status": TOLD}}])
    assert told["errors"] == []
    assert told["object"]["status"] == TOLD


def test_numbers_with_a_fraction_are_texts():
    """Floats do not survive every client; texts do, and may say NaN."""
    kinds = {type(value) for value in leaves(TOLD)}
    assert kinds == {str, int, bool}


def leaves(value):
    """Every value in a document."""
    if not isinstance(value, dict | list):
        yield value
        return
    for inner in value.values() if isinstance(value, dict) else value:
        yield from leaves(inner)
