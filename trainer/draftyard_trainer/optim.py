"""AdamW on fp32 masters, a schedule in closed form, clipping, and what happens to a gradient that is not finite."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.reasons import Reason
from draftyard_api.spec import Train

BETAS = (0.9, 0.95)
EPS = 1e-8
MIN_RATIO = 0.0
"""Learning rate at the very end, as a share of the peak."""
MAX_SKIPPED_IN_A_ROW = 10


def learning_rate(step: int, total_steps: int, config: Train) -> float:
    """Rate of step `step`, from 0: linear warm-up, then half a cosine. In closed form, so a resumed run agrees."""
    warmup = int(config.warmup_ratio * total_steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(total_steps - warmup, 1)
    return config.learning_rate * (MIN_RATIO + (1 - MIN_RATIO) * 0.5 * (1 + math.cos(math.pi * done)))


@dataclass(frozen=True)
class Update:
    """What one optimizer step did."""

    learning_rate: float
    grad_norm: float
    clipped: bool
    skipped: bool


class Optimizer:
    """Owns the fp32 masters. Where the model is fp32 they are its parameters, elsewhere a copy that it follows."""

    def __init__(self, parameters: Sequence[nn.Parameter], config: Train, total_steps: int) -> None:
        self._parameters = list(parameters)
        self._config = config
        self._total_steps = total_steps
        self.masters = [
            parameter if parameter.dtype == torch.float32 else nn.Parameter(parameter.detach().float())
            for parameter in self._parameters
        ]
        self._adam = torch.optim.AdamW(
            self.masters, lr=config.learning_rate, betas=BETAS, eps=EPS, weight_decay=config.weight_decay, fused=True
        )
        self.skipped = 0
        self.clipped = 0
        self.skipped_in_a_row = 0

    def collect(self) -> None:
        """After each micro-batch: move gradients to the masters, where they add up in fp32."""
        for parameter, master in zip(self._parameters, self.masters, strict=True):
            if master is not parameter and parameter.grad is not None:
                wide = parameter.grad.float()
                master.grad = wide if master.grad is None else master.grad.add_(wide)
                parameter.grad = None

    def gradients(self) -> list[Tensor]:
        """The masters' gradients, zeros where nothing flowed: every process has the same shapes to sum."""
        for master in self.masters:
            if master.grad is None:
                master.grad = torch.zeros_like(master)
        return [master.grad for master in self.masters if master.grad is not None]

    def step(self, index: int) -> Update:
        """Clip and update, or skip a gradient that is not finite. Raises Failure(DIVERGED) at the tenth in a row."""
        rate = learning_rate(index, self._total_steps, self._config)
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(grad) for grad in self.gradients()]))
        if not bool(torch.isfinite(norm)):
            self._skip(index)
            return Update(rate, float(norm), clipped=False, skipped=True)
        self.skipped_in_a_row = 0
        scale = float(self._config.grad_clip / (norm + 1e-6))
        clipped = scale < 1.0
        if clipped:
            self.clipped += 1
            torch._foreach_mul_(self.gradients(), scale)
        for group in self._adam.param_groups:
            group["lr"] = rate
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)
        self._follow()
        return Update(rate, float(norm), clipped=clipped, skipped=False)

    def _skip(self, index: int) -> None:
        self._adam.zero_grad(set_to_none=True)
        self.skipped += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            message = (
                f"train: the gradient is not finite in {MAX_SKIPPED_IN_A_ROW} steps in a row, up to step {index}; "
                "lower train.learningRate, or check the hidden states"
            )
            raise Failure(ExitCode.DIVERGED, Reason.DIVERGED, message)

    @torch.no_grad()
    def _follow(self) -> None:
        for parameter, master in zip(self._parameters, self.masters, strict=True):
            if master is not parameter:
                parameter.copy_(master)

    # -- Its state, as tensors with names ---------------------------------------------------------

    def moments(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Both moments of every parameter, fp32, as `exp_avg.<name>` and `exp_avg_sq.<name>`, and its step count."""
        found: dict[str, Tensor] = {}
        for name, master in zip(names, self.masters, strict=True):
            state = self._adam.state.get(master, {})
            for moment in ("exp_avg", "exp_avg_sq"):
                found[f"{moment}.{name}"] = state.get(moment, torch.zeros_like(master))
            found[f"step.{name}"] = torch.as_tensor(state.get("step", 0.0), dtype=torch.float32).reshape(1)
        return found

    @torch.no_grad()
    def restore(self, names: Sequence[str], masters: dict[str, Tensor], moments: dict[str, Tensor]) -> None:
        """Take over a saved state. Raises KeyError for a missing tensor."""
        for name, master in zip(names, self.masters, strict=True):
            master.copy_(masters[name])
            self._adam.state[master] = {
                "step": moments[f"step.{name}"].to(master.device).reshape(()).clone(),
                "exp_avg": moments[f"exp_avg.{name}"].to(master.device).clone(),
                "exp_avg_sq": moments[f"exp_avg_sq.{name}"].to(master.device).clone(),
            }
        self._follow()
