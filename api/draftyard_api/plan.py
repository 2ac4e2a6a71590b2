"""From a spec to stages and tasks: what runs, in which order, and what each process is told. Values in, values out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from draftyard_api import frozen
from draftyard_api.names import Stage
from draftyard_api.schema import Model, S3Access
from draftyard_api.spec import Data, Draft, DraftTrainingSpec, Evaluate, Target
from draftyard_api.task import (
    CacheRef,
    ConversationsRef,
    EvaluateTask,
    GenerateTask,
    OtherPrompts,
    PrepareTask,
    RegenerateTask,
    StoredStatesRef,
    TrainTask,
)

DEFAULT_DRAFT_TOKENS = 3


@dataclass(frozen=True)
class RunIdentity:
    """Which run: the object's name, and the uid that tells two objects of one name apart."""

    name: str
    uid: str


@dataclass(frozen=True)
class Place:
    """Where processes find things: the workspace's URI, and how other locations look from there."""

    workspace: str
    resolve: Callable[[str], str]
    workspace_s3: S3Access | None = None
    """How an `s3://` workspace is reached."""


class PreparedRef(Protocol):
    """What later tasks name the result of prepare by: that result, or what was kept of it."""

    @property
    def prepared(self) -> str:
        """Folder below `prepare/`."""
        ...

    @property
    def aux_layers(self) -> tuple[int, ...]:
        """The captured layers, resolved."""
        ...

    @property
    def fingerprint(self) -> str:
        """Identity of the result."""
        ...

    @property
    def documents(self) -> int:
        """How many can be spread over shards."""
        ...


def stages(spec: DraftTrainingSpec) -> tuple[Stage, ...]:
    """The stages of a run, in order."""
    chosen = [Stage.PREPARE] if spec.data.regenerate is None else [Stage.REGENERATE, Stage.PREPARE]
    if spec.mode == "Offline":
        chosen.append(Stage.GENERATE)
    chosen.append(Stage.TRAIN)
    if spec.evaluate is not None:
        chosen.append(Stage.EVALUATE)
    return tuple(chosen)


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: what every hash is taken of."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def frozen_fields(spec: DraftTrainingSpec) -> dict[str, Any]:
    """What decides the result, and cannot change once a GPU stage has started."""
    given = dump(spec)
    return {block.name: frozen.frozen_part(block, given.get(block.name)) for block in frozen.BLOCKS}


def frozen_sha256(spec: DraftTrainingSpec) -> str:
    """Hash of the frozen fields, as hex."""
    fields = frozen_fields(spec)
    for block, added in frozen.ADDED_LATER.items():
        if fields[block] is not None:
            kept = ((name, value) for name, value in fields[block].items() if name not in added or added[name] != value)
            fields[block] = dict(kept)
    return hashlib.sha256(canonical(fields).encode()).hexdigest()


def fingerprint(
    frozen_sha256: str, target_commit: str, data_sha256: str, aux_layers: tuple[int, ...], initial: str | None = None
) -> str:
    """Identity of a result: the frozen fields and all that was resolved from them, the draft to start from included."""
    resolved = {"frozen": frozen_sha256, "target": target_commit, "data": data_sha256, "auxLayers": list(aux_layers)}
    resolved |= {} if initial is None else {"initialDraft": initial}
    return f"sha256:{hashlib.sha256(canonical(resolved).encode()).hexdigest()}"


def dump(model: Model) -> dict[str, Any]:
    """The model as the JSON that a person would write, defaults included."""
    return model.model_dump(mode="json", by_alias=True, exclude_none=True)


# -- Tasks ------------------------------------------------------------------------------------


def regenerate_task(
    run: RunIdentity, spec: DraftTrainingSpec, place: Place, num_shards: int, shard: int | None = None
) -> RegenerateTask:
    """One shard of the target's own answers; without `shard` the pod's completion index says which.

    Raises ValueError for a location that cannot be reached from `place`.
    """
    assert spec.data.regenerate is not None
    return RegenerateTask(
        run=run.name, uid=run.uid, workspace=place.workspace, workspace_s3=place.workspace_s3,
        target=located_target(spec, place), data=located_data(spec, place), seed=spec.train.seed,
        num_shards=num_shards, shard=shard,
    )  # fmt: skip


def prepare_task(
    run: RunIdentity,
    spec: DraftTrainingSpec,
    place: Place,
    attempt: int = 1,
    conversations: ConversationsRef | None = None,
) -> PrepareTask:
    """The first task of most runs; `conversations` is what regenerate left, None without that stage.

    Raises ValueError for a location that cannot be reached from `place`.
    """
    return PrepareTask(
        run=run.name, uid=run.uid, attempt=attempt, workspace=place.workspace, workspace_s3=place.workspace_s3,
        mode=spec.mode, target=located_target(spec, place), draft=located_draft(spec, place),
        data=located_data(spec, place), conversations=conversations, train=spec.train,
        evaluates=spec.evaluate is not None, other_prompts=other_prompts(spec, place), export=spec.export,
        frozen_sha256=frozen_sha256(spec),
    )  # fmt: skip


