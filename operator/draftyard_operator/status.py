"""What the user is told: conditions and phase from facts, and the events of what has changed. Values in, values out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from draftyard_api.names import Stage
from draftyard_api.progress import LOW_ON_POLICY
from draftyard_api.reasons import Reason
from draftyard_api.status import Condition, ConditionType, DraftTrainingStatus, Phase, StageStatus
from draftyard_operator import intervals
from draftyard_operator.deadlines import COUNTS, active_seconds, find
from draftyard_operator.ledger import MAX_MESSAGE, Ledger, cut

Truth = Literal["True", "False", "Unknown"]

STAGE_CONDITIONS = {
    Stage.REGENERATE: ConditionType.REGENERATED,
    Stage.PREPARE: ConditionType.PREPARED,
    Stage.GENERATE: ConditionType.GENERATED,
    Stage.TRAIN: ConditionType.TRAINED,
    Stage.EVALUATE: ConditionType.EVALUATED,
}
BLOCKING = (
    Reason.INVALID_SPEC, Reason.BACKEND_UNAVAILABLE, Reason.CLAIM_NOT_FOUND, Reason.CLAIM_ACCESS_MODE,
    Reason.WORKSPACE_TOO_SMALL, Reason.POD_SECURITY_VIOLATION, Reason.CHILD_REJECTED, Reason.CHILD_CONFLICT,
    Reason.FORBIDDEN, Reason.POD_STUCK_TERMINATING, Reason.WORKSPACE_FULL,
)  # fmt: skip
"""Reasons that need a person; the run goes on by itself once the cause is gone."""
MAY_BLOCK = (ConditionType.ACCEPTED, ConditionType.PLANNED, ConditionType.RUNNING)
HOPEFUL = (Phase.PENDING, Phase.QUEUED, Phase.RETRYING, Phase.RUNNING, Phase.SUSPENDING)


@dataclass(frozen=True)
class Fact:
    """What a condition will say."""

    truth: Truth
    reason: str
    message: str = ""


Facts = Mapping[ConditionType, Fact]


# -- Facts that follow from the stage table ---------------------------------------------------------------------------


def stage_fact(held: StageStatus) -> Fact:
    """Where a stage stands, as a condition."""
    name = f"{held.name} a{held.attempt}"
    match held.state:
        case "Succeeded":
            return Fact("True", Reason.STAGE_COMPLETED, f"{name}: done, output verified")
        case "Failed":
            return Fact("False", Reason.STAGE_FAILED, f"{name}: failed")
        case "Running":
            return Fact("False", Reason.STAGE_RUNNING, f"{name}: running")
        case _ if held.attempt:
            return Fact("False", Reason.STAGE_RUNNING, f"{name}: ended; the next attempt follows")
        case _:
            return Fact("Unknown", Reason.STAGE_NOT_STARTED, f"{held.name}: not started")


def end_facts(ledger: Ledger) -> dict[ConditionType, Fact]:
    """Complete and Failed: sticky, and never both."""
    both = dict.fromkeys((ConditionType.COMPLETE, ConditionType.FAILED), Fact("False", Reason.IN_PROGRESS))
    end = ledger.conclusion
    if end is None:
        return both
    kind = ConditionType.COMPLETE if end.succeeded else ConditionType.FAILED
    return both | {kind: Fact("True", end.reason, end.message)}


# -- The phase --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Summary:
    """The phase, and the condition that explains it."""

    phase: Phase
    explains: ConditionType


def summarize(facts: Facts) -> Summary:
    """The first phase that matches."""
    running = facts[ConditionType.RUNNING]
    blocking = [kind for kind in MAY_BLOCK if facts[kind].truth == "False" and facts[kind].reason in BLOCKING]
    candidates = (
        (facts[ConditionType.COMPLETE].truth == "True", Phase.SUCCEEDED, ConditionType.COMPLETE),
        (facts[ConditionType.FAILED].truth == "True", Phase.FAILED, ConditionType.FAILED),
        (facts[ConditionType.SUSPENDED].truth == "True", Phase.SUSPENDED, ConditionType.SUSPENDED),
        (facts[ConditionType.SUSPENDED].reason == Reason.SUSPENDING, Phase.SUSPENDING, ConditionType.SUSPENDED),
        (bool(blocking), Phase.BLOCKED, blocking[0] if blocking else ConditionType.RUNNING),
        (facts[ConditionType.QUEUED].truth == "True", Phase.QUEUED, ConditionType.QUEUED),
        (running.reason == Reason.BACKOFF, Phase.RETRYING, ConditionType.RUNNING),
        (running.truth == "True", Phase.RUNNING, ConditionType.RUNNING),
        (True, Phase.PENDING, ConditionType.RUNNING),
    )
    return next(Summary(phase, explains) for matches, phase, explains in candidates if matches)


def overall_facts(facts: Facts, summary: Summary) -> dict[ConditionType, Fact]:
    """Reconciling, Stalled and Ready: what generic tools read."""
    why = facts[summary.explains]

    def told(holds: bool) -> Fact:
        return Fact("True" if holds else "False", why.reason, why.message)

    return {
        ConditionType.RECONCILING: told(summary.phase in HOPEFUL),
        ConditionType.STALLED: told(summary.phase in (Phase.FAILED, Phase.BLOCKED)),
        ConditionType.READY: told(summary.phase is Phase.SUCCEEDED),
    }


# -- The status -------------------------------------------------------------------------------------------------------


def conclude(ledger: Ledger, facts: Facts) -> DraftTrainingStatus:
    """The status that is stored: what the ledger says, with its conditions, its phase and the time that counted."""
    before = ledger.run.status
    summary = summarize(facts)
    all_facts = {**facts, **overall_facts(facts, summary)}
    generation = ledger.run.generation
    conditions = tuple(
        condition(find(before, kind), kind, all_facts[kind], ledger.time, generation)
        for kind in ConditionType
        if kind in all_facts
    )
    why = all_facts[summary.explains]
    stopped = before.phase in COUNTS and summary.phase not in COUNTS
    active = active_seconds(before, ledger.now) if stopped else before.active_seconds
    return ledger.status.model_copy(
        update={
            "observed_generation": generation, "phase": summary.phase, "reason": why.reason,
            "message": cut(why.message), "conditions": conditions, "active_seconds": active or 0,
        }
    )  # fmt: skip


def condition(before: Condition | None, kind: ConditionType, fact: Fact, time: str, generation: int) -> Condition:
    """A condition; its transition time moves only when its status flips."""
    same = before is not None and before.status == fact.truth
    return Condition(
        type=kind, status=fact.truth, reason=fact.reason, message=cut(fact.message),
        last_transition_time=before.last_transition_time if before and same else time, observed_generation=generation,
    )  # fmt: skip


# -- Events -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Event:
    """Something that happened, for `kubectl describe`."""

    reason: str
    message: str
    is_warning: bool = False


QUIET = (Reason.PENDING, Reason.BACKOFF, Reason.NOT_NEEDED, Reason.WAITING_FOR_PREPARE)
"""Reasons of a False condition that are no news."""
OWN_EVENTS = {Reason.DISRUPTED: "Disrupted", Reason.PROGRESS_DEADLINE_EXCEEDED: "ProgressDeadlineExceeded",
              Reason.CHILD_DELETED: "ChildDeleted"}  # fmt: skip
GOOD = {
    (ConditionType.ACCEPTED, Reason.SPEC_ACCEPTED): "Accepted",
    (ConditionType.PLANNED, Reason.PLAN_FITS): "Planned",
    (ConditionType.QUEUED, Reason.WAITING_FOR_QUOTA): "Queued",
    (ConditionType.QUEUED, Reason.ADMITTED): "Admitted",
    (ConditionType.SUSPENDED, Reason.SUSPENDED): "Suspended",
    (ConditionType.SUSPENDED, Reason.RESUMED): "Resumed",
    (ConditionType.COMPLETE, Reason.DRAFT_PUBLISHED): "DraftPublished",
    (ConditionType.COMPLETE, Reason.ALREADY_TRAINED): "AlreadyTrained",
}
"""Reasons that are told as a Normal event when a condition takes them."""
LOW_COVERAGE = 0.97


def events(before: DraftTrainingStatus, after: DraftTrainingStatus) -> tuple[Event, ...]:
    """What has happened between two statuses; nothing when they are the same."""
    return (*condition_events(before, after), *stage_events(before, after), *attempt_events(before, after),
            *shard_events(before, after), *plan_events(before, after))  # fmt: skip


def condition_events(before: DraftTrainingStatus, after: DraftTrainingStatus) -> Iterator[Event]:
    """Conditions that took another reason."""
    for now in after.conditions or ():
        was = find(before, now.type)
        if was is not None and (was.status, was.reason) == (now.status, now.reason):
            continue
        good = GOOD.get((now.type, Reason(now.reason)))
        if good and not (was is None and good in ("Admitted", "Resumed")):
            yield Event(good, now.message or good)
        elif is_warning(now):
            yield Event(now.reason if now.reason != Reason.UNREACHABLE else "ProgressUnreachable", now.message, True)


def is_warning(now: Condition) -> bool:
    """Whether a condition's new reason is bad news."""
    if now.type is ConditionType.FAILED:
        return now.status == "True"
    if now.type in MAY_BLOCK:
        return now.status == "False" and now.reason not in QUIET
    return now.reason in (Reason.PREEMPTED, Reason.UNREACHABLE)


