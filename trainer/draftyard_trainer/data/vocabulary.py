"""The draft vocabulary: the target tokens that the draft can propose."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from draftyard_trainer.data.document import Ids, Mask


@dataclass(frozen=True, eq=False)
class DraftVocabulary:
    """`ids[D]`: ascending target ids; `counts[D]`: how often each is supervised; `target_size`: V of the target."""

    ids: Ids
    counts: Ids
    target_size: int

    @property
    def size(self) -> int:
        """D of the formulas."""
        return len(self.ids)

    def d2t(self) -> Ids:
        """`[D]` int64 **offsets**: `target_id = draft_id + d2t[draft_id]`, as both engines read it."""
        # as int64 offsets, not target ids: read as ids they give fluent text and an acceptance of nothing
        return self.ids - np.arange(self.size)

    def t2d(self) -> Mask:
        """`[V]` bool: whether a target id is in the draft vocabulary."""
        member = np.zeros(self.target_size, dtype=np.bool_)
        member[self.ids] = True
        return member

    @property
    def num_filled(self) -> int:
        """Members that the training documents never use: they have fewer distinct supervised tokens than D."""
        return self.size - self.num_used

    @property
    def num_used(self) -> int:
        """Members that are supervised somewhere in the training documents."""
        return int(np.count_nonzero(self.counts))


def build_vocabulary(counts: Ids, size: int, always: Ids) -> DraftVocabulary:
    """Choose the draft vocabulary: `always`, then the most frequent ids, ties and the rest by the lowest id.

    `counts` is `[V]`: how often each target id is supervised in training documents. With fewer than `size` distinct ids
    the lowest unused ones fill up. Neither the order of the data nor a dict's order can change the result.
    Raises ValueError when `always` does not fit.
    """
    target_size = len(counts)
    # a small target has fewer tokens than the default size of 32,000
    size = min(size, target_size)
    # an id may be both a stop token and a kept one
    first = np.unique(np.asarray(always, dtype=np.int64))
    if len(first) > size:
        raise ValueError(f"given {len(first)} tokens to keep; accepted: at most the draft vocabulary's size, {size}")
    is_optional = np.ones(target_size, dtype=np.bool_)
    is_optional[first] = False
    # the last key of lexsort is the first that counts; it is stable, so equal counts stay in the order of their ids
    ranked = np.lexsort((-counts, is_optional))
    ids = np.sort(ranked[:size]).astype(np.int64)
    return DraftVocabulary(ids, counts[ids], target_size)


def coverage(vocabulary: DraftVocabulary, counts: Ids) -> float:
    """Share of the supervised tokens `counts[V]` inside the draft vocabulary: it caps acceptance. 0 without tokens."""
    # no training document at all: the stage refuses that later, with a better message than a division by zero
    total = int(counts.sum())
    return float(counts[vocabulary.ids].sum() / total) if total else 0.0
