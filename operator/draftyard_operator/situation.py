"""From what a pass found and decided to the facts that conditions tell."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from draftyard_api.names import Stage
from draftyard_api.plan import stages
from draftyard_api.progress import Progress
from draftyard_api.reasons import Reason
from draftyard_api.status import Condition, ConditionType, DraftTrainingStatus
from draftyard_operator import status, times
from draftyard_operator.deadlines import find
from draftyard_operator.ledger import Ledger
from draftyard_operator.observe import Child, Pod, Problem
from draftyard_operator.run import Run, pods_wanted
from draftyard_operator.status import Fact, Facts

STUCK = timedelta(minutes=10)
"""A pod that takes longer to end is on a node that is lost."""
OUT_OF_SERVICE = "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute"
ANSWER_SECONDS = 60
"""A reading may be missed; only silence for this long is told."""
NOT_NEEDED = Fact("False", Reason.NOT_NEEDED)


def told(book: Ledger, accepted: Fact, planned: Fact | None, obstacle: Problem | None) -> DraftTrainingStatus:
    """The status of a run that goes on, or that has ended in this pass."""
    planned = planned or kept(book, ConditionType.PLANNED) or not_planned()
    facts = {
        ConditionType.ACCEPTED: accepted,
        ConditionType.PLANNED: planned,
        **{status.STAGE_CONDITIONS[one]: status.stage_fact(book.stage(one)) for one in stages(book.run.wanted)},
        ConditionType.QUEUED: queued(book),
        ConditionType.RUNNING: running(book, planned, obstacle),
        ConditionType.PROGRESS_REPORTING: reporting(book),
        ConditionType.SUSPENDED: suspended(book),
        **status.end_facts(book),
    }
    stage = shown_stage(book)
    book.change(stage=stage, attempt=book.stage(stage).attempt)
    return status.conclude(book, facts)


def shown_stage(book: Ledger) -> Stage:
    """The stage that runs, or that ended the run."""
    order = stages(book.run.wanted)
    return next((one for one in order if book.stage(one).state not in ("Succeeded", "Skipped")), order[-1])


def kept(book: Ledger, kind: ConditionType) -> Fact | None:
    """What a condition said before."""
    before = find(book.run.status, kind)
    return None if before is None else as_fact(before)


def as_fact(found: Condition) -> Fact:
    """A condition, to be said again."""
    return Fact(found.status, found.reason, found.message)


def not_planned() -> Fact:
    """Before prepare has counted."""
    return Fact("Unknown", Reason.WAITING_FOR_PREPARE, "tokens are not counted yet")


# -- The child --------------------------------------------------------------------------------------------------------


def active_child(book: Ledger) -> Child | None:
    """The child of the attempt that runs."""
    stage = book.current()
    if stage is None or book.stage(stage).state != "Running":
        return None
    return book.seen.child(stage, book.stage(stage).attempt)


def queued(book: Ledger) -> Fact:
    """Whether a queue holds the child back. A child that somebody else suspended is queued, whoever that was."""
    child, before = active_child(book), kept(book, ConditionType.QUEUED)
    queue = book.run.wanted.scheduling.queue_name
    if child is None:
        if before is None:
            return Fact("False", Reason.ADMITTED if queue else Reason.NO_QUEUE)
        # what has left its queue like this was not admitted
        return before if before.truth == "False" else Fact("False", Reason.NO_QUEUE)
    if child.state != "Queued":
        was = before is not None and before.reason in (Reason.WAITING_FOR_QUOTA, Reason.PREEMPTED, Reason.ADMITTED)
        return Fact("False", Reason.ADMITTED if queue or was else Reason.NO_QUEUE)
    message = book.seen.wait or f"{child.name} is suspended by its queue{f' {queue}' if queue else ''}"
    if before is not None and before.truth == "True":
        return Fact("True", before.reason, message)
    was_seen = book.run_stage(child.stage).start_time is not None
    return Fact("True", Reason.PREEMPTED if was_seen else Reason.WAITING_FOR_QUOTA, message)


def running(book: Ledger, planned: Fact, obstacle: Problem | None) -> Fact:
    """Whether pods work, else why not."""
    stage = book.current()
    if book.conclusion is not None or stage is None:
        return NOT_NEEDED
    refused = Fact("False", obstacle.reason, obstacle.message) if obstacle else None
    child = active_child(book)
    # what is refused beside a child that works is not what the run waits for
    hindrance = stuck_pod(book, stage) or (refused if child is None else None)
    if hindrance is not None:
        return hindrance
    if book.stage(stage).state == "Running":
        return pods_fact(book, stage, child)
    is_held = book.run.wanted.suspend or planned.truth == "False"
    return NOT_NEEDED if is_held else waiting(book, stage)


def waiting(book: Ledger, stage: Stage) -> Fact:
    """Between two attempts."""
    held, last, due = book.stage(stage), book.last_end(stage), book.due(stage)
    if last is not None and last.reason == Reason.WORKSPACE_FULL:
        message = f"{last.message}; tried again when the claim has grown, else every 10 minutes"
        return Fact("False", Reason.WORKSPACE_FULL, message)
    if last is not None and due > book.now:
        name, at = f"{stage} a{held.attempt}", times.render(due)
        return Fact("False", Reason.BACKOFF, f"{name}: {last.reason}: {last.message}; the next attempt starts at {at}")
    return Fact("False", Reason.PENDING, f"{stage} a{held.attempt + 1}: waits until older attempts are gone")


def pods_fact(book: Ledger, stage: Stage, child: Child | None) -> Fact:
    """What the pods of the attempt do."""
    attempt = book.stage(stage).attempt
    name = f"{stage} a{attempt}"
    pods = book.seen.pods_of(stage, attempt)
    if child is None:
        return Fact("False", Reason.PENDING, f"{name}: {'its child is gone' if pods else 'is being made'}")
    if child.state == "Queued":
        return Fact("False", Reason.PENDING, f"{name}: waits in a queue")
    wanted, refusal = pods_wanted(book.run, stage), book.seen.refusal
    working = [pod for pod in pods if not pod.is_live or pod.is_ready]
    if len(working) >= wanted and any(pod.is_live for pod in working):
        return Fact("True", Reason.PODS_READY, work_message(book, name))
    if refusal is not None:
        return Fact("False", refusal.reason, f"{name}: {refusal.message}")
    before = kept(book, ConditionType.RUNNING)
    if pods and not any(pod.is_live for pod in pods) and before is not None and before.truth == "True":
        # pods have ended, and their child is about to say so
        return before
    return not_ready(name, pods, f"{len(working)} of {wanted} pods ready")


def not_ready(name: str, pods: Sequence[Pod], count: str) -> Fact:
    """Why pods do not work: by the first that knows."""
    for pod in pods:
        if pod.is_live and pod.problem is not None:
            return Fact("False", pod.problem.reason, f"{name}: {pod.problem.message}")
    return Fact("False", Reason.PENDING, f"{name}: {count}")


def work_message(book: Ledger, name: str) -> str:
    """`train a2: step 1330 of 3168`, from what is stored: a message must not change more often than progress."""
    progress = book.status.progress
    if progress is None:
        return f"{name}: running"
    if progress.step is not None and progress.total_steps:
        return f"{name}: step {progress.step} of {progress.total_steps}"
    return f"{name}: {progress.percentage}" if progress.percentage else f"{name}: running"


def stuck_pod(book: Ledger, stage: Stage) -> Fact | None:
    """A pod that does not end keeps the next attempt from starting: its node may still write."""
    for pod in book.seen.live_pods(stage):
        if pod.deleting_since is not None and book.now - pod.deleting_since > STUCK:
            message = (
                f"pod {pod.name} on node {pod.node or 'unknown'} has been terminating since "
                f"{times.render(pod.deleting_since)}; if the node is down for good, taint it {OUT_OF_SERVICE}"
            )
            return Fact("False", Reason.POD_STUCK_TERMINATING, message)
    return None


# -- Progress, suspension ---------------------------------------------------------------------------------------------


def reporting(book: Ledger) -> Fact:
    """Whether the pods say how far they are."""
    child = active_child(book)
    not_needed = Fact("Unknown", Reason.NOT_NEEDED)
    if book.conclusion is not None or child is None or child.is_over or child.state == "Queued":
        return not_needed
    ready = [pod for pod in book.seen.pods_of(child.stage, child.attempt) if pod.is_live and pod.is_ready]
    if not ready:
        return not_needed
    progress, reading = book.status.progress, book.seen.progress
    age = heard_seconds(book, ready)
    if reading is None:
        unreachable = Fact("Unknown", Reason.UNREACHABLE, "no pod answers on its progress port")
        return kept_or(book, unreachable) if age is not None and age < ANSWER_SECONDS else unreachable
    return freshness(book, reading, 0.0 if progress is None else age or 0.0)


def kept_or(book: Ledger, other: Fact) -> Fact:
    """What was said of progress before, where something was."""
    before = kept(book, ConditionType.PROGRESS_REPORTING)
    return before if before is not None and before.reason != Reason.STALE else other


def heard_seconds(book: Ledger, ready: list[Pod]) -> float | None:
    """Seconds since the last reading that was stored, or since pods are ready."""
    progress = book.status.progress
    if progress is not None and progress.last_updated_time is not None:
        return times.seconds_since(progress.last_updated_time, book.now)
    before = find(book.run.status, ConditionType.RUNNING)
    if before is None or before.status != "True":
        return 0.0
    return times.seconds_since(before.last_transition_time, book.now) if ready else None


def freshness(book: Ledger, reading: Progress, age: float) -> Fact:
    """A heartbeat that stands still is told before it ends the attempt."""
    progress, limit = book.status.progress, book.run.wanted.deadlines.progress_seconds
    is_same = progress is not None and progress.heartbeat == max(int(reading.heartbeat), 0)
    if is_same and age > limit / 2:
        return Fact("False", Reason.STALE, f"no new heartbeat; the attempt ends after {limit} s without one")
    return Fact("True", Reason.FRESH)


def suspended(book: Ledger) -> Fact:
    """Whether pods are gone because a person wants it so."""
    before = find(book.run.status, ConditionType.SUSPENDED)
    if book.run.wanted.suspend and book.conclusion is None:
        stage = book.current()
        if stage is not None and (book.seen.live_pods(stage) or is_going(book, stage)):
            return Fact("False", Reason.SUSPENDING, f"{stage}: waits until no pod is left")
        return Fact("True", Reason.SUSPENDED, "suspended; the workspace stays")
    if before is not None and before.reason in (Reason.SUSPENDED, Reason.SUSPENDING, Reason.RESUMED):
        return Fact("False", Reason.RESUMED)
    return Fact("False", Reason.NOT_SUSPENDED)


def is_going(book: Ledger, stage: Stage) -> bool:
    """Whether a child of the stage is still there, or may have been made by the pass that was cut short."""
    return any(child.stage is stage and not child.is_over for child in book.seen.children)


# -- Runs that are no longer decided ----------------------------------------------------------------------------------


def kept_but(book: Ledger, changed: Facts) -> DraftTrainingStatus:
    """The status of a run that cannot be judged: all stays as it was, but for what a person is told."""
    going_on = Fact("False", Reason.IN_PROGRESS)
    first = {
        ConditionType.ACCEPTED: Fact("Unknown", Reason.IN_PROGRESS),
        ConditionType.PLANNED: not_planned(),
        ConditionType.QUEUED: Fact("False", Reason.NO_QUEUE),
        ConditionType.RUNNING: NOT_NEEDED,
        ConditionType.SUSPENDED: Fact("False", Reason.NOT_SUSPENDED),
        ConditionType.COMPLETE: going_on,
        ConditionType.FAILED: going_on,
    }
    before = {one.type: as_fact(one) for one in book.run.status.conditions or ()}
    return status.conclude(book, {**first, **before, **changed})


def after_the_end(run: Run) -> DraftTrainingStatus:
    """The status of a run that has ended: nothing of it changes but which generation it is about."""
    return run.status.model_copy(
        update={
            "observed_generation": run.generation,
            "conditions": tuple(
                one.model_copy(update={"observed_generation": run.generation}) for one in run.status.conditions or ()
            ),
        }
    )