def stage_events(before: DraftTrainingStatus, after: DraftTrainingStatus) -> Iterator[Event]:
    """Stages that started an attempt or were done."""
    known = {one.name: one for one in before.stages or ()}
    for now in after.stages or ():
        was = known.get(now.name, StageStatus(name=now.name, state="Pending"))
        if now.state == "Running" and now.attempt != was.attempt:
            yield Event("StageStarted" if now.attempt == 1 else "AttemptStarted", f"{now.name} a{now.attempt}")
        if now.resumed_from_step is not None and now.resumed_from_step != was.resumed_from_step:
            message = f"{now.name} a{now.attempt}: goes on at step {now.resumed_from_step}"
            yield Event("CheckpointResumed", message)
        if now.state == "Succeeded" and was.state != "Succeeded":
            yield Event("StageCompleted", f"{now.name} a{now.attempt}")


def attempt_events(before: DraftTrainingStatus, after: DraftTrainingStatus) -> Iterator[Event]:
    """Attempts that ended for a reason of their own."""
    known = {(one.stage, one.attempt) for one in before.history or ()}
    for entry in after.history or ():
        if (entry.stage, entry.attempt) in known or entry.reason == Reason.SUSPENDED:
            continue
        name = OWN_EVENTS.get(Reason(entry.reason), "AttemptFailed")
        yield Event(name, f"{entry.stage} a{entry.attempt}: {entry.reason}: {entry.message}", True)


