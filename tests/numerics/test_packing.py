"""Nothing depends on how documents share rows, micro-batches or processes: loss, gradients and metrics are sums."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from draftyard_trainer.data.document import Document
from draftyard_trainer.draft.config import DraftConfig
from draftyard_trainer.draft.testing import TINY, supervised_sample, tiny_config, tiny_draft, tiny_head
from draftyard_trainer.hidden_states.sample import Sample
from draftyard_trainer.loss import LossConfig, Teacher, step_scales, ttt_loss
from draftyard_trainer.metrics import MetricSums
from draftyard_trainer.rows import build_row, gate_counts
from draftyard_trainer.ttt import unroll

STEPS = 4
ALIGNMENTS = ("runtime", "specforge")
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.5, 2.0, 3.0],
    "long_factor": [2.0, 4.0, 6.0, 8.0],
    "original_max_position_embeddings": 8,
}
CONFIGS = {
    "the default profile": TINY,
    "profile eagle3.1": tiny_config(fc_norm=True, feed_normed_hidden=True),
    "a rope that depends on the length": tiny_config(rope_scaling=LONGROPE),
    "dynamic rope": tiny_config(rope_scaling={"rope_type": "dynamic", "factor": 2.0}),
}
SPANS = ((16, [(3, 4), (9, 5)]), (6, [(1, 5)]), (1, [(0, 1)]), (9, []), (2, [(0, 2)]), (12, [(11, 1)]), (10, [(4, 6)]))
"""Two turns, all answer, one token, no answer, two tokens, one last token, an answer to the end."""


@dataclass(frozen=True, eq=False)
class Outcome:
    """Loss, metrics and the gradients of every trained parameter of one optimizer step."""

    loss: Tensor
    sums: MetricSums
    gradients: dict[str, Tensor]


def make_samples(config: DraftConfig = TINY, shapes: Sequence[Any] = SPANS) -> list[Sample]:
    head = tiny_head(config)
    return [supervised_sample(head, config.num_aux, n, spans, seed) for seed, (n, spans) in enumerate(shapes)]


def optimizer_step(rows: Sequence[Sequence[Sample]], alignment: Any = "runtime", config: DraftConfig = TINY) -> Outcome:
    """One draft over some micro-batches, normalised by the pairs of all of them, known before the first forward."""
    draft = tiny_draft(config).double()
    teacher = Teacher.of(tiny_head(config), draft.target_ids())
    gated = sum(gate_counts(sample.document, STEPS, alignment) for row in rows for sample in row)
    scales = step_scales(gated)
    total, sums = torch.zeros((), dtype=torch.float64), MetricSums.zeros(STEPS)
    for samples in rows:
        row = build_row(samples, STEPS, alignment)
        loss = ttt_loss(draft, unroll(draft, row), row, teacher, LossConfig(scales))
        loss.total.backward()
        total, sums = total + loss.total.detach(), sums + loss.sums
    return Outcome(total, sums, {name: parameter.grad.clone() for name, parameter in draft.named_parameters()})


def assert_same(ours: Outcome, expected: Outcome) -> None:
    torch.testing.assert_close(ours.loss, expected.loss, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(ours.sums.flat(), expected.sums.flat(), rtol=1e-11, atol=1e-12)
    for name, gradient in expected.gradients.items():
        torch.testing.assert_close(
            ours.gradients[name], gradient, rtol=1e-9, atol=1e-12, msg=lambda text, n=name: n + text
        )


@pytest.mark.parametrize("alignment", ALIGNMENTS)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_packed_documents_are_documents_one_at_a_time(config: DraftConfig, alignment: Any):
    samples = make_samples(config)
    packed = optimizer_step([samples], alignment, config)
    assert_same(packed, optimizer_step([[sample] for sample in samples], alignment, config))
    assert packed.loss > 0.5
    assert all(gradient.abs().max() > 1e-6 for gradient in packed.gradients.values())


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_order_of_the_documents_in_a_row_does_not_matter(alignment: Any):
    samples = make_samples()
    assert_same(optimizer_step([samples[::-1]], alignment), optimizer_step([samples], alignment))


@pytest.mark.parametrize("where", [0, 3, 7], ids=["in front", "in the middle", "at the end"])
def test_a_document_without_supervision_adds_nothing(where: int):
    samples = make_samples()
    padding = supervised_sample(tiny_head(), TINY.num_aux, 11, [], seed=50)
    padded = [*samples[:where], padding, *samples[where:]]
    assert_same(optimizer_step([padded]), optimizer_step([samples]))


def test_a_row_without_supervision_has_zero_loss_and_zero_gradients():
    """What a process runs when it has fewer rows than the others."""
    alone = optimizer_step([make_samples(shapes=[(7, []), (3, [])])])
    assert alone.loss == 0
    assert alone.sums.gated.tolist() == [0] * STEPS
    assert {name for name, gradient in alone.gradients.items() if gradient.any()} == set()


def test_one_gradient_for_all_ways_to_split_four_rows():
    """Four processes with one row each, two with two, one with four: sums of local gradients, in another order."""
    samples = make_samples(shapes=SPANS[:2] * 4)
    rows = [samples[0:2], samples[2:4], samples[4:6], samples[6:8]]
    one_by_one = optimizer_step(rows)
    assert_same(optimizer_step([rows[0] + rows[2], rows[1] + rows[3]]), one_by_one)
    assert_same(optimizer_step([samples]), one_by_one)


def test_normalisers_of_a_single_row_would_be_another_gradient():
    """The fixture tells a mean of means from the mean: rows have different numbers of supervised pairs."""
    samples = make_samples()
    whole = optimizer_step([samples[:1], samples[1:]])
    apart = [optimizer_step([samples[:1]]), optimizer_step([samples[1:]])]
    assert abs(float(whole.loss - (apart[0].loss + apart[1].loss) / 2)) > 1e-3


def test_a_longer_unroll_leaves_the_earlier_steps_alone():
    samples = make_samples()
    draft = tiny_draft().double()
    short, long = (unroll(draft, build_row(samples, steps)) for steps in (2, 5))
    for ours, expected in zip(long[:2], short, strict=True):
        assert ours.rows.tolist() == expected.rows.tolist()
        torch.testing.assert_close(ours.hidden, expected.hidden, rtol=1e-12, atol=1e-12)


@st.composite
def documents(draw: st.DrawFn) -> Document:
    mask = np.array(draw(st.lists(st.booleans(), min_size=1, max_size=24)))
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(int)))
    spans = np.stack([edges[0::2], edges[1::2] - edges[0::2]], axis=1).astype(np.int64)
    document = Document(0, np.arange(len(mask)), spans)
    assert (document.mask() == mask).all()
    return document


def bare(document: Document) -> Sample:
    rows = len(document.label_rows())
    zeros = torch.zeros(rows, 2)
    return Sample(document, torch.zeros(document.num_tokens, 2), zeros, zeros[:, 0].to(torch.int32), zeros[:, 0])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(documents(), min_size=1, max_size=4), st.integers(1, 7), st.sampled_from(ALIGNMENTS))
def test_counts_from_masks_are_the_gates_of_the_packed_row(several: list[Document], steps: int, alignment: Any):
    """The normalisers are known before any state is; they must be what the loss then finds."""
    row = build_row([bare(document) for document in several], steps, alignment)
    counted = sum(gate_counts(document, steps, alignment) for document in several)
    assert row.gates_TN.sum(1).tolist() == counted.tolist()
    assert bool((row.label_TN[row.gates_TN] >= 0).all())
    assert bool((row.label_TN[~row.gates_TN] == -1).all())
