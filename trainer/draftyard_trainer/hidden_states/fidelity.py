"""What rounding does to the labels and to the states, measured on some rows of every part while both are at hand."""

from __future__ import annotations

import torch
from torch import Tensor

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.reasons import Reason
from draftyard_api.schema import Codec
from draftyard_trainer.hidden_states.codec import Channels, StateCodec
from draftyard_trainer.hidden_states.probe import FIRST_TOKENS
from draftyard_trainer.hidden_states.rounding import BINS_PER_DECADE, BOUNDS, NUM_BINS, SMALLEST, Fidelity, total
from draftyard_trainer.hidden_states.sample import Sample
from draftyard_trainer.target.head import TargetHead

__all__ = ["BOUNDS", "EVERY", "Fidelity", "measure", "require", "total"]

# R measured rows, V vocabulary, A captured layers, H width

EVERY = 16
"""One of so many rows is measured: about a hundredth of the time that the target takes."""
ROW_BLOCK = 256


@torch.no_grad()
def measure(sample: Sample, codec: StateCodec, channels: Channels, head: TargetHead) -> Fidelity:
    """Every 16th row of a document before and after the codec, on the sample's device.

    Rows are packed apart from each other, so these rows are packed as they are in the record.
    """
    offset = sample.document.doc_id % EVERY
    aux = sample.aux[FIRST_TOKENS + offset :: EVERY]
    last = sample.last[offset::EVERY]
    aux_after, last_after = (form.unpack(form.pack(rows)) for form, rows in ((codec.aux, aux), (codec.last, last)))
    layered = channels.aux.shape
    errors, sizes = whitened(aux.unflatten(-1, layered), aux_after.unflatten(-1, layered), channels.aux)
    last_error, last_size = whitened(last[:, None], last_after[:, None], channels.last[None])
    pairs = zip(last.split(ROW_BLOCK), last_after.split(ROW_BLOCK), strict=True)
    judged = [labels(before, after, head) for before, after in pairs]
    divergence_R = torch.cat([divergence for divergence, _ in judged])
    place_R = ((divergence_R.clamp(min=1e-300).log10() - SMALLEST) * BINS_PER_DECADE).floor().clamp(0, NUM_BINS - 1)
    return Fidelity(
        rows=len(last),
        divergence=float(divergence_R.sum()),
        divergence_squared=float(divergence_R.square().sum()),
        largest=max(divergence_R.tolist(), default=0.0),
        histogram=tuple(torch.bincount(place_R.long(), minlength=NUM_BINS).tolist()),
        agreeing=sum(agreeing for _, agreeing in judged),
        errors=(*errors, *last_error),
        sizes=(*sizes, *last_size),
    )


def whitened(before: Tensor, after: Tensor, channels: Tensor) -> tuple[list[float], list[float]]:
    """Sums of squares of the difference and of the values, `[R, A, H]` in, A of each out."""
    true, stored = before.float() / channels, after.float() / channels
    return (true - stored).square().sum((0, 2)).tolist(), true.square().sum((0, 2)).tolist()


def labels(before: Tensor, after: Tensor, head: TargetHead) -> tuple[Tensor, int]:
    """Of label rows `[R, H]`: divergences `[R]`, fp64 on the host, and how many most likely tokens stay."""
    true_RV, stored_RV = head.logits(before), head.logits(after)
    agreeing = int((true_RV.argmax(-1) == stored_RV.argmax(-1)).sum())
    log_p, log_q = true_RV.log_softmax(-1), stored_RV.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).double().clamp(min=0).cpu(), agreeing


def require(fidelity: Fidelity, codec: Codec) -> None:
    """Raises Failure(UNSUPPORTED) when a codec does not keep what it promises for this target."""
    problems = fidelity.problems(BOUNDS[codec]) if codec in BOUNDS else []
    if problems:
        message = (
            f"hiddenStates.codec: given {codec}, which this target does not bear: {'; '.join(problems)}; accepted: "
            "lossless, or none"
        )
        raise Failure(ExitCode.UNSUPPORTED, Reason.TARGET_UNSUPPORTED, message)
