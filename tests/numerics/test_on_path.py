"""The unroll along the path of a server: which rows go on, by the definition in plain loops, and what the loss is."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from draftyard_trainer.data.document import Document
from draftyard_trainer.draft.model import DraftModel
from draftyard_trainer.draft.testing import TINY, supervised_sample, tiny_draft, tiny_head
from draftyard_trainer.hidden_states.sample import Sample
from draftyard_trainer.loss import CHUNK_BYTES, LossConfig, StepLoss, Teacher, step_scales, ttt_loss
from draftyard_trainer.on_path import OnPath, PathRule, draws
from draftyard_trainer.rows import PackedRow, build_row
from draftyard_trainer.target.head import TargetHead
from draftyard_trainer.ttt import unroll

STEPS = 4
SEED, EPOCH = 7, 2
SHAPES = ((40, [(3, 20), (26, 12)]), (12, [(1, 10)]), (5, []))


@dataclass(frozen=True, eq=False)
class Scene:
    """A packed row, its draft and the target's head."""

    draft: DraftModel
    row: PackedRow
    head: TargetHead
    samples: list[Sample]

    @property
    def teacher(self) -> Teacher:
        return Teacher.of(self.head, self.draft.target_ids())

    def draws(self) -> Tensor:
        return draws([sample.document for sample in self.samples], SEED, EPOCH, STEPS)

    def path(self, rule: PathRule) -> OnPath:
        return OnPath(self.draft, self.row, self.teacher, self.draws(), rule)

    def loss(self, rule: PathRule | None, row: PackedRow | None = None) -> StepLoss:
        config = LossConfig(step_scales(self.row.gates_TN.sum(1)))
        guesses = unroll(self.draft, self.row if row is None else row, None if rule is None else self.path(rule))
        return ttt_loss(self.draft, guesses, self.row if row is None else row, self.teacher, config)

    def gradients(self, loss: StepLoss) -> list[Tensor]:
        return list(torch.autograd.grad(loss.total, list(self.draft.parameters()), materialize_grads=True))


@functools.cache
def make_scene(on_policy: float = 0.8) -> Scene:
    """Target and draft say what the data says often enough that chains of every length are there."""
    head, draft = tiny_head(), tiny_draft().double()
    generator = np.random.default_rng(3)
    samples = []
    for seed, (length, spans) in enumerate(SHAPES):
        sample = supervised_sample(head, TINY.num_aux, length, spans, seed)
        rows = sample.document.label_rows()
        tokens = sample.document.tokens.copy()
        for place, row in enumerate(rows):
            if row + 1 < length and generator.random() < on_policy:
                tokens[row + 1] = int(sample.tok[place])
        samples.append(replace(sample, document=Document(seed, tokens, sample.document.spans)))
    return Scene(taught(draft, head, samples), build_row(samples, STEPS), head, samples)


def taught(draft: DraftModel, head: TargetHead, samples: list[Sample]) -> DraftModel:
    """A draft that has learnt these samples a little: about half of its guesses are right."""
    row, teacher = build_row(samples, STEPS), Teacher.of(head, draft.target_ids())
    optimizer = torch.optim.Adam(draft.parameters(), lr=0.02)
    config = LossConfig(step_scales(row.gates_TN.sum(1)))
    for _ in range(25):
        optimizer.zero_grad()
        ttt_loss(draft, unroll(draft, row), row, teacher, config).total.backward()
        optimizer.step()
    return draft


@torch.no_grad()
def alive_by_definition(scene: Scene, rule: PathRule) -> Tensor:
    """`[T, N]`: supervised pairs that a server asks for, each row followed alone through a full unroll."""
    row, ids, draws_TN = scene.row, scene.draft.target_ids().tolist(), scene.draws()
    logits = [dict(zip(g.rows.tolist(), scene.draft.logits(g.hidden), strict=True)) for g in unroll(scene.draft, row)]
    alive = torch.zeros_like(row.gates_TN)
    for t in range(row.num_rows):
        for step in range(STEPS):
            if not row.gates_TN[step, t]:
                break
            alive[step, t] = True
            label = int(row.label_TN[step, t])
            said = int(row.next_token[label])
            z = scene.head.logits(row.last[label : label + 1])[0]
            q = logits[step][t].softmax(-1)
            if rule.accepts == "argmax":
                accepted = float(said == int(z.argmax()) == ids[int(q.argmax())])
            else:
                p = math.exp(float(z[said]) - float(row.lse[label]))
                accepted = min(1.0, float(q[ids.index(said)]) / p) if said in ids else 0.0
            if float(draws_TN[step, t]) >= max(rule.floor, accepted):
                break
    return alive


