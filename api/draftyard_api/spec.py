"""What the user asks for: the spec of a DraftTraining.

Nouns say what (`target draft data workspace hiddenStates export tracking`), stages say how a stage runs
(`regenerate prepare generate train evaluate`). Rules that span several fields are in `rules.py`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from draftyard_api.pod import OpenObject, Pod
from draftyard_api.schema import (
    MAX_ITEMS,
    Alignment,
    Codec,
    Dtype,
    Mode,
    Model,
    Name,
    Objective,
    PromptSet,
    Proposal,
    S3Access,
    SecretRef,
    Text,
    Tracker,
    Unroll,
)

GpuCount = Annotated[int, Field(ge=1, le=64)]


class Target(Model):
    """The model whose answers the draft will predict. It is frozen; only its states are read."""

    model: Text
    """`org/name` (the same as `hf://org/name`), `pvc://claim/path` or `s3://bucket/prefix`."""
    revision: Text = "main"
    """Branch, tag or commit; the commit behind it is recorded in `status.resolved`."""
    dtype: Dtype = "bfloat16"
    """Precision of the target's weights and of its hidden states."""
    tensor_parallel: GpuCount = 1
    """GPUs that hold one copy of the target."""
    trust_remote_code: bool = False
    """Run code of the model repository; only with a full commit as revision."""
    token_secret_ref: SecretRef | None = None
    """Secret with HF_TOKEN, for gated models."""
    s3: S3Access | None = None
    """How an `s3://` model is reached."""


class Draft(Model):
    """The draft model. Width, heads, rope and maximum position are always derived from the target."""

    profile: Literal["eagle3", "eagle3.1"] = "eagle3"
    """`eagle3` loads in SGLang and vLLM; `eagle3.1` needs versions of mid 2026 or later."""
    vocab_size: Annotated[int, Field(ge=256, le=1048576)] = 32000
    """Tokens that the draft can propose: the most frequent ones of the supervised text."""
    aux_layers: (
        Annotated[tuple[Annotated[int, Field(ge=1, le=1024)], ...], Field(min_length=1, max_length=8)] | None
    ) = None
    """Indices into `hidden_states` (0 = embeddings) that feed the draft; default 2, L/2, L-3. The first must be 2."""
    intermediate_size: Annotated[int, Field(ge=16, le=1048576)] | None = None
    """Width of the draft's MLP; by default the target's, or 6 times the width for a mixture of experts."""
    keep_tokens: Annotated[tuple[Text, ...], Field(max_length=1024)] = ()
    """Tokens that are always in the draft vocabulary."""
    init_from: Text | None = None
    """A draft to start from: an export, or what `draftyard convert` made. Its vocabulary, heads and rope are kept."""
    s3: S3Access | None = None
    """How an `s3://` draft to start from is reached."""


class Preset(Model):
    """A well-known data set, with its revision pinned."""

    name: Text
    """Name of the preset, such as `sharegpt`."""


class FileSource(Model):
    """Conversations in a file: JSON or JSONL, rows as in ShareGPT (`conversations`) or OpenAI (`messages`)."""

    uri: Text
    """`pvc://claim/path`; `file://` works in `draftyard run` only."""


class S3Source(S3Access):
    """Conversations in a bucket."""

    uri: Text
    """`s3://bucket/prefix`."""


class DataSource(Model):
    """Where conversations come from: exactly one member."""

    preset: Preset | None = None
    """A well-known data set."""
    file: FileSource | None = None
    """A file on a claim."""
    s3: S3Source | None = None
    """Objects in a bucket."""


class ChatEngine(Model):
    """A running server with an OpenAI-compatible interface that answers for the target."""

    url: Text
    """Where its interface begins, such as `https://llama.example/v1`; `/chat/completions` is asked below it."""
    model: Text | None = None
    """Name under which it serves the target; by default the one in target.model."""
    secret_ref: SecretRef | None = None
    """Secret with OPENAI_API_KEY, where it wants to know who asks."""
    concurrency: Annotated[int, Field(ge=1, le=1024)] = 32
    """Questions that one pod asks at the same time."""


class OwnAnswers(Model):
    """Answers of the target itself in place of those in the data: what a draft learns best from."""

    max_new_tokens: Annotated[int, Field(ge=1, le=65536)] = 1024
    """Longest answer; a longer one is kept without its end, and counted."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    """0: the most likely answer. Above: drawn, from a seed of train.seed and the conversation."""
    shards: Annotated[int, Field(ge=1, le=1000)] | None = None
    """Units of work and of retry; by default the plan chooses."""
    engine: ChatEngine | None = None
    """Who answers; by default the stage's own pods hold the target."""


