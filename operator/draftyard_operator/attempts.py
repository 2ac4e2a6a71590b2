"""One running attempt: is it over, and how? What counts as done was verified by its pod, and said in its result."""

from __future__ import annotations

from draftyard_api.exit_codes import ExitCode
from draftyard_api.names import Stage
from draftyard_api.plan import stages
from draftyard_api.reasons import Reason
from draftyard_api.status import ConditionType
from draftyard_operator import deadlines, failure, intervals, planning, results, times
from draftyard_operator.failure import Effect, Verdict
from draftyard_operator.ledger import Ledger
from draftyard_operator.observe import Child, Pod, lingers
from draftyard_operator.run import INDEXED, max_failed_shards, pods_wanted
from draftyard_operator.status import Fact

GIVEN_UP = ("FailedIndexes", "MaxFailedIndexesExceeded")
"""Reasons of an Indexed Job that ended with shards missing."""
MOST_STALE_INPUTS = 3


def judge(ledger: Ledger, stage: Stage) -> Fact | None:
    """Write down what has become of the running attempt. Returns the Planned fact when prepare is done."""
    held = ledger.stage(stage)
    child = ledger.seen.child(stage, held.attempt)
    if child is None:
        if held.start_time is not None:
            message = f"{held.child or stage}: deleted by someone"
            ledger.end_attempt(stage, Reason.CHILD_DELETED, message, counted=False)
        return None
    if held.start_time is None:
        ledger.change_stage(stage, start_time=ledger.time, child=f"{child.kind}/{child.name}")
    if stage in INDEXED:
        results.keep_shards(ledger, stage, child)
    if stage is Stage.GENERATE:
        planning.measure_shards(ledger)
    if child.state == "Succeeded":
        return finish(ledger, stage, child)
    if child.state == "Failed":
        if is_early(ledger, stage, child) and not is_worker_gone(ledger, stage, child):
            return None
        if is_enough(ledger, stage, child):
            return finish(ledger, stage, child)
        end(ledger, stage, verdict_of(ledger, stage, child))
        return None
    keep_on(ledger, stage, child)
    return None


def is_early(ledger: Ledger, stage: Stage, child: Child) -> bool:
    """Whether pods of an attempt that is over still run: the one that knows why may be among them."""
    pods = ledger.seen.pods_of(stage, child.attempt)
    late = replacements(ledger, stage, child)
    waits = any(pod.is_live and pod.deleting_since is None and pod not in late for pod in pods)
    return waits and not lingers(child, pods, ledger.now)


# -- Workers that are taken away --------------------------------------------------------------------------------------


def replacements(ledger: Ledger, stage: Stage, child: Child) -> tuple[Pod, ...]:
    """Workers that the training-operator has made in place of others: after a step of training, or after the end.

    It makes a worker again that is gone before it has seen it go, and even then that the job has failed already. Such
    a worker waits for the others to meet it, which they never do: nobody has to wait for it, and it knows nothing.
    """
    if child.kind != "PyTorchJob":
        return ()
    progress = ledger.run.status.progress
    worked = progress.last_updated_time if progress and progress.step else None
    times_known = [time for time in (child.ended_at, times.parse(worked) if worked else None) if time is not None]
    pods = ledger.seen.pods_of(stage, child.attempt)
    return tuple(pod for pod in pods if pod.created is not None and any(pod.created > time for time in times_known))


def broken_by(ledger: Ledger, stage: Stage, child: Child) -> str | None:
    """Why an attempt is over whose child does not say so: one of several workers was replaced; None when none was."""
    late = replacements(ledger, stage, child)
    pods = [pod for pod in ledger.seen.pods_of(stage, child.attempt) if pod.deleting_since is None]
    if child.state == "Queued" or child.is_deleting or not late or all(pod in late for pod in pods):
        return None
    return f"{late[0].name} was taken away and made again, and the others cannot go on with it"


def was_taken_away(ledger: Ledger, stage: Stage, child: Child) -> bool:
    """Whether a PyTorchJob failed because somebody ended its pods: a queue that suspends it, a drain, a person.

    training-operator takes pods that are told to end for failed ones. What tells them apart: pods that failed by
    themselves stay until their child is deleted, and all were there when training took a step.
    """
    if child.kind != "PyTorchJob":
        return False
    if is_worker_gone(ledger, stage, child):
        return True
    pods = ledger.seen.pods_of(stage, child.attempt)
    failed = (pod for pod in pods if pod.end is not None and not failure.is_success(pod.end))
    return all(pod.deleting_since is not None for pod in failed)


def is_worker_gone(ledger: Ledger, stage: Stage, child: Child) -> bool:
    """Whether a worker is gone that was there when training took a step: why the attempt failed is known then."""
    late, progress = replacements(ledger, stage, child), ledger.run.status.progress
    has_worked = progress is not None and bool(progress.step)
    left = len(ledger.seen.pods_of(stage, child.attempt)) - len(late)
    return child.kind == "PyTorchJob" and (has_worked or bool(late)) and left < pods_wanted(ledger.run, stage)


