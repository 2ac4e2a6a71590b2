"""Layers with a backward of their own, against the same formulas left to autograd: values and all gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from draftyard_trainer.draft.layers import MLP, GradientSum, RMSNorm, Shared, _GatedMLP, rotate

ROWS, WIDTH, INNER, HEADS, SIZE = 7, 12, 20, 3, 8
EPS = 1e-5


def random(*shape: int, seed: int = 0) -> Tensor:
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn.requires_grad_()


def angles() -> tuple[Tensor, Tensor]:
    """Cosine and sine `[R, 1, d]`, both halves of a head alike."""
    half = torch.arange(ROWS)[:, None] * 0.3 ** torch.arange(SIZE // 2, dtype=torch.float64)
    both = torch.cat([half, half], dim=-1)[:, None]
    return both.cos(), both.sin()


def plain_norm(x: Tensor, weight: Tensor) -> Tensor:
    return weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS)


def same(ours: Callable[..., Tensor], reference: Callable[..., Tensor], *leaves: Tensor) -> None:
    """Equal values, and equal gradients of a sum with random weights."""
    first, second = ours(*leaves), reference(*leaves)
    torch.testing.assert_close(first, second, rtol=1e-13, atol=1e-14)
    weights = torch.randn(first.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    grads = torch.autograd.grad((first * weights).sum(), leaves)
    expected = torch.autograd.grad((second * weights).sum(), leaves)
    for grad, reference_grad in zip(grads, expected, strict=True):
        assert reference_grad.abs().max() > 1e-3
        torch.testing.assert_close(grad, reference_grad, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("shape", [(ROWS, WIDTH), (2, ROWS, WIDTH)], ids=["rows", "a batch of rows"])
def test_rms_norm(shape: tuple[int, ...]):
    norm = RMSNorm(WIDTH, EPS).double()

    def ours(x: Tensor, weight: Tensor) -> Tensor:
        return torch.func.functional_call(norm, {"weight": weight}, (x,))

    same(ours, plain_norm, random(*shape), random(WIDTH, seed=1))


def test_rms_norm_of_16_bits_is_computed_in_32():
    norm = RMSNorm(WIDTH, EPS).to(torch.bfloat16)
    x = (random(ROWS, WIDTH) * 300).to(torch.bfloat16)
    wide = x.float()
    expected = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS)).to(torch.bfloat16)
    assert torch.equal(norm(x), expected)


def test_a_row_of_zeros_has_a_finite_gradient():
    norm = RMSNorm(WIDTH, EPS)
    x = torch.zeros(1, WIDTH, requires_grad=True)
    norm(x).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.full((1, WIDTH), EPS**-0.5))


def test_norm_then_linear():
    def ours(x: Tensor, norm_weight: Tensor, weight: Tensor, plus: Tensor) -> Tensor:
        norm = RMSNorm(WIDTH, EPS).double()
        del norm.weight
        norm.weight = norm_weight  # a leaf of the test in place of the parameter
        return norm.then_linear(x, Shared.of(weight), plus)

    def reference(x: Tensor, norm_weight: Tensor, weight: Tensor, plus: Tensor) -> Tensor:
        return plus + plain_norm(x, norm_weight) @ weight.T

    leaves = (random(ROWS, WIDTH), random(WIDTH, seed=1), random(INNER, WIDTH, seed=2), random(ROWS, INNER, seed=3))
    same(ours, reference, *leaves)


def test_shared_linear():
    def ours(x: Tensor, weight: Tensor, plus: Tensor) -> Tensor:
        return Shared.of(weight).linear(x, plus)

    def reference(x: Tensor, weight: Tensor, plus: Tensor) -> Tensor:
        return plus + x @ weight.T

    same(ours, reference, random(ROWS, WIDTH), random(INNER, WIDTH, seed=2), random(ROWS, INNER, seed=3))


def plain_mlp(x: Tensor, norm_weight: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    y = plain_norm(x, norm_weight)
    return x + (F.silu(y @ gate.T) * (y @ up.T)) @ down.T


def test_gated_mlp():
    def ours(x: Tensor, norm_weight: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
        both, last = Shared.of(torch.cat([gate, up])), Shared.of(down)
        return _GatedMLP.apply(x, norm_weight, EPS, both.weight, both.total, last.weight, last.total)

    weights = (random(INNER, WIDTH, seed=1), random(INNER, WIDTH, seed=2), random(WIDTH, INNER, seed=3))
    same(ours, plain_mlp, random(ROWS, WIDTH), random(WIDTH, seed=4), *weights)
    mlp, norm = MLP(WIDTH, INNER).double(), RMSNorm(WIDTH, EPS).double()
    own = (mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight)
    x = random(ROWS, WIDTH, seed=5)
    torch.testing.assert_close(mlp.share().plus(x, norm), plain_mlp(x, norm.weight, *own))


def test_a_shared_weight_gets_the_gradients_of_all_its_readers_once():
    """Three steps feed one another, and one part of the weight is read as it is; two rows of a batch add up."""
    weight, x, plus = random(WIDTH, WIDTH, seed=1), random(ROWS, WIDTH), random(ROWS, WIDTH, seed=2)

    def ours() -> Tensor:
        shared = Shared.of(weight)
        deep = shared.linear(torch.tanh(shared.linear(torch.tanh(shared.linear(x, plus)), plus)), plus)
        return deep.sum() + shared.weight[:3].square().sum()

    def reference() -> Tensor:
        deep = x
        for step in range(3):
            deep = plus + (torch.tanh(deep) if step else deep) @ weight.T
        return deep.sum() + weight[:3].square().sum()

    leaves = (weight, x, plus)
    expected = torch.autograd.grad(reference(), leaves)
    for grad, reference_grad in zip(torch.autograd.grad(ours(), leaves), expected, strict=True):
        torch.testing.assert_close(grad, reference_grad, rtol=1e-12, atol=1e-13)
    for _ in range(2):
        ours().backward()
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, 2 * expected[0], rtol=1e-12, atol=1e-13)


def test_a_graph_that_is_run_twice_gives_the_same_gradient_twice():
    weight, x = random(INNER, WIDTH), random(ROWS, WIDTH, seed=1)
    total = Shared.of(weight).linear(x, random(ROWS, INNER, seed=2)).square().sum()
    first, second = (torch.autograd.grad(total, weight, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_nothing_added_is_no_gradient():
    assert GradientSum().take(None) is None


def test_rotation():
    cos, sin = angles()

    def reference(heads: Tensor) -> Tensor:
        low, high = heads.chunk(2, dim=-1)
        return heads * cos + torch.cat([-high, low], dim=-1) * sin

    same(lambda heads: rotate(heads, cos, sin), reference, random(ROWS, HEADS, SIZE))


def test_inputs_are_left_as_they_were():
    cos, sin = angles()
    heads, x = random(ROWS, HEADS, SIZE), random(ROWS, WIDTH)
    before = heads.detach().clone(), x.detach().clone(), cos.clone(), sin.clone()
    seen = MLP(WIDTH, INNER).double().share().plus(x, RMSNorm(WIDTH, EPS).double())
    (rotate(heads, cos, sin).sum() + seen.sum()).backward()
    for now, then in zip((heads, x, cos, sin), before, strict=True):
        assert torch.equal(now, then)
