"""One rendered, tokenised, truncated conversation, as every later stage sees it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Document:
    """Tokens and the spans that the target would have generated.

    `tokens` is `[n]`; `spans` is `[s, 2]` of (start, length), ascending and apart: what the assistant said, with its
    stop token.
    """

    doc_id: int
    tokens: Ids
    spans: Ids

    @property
    def num_tokens(self) -> int:
        """Length of the document: n of the formulas."""
        return len(self.tokens)

    def mask(self) -> Mask:
        """`m[j]`, `[n]`: true where token j is one that the target would have generated."""
        # a loop over spans, not tokens: a document has a handful of turns
        mask = np.zeros(self.num_tokens, dtype=np.bool_)
        for start, length in self.spans:
            mask[start : start + length] = True
        return mask

    def beginning(self, count: int) -> Document:
        """Its first tokens, `count` at most, all of them supervised: every row is a label row then."""
        tokens = self.tokens[:count]
        return Document(self.doc_id, tokens, np.array([[0, len(tokens)]], dtype=np.int64))

    def label_rows(self) -> Ids:
        """Positions whose final hidden state any alignment may need: the mask, dilated by one on both sides."""
        mask = self.mask()
        # two rows per turn more than the strict set, and then no alignment needs the states made again
        dilated = mask.copy()
        dilated[1:] |= mask[:-1]
        dilated[:-1] |= mask[1:]
        return np.flatnonzero(dilated).astype(np.int64)