# -- A good end -------------------------------------------------------------------------------------------------------


def is_enough(ledger: Ledger, stage: Stage, child: Child) -> bool:
    """Whether an Indexed Job that failed has made as many shards as training needs."""
    states, plan = ledger.run.wanted.hidden_states, ledger.status.plan
    if stage is not Stage.GENERATE or child.reason not in GIVEN_UP or states is None or plan is None:
        return False
    made, given_up = intervals.count(child.completed), intervals.count(child.failed)
    return given_up <= states.max_failed_shards and made + given_up == plan.shards and made > 0


def finish(ledger: Ledger, stage: Stage, child: Child) -> Fact | None:
    """A child that ended well: done when a result with a manifest says so."""
    pods = ledger.seen.pods_of(stage, ledger.stage(stage).attempt)
    verified = [result for result in results.succeeded(pods) if result.manifest_sha256]
    if not verified:
        without_result(ledger, stage, child)
        return None
    if stage is Stage.REGENERATE and not results.keep_conversations(ledger, verified):
        ledger.fail(stage, Reason.OUTPUT_MISSING, f"{child.name}: its results do not say where the conversations are")
        return None
    if stage is Stage.PREPARE:
        return finish_prepare(ledger, child)
    if stage is Stage.GENERATE:
        results.keep_states(ledger, verified)
        if ledger.status.hidden_states is None or ledger.status.hidden_states.key is None:
            ledger.fail(stage, Reason.OUTPUT_MISSING, f"{child.name}: no result says where the hidden states are")
            return None
    results.keep_result(ledger, verified[0])
    ledger.succeed(stage)
    if stage is stages(ledger.run.wanted)[-1]:
        ledger.complete(Reason.DRAFT_PUBLISHED, published(ledger))
    return None


def without_result(ledger: Ledger, stage: Stage, child: Child) -> None:
    """A child that ended well, and of which no pod says what it made."""
    pods = ledger.seen.pods_of(stage, ledger.stage(stage).attempt)
    if is_early(ledger, stage, child):
        # with several workers, the first that is done is the end of all, and another one has the result
        return
    if any(pod.is_live for pod in pods):
        message = f"{child.name}: ended well, and the pod with its result did not end"
        ledger.end_attempt(stage, Reason.RESULT_LOST, message, counted=False)
    elif len(pods) < pods_wanted(ledger.run, stage):
        message = f"{child.name}: ended well, and no result is left; what it made is verified by the next attempt"
        ledger.end_attempt(stage, Reason.RESULT_LOST, message, counted=False)
    elif any(pod.end is not None and not failure.is_success(pod.end) for pod in pods):
        # one of several workers is a success to the training-operator, whatever became of the one with the result
        end(ledger, stage, failure.classify(pods))
    else:
        message = f"{child.name}: ended with code 0 and without a manifest: its output is missing"
        ledger.fail(stage, Reason.OUTPUT_MISSING, message)


def published(ledger: Ledger) -> str:
    """Where the draft is, and how good."""
    export, acceptance = ledger.status.export, ledger.status.acceptance
    where = export.uri if export and export.uri else "the workspace"
    length = f"; acceptance length {acceptance.length} ({acceptance.source.lower()})" if acceptance else ""
    return f"published to {where}{length}"


def finish_prepare(ledger: Ledger, child: Child) -> Fact | None:
    """Tokens are counted: the run is known now, and is planned, unless its draft is there already."""
    pods = ledger.seen.pods_of(Stage.PREPARE, ledger.stage(Stage.PREPARE).attempt)
    prepared = next((one.prepared for one in results.succeeded(pods) if one.prepared and one.manifest_sha256), None)
    if prepared is None:
        ledger.fail(Stage.PREPARE, Reason.OUTPUT_MISSING, f"{child.name}: its result does not say what it prepared")
        return None
    known = ledger.status.fingerprint
    if ledger.status.frozen_time is not None and known is not None and known != prepared.fingerprint:
        message = "the data or the target have changed since the run was frozen; create a DraftTraining of another name"
        ledger.fail(Stage.PREPARE, Reason.DATA_REJECTED, message)
        return None
    results.keep_prepared(ledger, prepared, next((pod.image for pod in pods if pod.image), ""))
    ledger.succeed(Stage.PREPARE)
    if prepared.already_trained:
        planning.fill_plan(ledger, prepared)
        ledger.complete(Reason.ALREADY_TRAINED, "a draft with the same fingerprint is published; nothing was trained")
        return None
    is_planned = planning.is_counted(ledger) and deadlines.holds(ledger.run.status, ConditionType.PLANNED)
    if ledger.status.frozen_time is not None and is_planned:
        return None
    return planning.fill_plan(ledger, prepared)


# -- Any other end ----------------------------------------------------------------------------------------------------


