"""The greedy chain evaluator: how many tokens a server would accept per round, computed without a server.

Greedy decoding makes the target's reply independent of the draft, and a server rebuilds the draft's keys of accepted
tokens from the target's real states. So the replies can be made first, the draft can propose at all positions at
once, and the rounds can be counted afterwards: this is exact, not a proxy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from draftyard_trainer.data.document import Ids
from draftyard_trainer.draft.attention import Documents
from draftyard_trainer.draft.model import DraftModel, UnrollState
from draftyard_trainer.hidden_states.sample import Sample

# n tokens of prompt and reply, R rows that propose, K proposals per row, D draft vocabulary, P prompts

RESAMPLES = 2000
INTERVAL = (2.5, 97.5)


@dataclass(frozen=True, eq=False)
class RoundCounts:
    """Rounds of one reply. `per_position[i]` counts rounds in which proposals 0..i were all accepted; `[K]`."""

    rounds: int
    per_position: Ids
    by_round: tuple[int, ...] = ()
    """Accepted proposals of each round, in order."""

    @property
    def accepted(self) -> int:
        """Accepted proposals: a round that accepts c adds one to each of the first c positions."""
        return int(self.per_position.sum())


@dataclass(frozen=True)
class ChainAcceptance:
    """Acceptance over all prompts."""

    rounds: int
    accepted: int
    per_position: tuple[float, ...]
    """Share of rounds in which proposals 1..i were all accepted."""
    interval: tuple[float, float]
    """95 % bootstrap of the length over prompts."""
    per_position_intervals: tuple[tuple[float, float], ...]
    """The same of each share."""

    @property
    def length(self) -> float:
        """Tokens per round; the 1 is the target's own."""
        return 1 + self.accepted / self.rounds


@dataclass(frozen=True, eq=False)
class ForcedCounts:
    """Teacher-forced comparison on one reply: of `gated[k]` positions, proposals 0..k are all right at `joint[k]`."""

    gated: Ids
    joint: Ids


def propose(draft: DraftModel, sample: Sample, num_proposals: int, forced: bool) -> Ids:
    """What the draft proposes at every row of the first answer: target ids `[K, n]`, -1 at rows that nobody reads.

    Row t has read the token at t+1; its k-th proposal is for position t+2+k. Later proposals see the draft's own
    earlier ones, as in a server, or, with `forced`, the true tokens, as in training.
    """
    document = sample.document
    proposed_KN = np.full((num_proposals, document.num_tokens), -1, dtype=np.int64)
    # The first answer token comes from prefill, so the row before it is the first to propose; the last two have nothing
    # to be checked against.
    rows = np.arange(int(document.spans[0, 0]) - 1, document.num_tokens - 2)
    if len(rows):
        for step, logits_RD in enumerate(unroll_logits(draft, sample, rows, num_proposals, forced)):
            proposed_KN[step, rows] = draft.target_ids()[logits_RD.argmax(-1)].cpu().numpy()
    return proposed_KN


@dataclass(frozen=True, eq=False)
class Opened:
    """An unroll after its first step."""

    following: Tensor
    """`[n + steps]`: the token at t+1 for row t; id 0 stands in behind the end, where no row is read."""
    rows: Tensor
    """`[R]`."""
    hidden: Tensor
    """`[R, H]`."""
    state: UnrollState


def open_unroll(draft: DraftModel, sample: Sample, rows: Ids, num_further: int) -> Opened:
    """Run the first step: all rows of the sample give their keys and values, the chosen ones their hidden states."""
    device, n = draft.fc.weight.device, sample.document.num_tokens
    following_N = torch.zeros(n + num_further, dtype=torch.int64, device=device)
    following_N[: n - 1] = torch.from_numpy(sample.document.tokens[1:]).to(device)
    rows_R, positions_N = torch.from_numpy(rows).to(device), torch.arange(n, device=device)
    borders = torch.tensor([0, n], dtype=torch.int32, device=device)
    state = draft.start(Documents((0, n), borders))
    # Stored in the target's dtype; the draft casts to its own.
    fused_NH = draft.fuse(sample.aux.to(device))
    tokens_NP = draft.project(draft.embed(following_N[:n]))
    return Opened(following_N, rows_R, draft.first_step(tokens_NP, fused_NH, positions_N, rows_R, state), state)


