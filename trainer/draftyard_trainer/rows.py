"""From samples to one packed row: shifted inside each document first, then put side by side without padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from draftyard_api.schema import Alignment
from draftyard_trainer.data.document import Document, Mask
from draftyard_trainer.draft.attention import Documents
from draftyard_trainer.hidden_states.sample import Sample

# N rows, T steps, A captured layers, H width of the target, r label rows


@dataclass(frozen=True, eq=False)
class PackedRow:
    """One micro-batch. Row t of a document embeds token t+1+k at step k and predicts token t+2+k."""

    tokens_N: Tensor
    """Token embedded at row t and step 0, `x[t+1]`, or 0 at the end of a document. Step k embeds that of row t + k,
    which is in the same document wherever anything is supervised."""
    positions_N: Tensor
    """t, from 0 in every document; RoPE uses t + k."""
    documents: Documents
    aux: Tensor
    """`[N, A*H]`."""
    gates_TN: Tensor
    """Whether row t is supervised at step k."""
    label_TN: Tensor
    """Where the teacher of (t, k), position t+1+k, is among the label rows; -1 where nobody asks."""
    last: Tensor
    """`[r, H]`."""
    tok: Tensor
    """`[r]`."""
    lse: Tensor
    """`[r]`."""
    next_token: Tensor
    """`[r]`: the token that follows each label row in the data, -1 at the end of its document."""

    @property
    def num_rows(self) -> int:
        """N."""
        return len(self.positions_N)

    def needed_TN(self) -> Tensor:
        """Whether row t is supervised at step k or at a later one: only these are ever read again."""
        return self.gates_TN.flip(0).cummax(0).values.flip(0)

    def to(self, device: torch.device) -> PackedRow:
        """The same row elsewhere."""
        moved = {f.name: getattr(self, f.name).to(device) for f in fields(self) if f.name != "documents"}
        documents = Documents(self.documents.cu, self.documents.cu_tensor.to(device))
        return replace(self, documents=documents, **moved)


def supervised(mask: Mask, ttt_steps: int, alignment: Alignment) -> Mask:
    """`gate(t, k)` of one document, `[T, n]`.

    runtime: the newest verified token t+1 and every drafted one up to t+2+k are in one turn, as when serving.
    specforge: `m[t+k]` where the teacher t+1+k is inside the document, for parity tests.
    """
    n = len(mask)
    gates = np.zeros((ttt_steps, n), dtype=np.bool_)
    if alignment == "specforge":
        for step in range(min(ttt_steps, n - 1)):
            gates[step, : n - 1 - step] = mask[step:-1]
        return gates
    alive = np.zeros(n, dtype=np.bool_)
    alive[: n - 1] = mask[1:]
    for step in range(min(ttt_steps, n - 2)):
        alive[: n - 2 - step] &= mask[2 + step :]
        alive[n - 2 - step :] = False
        gates[step] = alive
    return gates


def gate_counts(document: Document, ttt_steps: int, alignment: Alignment) -> Tensor:
    """`[T]` int64: supervised pairs of a document at each step, from its mask alone: known before any forward."""
    return torch.from_numpy(supervised(document.mask(), ttt_steps, alignment).sum(axis=1))


def build_row(samples: Sequence[Sample], ttt_steps: int, alignment: Alignment = "runtime") -> PackedRow:
    """Pack samples, in the given order. Raises ValueError for none."""
    if not samples:
        raise ValueError("a packed row needs at least one sample")
    parts = [shift(sample.document, ttt_steps, alignment) for sample in samples]
    lengths = [sample.document.num_tokens for sample in samples]
    cu = (0, *np.cumsum(lengths).tolist())
    offsets = np.cumsum([0, *(len(sample.tok) for sample in samples[:-1])])
    labels = [np.where(part.label >= 0, part.label + offset, -1) for part, offset in zip(parts, offsets, strict=True)]
    return PackedRow(
        tokens_N=torch.from_numpy(np.concatenate([part.tokens for part in parts])),
        positions_N=torch.cat([torch.arange(length) for length in lengths]),
        documents=Documents(cu, torch.tensor(cu, dtype=torch.int32)),
        aux=torch.cat([sample.aux for sample in samples]),
        gates_TN=torch.from_numpy(np.concatenate([part.gates for part in parts], axis=1)),
        label_TN=torch.from_numpy(np.concatenate(labels, axis=1)),
        last=torch.cat([sample.last for sample in samples]),
        tok=torch.cat([sample.tok for sample in samples]),
        lse=torch.cat([sample.lse for sample in samples]),
        next_token=torch.from_numpy(np.concatenate([part.next_token for part in parts])),
    )


@dataclass(frozen=True, eq=False)
class Shifted:
    """One document, shifted: `tokens` is `[n]`, `gates` and `label` are `[T, n]`, `next_token` is `[r]`."""

    tokens: np.ndarray[tuple[int], np.dtype[np.int64]]
    gates: Mask
    label: np.ndarray[tuple[int, int], np.dtype[np.int64]]
    next_token: np.ndarray[tuple[int], np.dtype[np.int64]]


def shift(document: Document, ttt_steps: int, alignment: Alignment) -> Shifted:
    """Every shift of one document, by raw position: packing needs no other rule at document borders."""
    n = document.num_tokens
    at = np.arange(n)[None, :] + 1 + np.arange(ttt_steps)[:, None]
    rows = document.label_rows()
    place = np.full(n, -1, dtype=np.int64)
    place[rows] = np.arange(len(rows))
    gates = supervised(document.mask(), ttt_steps, alignment)
    clipped = np.minimum(at, n - 1)
    following = np.minimum(rows + 1, n - 1)
    return Shifted(
        tokens=np.append(document.tokens[1:], 0),
        gates=gates,
        label=np.where(gates, place[clipped], -1),
        next_token=np.where(rows + 1 < n, document.tokens[following], -1),
    )