def shard_events(before: DraftTrainingStatus, after: DraftTrainingStatus) -> Iterator[Event]:
    """Shards that were given up."""
    known = {one.name: one.failed_shards or "" for one in before.stages or ()}
    for now in after.stages or ():
        if now.failed_shards and now.failed_shards != known.get(now.name, ""):
            yield Event(
                "ShardFailed", f"{now.name} a{now.attempt}: shards {shown(now.failed_shards)} are given up", True
            )


def shown(shards: str) -> str:
    """As many shards as fit into an event."""
    return intervals.shorten(shards, MAX_MESSAGE - 100)


def plan_events(before: DraftTrainingStatus, after: DraftTrainingStatus) -> Iterator[Event]:
    """What limits the draft, though it can be trained."""
    covered, covered_before = (one.plan.vocab_coverage if one.plan else None for one in (after, before))
    if covered_before is None and covered is not None and float(covered) < LOW_COVERAGE:
        message = f"the draft vocabulary covers {covered} of the supervised tokens; {LOW_COVERAGE} or more is usual"
        yield Event("LowVocabCoverage", f"{message}: use a larger draft.vocabSize", True)
    share, share_before = (one.plan.on_policy_share if one.plan else None for one in (after, before))
    is_own = any(one.name is Stage.REGENERATE for one in after.stages or ())
    if share_before is None and share is not None and float(share) < LOW_ON_POLICY and not is_own:
        message = (
            f"only {share} of the tokens are what the target itself would have said; {LOW_ON_POLICY} or more is usual, "
            "since a draft learns best from the target's own text: a run with data.regenerate lets the target answer"
        )
        yield Event("OffPolicyData", message, True)
