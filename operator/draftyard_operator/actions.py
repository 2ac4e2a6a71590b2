"""What the stored status asks for that does not exist yet, or exists and should not. Values in, values out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from draftyard_api import names
from draftyard_api.frozen import parse_quantity
from draftyard_api.plan import stages
from draftyard_api.reasons import Reason
from draftyard_api.status import ConditionType, DraftTrainingStatus
from draftyard_operator import backends, times
from draftyard_operator.config import OperatorConfig
from draftyard_operator.deadlines import find, holds
from draftyard_operator.kinds import CLAIM, CONFIG_MAP, Kind
from draftyard_operator.manifests import indexed, storage
from draftyard_operator.manifests.work import Manifest, Work, owner
from draftyard_operator.observe import Child, Observed, Problem, lingers
from draftyard_operator.run import INDEXED, Run, is_terminal, shards_of, stage_of


@dataclass(frozen=True)
class Create:
    """Make an object, unless it is there and ours."""

    kind: Kind
    manifest: Manifest


@dataclass(frozen=True)
class Patch:
    """Change an object."""

    kind: Kind
    name: str
    patch: Manifest


@dataclass(frozen=True)
class Delete:
    """Delete a child, and wait for its pods (Foreground). The uid keeps another one of that name alive."""

    kind: Kind
    name: str
    uid: str


Action = Create | Patch | Delete


def actions(
    run: Run, decided: DraftTrainingStatus, seen: Observed, config: OperatorConfig, now: datetime
) -> list[Action]:
    """What follows from the stored status. Nothing is made that the new decision would take back."""
    if is_terminal(run.status):
        return list(after_the_end(run, seen, now))
    if run.spec is None:
        return []
    return [*over(run, seen, now), *claim_changes(run, seen), *creations(run, decided, seen, config),
            *parallelism(run, seen, config)]  # fmt: skip


# -- What should not be there -----------------------------------------------------------------------------------------


def over(run: Run, seen: Observed, now: datetime) -> Iterator[Action]:
    """Children of attempts that are over, so that the next one of the stage can start."""
    for child in seen.children:
        held = stage_of(run.status, child.stage)
        # a stage that is done keeps its last child, for its logs, until cleanup
        is_kept = held.attempt == child.attempt and (
            held.state == "Running" or (held.state == "Succeeded" and not lingers(child, seen.pods, now))
        )
        # the stored status may be older than what another operator has made
        if child.attempt <= held.attempt and not is_kept and not child.is_deleting:
            yield delete(child)


def delete(child: Child) -> Delete:
    """The deletion of a child."""
    return Delete(backends.BACKENDS[child.kind].kind, child.name, child.uid)


def after_the_end(run: Run, seen: Observed, now: datetime) -> Iterator[Action]:
    """Of an ended run, what still runs is stopped at once, and what has ended goes when it is time."""
    for child in seen.children:
        is_due = is_cleaned_up(run, now) or lingers(child, seen.pods, now)
        if not child.is_deleting and (is_due or not child.is_over):
            yield delete(child)


def cleanup_time(run: Run) -> datetime | None:
    """When ended children of an ended run are removed; None for never."""
    ended = run.status.completion_time
    if run.spec is None or ended is None or run.spec.cleanup.children == "Never":
        return None
    if run.spec.cleanup.children == "OnSuccess" and not holds(run.status, ConditionType.COMPLETE):
        return None
    return times.parse(ended) + timedelta(seconds=run.spec.cleanup.ttl_seconds_after_finished)


def is_cleaned_up(run: Run, now: datetime) -> bool:
    """Whether it is time that ended children of an ended run are gone."""
    due = cleanup_time(run) if is_terminal(run.status) else None
    return due is not None and now >= due


# -- What should be there ---------------------------------------------------------------------------------------------


def creations(run: Run, decided: DraftTrainingStatus, seen: Observed, config: OperatorConfig) -> Iterator[Action]:
    """The task and the child of the stored attempt, as long as it was never seen."""
    accepted = find(decided, ConditionType.ACCEPTED)
    is_accepted = accepted is not None and accepted.status == "True"
    if is_terminal(decided) or not is_accepted or claim_problem(run, seen) is not None:
        return
    for stage in stages(run.wanted):
        stored, now = stage_of(run.status, stage), stage_of(decided, stage)
        is_wanted = stored.state == "Running" and now.state == "Running" and stored.attempt == now.attempt
        if is_wanted and stored.start_time is None and seen.child(stage, stored.attempt) is None:
            work = Work(run, run.status, config, stage)
            yield Create(CONFIG_MAP, storage.task_config_map(work))
            yield Create(backends.BACKENDS[backends.backend_of(work)].kind, backends.child_manifest(work))


def claim_problem(run: Run, seen: Observed) -> Problem | None:
    """Why the workspace's claim cannot be used, though it has the right name."""
    claim, pvc = seen.claim, run.wanted.workspace.pvc
    if claim is None or pvc is None or pvc.claim_template is None:
        return None
    if claim.is_deleting or claim.owner_uid not in ("", run.uid):
        return Problem(Reason.PENDING, f"claim {claim.name} goes with an older object of this name; waits for that")
    if claim.claim_of != run.name:
        message = f"claim {claim.name} exists and was not made for this run; remove it, or use existingClaim"
        return Problem(Reason.CHILD_CONFLICT, message)
    return None


def claim_changes(run: Run, seen: Observed) -> Iterator[Action]:
    """The claim of claimTemplate: made, grown, or given another owner."""
    pvc = run.wanted.workspace.pvc
    if pvc is None or pvc.claim_template is None:
        return
    claim, template = seen.claim, pvc.claim_template
    if claim is None:
        yield Create(CLAIM, storage.workspace_claim(run))
        return
    if claim_problem(run, seen) is not None:
        return
    if parse_quantity(template.size) > claim.requested:
        size = {"spec": {"resources": {"requests": {"storage": template.size}}}}
        yield Patch(CLAIM, claim.name, size)
    wanted = run.uid if template.reclaim == "Delete" else ""
    if claim.owner_uid != wanted:
        owners = [owner(run)] if wanted else None
        yield Patch(CLAIM, claim.name, {"metadata": {"ownerReferences": owners}})


def parallelism(run: Run, seen: Observed, config: OperatorConfig) -> Iterator[Action]:
    """How many shards are made at the same time; with a queue, that is the queue's to say."""
    if run.wanted.scheduling.queue_name is not None:
        return
    for stage in INDEXED:
        held, shards = stage_of(run.status, stage), shards_of(run.status, stage)
        child = seen.child(stage, held.attempt)
        if held.state != "Running" or shards is None or child is None or child.is_over or child.is_deleting:
            continue
        wanted = indexed.parallelism(run, config, stage, shards)
        if child.parallelism != wanted:
            yield Patch(backends.BACKENDS["Job"].kind, child.name, {"spec": {"parallelism": wanted}})


def is_ours(run: Run, found: Manifest) -> bool:
    """Whether an object that has the name of one of ours is ours."""
    labels = found["metadata"].get("labels") or {}
    return labels.get(names.LABEL_UID) == run.uid or labels.get(names.LABEL_CLAIM_OF) == run.name