RULES = {
    "argmax": PathRule("argmax", 0.0),
    "argmax with a floor": PathRule("argmax", 0.3),
    "sampled": PathRule("sampled", 0.0),
    "sampled with a floor": PathRule("sampled", 0.3),
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_loss_and_gradients_are_those_of_the_rows_that_a_server_asks(rule: PathRule):
    """Rows by the definition, and the plain unroll of exactly these: the same loss, sums and gradients."""
    scene = make_scene()
    alive = alive_by_definition(scene, rule)
    asked = alive.sum(1).tolist()
    assert scene.row.gates_TN.sum(1)[1] > asked[1] > asked[2] > asked[3] > 0
    ours = scene.loss(rule)
    expected = scene.loss(None, replace(scene.row, gates_TN=alive))
    assert ours.sums.asked.tolist() == asked
    torch.testing.assert_close(ours.total, expected.total, rtol=1e-12, atol=0)
    torch.testing.assert_close(ours.sums.joint, expected.sums.joint)
    for one, other in zip(scene.gradients(ours), scene.gradients(expected), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-13)


def test_a_floor_of_one_is_the_full_unroll():
    scene = make_scene()
    ours, expected = scene.loss(PathRule(floor=1.0)), scene.loss(None)
    assert ours.total == expected.total
    for one, other in zip(scene.gradients(ours), scene.gradients(expected), strict=True):
        assert torch.equal(one, other)


def test_normalisers_and_joint_lengths_are_those_of_the_mask():
    """A chain that is cut where it is rejected counts the same joint hits as one that runs on."""
    scene = make_scene(on_policy=1.0)
    ours, full = scene.loss(PathRule("argmax", 0.0)).sums, scene.loss(None).sums
    assert ours.gated.tolist() == full.gated.tolist() == full.asked.tolist()
    assert ours.joint.tolist() == full.joint.tolist()
    assert ours.tau_sim(STEPS) == full.tau_sim(STEPS) > 1.2
    assert ours.accuracy()[1] == pytest.approx(float(ours.hits[1] / ours.asked[1]))


def test_a_draft_that_is_never_right_is_asked_once():
    """Later steps are empty, and nothing divides by their number."""
    scene = make_scene(on_policy=0.0)
    loss = scene.loss(PathRule("argmax", 0.0))
    assert loss.sums.asked.tolist() == [int(scene.row.gates_TN[0].sum()), 0, 0, 0]
    assert loss.sums.accuracy()[1:].tolist() == [0, 0, 0]
    assert all(bool(gradient.isfinite().all()) for gradient in scene.gradients(loss))


def test_chunks_of_the_look_ahead_do_not_change_it(monkeypatch: pytest.MonkeyPatch):
    scene = make_scene()
    whole = scene.loss(RULES["sampled"])
    monkeypatch.setitem(CHUNK_BYTES, "cpu", 4 * TINY.draft_vocab_size * 3)
    assert scene.loss(RULES["sampled"]).sums.asked.tolist() == whole.sums.asked.tolist()


def documents(*lengths: int, first: int = 0) -> list[Document]:
    return [Document(first + place, np.zeros(length, dtype=np.int64), np.zeros((0, 2), dtype=np.int64))
            for place, length in enumerate(lengths)]  # fmt: skip


def test_draws_belong_to_documents_and_not_to_rows():
    """Packed in any company and order, a document draws the same numbers; another epoch or seed draws others."""
    one, two = documents(5, 7)
    together = draws([two, one], SEED, EPOCH, STEPS)
    assert torch.equal(together, torch.cat([draws([two], SEED, EPOCH, STEPS), draws([one], SEED, EPOCH, STEPS)], dim=1))
    others = [draws([two, one], SEED, EPOCH + 1, STEPS), draws([two, one], SEED + 1, EPOCH, STEPS)]
    assert all(not bool((together == other).any()) for other in others)


def test_draws_are_uniform():
    many = draws(documents(5000, 5000), SEED, EPOCH, 2)
    assert 0 <= float(many.min()) <= float(many.max()) < 1
    counts = torch.histc(many, bins=10, min=0, max=1)
    # 20,000 draws: 2,000 a bin, with a deviation of 42
    assert float((counts - 2000).abs().max()) < 5 * 42
    lag = torch.corrcoef(torch.stack([many[0], many[1]]))[0, 1]
    assert abs(float(lag)) < 0.05


def test_the_ratio_is_that_of_speculative_sampling():
    """Over many draws, the share that goes on is min(1, q / p) of the token that the data has."""
    scene = make_scene()
    (first, *_) = unroll(scene.draft, scene.row)
    documents = [sample.document for sample in scene.samples]
    path = scene.path(RULES["sampled"])
    goes_on = [replace(path, draws_TN=draws(documents, seed, 0, STEPS))(0, first) for seed in range(400)]
    rate = torch.stack(goes_on).double().mean(0)
    label = scene.row.label_TN[0][first.rows]
    said = scene.row.next_token[label]
    ids = scene.draft.target_ids()
    inside = torch.isin(said, ids)
    q = scene.draft.logits(first.hidden).softmax(-1)[
        torch.arange(len(said)), torch.searchsorted(ids, said).clamp(max=len(ids) - 1)
    ]
    p = scene.head.logits(scene.row.last[label]).softmax(-1)[torch.arange(len(said)), said]
    expected = (q / p).clamp(max=1) * inside
    assert bool((expected > 0.1).any())
    assert bool((expected < 0.9).any())
    torch.testing.assert_close(rate, expected.detach(), atol=0.125, rtol=0)


def test_rows_without_a_label_go_on():
    """The alignment `specforge` asks rows that are supervised again later: nothing says that they were rejected."""
    scene = make_scene()
    row: Any = build_row(scene.samples, STEPS, "specforge")
    path = OnPath(scene.draft, row, scene.teacher, torch.full((STEPS, row.num_rows), 0.999), PathRule("argmax", 0.0))
    (first, *_) = unroll(scene.draft, row)
    unlabelled = row.label_TN[0][first.rows] < 0
    assert bool(unlabelled.any())
    assert bool(path(0, first)[unlabelled].all())
