"""Which token is said next: the most likely one, or one that is drawn.

A draw is decided by the seed, the conversation, the turn and the place in the answer. So the same answer comes out
whatever else is in the batch, in whichever shard it is, and however often the work was begun anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from draftyard_trainer.order import splitmix64

# B answers under way, V tokens of the vocabulary

Keys = npt.NDArray[np.uint64]
NOT_A_TOKEN = -1
"""In place of a token where logits are not finite."""
FRACTION_BITS = 53
"""Of a float64."""


@dataclass(frozen=True, eq=False)
class Choice:
    """How the next tokens of a batch are chosen: greedily at temperature 0, else by the draws of `keys`, `[B]`."""

    temperature: float = 0.0
    keys: Keys | None = None

    def choose(self, logits_BV: Tensor, places: Sequence[int], step: int) -> Tensor:
        """The next token of each row, `[B]` int64; NOT_A_TOKEN where a logit is not finite. `places` are into `keys`.

        Of equally likely tokens the lowest id is taken.
        """
        is_finite_B = torch.isfinite(logits_BV).all(dim=-1)
        if self.temperature == 0.0 or self.keys is None:
            chosen_B = logits_BV.argmax(dim=-1)
        else:
            draws = uniforms(self.keys[list(places)], step)
            chosen_B = drawn(logits_BV, self.temperature, torch.from_numpy(draws).to(logits_BV.device))
        return torch.where(is_finite_B, chosen_B, NOT_A_TOKEN)


def draw_keys(seed: int, rows: Sequence[int], turns: Sequence[int]) -> Keys:
    """What decides the draws of some answers: turn `turns[i]` of the conversation in row `rows[i]` of the source."""
    with np.errstate(over="ignore"):
        salts = splitmix64(np.uint64(seed) * np.uint64(2**32) + np.array(turns, dtype=np.uint64))
    keys: Keys = splitmix64(np.array(rows, dtype=np.uint64) ^ salts)
    return keys


def uniforms(keys: Keys, step: int) -> npt.NDArray[np.float64]:
    """One number in [0, 1) for each key, another one at every step."""
    mixed = splitmix64(keys ^ splitmix64(np.array([step], dtype=np.uint64)))
    return (mixed >> np.uint64(64 - FRACTION_BITS)).astype(np.float64) * 2.0**-FRACTION_BITS


def drawn(logits_BV: Tensor, temperature: float, draws_B: Tensor) -> Tensor:
    """The token in whose part of [0, 1) each draw falls: parts are as wide as tokens are likely."""
    # float64: with 150,000 tokens the sums of float32 are off by more than rare tokens are likely
    shares_BV = torch.softmax(logits_BV.double() / temperature, dim=-1)
    ends_BV = shares_BV.cumsum(dim=-1)
    targets_B1 = (draws_B.to(ends_BV) * ends_BV[:, -1])[:, None]
    return torch.searchsorted(ends_BV, targets_B1, right=True)[:, 0].clamp(max=logits_BV.shape[-1] - 1)