class Data(Model):
    """The conversations, and how they become tokens."""

    source: DataSource
    """Exactly one of preset, file, s3."""
    max_samples: Annotated[int, Field(ge=1)] | None = None
    """Conversations to read; by default all."""
    regenerate: OwnAnswers | None = None
    """Let the target answer in place of whoever did: a stage before prepare."""
    chat_template: Text = "auto"
    """`auto`: the tokenizer's own; or the name of a built-in one."""
    template_kwargs: OpenObject = Field(default={})
    """Passed to the chat template, for example `enable_thinking: false`."""
    split_turns: bool = False
    """One document per assistant turn, rendered as it was when generated: for reasoning targets."""
    stop_tokens: Annotated[tuple[Text, ...], Field(max_length=MAX_ITEMS)] = ()
    """Further tokens that end an answer."""
    max_length: Annotated[int, Field(ge=16, le=1048576)] = 4096
    """Tokens; longer conversations are cut, and counted."""
    eval_fraction: Annotated[float, Field(ge=0, le=0.5)] = 0.01
    """Share that is held out, by a hash of the sample: a sample never moves into training."""


class ClaimTemplate(Model):
    """A claim that the operator makes."""

    storage_class_name: Name | None = None
    """StorageClass; by default the cluster's."""
    access_modes: Annotated[
        tuple[Literal["ReadWriteOnce", "ReadWriteMany", "ReadWriteOncePod"], ...], Field(min_length=1, max_length=3)
    ] = ("ReadWriteOnce",)
    """ReadWriteMany where several pods write."""
    size: Annotated[str, Field(min_length=1, max_length=32)]
    """Size; can grow at any time, never shrink."""
    reclaim: Literal["Delete", "Retain"] = "Retain"
    """Retain: the claim survives the object. Delete: it goes with the object, and the draft in it too."""


class Pvc(Model):
    """A claim as the workspace: exactly one of existingClaim, claimTemplate."""

    path: Text = "draftyard"
    """Folder in the claim; runs that share it share prepared tokens and hidden states."""
    existing_claim: Name | None = None
    """A claim that exists."""
    claim_template: ClaimTemplate | None = None
    """A claim that is made."""


class S3Workspace(S3Access):
    """A bucket as the workspace."""

    uri: Text
    """`s3://bucket/prefix`."""


class Workspace(Model):
    """Where every stage writes, and nowhere else: exactly one of pvc, s3."""

    pvc: Pvc | None = None
    """A claim."""
    s3: S3Workspace | None = None
    """A bucket."""


class HiddenStates(Model):
    """The target's stored hidden states; only with mode Offline."""

    shards: Annotated[int, Field(ge=1, le=10000)] | None = None
    """Units of work and of retry, 5 to 15 minutes each; by default the plan chooses."""
    parallelism: Annotated[int, Field(ge=1, le=1000)] = 1
    """Shards at the same time; may be changed while it runs."""
    codec: Codec = "balanced"
    """none 1.0, lossless 0.71, balanced 0.46, compact 0.36 of the bfloat16 bytes."""
    reclaim: Literal["Delete", "Retain"] = "Retain"
    """Delete: the last stage removes them once the draft is published, when no other run uses them."""
    max_failed_shards: Annotated[int, Field(ge=0, le=10000)] = 0
    """Shards that may be missing from training."""


class Regenerate(Model):
    """How the stage regenerate runs; only with data.regenerate."""

    parallelism: Annotated[int, Field(ge=1, le=1000)] = 1
    """Shards at the same time; may be changed while it runs."""
    retries_per_shard: Annotated[int, Field(ge=0, le=10)] = 3
    """Failures of one shard before it is given up, and the run with it."""
    pod: Pod = Pod()
    """Its pods."""


class Prepare(Model):
    """How the stage prepare runs."""

    pod: Pod = Pod()
    """Its pod."""


class Generate(Model):
    """How the stage generate runs; only with mode Offline."""

    gpus_per_pod: GpuCount | None = None
    """GPUs of each pod; default target.tensorParallel."""
    retries_per_shard: Annotated[int, Field(ge=0, le=10)] = 3
    """Failures of one shard before it is given up."""
    pod: Pod = Pod()
    """Its pods."""


class Checkpoint(Model):
    """When the state of training is saved. SIGTERM, epoch ends and the end always save."""

    every_steps: Annotated[int, Field(ge=1)] = 500
    """Optimizer steps between checkpoints."""
    keep_last: Annotated[int, Field(ge=1, le=100)] = 3
    """Checkpoints that are kept, besides the best one."""


