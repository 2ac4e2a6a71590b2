"""What a pass concludes, from what is wanted, what exists and what was stored. Reads no clock, calls no API."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from draftyard_api.names import Stage
from draftyard_api.plan import stages
from draftyard_api.reasons import Reason
from draftyard_api.status import ConditionType, DraftTrainingStatus, StageStatus
from draftyard_operator import admission, attempts, deadlines, planning, situation, status, tasks, times
from draftyard_operator.config import OperatorConfig
from draftyard_operator.ledger import Ledger
from draftyard_operator.observe import Observed, Problem
from draftyard_operator.run import Run, is_terminal
from draftyard_operator.status import Event, Fact


@dataclass(frozen=True)
class Decision:
    """The status to store, and what is told about the change once it is stored."""

    status: DraftTrainingStatus
    events: tuple[Event, ...]


def decide(
    run: Run, seen: Observed, config: OperatorConfig, now: datetime, obstacle: Problem | None = None
) -> Decision:
    """Judge what was seen, choose what comes next, and say so. `obstacle` is what the API server refused this pass."""
    if is_terminal(run.status):
        return decided(run, situation.after_the_end(run))
    book = Ledger(run, seen, now, begun(run, now))
    accepted = admission.check(run, seen, config)
    if run.spec is None:
        return decided(run, situation.kept_but(book, {ConditionType.ACCEPTED: accepted}))
    resolve_backend(book, seen, accepted)
    planned = go_on(book, accepted)
    return decided(run, situation.told(book, accepted, planned, obstacle))


def blocked(run: Run, obstacle: Problem, now: datetime) -> Decision:
    """What is said when not even what exists could be read: all stays as it was, and a person is told."""
    if is_terminal(run.status):
        return Decision(run.status, ())
    book = Ledger(run, Observed(), now, begun(run, now))
    fact = Fact("False", obstacle.reason, obstacle.message)
    return decided(run, situation.kept_but(book, {ConditionType.RUNNING: fact}))


def decided(run: Run, made: DraftTrainingStatus) -> Decision:
    """With the events of what differs."""
    return Decision(made, status.events(run.status, made))


def begun(run: Run, now: datetime) -> DraftTrainingStatus:
    """The stored status, with what the first look adds."""
    return run.status.model_copy(update={"start_time": run.status.start_time or times.render(now)})


def resolve_backend(book: Ledger, seen: Observed, accepted: Fact) -> None:
    """Choose what training runs as: once, but a spec that is still free may ask for something else."""
    table = [book.stage(stage) for stage in stages(book.run.wanted)]
    book.change(stages=tuple(table))
    if accepted.truth == "True" and (book.status.backend is None or book.status.frozen_time is None):
        book.change(backend=admission.choose_backend(book.run.wanted, seen.serves_pytorch_jobs))


# -- The order of questions -------------------------------------------------------------------------------------------


def go_on(book: Ledger, accepted: Fact) -> Fact | None:
    """From the attempt that runs to the one that comes next. Returns the Planned fact when it was decided now."""
    planned = judge_running(book)
    if book.conclusion is None:
        check_active(book)
    if book.conclusion is None and book.run.wanted.suspend:
        stop_running(book, Reason.SUSPENDED, "suspended by spec.suspend")
    if book.conclusion is None and accepted.truth == "True":
        planned = check_prepared(book) or planned
        if not book.run.wanted.suspend:
            planned = planned or planning.assume_plan(book)
        if planned is not None and planned.truth == "True":
            book.change(frozen_time=book.status.frozen_time or book.time)
        if not book.run.wanted.suspend:
            start_next(book, planned)
    return planned


def judge_running(book: Ledger) -> Fact | None:
    """What has become of the attempt that runs, if one does."""
    stage = book.current()
    if stage is None or book.stage(stage).state != "Running":
        return None
    if stage is Stage.TRAIN and book.status.backend == "PyTorchJob" and not book.seen.serves_pytorch_jobs:
        # a child that cannot be listed is not gone
        return None
    return attempts.judge(book, stage)


def stop_running(book: Ledger, reason: Reason, message: str) -> None:
    """End the attempt that runs, though nothing is wrong with it."""
    stage = book.current()
    if stage is not None and book.stage(stage).state == "Running":
        book.end_attempt(stage, reason, message, counted=False)


def check_active(book: Ledger) -> None:
    """End a run that takes too long."""
    limit = book.run.wanted.deadlines.active_seconds
    stage = book.current()
    if limit is None or stage is None:
        return
    if deadlines.active_seconds(book.run.status, book.now) > limit:
        message = f"the run was active for more than {limit} s (deadlines.activeSeconds)"
        book.fail(stage, Reason.DEADLINE_EXCEEDED, message)


def check_prepared(book: Ledger) -> Fact | None:
    """Before the run is frozen: is what was prepared still what is wanted, and is there room by now?"""
    held = book.stage(Stage.PREPARE)
    is_settled = book.status.frozen_time is not None and not lacks_room(book)
    if is_settled or held.attempt == 0 or held.state in ("Pending", "Failed"):
        return None
    if has_new_task(book, held):
        if held.state == "Running":
            stop_running(book, Reason.INTERRUPTED, "the spec was changed; prepare starts again")
        else:
            book.reopen(Stage.PREPARE)
    elif held.state == "Succeeded" and planning.has_grown(book):
        book.reopen(Stage.PREPARE)
    else:
        return None
    return situation.not_planned()


def lacks_room(book: Ledger) -> bool:
    """Whether the run waits for a larger workspace. One that began with a guess is frozen by then."""
    before = situation.kept(book, ConditionType.PLANNED)
    return before is not None and before.truth == "False"


def has_new_task(book: Ledger, held: StageStatus) -> bool:
    """Whether the task of prepare would be another one today."""
    given = book.seen.prepare_task
    if given is None or book.run_stage(Stage.PREPARE).attempt != held.attempt:
        return False
    return tasks.prepare_changed(book.run, given)


def start_next(book: Ledger, planned: Fact | None) -> None:
    """Number the next attempt, once nothing of an older one can write any more."""
    stage = book.current()
    if stage is None or book.stage(stage).state != "Pending":
        return
    if stage is not Stage.PREPARE and book.status.frozen_time is None:
        return
    if lacks_room(book) if planned is None else planned.truth == "False":
        return
    if may_start(book, stage):
        book.start_attempt(stage)


def may_start(book: Ledger, stage: Stage) -> bool:
    """Whether older attempts are gone, and the wait after the last one is over."""
    seen, held = book.seen, book.stage(stage)
    if seen.live_pods(stage) or any(one.stage is stage for one in seen.children):
        return False
    last = book.last_end(stage)
    is_full = last is not None and last.reason == Reason.WORKSPACE_FULL
    return (is_full and planning.has_grown(book)) or held.attempt == 0 or book.due(stage) <= book.now