@torch.no_grad()
def unroll_logits(draft: DraftModel, sample: Sample, rows: Ids, num_steps: int, forced: bool) -> Iterator[Tensor]:
    """Logits `[R, D]` of the chosen rows at every step; all rows of the sample give their keys and values."""
    opened = open_unroll(draft, sample, rows, num_steps)
    rows_R, hidden_RH = opened.rows, opened.hidden
    logits_RD = draft.logits(hidden_RH)
    yield logits_RD
    for step in range(1, num_steps):
        fed_R = opened.following[rows_R + step] if forced else draft.target_ids()[logits_RD.argmax(-1)]
        tokens_RP = draft.project(draft.embed(fed_R))
        hidden_RH = draft.next_step(tokens_RP, draft.carry(hidden_RH), rows_R + step, rows_R, opened.state)
        logits_RD = draft.logits(hidden_RH)
        yield logits_RD


def count_rounds(tokens: Ids, prompt_length: int, proposed_KN: Ids) -> RoundCounts:
    """Play the rounds of one reply.

    `tokens` is `[n]`, prompt and reply; `proposed_KN[k, t]` is the k-th proposal after reading the token at t+1.
    The first reply token comes from prefill, so the rounds start behind it.
    """
    num_proposals, n = len(proposed_KN), len(tokens)
    per_position = np.zeros(num_proposals, dtype=np.int64)
    by_round: list[int] = []
    verified = prompt_length
    # The last token ends the reply: there is nothing behind it to draft.
    while verified < n - 1:
        accepted = 0
        while (
            accepted < num_proposals
            and verified + 1 + accepted < n
            and proposed_KN[accepted, verified - 1] == tokens[verified + 1 + accepted]
        ):
            accepted += 1
        # One token more than accepted: the target's own, at the first position where the draft was wrong.
        per_position[:accepted] += 1
        by_round.append(accepted)
        verified += accepted + 1
    return RoundCounts(len(by_round), per_position, tuple(by_round))


def count_forced(tokens: Ids, prompt_length: int, proposed_KN: Ids) -> ForcedCounts:
    """Count joint hits at every position of the reply, as training does: `proposed_KN` saw the true tokens.

    A position counts at step k when the newest verified token and all k+1 drafted ones belong to the reply.
    """
    n, right = len(tokens), np.ones(len(tokens), dtype=np.bool_)
    gated, joint = [], []
    for step, proposed_N in enumerate(proposed_KN):
        # Nested: a row that is checked at step k was checked at all earlier ones.
        rows = np.arange(prompt_length - 1, n - 2 - step)
        right[rows] &= proposed_N[rows] == tokens[rows + 2 + step]
        gated.append(len(rows))
        joint.append(int(right[rows].sum()))
    return ForcedCounts(np.array(gated), np.array(joint))


def summarise(counts: Sequence[RoundCounts], seed: int = 0) -> ChainAcceptance:
    """Acceptance over prompts, with an interval that resamples prompts. Raises ValueError without a single round."""
    rounds_P = np.array([count.rounds for count in counts], dtype=np.int64)
    accepted_P = np.array([count.accepted for count in counts], dtype=np.int64)
    # A length of 1.00 would read as a bad draft, when nothing was measured.
    if not rounds_P.sum():
        raise ValueError("no reply is longer than one token: there is nothing to draft")
    hits_PK = np.stack([count.per_position for count in counts])
    return ChainAcceptance(
        rounds=int(rounds_P.sum()),
        accepted=int(accepted_P.sum()),
        per_position=tuple((hits_PK.sum(axis=0) / rounds_P.sum()).tolist()),
        interval=bootstrap(rounds_P, accepted_P, seed, base=1),
        per_position_intervals=tuple(bootstrap(rounds_P, hits_P, seed) for hits_P in hits_PK.T),
    )


def bootstrap(rounds_P: Ids, hits_P: Ids, seed: int, base: int = 0) -> tuple[float, float]:
    """95 % interval of base + hits / rounds over prompts, by resampling prompts with replacement."""
    generator = np.random.default_rng(seed)
    # Prompts and not rounds are drawn: rounds of one reply are alike.
    picked = generator.integers(0, len(rounds_P), size=(RESAMPLES, len(rounds_P)))
    # A resample of prompts without any round says nothing about acceptance.
    rounds = np.maximum(rounds_P[picked].sum(axis=1), 1)
    low, high = np.percentile(base + hits_P[picked].sum(axis=1) / rounds, INTERVAL)
    return float(low), float(high)


def share_forced(counts: Sequence[ForcedCounts]) -> tuple[float, ...]:
    """Per step, the share of positions at which all proposals so far are right; the length is 1 plus their sum."""
    gated = np.sum([count.gated for count in counts], axis=0)
    joint = np.sum([count.joint for count in counts], axis=0)
    return tuple((joint / np.maximum(gated, 1)).tolist())
