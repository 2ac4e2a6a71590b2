"""Capture parity: before anything is stored, one document shows that the states are those that training expects.

Layers off by one, a final state without its norm and shifted states cost a few per cent of acceptance each, and no
later check sees them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.reasons import Reason
from draftyard_api.schema import Model
from draftyard_trainer.data.document import Document
from draftyard_trainer.hidden_states.sample import Sample
from draftyard_trainer.storage.sealed import unseal
from draftyard_trainer.storage.store import Store
from draftyard_trainer.target.capture import CapturedTarget

# n tokens of the probe, A captured layers, H width, V vocabulary

PROBE_TOKENS = 64
FIRST_TOKENS = 4
"""Left out of the channel sizes: the first token may be a thousand times larger than all others."""
MAX_ERROR = 0.1
"""Whitened error against the reference; bfloat16 alone makes 0.01 to 0.024."""
MIN_NEIGHBOUR_RATIO = 3.0
"""How much nearer a state must be to its own layer than to the ones beside it; 0.41 to 1.3 was measured there."""
MIN_NLL_GAP = 1.0
"""Nats below a uniform guess at which a target counts as trained; one with random weights knows no next token."""
MIN_NLL_TOKENS = 32
"""A shorter text says too little about likelihoods."""


class LayerProbe(Model):
    """One captured layer against transformers' own hidden states."""

    layer: int
    """Index into `hidden_states`."""
    error: float
    """Whitened rms error."""
    neighbour_error: float
    """The same against the nearer one of the layers beside it."""


class Probe(Model):
    """`probe.json`."""

    tokens: int
    """Length of the probed text."""
    layers: tuple[LayerProbe, ...]
    """Captured layers."""
    last_error: float
    """Whitened rms error of the final state against the last entry of `hidden_states`, which is normed."""
    next_nll: float
    """Mean negative log-likelihood of x[j+1] under the distribution after x[j], in nats."""
    same_nll: float
    """Of x[j]."""
    after_nll: float
    """Of x[j+2]."""


def read_probe(store: Store, name: str) -> Probe | None:
    """What an earlier probe found; None without one that can be read."""
    try:
        return Probe.model_validate_json(unseal(store.read(name)))
    except (FileNotFoundError, ValueError):
        return None


def probe_capture(target: CapturedTarget, document: Document) -> Probe:
    """Compare captured states with the model's own on the first tokens of a document. Raises Failure(UNSUPPORTED)."""
    beginning = document.beginning(PROBE_TOKENS)
    (sample,) = target.capture([beginning])
    return judge(target, sample, target.hidden_states(beginning.tokens))


def judge(target: CapturedTarget, sample: Sample, reference: tuple[Tensor, ...]) -> Probe:
    """Measure a sample whose rows are all label rows. Raises Failure(UNSUPPORTED) when a number is out of bounds."""
    captured = sample.aux.tensor_split(len(target.aux_layers), dim=-1)
    pairs = zip(target.aux_layers, captured, strict=True)
    probe = Probe(
        tokens=sample.document.num_tokens,
        layers=tuple(compare(layer, state_nH, reference) for layer, state_nH in pairs),
        last_error=whitened_error(sample.last, reference[-1]),
        same_nll=mean_nll(target, sample, 0),
        next_nll=mean_nll(target, sample, 1),
        after_nll=mean_nll(target, sample, 2),
    )
    problems = find_problems(probe, len(target.head.lm_head))
    if not all(bool(torch.isfinite(tensor).all()) for tensor in (sample.aux, sample.last, sample.lse)):
        problems = ("some of them are not finite: target.dtype is not the one that it was made for", *problems)
    if problems:
        message = f"target.model: its captured states are not what training expects: {'; '.join(problems)}"
        raise Failure(ExitCode.UNSUPPORTED, Reason.TARGET_UNSUPPORTED, message)
    return probe


def compare(layer: int, captured_nH: Tensor, reference: tuple[Tensor, ...]) -> LayerProbe:
    """Error of one captured layer, and of the nearer one beside it; the last reference is normed, hence no layer."""
    neighbours = [near for near in (layer - 1, layer + 1) if near < len(reference) - 1]
    return LayerProbe(
        layer=layer,
        error=whitened_error(captured_nH, reference[layer]),
        neighbour_error=min(whitened_error(captured_nH, reference[near]) for near in neighbours),
    )


def whitened_error(captured_nH: Tensor, reference_nH: Tensor) -> float:
    """The rms of the difference, each channel by its own size: a few channels are huge, and would hide all others."""
    wide_nH = reference_nH.double()
    kept_nH = wide_nH[FIRST_TOKENS:] if len(wide_nH) > FIRST_TOKENS else wide_nH
    size_H = kept_nH.square().mean(0).sqrt().clamp(min=1e-12)
    error_nH = (captured_nH.double() - wide_nH) / size_H
    return finite(float(error_nH[-len(kept_nH) :].square().mean().sqrt()))


def mean_nll(target: CapturedTarget, sample: Sample, shift: int) -> float:
    """Mean negative log-likelihood of `x[j + shift]` under the distribution after `x[j]`; 0 for a text too short."""
    tokens = torch.from_numpy(sample.document.tokens).to(target.device)
    rows = len(tokens) - 2
    if rows < 1:
        return 0.0
    chosen = target.head.logit_of(sample.last[:rows], tokens[shift : shift + rows])
    return finite(float((sample.lse[:rows] - chosen).mean()))


def finite(value: float) -> float:
    """The value, or a very large one that JSON can hold."""
    return value if math.isfinite(value) else 1e30


def find_problems(probe: Probe, vocab_size: int) -> tuple[str, ...]:
    """What does not fit, in words."""
    problems = [
        f"layer {layer.layer}: error {layer.error:.3g}, to the layer beside it {layer.neighbour_error:.3g}"
        for layer in probe.layers
        if layer.error > MAX_ERROR or layer.neighbour_error < MIN_NEIGHBOUR_RATIO * layer.error
    ]
    if probe.last_error > MAX_ERROR:
        problems.append(f"final state: error {probe.last_error:.3g}")
    knows_language = probe.next_nll < math.log(vocab_size) - MIN_NLL_GAP
    if knows_language and probe.tokens >= MIN_NLL_TOKENS and probe.next_nll >= min(probe.same_nll, probe.after_nll):
        problems.append(
            f"shift: {probe.next_nll:.3g} nats for the next token, {probe.same_nll:.3g} and {probe.after_nll:.3g} for "
            "those beside it"
        )
    return tuple(problems)
