"""What each pod is told: the task of an attempt, from the spec and from what was resolved once and stored."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from draftyard_api import plan, storage_uri
from draftyard_api.names import CLAIMS_MOUNT, WORKSPACE_MOUNT, Stage
from draftyard_api.plan import Place
from draftyard_api.spec import DraftTrainingSpec
from draftyard_api.status import DraftTrainingStatus
from draftyard_api.task import BaseTask, StoredStatesRef
from draftyard_operator import intervals
from draftyard_operator.results import stored_conversations, stored_prepared
from draftyard_operator.run import Run, claim_name, named_claims, shards_of, stage_of

Json = Any
COMMIT = re.compile(r"[0-9a-f]{40}")
HOW_IT_RUNS = ("pod", "nodes", "gpusPerNode")
"""Fields of train that change nothing of what prepare does."""


def place(run: Run) -> Place:
    """Where pods find things."""
    spec = run.wanted
    claims = {name: Path(claim_mount(run, name)) for name in named_claims(spec)}
    return Place(
        workspace=workspace(spec),
        resolve=lambda text: storage_uri.resolve(text, Path("/"), claims),
        workspace_s3=spec.workspace.s3,
    )


def workspace(spec: DraftTrainingSpec) -> str:
    """The workspace, as a pod names it."""
    if spec.workspace.s3 is not None:
        return spec.workspace.s3.uri
    assert spec.workspace.pvc is not None
    return f"file://{WORKSPACE_MOUNT}/{spec.workspace.pvc.path.strip('/')}"


def claim_mount(run: Run, claim: str) -> str:
    """Where a claim is mounted: the workspace's once only."""
    return WORKSPACE_MOUNT if claim == claim_name(run) else f"{CLAIMS_MOUNT}/{claim}"


def task(run: Run, status: DraftTrainingStatus, stage: Stage) -> BaseTask:
    """The task of the stored attempt."""
    attempt = stage_of(status, stage).attempt
    identity, spec, here = run.identity, settled(run.wanted, status), place(run)
    if stage is Stage.REGENERATE:
        shards = shards_of(status, stage)
        assert shards is not None
        made: BaseTask = plan.regenerate_task(identity, spec, here, shards)
        return made.model_copy(update={"attempt": attempt})
    if stage is Stage.PREPARE:
        conversations = stored_conversations(status)
        task = plan.prepare_task(identity, run.wanted, here, attempt, conversations)
        # whoever has answered is whose tokens are prepared; the hash of the frozen fields is that of what was asked for
        return task.model_copy(update={"target": plan.located_target(spec, here)}) if conversations else task
    prepared = stored_prepared(status)
    match stage:
        case Stage.GENERATE:
            made = plan.generate_task(identity, spec, here, prepared)
        case Stage.TRAIN:
            made = plan.train_task(identity, spec, here, prepared, states(spec, status))
        case _:
            made = plan.evaluate_task(identity, spec, here, prepared, states(spec, status))
    return made.model_copy(update={"attempt": attempt})


def settled(spec: DraftTrainingSpec, status: DraftTrainingStatus) -> DraftTrainingSpec:
    """The spec with what was resolved in place of what may move: the branch's commit, the planned number of shards."""
    commit = status.resolved.target_commit if status.resolved else None
    if commit is not None and COMMIT.fullmatch(commit) and storage_uri.parse(spec.target.model).scheme == "hf":
        spec = spec.model_copy(update={"target": spec.target.model_copy(update={"revision": commit})})
    shards = status.plan.shards if status.plan else None
    if spec.hidden_states is not None and shards is not None:
        spec = spec.model_copy(update={"hidden_states": spec.hidden_states.model_copy(update={"shards": shards})})
    return spec


def states(spec: DraftTrainingSpec, status: DraftTrainingStatus) -> StoredStatesRef | None:
    """What generate left for training; None Online."""
    if spec.hidden_states is None:
        return None
    stored = status.hidden_states
    assert stored is not None
    assert stored.key is not None
    assert spec.hidden_states.shards is not None
    # a stage that is done has made or given up each of them; those that it made may be too many to be listed
    given_up = set(intervals.parse(stage_of(status, Stage.GENERATE).failed_shards or ""))
    made = tuple(shard for shard in range(spec.hidden_states.shards) if shard not in given_up)
    return StoredStatesRef(key=stored.key, shards=made, num_shards=spec.hidden_states.shards)


def render(made: BaseTask) -> str:
    """The task file."""
    return made.model_dump_json(by_alias=True, exclude_none=True)


def prepare_changed(run: Run, given: str) -> bool:
    """Whether the task of prepare would be another one today than the one that was given to its last attempt."""
    try:
        before = json.loads(given)
    except ValueError:
        return False
    wanted = json.loads(render(plan.prepare_task(run.identity, run.wanted, place(run))))
    return bool(essence(before) != essence(wanted))


def essence(found: Json) -> Json:
    """What of a task decides its result."""
    train = {name: value for name, value in found.get("train", {}).items() if name not in HOW_IT_RUNS}
    return {name: value for name, value in found.items() if name != "attempt"} | {"train": train}