class EarlyStop(Model):
    """When training ends before its last epoch, for want of better acceptance. Never within the first epoch."""

    patience: Annotated[int, Field(ge=1, le=1000)] = 5
    """Evaluations in a row, one per checkpoint, without an improvement."""
    min_delta: Annotated[float, Field(ge=0, le=16)] = 0.005
    """What counts as an improvement of the simulated acceptance length: more than this."""


class Train(Model):
    """How the draft is trained."""

    nodes: Annotated[int, Field(ge=1, le=512)] = 1
    """Pods."""
    gpus_per_node: GpuCount = 1
    """GPUs, and processes, of each pod."""
    epochs: Annotated[int, Field(ge=1, le=1000)] = 2
    """Passes over the data."""
    tokens_per_batch: Annotated[int, Field(ge=16)] = 65536
    """Tokens of one optimizer step over all GPUs: their number does not change the result."""
    row_tokens: Annotated[int, Field(ge=16, le=1048576)] = 8192
    """What one GPU computes at once: rows are packed, never padded."""
    ttt_steps: Annotated[int, Field(ge=1, le=16)] = 7
    """Steps of training-time test: how many tokens ahead the draft learns to guess."""
    unroll: Unroll = "full"
    """full: every supervised token is asked all steps. onPath: only as long as a server would go on asking."""
    objective: Objective = "kl"
    """Cross-entropy against the target, or one of the acceptance objectives."""
    out_of_vocab: Literal["mask", "keep"] = "mask"
    """Positions whose most likely token is outside the draft vocabulary: left out of the loss, or kept."""
    loss_mask_alignment: Alignment = "runtime"
    """runtime: what an engine will ask of the draft; specforge: for parity tests."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 0.0001
    """Peak of the schedule. Write 0.0001, not 1e-4: YAML 1.1 readers take that for a string."""
    warmup_ratio: Annotated[float, Field(ge=0, le=1)] = 0.015
    """Share of the steps with a rising learning rate."""
    grad_clip: Annotated[float, Field(gt=0)] = 0.5
    """Largest global norm of the gradient."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    """AdamW's weight decay."""
    seed: Annotated[int, Field(ge=0, le=4294967295)] = 42
    """Decides the order of the samples and the first weights."""
    early_stop: EarlyStop | None = None
    """End early when acceptance no longer improves; without it all epochs are trained. The best checkpoint counts."""
    checkpoint: Checkpoint = Checkpoint()
    """When the state is saved."""
    pod: Pod = Pod()
    """Its pods."""


class PromptFile(Model):
    """Prompts in a file: rows as in data files, or with their questions alone (`turns`, `prompt`)."""

    uri: Text
    """`pvc://claim/path`; `file://` works in `draftyard run` only."""


class Tree(Model):
    """A tree of proposals, its settings counted as SGLang counts them."""

    steps: Annotated[int, Field(ge=1, le=16)] = 5
    """Steps of the draft: the depth of the tree."""
    top_k: Annotated[int, Field(ge=1, le=32)] = 8
    """Branches that are followed at each step."""
    draft_tokens: Annotated[int, Field(ge=2, le=512)] = 64
    """Tokens that one step of the target verifies, the newest verified one among them."""


class Engine(Model):
    """A server that runs and speculates with the exported draft: vLLM or SGLang."""

    url: Text
    """Where it listens, such as `http://vllm.team:8000`; no credentials in it."""
    secret_ref: SecretRef | None = None
    """Secret with OPENAI_API_KEY, for a server that asks for a key."""


class Evaluate(Model):
    """How the draft is judged. Without this block the stage is skipped, and the draft is published ungated."""

    min_acceptance_length: Annotated[float, Field(ge=1)] | None = None
    """Gate: tokens per verification step, bonus token included. Below it: Failed, nothing is published."""
    draft_tokens: Annotated[int, Field(ge=1, le=16)] = 3
    """Tokens that the draft proposes per step."""
    max_prompts: Annotated[int, Field(ge=1, le=100000)] = 256
    """Prompts of each set that are used."""
    max_new_tokens: Annotated[int, Field(ge=1, le=65536)] = 512
    """Length of the target's answer."""
    prompt_sets: Annotated[tuple[PromptSet, ...], Field(min_length=1, max_length=5)] = ("heldOut",)
    """What the target is asked; the gate and the status look at the first one. `file` needs promptFile."""
    prompt_file: PromptFile | None = None
    """Prompts of your own, with promptSets file."""
    temperature: Annotated[int, Field(ge=0, le=1)] = 0
    """0: greedy. 1: sampled, and proposals are accepted by rejection sampling."""
    proposal: Proposal = "chain"
    """chain: one proposal per position. tree: several, which the target verifies together."""
    tree: Tree | None = None
    """With proposal tree."""
    engine: Engine | None = None
    """A running server that is measured in place of our own evaluator, which then predicts what it should reach."""
    gpus_per_pod: GpuCount | None = None
    """GPUs of the pod; default target.tensorParallel."""
    pod: Pod = Pod()
    """Its pod."""


