"""Rows, their order and their shares: a pure function of ids, lengths, seed and budget."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from draftyard_trainer.data.document import Ids
from draftyard_trainer.order import (
    WINDOW,
    RowPlan,
    Step,
    epoch_order,
    epoch_steps,
    num_steps,
    pack_window,
    plan_hash,
    splitmix64,
)

GAMMA = 0x9E3779B97F4A7C15
WORLD_SIZES = (1, 2, 3, 8)


def array(*values: int) -> Ids:
    return np.array(values, dtype=np.int64)


def build_plan(num_documents: int = 50, row_tokens: int = 100, seed: int = 42) -> RowPlan:
    """Ids with gaps, lengths of 5 to 60."""
    lengths = np.random.default_rng(num_documents).integers(5, 61, num_documents)
    return RowPlan(np.arange(num_documents, dtype=np.int64) * 3 + 1, lengths, row_tokens, seed)


@st.composite
def plans(draw: st.DrawFn) -> RowPlan:
    lengths = draw(st.dictionaries(st.integers(0, 2**40), st.integers(1, 64), min_size=1, max_size=60))
    seed, row_tokens = draw(st.integers(0, 2**31)), draw(st.integers(64, 200))
    return RowPlan(array(*lengths), array(*lengths.values()), row_tokens, seed)


def test_hashes_are_those_of_the_published_generator():
    """The generator seeded with 0 mixes 0, gamma, 2*gamma; these are its first three outputs."""
    states = np.array([0, GAMMA, 2 * GAMMA % 2**64], dtype=np.uint64)
    assert [f"{value:016X}" for value in splitmix64(states)] == [
        "E220A8397B1DCDAF",
        "6E789E6AA1B965F4",
        "06C45D188009454F",
    ]


def scalar_mix(value: int) -> int:
    """The mixer again, on Python's integers."""
    mixed = (value + GAMMA) % 2**64
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB % 2**64
    return mixed ^ (mixed >> 31)


@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (42, 0), (42, 3), (2**31, 1)])
def test_the_order_is_that_of_the_formula(seed, epoch):
    ids = array(*range(0, 200, 7))
    wanted = sorted(ids.tolist(), key=lambda doc_id: (scalar_mix(doc_id ^ scalar_mix(seed * 2**32 + epoch)), doc_id))
    assert epoch_order(ids, seed, epoch).tolist() == wanted
    assert epoch_order(ids[::-1].copy(), seed, epoch).tolist() == wanted


@given(plan=plans(), epoch=st.integers(0, 5))
@settings(deadline=None, max_examples=60)
def test_an_epoch_has_each_document_once_and_keeps_the_budget(plan, epoch):
    rows = plan.rows(epoch)
    assert sorted(doc_id for row in rows for doc_id in row) == sorted(plan.doc_ids.tolist())
    lengths = dict(zip(plan.doc_ids.tolist(), plan.lengths.tolist(), strict=True))
    assert all(0 < sum(lengths[doc_id] for doc_id in row) <= plan.row_tokens for row in rows)


@given(plan=plans(), epoch=st.integers(0, 5), shuffle=st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=60)
def test_rows_do_not_depend_on_the_order_of_the_input(plan, epoch, shuffle):
    places = list(range(len(plan.doc_ids)))
    shuffle.shuffle(places)
    assert replace(plan, doc_ids=plan.doc_ids[places], lengths=plan.lengths[places]).rows(epoch) == plan.rows(epoch)


@given(plan=plans(), rows_per_step=st.integers(1, 9), world_size=st.sampled_from(WORLD_SIZES))
@settings(deadline=None, max_examples=60)
def test_shares_of_all_ranks_are_the_rows_of_a_step_in_order(plan, rows_per_step, world_size):
    rows = plan.rows(epoch=0)
    steps = epoch_steps(plan, epoch=0, rows_per_step=rows_per_step, first_index=0)
    assert [row for step in steps for row in step.rows] == rows
    for step in steps:
        shares = [step.share(rank, world_size) for rank in range(world_size)]
        number = {row: step.first_row + place for place, row in enumerate(step.rows)}
        assert sorted((row for share in shares for row in share), key=number.__getitem__) == list(step.rows)
        for rank, share in enumerate(shares):
            numbers = [number[row] for row in share]
            assert numbers == sorted(numbers)
            assert all(
                rows[each] == row and each % world_size == rank for each, row in zip(numbers, share, strict=True)
            )


def test_a_step_that_starts_in_the_middle_of_the_ranks_is_shared_by_row_number():
    step = Step(index=1, epoch=0, first_row=4, rows=((40,), (50,), (60,), (70,)), num_rows=8)
    assert [step.share(rank, 3) for rank in range(3)] == [((60,),), ((40,), (70,)), ((50,),)]


