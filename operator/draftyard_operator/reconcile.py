"""The page: one look at one DraftTraining, from what is wanted and what exists to what is done and told.

A pass acts only on what the stored status already says, and then stores what it decided next: wherever it is cut
short, the next one goes on from there.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from draftyard_api.reasons import Reason
from draftyard_operator import decide, refusals, reporting, schedule
from draftyard_operator.actions import Action, Create, Delete, Patch, actions, claim_problem, is_cleaned_up, is_ours
from draftyard_operator.census import Census
from draftyard_operator.cluster import Cluster
from draftyard_operator.config import OperatorConfig
from draftyard_operator.decide import Decision
from draftyard_operator.kinds import CLAIM, CONFIG_MAP, RUN
from draftyard_operator.looking import look
from draftyard_operator.metrics import Metrics
from draftyard_operator.observe import Observed, Problem
from draftyard_operator.refusals import ApiError
from draftyard_operator.run import Run, is_terminal, read_run
from draftyard_operator.status import Event

Json = Any

LOG = logging.getLogger("draftyard.operator")
CONFLICT_SECONDS = 1.0
"""Until the next look at an object that was changed while we looked at it."""


@dataclass
class Operator:
    """What all passes share."""

    cluster: Cluster
    config: OperatorConfig
    metrics: Metrics = field(default_factory=Metrics)
    instance: str = "draftyard-operator"
    """Name of the operator's pod, for events."""


async def reconcile(
    operator: Operator, namespace: str, name: str, now: datetime, census: Census | None = None
) -> float | None:
    """One pass. Returns in how many seconds to look again, None for not before something happens.

    With a census it is asked first whether there is anything to do or to say. Raises ApiError when the API server
    cannot be asked: the caller waits, and tries again.
    """
    found = await operator.cluster.get(RUN, namespace, name)
    if found is None:
        operator.metrics.forget(namespace, name)
        return None
    run = read_run(found)
    if run.is_deleting:
        # what it owns goes with it, by garbage collection
        return None
    rests = await look_at_rest(operator, run, now, census) if census is not None else None
    if rests is not None:
        return schedule.look_again(run, run.status, rests, 0, now)
    return await work_on(operator, run, now)


async def work_on(operator: Operator, run: Run, now: datetime) -> float | None:
    """Look at what exists of a run, do what follows, and say so. Raises ApiError."""
    try:
        seen = await look(operator.cluster, operator.config, run, now)
    except ApiError as error:
        return await cannot_look(operator, run, error, now)
    decision = decide.decide(run, seen, operator.config, now)
    wanted = actions(run, decision.status, seen, operator.config, now)
    obstacle = await act(operator, run, wanted) or held_by_claim(run, seen)
    if obstacle is not None:
        decision = decide.decide(run, seen, operator.config, now, obstacle)
    if not await report(operator, run, decision, now):
        return CONFLICT_SECONDS
    if obstacle is None and wanted and is_cleaned_up(run, now):
        told = Event("CleanedUp", f"{len(wanted)} ended children are removed; status, tasks and workspace stay")
        await reporting.tell(operator.cluster, operator.instance, run, [told], now)
    return schedule.look_again(run, decision.status, seen, len(wanted), now)


async def look_at_rest(operator: Operator, run: Run, now: datetime, census: Census) -> Observed | None:
    """What a census says of a run of which there is nothing to do and to say; None where a pass must see for itself."""
    try:
        seen = await look(census, operator.config, run, now)
    except ApiError:
        return None
    return seen if is_undisturbed(operator, run, seen, now) else None


def is_undisturbed(operator: Operator, run: Run, seen: Observed, now: datetime) -> bool:
    """Whether a pass would do nothing, and say nothing new."""
    decision = decide.decide(run, seen, operator.config, now)
    if actions(run, decision.status, seen, operator.config, now) or held_by_claim(run, seen) is not None:
        return False
    if reporting.status_patch(run, decision.status) is not None:
        return False
    operator.metrics.see(run.namespace, run.name, reporting.labels(run, decision.status))
    return True


async def cannot_look(operator: Operator, run: Run, error: ApiError, now: datetime) -> float | None:
    """Say that a right is missing, since a person must give it; anything else passes. Raises ApiError."""
    if not refusals.is_right_missing(error):
        raise error
    decision = decide.blocked(run, refusals.explain(error), now)
    await report(operator, run, decision, now)
    return schedule.BLOCKED_SECONDS


