"""Why something is as it is, in one word: the reasons of conditions, of ended runs and of ended attempts."""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Why a condition has its value, or how an attempt ended. CamelCase, as Kubernetes' API conventions ask."""

    # Of Accepted.
    SPEC_ACCEPTED = "SpecAccepted"
    INVALID_SPEC = "InvalidSpec"
    BACKEND_UNAVAILABLE = "BackendUnavailable"
    CLAIM_NOT_FOUND = "ClaimNotFound"
    CLAIM_ACCESS_MODE = "ClaimAccessMode"
    # Of Regenerated, Prepared, Generated, Trained, Evaluated.
    STAGE_COMPLETED = "StageCompleted"
    STAGE_NOT_STARTED = "StageNotStarted"
    STAGE_RUNNING = "StageRunning"
    STAGE_FAILED = "StageFailed"
    # Of Planned.
    PLAN_FITS = "PlanFits"
    WAITING_FOR_PREPARE = "WaitingForPrepare"
    WORKSPACE_TOO_SMALL = "WorkspaceTooSmall"
    # Of Queued.
    WAITING_FOR_QUOTA = "WaitingForQuota"
    PREEMPTED = "Preempted"
    ADMITTED = "Admitted"
    NO_QUEUE = "NoQueue"
    # Of Running.
    PODS_READY = "PodsReady"
    PENDING = "Pending"
    UNSCHEDULABLE = "Unschedulable"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    VOLUME_NOT_BOUND = "VolumeNotBound"
    SECRET_NOT_FOUND = "SecretNotFound"  # noqa: S105  a reason, no secret
    QUOTA_EXCEEDED = "QuotaExceeded"
    BACKOFF = "Backoff"
    NOT_NEEDED = "NotNeeded"
    POD_SECURITY_VIOLATION = "PodSecurityViolation"
    CHILD_REJECTED = "ChildRejected"
    CHILD_CONFLICT = "ChildConflict"
    FORBIDDEN = "Forbidden"
    POD_STUCK_TERMINATING = "PodStuckTerminating"
    WORKSPACE_FULL = "WorkspaceFull"
    # Of ProgressReporting.
    FRESH = "Fresh"
    UNREACHABLE = "Unreachable"
    STALE = "Stale"
    # Of Suspended and Complete.
    SUSPENDED = "Suspended"
    SUSPENDING = "Suspending"
    RESUMED = "Resumed"
    NOT_SUSPENDED = "NotSuspended"
    DRAFT_PUBLISHED = "DraftPublished"
    ALREADY_TRAINED = "AlreadyTrained"
    IN_PROGRESS = "InProgress"
    # Of Failed: the run has ended, and a person must change something.
    RETRIES_EXHAUSTED = "RetriesExhausted"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    START_DEADLINE_EXCEEDED = "StartDeadlineExceeded"
    SHARDS_FAILED = "ShardsFailed"
    OUTPUT_MISSING = "OutputMissing"
    OUTPUT_EXISTS = "OutputExists"
    TASK_REJECTED = "TaskRejected"
    DATA_REJECTED = "DataRejected"
    DATA_NOT_FOUND = "DataNotFound"
    MODEL_NOT_FOUND = "ModelNotFound"
    STORAGE_ACCESS_DENIED = "StorageAccessDenied"
    MODEL_ACCESS_DENIED = "ModelAccessDenied"
    TARGET_UNSUPPORTED = "TargetUnsupported"
    DIVERGED = "Diverged"
    CONFORMANCE_FAILED = "ConformanceFailed"
    ACCEPTANCE_TOO_LOW = "AcceptanceTooLow"
    # Of an ended attempt.
    POD_FAILED = "PodFailed"
    OUT_OF_MEMORY = "OutOfMemory"
    DISRUPTED = "Disrupted"
    INTERRUPTED = "Interrupted"
    FENCED = "Fenced"
    STORAGE_UNAVAILABLE = "StorageUnavailable"
    PROGRESS_DEADLINE_EXCEEDED = "ProgressDeadlineExceeded"
    CHILD_DELETED = "ChildDeleted"
    STALE_INPUT = "StaleInput"
    RESULT_LOST = "ResultLost"
