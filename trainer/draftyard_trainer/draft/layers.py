"""Layers whose backward is written out: they keep their inputs and redo what is cheap, where autograd keeps every step.

An unroll holds the activations of all its steps at once, so what a layer keeps per row is what decides memory.
"""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

# R rows, H width, I width inside the MLP, J = 2 I, h heads of size d

P = ParamSpec("P")
R = TypeVar("R")


@functools.cache
def has_compiler() -> bool:
    """Whether functions can be compiled for a GPU: Triton builds its launcher with the C compiler of the system."""
    compilers = (os.environ.get("CC", "cc"), "gcc", "clang")
    return any(shutil.which(name) for name in compilers) and torch.utils._triton.has_triton()  # noqa: SLF001


def compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Many elementwise kernels as one or two on a GPU with a compiler; elsewhere the function as it is written.

    For functions that autograd does not look into: tensors go in detached, so that none is compiled twice for that.
    A step of a draft for an 8B model takes 0.25 s in place of 0.31 on an H100. `TORCHDYNAMO_DISABLE=1` turns it off.
    """

    @functools.cache
    def quick() -> Callable[P, R]:
        # Only when asked for: loading the compiler takes seconds that no CPU and no other stage should wait for.
        return torch.compile(function, dynamic=True)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        first = args[0]
        if not (isinstance(first, Tensor) and first.is_cuda and has_compiler()):
            return function(*args, **kwargs)
        plain = (arg.detach() if isinstance(arg, Tensor) else arg for arg in args)
        return quick()(*plain, **kwargs)  # type: ignore[arg-type]  # the same arguments

    return call


class GradientSum:
    """Gradients of one weight from several steps, added up by the products that make them."""

    def __init__(self) -> None:
        self._total: Tensor | None = None

    def add(self, grad_RO: Tensor, x_RI: Tensor) -> None:
        """Add the gradient of `x @ weight.T`."""
        if self._total is None:
            self._total = grad_RO.T @ x_RI
        else:
            self._total.addmm_(grad_RO.T, x_RI)

    def take(self, other: Tensor | None) -> Tensor | None:
        """The sum, with what came another way; from here on it is zero."""
        total, self._total = self._total, None
        if total is None or other is None:
            return other if total is None else total
        return total.add_(other)


@dataclass(frozen=True, eq=False)
class Shared:
    """A weight `[O, I]` that all steps of an unroll read. Autograd would write and add a whole gradient for each."""

    weight: Tensor
    total: GradientSum

    @classmethod
    def of(cls, weight: Tensor) -> Shared:
        """Lend a weight for one unroll. Its gradient arrives when the backward is through with all steps."""
        total = GradientSum()
        return cls(_Lent.apply(weight, total), total)

    def linear(self, x_RI: Tensor, plus_RO: Tensor) -> Tensor:
        """`plus + x @ weight.T`."""
        projected: Tensor = _SharedLinear.apply(x_RI, self.weight, self.total, plus_RO)
        return projected


class _Lent(torch.autograd.Function):
    """The weight itself. Autograd runs the backward once all that read it have run theirs."""

    @staticmethod
    def forward(ctx: FunctionCtx, weight_OI: Tensor, total: GradientSum) -> Tensor:
        # Those that add to the sum hand no gradient down.
        ctx.set_materialize_grads(False)
        ctx.total = total  # type: ignore[attr-defined]
        return weight_OI.view_as(weight_OI)

    @staticmethod
    def backward(ctx: FunctionCtx, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        return ctx.total.take(grad_outputs[0]), None  # type: ignore[attr-defined]


class _SharedLinear(torch.autograd.Function):
    """Keeps its input."""

    @staticmethod
    def forward(ctx: FunctionCtx, x_RI: Tensor, weight_OI: Tensor, total: GradientSum, plus_RO: Tensor) -> Tensor:
        ctx.save_for_backward(x_RI, weight_OI)
        ctx.total = total  # type: ignore[attr-defined]
        return torch.addmm(plus_RO, x_RI, weight_OI.T)

    @staticmethod
    def backward(ctx: FunctionCtx, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad_RO,) = grad_outputs
        x_RI, weight_OI = ctx.saved_tensors  # type: ignore[attr-defined]
        ctx.total.add(grad_RO, x_RI)  # type: ignore[attr-defined]
        return grad_RO @ weight_OI, None, None, grad_RO


class RMSNorm(nn.Module):
    """`x * rsqrt(mean(x^2) + eps)` in fp32, cast back, times the weight."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        normed: Tensor = _RMSNorm.apply(x, self.weight, self.eps)
        return normed

    def then_linear(self, x_RH: Tensor, shared: Shared, plus_RP: Tensor) -> Tensor:
        """`plus + norm(x) @ weight.T`; the normalised rows are not kept."""
        projected: Tensor = _NormedLinear.apply(x_RH, self.weight, self.eps, shared.weight, shared.total, plus_RP)
        return projected


