"""The fused loss against the formulas with whole tensors, in fp64: values and the gradients of both factors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from draftyard_trainer import loss as fused
from draftyard_trainer.draft.model import DraftModel
from draftyard_trainer.draft.testing import TINY, supervised_sample, tiny_config, tiny_draft, tiny_head
from draftyard_trainer.loss import LossConfig, StepLoss, Teacher, step_scales, ttt_loss
from draftyard_trainer.rows import PackedRow, build_row
from draftyard_trainer.target.head import TargetHead
from draftyard_trainer.ttt import Guess, unroll

STEPS = 4
OBJECTIVES = ("kl", "lk_alpha", "lk_hybrid")
HEADS: dict[str, dict[str, Any]] = {
    "a plain head": {},
    "a head with a soft cap, like Gemma's": {"final_logit_softcapping": 2.0},
    "a head that divides its logits, like Granite's": {"logits_scaling": 4.0},
    "a head that multiplies its logits, like Cohere's": {"logit_scale": 0.25},
    "scale and soft cap": {"logit_scale": 0.5, "final_logit_softcapping": 1.5},
}


@dataclass(frozen=True, eq=False)
class Scene:
    """A draft, a packed row, guesses with leaves of their own as hidden states, and the target's head."""

    draft: DraftModel
    row: PackedRow
    guesses: list[Guess]
    head: TargetHead

    def fused(self, config: LossConfig) -> StepLoss:
        return ttt_loss(self.draft, self.guesses, self.row, Teacher.of(self.head, self.draft.target_ids()), config)

    def gradients(self, loss: Tensor) -> list[Tensor]:
        """By the hidden states of every step, the output matrix and the norm before it."""
        leaves = [*(guess.hidden for guess in self.guesses), self.draft.lm_head.weight, self.draft.norm.weight]
        return list(torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True))


def make_scene(**text_config: Any) -> Scene:
    head, draft = tiny_head(**text_config), tiny_draft().double()
    shapes = ((16, [(3, 4), (9, 5)]), (6, [(1, 5)]), (5, []))
    samples = [supervised_sample(head, TINY.num_aux, n, spans, seed) for seed, (n, spans) in enumerate(shapes)]
    row = build_row(samples, STEPS)
    guesses = [Guess(guess.rows, guess.hidden.detach().requires_grad_()) for guess in unroll(draft, row)]
    return Scene(draft, row, guesses, head)


@dataclass(frozen=True, eq=False)
class Pair:
    """One supervised (row, step): logits of the student, those of the teacher over all V, and the target's choice."""

    step: int
    logits: Tensor
    teacher: Tensor
    tok: int


def naive_pairs(scene: Scene) -> list[Pair]:
    """Pair by pair, straight from the definitions."""
    found = []
    config = scene.head.config
    scale = 1 / config["logits_scaling"] if "logits_scaling" in config else config.get("logit_scale", 1.0)
    for step, guess in enumerate(scene.guesses):
        for place, row in enumerate(guess.rows.tolist()):
            if not scene.row.gates_TN[step, row]:
                continue
            label = int(scene.row.label_TN[step, row])
            z = scale * (scene.head.lm_head @ scene.row.last[label])
            if "final_logit_softcapping" in config:
                z = config["final_logit_softcapping"] * torch.tanh(z / config["final_logit_softcapping"])
            hidden = guess.hidden[place]
            normed = hidden / (hidden.square().mean() + TINY.rms_norm_eps).sqrt() * scene.draft.norm.weight
            found.append(Pair(step, scene.draft.lm_head.weight @ normed, z, int(z.argmax())))
    return found


def naive_value(pair: Pair, ids: Tensor, objective: str) -> Tensor:
    """One row of an objective, for autograd: the hybrid's weight carries no gradient."""
    p, q = pair.teacher[ids].softmax(0), pair.logits.softmax(0)
    alpha = torch.minimum(p, q).sum()
    if objective == "kl":
        return -(p * q.log()).sum()
    if objective == "lk_alpha":
        return -alpha.log()
    weight = torch.exp(-3 * alpha.detach())
    return weight * (p * (p / q).log()).sum() + (1 - weight) * (1 - alpha)


