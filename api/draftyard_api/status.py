"""What the user is told: phase, conditions, reasons, plan, progress and results.

Numbers with a fraction are texts, since they must round-trip and may be "NaN"; bytes and counts are integers.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from draftyard_api.names import Stage
from draftyard_api.schema import Model, TextMap

Decimal = Annotated[str, Field(max_length=32)]
"""A number with a fraction, as text: `"2.71"`, `"NaN"`."""
Time = Annotated[str, Field(max_length=40)]
"""RFC 3339, UTC."""
Short = Annotated[str, Field(max_length=253)]
Message = Annotated[str, Field(max_length=1024)]
Shards = Annotated[str, Field(max_length=32768)]
"""Any set of up to 10,000 shards, as intervals such as `0-9,12`: never cut."""
Count = Annotated[int, Field(ge=0)]
Backend = Literal["Job", "PyTorchJob"]
"""What a stage runs as."""
MAX_CONDITIONS = 24
MAX_HISTORY = 10


class Phase(StrEnum):
    """One word for people and columns; derived from the conditions, never read back."""

    PENDING = "Pending"
    QUEUED = "Queued"
    RUNNING = "Running"
    RETRYING = "Retrying"
    BLOCKED = "Blocked"
    SUSPENDING = "Suspending"
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class ConditionType(StrEnum):
    """What a condition is about."""

    ACCEPTED = "Accepted"
    REGENERATED = "Regenerated"
    PREPARED = "Prepared"
    PLANNED = "Planned"
    GENERATED = "Generated"
    TRAINED = "Trained"
    EVALUATED = "Evaluated"
    QUEUED = "Queued"
    RUNNING = "Running"
    PROGRESS_REPORTING = "ProgressReporting"
    SUSPENDED = "Suspended"
    COMPLETE = "Complete"
    FAILED = "Failed"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"
    READY = "Ready"


class Condition(Model):
    """One standing fact about the run."""

    type: ConditionType
    """What it is about."""
    status: Literal["True", "False", "Unknown"]
    """Whether it is so."""
    reason: Short
    """Why, in one word."""
    message: Message
    """Why, for people."""
    last_transition_time: Time
    """When `status` last flipped."""
    observed_generation: int | None = None
    """Generation of the spec that it is about."""


class Resolved(Model):
    """What names in the spec turned out to stand for, once and for all."""

    target_commit: Short | None = None
    """Commit of the target, or a content hash."""
    data_revision: Short | None = None
    """Hash of the data's content."""
    chat_template: Short | None = None
    """`tokenizer`, or the name of a built-in one."""
    aux_layers: Annotated[tuple[int, ...], Field(max_length=8)] | None = None
    """Captured layers."""
    conversations: Short | None = None
    """Folder of the target's own answers below `conversations/` in the workspace."""
    prepared: Short | None = None
    """Folder of the tokens below `prepare/` in the workspace."""
    image: Message | None = None
    """The trainer's image with its digest."""


class PlannedBytes(Model):
    """What a run will write, and what there is."""

    conversations: Count = 0
    """The target's own answers (data.regenerate)."""
    prepare: Count = 0
    """Tokens and masks."""
    hidden_states: Count = 0
    """Stored states (Offline)."""
    hidden_states_by_codec: Annotated[dict[str, Count], Field(max_length=8)] | None = None
    """What they would take with each codec (Offline)."""
    checkpoints: Count = 0
    """keepLast + 2 of them."""
    export: Count = 0
    """The draft."""
    needed: Count = 0
    """All together."""
    free: Count | None = None
    """Free bytes of the workspace; absent without a limit."""
    capacity: Count | None = None
    """Size of the claim when they were read: a larger claim is a reason to look again."""


class GpuHours(Model):
    """What a run will cost."""

    regenerate: Decimal | None = None
    """The target's own answers (data.regenerate), where no engine gives them."""
    generate: Decimal | None = None
    """Offline: hidden states."""
    train: Decimal | None = None
    """All epochs; Online with the target's forward passes."""
    evaluate: Decimal | None = None
    """Answers of the target."""
    total: Decimal = "0"
    """All together."""


class Plan(Model):
    """What a run will take, filled in before a GPU starts."""

    basis: Literal["Assumed", "Counted", "Measured"]
    """Assumed: before prepare. Counted: exact tokens, assumed speed. Measured: the speed of finished work."""
    samples: Count
    """Documents."""
    dropped_samples: Annotated[dict[str, int], Field(max_length=64)] | None = None
    """Rows that gave none, by reason."""
    truncated_samples: Count | None = None
    """Documents cut at data.maxLength."""
    tokens: Count
    """Tokens of all documents."""
    loss_tokens: Count
    """Supervised ones."""
    shards: Count | None = None
    """Shards of hidden states (Offline)."""
    regenerate_shards: Count | None = None
    """Shards of the target's own answers (data.regenerate)."""
    steps: Count
    """Optimizer steps."""
    vocab_coverage: Decimal | None = None
    """Share of the supervised tokens inside the draft vocabulary."""
    on_policy_share: Decimal | None = None
    """Share of the tokens that the target itself would have said, as training measured it."""
    bytes: PlannedBytes
    """Disk."""
    gpu_hours: GpuHours
    """GPUs."""
    assumes: Message
    """Which GPU, and how well it is used."""