def test_steps_count_on_over_epochs_and_the_last_of_an_epoch_is_partial():
    plan = build_plan()
    num_rows = [len(plan.rows(epoch)) for epoch in range(3)]
    assert all(number % 4 for number in num_rows), "the example must have partial steps"
    steps: list[Step] = []
    for epoch in range(3):
        steps += epoch_steps(plan, epoch, rows_per_step=4, first_index=len(steps))
    assert [step.index for step in steps] == list(range(len(steps)))
    assert [step.epoch for step in steps if step.ends_epoch] == [0, 1, 2]
    assert [step.epochs_done for step in steps if step.ends_epoch] == [1.0, 2.0, 3.0]
    assert steps[0].epochs_done == 4 / num_rows[0]
    assert [step.num_rows for step in steps] == [num_rows[step.epoch] for step in steps]
    assert [len(step.rows) for step in steps if step.ends_epoch] == [number % 4 for number in num_rows]
    assert all(len(step.rows) == 4 for step in steps if not step.ends_epoch)
    assert all(step.first_row % 4 == 0 for step in steps)


@given(plan=plans(), rows_per_step=st.integers(1, 9), epochs=st.integers(1, 4))
@settings(deadline=None, max_examples=40)
def test_the_number_of_steps_is_known_beforehand(plan, rows_per_step, epochs):
    counted = sum(len(epoch_steps(plan, epoch, rows_per_step, 0)) for epoch in range(epochs))
    # A batch that is no multiple of the row rounds down.
    tokens_per_batch = rows_per_step * plan.row_tokens + plan.row_tokens - 1
    assert num_steps(plan.lengths, plan.doc_ids, plan.row_tokens, tokens_per_batch, plan.seed, epochs) == counted


def test_rows_of_real_looking_lengths_are_almost_full():
    """Log-normal with the mean 740, sigma 0.9, as chats are; documents longer than a row are cut before."""
    generator = np.random.default_rng(7)
    sigma = 0.9
    lengths = generator.lognormal(np.log(740) - sigma**2 / 2, sigma, 4000).astype(np.int64).clip(8, 8192)
    plan = RowPlan(np.arange(4000, dtype=np.int64), lengths, 8192, seed=42)
    assert len(lengths) > 3 * WINDOW
    assert 700 < lengths.mean() < 780
    assert plan.fill(0) >= 0.97
    assert plan.fill(0) <= 1.0


def test_documents_are_packed_with_those_of_their_window_only():
    plan = RowPlan(np.arange(2 * WINDOW + 5, dtype=np.int64), np.full(2 * WINDOW + 5, 10), 1000, seed=1)
    order = epoch_order(plan.doc_ids, seed=1, epoch=0)
    window = {int(doc_id): place // WINDOW for place, doc_id in enumerate(order)}
    rows = plan.rows(0)
    assert all(len({window[doc_id] for doc_id in row}) == 1 for row in rows)
    # 1024 documents of 10 tokens need 11 rows of 1000, the five that are left one more.
    assert len(rows) == 11 + 11 + 1


@pytest.mark.parametrize(
    ("lengths", "rows"),
    [
        pytest.param((5, 5, 5, 5), [[0, 1], [2, 3]], id="ties keep their order"),
        pytest.param((3, 9, 3, 9, 1), [[1, 4], [3], [0, 2]], id="longest first, then the first row with room"),
        pytest.param((4, 6, 4, 6), [[1, 0], [3, 2]], id="equal pairs"),
        pytest.param((10,), [[0]], id="one that fills a row"),
        pytest.param((), [], id="nothing"),
    ],
)
def test_first_fit_decreasing(lengths, rows):
    assert pack_window(array(*lengths), 10) == rows


def test_equal_lengths_are_packed_in_the_order_of_the_epoch():
    plan = RowPlan(array(*range(30)), np.full(30, 10), 30, seed=3)
    order = epoch_order(plan.doc_ids, seed=3, epoch=0).tolist()
    wanted = {tuple(order[start : start + 3]) for start in range(0, 30, 3)}
    assert set(plan.rows(0)) == wanted


def test_epochs_and_seeds_differ():
    plan = build_plan()
    assert plan.rows(0) != plan.rows(1)
    assert plan.rows(0) == plan.rows(0)
    assert plan.rows(0) != replace(plan, seed=43).rows(0)


def test_a_document_longer_than_a_row_is_our_mistake():
    with pytest.raises(AssertionError, match="a document of 11 tokens in rows of 10"):
        RowPlan(array(1), array(11), 10, 0)


def test_every_input_changes_the_hash_of_the_plan():
    plan = build_plan()
    tokens, settings_ = "a" * 64, (4000, 7, "kl")
    hashes = [
        plan_hash(plan, tokens, settings_),
        plan_hash(replace(plan, doc_ids=plan.doc_ids + 1), tokens, settings_),
        plan_hash(replace(plan, doc_ids=plan.doc_ids[:-1], lengths=plan.lengths[:-1]), tokens, settings_),
        plan_hash(replace(plan, row_tokens=101), tokens, settings_),
        plan_hash(replace(plan, seed=43), tokens, settings_),
        plan_hash(plan, "b" * 64, settings_),
        *(plan_hash(plan, tokens, other) for other in ((4001, 7, "kl"), (4000, 6, "kl"), (4000, 7, "lk"), (4000, 7))),
    ]
    assert len(set(hashes)) == len(hashes)
    assert plan_hash(build_plan(), tokens, list(settings_)) == hashes[0]