def naive_loss(scene: Scene, config: LossConfig) -> Tensor:
    ids = scene.draft.target_ids()
    total = torch.zeros((), dtype=torch.float64)
    for pair in naive_pairs(scene):
        if config.keeps_out_of_vocab or pair.tok in ids:
            total = total + config.step_scales[pair.step] * naive_value(pair, ids, config.objective)
    return total


def scales_of(scene: Scene) -> Tensor:
    return step_scales(scene.row.gates_TN.sum(1))


@pytest.mark.parametrize("keeps", [False, True], ids=["mask", "keep"])
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("text_config", HEADS.values(), ids=HEADS.keys())
def test_value_and_gradients_are_those_of_the_formulas(text_config: dict[str, Any], objective: Any, keeps: bool):
    scene = make_scene(**text_config)
    config = LossConfig(scales_of(scene), objective, keeps)
    ours, expected = scene.fused(config).total, naive_loss(scene, config)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=0)
    for gradient, naive in zip(scene.gradients(ours), scene.gradients(expected), strict=True):
        assert (gradient - naive).norm() <= 1e-12 * naive.norm()
        assert naive.abs().max() > 1e-7


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_gradient_by_the_logits_is_that_of_difference_quotients(objective: Any):
    """The derivative of alpha has a kink where p = q; random logits are far from one."""
    scene = make_scene()
    lesson = fused.teach(Teacher.of(scene.head, scene.draft.target_ids()), scene.row, 0, 3)
    logits = torch.randn(3, TINY.draft_vocab_size, generator=torch.Generator().manual_seed(1)).double()
    config = LossConfig(torch.ones(1), objective, keeps_out_of_vocab=True)
    graded = fused.grade(logits.clone(), lesson, torch.tensor(0.7, dtype=torch.float64), config)
    # alpha carries no gradient inside the hybrid's weight: hold it where it is while the logits move
    weight = torch.exp(-3 * torch.minimum(lesson.p, logits.softmax(-1)).sum(-1))

    def value(moved: Tensor) -> Tensor:
        q = moved.softmax(-1)
        alpha = torch.minimum(lesson.p, q).sum(-1)
        divergence = (lesson.p * (lesson.p / q).log()).sum(-1)
        values = {
            "kl": divergence,
            "lk_alpha": -alpha.log(),
            "lk_hybrid": weight * divergence + (1 - weight) * (1 - alpha),
        }
        return 0.7 * values[objective].sum()

    width = 1e-6
    for row, column in [(0, 0), (0, 17), (1, 5), (2, 39), (2, 20)]:
        step = torch.zeros_like(logits)
        step[row, column] = width
        quotient = (value(logits + step) - value(logits - step)) / (2 * width)
        torch.testing.assert_close(graded.dlogits[row, column], quotient, rtol=1e-6, atol=1e-9)


def test_gradient_of_the_acceptance_vanishes_where_nothing_is_accepted():
    """Distributions apart by 1e-40: -log alpha is floored, and its gradient is zero instead of infinite."""
    scene = make_scene()
    lesson = fused.teach(Teacher.of(scene.head, scene.draft.target_ids()), scene.row, 0, 1)
    spike = torch.full((1, TINY.draft_vocab_size), -90.0, dtype=torch.float64)
    spike[0, int(lesson.p.argmin())] = 90.0
    lesson = replace(lesson, p=torch.nn.functional.one_hot(lesson.p.argmax(-1), TINY.draft_vocab_size).double())
    graded = fused.grade(spike, lesson, torch.ones(()), LossConfig(torch.ones(1), "lk_alpha", keeps_out_of_vocab=True))
    assert graded.loss.item() == pytest.approx(18.420680743952367)  # -log 1e-8
    assert not graded.dlogits.any()


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("rows", [1, 2, 5], ids=lambda rows: f"{rows} label rows at a time")
def test_chunks_do_not_change_the_result(rows: int, objective: Any, monkeypatch: pytest.MonkeyPatch):
    scene = make_scene()
    config = LossConfig(scales_of(scene), objective)
    whole = scene.fused(config)
    monkeypatch.setitem(fused.CHUNK_BYTES, "cpu", rows * 4 * TINY.draft_vocab_size * STEPS)
    assert largest_chunk(scene) <= rows * STEPS < num_students(scene)
    chunked = scene.fused(config)
    torch.testing.assert_close(chunked.total, whole.total, rtol=1e-13, atol=0)
    torch.testing.assert_close(chunked.sums.flat(), whole.sums.flat(), rtol=1e-13, atol=1e-14)
    for ours, expected in zip(scene.gradients(chunked.total), scene.gradients(whole.total), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-15)


