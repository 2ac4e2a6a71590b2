"""Reading what exists of one run: the calls, in the order in which they are needed. What they mean is in `observe`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from draftyard_api import names
from draftyard_api.names import Stage
from draftyard_operator import observe, refusals, workloads
from draftyard_operator.backends import BACKENDS, allowed
from draftyard_operator.cluster import Reader
from draftyard_operator.config import OperatorConfig
from draftyard_operator.kinds import CLAIM, CONFIG_MAP, EVENT, POD, WORKLOADS
from draftyard_operator.observe import Child, Claim, Observed, Pod, Problem
from draftyard_operator.run import (
    Run,
    claim_name,
    current_stage,
    is_terminal,
    named_claims,
    pods_wanted,
    stage_of,
)

Json = Any


async def look(cluster: Reader, config: OperatorConfig, run: Run, now: datetime) -> Observed:
    """Everything that a pass needs to know. Raises ApiError."""
    labels = {names.LABEL_UID: run.uid}
    lists = {kind: await cluster.list(row.kind, run.namespace, labels) for kind, row in allowed(config).items()}
    children = tuple(
        child for kind, found in lists.items() for child in map(BACKENDS[kind].read, found or ()) if child is not None
    )
    serves = lists.get("PyTorchJob") is not None
    if run.spec is None or (is_terminal(run.status) and not children):
        return Observed(children=children, serves_pytorch_jobs=serves)
    pods = await look_at_pods(cluster, run, children)
    if is_terminal(run.status):
        return Observed(children=children, pods=pods, serves_pytorch_jobs=serves)
    child = running_child(run, children)
    asked = observe.first_ready(pods, child.uid) if child is not None else None
    return Observed(
        children=children,
        pods=pods,
        claim=await look_at_claim(cluster, run, claim_name(run)),
        progress=await cluster.progress(asked.ip) if asked is not None else None,
        prepare_task=await look_at_task(cluster, run),
        serves_pytorch_jobs=serves,
        wait=await look_at_wait(cluster, config, run, child),
        refusal=await look_at_refusal(cluster, run, child, pods, now),
        missing_claims=await missing_claims(cluster, run),
    )


async def look_at_pods(cluster: Reader, run: Run, children: tuple[Child, ...]) -> tuple[Pod, ...]:
    """Pods of the run. One that nobody of ours has made may carry our labels, and is not believed. Raises ApiError."""
    listed = await cluster.list(POD, run.namespace, {names.LABEL_UID: run.uid}) or ()
    owners = {child.uid for child in children}
    return tuple(pod for pod in map(observe.read_pod, listed) if pod is not None and is_known(pod, owners))


def is_known(pod: Pod, owners: set[str]) -> bool:
    """Whether a pod counts: it is of a child that exists, or still writes though its child is gone."""
    return pod.owner_uid in owners or (pod.is_live and pod.owner_uid != "")


def running_child(run: Run, children: tuple[Child, ...]) -> Child | None:
    """The child of the attempt that runs."""
    stage = current_stage(run)
    if stage is None:
        return None
    held = stage_of(run.status, stage)
    found = (one for one in children if (one.stage, one.attempt) == (stage, held.attempt))
    return next(found, None) if held.state == "Running" else None


async def look_at_claim(cluster: Reader, run: Run, name: str | None) -> Claim | None:
    """The workspace's claim. Raises ApiError."""
    found = await cluster.get(CLAIM, run.namespace, name) if name is not None else None
    return None if found is None else observe.read_claim(found)


async def missing_claims(cluster: Reader, run: Run) -> tuple[str, ...]:
    """Claims that locations of the spec name and that do not exist. Raises ApiError."""
    others = [name for name in named_claims(run.wanted) if name != claim_name(run)]
    return tuple([name for name in others if await cluster.get(CLAIM, run.namespace, name) is None])


async def look_at_task(cluster: Reader, run: Run) -> str | None:
    """What the last attempt of prepare was given; needed until the run is frozen. Raises ApiError."""
    attempt = stage_of(run.status, Stage.PREPARE).attempt
    if run.status.frozen_time is not None or not attempt:
        return None
    found = await cluster.get(CONFIG_MAP, run.namespace, names.child(run.name, Stage.PREPARE, attempt))
    return None if found is None else (found.get("data") or {}).get(names.TASK_FILE)


async def look_at_refusal(
    cluster: Reader, run: Run, child: Child | None, pods: Sequence[Pod], now: datetime
) -> Problem | None:
    """Why a child has fewer pods than it wants: its own status does not say, its events do. Raises ApiError."""
    if child is None or child.is_over or child.is_deleting or child.state == "Queued":
        return None
    if sum(pod.is_live and pod.owner_uid == child.uid for pod in pods) >= pods_wanted(run, child.stage):
        return None
    found = await cluster.list(EVENT, run.namespace, {}, {"involvedObject.uid": child.uid, "type": "Warning"})
    return refusals.of_pods(found or (), child.stage, now)


async def look_at_wait(cluster: Reader, config: OperatorConfig, run: Run, child: Child | None) -> str:
    """Why Kueue lets a child wait, in its own words. Raises ApiError."""
    if not config.read_workloads or child is None or child.state != "Queued":
        return ""
    for kind in WORKLOADS:
        found = await cluster.list(kind, run.namespace, {workloads.JOB_UID: child.uid})
        if found is not None:
            return workloads.read_wait(found)
    return ""
