"""Training-time test: the draft is unrolled as a server runs it, every step fed by the one before. It knows no loss."""

from __future__ import annotations

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


def unroll(draft: DraftModel, row: PackedRow) -> list[Guess]:
    """Run all steps of one packed row. A row runs at step k only while it is supervised there or later.

    That is exact: prompt rows are read as step-0 keys alone, and a row that is supervised no more is never read again.
    """
    needed_TN = row.needed_TN()
    state = draft.start(row.documents)
    rows = needed_TN[0].nonzero().squeeze(1)
    tokens_NP = draft.project(draft.embed(row.tokens_N))
    hidden = draft.first_step(tokens_NP, draft.fuse(row.aux), row.positions_N, rows, state)
    guesses = [Guess(rows, hidden)]
    for step in range(1, len(needed_TN)):
        kept = needed_TN[step][rows].nonzero().squeeze(1)
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
    chosen = gate_N[guess.rows]
    if bool(chosen.all()):
        return guess
    return Guess(guess.rows[chosen], guess.hidden[chosen])
