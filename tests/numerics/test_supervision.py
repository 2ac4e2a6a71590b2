"""What is supervised, by which teacher, after which embedded tokens: written out by hand for a document with two turns.

Position:  0 1 2 3 4 5 6 7 8 9
Answer:        x x x     x x x
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from draftyard_trainer.data.document import Document
from draftyard_trainer.draft.testing import TINY, supervised_sample, tiny_draft, tiny_head
from draftyard_trainer.hidden_states.sample import Sample
from draftyard_trainer.loss import LossConfig, Teacher, ttt_loss
from draftyard_trainer.rows import PackedRow, build_row, gate_counts
from draftyard_trainer.ttt import unroll

STEPS = 3
TURNS = [(2, 3), (7, 3)]
SUPERVISED: dict[str, dict[int, list[int]]] = {
    # From the round right after prefill, whose newest token is the first of the turn, while the token that the draft
    # proposes is still in the turn.
    "runtime": {0: [1, 2, 6, 7], 1: [1, 6], 2: []},
    # From the first token of the turn to its last, wherever it has a teacher: past the stop token, not before the turn.
    "specforge": {0: [2, 3, 4, 7, 8], 1: [1, 2, 3, 6, 7], 2: [0, 1, 2, 5, 6]},
}


def make_sample(turns: list[tuple[int, int]], num_tokens: int = 10, first_token: int = 100, doc_id: int = 0) -> Sample:
    """Token j is `first_token + j`, and the state of position j is j: what ends up where can be read off."""
    spans = np.array(turns, dtype=np.int64).reshape(-1, 2)
    document = Document(doc_id, np.arange(first_token, first_token + num_tokens), spans)
    labels = torch.from_numpy(document.label_rows())
    positions = torch.arange(num_tokens, dtype=torch.float64)[:, None]
    return Sample(document, positions, positions[labels], labels.to(torch.int32), labels.float())


def pairs(row: PackedRow) -> dict[int, list[int]]:
    return {step: gate_N.nonzero().flatten().tolist() for step, gate_N in enumerate(row.gates_TN)}


@pytest.mark.parametrize("alignment", SUPERVISED)
def test_supervised_pairs_of_two_turns(alignment: Any):
    row = build_row([make_sample(TURNS)], STEPS, alignment)
    assert pairs(row) == SUPERVISED[alignment]
    counts = gate_counts(make_sample(TURNS).document, STEPS, alignment)
    assert counts.tolist() == [len(rows) for rows in SUPERVISED[alignment].values()]


@pytest.mark.parametrize("alignment", SUPERVISED)
def test_teacher_of_a_pair_stands_one_token_after_the_newest(alignment: Any):
    row = build_row([make_sample(TURNS)], STEPS, alignment)
    taught = {step: row.last[row.label_TN[step][row.gates_TN[step]]].flatten().tolist() for step in range(STEPS)}
    expected = {step: [t + 1 + step for t in rows] for step, rows in SUPERVISED[alignment].items()}
    assert taught == expected


def test_token_embedded_and_the_border_of_the_document():
    """Row t embeds token t+1; at the end of the document it is token 0, where nothing is supervised."""
    row = build_row([make_sample([(2, 3)], num_tokens=5, first_token=100)], STEPS)
    assert row.tokens_N.tolist() == [101, 102, 103, 104, 0]
    assert row.positions_N.tolist() == [0, 1, 2, 3, 4]


def test_borders_of_packed_documents_hold():
    """Two documents side by side: neither tokens nor teachers nor positions of one appear in the other."""
    row = build_row([make_sample([(1, 3)], 4, 100), make_sample([(1, 4)], 5, 200)], STEPS)
    assert row.tokens_N.tolist() == [101, 102, 103, 0, 201, 202, 203, 204, 0]
    assert row.positions_N.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4]
    assert row.documents.cu == (0, 4, 9)
    assert row.documents.cu_tensor.tolist() == [0, 4, 9]
    assert pairs(row) == {0: [0, 1, 4, 5, 6], 1: [0, 4, 5], 2: [4]}
    # label rows of the first document are 0..3, of the second 4..8
    assert row.label_TN[0].tolist() == [1, 2, -1, -1, 5, 6, 7, -1, -1]


@pytest.mark.parametrize("alignment", SUPERVISED)
def test_the_token_of_a_later_step_is_in_the_same_document(alignment: Any):
    """Step k embeds the token of row t + k: for every row that is needed there, x[t+1+k] of its own document."""
    row = build_row([make_sample([(1, 3), (5, 4)], 9, 100), make_sample([(0, 5)], 5, 200)], STEPS, alignment)
    needed_TN = row.needed_TN()
    assert needed_TN[STEPS - 1].any()
    for step in range(STEPS):
        for place in needed_TN[step].nonzero().squeeze(1).tolist():
            first, start = (100, 0) if place < 9 else (200, 9)
            assert row.tokens_N[place + step] == first + (place - start) + 1 + step


@pytest.mark.parametrize("alignment", SUPERVISED)
def test_every_pair_has_a_teacher_of_its_own_document(alignment: Any):
    """Answers up to the very last token: the pair that would need a teacher beyond the end is not supervised."""
    samples = [make_sample([(0, n)], n, 100 * n, doc_id=n) for n in (1, 2, 3, 6)]
    row = build_row(samples, STEPS, alignment)
    document_N = torch.repeat_interleave(torch.arange(4), torch.tensor([1, 2, 3, 6]))
    for step in range(STEPS):
        gated = row.gates_TN[step]
        labels = row.label_TN[step][gated]
        # every position is a label row here, so the places of labels are those of rows
        assert document_N[labels].tolist() == document_N[gated].tolist()
        assert row.last[labels].flatten().tolist() == (row.positions_N[gated] + 1 + step).tolist()


def test_gates_are_the_products_of_masks():
    """The definition, spelled out for random masks: the newest token and every drafted one are of one turn."""
    generator = np.random.default_rng(3)
    for _ in range(20):
        mask = generator.random(12) < 0.7
        spans = [(int(start), 1) for start in np.flatnonzero(mask)]
        row = build_row([make_sample(spans, num_tokens=12)], STEPS)
        for step in range(STEPS):
            expected = [t + 2 + step < 12 and bool(mask[t + 1 : t + 3 + step].all()) for t in range(12)]
            assert row.gates_TN[step].tolist() == expected


@pytest.mark.parametrize("alignment", SUPERVISED)
def test_only_supervised_teachers_are_ever_read(alignment: Any):
    """Poison: every other final state is NaN, and so is every number of its label; the loss must not notice."""
    head, draft = tiny_head(), tiny_draft().double()
    sample = supervised_sample(head, TINY.num_aux, 10, TURNS)
    labels = sample.document.label_rows()
    used = {t + 1 + step for step, rows in SUPERVISED[alignment].items() for t in rows}
    unused = torch.tensor([int(position) not in used for position in labels])
    assert bool(unused.any())
    poisoned = Sample(
        sample.document,
        sample.aux,
        sample.last.masked_fill(unused[:, None], torch.nan),
        sample.tok.masked_fill(unused, -1),
        sample.lse.masked_fill(unused, torch.nan),
    )
    teacher = Teacher.of(head, draft.target_ids())
    config = LossConfig(torch.ones(STEPS, dtype=torch.float64))
    losses = []
    for each in (sample, poisoned):
        row = build_row([each], STEPS, alignment)
        losses.append(ttt_loss(draft, unroll(draft, row), row, teacher, config).total)
    assert losses[0] == losses[1] > 0


def test_states_behind_the_last_supervised_row_change_nothing():
    """A later turn of the user, and everything after it, cannot change what the draft learns from this one."""
    head, draft = tiny_head(), tiny_draft().double()
    sample = supervised_sample(head, TINY.num_aux, 10, [(2, 3)])
    aux = sample.aux.clone()
    aux[3:] += 1000.0
    changed = Sample(sample.document, aux, sample.last, sample.tok, sample.lse)
    guesses = [unroll(draft, build_row([each], STEPS)) for each in (sample, changed)]
    for ours, expected in zip(guesses[1], guesses[0], strict=True):
        assert ours.rows.tolist() == expected.rows.tolist()
        torch.testing.assert_close(ours.hidden, expected.hidden, rtol=0, atol=0)