class StageStatus(Model):
    """Where one stage stands."""

    name: Stage
    """Which one."""
    state: Literal["Pending", "Running", "Succeeded", "Failed", "Skipped"]
    """How far it is."""
    attempt: Count = 0
    """Number of its last attempt."""
    child: Short | None = None
    """Kind and name of what runs it."""
    completed_shards: Message | None = None
    """For people: intervals, such as 0-9,12 (regenerate, generate). A long list ends with … and how many there are."""
    failed_shards: Shards | None = None
    """Those that were given up, all of them; training takes the others."""
    counted: Count = 0
    """Failures that use up retry.maxAttempts."""
    uncounted: Count = 0
    """Disruptions and the like."""
    resumed_from_step: Count | None = None
    """Checkpoint at which the attempt went on (train)."""
    start_time: Time | None = None
    """When its child was first seen."""
    completion_time: Time | None = None
    """When it ended."""


class Attempt(Model):
    """One ended attempt."""

    stage: Stage
    """Of which stage."""
    attempt: Count
    """Its number."""
    reason: Short
    """How it ended."""
    message: Message
    """For people."""
    start_time: Time | None = None
    """Start."""
    completion_time: Time | None = None
    """End."""


class ProgressStatus(Model):
    """The last reading, at most every 10 s."""

    percent: Annotated[int, Field(ge=0, le=100)] | None = None
    """For tools."""
    percentage: Short | None = None
    """For columns: `42%`."""
    step: Count | None = None
    """Optimizer step."""
    total_steps: Count | None = None
    """Of all."""
    epoch: Decimal | None = None
    """Position in epochs."""
    loss: Decimal | None = None
    """Of the last step."""
    tokens_per_second: Decimal | None = None
    """Over all GPUs."""
    eta: Short | None = None
    """For columns: `5h58m`."""
    estimated_remaining_seconds: Count | None = None
    """For tools."""
    heartbeat: Count | None = None
    """Unix time of the reading, by the pod's clock: that it changes says that the stage is alive."""
    last_updated_time: Time | None = None
    """When it was taken, by the operator's clock."""


class CheckpointStatus(Model):
    """What a resumed run would go on from."""

    last_step: Count
    """Newest."""
    best_step: Count | None = None
    """Highest acceptance length."""


class AcceptanceStatus(Model):
    """What the draft reaches."""

    length: Decimal
    """Tokens per verification step, bonus token included."""
    per_position: Annotated[tuple[Decimal, ...], Field(max_length=16)]
    """Share of steps in which draft token i was accepted."""
    draft_tokens: Count
    """K."""
    prompts: Count
    """Behind the number."""
    source: Literal["Simulated", "Measured"]
    """Measured after evaluate."""


class HiddenStatesStatus(Model):
    """What is stored."""

    key: Short | None = None
    """Folder below `hidden-states/` in the workspace."""
    bytes: Count
    """On disk."""
    argmax_agreement: Decimal | None = None
    """Share of labels that survive the codec."""
    reclaimed: bool | None = None
    """Whether they are removed again; absent where hiddenStates.reclaim does not ask for it, or not yet."""


class ExportStatus(Model):
    """Where the draft is."""

    published: bool = False
    """Whether it may be used."""
    uri: Message | None = None
    """Location."""
    manifest_sha256: Short | None = Field(default=None, alias="manifestSHA256")
    """Of its MANIFEST.json."""
    serve: TextMap | None = None
    """Command lines for vLLM and SGLang."""


class DraftTrainingStatus(Model):
    """Everything that the operator knows of a run."""

    observed_generation: int = -1
    """Generation that was looked at; -1 before the first look, so that tools see work in progress."""
    phase: Phase | None = None
    """For people."""
    stage: Stage | None = None
    """Stage that is running or ended the run."""
    backend: Backend | None = None
    """What training runs as, resolved once."""
    attempt: Count | None = None
    """Attempt of that stage."""
    reason: Short | None = None
    """Of the condition that explains the phase."""
    message: Message | None = None
    """Likewise."""
    start_time: Time | None = None
    """First look."""
    frozen_time: Time | None = None
    """From here on, what decides the result cannot be changed."""
    completion_time: Time | None = None
    """End."""
    active_seconds: Count | None = None
    """Without time suspended, queued or blocked."""
    fingerprint: Short | None = None
    """Hash of everything that decides the result."""
    resolved: Resolved | None = None
    """What names stand for."""
    plan: Plan | None = None
    """What it will take."""
    stages: Annotated[tuple[StageStatus, ...], Field(max_length=8)] | None = None
    """Stages, by name."""
    history: Annotated[tuple[Attempt, ...], Field(max_length=MAX_HISTORY)] | None = None
    """The last ended attempts."""
    progress: ProgressStatus | None = None
    """Last reading."""
    checkpoint: CheckpointStatus | None = None
    """Saved state."""
    acceptance: AcceptanceStatus | None = None
    """What the draft reaches."""
    hidden_states: HiddenStatesStatus | None = None
    """What is stored."""
    export: ExportStatus | None = None
    """Where the draft is."""
    conditions: Annotated[tuple[Condition, ...], Field(max_length=MAX_CONDITIONS)] | None = None
    """Standing facts."""
