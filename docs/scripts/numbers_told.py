"""Numbers that pages tell: what targets weigh, what hidden states take, what training costs. All are estimated."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tables import table

from draftyard_api import estimate
from draftyard_api.estimate import CODEC_SHARE, Amount, bytes_text
from draftyard_api.spec import (
    Data,
    DataSource,
    DraftTrainingSpec,
    Evaluate,
    HiddenStates,
    Preset,
    Pvc,
    Target,
    Train,
    Workspace,
)
from draftyard_api.targets import WELL_KNOWN, TargetShape, can_spread, weights

MILLION = 10**6
TOKENS = 100 * MILLION
GPU_SIZES = (80, 141, 288)
"""Gigabytes of an H100, an H200, a B300."""
USABLE = 0.9
"""Share of a GPU that weights may take: activations, the head's rows and the allocator want the rest."""
COMPARED = (
    "meta-llama/Llama-3.1-8B-Instruct",
    "Qwen/Qwen3-30B-A3B",
    "meta-llama/Llama-3.3-70B-Instruct",
    "deepseek-ai/DeepSeek-V3",
)
ALIKE = ("meta-llama/Llama-3.1-70B-Instruct", "deepseek-ai/DeepSeek-R1")
"""As large as Llama 3.3 and DeepSeek-V3."""


def shapes() -> Mapping[str, TargetShape]:
    """Well-known targets by name."""
    return {name: TargetShape.from_config(config) for name, config in WELL_KNOWN.items() if name not in ALIKE}


def training(mode: str = "Offline", epochs: int = 1) -> DraftTrainingSpec:
    """A run with every default."""
    return DraftTrainingSpec.model_validate(
        {
            "mode": mode,
            "target": Target(model="org/name"),
            "data": Data(source=DataSource(preset=Preset(name="sharegpt")), eval_fraction=0.01),
            "workspace": Workspace(pvc=Pvc(existing_claim="workspace")),
            "hidden_states": HiddenStates() if mode == "Offline" else None,
            "train": Train(epochs=epochs),
            "evaluate": Evaluate(),
        }
    )


def amount(spec: DraftTrainingSpec, tokens: int = TOKENS) -> Amount:
    """That many tokens of conversations as long as those of ShareGPT."""
    documents = tokens // estimate.MEAN_TOKENS
    data = spec.data.model_copy(
        update={"source": DataSource(preset=Preset(name="perfectblend")), "max_samples": documents}
    )
    return estimate.assumed(spec.model_copy(update={"data": data}), None)


# -- Sizing -----------------------------------------------------------------------------------------


def targets() -> str:
    """What each target weighs, and how many GPUs hold it."""
    rows = []
    for name in shapes():
        counts = [gpus(WELL_KNOWN[name], gigabytes) for gigabytes in GPU_SIZES]
        rows.append([f"`{name}`", bytes_text(2 * weights(WELL_KNOWN[name]).total), *counts])
    return table(["target", "weights, bfloat16", *(f"GPUs of {size} GB" for size in GPU_SIZES)], rows)


def gpus(config: Mapping[str, Any], gigabytes: int) -> str:
    """The fewest GPUs of a node that hold the weights; a dash where eight are too few, or it cannot be spread."""
    held = weights(config)
    for count in (1, 2, 4, 8):
        if can_spread(config, count) and 2 * held.on_each(count) <= USABLE * gigabytes * 10**9:
            return str(count)
    return "-"


def drafts() -> str:
    """The draft of each target, and what hidden states take."""
    spec, rows = training(), []
    for name, shape in shapes().items():
        sizes = estimate.by_codec(spec, shape, amount(spec))
        parameters = estimate.draft_parameters(spec, shape)
        checkpoint = estimate.BYTES_PER_PARAMETER * parameters
        told = [bytes_text(sizes[codec]) for codec in CODEC_SHARE]
        rows.append([f"`{name}`", f"{parameters / MILLION:,.0f} M", bytes_text(checkpoint), *told])
    heads = ["target", "draft", "a checkpoint", *(f"states, `{codec}`" for codec in CODEC_SHARE)]
    return table(heads, rows)


def hours() -> str:
    """GPU-hours of 100 million tokens."""
    spec, rows = training(), []
    for name, shape in shapes().items():
        cost = estimate.gpu_hours(spec, shape, amount(spec))
        online = estimate.gpu_hours(training("Online"), shape, amount(spec))
        rows.append(
            [f"`{name}`", *(estimate.hours_text(one) for one in (cost["generate"], cost["train"], online["train"]))]
        )
    return table(["target", "generate, once", "train, an epoch", "Online: an epoch with the target"], rows)


# -- Online or Offline --------------------------------------------------------------------------------


def modes() -> str:
    """What both modes take for some targets, for one epoch and for four."""
    rows: list[Sequence[str]] = []
    for name in COMPARED:
        shape = TargetShape.from_config(WELL_KNOWN[name])
        for epochs in (1, 4):
            online, offline = training("Online", epochs), training("Offline", epochs)
            costs = [math.fsum(estimate.gpu_hours(one, shape, amount(one)).values()) for one in (online, offline)]
            disks = [estimate.planned_bytes(one, shape, amount(one)).needed for one in (online, offline)]
            told = [estimate.hours_text(cost) for cost in costs]
            rows.append([f"`{name}`", str(epochs), told[0], bytes_text(disks[0]), told[1], bytes_text(disks[1])])
    heads = ["target", "epochs", "Online: GPU-hours", "disk", "Offline: GPU-hours", "disk"]
    return table(heads, rows)