def verdict_of(ledger: Ledger, stage: Stage, child: Child) -> Verdict:
    """How the attempt ended."""
    pods = ledger.seen.pods_of(stage, ledger.stage(stage).attempt)
    says = f"{child.name}: {child.reason}: {child.message}" if child.reason else f"{child.name}: failed"
    if stage in INDEXED and child.reason in GIVEN_UP:
        bad = {pod.index for pod in pods if pod.end and pod.end.exit_code == ExitCode.BAD_SHARD}
        allowed = max_failed_shards(ledger.run.wanted, stage)
        if len(bad) > allowed:
            message = f"shards {intervals.render(bad)} cannot be made; accepted: {allowed} missing"
            return Verdict(Effect.PERMANENT, Reason.SHARDS_FAILED, message)
    verdict = failure.classify(pods, says)
    if verdict.reason is Reason.POD_FAILED and was_taken_away(ledger, stage, child):
        return Verdict(Effect.UNCOUNTED, Reason.DISRUPTED, f"{child.name}: its pods were taken away; {verdict.message}")
    return verdict


def end(ledger: Ledger, stage: Stage, verdict: Verdict) -> None:
    """Write down a bad end, and what follows from it."""
    if verdict.result is not None:
        results.keep_result(ledger, verdict.result)
    match verdict.effect:
        case Effect.PERMANENT:
            ledger.fail(stage, verdict.reason, verdict.message)
        case Effect.COUNTED:
            end_counted(ledger, stage, verdict.reason, verdict.message)
        case Effect.UNCOUNTED:
            ledger.end_attempt(stage, verdict.reason, verdict.message, counted=False)
        case Effect.WORKSPACE_FULL:
            ledger.end_attempt(stage, verdict.reason, verdict.message, counted=False)
            planning.remember_capacity(ledger)
        case Effect.STALE_INPUT:
            end_stale(ledger, stage, verdict)


def end_counted(ledger: Ledger, stage: Stage, reason: Reason, message: str) -> None:
    """A failure that uses up an attempt: the last one ends the run."""
    most = ledger.run.wanted.retry.max_attempts
    if ledger.stage(stage).counted + 1 < most:
        ledger.end_attempt(stage, reason, message, counted=True)
        return
    ledger.change_stage(stage, counted=ledger.stage(stage).counted + 1)
    ledger.fail(stage, Reason.RETRIES_EXHAUSTED, f"{stage} failed {most} times; the last time: {reason}: {message}")


def end_stale(ledger: Ledger, stage: Stage, verdict: Verdict) -> None:
    """The output of an earlier stage is gone or broken: that stage runs again, but not for ever."""
    order = stages(ledger.run.wanted)
    place = order.index(stage)
    if place == 0 or ledger.times_ended(stage, Reason.STALE_INPUT) + 1 >= MOST_STALE_INPUTS:
        ledger.fail(stage, Reason.DATA_NOT_FOUND, verdict.message)
        return
    ledger.end_attempt(stage, Reason.STALE_INPUT, verdict.message, counted=False)
    ledger.reopen(order[place - 1])


# -- No end -----------------------------------------------------------------------------------------------------------


def keep_on(ledger: Ledger, stage: Stage, child: Child) -> None:
    """Write down how far an attempt is that goes on, if it may."""
    broken = broken_by(ledger, stage, child)
    if broken is not None:
        ledger.end_attempt(stage, Reason.DISRUPTED, broken, counted=False)
        return
    if child.state == "Queued":
        # its pods are gone, and with them the heartbeat that a deadline could wait for
        ledger.change(progress=None)
    else:
        results.keep_progress(ledger, ledger.seen.progress, child)
    if stage is Stage.TRAIN:
        results.keep_saved(ledger, ledger.seen.progress)
        planning.measure_steps(ledger)
    check_deadlines(ledger, stage, child)


def check_deadlines(ledger: Ledger, stage: Stage, child: Child) -> None:
    """End an attempt that does not start, or that hangs."""
    if child.is_deleting:
        return
    limits, before = ledger.run.wanted.deadlines, ledger.run.status
    name = f"{stage} a{ledger.stage(stage).attempt}"
    waiting = deadlines.starting_since(before, ledger.run_stage(stage))
    is_ready = any(pod.is_ready and pod.is_live for pod in ledger.seen.pods_of(stage))
    is_late = waiting is not None and times.seconds_since(waiting, ledger.now) > limits.start_seconds
    if is_late and child.state != "Queued" and not is_ready:
        why = f"{before.reason}: {before.message}" if before.reason else "no pod became ready"
        message = f"{name}: no pod was ready within {limits.start_seconds} s (deadlines.startSeconds): {why}"
        ledger.fail(stage, Reason.START_DEADLINE_EXCEEDED, message)
        return
    silent = deadlines.silent_since(ledger.status, answers=ledger.seen.progress is not None)
    if silent is not None and times.seconds_since(silent, ledger.now) > limits.progress_seconds:
        message = f"{name}: no new heartbeat for {limits.progress_seconds} s (deadlines.progressSeconds)"
        end_counted(ledger, stage, Reason.PROGRESS_DEADLINE_EXCEEDED, message)