class Export(Model):
    """Where a draft of the same name is already published."""

    if_exists: Literal["Skip", "Fail", "Overwrite"] = "Skip"
    """Skip: the same fingerprint ends the run at once, another fails. Fail: any export fails it. Overwrite: trains."""


class Wandb(Model):
    """Weights & Biases."""

    project: Text
    """Project."""
    entity: Text | None = None
    """Team or user."""
    secret_ref: SecretRef | None = None
    """Secret with WANDB_API_KEY."""


class Swanlab(Model):
    """SwanLab."""

    project: Text
    """Project."""
    workspace: Text | None = None
    """Team or user."""
    secret_ref: SecretRef | None = None
    """Secret with SWANLAB_API_KEY."""


class Mlflow(Model):
    """MLflow."""

    uri: Text
    """Tracking server."""
    experiment: Text
    """Experiment."""
    secret_ref: SecretRef | None = None
    """Secret with MLFLOW_TRACKING_TOKEN."""


class Tracking(Model):
    """Where curves are sent. `metrics.jsonl` is always written."""

    report_to: Annotated[tuple[Tracker, ...], Field(max_length=4)] = ()
    """Several at once."""
    wandb: Wandb | None = None
    """With reportTo wandb."""
    swanlab: Swanlab | None = None
    """With reportTo swanlab."""
    mlflow: Mlflow | None = None
    """With reportTo mlflow."""


class Scheduling(Model):
    """Queues and priorities."""

    queue_name: Name | None = None
    """Kueue's local queue."""
    workload_priority_class: Name | None = None
    """Kueue's priority."""
    priority_class_name: Name | None = None
    """Pod priority."""
    scheduler_name: Name | None = None
    """Another scheduler."""


class Retry(Model):
    """Counted failures per stage; disruptions are not counted."""

    max_attempts: Annotated[int, Field(ge=1, le=100)] = 3
    """A stage fails for good at this many."""
    backoff_seconds: Annotated[int, Field(ge=1, le=600)] = 30
    """First wait; doubled each time, at most 600."""


class Deadlines(Model):
    """All stand still while suspended, queued or blocked."""

    start_seconds: Annotated[int, Field(ge=60)] = 3600
    """Child created, but no pod ready: fails the run."""
    active_seconds: Annotated[int, Field(ge=60)] | None = None
    """The whole run."""
    progress_seconds: Annotated[int, Field(ge=60)] = 1800
    """No new heartbeat after a first one: fails the attempt."""


class Cleanup(Model):
    """Children only: the object and its results stay."""

    children: Literal["OnSuccess", "Always", "Never"] = "OnSuccess"
    """After which end Jobs and pods are removed."""
    ttl_seconds_after_finished: Annotated[int, Field(ge=0)] = 86400
    """How much later."""


class DraftTrainingSpec(Model):
    """One training of one EAGLE-3 draft for one target."""

    mode: Mode
    """Online: hidden states are made in every step and never stored. Offline: made once, stored, read back."""
    backend: Literal["Auto", "PyTorchJob", "Job"] = "Auto"
    """What training runs as; Auto chooses by mode, nodes and what the cluster serves."""
    suspend: bool = False
    """true: pods go, the workspace stays; false again: the run goes on at the last checkpoint."""
    target: Target
    """The model to speed up."""
    draft: Draft = Draft()
    """The draft to train."""
    data: Data
    """What it is trained on."""
    workspace: Workspace
    """Where everything is written."""
    hidden_states: HiddenStates | None = None
    """Required with Offline, refused with Online."""
    regenerate: Regenerate | None = None
    """Before stage 1, only with data.regenerate: the target's own answers."""
    prepare: Prepare = Prepare()
    """Stage 1: tokens, masks, draft vocabulary."""
    generate: Generate | None = None
    """Stage 2, Offline only: hidden states."""
    train: Train = Train()
    """Stage 3: the draft."""
    evaluate: Evaluate | None = None
    """Stage 4, optional: the acceptance length, and the gate."""
    export: Export = Export()
    """What happens when the draft is already there."""
    tracking: Tracking = Tracking()
    """Curves."""
    scheduling: Scheduling = Scheduling()
    """Queues and priorities."""
    retry: Retry = Retry()
    """How often a stage may fail."""
    deadlines: Deadlines = Deadlines()
    """How long things may take."""
    cleanup: Cleanup = Cleanup()
    """What is removed afterwards."""
    pod: Pod = Pod()
    """Every stage's pod."""
