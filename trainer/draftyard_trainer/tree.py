"""Trees of proposals, grown as SGLang's EAGLE grows them, at all positions of a greedy reply at once.

The draft's `topK` most likely tokens are the first level. At each further step the `topK` most likely nodes of the last
level are read by the draft, each with its own ancestors before it, and each gets `topK` children; a node is as likely
as the product of the draft's probabilities on its path. Of all nodes the most likely ones are verified together, as
many as `draftTokens` has room for beside the newest verified token. What is accepted is the deepest path on which all
tokens are the target's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from draftyard_api.spec import Tree
from draftyard_trainer.chain import Opened, open_unroll
from draftyard_trainer.data.document import Ids
from draftyard_trainer.draft.attention import Chain
from draftyard_trainer.draft.model import DraftModel
from draftyard_trainer.hidden_states.sample import Sample

# R rows that propose, k = topK, n tokens of prompt and reply, D draft vocabulary, H width, W nodes of a level

ROWS_AT_ONCE = 512
"""Rows whose trees are grown together: their nodes' keys and values are k times as many."""


@dataclass(frozen=True, eq=False)
class Level:
    """All nodes of one depth, `[R, W]` each."""

    scores: Tensor
    """Logarithm of the product of the draft's probabilities on the path to the node."""
    tokens: Tensor
    """Target ids."""
    parents: Tensor
    """Place of the parent in the level before; 0 at the first level."""


@dataclass(frozen=True, eq=False)
class Branches:
    """The k nodes of a level that are read next, `[R, k]` each."""

    scores: Tensor
    tokens: Tensor
    places: Tensor
    """Where they are in their level."""
    readers: Tensor
    """Which of the k branches of the step before has read their parent."""


def propose_tree(draft: DraftModel, sample: Sample, tree: Tree) -> Ids:
    """What a tree at every row of the first answer finds of the reply: target ids `[steps, n]`.

    As in `chain.propose`, entry (i, t) is for position t+2+i: the reply's own token when all tokens up to it are on one
    path of the tree, else -1.
    """
    tokens = sample.document.tokens
    found_KN = np.full((tree.steps, len(tokens)), -1, dtype=np.int64)
    rows = np.arange(int(sample.document.spans[0, 0]) - 1, len(tokens) - 2)
    for start in range(0, len(rows), ROWS_AT_ONCE):
        some = rows[start : start + ROWS_AT_ONCE]
        depth_R = accepted_depth(
            list(grow(draft, sample, some, tree)), tree.draft_tokens - 1, truth(tokens, some, tree)
        )
        for step in range(tree.steps):
            right = some[depth_R > step]
            found_KN[step, right] = tokens[right + 2 + step]
    return found_KN


def truth(tokens: Ids, rows: Ids, tree: Tree) -> Tensor:
    """The reply's tokens that each row's tree is compared with, `[R, steps]`; -1 behind the end."""
    padded = np.concatenate([tokens, np.full(tree.steps, -1, dtype=np.int64)])
    return torch.from_numpy(padded[rows[:, None] + 2 + np.arange(tree.steps)])


@torch.no_grad()
def grow(draft: DraftModel, sample: Sample, rows: Ids, tree: Tree) -> Iterator[Level]:
    """The levels of the trees of some rows, first to last."""
    opened = open_unroll(draft, sample, rows, 0)
    count, top_k = len(rows), tree.top_k
    first = torch.zeros(count, 1, dtype=torch.int64, device=opened.rows.device)
    level = children(draft, opened.hidden[:, None], first.float(), first, top_k)
    yield level
    every_k = torch.arange(top_k, device=first.device).expand(count, -1)
    branches = Branches(level.scores, level.tokens, every_k, first.expand(-1, top_k))
    hidden_RkH = opened.hidden[:, None]
    ancestry: list[Chain] = []
    for step in range(1, tree.steps):
        ancestry = [replace(link, index=inherited(link.index, branches.readers)) for link in ancestry]
        hidden_RkH, own = read(draft, opened, branches, hidden_RkH, ancestry, step)
        ancestry.append(own)
        level = children(draft, hidden_RkH, branches.scores, branches.places, top_k)
        yield level
        scores, places = level.scores.topk(top_k, dim=-1)
        branches = Branches(scores, level.tokens.gather(1, places), places, places // top_k)


def children(draft: DraftModel, hidden_RkH: Tensor, scores_Rk: Tensor, places_Rk: Tensor, top_k: int) -> Level:
    """The `top_k` most likely tokens behind each branch."""
    found = [draft.logits(hidden_RH).float().log_softmax(-1).topk(top_k, dim=-1) for hidden_RH in hidden_RkH.unbind(1)]
    scores = torch.cat([one.values + score[:, None] for one, score in zip(found, scores_Rk.unbind(1), strict=True)], 1)
    tokens = draft.target_ids()[torch.cat([one.indices for one in found], 1)]
    return Level(scores, tokens, places_Rk.repeat_interleave(top_k, dim=1))


def inherited(index_Rk: Tensor, readers_Rk: Tensor) -> Tensor:
    """Where the keys of each branch's ancestors are: where they are for the branch that has read its parent."""
    return index_Rk.gather(1, readers_Rk)


def read(
    draft: DraftModel, opened: Opened, branches: Branches, hidden_RkH: Tensor, ancestry: list[Chain], step: int
) -> tuple[Tensor, Chain]:
    """Let the draft read the tokens of all branches. Returns its hidden states `[R, k, H]`, their keys and values."""
    count, top_k = branches.tokens.shape
    every = torch.arange(count, device=opened.rows.device)
    states, keys, values = [], [], []
    # One branch of every row at a time: attention takes each row once.
    for branch in range(top_k):
        chain = [Chain(link.keys, link.values, link.index[:, branch]) for link in ancestry]
        state = replace(opened.state, chain=chain)
        before_RH = draft.carry(hidden_RkH[every, branches.readers[:, branch]])
        tokens_RP = draft.project(draft.embed(branches.tokens[:, branch]))
        states.append(draft.next_step(tokens_RP, before_RH, opened.rows + step, opened.rows, state))
        keys.append(state.chain[-1].keys)
        values.append(state.chain[-1].values)
    index_Rk = torch.arange(top_k, device=every.device) * count + every[:, None]
    return torch.stack(states, 1), Chain(torch.cat(keys), torch.cat(values), index_Rk)


def accepted_depth(levels: list[Level], num_nodes: int, truth_RK: Tensor) -> Ids:
    """How deep the reply can be followed through the verified nodes of each row's tree, `[R]`."""
    scores = torch.cat([level.scores for level in levels], dim=1)
    # Stable, and levels lie in their order: a child that is certain is as likely as its parent, and must not go first.
    best = scores.sort(dim=1, descending=True, stable=True).indices[:, :num_nodes]
    is_verified = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, best, True)
    truth_RK = truth_RK.to(scores.device)
    place_R = torch.zeros(len(scores), dtype=torch.int64, device=scores.device)
    is_open, depth_R, start = torch.ones_like(place_R, dtype=torch.bool), torch.zeros_like(place_R), 0
    for step, level in enumerate(levels):
        width = level.scores.shape[1]
        fits = is_verified[:, start : start + width] & (level.tokens == truth_RK[:, step, None])
        fits &= (level.parents == place_R[:, None]) & is_open[:, None]
        # Children of one node differ, so at most one of them fits.
        is_open, place_R = fits.any(1), fits.int().argmax(1)
        depth_R += is_open
        start += width
    return depth_R.cpu().numpy()