def generate_task(
    run: RunIdentity, spec: DraftTrainingSpec, place: Place, prepared: PreparedRef, shard: int | None = None
) -> GenerateTask:
    """One shard of hidden states; without `shard` the pod's completion index says which."""
    assert spec.hidden_states is not None
    return GenerateTask(
        run=run.name, uid=run.uid, workspace=place.workspace, workspace_s3=place.workspace_s3,
        target=located_target(spec, place),
        prepared=prepared.prepared, aux_layers=prepared.aux_layers, codec=spec.hidden_states.codec,
        num_shards=default_shards(spec, prepared), shard=shard,
    )  # fmt: skip


def train_task(
    run: RunIdentity, spec: DraftTrainingSpec, place: Place, prepared: PreparedRef, states: StoredStatesRef | None
) -> TrainTask:
    """The training task; `states` is what generate left, None Online."""
    return TrainTask(
        run=run.name, uid=run.uid, workspace=place.workspace, workspace_s3=place.workspace_s3,
        mode=spec.mode, target=located_target(spec, place),
        draft=located_draft(spec, place), aux_layers=prepared.aux_layers, prepared=prepared.prepared,
        hidden_states=states, train=spec.train,
        draft_tokens=draft_tokens(spec),
        publishes=spec.evaluate is None, export=spec.export, tracking=spec.tracking,
        fingerprint=prepared.fingerprint, reclaims=None if spec.evaluate else reclaimed(spec, states),
    )  # fmt: skip


def evaluate_task(
    run: RunIdentity, spec: DraftTrainingSpec, place: Place, prepared: PreparedRef, states: CacheRef | None
) -> EvaluateTask:
    """The last task; only for a run with an evaluate block. `states` is what generate left, None Online."""
    assert spec.evaluate is not None
    return EvaluateTask(
        run=run.name, uid=run.uid, workspace=place.workspace, workspace_s3=place.workspace_s3,
        target=located_target(spec, place),
        prepared=prepared.prepared, evaluate=located_evaluate(spec.evaluate, place),
        chat_template=spec.data.chat_template, seed=spec.train.seed, export=spec.export, tracking=spec.tracking,
        fingerprint=prepared.fingerprint, reclaims=reclaimed(spec, states),
    )  # fmt: skip


def reclaimed(spec: DraftTrainingSpec, states: CacheRef | None) -> CacheRef | None:
    """What the stage that publishes removes then; None for nothing."""
    if states is None or spec.hidden_states is None or spec.hidden_states.reclaim == "Retain":
        return None
    return CacheRef(key=states.key, num_shards=states.num_shards)


def located_evaluate(wanted: Evaluate, place: Place) -> Evaluate:
    """The judgement with its own prompts at a location that a process can open."""
    if wanted.prompt_file is None:
        return wanted
    located = wanted.prompt_file.model_copy(update={"uri": place.resolve(wanted.prompt_file.uri)})
    return wanted.model_copy(update={"prompt_file": located})


def other_prompts(spec: DraftTrainingSpec, place: Place) -> OtherPrompts | None:
    """The prompts that do not come from the run's own data; None when all of them do."""
    if spec.evaluate is None:
        return None
    wanted = located_evaluate(spec.evaluate, place)
    others = tuple(name for name in wanted.prompt_sets if name != "heldOut")
    return OtherPrompts(sets=others, file=wanted.prompt_file) if others else None


def draft_tokens(spec: DraftTrainingSpec) -> int:
    """How many tokens the draft looks ahead when it serves: K of a chain, the depth of a tree."""
    if spec.evaluate is None:
        return DEFAULT_DRAFT_TOKENS
    return spec.evaluate.tree.steps if spec.evaluate.tree else spec.evaluate.draft_tokens


def located_target(spec: DraftTrainingSpec, place: Place) -> Target:
    """The target at a location that a process can open."""
    return spec.target.model_copy(update={"model": place.resolve(spec.target.model)})


def located_draft(spec: DraftTrainingSpec, place: Place) -> Draft:
    """The draft, its warm start at a location that a process can open."""
    if spec.draft.init_from is None:
        return spec.draft
    return spec.draft.model_copy(update={"init_from": place.resolve(spec.draft.init_from)})


def located_data(spec: DraftTrainingSpec, place: Place) -> Data:
    """The data at a location that a process can open."""
    source = spec.data.source
    if source.file is not None:
        source = source.model_copy(
            update={"file": source.file.model_copy(update={"uri": place.resolve(source.file.uri)})}
        )
    return spec.data.model_copy(update={"source": source})


def default_conversation_shards(spec: DraftTrainingSpec) -> int:
    """Shards of the target's own answers: as asked for, else as many as work at the same time.

    A cluster's plan asks `estimate.conversation_shards` for ten minutes each.
    """
    assert spec.data.regenerate is not None
    return spec.data.regenerate.shards or (spec.regenerate.parallelism if spec.regenerate else 1)


def default_shards(spec: DraftTrainingSpec, prepared: PreparedRef) -> int:
    """Shards of the hidden states: as asked for, else as many as work at the same time, and no more than documents.

    A cluster's plan knows the GPUs' speed and asks `estimate.default_shards` for ten minutes each.
    """
    assert spec.hidden_states is not None
    wanted = spec.hidden_states.shards or spec.hidden_states.parallelism
    return min(wanted, max(prepared.documents, 1))
