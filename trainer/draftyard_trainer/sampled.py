"""Acceptance at temperature 1: exact rejection sampling, counted on replies that are made first.

A server draws a proposal d from the draft's distribution q, accepts it with probability min(1, p(d) / q(d)), p being
the target's, and else draws a token from what of p lies above q. So whatever the draft is, each token is one drawn
from p: the replies can be drawn from the target alone. And given that token x was said, it was an accepted proposal
with probability q(x) min(1, p(x) / q(x)) / p(x) = min(1, q(x) / p(x)): that is decided afterwards, with a number of its
own for every token. Replies and rounds have together the very distribution that a server gives them, no key is ever
taken back from a cache, and all positions are asked at once. `tests/trainer/test_sampled.py` plays the server.
"""

from __future__ import annotations

import zlib
from enum import IntEnum

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from draftyard_trainer.chain import unroll_logits
from draftyard_trainer.data.document import Ids
from draftyard_trainer.draft.model import DraftModel
from draftyard_trainer.hidden_states.sample import Sample
from draftyard_trainer.target.head import TargetHead

# R rows that propose, K proposals per row, n tokens of prompt and reply, V target and D draft vocabulary

Uniforms = npt.NDArray[np.float64]
Shares = npt.NDArray[np.float64]


class Draws(IntEnum):
    """What random numbers are used for: each use has a stream of its own."""

    REPLY = 0
    ACCEPT = 1


def uniforms(seed: int, prompt_set: str, doc_id: int, use: Draws, count: int) -> Uniforms:
    """Numbers from [0, 1) that depend on run, prompt and use alone, so an answer is the same in any batch."""
    return np.random.default_rng((seed, zlib.crc32(prompt_set.encode()), doc_id, use)).random(count)


def accept(tokens: Ids, shares_KN: Shares, chances_N: Uniforms) -> Ids:
    """Which tokens of a sampled reply were proposals that a round accepts: target ids `[K, n]`, -1 where rejected.

    As in `chain.propose`, entry (k, t) is for position t+2+k, and it is read only where all before it are accepted.
    `chances_N` has one number from [0, 1) for every position.
    """
    accepted_KN = np.full(shares_KN.shape, -1, dtype=np.int64)
    for step, shares_N in enumerate(shares_KN):
        rows = np.arange(max(len(tokens) - 2 - step, 0))
        right = rows[chances_N[rows + 2 + step] < shares_N[rows]]
        accepted_KN[step, right] = tokens[right + 2 + step]
    return accepted_KN


def acceptance_shares(draft: DraftModel, head: TargetHead, sample: Sample, num_proposals: int) -> Shares:
    """How probable it is that a token of a sampled reply was an accepted proposal, `[K, n]`; 0 outside of the reply.

    Entry (k, t) is for position t+2+k after k accepted proposals: so the draft has read the reply's own tokens.
    """
    tokens, document = sample.document.tokens, sample.document
    shares_KN = np.zeros((num_proposals, document.num_tokens))
    rows = np.arange(int(document.spans[0, 0]) - 1, document.num_tokens - 2)
    if not len(rows):
        return shares_KN
    spoken_N = log_spoken(head, sample)
    for step, logits_RD in enumerate(unroll_logits(draft, sample, rows, num_proposals, forced=True)):
        inside = rows[rows + 2 + step < document.num_tokens]
        places = inside + 2 + step
        proposed_R = log_proposed(draft, logits_RD[: len(inside)], tokens[places])
        shares_KN[step, inside] = np.exp(np.minimum(proposed_R - spoken_N[places], 0.0))
    return shares_KN


def log_spoken(head: TargetHead, sample: Sample) -> npt.NDArray[np.float64]:
    """Logarithm of the target's probability of each reply token, `[n]`; NaN outside of the reply."""
    document = sample.document
    start, length = (int(value) for value in document.spans[0])
    places = np.arange(start, start + length)
    # The state before a token gives its distribution; label rows hold it from the one before the reply on.
    rows = torch.from_numpy(np.searchsorted(document.label_rows(), places - 1)).to(sample.last.device)
    ids_r = torch.from_numpy(document.tokens[places])
    last_rH, lse_r = sample.last[rows], sample.lse[rows]
    found = np.full(document.num_tokens, np.nan)
    found[places] = (head.logit_of(last_rH, ids_r) - lse_r).double().cpu().numpy()
    return found


def log_proposed(draft: DraftModel, logits_RD: Tensor, tokens_R: Ids) -> npt.NDArray[np.float64]:
    """Logarithm of the draft's probability of one target token per row, `[R]`; -inf outside of its vocabulary."""
    target_ids = draft.target_ids()
    wanted_R = torch.from_numpy(tokens_R).to(target_ids.device)
    draft_R = torch.searchsorted(target_ids, wanted_R).clamp(max=len(target_ids) - 1)
    logp_R = logits_RD.double().log_softmax(-1).gather(1, draft_R[:, None])[:, 0]
    return logp_R.masked_fill(target_ids[draft_R] != wanted_R, -torch.inf).cpu().numpy()
