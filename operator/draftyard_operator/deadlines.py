"""How long things may take, from stored times alone: restarts, suspension, queues and clocks that jump do not count."""

from __future__ import annotations

from datetime import datetime

from draftyard_api.reasons import Reason
from draftyard_api.status import Condition, ConditionType, DraftTrainingStatus, Phase, StageStatus
from draftyard_operator import times

COUNTS = (Phase.PENDING, Phase.RUNNING, Phase.RETRYING, Phase.SUSPENDING)
"""Phases in which time passes for `activeSeconds`."""
STANDSTILLS = (ConditionType.SUSPENDED, ConditionType.QUEUED, ConditionType.STALLED)
"""While one of them is True, time stands still."""


def find(status: DraftTrainingStatus, kind: ConditionType) -> Condition | None:
    """A stored condition."""
    return next((one for one in status.conditions or () if one.type is kind), None)


def holds(status: DraftTrainingStatus, kind: ConditionType) -> bool:
    """Whether a stored condition is True."""
    found = find(status, kind)
    return found is not None and found.status == "True"


def stands_still(status: DraftTrainingStatus) -> bool:
    """Whether time stood still at the last write."""
    return any(holds(status, kind) for kind in STANDSTILLS)


def standstills(status: DraftTrainingStatus) -> list[str]:
    """When each standstill began or ended last."""
    found = (find(status, kind) for kind in STANDSTILLS)
    return [one.last_transition_time for one in found if one is not None]


def counting_since(status: DraftTrainingStatus) -> str | None:
    """Since when time has been passing without a break."""
    started = [status.start_time] if status.start_time else []
    return max([*started, *standstills(status)], default=None)


def active_seconds(status: DraftTrainingStatus, now: datetime) -> int:
    """Seconds of the run, without those suspended, queued or blocked."""
    before, since = status.active_seconds or 0, counting_since(status)
    if stands_still(status) or since is None:
        return before
    return before + int(times.seconds_since(since, now))


def starting_since(status: DraftTrainingStatus, stage: StageStatus) -> str | None:
    """Since when an attempt has been waiting for a ready pod; None while it does not, or time stands still."""
    if stage.start_time is None or stands_still(status) or holds(status, ConditionType.RUNNING):
        return None
    running = find(status, ConditionType.RUNNING)
    stopped = [running.last_transition_time] if running is not None else []
    return max([stage.start_time, *stopped, *standstills(status)])


def silent_since(status: DraftTrainingStatus, *, answers: bool) -> str | None:
    """Since when no new heartbeat was seen; None before a first one, which a network policy may hold back.

    `answers`: a pod was asked now, and has answered.
    """
    progress = status.progress
    if progress is None or progress.heartbeat is None or progress.last_updated_time is None or stands_still(status):
        return None
    silence = []
    if not answers:
        # an operator that was away has not heard anything either: what counts began when it saw the silence itself
        reporting = find(status, ConditionType.PROGRESS_REPORTING)
        if reporting is None or reporting.reason != Reason.UNREACHABLE:
            return None
        silence = [reporting.last_transition_time]
    return max([progress.last_updated_time, *silence, *standstills(status)])
