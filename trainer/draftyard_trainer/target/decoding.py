"""Decoding of a batch, written out: a model's own generation defaults (penalties, top-p) must not count."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from draftyard_trainer.data.document import Ids

# B prompts that still run, T tokens of the longest prompt

KEEP_SHARE = 0.75
"""Finished rows leave the batch when so few are left: each time costs a copy of the keys and values."""


NextTokens = Callable[[Sequence[int], int, dict[str, Any]], Tensor]
"""Takes which prompts still run, how many tokens each has got, and the inputs of a transformers backbone. Returns the
next token of each, `[B]`."""


def decode(
    next_tokens: NextTokens,
    config: Any,
    prompts: Sequence[Ids],
    limits: Sequence[int],
    stop_ids: Sequence[int],
    device: torch.device,
) -> list[Ids]:
    """Replies up to and with the first of `stop_ids`, or as long as their limits, which are 1 or more.

    A negative token ends a reply too. Prompts are padded on the left, where a mask hides the padding. Raises ValueError
    for an empty prompt.
    """
    if any(len(prompt) == 0 for prompt in prompts):
        raise ValueError("given an empty prompt; accepted: at least one token to answer to")
    replies: list[list[int]] = [[] for _ in prompts]
    stops = frozenset(stop_ids)
    places = list(range(len(prompts)))
    ids_BT, mask_BT = pad_left(prompts, device)
    cache = DynamicCache(config=config)
    for step in range(max(limits, default=0)):
        positions_BT = (mask_BT.cumsum(-1) - 1).clamp(min=0)[:, -ids_BT.shape[1] :]
        inputs = {
            "input_ids": ids_BT, "attention_mask": mask_BT, "position_ids": positions_BT, "past_key_values": cache,
        }  # fmt: skip
        chosen_B = next_tokens(places, step, inputs).to(torch.int64)
        for place, token in zip(places, chosen_B.tolist(), strict=True):
            if not is_over(replies[place], limits[place], stops):
                replies[place].append(token)
        running = [row for row, place in enumerate(places) if not is_over(replies[place], limits[place], stops)]
        if not running:
            break
        if len(running) <= KEEP_SHARE * len(places):
            rows = torch.tensor(running, device=device)
            cache.batch_select_indices(rows)
            chosen_B, mask_BT = chosen_B[rows], mask_BT[rows]
            places = [places[row] for row in running]
        # what is over is computed along for a while, and nobody looks at it
        ids_BT = chosen_B.clamp(min=0)[:, None]
        mask_BT = torch.cat([mask_BT, torch.ones_like(mask_BT[:, :1])], dim=-1)
    return [np.array(reply, dtype=np.int64) for reply in replies]


def is_over(reply: Sequence[int], limit: int, stops: frozenset[int]) -> bool:
    """Whether nothing more is said."""
    return len(reply) >= limit or (bool(reply) and (reply[-1] in stops or reply[-1] < 0))


def pad_left(prompts: Sequence[Ids], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask, `[B, T]` each: prompts end together."""
    longest = max((len(prompt) for prompt in prompts), default=0)
    ids_BT = torch.zeros(len(prompts), longest, dtype=torch.int64)
    mask_BT = torch.zeros_like(ids_BT)
    for row, prompt in enumerate(prompts):
        ids_BT[row, longest - len(prompt) :] = torch.from_numpy(prompt)
        mask_BT[row, longest - len(prompt) :] = 1
    return ids_BT.to(device), mask_BT.to(device)


def draw(logits_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """One token per row from softmax of its logits, `[B]`: the one at which the summed probability passes `uniform_B`.

    In fp64, so that rare tokens are not lost in a sum of many.
    """
    summed_BV = logits_BV.double().softmax(-1).cumsum(-1)
    # The last sum is 1 but for rounding.
    wanted_B1 = uniform_B.to(summed_BV)[:, None] * summed_BV[:, -1:]
    return torch.searchsorted(summed_BV, wanted_B1, right=True)[:, 0].clamp(max=logits_BV.shape[-1] - 1)


class CachedText:
    """A text that the target has read, and goes on to read: its keys and values are kept, batch 1."""

    def __init__(self, backbone: Callable[..., Any], config: Any, device: torch.device) -> None:
        self._backbone = backbone
        self._cache = DynamicCache(config=config)
        self._device = device

    @torch.no_grad()
    def read(self, tokens: Ids) -> None:
        """Read on."""
        ids_1T = torch.from_numpy(tokens)[None].to(self._device)
        self._backbone(input_ids=ids_1T, past_key_values=self._cache, use_cache=True)
