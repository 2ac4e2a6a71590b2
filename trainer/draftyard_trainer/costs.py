"""What a step of the target and a step of the draft take here, and how much faster speculation should be for one user.

A round takes the draft's steps and one step of the target that verifies all proposals; it yields as many tokens as the
acceptance length says. Without a draft each token takes a step of the target. Batch 1, keys and values cached, the
code of this evaluator and not that of an engine: kernels differ, the terms are told so that they can be replaced.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from draftyard_trainer.chain import open_unroll
from draftyard_trainer.data.document import Document, Ids
from draftyard_trainer.draft.manifest import Settings, Speedup
from draftyard_trainer.draft.model import DraftModel
from draftyard_trainer.hidden_states.sample import Sample
from draftyard_trainer.target.capture import CapturedTarget

WARM_UP = 2
REPEATS = 7
CONTEXT = 512
"""Tokens that were read before, at most."""


def predict_speedup(
    target: CapturedTarget, draft: DraftModel, document: Document, settings: Settings, length: float
) -> Speedup:
    """Measure the terms behind the beginning of a document, and what they mean at an acceptance length."""
    context = document.beginning(CONTEXT)
    tree = settings.tree
    verified = tree.draft_tokens if tree else settings.draft_tokens + 1
    one, many = target_seconds(target, context.tokens, verified)
    (sample,) = target.capture([context])
    draft_step = draft_seconds(draft, sample, tree.top_k if tree else 1)
    steps = tree.steps if tree else settings.draft_tokens
    return Speedup(
        value=length * one / (steps * draft_step + many),
        target_seconds=one,
        verify_seconds=many,
        draft_seconds=draft_step,
        verified_tokens=verified,
        draft_steps=steps,
        context_tokens=context.num_tokens,
        device=device_name(target.device),
    )


def target_seconds(target: CapturedTarget, context: Ids, verified: int) -> tuple[float, float]:
    """A step that reads one token, and one that reads `verified`: in turns, so that a slow moment slows both."""
    text = target.cached_text()
    text.read(context)
    # What is read does not matter for the time.
    single, several = context[:1], np.resize(context, verified)
    one, many = [], []
    for _ in range(WARM_UP + REPEATS):
        one.append(timed(lambda: text.read(single), target.device))
        many.append(timed(lambda: text.read(several), target.device))
    return statistics.median(one[WARM_UP:]), statistics.median(many[WARM_UP:])


@torch.no_grad()
def draft_seconds(draft: DraftModel, sample: Sample, width: int) -> float:
    """A step of the draft behind all of a sample, with its head: `width` tokens side by side, as a tree reads them."""
    n = sample.document.num_tokens
    opened = open_unroll(draft, sample, np.arange(max(n - width, 0), n), 1)
    ids_R = torch.zeros_like(opened.rows)

    def step() -> None:
        # Always the second step: the keys of one more or less do not matter beside those of the context.
        opened.state.chain.clear()
        before_RH = draft.carry(opened.hidden)
        tokens_RP = draft.project(draft.embed(ids_R))
        hidden_RH = draft.next_step(tokens_RP, before_RH, opened.rows + 1, opened.rows, opened.state)
        draft.logits(hidden_RH).argmax(-1)

    taken = [timed(step, ids_R.device) for _ in range(WARM_UP + REPEATS)]
    return statistics.median(taken[WARM_UP:])


def timed(step: Callable[[], None], device: torch.device) -> float:
    """Seconds of one call, what it left to the GPU included."""
    started = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def device_name(device: torch.device) -> str:
    """For people."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
