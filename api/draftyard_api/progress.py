"""What a stage reports while it works (`Progress`) and when it ends (`StageResult`)."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from draftyard_api.exit_codes import ExitCode
from draftyard_api.names import Stage
from draftyard_api.reasons import Reason
from draftyard_api.schema import Model
from draftyard_api.targets import TargetShape

LOW_ON_POLICY = 0.8
"""Share of the tokens that the target itself would have said, below which a draft learns another one's text."""
MAX_TERMINATION_BYTES = 4096
"""What Kubernetes keeps of a termination message."""


class Progress(Model):
    """One reading of a working stage. `done` and `total` count the stage's `unit`; NaN travels as text."""

    stage: Stage
    """Which stage is working."""
    activity: str = ""
    """What it does right now, in two or three words: `counting`, `step`, `evaluating`."""
    unit: str = ""
    """What `done` and `total` count: `documents`, `tokens`, `steps`, `prompts`."""
    done: int = 0
    """How many are finished."""
    total: int | None = None
    """How many there are, where that is known."""
    step: int | None = None
    """Optimizer step (train)."""
    total_steps: int | None = None
    """Optimizer steps of the whole run (train)."""
    resumed_from_step: int | None = None
    """Checkpoint at which this attempt went on; None when it began anew (train)."""
    epoch: str | None = None
    """Position in epochs, such as "0.84" (train)."""
    loss: str | None = None
    """Loss of the last step; a text, since "NaN" is legal."""
    skipped_steps: int | None = None
    """Steps without an update, since the gradient was not finite (train)."""
    loss_spikes: int | None = None
    """Steps whose loss stood far above that of the steps before (train)."""
    on_policy: str | None = None
    """Share of the last step's tokens that the target itself would have said (train)."""
    acceptance: str | None = None
    """Last acceptance length: simulated in train, measured in evaluate."""
    tokens_per_second: str | None = None
    """Rate since the stage started, without what was found finished."""
    checkpoint_step: int | None = None
    """Newest checkpoint (train)."""
    best_step: int | None = None
    """Checkpoint with the highest acceptance length (train)."""
    estimated_remaining_seconds: int | None = None
    """Time left at that rate."""
    heartbeat: float
    """Unix time of this reading."""


class DatasetCounts(Model):
    """What was read and written, exactly: rows = rows that gave documents + skipped."""

    rows: int
    """Rows read from the source."""
    documents: int
    """Documents written."""
    train_documents: int
    """Documents of the training split."""
    held_out_documents: int
    """Documents of the held-out split."""
    skipped: dict[str, int]
    """Rows that gave no document, by reason."""
    truncated_documents: int
    """Documents cut at data.maxLength."""
    tokens: int
    """Tokens of all documents."""
    train_tokens: int
    """Tokens of the training split."""
    loss_tokens: int
    """Supervised tokens of all documents."""
    label_rows: int
    """Positions whose final hidden state is stored."""


class Counts(DatasetCounts):
    """What prepare counted, exactly."""

    steps: int
    """Optimizer steps of the whole training."""


class Prepared(Model):
    """Result of prepare: what later tasks name it by."""

    prepared: str
    """Folder below `prepare/`."""
    counts: Counts
    """Exact counts."""
    vocab_size: int
    """Size of the draft vocabulary."""
    vocab_coverage: str
    """Share of the supervised tokens inside it."""
    aux_layers: tuple[int, ...]
    """The captured layers, resolved."""
    target_commit: str
    """Commit of the target, or the content hash of a local folder."""
    data_sha256: str
    """Hash of the source's content."""
    tokens_sha256: str
    """Hash of tokens, masks and split: the data part of the hidden states' key."""
    fingerprint: str
    """sha256 of everything that decides the result."""
    free_bytes: int | None = None
    """Free bytes of the workspace; None without a limit."""
    already_trained: bool = False
    """True: an export with the same fingerprint is published, and the run ends here."""
    target_shape: TargetShape | None = None
    """What the plan's bytes and GPU-hours follow from."""

    @property
    def documents(self) -> int:
        """How many can be spread over shards."""
        return self.counts.documents


class Regenerated(Model):
    """Result of one shard of regenerate."""

    key: str
    """Folder below `conversations/`."""
    shard: int
    """Number of the shard."""
    shards: int
    """Number of all shards."""
    conversations: int
    """Conversations with answers of the target."""
    answers: int
    """Answers in them."""
    unfinished: int
    """Answers that were cut at their limit."""
    tokens: int
    """Tokens of all answers."""
    skipped: dict[str, int]
    """Rows without an answer, by reason."""
    target_commit: str
    """Commit of the target, or the content hash of a local folder."""
    tokens_per_second: float | None = None
    """Rate at which they were said, also of a shard that was found finished."""


class StoredStates(Model):
    """Result of one shard of generate."""

    key: str
    """Folder below `hidden-states/`."""
    shard: int
    """Number of the shard."""
    shards: int
    """Number of all shards."""
    documents: int
    """Documents written."""
    tokens: int
    """Tokens written."""
    label_rows: int = 0
    """Positions whose final state was written."""
    bytes: int
    """Bytes written."""
    tokens_per_second: float | None = None
    """Rate at which they were captured, also of a shard that was found finished."""
    argmax_agreement: str | None = None
    """Share of labels whose most likely token survives the codec; None for lossless codecs."""


class Trained(Model):
    """Result of train."""

    steps: int
    """Optimizer steps of the run."""
    best_step: int
    """Step of the exported checkpoint."""
    loss: str
    """Loss of the last step."""
    acceptance: Acceptance
    """Simulated, on held-out documents."""
    on_policy: str | None = None
    """Share of the tokens that the target itself would have said, in the last step."""


class Acceptance(Model):
    """How many tokens one verification step yields."""

    length: str
    """Accepted tokens per step, bonus token included."""
    per_position: tuple[str, ...]
    """Share of the steps in which draft token i was accepted."""
    draft_tokens: int
    """Tokens proposed per step."""
    prompts: int
    """Prompts (Measured) or documents (Simulated) behind the numbers."""
    source: Annotated[str, Field(pattern=r"^(Simulated|Measured)$")]
    """Simulated: teacher-forced on held-out documents. Measured: greedy generation against the target."""


class StageResult(Model):
    """How a stage ended: the termination message of its pod, at most 4,096 bytes."""

    stage: Stage
    """Which stage."""
    exit_code: int = ExitCode.OK
    """As in `exit_codes`."""
    reason: Reason = Reason.STAGE_COMPLETED
    """For conditions."""
    message: str = ""
    """For people."""
    manifest_sha256: str | None = Field(default=None, alias="manifestSHA256")
    """Of the stage's MANIFEST.json: absent on success means that the output is missing."""
    bytes: int | None = None
    """Bytes of the stage's output."""
    seconds: float | None = None
    """Time that the stage took in this attempt."""
    peak_memory_bytes: int | None = None
    """Largest resident memory of one of its processes."""
    regenerated: Regenerated | None = None
    """Of regenerate."""
    prepared: Prepared | None = None
    """Of prepare."""
    hidden_states: StoredStates | None = None
    """Of generate."""
    trained: Trained | None = None
    """Of train."""
    resumed_from_step: int | None = None
    """Checkpoint at which train went on in this attempt; None when it began anew."""
    acceptance: Acceptance | None = None
    """Of evaluate."""
    published: str | None = None
    """URI of the published draft, from the stage that published it."""
    states_reclaimed: bool | None = None
    """Whether the stage that published has removed the hidden states; None where it was not asked to."""


StageResult.model_rebuild()
