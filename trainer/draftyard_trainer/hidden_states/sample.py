"""One document with the target's states: what both sources yield, and all that training reads of the target."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from draftyard_trainer.data.document import Document

# n tokens, r label rows, A captured layers, H hidden size of the target


@dataclass(frozen=True, eq=False)
class Sample:
    """A document and its states, rounded to `target.dtype` at capture; `last` has the rows of `Document.label_rows`."""

    document: Document
    aux: Tensor
    """`[n, A*H]`: residual stream after blocks k-1, for each captured k, side by side, low to high; no norm."""
    last: Tensor
    """`[r, H]`: after the final norm, the exact input of `lm_head`, on label rows only."""
    tok: Tensor
    """`[r]` int32: argmax of the target's logits over its whole vocabulary; ties go to the lowest id."""
    lse: Tensor
    """`[r]` float32: logsumexp of the target's logits over its whole vocabulary."""
