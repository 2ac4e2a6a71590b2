"""How a decision leaves the operator: the patch of the status, events, metrics and log lines."""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from draftyard_api.names import API_VERSION, KIND, LABEL_ATTEMPT, LABEL_STAGE, Stage
from draftyard_api.plan import dump
from draftyard_api.schema import Model
from draftyard_api.status import Attempt, Condition, ConditionType, DraftTrainingStatus, Phase, StageStatus
from draftyard_operator import times
from draftyard_operator.actions import Action, Create
from draftyard_operator.cluster import Cluster
from draftyard_operator.kinds import EVENT
from draftyard_operator.ledger import cut
from draftyard_operator.metrics import Metrics, RunLabels
from draftyard_operator.refusals import ApiError
from draftyard_operator.run import Run, answering_gpus, is_terminal, parallelism_of, stage_of
from draftyard_operator.status import Event

Json = Any
COMPONENT = "draftyard-operator"


# -- The status -------------------------------------------------------------------------------------------------------


def status_patch(run: Run, decided: DraftTrainingStatus) -> Json | None:
    """The merge patch that stores a status, of exactly the object that was read; None when nothing differs."""
    changes = difference(dump(run.status), dump(decided))
    if not changes:
        return None
    for table in TABLES:
        if changes.get(table.name):
            changes[table.name] = with_unknown(table, changes[table.name], run.stored.get(table.name) or ())
    return {"metadata": {"resourceVersion": run.resource_version}, "status": changes}


def difference(before: Json, after: Json) -> Json:
    """A merge patch from one object to another. Fields that we do not know are not in it, and stay."""
    changes: Json = {name: None for name in before if name not in after}
    for name, value in after.items():
        held = before.get(name)
        if isinstance(value, dict) and isinstance(held, dict):
            inner = difference(held, value)
            changes |= {name: inner} if inner else {}
        elif held != value:
            changes[name] = value
    return changes


@dataclass(frozen=True)
class Table:
    """A list of the status whose entries have names. A merge patch replaces a list as a whole."""

    name: str
    key: str
    entry: type[Model]
    ours: type[StrEnum]
    """Names that this operator knows."""


TABLES = (Table("conditions", "type", Condition, ConditionType), Table("stages", "name", StageStatus, Stage))


def with_unknown(table: Table, told: list[Json], stored: Iterable[Json]) -> list[Json]:
    """A list with what a newer operator has put into the stored one: fields of entries, and entries of other names."""
    known = {field.alias or name for name, field in table.entry.model_fields.items()}
    before = {one.get(table.key): one for one in stored}
    merged = [
        {name: value for name, value in before.get(one[table.key], {}).items() if name not in known} | one
        for one in told
    ]
    return [*merged, *(one for name, one in before.items() if name not in set(table.ours))]


# -- Events -----------------------------------------------------------------------------------------------------------


async def tell(cluster: Cluster, instance: str, run: Run, events: Iterable[Event], now: datetime) -> None:
    """Post events. One that cannot be posted is dropped: the status says the same."""
    for event in events:
        with contextlib.suppress(ApiError):
            await cluster.create(EVENT, run.namespace, event_manifest(instance, run, event, now))


def event_manifest(instance: str, run: Run, event: Event, now: datetime) -> Json:
    """An event of a run."""
    time = times.render(now)
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{run.name}.{uuid.uuid4().hex[:16]}", "namespace": run.namespace},
        "involvedObject": {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "namespace": run.namespace,
            "name": run.name,
            "uid": run.uid,
        },
        "type": "Warning" if event.is_warning else "Normal",
        "reason": event.reason,
        "message": cut(event.message),
        "source": {"component": COMPONENT},
        "reportingComponent": COMPONENT,
        "reportingInstance": instance,
        "firstTimestamp": time,
        "lastTimestamp": time,
        "count": 1,
    }


# -- Metrics and logs -------------------------------------------------------------------------------------------------


def labels(run: Run, decided: DraftTrainingStatus) -> RunLabels:
    """What is said about a run as long as it exists."""
    mode = run.spec.mode if run.spec is not None else ""
    return RunLabels(mode, decided.backend or "", decided.phase or Phase.PENDING)


def count(metrics: Metrics, run: Run, decided: DraftTrainingStatus) -> None:
    """Count what has ended, once it is stored."""
    known = {(one.stage, one.attempt) for one in run.status.history or ()}
    for entry in decided.history or ():
        if (entry.stage, entry.attempt) not in known:
            metrics.attempt_ended(run.namespace, entry.stage, entry.reason)
            metrics.gpus_held(run.namespace, entry.stage, gpus(run, entry.stage) * seconds(entry))
    for held in decided.stages or ():
        if held.state == "Succeeded" and stage_of(run.status, held.name).state != "Succeeded":
            metrics.stage_finished(held.name, seconds(held))
            metrics.gpus_held(run.namespace, held.name, gpus(run, held.name) * seconds(held))
    if is_terminal(decided) and not is_terminal(run.status):
        metrics.run_finished("Complete" if decided.phase is Phase.SUCCEEDED else "Failed", decided.reason or "")


def seconds(ended: Attempt | StageStatus) -> float:
    """How long an attempt took."""
    if ended.start_time is None or ended.completion_time is None:
        return 0.0
    return times.seconds_since(ended.start_time, times.parse(ended.completion_time))


def gpus(run: Run, stage: Stage) -> int:
    """GPUs that a stage holds while all its pods run."""
    spec = run.spec
    if spec is None or stage is Stage.PREPARE:
        return 0
    if stage is Stage.TRAIN:
        return spec.train.nodes * spec.train.gpus_per_node
    if stage is Stage.REGENERATE:
        return answering_gpus(spec) * parallelism_of(spec, stage)
    block = spec.generate if stage is Stage.GENERATE else spec.evaluate
    each = (block.gpus_per_pod if block else None) or spec.target.tensor_parallel
    return each * (spec.hidden_states.parallelism if spec.hidden_states and stage is Stage.GENERATE else 1)


def log_action(log: logging.Logger, run: Run, action: Action) -> None:
    """One line for one action; never a body."""
    made: Json = action.manifest["metadata"] if isinstance(action, Create) else {"name": action.name}
    name, marks = made["name"], made.get("labels") or {}
    where = {"namespace": run.namespace, "run": run.name, "uid": run.uid, "generation": run.generation}
    what = {"action": type(action).__name__.lower(), "kind": action.kind.plural, "child": name}
    what |= {"stage": marks.get(LABEL_STAGE), "attempt": marks.get(LABEL_ATTEMPT)}
    log.info("%s %s %s", what["action"], what["kind"], name, extra={**where, **what})