def held_by_claim(run: Run, seen: Observed) -> Problem | None:
    """Why nothing is made, where it is the workspace's claim."""
    return None if run.spec is None or is_terminal(run.status) else claim_problem(run, seen)


# -- Acting -----------------------------------------------------------------------------------------------------------


async def act(operator: Operator, run: Run, wanted: Sequence[Action]) -> Problem | None:
    """Do what the stored status asks for. Returns the first refusal that must be mended. Raises ApiError."""
    for action in wanted:
        try:
            problem = await perform(operator, run, action)
        except ApiError as error:
            if not error.is_final:
                raise
            problem = None if refusals.is_leaving(error) else refusals.explain(error)
            # the task is refused: then its child would wait for it
            if problem is None:
                return None
        if problem is not None:
            return problem
    return None


async def perform(operator: Operator, run: Run, action: Action) -> Problem | None:
    """Do one thing. Returns why it is not done though nothing was refused. Raises ApiError."""
    cluster, home = operator.cluster, run.namespace
    match action:
        case Create():
            return await create(operator, run, action)
        case Patch(kind, name, patch):
            await cluster.patch(kind, home, name, patch)
        case Delete(kind, name, uid):
            await cluster.delete(kind, home, name, uid)
    reporting.log_action(LOG, run, action)
    return None


async def create(operator: Operator, run: Run, action: Create) -> Problem | None:
    """Make an object once. A reply that was lost, or a pass that was cut short, has made it already."""
    name = action.manifest["metadata"]["name"]
    try:
        stored = await operator.cluster.create(action.kind, run.namespace, action.manifest)
    except ApiError as error:
        if not error.is_taken:
            raise
        return whose(run, action, await operator.cluster.get(action.kind, run.namespace, name))
    reporting.log_action(LOG, run, action)
    lost = sorted(lost_fields(action.manifest, stored)) if action.kind not in (CLAIM, CONFIG_MAP) else []
    if lost:
        LOG.warning("fields dropped by the API server", extra={"child": name, "error": ", ".join(lost)[:1024]})
    return None


def whose(run: Run, action: Create, found: Json | None) -> Problem | None:
    """What it means that the name is taken: by ours, by one that goes, or by somebody else's."""
    if found is None or "deletionTimestamp" in found["metadata"] or is_ours(run, found):
        return None
    name = f"{action.manifest['kind']} {action.manifest['metadata']['name']}"
    message = f"{name} exists and belongs to somebody else; it is left alone: remove it, or take another name"
    return Problem(Reason.CHILD_CONFLICT, message)


def lost_fields(sent: Json, stored: Json, path: str = "") -> set[str]:
    """Paths that were sent and are not stored: a server older than a field drops it without a word."""
    if isinstance(sent, Mapping):
        inner = stored if isinstance(stored, Mapping) else {}
        gone = (name for name, value in sent.items() if name not in inner and not empty(value))
        missing = {f"{path}.{name}".lstrip(".") for name in gone}
        pairs = [(f"{path}.{name}".lstrip("."), value, inner[name]) for name, value in sent.items() if name in inner]
    elif isinstance(sent, list) and isinstance(stored, list) and len(sent) == len(stored):
        missing, pairs = set(), [(f"{path}[{n}]", *pair) for n, pair in enumerate(zip(sent, stored, strict=True))]
    else:
        return set()
    return missing.union(*(lost_fields(value, other, at) for at, value, other in pairs))


def empty(value: Json) -> bool:
    """Values that a server may leave out since they say nothing."""
    return value in ({}, [], "", False, 0, None)


# -- Reporting --------------------------------------------------------------------------------------------------------


async def report(operator: Operator, run: Run, decision: Decision, now: datetime) -> bool:
    """Store the status if it differs, then tell of the change. False: the object was changed meanwhile."""
    operator.metrics.see(run.namespace, run.name, reporting.labels(run, decision.status))
    patch = reporting.status_patch(run, decision.status)
    if patch is None:
        return True
    try:
        await operator.cluster.patch(RUN, run.namespace, run.name, patch, "status")
    except ApiError as error:
        if error.is_conflict or error.is_missing:
            return False
        raise
    reporting.count(operator.metrics, run, decision.status)
    await reporting.tell(operator.cluster, operator.instance, run, decision.events, now)
    return True