def num_students(scene: Scene) -> int:
    return sum(len(guess.rows) for guess in scene.guesses)


def largest_chunk(scene: Scene) -> int:
    """Students of the largest chunk; all chunks together have every student once."""
    labels = [scene.row.label_TN[step][guess.rows] for step, guess in enumerate(scene.guesses)]
    chunks = list(fused.chunks(labels, len(scene.row.last), TINY.draft_vocab_size))
    sizes = [sum(part.rows.stop - part.rows.start for part in chunk.parts) for chunk in chunks]
    assert sum(sizes) == num_students(scene)
    return max(sizes)


def test_backward_scales_with_what_comes_from_above():
    scene = make_scene()
    config = LossConfig(scales_of(scene))
    once = scene.gradients(scene.fused(config).total)
    thrice = scene.gradients(-3 * scene.fused(config).total)
    for ours, expected in zip(thrice, once, strict=True):
        torch.testing.assert_close(ours, -3 * expected, rtol=1e-12, atol=0)


def test_a_frozen_head_still_gives_gradients_of_the_hidden_states():
    scene = make_scene()
    config = LossConfig(scales_of(scene))
    expected = scene.gradients(scene.fused(config).total)[0]
    scene.draft.lm_head.weight.requires_grad_(False)
    (ours,) = torch.autograd.grad(scene.fused(config).total, [scene.guesses[0].hidden])
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("text_config", HEADS.values(), ids=HEADS.keys())
def test_sums_are_those_of_the_formulas(text_config: dict[str, Any]):
    scene = make_scene(**text_config)
    ids = scene.draft.target_ids()
    names = ("gated", "hits", "in_vocab", "ce", "entropy", "accept")
    expected = {name: torch.zeros(STEPS, dtype=torch.float64) for name in names}
    with torch.no_grad():
        pairs = naive_pairs(scene)
    for pair in pairs:
        p, q = pair.teacher[ids].softmax(0), pair.logits.softmax(0)
        in_vocab = float(pair.tok in ids)
        numbers = {
            "gated": 1.0,
            "hits": float(int(ids[q.argmax()]) == pair.tok),
            "in_vocab": in_vocab,
            "ce": in_vocab * -(p * q.log()).sum(),
            "entropy": in_vocab * -(p * p.log()).sum(),
            "accept": torch.minimum(pair.teacher.softmax(0)[ids], q).sum(),
        }
        for name, number in numbers.items():
            expected[name][pair.step] += float(number)
    sums = scene.fused(LossConfig(scales_of(scene))).sums
    for name, values in expected.items():
        # stored log-sum-exp is fp32
        torch.testing.assert_close(
            getattr(sums, name), values, rtol=1e-6, atol=0, msg=lambda text, n=name: f"{n}: {text}"
        )
    assert 0 < sums.in_vocab.sum() < sums.gated.sum()
    torch.testing.assert_close(sums.loss.sum(), scene.fused(LossConfig(scales_of(scene))).total.detach())


