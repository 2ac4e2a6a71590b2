"""Training-time test: the draft is unrolled as a server runs it, every step fed by the one before. It knows no loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from draftyard_trainer.draft.model import DraftModel, select
from draftyard_trainer.rows import PackedRow

# R_k rows of step k, H width of the draft


@dataclass(frozen=True, eq=False)
class Guess:
    """Step k of the unroll: which rows ran, ascending, and the draft's hidden states, `[R_k, H]`, not normed."""

    rows: Tensor
    hidden: Tensor

    def of(self, kept: Tensor) -> Guess:
        """The rows at the places `kept`, ascending."""
        return self if len(kept) == len(self.rows) else Guess(self.rows[kept], self.hidden[kept])


GoesOn = Callable[[int, Guess], Tensor]
"""Of the rows of a step, `[R_k]`, those that the next step runs: what it leaves out is never asked again."""


def unroll(draft: DraftModel, row: PackedRow, goes_on: GoesOn | None = None) -> list[Guess]:
    """Run all steps of one packed row. A row runs at step k only while it is supervised there or later.

    That is exact: prompt rows are read as step-0 keys alone, and a row that is supervised no more is never read again.
    `goes_on` drops more of them.
    """
    needed_TN = row.needed_TN()
    state = draft.start(row.documents)
    rows = needed_TN[0].nonzero().squeeze(1)
    tokens_NP = draft.project(draft.embed(row.tokens_N))
    hidden = draft.first_step(tokens_NP, draft.fuse(row.aux), row.positions_N, rows, state)
    guesses = [Guess(rows, hidden)]
    for step in range(1, len(needed_TN)):
        kept = needed_TN[step][rows].nonzero().squeeze(1)
        if goes_on is not None:
            kept = kept[goes_on(step - 1, Guess(rows, hidden).of(kept))]
        rows = rows[kept]
        state.narrow(kept)
        hidden = draft.next_step(
            tokens_NP.index_select(0, rows + step),
            select(draft.carry(hidden), kept),
            row.positions_N[rows] + step,
            rows,
            state,
        )
        guesses.append(Guess(rows, hidden))
    return guesses


def supervised_hidden(guess: Guess, gate_N: Tensor) -> Guess:
    """The part of a step that carries loss."""
    return guess.of(gate_N[guess.rows].nonzero().squeeze(1))
