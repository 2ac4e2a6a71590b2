"""A packed row is its documents side by side: shapes, devices, order, and what needs to be computed."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from draftyard_trainer.data.document import Document
from draftyard_trainer.draft.testing import TINY, supervised_sample, tiny_head
from draftyard_trainer.hidden_states.sample import Sample
from draftyard_trainer.rows import PackedRow, build_row, gate_counts, shift, supervised

STEPS = 3
HEAD = tiny_head()


def make_sample(num_tokens: int, spans: list[tuple[int, int]], seed: int = 0) -> Sample:
    return supervised_sample(HEAD, TINY.num_aux, num_tokens, spans, seed)


def make_row(*shapes: tuple[int, list[tuple[int, int]]], steps: int = STEPS, alignment: Any = "runtime") -> PackedRow:
    samples = [make_sample(n, spans, seed) for seed, (n, spans) in enumerate(shapes)]
    return build_row(samples, steps, alignment)


def test_shapes():
    row = make_row((9, [(2, 4)]), (5, [(0, 5)]))
    labels = 6 + 5
    shapes = {f.name: tuple(getattr(row, f.name).shape) for f in fields(row) if f.name != "documents"}
    assert shapes == {
        "tokens_N": (14,),
        "positions_N": (14,),
        "aux": (14, 3 * 32),
        "gates_TN": (3, 14),
        "label_TN": (3, 14),
        "last": (labels, 32),
        "tok": (labels,),
        "lse": (labels,),
        "next_token": (labels,),
    }
    assert row.num_rows == 14
    assert row.documents.cu == (0, 9, 14)
    assert row.documents.longest == 9
    assert row.documents.cu_tensor.dtype == torch.int32


def test_states_and_labels_keep_the_order_of_the_samples():
    samples = [make_sample(9, [(2, 4)], 1), make_sample(5, [(0, 5)], 2)]
    row = build_row(samples, STEPS)
    for name in ("aux", "last", "tok", "lse"):
        expected = torch.cat([getattr(sample, name) for sample in samples])
        assert torch.equal(getattr(row, name), expected)


def test_next_token_of_each_label_row():
    sample = make_sample(6, [(2, 4)])
    assert sample.document.label_rows().tolist() == [1, 2, 3, 4, 5]
    row = build_row([sample, sample], STEPS)
    following = [*sample.document.tokens[2:].tolist(), -1]
    assert row.next_token.tolist() == following * 2


def test_needed_rows_are_those_supervised_now_or_later():
    """The parity gates are not nested: row 0 is supervised at steps 1 and 2 only, and must run at step 0 too."""
    row = make_row((6, [(1, 2)]), steps=3, alignment="specforge")
    assert row.gates_TN.int().tolist() == [[0, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]]
    assert row.needed_TN().int().tolist() == [[1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0]]


def test_gates_of_the_default_are_nested():
    row = make_row((20, [(1, 6), (9, 11)]), (4, [(0, 4)]))
    assert torch.equal(row.needed_TN(), row.gates_TN)


def test_moving_moves_every_tensor():
    row = make_row((6, [(1, 2)]), (3, [])).to(torch.device("meta"))
    tensors = [getattr(row, f.name) for f in fields(row) if f.name != "documents"]
    assert {tensor.device.type for tensor in [*tensors, row.documents.cu_tensor]} == {"meta"}
    assert row.documents.cu == (0, 6, 9)


def test_no_samples_are_refused():
    with pytest.raises(ValueError, match="at least one sample"):
        build_row([], STEPS)


@pytest.mark.parametrize(
    ("mask", "alignment", "counts"),
    [
        ("", "runtime", [0, 0, 0]),
        ("", "specforge", [0, 0, 0]),
        ("x", "runtime", [0, 0, 0]),
        ("x", "specforge", [0, 0, 0]),
        ("xx", "runtime", [0, 0, 0]),
        ("xx", "specforge", [1, 0, 0]),
        (".xx", "runtime", [1, 0, 0]),
        (".xx", "specforge", [1, 1, 0]),
        ("..xxxx..", "runtime", [3, 2, 1]),
        ("..xxxx..", "specforge", [4, 4, 4]),
        ("x.x.x.x.", "runtime", [0, 0, 0]),
        ("........", "runtime", [0, 0, 0]),
        ("xxxxxxxx", "runtime", [6, 5, 4]),
        ("xxxxxxxx", "specforge", [7, 6, 5]),
    ],
)
def test_counts_of_small_documents(mask: str, alignment: Any, counts: list[int]):
    spans = np.array([[at, 1] for at, mark in enumerate(mask) if mark == "x"], dtype=np.int64).reshape(-1, 2)
    document = Document(0, np.arange(len(mask)), spans)
    assert gate_counts(document, STEPS, alignment).tolist() == counts


@settings(max_examples=100, deadline=None)
@given(st.lists(st.booleans(), max_size=20), st.integers(1, 9))
def test_supervised_pairs_are_run_lengths(mask: list[bool], steps: int):
    """gate(t, k) is k < r(t+1) - 1, with r(j) the length of the run of answer tokens that starts at j."""
    gates = supervised(np.array(mask, dtype=bool), steps, "runtime")
    assert gates.shape == (steps, len(mask))
    for t in range(len(mask)):
        run = 0
        while t + 1 + run < len(mask) and mask[t + 1 + run]:
            run += 1
        assert gates[:, t].tolist() == [step < run - 1 for step in range(steps)]


def test_more_steps_than_tokens():
    shifted = shift(make_sample(3, [(0, 3)]).document, 9, "runtime")
    assert shifted.gates.sum(axis=1).tolist() == [1, *[0] * 8]
    assert (shifted.tokens[3:] == 0).all()


def test_labels_ascend_with_the_rows_of_a_step():
    """The loss slices them by chunk; that needs this order, over all documents of the row."""
    for alignment in ("runtime", "specforge"):
        row = make_row((12, [(1, 4), (7, 3)]), (8, [(2, 6)]), (6, [(0, 6)]), alignment=alignment)
        for step in range(STEPS):
            labels = row.label_TN[step][row.gates_TN[step]].tolist()
            assert labels == sorted(set(labels))
            assert labels


def test_samples_are_left_as_they_were():
    sample = make_sample(9, [(2, 4)])
    before = {name: getattr(sample, name).clone() for name in ("aux", "last", "tok", "lse")}
    tokens = sample.document.tokens.copy()
    row = build_row([sample, replace(sample)], STEPS)
    row.aux.zero_()
    row.tokens_N.zero_()
    for name, tensor in before.items():
        assert torch.equal(getattr(sample, name), tensor)
    assert (sample.document.tokens == tokens).all()
