"""What a run will take: tokens, bytes, GPU-hours. Pure arithmetic; every assumption is named in the result."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from draftyard_api.frozen import parse_quantity
from draftyard_api.progress import Counts, StageResult
from draftyard_api.schema import Codec
from draftyard_api.spec import DraftTrainingSpec
from draftyard_api.status import GpuHours, Plan, PlannedBytes
from draftyard_api.targets import TargetShape

GPU, PEAK_FLOPS = "H100", 989e12
MFU_GENERATE, MFU_GENERATE_SPARSE, MFU_TRAIN = 0.40, 0.12, 0.30
CODEC_SHARE: Mapping[Codec, tuple[float, float]] = {
    "none": (1.0, 1.0),
    "lossless": (0.71, 0.71),
    "balanced": (0.462, 0.462),
    "compact": (0.336, 0.462),
}
"""Bytes of the captured layers and of the final state, as shares of bfloat16: a hundredth above what was measured."""
LOSSLESS: tuple[Codec, ...] = ("none", "lossless")
"""Codecs that lose nothing: their size depends on the dtype, and they store no sizes of rows."""
LOSS_SHARE = 0.6
MEAN_TOKENS = 740
"""Tokens of a conversation, where nothing better is known: the mean of ShareGPT."""
BYTES_PER_TOKEN = 4.6
"""Bytes of a JSON file of conversations per token."""
DEFAULT_DOCUMENTS = 70000
"""Conversations of a source of which nothing is known; ShareGPT has about as many."""
PRESET_DOCUMENTS: Mapping[str, int] = {
    "ultrachat": 208000, "perfectblend": 1400000, "magpie-qwen": 1000000, "magicoder": 110000, "opc": 4200000,
    "gsm8k": 7473, "hendrycks-math": 7500, "code-alpaca": 20000, "camel": 60000, "openthoughts": 114000,
    "eaglechat": 1000000, "math500": 500, "humaneval": 164,
}  # fmt: skip
"""Rows of the presets, rounded where their authors do."""
LABELS_PER_TURN, TURNS = 2, 4
BYTES_PER_PARAMETER = 12
"""Of a checkpoint: fp32 weights and both moments. On its way to the workspace it lies in host memory once."""
BYTES_PER_PROCESS = 2**30
"""Of host memory, for each process of training: Python, torch and a GPU's context take at least so much."""
FORMS = 2
"""Of an exported draft: the portable one, and that of the library speculators."""
SECONDS_PER_SHARD = 600
DECODE_COST = 10
"""A token that is said, in tokens that are read: decoding is bound by memory, at about a tenth of prefill's rate."""
MAX_CONVERSATION_SHARDS = 1000
MAX_STATE_SHARDS = 10000
SAFE_SHARE = 0.95
UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


@dataclass(frozen=True)
class Amount:
    """How much data there is. `basis` is Counted after prepare, Assumed before."""

    documents: int
    tokens: int
    loss_tokens: int
    label_rows: int
    train_tokens: int
    steps: int
    basis: str
    source: str
    """Where the numbers come from, for people."""


def counted(counts: Counts) -> Amount:
    """What prepare counted."""
    return Amount(
        counts.documents, counts.tokens, counts.loss_tokens, counts.label_rows, counts.train_tokens, counts.steps,
        "Counted", "as counted by prepare",
    )  # fmt: skip


