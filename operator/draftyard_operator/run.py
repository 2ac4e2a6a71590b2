"""One DraftTraining as a pass sees it: what is wanted, and what was told last."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from draftyard_api import names, plan, storage_uri
from draftyard_api.document import SpecErrors, check
from draftyard_api.names import Stage
from draftyard_api.plan import RunIdentity
from draftyard_api.spec import DraftTrainingSpec
from draftyard_api.status import ConditionType, DraftTrainingStatus, StageStatus

Json = Any


@dataclass(frozen=True)
class Run:
    """The object. `spec` is None where what is stored cannot be read any more."""

    namespace: str
    name: str
    uid: str
    generation: int
    resource_version: str
    spec: DraftTrainingSpec | None
    spec_errors: tuple[str, ...]
    status: DraftTrainingStatus
    is_deleting: bool = False
    stored: Mapping[str, Json] = field(default_factory=dict)
    """The status as it was read, with what a newer operator has written and this one does not know."""

    @property
    def identity(self) -> RunIdentity:
        """As tasks name it."""
        return RunIdentity(self.name, self.uid)

    @property
    def wanted(self) -> DraftTrainingSpec:
        """The spec, where it is known to be readable."""
        assert self.spec is not None
        return self.spec


def read_run(found: Mapping[str, Json]) -> Run:
    """An object as the API server returns it. Nothing in it can make this fail: a run must be able to say so."""
    metadata = found["metadata"]
    spec, errors = read_spec(found)
    return Run(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        generation=int(metadata.get("generation", 0)),
        resource_version=metadata["resourceVersion"],
        spec=spec,
        spec_errors=errors,
        status=read_status(found.get("status") or {}),
        is_deleting="deletionTimestamp" in metadata,
        stored=found.get("status") or {},
    )


def read_spec(found: Mapping[str, Json]) -> tuple[DraftTrainingSpec | None, tuple[str, ...]]:
    """The spec, or all that is wrong with it."""
    asked = {name: found.get(name) for name in ("apiVersion", "kind", "spec")}
    asked["metadata"] = {"name": found["metadata"]["name"]}
    try:
        return check(asked, local=False).spec, ()
    except SpecErrors as error:
        return None, tuple(error.errors)


def read_status(found: Mapping[str, Json]) -> DraftTrainingStatus:
    """The status. Fields of a newer operator are left out here, and left alone by a merge patch."""
    known = copy.deepcopy(dict(found))
    while True:
        try:
            return DraftTrainingStatus.model_validate_json(plan.canonical(known))
        except ValidationError as error:
            drop(known, error.errors()[0]["loc"])


def drop(document: dict[str, Json], path: tuple[int | str, ...]) -> None:
    """Take out the innermost thing on a path that is there."""
    holder: Json = document
    last = path[0]
    for part, below in itertools.pairwise(path):
        inner = holder[part]
        has = isinstance(inner, list) or (isinstance(inner, dict) and below in inner)
        last = part
        if not has:
            break
        holder, last = inner, below
    del holder[last]


def stage_of(status: DraftTrainingStatus, stage: Stage) -> StageStatus:
    """Where a stage stands; Pending when nothing was said of it yet."""
    found = (one for one in status.stages or () if one.name == stage)
    return next(found, StageStatus(name=stage, state="Pending"))


def is_terminal(status: DraftTrainingStatus) -> bool:
    """Whether the run has ended. That never changes again."""
    ends = (ConditionType.COMPLETE, ConditionType.FAILED)
    return any(one.type in ends and one.status == "True" for one in status.conditions or ())


def current_stage(run: Run) -> Stage | None:
    """The first stage that is not done; None when all are."""
    stages = plan.stages(run.wanted)
    return next((stage for stage in stages if stage_of(run.status, stage).state != "Succeeded"), None)


INDEXED = (Stage.REGENERATE, Stage.GENERATE)
"""Stages that are made shard by shard, each by a pod of its own."""


def shards_of(status: DraftTrainingStatus, stage: Stage) -> int | None:
    """Planned shards of a stage; None for one that has none, and before there is a plan."""
    if status.plan is None or stage not in INDEXED:
        return None
    return status.plan.regenerate_shards if stage is Stage.REGENERATE else status.plan.shards


def parallelism_of(spec: DraftTrainingSpec, stage: Stage) -> int:
    """Shards of a stage that are made at the same time, as asked for."""
    block = spec.regenerate if stage is Stage.REGENERATE else spec.hidden_states
    return block.parallelism if block is not None else 1


def max_failed_shards(spec: DraftTrainingSpec, stage: Stage) -> int:
    """Shards of a stage that may be missing: what nobody has answered, nobody can prepare."""
    states = spec.hidden_states
    return states.max_failed_shards if states is not None and stage is Stage.GENERATE else 0


def answering_gpus(spec: DraftTrainingSpec) -> int:
    """GPUs of a pod of regenerate: none, where an engine has them."""
    own = spec.data.regenerate
    return 0 if own is None or own.engine is not None else spec.target.tensor_parallel


def pods_wanted(run: Run, stage: Stage) -> int:
    """Pods without which a stage does not work: those of all nodes, or the first of a shard."""
    return run.wanted.train.nodes if stage is Stage.TRAIN else 1


# -- Where things are -------------------------------------------------------------------------------------------------


def claim_name(run: Run) -> str | None:
    """The claim of the workspace; None for a bucket."""
    pvc = run.wanted.workspace.pvc
    if pvc is None:
        return None
    return pvc.existing_claim or names.claim(run.name)


def named_claims(spec: DraftTrainingSpec) -> tuple[str, ...]:
    """Claims that `pvc://` locations of the spec name, besides the workspace."""
    source = spec.data.source.file
    prompts = spec.evaluate.prompt_file if spec.evaluate else None
    locations = (
        spec.target.model, spec.draft.init_from, source.uri if source else None, prompts.uri if prompts else None,
    )  # fmt: skip
    parsed = (storage_uri.parse(text) for text in locations if text)
    return tuple(dict.fromkeys(uri.authority for uri in parsed if uri.scheme == "pvc"))
