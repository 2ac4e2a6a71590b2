"""Layers whose backward is written out: they keep their inputs and redo what is cheap, where autograd keeps every step.

An unroll holds the activations of all its steps at once, so what a layer keeps per row is what decides memory.
"""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

# R rows, H width, I width inside the MLP, h heads of size d

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

    def then_linear(self, x_RH: Tensor, weight_PH: Tensor, plus_RP: Tensor) -> Tensor:
        """`plus + norm(x) @ weight.T`; the normalised rows are not kept."""
        projected: Tensor = _NormedLinear.apply(x_RH, self.weight, self.eps, weight_PH, plus_RP)
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
    def forward(
        ctx: FunctionCtx, x_RH: Tensor, norm_H: Tensor, eps: float, weight_PH: Tensor, plus_RP: Tensor
    ) -> Tensor:
        normed_RH, _ = norm_forward(x_RH, norm_H, eps)
        ctx.save_for_backward(x_RH, norm_H, weight_PH)
        ctx.eps = eps  # type: ignore[attr-defined]
        return torch.addmm(plus_RP, normed_RH, weight_PH.T)

    @staticmethod
    def backward(ctx: FunctionCtx, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad_RP,) = grad_outputs
        x_RH, norm_H, weight_PH = ctx.saved_tensors  # type: ignore[attr-defined]
        normed_RH, factor_R1 = norm_forward(x_RH, norm_H, ctx.eps)  # type: ignore[attr-defined]
        grad_x, grad_norm = norm_backward(grad_RP @ weight_PH, x_RH, norm_H, factor_R1)
        return grad_x, grad_norm, None, grad_RP.T @ normed_RH, grad_RP


class MLP(nn.Module):
    """`down(silu(gate(y)) * up(y))` of normalised rows y."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x_RH: Tensor, norm: RMSNorm) -> Tensor:
        """Normalise, then two layers: `[R, H]` to `[R, H]`."""
        weights = (self.gate_proj.weight, self.up_proj.weight, self.down_proj.weight)
        down: Tensor = _GatedMLP.apply(x_RH, norm.weight, norm.eps, *weights)
        return down


class _GatedMLP(torch.autograd.Function):
    """Keeps x, gate and up: less than half of what autograd would. The norm and the product of both are redone."""

    @staticmethod
    def forward(  # noqa: PLR0917  autograd passes values one by one
        ctx: FunctionCtx, x_RH: Tensor, norm_H: Tensor, eps: float, gate_IH: Tensor, up_IH: Tensor, down_HI: Tensor
    ) -> Tensor:
        y_RH, _ = norm_forward(x_RH, norm_H, eps)
        gate_RI, up_RI = y_RH @ gate_IH.T, y_RH @ up_IH.T
        ctx.save_for_backward(x_RH, norm_H, gate_RI, up_RI, gate_IH, up_IH, down_HI)
        ctx.eps = eps  # type: ignore[attr-defined]
        return F.silu(gate_RI).mul_(up_RI) @ down_HI.T

    @staticmethod
    def backward(ctx: FunctionCtx, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad_RH,) = grad_outputs
        x_RH, norm_H, gate_RI, up_RI, gate_IH, up_IH, down_HI = ctx.saved_tensors  # type: ignore[attr-defined]
        grad_product_RI = grad_RH @ down_HI
        active_RI = F.silu(gate_RI)
        grad_up_RI = grad_product_RI * active_RI
        grad_down = grad_RH.T @ active_RI.mul_(up_RI)
        grad_gate_RI = torch.ops.aten.silu_backward(grad_product_RI.mul_(up_RI), gate_RI)
        y_RH, factor_R1 = norm_forward(x_RH, norm_H, ctx.eps)  # type: ignore[attr-defined]
        grad_y = torch.addmm(grad_gate_RI @ gate_IH, grad_up_RI, up_IH)
        grad_x, grad_norm = norm_backward(grad_y, x_RH, norm_H, factor_R1)
        return grad_x, grad_norm, None, grad_gate_RI.T @ y_RH, grad_up_RI.T @ y_RH, grad_down


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
