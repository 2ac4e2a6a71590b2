"""How an attempt ended, from the ends of its pods.

The attempt is judged, not the pod: survivors of a broken process
group all end with ERROR, and only the one that knows better says why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum

from draftyard_api.exit_codes import ExitCode
from draftyard_api.progress import StageResult
from draftyard_api.reasons import Reason
from draftyard_operator.observe import End, Pod

OOM_KILLED = "OOMKilled"
NEVER = datetime.max.replace(tzinfo=UTC)


class Effect(Enum):
    """What follows for the run."""

    COUNTED = "counted"
    """Another attempt, while there are some."""
    UNCOUNTED = "uncounted"
    """Another attempt, as often as it takes."""
    STALE_INPUT = "stale input"
    """The stage before runs again."""
    WORKSPACE_FULL = "workspace full"
    """Another attempt, once there may be space."""
    PERMANENT = "permanent"
    """The run fails: no attempt would end otherwise."""


@dataclass(frozen=True)
class Verdict:
    """How an attempt ended, and why."""

    effect: Effect
    reason: Reason
    message: str
    result: StageResult | None = None
    """What the deciding pod left behind, such as an acceptance length below the gate."""


@dataclass(frozen=True)
class Meaning:
    """What an exit code says."""

    effect: Effect
    reason: Reason


MEANINGS = {
    ExitCode.BAD_TASK: Meaning(Effect.PERMANENT, Reason.TASK_REJECTED),
    ExitCode.BAD_DATA: Meaning(Effect.PERMANENT, Reason.DATA_REJECTED),
    ExitCode.NOT_FOUND: Meaning(Effect.PERMANENT, Reason.DATA_NOT_FOUND),
    ExitCode.NOT_CONFORMANT: Meaning(Effect.PERMANENT, Reason.CONFORMANCE_FAILED),
    ExitCode.DIVERGED: Meaning(Effect.PERMANENT, Reason.DIVERGED),
    ExitCode.EXISTS: Meaning(Effect.PERMANENT, Reason.OUTPUT_EXISTS),
    ExitCode.DENIED: Meaning(Effect.PERMANENT, Reason.STORAGE_ACCESS_DENIED),
    ExitCode.UNSUPPORTED: Meaning(Effect.PERMANENT, Reason.TARGET_UNSUPPORTED),
    ExitCode.GATE_MISSED: Meaning(Effect.PERMANENT, Reason.ACCEPTANCE_TOO_LOW),
    ExitCode.STALE_INPUT: Meaning(Effect.STALE_INPUT, Reason.STALE_INPUT),
    ExitCode.NO_SPACE: Meaning(Effect.WORKSPACE_FULL, Reason.WORKSPACE_FULL),
    ExitCode.FENCED: Meaning(Effect.UNCOUNTED, Reason.FENCED),
    ExitCode.UNAVAILABLE: Meaning(Effect.UNCOUNTED, Reason.STORAGE_UNAVAILABLE),
    ExitCode.INTERRUPTED: Meaning(Effect.UNCOUNTED, Reason.INTERRUPTED),
}
"""In the order in which they win over each other, permanent ones as equals; what is not here is ERROR."""
RANKS = {
    code: 0 if meaning.effect is Effect.PERMANENT else rank for rank, (code, meaning) in enumerate(MEANINGS.items())
}
SAID_BY_POD = {
    ExitCode.NOT_FOUND: (Reason.MODEL_NOT_FOUND, Reason.DATA_NOT_FOUND),
    ExitCode.DENIED: (Reason.MODEL_ACCESS_DENIED, Reason.STORAGE_ACCESS_DENIED),
    ExitCode.UNSUPPORTED: (Reason.TARGET_UNSUPPORTED,),
}
"""Codes that mean several things: the pod's own reason is taken when it is one of these."""
PERMANENT = tuple(code for code, meaning in MEANINGS.items() if meaning.effect is Effect.PERMANENT)


def classify(pods: Sequence[Pod], fallback: str = "") -> Verdict:
    """Judge an attempt that did not succeed. `fallback` is what its child says, for when no pod is left to ask."""
    ended = [pod for pod in pods if pod.end is not None and not is_success(pod.end)]
    if not ended:
        return Verdict(Effect.COUNTED, Reason.POD_FAILED, fallback or "no pod is left that says why")
    disrupted = [pod for pod in ended if pod.end and pod.end.is_disrupted]
    if disrupted:
        return Verdict(Effect.UNCOUNTED, Reason.DISRUPTED, disruption(earliest(disrupted)))
    deciding = min(ended, key=lambda pod: (rank(pod.end), when(pod)))
    assert deciding.end is not None
    return judge(deciding.name, deciding.end)


def is_success(end: End) -> bool:
    """Whether a pod ended well."""
    return end.exit_code == ExitCode.OK and not end.is_disrupted


def rank(end: End | None) -> int:
    """Who decides: a code that says what happened, then memory, then ERROR."""
    assert end is not None
    if end.reason == OOM_KILLED:
        return len(RANKS)
    return RANKS.get(code_of(end), len(RANKS) + 1)


def code_of(end: End) -> ExitCode:
    """The code, where it is one of ours; ERROR otherwise."""
    return ExitCode(end.exit_code) if end.exit_code in set(ExitCode) else ExitCode.ERROR


def when(pod: Pod) -> datetime:
    """When a pod ended."""
    return (pod.end and pod.end.finished_at) or NEVER


def earliest(pods: Sequence[Pod]) -> Pod:
    """The pod that ended first."""
    return min(pods, key=when)


def disruption(pod: Pod) -> str:
    """What took a pod away."""
    assert pod.end is not None
    return f"{pod.name}{f' on node {pod.node}' if pod.node else ''}: {pod.end.disruption or 'taken away'}"


def judge(name: str, end: End) -> Verdict:
    """What the end of the deciding pod means."""
    said = end.result.message if end.result else end.text
    if end.reason == OOM_KILLED:
        message = f"{name}: killed for memory; raise the stage's pod.resources.limits.memory"
        return Verdict(Effect.COUNTED, Reason.OUT_OF_MEMORY, message, end.result)
    meaning = MEANINGS.get(code_of(end))
    if meaning is None:
        message = last_words(said) or f"{name}: ended with code {end.exit_code}{signal_of(end.exit_code)}"
        return Verdict(Effect.COUNTED, counted_reason(end), message, end.result)
    reason = own_reason(end) or meaning.reason
    return Verdict(meaning.effect, reason, last_words(said) or f"{name}: ended with code {end.exit_code}", end.result)


def own_reason(end: End) -> Reason | None:
    """The pod's reason, for a code that has several."""
    accepted = SAID_BY_POD.get(code_of(end), ())
    return end.result.reason if end.result and end.result.reason in accepted else None


def counted_reason(end: End) -> Reason:
    """A process that ran out of memory may say so itself."""
    is_memory = end.result is not None and end.result.reason is Reason.OUT_OF_MEMORY
    return Reason.OUT_OF_MEMORY if is_memory else Reason.POD_FAILED


def signal_of(code: int) -> str:
    """What codes above 128 say."""
    return f" (killed by signal {code - 128})" if code > 128 else ""


def last_words(text: str) -> str:
    """The last line of a text that says something: of a log, where the process left no result."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
