"""speculators 0.9.0 as it trains: its model, loss, mask, optimizers and schedule at their defaults.

So: Muon for matrices and AdamW for the rest, a linear schedule, no decay of later steps, and a frozen head with the
target's own rows. Step and optimizer compute in float32, where bfloat16 would be slower and coarser. Documents of a
step are one packed row.
"""

from __future__ import annotations

import torch
from speculators.losses import resolve_loss_config
from speculators.models.eagle3 import Eagle3DraftModel
from speculators.train.config.schema import LossArgs, OptimizerArgs
from speculators.train.optimizers import build_optimizers
from torch import Tensor, nn
from torch.optim import _muon
from transformers import get_linear_schedule_with_warmup

from recipe import Plan
from speculators_peer import CLIP, draft_config, packed_row, renamed

WARMUP_SHARE = 100
"""Of so many steps one has a rising rate."""


def orthogonal(gradient: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float) -> Tensor:
    """What Muon makes of a gradient, in float32: products in bfloat16 take most of a step on a CPU, and are coarser."""
    first, second, third = coefficients
    wide = gradient.T if gradient.shape[0] > gradient.shape[1] else gradient
    wide = wide / wide.norm().clamp(min=eps)
    for _ in range(steps):
        gram = wide @ wide.T
        wide = first * wide + (second * gram + third * gram @ gram) @ wide
    return wide.T if gradient.shape[0] > gradient.shape[1] else wide


class Learner:
    """One draft."""

    def __init__(self, plan: Plan, start: dict[str, Tensor], target: dict[str, Tensor]) -> None:
        recipe = plan.recipe
        _muon._zeropower_via_newtonschulz = orthogonal
        self.model = Eagle3DraftModel(draft_config(plan.shape))
        weights = {f"weight.{name}": tensor for name, tensor in start.items()}
        tables = renamed({**weights, "embedding": target["embedding"], "head": target["head"]}, self.model)
        # Its head starts as the target's rows, and it norms the target's states itself.
        tables |= {"lm_head.weight": tables["verifier_lm_head.weight"].clone(), "verifier_norm.weight": target["norm"]}
        self.model.load_state_dict(tables, strict=True)
        rates = {"lr": recipe.learning_rate, "muon_lr": recipe.learning_rate}
        self.optimizers = build_optimizers(self.model, OptimizerArgs().model_copy(update=rates))
        self.schedules = [
            get_linear_schedule_with_warmup(optimizer, recipe.steps // WARMUP_SHARE, recipe.steps)
            for optimizer in self.optimizers
        ]
        self.norm = target["norm"]
        self.ttt_steps, self.decay = recipe.ttt_steps, LossArgs().ttt_step_loss_decay
        self.loss = resolve_loss_config("kl_div", "eager")

    @property
    def head(self) -> nn.Module:
        """What makes its logits, once in every step of the unroll."""
        return self.model.lm_head

    def forward(self, documents: list[dict[str, Tensor]]) -> Tensor:
        """The loss of these documents."""
        found = {}
        for number, document in enumerate(documents):
            # States are stored behind the final norm; without its weight they are of unit size, as it would make them.
            given = {**document, "last": document["last"] / self.norm}
            found |= {f"{name}.{number}": tensor for name, tensor in given.items()}
        _, loss, _ = self.model(
            **packed_row(found, mask_shift=0), ttt_steps=self.ttt_steps, ttt_step_loss_decay=self.decay,
            loss_config=self.loss,
        )  # fmt: skip
        return loss

    def step(self, documents: list[dict[str, Tensor]]) -> float:
        """One optimizer step. Returns its loss."""
        loss = self.forward(documents)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        for optimizer, schedule in zip(self.optimizers, self.schedules, strict=True):
            optimizer.step()
            schedule.step()
        return float(loss)

    def state(self) -> dict[str, Tensor]:
        """All tensors under its names."""
        return dict(self.model.state_dict())


def build(plan: Plan, start: dict[str, Tensor], target: dict[str, Tensor]) -> Learner:
    """A draft with its first weights."""
    return Learner(plan, start, target)
