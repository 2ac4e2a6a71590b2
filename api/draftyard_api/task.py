"""What one pod is told: typed JSON, resolved and frozen. A task never holds a Secret, only names of environment."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from draftyard_api.names import Stage
from draftyard_api.schema import Codec, Mode, Model, PromptSet, S3Access
from draftyard_api.spec import Data, Draft, Evaluate, Export, PromptFile, Target, Tracking, Train


class BaseTask(Model):
    """What every stage needs to know."""

    run: str
    """Name of the run: the object's name."""
    uid: str
    """Identity of the object; two objects of one name differ in it."""
    attempt: int = 1
    """Attempt of this stage."""
    workspace: str
    """Where everything is written: an absolute `file://` folder or an `s3://` prefix."""
    workspace_s3: S3Access | None = None
    """How an `s3://` workspace is reached."""
    target: Target
    """The model; its location is one that a pod can open (`file://`, `hf://`, `s3://`)."""


class OtherPrompts(Model):
    """Prompts besides the held-out ones."""

    sets: tuple[PromptSet, ...]
    """Without `heldOut`."""
    file: PromptFile | None = None
    """With `file` among them; its location is one that a pod can open."""


class RegenerateTask(BaseTask):
    """Conversations and the target in; one shard of conversations with the target's own answers out.

    The shard is JOB_COMPLETION_INDEX, or `shard`.
    """

    stage: Literal[Stage.REGENERATE] = Stage.REGENERATE
    """Which stage."""
    data: Data
    """The conversations, at a location that a pod can open, and how they are answered."""
    seed: int
    """Decides the draws of answers that are not the most likely ones."""
    num_shards: int
    """Number of all shards."""
    shard: int | None = None
    """Which one, where no JOB_COMPLETION_INDEX is set."""


class ConversationsRef(Model):
    """Conversations in the workspace, with the target's own answers."""

    key: str
    """Folder below `conversations/`."""
    num_shards: int
    """Number of all shards of this cut; all of them are read."""


class PrepareTask(BaseTask):
    """Conversations in; tokens, loss masks and the draft vocabulary out."""

    stage: Literal[Stage.PREPARE] = Stage.PREPARE
    """Which stage."""
    mode: Mode
    """Decides what the plan counts."""
    draft: Draft
    """The vocabulary's size, and the captured layers to check."""
    data: Data
    """The conversations; their location is one that a pod can open."""
    conversations: ConversationsRef | None = None
    """What regenerate left: read in place of `data.source`."""
    train: Train
    """For the number of steps."""
    evaluates: bool
    """True: held-out documents are needed."""
    other_prompts: OtherPrompts | None = None
    """What `evaluate` will ask besides them: prompts that cannot be read are said before a GPU is used."""
    export: Export
    """What to do when the draft is already there."""
    frozen_sha256: str
    """Hash of the spec's frozen fields; with what prepare resolves it makes the fingerprint."""


class CacheRef(Model):
    """Hidden states in the workspace: their content, and how it is cut."""

    key: str
    """Folder below `hidden-states/`."""
    num_shards: int
    """Number of all shards of this cut."""


class StoredStatesRef(CacheRef):
    """Hidden states to train from."""

    shards: tuple[int, ...]
    """Shards to read, complete and verified."""


class GenerateTask(BaseTask):
    """Tokens and the target in; one shard of hidden states out. The shard is JOB_COMPLETION_INDEX, or `shard`."""

    stage: Literal[Stage.GENERATE] = Stage.GENERATE
    """Which stage."""
    prepared: str
    """Folder below `prepare/`."""
    aux_layers: tuple[int, ...]
    """Captured layers."""
    codec: Codec
    """How states are stored."""
    num_shards: int
    """Number of all shards."""
    shard: int | None = None
    """Which one, where no JOB_COMPLETION_INDEX is set."""


class TrainTask(BaseTask):
    """Tokens and the target (Online), or hidden states (Offline), in; checkpoints and the exported draft out."""

    stage: Literal[Stage.TRAIN] = Stage.TRAIN
    """Which stage."""
    mode: Mode
    """Where hidden states come from."""
    draft: Draft
    """The draft."""
    aux_layers: tuple[int, ...]
    """Captured layers, resolved."""
    prepared: str
    """Folder below `prepare/`."""
    hidden_states: StoredStatesRef | None = None
    """Offline: what to train from."""
    train: Train
    """How to train."""
    draft_tokens: int = 3
    """K of the acceptance length that picks the best checkpoint."""
    publishes: bool
    """True: there is no evaluate stage, so this one publishes."""
    export: Export
    """What to do when a draft is already there."""
    tracking: Tracking = Tracking()
    """Where curves go."""
    fingerprint: str
    """Identity of the result."""
    reclaims: CacheRef | None = None
    """Hidden states to remove once this stage has published the draft, unless another run uses them."""


class EvaluateTask(BaseTask):
    """The target, the exported draft and held-out prompts in; the acceptance length out, then the draft published."""

    stage: Literal[Stage.EVALUATE] = Stage.EVALUATE
    """Which stage."""
    prepared: str
    """Folder below `prepare/`."""
    evaluate: Evaluate
    """How to judge, and the gate; the location of its prompts is one that a pod can open."""
    chat_template: str = "auto"
    """As in `data`: prompts of other sets are rendered with it."""
    seed: int = 42
    """Of the training; with temperature 1 it decides the answers."""
    export: Export
    """What to do when a draft is already there."""
    tracking: Tracking = Tracking()
    """Where the result goes."""
    fingerprint: str
    """Identity of the result."""
    reclaims: CacheRef | None = None
    """Hidden states to remove once this stage has published the draft, unless another run uses them."""


AnyTask = RegenerateTask | PrepareTask | GenerateTask | TrainTask | EvaluateTask
Task = Annotated[AnyTask, Field(discriminator="stage")]
_TASK: TypeAdapter[AnyTask] = TypeAdapter(Task)


def parse(text: str | bytes) -> AnyTask:
    """Read a task file. Raises pydantic.ValidationError."""
    return _TASK.validate_json(text)
