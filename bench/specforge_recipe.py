"""SpecForge 0.2.0 as it trains: its model, loss, mask, optimizer and schedule at their defaults.

Told apart from those are the steps of the unroll (its default is 7) and the peak of the learning rate (1e-4, meant for
runs of 800,000 steps): both as for all. Documents of a step are one padded batch.
"""

from __future__ import annotations

import torch
from specforge.algorithms.eagle3 import model as eagle3
from specforge.optimizer import BF16Optimizer
from specforge.training.strategies.base import Eagle3TrainStrategy
from torch import Tensor, nn

from recipe import Plan
from specforge_peer import ReferenceLoss, loaded, padded_batch, step_losses

DECAY = Eagle3TrainStrategy.__init__.__kwdefaults__["ploss_decay"]


class Learner:
    """One draft."""

    def __init__(self, plan: Plan, start: dict[str, Tensor], target: dict[str, Tensor]) -> None:
        eagle3.LogSoftmaxLoss = ReferenceLoss
        self.draft = loaded(plan.shape, start, target["embedding"])
        recipe = plan.recipe
        self.model = eagle3.OnlineEagle3Model(self.draft, length=recipe.ttt_steps, attention_backend="sdpa")
        self.optimizer = BF16Optimizer(self.draft, lr=recipe.learning_rate, total_steps=recipe.steps)
        self.target_head = target["head"]

    @property
    def head(self) -> nn.Module:
        """What makes its logits, once in every step of the unroll."""
        return self.draft.lm_head

    def forward(self, documents: list[dict[str, Tensor]]) -> Tensor:
        """The loss of these documents."""
        batch = padded_batch(numbered(documents))
        losses = step_losses(self.model, batch, self.target_head)
        return torch.stack([DECAY**step * loss for step, loss in enumerate(losses)]).sum()

    def step(self, documents: list[dict[str, Tensor]]) -> float:
        """One optimizer step. Returns its loss."""
        loss = self.forward(documents)
        loss.backward()
        self.optimizer.step()
        return float(loss)

    def state(self) -> dict[str, Tensor]:
        """All tensors under its names."""
        return dict(self.draft.state_dict())


def numbered(documents: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """As `padded_batch` reads them; the last token of a document carries no loss, as in its own data code."""
    found = {}
    for number, document in enumerate(documents):
        start, length = document["spans"].T
        ends = (start + length).clamp(max=len(document["tokens"]) - 1)
        spans = torch.stack([start, ends - start], dim=1)
        found |= {f"{name}.{number}": tensor for name, tensor in {**document, "spans": spans}.items()}
    return found


def build(plan: Plan, start: dict[str, Tensor], target: dict[str, Tensor]) -> Learner:
    """A draft with its first weights."""
    return Learner(plan, start, target)
