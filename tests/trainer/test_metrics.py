"""Metrics are quotients of sums; the headline is the joint prefix, which products of step accuracies do not give."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from draftyard_trainer.draft.testing import TINY, supervised_sample, tiny_draft, tiny_head
from draftyard_trainer.loss import Grades, LossConfig, Teacher, summed, ttt_loss
from draftyard_trainer.metrics import MetricSums
from draftyard_trainer.rows import PackedRow, build_row
from draftyard_trainer.ttt import Guess, unroll

STEPS = 2


def vector(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def make_sums(**changes: Tensor) -> MetricSums:
    base = MetricSums(
        gated=vector(10, 8, 4),
        asked=vector(10, 8, 4),
        hits=vector(6, 4, 1),
        joint=vector(6, 3, 1),
        in_vocab=vector(8, 5, 4),
        ce=vector(16, 15, 16),
        entropy=vector(8, 5, 4),
        accept=vector(5, 2, 1),
        loss=vector(0.5, 0.25, 0.125),
        labels=vector(20),
        on_policy=vector(15),
    )
    return replace(base, **changes)


def test_quotients():
    sums = make_sums()
    assert sums.accuracy().tolist() == [0.6, 0.5, 0.25]
    assert sums.prefix_accuracy().tolist() == [0.6, 0.375, 0.25]
    assert sums.divergence().tolist() == [1.0, 2.0, 3.0]
    assert sums.acceptance().tolist() == [0.5, 0.25, 0.25]
    assert sums.on_policy_share() == 0.75
    assert sums.total_loss() == 0.875


@pytest.mark.parametrize(
    ("draft_tokens", "joint", "product"),
    [(0, 1.0, 1.0), (1, 1.6, 1.6), (2, 1.975, 1.9), (3, 2.225, 1.975), (7, 2.225, 1.975)],
)
def test_acceptance_length_of_the_first_tokens(draft_tokens: int, joint: float, product: float):
    assert make_sums().tau_sim(draft_tokens) == pytest.approx(joint)
    assert make_sums().tau_marginal(draft_tokens) == pytest.approx(product)


def test_nothing_counted_is_no_division_by_zero():
    sums = MetricSums.zeros(3)
    assert sums.tau_sim(3) == sums.tau_marginal(3) == 1.0
    for values in (sums.accuracy(), sums.prefix_accuracy(), sums.divergence(), sums.acceptance()):
        assert values.tolist() == [0, 0, 0]
    assert sums.on_policy_share() == 0
    assert sums.total_loss() == 0


def test_sums_add_up_before_anything_is_divided():
    """A row with 10 pairs counts more than one with 2: the mean of the two quotients would be 0.8."""
    small = make_sums(gated=vector(2, 2, 2), asked=vector(2, 2, 2), hits=vector(2, 0, 0), joint=vector(2, 0, 0))
    both = make_sums() + small
    assert both.accuracy()[0] == 8 / 12
    for entry in fields(MetricSums):
        expected = getattr(make_sums(), entry.name) + getattr(small, entry.name)
        assert getattr(both, entry.name).tolist() == expected.tolist()
    assert (MetricSums.zeros(3) + make_sums()).flat().tolist() == make_sums().flat().tolist()


def test_one_vector_and_back():
    """One all-reduce for all of them; every number comes back under its own name, in fp64."""
    numbers = {
        entry.name: vector(*(100.0 * place + step for step in range(1 if entry.name in ("labels", "on_policy") else 3)))
        for place, entry in enumerate(fields(MetricSums))
    }
    sums = MetricSums(**numbers)
    vector_of_all = sums.flat()
    assert vector_of_all.shape == (9 * 3 + 2,)
    assert vector_of_all.dtype == torch.float64
    back = MetricSums.zeros(3).from_flat(2 * vector_of_all)
    for name, values in numbers.items():
        assert getattr(back, name).tolist() == (2 * values).tolist()


def test_moving_keeps_all_numbers():
    assert make_sums().to("cpu").flat().tolist() == make_sums().flat().tolist()


HITS: dict[str, tuple[list[list[bool]], list[int], float, float]] = {
    # (hits of four rows at two steps, joint counts, joint length, length from products)
    "hits of one row coincide": ([[True, True, False, False], [True, True, False, False]], [2, 2], 2.0, 1.75),
    "hits are disjoint": ([[True, True, False, False], [False, False, True, True]], [2, 0], 1.5, 1.75),
    "hits are independent": ([[True, True, False, False], [True, False, True, False]], [2, 1], 1.75, 1.75),
    "a miss first is never made good": ([[False] * 4, [True] * 4], [0, 0], 1.0, 1.0),
}


@pytest.mark.parametrize(("hits", "joint", "tau_sim", "tau_marginal"), HITS.values(), ids=HITS.keys())
def test_joint_prefix_is_not_the_product_of_accuracies(
    hits: list[list[bool]], joint: list[int], tau_sim: float, tau_marginal: float
):
    """Four rows that are supervised at two steps: the same accuracies, other chains."""
    row = make_row(num_tokens=7, turn=(1, 6))
    row = replace(row, gates_TN=(row.positions_N < 4).expand(STEPS, -1))
    guesses = [Guess(torch.arange(4), torch.zeros(4, 1))] * 2
    sums = summed(graded(torch.tensor(hits).flatten()), guesses, row)
    assert sums.joint.tolist() == joint
    assert sums.tau_sim(2) == pytest.approx(tau_sim)
    assert sums.tau_marginal(2) == pytest.approx(tau_marginal)


def test_joint_prefix_follows_rows_that_end_early():
    """Rows 0..2 at step 0, only row 2 at step 1: its own first hit counts, not that of the first row in the list."""
    row = make_row(num_tokens=7, turn=(1, 6))
    guesses = [Guess(torch.tensor([0, 1, 2]), torch.zeros(3, 1)), Guess(torch.tensor([2]), torch.zeros(1, 1))]
    for first, expected in (([True, True, False], [2, 0]), ([False, False, True], [1, 1])):
        sums = summed(graded(torch.tensor([*first, True])), guesses, row)
        assert sums.joint.tolist() == expected
        assert sums.gated.tolist() == row.gates_TN.sum(1).tolist()
        assert sums.asked.tolist() == [3, 1]


def make_row(num_tokens: int, turn: tuple[int, int]) -> PackedRow:
    sample = supervised_sample(tiny_head(), TINY.num_aux, num_tokens, [turn])
    return build_row([sample], STEPS)


def graded(hit: Tensor) -> Grades:
    """Grades of student rows of which nothing but the hits matters."""
    return replace(Grades.empty(len(hit), torch.device("cpu")), hit=hit)


def test_joint_prefix_of_a_real_unroll():
    """Row by row from the draft's own logits: only rows whose earlier proposals were all right count."""
    steps = 4
    head, draft = tiny_head(), tiny_draft().double()
    samples = [supervised_sample(head, TINY.num_aux, 20, [(2, 17)], seed) for seed in range(4)]
    row = build_row(samples, steps)
    guesses = unroll(draft, row)
    # labels that are the draft's first proposal at step 0 or at step 1: hits are common, and chains break
    tok = row.tok.clone()
    for step in (0, 1):
        proposed = draft.target_ids()[draft.logits(guesses[step].hidden).argmax(-1)]
        asked = row.gates_TN[step][guesses[step].rows]
        labels = row.label_TN[step][guesses[step].rows][asked]
        chosen = labels % 3 != step
        tok[labels[chosen]] = proposed[asked][chosen].to(torch.int32)
    row = replace(row, tok=tok)
    scales = torch.ones(steps, dtype=torch.float64)
    with torch.no_grad():
        sums = ttt_loss(draft, guesses, row, Teacher.of(head, draft.target_ids()), LossConfig(scales)).sums
        alive = {int(place) for place in row.gates_TN[0].nonzero()}
        for step, guess in enumerate(guesses):
            proposed = draft.target_ids()[draft.logits(guess.hidden).argmax(-1)]
            right = {
                place
                for place, token in zip(guess.rows.tolist(), proposed.tolist(), strict=True)
                if row.gates_TN[step, place] and token == int(row.tok[row.label_TN[step, place]])
            }
            assert int(sums.hits[step]) == len(right)
            alive &= right
            assert int(sums.joint[step]) == len(alive)
    assert 0 < sums.joint[1] < sums.hits[1]


def test_on_policy_is_the_share_of_tokens_that_the_target_would_have_said():
    """Label rows whose next token is in the document; the last position has none and is not counted."""
    head, draft = tiny_head(), tiny_draft().double()
    sample = supervised_sample(head, TINY.num_aux, 6, [(2, 4)])
    labels = sample.document.label_rows()
    assert labels.tolist() == [1, 2, 3, 4, 5]
    tokens = torch.from_numpy(sample.document.tokens)
    # right after positions 1 and 2, wrong after 3 and 4; 5 is the end
    tok = torch.tensor([tokens[2], tokens[3], (tokens[4] + 1) % 96, (tokens[5] + 1) % 96, 0], dtype=torch.int32)
    row = build_row([replace(sample, tok=tok)], STEPS)
    scales = torch.ones(STEPS, dtype=torch.float64)
    sums = ttt_loss(draft, unroll(draft, row), row, Teacher.of(head, draft.target_ids()), LossConfig(scales)).sums
    assert (sums.labels.tolist(), sums.on_policy.tolist()) == ([4], [2])
    assert sums.on_policy_share() == 0.5
