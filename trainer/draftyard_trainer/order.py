"""Which documents go into which row, and in which order: a pure function of ids, lengths, seed and budget.

No random state: order comes from hashes, so it does not depend on shards, storage, library versions or the number of
processes, and it is the same Online and Offline. The position to resume at is a number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from draftyard_trainer.data.document import Ids

Hashes = npt.NDArray[np.uint64]

WINDOW = 1024
"""Documents among which a row looks for one that fits: more would sort the data by length."""


def splitmix64(values: Hashes) -> Hashes:
    """Steele, Lea and Flood's mixer: a bijection of 64-bit integers that looks random."""
    with np.errstate(over="ignore"):
        mixed = values + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))


def epoch_hashes(doc_ids: Ids, seed: int, epoch: int) -> Hashes:
    """What documents of an epoch are sorted by."""
    with np.errstate(over="ignore"):
        salt = splitmix64(np.array([np.uint64(seed) * np.uint64(2**32) + np.uint64(epoch)], dtype=np.uint64))
    return splitmix64(doc_ids.astype(np.uint64) ^ salt)


def epoch_order(doc_ids: Ids, seed: int, epoch: int) -> Ids:
    """Document ids in the order of an epoch; equal hashes by id."""
    ordered: Ids = doc_ids[np.lexsort((doc_ids, epoch_hashes(doc_ids, seed, epoch)))]
    return ordered


def pack_window(lengths: Ids, row_tokens: int) -> list[list[int]]:
    """First-fit decreasing: places in `lengths` for each row. Of equals the earlier place comes first."""
    rows: list[list[int]] = []
    room = np.zeros(0, dtype=np.int64)
    for place in np.argsort(-lengths, kind="stable"):
        fits = np.flatnonzero(room >= lengths[place])
        if len(fits):
            chosen = int(fits[0])
        else:
            chosen = len(rows)
            rows.append([])
            room = np.append(room, row_tokens)
        rows[chosen].append(int(place))
        room[chosen] -= lengths[place]
    return rows


@dataclass(frozen=True, eq=False)
class RowPlan:
    """All rows of a training: `lengths[i]` tokens of document `doc_ids[i]`, packed into rows of `row_tokens`."""

    doc_ids: Ids
    lengths: Ids
    row_tokens: int
    seed: int

    def __post_init__(self) -> None:
        longest = int(self.lengths.max(initial=0))
        assert longest <= self.row_tokens, f"a document of {longest} tokens in rows of {self.row_tokens}"

    def rows(self, epoch: int) -> list[tuple[int, ...]]:
        """Document ids of each row of an epoch: packed inside windows of its order, then sorted by hash."""
        by_id = np.argsort(self.doc_ids, kind="stable")
        ids = epoch_order(self.doc_ids, self.seed, epoch)
        lengths = self.lengths[by_id[np.searchsorted(self.doc_ids, ids, sorter=by_id)]]
        rows: list[tuple[int, ...]] = []
        for start in range(0, len(ids), WINDOW):
            window = slice(start, start + WINDOW)
            packed = pack_window(lengths[window], self.row_tokens)
            rows.extend(tuple(int(ids[window][place]) for place in row) for row in packed)
        smallest = np.array([min(row) for row in rows], dtype=np.int64)
        by_hash = np.lexsort((smallest, epoch_hashes(smallest, self.seed, epoch)))
        return [rows[place] for place in by_hash]

    def fill(self, epoch: int) -> float:
        """Share of the rows' budget that holds tokens."""
        return float(self.lengths.sum() / (len(self.rows(epoch)) * self.row_tokens))


@dataclass(frozen=True)
class Step:
    """One optimizer step: its place, and the rows of all processes together."""

    index: int
    epoch: int
    first_row: int
    rows: tuple[tuple[int, ...], ...]
    num_rows: int
    """Rows of the whole epoch."""

    @property
    def next_row(self) -> int:
        """Number of the first row behind it."""
        return self.first_row + len(self.rows)

    @property
    def ends_epoch(self) -> bool:
        """Whether no row is left."""
        return self.next_row == self.num_rows

    @property
    def epochs_done(self) -> float:
        """Epochs up to its end."""
        return self.epoch + self.next_row / self.num_rows

    def share(self, rank: int, world_size: int) -> tuple[tuple[int, ...], ...]:
        """The rows of one process: those whose number in the epoch is `rank` modulo the number of processes."""
        offset = (rank - self.first_row) % world_size
        return self.rows[offset::world_size]


def epoch_steps(plan: RowPlan, epoch: int, rows_per_step: int, first_index: int) -> list[Step]:
    """The steps of one epoch; the last one may have fewer rows, and none spans two epochs."""
    rows = plan.rows(epoch)
    starts = range(0, len(rows), rows_per_step)
    return [
        Step(
            index=first_index + number,
            epoch=epoch,
            first_row=start,
            rows=tuple(rows[start : start + rows_per_step]),
            num_rows=len(rows),
        )
        for number, start in enumerate(starts)
    ]


def num_steps(lengths: Ids, doc_ids: Ids, row_tokens: int, tokens_per_batch: int, seed: int, epochs: int) -> int:
    """Optimizer steps of a whole training, exactly."""
    plan = RowPlan(doc_ids, lengths, row_tokens, seed)
    per_step = tokens_per_batch // row_tokens
    return sum(-(-len(plan.rows(epoch)) // per_step) for epoch in range(epochs))


def plan_hash(plan: RowPlan, tokens_sha256: str, settings: Sequence[object]) -> str:
    """Identity of a training's rows and loss: a checkpoint of another one cannot be resumed."""
    digest = hashlib.sha256(tokens_sha256.encode())
    digest.update(plan.doc_ids.astype("<i8").tobytes())
    digest.update(repr((plan.row_tokens, plan.seed, *settings)).encode())
    return digest.hexdigest()
