"""The unroll along the path that a server takes: it asks for step k+1 only where the guess of step k was accepted.

A row leaves the unroll where its chain would have been rejected. The normalisers of the loss stay those of the masks,
so a later step weighs as much as it is asked for. Which rows go on is a pure function of weights, data and hashes:
no random state is kept, and neither packing nor the number of processes changes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from draftyard_trainer.data.document import Document
from draftyard_trainer.draft.model import DraftModel
from draftyard_trainer.loss import CHUNK_BYTES, Teacher, wide_product
from draftyard_trainer.order import epoch_hashes, splitmix64
from draftyard_trainer.rows import PackedRow
from draftyard_trainer.ttt import Guess

# N rows of a packed micro-batch, R rows of a step, T steps, D draft vocabulary

MANTISSA_BITS = 53


@dataclass(frozen=True)
class PathRule:
    """When a server would go on."""

    accepts: Literal["argmax", "sampled"] = "argmax"
    """argmax: the guess is the target's choice and the token of the data. sampled: with the probability at which
    speculative sampling accepts the token of the data, min(1, q / p)."""
    floor: float = 0.1
    """Least probability: without it a draft that knows nothing yet would never learn its later steps."""


@dataclass(frozen=True, eq=False)
class OnPath:
    """The rows of one packed row that go on; `unroll` asks it after every step."""

    draft: DraftModel
    row: PackedRow
    teacher: Teacher
    draws_TN: Tensor
    """In [0, 1), from `draws`."""
    rule: PathRule

    @torch.no_grad()
    def __call__(self, step: int, guess: Guess) -> Tensor:
        """Of the rows of a step, `[R]`, whether the next step is asked."""
        label_R, draw_R = self.row.label_TN[step][guess.rows], self.draws_TN[step][guess.rows]
        # nothing is known of a row without a label: other alignments than `runtime` have such
        goes_R = (draw_R < self.rule.floor) | (label_R < 0)
        data_R = self.row.next_token[label_R]
        judged_R = ~goes_R
        if self.rule.accepts == "argmax":
            judged_R &= self.row.tok[label_R] == data_R
        asked = judged_R.nonzero().squeeze(1)
        accepted = self._acceptance(guess.hidden[asked], label_R[asked], data_R[asked])
        goes_R[asked] = draw_R[asked] < accepted
        return goes_R

    def _acceptance(self, hidden: Tensor, label: Tensor, token: Tensor) -> Tensor:
        """Probability that a server accepts the guess at each of some rows, where the data goes on with `token`."""
        size = max(1, CHUNK_BYTES[hidden.device.type] // (4 * len(self.teacher.ids)))
        judge = self._is_argmax if self.rule.accepts == "argmax" else self._ratio
        parts = zip(hidden.split(size), label.split(size), token.split(size), strict=True)
        return torch.cat([judge(*part) for part in parts])

    def _is_argmax(self, hidden: Tensor, _label: Tensor, token: Tensor) -> Tensor:
        """1 where no logit is above that of the token."""
        logits_RD, place, in_vocab = self._logits(hidden, token)
        is_top = logits_RD.gather(1, place[:, None])[:, 0] == logits_RD.amax(-1)
        return (is_top & in_vocab).to(torch.float32)

    def _ratio(self, hidden: Tensor, label: Tensor, token: Tensor) -> Tensor:
        """min(1, q / p) of the token: draft over target, each over all that it may say."""
        logits_RD, place, in_vocab = self._logits(hidden, token)
        log_q = logits_RD.gather(1, place[:, None])[:, 0] - torch.logsumexp(logits_RD, -1)
        log_p = self.teacher.logit_of(self.row.last[label], place) - self.row.lse[label].to(log_q.device)
        return (log_q - log_p).exp().clamp(max=1.0).float() * in_vocab

    def _logits(self, hidden: Tensor, token: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of the draft, and where in the draft vocabulary the token is, if it is."""
        place, in_vocab = self.teacher.find(token)
        return wide_product(self.draft.norm(hidden), self.draft.lm_head.weight), place, in_vocab


def draws(documents: Sequence[Document], seed: int, epoch: int, steps: int) -> Tensor:
    """Numbers in [0, 1) for every step and row of documents side by side, `[T, N]` fp64.

    Hashes of seed, epoch, document, position and step: a row draws the same wherever it is packed.
    """
    salts = epoch_hashes(np.array([document.doc_id for document in documents], dtype=np.int64), seed, epoch)
    parts = []
    for document, salt in zip(documents, salts, strict=True):
        places = np.arange(document.num_tokens * steps, dtype=np.uint64).reshape(-1, steps).T
        hashes = splitmix64(splitmix64(places) ^ salt)
        parts.append((hashes >> np.uint64(64 - MANTISSA_BITS)).astype(np.float64) * 2.0**-MANTISSA_BITS)
    return torch.from_numpy(np.concatenate(parts, axis=1))