def test_a_token_out_of_the_vocabulary_is_a_miss_and_trains_nothing():
    """Whatever the draft proposes; and the highest id of all must not be read as the last of the vocabulary."""
    scene = make_scene()
    outside = TINY.vocab_size - 1
    assert outside > int(scene.draft.target_ids().max())
    row = replace(scene.row, tok=torch.full_like(scene.row.tok, outside))
    scene = replace(scene, row=row)
    loss = scene.fused(LossConfig(scales_of(scene)))
    assert loss.total == 0
    assert loss.sums.hits.tolist() == [0] * STEPS
    assert loss.sums.in_vocab.tolist() == [0] * STEPS
    assert loss.sums.gated[0] > 0
    assert not any(bool(gradient.any()) for gradient in scene.gradients(loss.total))
    kept = scene.fused(LossConfig(scales_of(scene), keeps_out_of_vocab=True))
    assert kept.total > 1
    assert kept.sums.hits.tolist() == [0] * STEPS


def test_without_gradients_the_numbers_are_the_same():
    scene = make_scene()
    config = LossConfig(scales_of(scene))
    expected = scene.fused(config)
    with torch.no_grad():
        ours = scene.fused(config)
    assert not ours.total.requires_grad
    assert ours.total == expected.total
    assert ours.sums.flat().tolist() == expected.sums.flat().tolist()


@pytest.mark.parametrize("size", [1000, 4000])
def test_a_fresh_draft_has_the_loss_of_a_guess(size: int):
    """Cross-entropy with normal(0, 0.02) rows in the head: ln D and half the variance of the logits, 0.0004 H / 2."""
    config = tiny_config(
        hidden_size=256,
        target_hidden_size=256,
        num_attention_heads=4,
        head_dim=64,
        vocab_size=size,
        draft_vocab_size=size,
    )
    # a flat teacher, so that the mean over a few rows has no noise
    head = tiny_head(config, logit_scale=0.01)
    draft = tiny_draft(config)
    draft.initialise(seed=1)
    row = build_row([supervised_sample(head, config.num_aux, 40, [(4, 36)])], STEPS)
    with torch.no_grad():
        scales = torch.ones(STEPS, dtype=torch.float64)
        sums = ttt_loss(draft, unroll(draft, row), row, Teacher.of(head, draft.target_ids()), LossConfig(scales)).sums
    expected = torch.full((STEPS,), float(torch.tensor(size).log()) + 0.0002 * 256, dtype=torch.float64)
    torch.testing.assert_close(sums.ce / sums.in_vocab, expected, rtol=0, atol=0.01)
    assert sums.accuracy()[0] < 0.05


def test_bf16_gradients_are_near_those_of_fp32():
    """Parameters and products in bf16, softmax and sums in fp32: 8 bits of mantissa, no more is lost."""
    scene = make_scene()
    config = LossConfig(scales_of(scene))
    expected = scene.gradients(scene.fused(config).total)
    half = replace(
        scene,
        draft=tiny_draft().bfloat16(),
        guesses=[Guess(guess.rows, guess.hidden.detach().bfloat16().requires_grad_()) for guess in scene.guesses],
        head=replace(scene.head, lm_head=scene.head.lm_head.bfloat16()),
    )
    loss = half.fused(config)
    assert loss.total.dtype == torch.float32
    for ours, exact in zip(half.gradients(loss.total), expected, strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours.double() - exact).norm() < 0.03 * exact.norm()


def test_step_scales_sum_to_one_over_the_means_of_the_steps():
    gated = torch.tensor([8, 4, 2, 0])
    scales = step_scales(gated)
    weights = torch.tensor([1.0, 0.8, 0.64, 0.512], dtype=torch.float64) / 2.952
    torch.testing.assert_close(scales, weights / torch.tensor([8.0, 4.0, 2.0, 1.0], dtype=torch.float64))
    # a step without pairs adds nothing, and the others do not grow in its place
    assert float((scales * gated).sum()) == pytest.approx(1 - 0.512 / 2.952)
    assert step_scales(gated, decay=1.0).tolist() == [1 / 32, 1 / 16, 1 / 8, 1 / 4]


def test_scales_by_padded_positions_are_only_another_factor():
    """The parity mode of SpecForge: every position of the padded batch counts."""
    scene = make_scene()
    scales = 0.8 ** torch.arange(STEPS, dtype=torch.float64) / (3 * 16)
    sums = scene.fused(LossConfig(scales)).sums
    torch.testing.assert_close(sums.loss, sums.ce * scales, rtol=1e-12, atol=0)