@compiled
def norm_forward(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Normalised rows, and the factor of each, `[.., 1]` in fp32 or wider."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    factor = torch.rsqrt(length.square() / x.shape[-1] + eps)
    return (wide * factor).to(x.dtype).mul_(weight), factor


@compiled
def norm_backward(grad: Tensor, x: Tensor, weight: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients by the rows and by the weight."""
    normed = x.to(factor.dtype) * factor
    wide = grad.to(factor.dtype)
    product = wide * normed
    grad_weight = product.flatten(0, -2).sum(0).to(weight.dtype)
    along = product.mul_(weight).mean(-1, keepdim=True)
    grad_x = torch.addcmul(wide * weight, normed, along, value=-1).mul_(factor)
    return grad_x.to(x.dtype), grad_weight


class _RMSNorm(torch.autograd.Function):
    """Keeps x and one number per row."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        normed, factor = norm_forward(x, weight, eps)
        ctx.save_for_backward(x, weight, factor)
        return normed

    @staticmethod
    def backward(ctx: FunctionCtx, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, factor = ctx.saved_tensors  # type: ignore[attr-defined]
        return *norm_backward(grad_outputs[0], x, weight, factor), None


class _NormedLinear(torch.autograd.Function):
    """Keeps x, which is kept anyway as the residual, and normalises it a second time."""

    @staticmethod
    def forward(  # noqa: PLR0917  autograd passes values one by one
        ctx: FunctionCtx,
        x_RH: Tensor,
        norm_H: Tensor,
        eps: float,
        weight_PH: Tensor,
        total: GradientSum,
        plus_RP: Tensor,
    ) -> Tensor:
        normed_RH, _ = norm_forward(x_RH, norm_H, eps)
        ctx.save_for_backward(x_RH, norm_H, weight_PH)
        ctx.eps, ctx.total = eps, total  # type: ignore[attr-defined]
        return torch.addmm(plus_RP, normed_RH, weight_PH.T)

    @staticmethod
    def backward(ctx: FunctionCtx, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad_RP,) = grad_outputs
        x_RH, norm_H, weight_PH = ctx.saved_tensors  # type: ignore[attr-defined]
        normed_RH, factor_R1 = norm_forward(x_RH, norm_H, ctx.eps)  # type: ignore[attr-defined]
        ctx.total.add(grad_RP, normed_RH)  # type: ignore[attr-defined]
        grad_x, grad_norm = norm_backward(grad_RP @ weight_PH, x_RH, norm_H, factor_R1)
        return grad_x, grad_norm, None, None, None, grad_RP


class MLP(nn.Module):
    """`x + down(silu(gate(y)) * up(y))` of normalised rows y."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def share(self) -> SharedMLP:
        """Lend the weights for one unroll."""
        both = torch.cat([self.gate_proj.weight, self.up_proj.weight])
        return SharedMLP(Shared.of(both), Shared.of(self.down_proj.weight))


@dataclass(frozen=True, eq=False)
class SharedMLP:
    """Weights of an MLP: gate and up as one, `[2 I, H]`, and down `[H, I]`."""

    gate_up: Shared
    down: Shared

    def plus(self, x_RH: Tensor, norm: RMSNorm) -> Tensor:
        """Normalise, two layers, and the rows themselves: `[R, H]` to `[R, H]`."""
        weights = (self.gate_up.weight, self.gate_up.total, self.down.weight, self.down.total)
        out: Tensor = _GatedMLP.apply(x_RH, norm.weight, norm.eps, *weights)
        return out


class _GatedMLP(torch.autograd.Function):
    """Keeps x, gate and up: less than half of what autograd would. The norm and the product of both are redone."""

    @staticmethod
    def forward(  # noqa: PLR0917  autograd passes values one by one
        ctx: FunctionCtx,
        x_RH: Tensor,
        norm_H: Tensor,
        eps: float,
        both_JH: Tensor,
        both_total: GradientSum,
        down_HI: Tensor,
        down_total: GradientSum,
    ) -> Tensor:
        y_RH, _ = norm_forward(x_RH, norm_H, eps)
        both_RJ = y_RH @ both_JH.T
        ctx.save_for_backward(x_RH, norm_H, both_RJ, both_JH, down_HI)
        ctx.eps, ctx.totals = eps, (both_total, down_total)  # type: ignore[attr-defined]
        gate_RI, up_RI = both_RJ.chunk(2, dim=1)
        return torch.addmm(x_RH, F.silu(gate_RI).mul_(up_RI), down_HI.T)

    @staticmethod
    def backward(ctx: FunctionCtx, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad_RH,) = grad_outputs
        x_RH, norm_H, both_RJ, both_JH, down_HI = ctx.saved_tensors  # type: ignore[attr-defined]
        both_total, down_total = ctx.totals  # type: ignore[attr-defined]
        gate_RI, up_RI = both_RJ.chunk(2, dim=1)
        grad_product_RI = grad_RH @ down_HI
        grad_both_RJ = torch.empty_like(both_RJ)
        grad_gate_RI, grad_up_RI = grad_both_RJ.chunk(2, dim=1)
        active_RI = F.silu(gate_RI)
        torch.mul(grad_product_RI, active_RI, out=grad_up_RI)
        down_total.add(grad_RH, active_RI.mul_(up_RI))
        torch.ops.aten.silu_backward(grad_product_RI.mul_(up_RI), gate_RI, grad_input=grad_gate_RI)
        y_RH, factor_R1 = norm_forward(x_RH, norm_H, ctx.eps)  # type: ignore[attr-defined]
        both_total.add(grad_both_RJ, y_RH)
        grad_x, grad_norm = norm_backward(grad_both_RJ @ both_JH, x_RH, norm_H, factor_R1)
        return grad_x.add_(grad_RH), grad_norm, None, None, None, None, None


def rotate(heads_Rhd: Tensor, cos_R1d: Tensor, sin_R1d: Tensor) -> Tensor:
    """Rotary position embedding, rotate-half. Both halves of a row's angles are the same."""
    turned: Tensor = _Rotation.apply(heads_Rhd, cos_R1d, sin_R1d)
    return turned


class _Rotation(torch.autograd.Function):
    """Keeps the angles alone: the backward turns the other way."""

    @staticmethod
    def forward(ctx: FunctionCtx, heads_Rhd: Tensor, cos_R1d: Tensor, sin_R1d: Tensor) -> Tensor:
        ctx.save_for_backward(cos_R1d, sin_R1d)
        return turn(heads_Rhd, cos_R1d, sin_R1d)

    @staticmethod
    def backward(ctx: FunctionCtx, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad_Rhd,) = grad_outputs
        cos_R1d, sin_R1d = ctx.saved_tensors  # type: ignore[attr-defined]
        return turn(grad_Rhd, cos_R1d, -sin_R1d), None, None


@compiled
def turn(heads_Rhd: Tensor, cos_R1d: Tensor, sin_R1d: Tensor) -> Tensor:
    """Turn every pair (i, i + d/2) of a head by its angle."""
    turned = heads_Rhd * cos_R1d
    low, high = heads_Rhd.to(turned.dtype).chunk(2, dim=-1)
    sin_low, sin_high = sin_R1d.chunk(2, dim=-1)
    to_low, to_high = turned.chunk(2, dim=-1)
    to_low.addcmul_(high, sin_low, value=-1)
    to_high.addcmul_(low, sin_high)
    return turned.to(heads_Rhd.dtype)
