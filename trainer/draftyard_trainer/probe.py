"""The numeric probe of an export: loaded from its files alone, it must compute what the trainer's draft computes.

No engine is needed to see a lost tensor, a swapped flag, a wrong rope or another reading of the config: each of them
moves the logits. Weights are rounded to the exported dtype first, on both sides: a logit of size 30 has a spacing of
0.125 in bfloat16, so unrounded weights would differ by more than any bound that still finds mistakes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from draftyard_trainer.chain import unroll_logits
from draftyard_trainer.draft.files import assemble_draft, read_draft
from draftyard_trainer.draft.header import EMBEDDING, WEIGHTS_FILE, DraftFiles
from draftyard_trainer.draft.model import DraftModel
from draftyard_trainer.hidden_states.sample import Sample

# R rows that are compared, D draft vocabulary, V target vocabulary, H width

MAX_ROWS = 256
"""Rows whose logits are compared at each step: 7 steps of 32000 logits each take 0.2 GB."""
MAX_DIFFERENCE = {"BF16": 2e-2, "F16": 2e-2, "F32": 1e-5}
"""Of any logit, by the exported dtype. On one machine both sides run the same kernels, and the difference is 0."""
RMS_RANGE = (1e-4, 1e2)


@dataclass(frozen=True, eq=False)
class Probe:
    """A stored sample, and what the trainer's draft makes of it with weights in the exported dtype."""

    sample: Sample
    embedding: Tensor
    """The target's, `[V, H]`."""
    logits: tuple[Tensor, ...]
    """Per step `[R, D]`."""
    max_abs_rounding: float
    """Largest difference of a logit between the trainer's weights and the rounded ones. For information."""

    def check_logits(self, files: DraftFiles) -> str | None:
        """Whether an export means what was trained, whatever made it differ."""
        dtypes = {header.dtype for name, header in files.tensors.items() if header.dtype in MAX_DIFFERENCE}
        # Mixed dtypes are another rule's business; the loosest one decides here.
        allowed = max(MAX_DIFFERENCE[dtype] for dtype in dtypes)
        try:
            difference = measure_difference(files, self)
        except ValueError as error:
            return f"model.safetensors: cannot be loaded by its own config: {error}"
        if difference < allowed:
            return None
        return f"logits: {difference:.3g} away from the trainer's; accepted: less than {allowed:g}"

    def check_values(self, files: DraftFiles) -> str | None:
        """Broken weights load in silence; an embedding of its own is used by one engine and not by the other."""
        with safe_open(files.folder / WEIGHTS_FILE, framework="pt") as tensors:
            for name in files.tensors:
                tensor = tensors.get_tensor(name)
                if not tensor.is_floating_point():
                    continue
                # A NaN or an infinity anywhere makes the mean one too.
                wide = tensor.float()
                # Wide on purpose: it tells a zeroed or an exploded tensor from a trained one, and no more.
                rms = float(wide.square().mean().sqrt())
                if not RMS_RANGE[0] <= rms <= RMS_RANGE[1]:
                    return f"{name}: rms {rms:.3g}; accepted: finite, {RMS_RANGE[0]:g} to {RMS_RANGE[1]:g}"
                if name == EMBEDDING and not torch.equal(tensor, self.embedding.to(tensor.dtype).cpu()):
                    return f"{name}: not the target's; accepted: the same bits, or no such tensor"
        return None


def record_probe(draft: DraftModel, embedding_VH: Tensor, sample: Sample, num_steps: int, dtype: str) -> Probe:
    """Run the trainer's draft, its weights rounded to `dtype`, over all steps of the unroll."""
    # The trainer's draft itself, as it stands in memory, and not a copy made from its config.
    own = run_steps(draft, sample, num_steps)
    weight = draft.fc.weight
    rounded = {name: round_to(tensor, dtype) for name, tensor in draft.state_dict().items()}
    if all(torch.equal(rounded[name], tensor) for name, tensor in draft.state_dict().items()):
        # A float32 export: nothing is rounded, and the bound of 1e-5 holds against the trainer itself.
        return Probe(sample, embedding_VH, own, 0.0)
    twin = assemble_draft(draft.config, rounded, weight.dtype).to(weight.device)
    twin.attach_embedding(embedding_VH)
    logits = run_steps(twin, sample, num_steps)
    return Probe(sample, embedding_VH, logits, largest_difference(own, logits))


def round_to(tensor: Tensor, dtype: str) -> Tensor:
    """A weight as it is after a way through the exported dtype; integers and masks stay as they are."""
    return tensor.to(getattr(torch, dtype)).to(tensor.dtype) if tensor.is_floating_point() else tensor


def run_steps(draft: DraftModel, sample: Sample, num_steps: int) -> tuple[Tensor, ...]:
    """Logits of evenly spread supervised rows at every step, fed with the true tokens."""
    supervised = np.flatnonzero(sample.document.mask())
    first, last = int(supervised[0]) - 1, sample.document.num_tokens - 2
    # Up to the row before the last: it still has a true token to read at step 0.
    rows = np.unique(np.linspace(max(first, 0), last, MAX_ROWS).astype(np.int64))
    return tuple(unroll_logits(draft, sample, rows, num_steps, forced=True))


def measure_difference(files: DraftFiles, probe: Probe) -> float:
    """Largest difference of a logit between files and trainer. Raises ValueError where the files do not load."""
    reference = probe.logits[0]
    draft = read_draft(files.folder, reference.dtype).model.to(reference.device)
    draft.attach_embedding(probe.embedding)
    return largest_difference(run_steps(draft, probe.sample, len(probe.logits)), probe.logits)


def largest_difference(left: tuple[Tensor, ...], right: tuple[Tensor, ...]) -> float:
    """Over all steps, rows and logits; a shape that differs is infinitely far."""
    # A head of another size loads when its config says the same size.
    if [one.shape for one in left] != [other.shape for other in right]:
        return float("inf")
    return max(float((one - other).abs().max()) for one, other in zip(left, right, strict=True))