def assumed(spec: DraftTrainingSpec, file_bytes: int | None) -> Amount:
    """A guess from the size of the file, or from the number of samples."""
    tokens_each = min(MEAN_TOKENS, spec.data.max_length)
    documents = known_documents(spec)
    source = f"{documents} conversations of {tokens_each} tokens"
    if file_bytes is not None:
        documents = max(1, int(file_bytes / BYTES_PER_TOKEN / MEAN_TOKENS))
        source = f"about {documents} conversations in {file_bytes} bytes, {tokens_each} tokens each"
    if spec.data.max_samples is not None and spec.data.max_samples < documents:
        documents = spec.data.max_samples
        source = f"{documents} conversations of {tokens_each} tokens"
    tokens = documents * tokens_each
    loss_tokens = int(tokens * LOSS_SHARE)
    train_tokens = int(tokens * (1 - spec.data.eval_fraction))
    steps = spec.train.epochs * max(1, -(-train_tokens // spec.train.tokens_per_batch))
    labels = loss_tokens + LABELS_PER_TURN * TURNS * documents
    return Amount(documents, tokens, loss_tokens, labels, train_tokens, steps, "Assumed", source)


def known_documents(spec: DraftTrainingSpec) -> int:
    """Conversations of a preset; of another source as many as are asked for, since what it has is not known."""
    preset = spec.data.source.preset
    if preset is not None:
        return PRESET_DOCUMENTS.get(preset.name, DEFAULT_DOCUMENTS)
    return spec.data.max_samples or DEFAULT_DOCUMENTS


def estimate(spec: DraftTrainingSpec, shape: TargetShape, amount: Amount, free: int | None = None) -> Plan:
    """The plan block of the status."""
    hours = gpu_hours(spec, shape, amount)
    own = spec.data.regenerate
    offline = spec.hidden_states is not None
    disk = planned_bytes(spec, shape, amount)
    decoding = "a tenth of that for tokens that are said, " if hours["regenerate"] else ""
    return Plan(
        basis="Counted" if amount.basis == "Counted" else "Assumed",
        samples=amount.documents,
        tokens=amount.tokens,
        loss_tokens=amount.loss_tokens,
        shards=default_shards(spec, amount.documents, hours["generate"] * 3600) if offline else None,
        regenerate_shards=conversation_shards(spec, amount.documents, hours["regenerate"] * 3600) if own else None,
        steps=amount.steps,
        bytes=disk.model_copy(
            update={"free": free, "hidden_states_by_codec": by_codec(spec, shape, amount) if offline else None}
        ),
        gpu_hours=GpuHours(
            **{stage: hours_text(value) for stage, value in hours.items() if value},
            total=hours_text(sum(hours.values())),
        ),
        assumes=f"{GPU}; {mfu(shape):.0%} of peak in generate, {decoding}{MFU_TRAIN:.0%} in train; {amount.source}",
    )


def planned_bytes(spec: DraftTrainingSpec, shape: TargetShape, amount: Amount) -> PlannedBytes:
    """Disk that a run needs at most."""
    parameters = draft_parameters(spec, shape)
    states = hidden_state_bytes(spec, shape, amount)
    conversations = conversation_bytes(spec, amount)
    tokens = 4 * amount.tokens + 64 * amount.documents
    checkpoints = (spec.train.checkpoint.keep_last + 2) * BYTES_PER_PARAMETER * parameters
    export = FORMS * 2 * parameters
    if spec.draft.init_from is not None:
        # prepare keeps a copy of the draft that a warm start begins as
        tokens += 2 * parameters
    return PlannedBytes(
        conversations=conversations, prepare=tokens, hidden_states=states, checkpoints=checkpoints, export=export,
        needed=conversations + tokens + states + checkpoints + export,
    )  # fmt: skip


def conversation_bytes(spec: DraftTrainingSpec, amount: Amount) -> int:
    """Bytes of the target's own answers and what they answer; 0 without data.regenerate."""
    return 0 if spec.data.regenerate is None else int(BYTES_PER_TOKEN * amount.tokens)


def hidden_state_bytes(spec: DraftTrainingSpec, shape: TargetShape, amount: Amount) -> int:
    """Bytes of the stored states; 0 Online."""
    if spec.hidden_states is None:
        return 0
    aux, last = CODEC_SHARE[spec.hidden_states.codec]
    is_lossless = spec.hidden_states.codec in LOSSLESS
    scale = 2 if spec.target.dtype == "float32" and is_lossless else 1
    layers = num_aux(spec)
    scales = 0 if is_lossless else 4
    per_token = 2 * layers * shape.hidden_size * aux * scale + 4 + scales * layers
    per_label = 2 * shape.hidden_size * last * scale + 8 + scales
    return int(amount.tokens * per_token + amount.label_rows * per_label + 96 * amount.documents)


def by_codec(spec: DraftTrainingSpec, shape: TargetShape, amount: Amount) -> dict[Codec, int]:
    """Bytes of the stored states with each codec."""
    return {codec: hidden_state_bytes(with_codec(spec, codec), shape, amount) for codec in CODEC_SHARE}


def with_codec(spec: DraftTrainingSpec, codec: Codec) -> DraftTrainingSpec:
    """The same run with another codec."""
    assert spec.hidden_states is not None
    return spec.model_copy(update={"hidden_states": spec.hidden_states.model_copy(update={"codec": codec})})


def num_aux(spec: DraftTrainingSpec) -> int:
    """Captured layers."""
    return len(spec.draft.aux_layers) if spec.draft.aux_layers else 3


@dataclass(frozen=True)
class DraftSizes:
    """Parameters of the draft's parts."""

    fuse: int
    key_value: int
    query_output: int
    mlp: int
    head: int

    @property
    def layer(self) -> int:
        """The decoder layer."""
        return self.key_value + self.query_output + self.mlp


def draft_sizes(spec: DraftTrainingSpec, shape: TargetShape) -> DraftSizes:
    """Parameters of the draft that the target's shape implies."""
    hidden, heads = shape.hidden_size, shape.draft_heads
    return DraftSizes(
        fuse=num_aux(spec) * hidden * hidden,
        key_value=2 * 2 * hidden * heads.key * heads.size,
        query_output=3 * hidden * heads.query * heads.size,
        mlp=3 * hidden * (spec.draft.intermediate_size or shape.draft_mlp_width),
        head=min(spec.draft.vocab_size, shape.vocab_size) * hidden,
    )


def draft_parameters(spec: DraftTrainingSpec, shape: TargetShape) -> int:
    """Trained parameters."""
    sizes = draft_sizes(spec, shape)
    return sizes.fuse + sizes.layer + sizes.head + 4 * shape.hidden_size


def draft_flops_per_token(spec: DraftTrainingSpec, shape: TargetShape, loss_share: float) -> float:
    """Forward and backward of the whole unroll; prompt rows are step-0 keys and values only."""
    sizes, steps = draft_sizes(spec, shape), spec.train.ttt_steps
    first = sizes.fuse + sizes.key_value + loss_share * (sizes.query_output + sizes.mlp + sizes.head)
    later = (steps - 1) * loss_share * (sizes.layer + sizes.head)
    return 6.0 * (first + later)


def mfu(shape: TargetShape) -> float:
    """Share of the peak that the target's forward reaches."""
    return MFU_GENERATE_SPARSE if shape.is_sparse else MFU_GENERATE


def gpu_hours(spec: DraftTrainingSpec, shape: TargetShape, amount: Amount) -> dict[str, float]:
    """Hours by stage."""
    forward = 2.0 * shape.active_parameters / (PEAK_FLOPS * mfu(shape) * 3600)
    share = amount.loss_tokens / max(amount.tokens, 1)
    train = spec.train.epochs * amount.train_tokens
    hours = {
        "regenerate": said_tokens(spec, amount) * forward,
        "generate": 0.0,
        "train": train * draft_flops_per_token(spec, shape, share) / (PEAK_FLOPS * MFU_TRAIN * 3600),
    }
    if spec.mode == "Offline":
        hours["generate"] = amount.tokens * forward
    else:
        hours["train"] += train * forward
    if spec.evaluate is not None:
        prompts = len(spec.evaluate.prompt_sets) * spec.evaluate.max_prompts
        hours["evaluate"] = DECODE_COST * prompts * spec.evaluate.max_new_tokens * forward
    return hours


def said_tokens(spec: DraftTrainingSpec, amount: Amount) -> float:
    """What the target's own answers cost, in tokens that are read; 0 where an engine gives them, or nobody."""
    own = spec.data.regenerate
    if own is None or own.engine is not None:
        return 0.0
    return amount.tokens + DECODE_COST * min(amount.loss_tokens, own.max_new_tokens * TURNS * amount.documents)


def conversation_shards(spec: DraftTrainingSpec, documents: int, seconds: float) -> int:
    """Shards of the target's own answers as asked for, else about ten minutes each."""
    assert spec.data.regenerate is not None
    if spec.data.regenerate.shards is not None:
        return spec.data.regenerate.shards
    parallelism = spec.regenerate.parallelism if spec.regenerate else 1
    return cut_by_time(seconds, parallelism, MAX_CONVERSATION_SHARDS, documents)


def default_shards(spec: DraftTrainingSpec, documents: int, generate_seconds: float) -> int:
    """Shards as asked for, else about ten minutes each."""
    assert spec.hidden_states is not None
    if spec.hidden_states.shards is not None:
        return spec.hidden_states.shards
    return cut_by_time(generate_seconds, spec.hidden_states.parallelism, MAX_STATE_SHARDS, documents)


def cut_by_time(seconds: float, parallelism: int, most: int, documents: int) -> int:
    """Shards of about ten minutes: as many as work at the same time at the least, and none without a document."""
    return min(max(-(-int(seconds) // SECONDS_PER_SHARD), parallelism, 1), most, max(documents, 1))


# -- Memory -------------------------------------------------------------------------------------------


def host_memory(spec: DraftTrainingSpec, shape: TargetShape) -> int:
    """Host memory without which the pod of process 0 cannot train: its processes, and one checkpoint that is written.

    What is read ahead, and what the workspace's files take in the page cache, comes on top.
    """
    return spec.train.gpus_per_node * BYTES_PER_PROCESS + BYTES_PER_PARAMETER * draft_parameters(spec, shape)


def memory_limit(spec: DraftTrainingSpec) -> tuple[str, int] | None:
    """Where the spec says how much memory a pod of training may have, and how many bytes; None where it does not."""
    for path, pod in (("train.pod", spec.train.pod), ("pod", spec.pod)):
        if pod.resources is not None:
            given = (pod.resources.limits or {}).get("memory")
            return None if given is None else (f"{path}.resources.limits.memory", int(parse_quantity(given)))
    return None


def too_little_memory(spec: DraftTrainingSpec, shape: TargetShape) -> str | None:
    """What to change where a pod of training has obviously too little memory; None where that is not so."""
    limit, least = memory_limit(spec), host_memory(spec, shape)
    if limit is None or limit[1] >= least:
        return None
    number, unit = scaled(least)
    enough = f"{math.ceil(number)}{unit.removesuffix('B')}"
    return (
        f"{limit[0]}: given {bytes_text(limit[1])}; process 0 needs {bytes_text(least)} at the least, for its "
        f"processes and for the checkpoint that is written: raise it to {enough} or more"
    )


# -- What finished shards say ---------------------------------------------------------------------------


def measured(
    made: Plan, spec: DraftTrainingSpec, shape: TargetShape, amount: Amount, finished: Sequence[StageResult]
) -> Plan:
    """The plan with the bytes and the speed of finished shards in place of assumed ones; as it was without any.

    Targets differ in how well their states compress: what is left is taken to be like what is there.
    """
    shards = [result.hidden_states for result in finished if result.hidden_states is not None]
    tokens = sum(shard.tokens for shard in shards)
    if not tokens:
        return made
    stored = replace(
        amount,
        documents=sum(shard.documents for shard in shards),
        tokens=tokens,
        label_rows=sum(shard.label_rows for shard in shards),
    )
    factor = sum(shard.bytes for shard in shards) / hidden_state_bytes(spec, shape, stored)
    states = math.ceil(factor * hidden_state_bytes(spec, shape, amount))
    generate = sum(capture_seconds(result) for result in finished) * amount.tokens / tokens / 3600
    return made.model_copy(
        update={
            "basis": "Measured",
            "bytes": made.bytes.model_copy(
                update={"hidden_states": states, "needed": made.bytes.needed - made.bytes.hidden_states + states}
            ),
            "gpu_hours": with_hours(made.gpu_hours, generate=generate * spec.target.tensor_parallel),
            "assumes": f"{made.assumes}; generate as measured on {len(shards)} of {made.shards} shards",
        }
    )


def capture_seconds(result: StageResult) -> float:
    """What a shard took to make; one that was found finished says at which rate it was made."""
    states = result.hidden_states
    if states is None or states.tokens_per_second is None:
        return result.seconds or 0.0
    return states.tokens / states.tokens_per_second


# -- What finished steps say ----------------------------------------------------------------------------

TRAIN_MEASURED = "; train as measured"


def measured_training(made: Plan, spec: DraftTrainingSpec, train_tokens: int, tokens_per_second: float) -> Plan:
    """The plan with the speed of finished steps in place of the assumed one. `tokens_per_second`: over all GPUs."""
    hours = spec.train.epochs * train_tokens / tokens_per_second / 3600
    return made.model_copy(
        update={
            "basis": "Measured",
            "gpu_hours": with_hours(made.gpu_hours, train=hours * spec.train.nodes * spec.train.gpus_per_node),
            "assumes": made.assumes.removesuffix(TRAIN_MEASURED) + TRAIN_MEASURED,
        }
    )


def with_hours(before: GpuHours, **hours: float) -> GpuHours:
    """GPU-hours with those of some stages replaced, and their sum."""
    made = before.model_copy(update={stage: hours_text(value) for stage, value in hours.items()})
    parts = (made.regenerate, made.generate, made.train, made.evaluate)
    return made.model_copy(update={"total": hours_text(sum(float(part) for part in parts if part))})


# -- What to do where it does not fit -----------------------------------------------------------------


def proposal(
    spec: DraftTrainingSpec, shape: TargetShape, amount: Amount, free: int, claim: str | None = None
) -> str | None:
    """What to change where the plan does not fit into the free bytes; None where it does.

    `claim` is the name of a claim that can grow; without it the workspace is a disk of this machine.
    """
    needed = planned_bytes(spec, shape, amount).needed
    if fits(needed, free):
        return None
    # answers of the target's own took GPUs: what decides the result is frozen by the time that their tokens are counted
    new = "under another name " if spec.data.regenerate else ""
    smaller = (smaller_codec(spec, shape, amount, free), fewer_samples(spec, shape, amount, free))
    ways = [grown(needed, claim), *(f"{new}{change}" for change in smaller if change)]
    where = f"claim {claim} has {bytes_text(free)} free" if claim else f"{bytes_text(free)} are free"
    return f"the plan needs {bytes_text(needed)}, {where}; {', or '.join(ways)}"


def fits(needed: int, free: int) -> bool:
    """Whether a plan leaves a twentieth of the disk free: file systems slow down and fail near their end."""
    return needed <= SAFE_SHARE * free


def grown(needed: int, claim: str | None) -> str:
    """A workspace that is large enough, in units of a tenth, rounded up."""
    number, unit = scaled(needed / SAFE_SHARE)
    size = f"{math.ceil(number * 10) / 10:g}{unit.removesuffix('B')}"
    return f"grow claimTemplate.size to {size}" if claim else f"take a workspace with {size} free"


def smaller_codec(spec: DraftTrainingSpec, shape: TargetShape, amount: Amount, free: int) -> str | None:
    """The most faithful codec with which the plan fits, if there is one."""
    states = spec.hidden_states
    order = list(CODEC_SHARE)
    for codec in order[order.index(states.codec) + 1 :] if states else ():
        if fits(planned_bytes(with_codec(spec, codec), shape, amount).needed, free):
            return f"hiddenStates.codec: {codec}"
    return None


def fewer_samples(spec: DraftTrainingSpec, shape: TargetShape, amount: Amount, free: int) -> str | None:
    """As many samples as fit, in two digits; None where the draft alone is too large."""
    disk = planned_bytes(spec, shape, amount)
    by_sample = (disk.conversations + disk.prepare + disk.hidden_states) / max(amount.documents, 1)
    room = SAFE_SHARE * free - disk.checkpoints - disk.export
    samples = int(room / by_sample) if by_sample else 0
    if samples < 1:
        return None
    digits = 10 ** max(len(str(samples)) - 2, 0)
    return f"data.maxSamples: {samples // digits * digits}"


# -- For people -------------------------------------------------------------------------------------


def scaled(count: float) -> tuple[float, str]:
    """A number of bytes in the largest unit that leaves at least one."""
    power = min(max(int(math.log2(max(count, 1)) // 10), 0), len(UNITS) - 1)
    return count / 1024**power, UNITS[power]


def bytes_text(count: int) -> str:
    """`2.64 TiB`."""
    number, unit = scaled(count)
    return f"{count} B" if unit == "B" else f"{number:.2f} {unit}"


def hours_text(hours: float) -> str:
    """`10.1`; `0.004` where that would be nothing."""
    return f"{hours:.1f}" if hours >= 0.1 else f"{hours:.3f}"
