"""SpecForge 0.2.0 as it trains: its model, loss, mask, optimizer and schedule at their defaults.

Told apart from those are the steps of the unroll (its default is 7) and the peak of the learning rate (1e-4, meant for
runs of 800,000 steps): both as for all. Documents of a step are one padded batch.
"""

from __future__ import annotations

import torch
from specforge.algorithms.eagle3 import model as eagle3
from specforge.modeling.draft.llama3_eagle import LlamaForCausalLMEagle3
from specforge.optimizer import BF16Optimizer
from specforge.training.strategies.base import Eagle3TrainStrategy
from specforge.utils import padding
from torch import Tensor, nn

from recipe import Plan
from specforge_peer import ReferenceLoss, draft_config, padded_batch

DECAY = Eagle3TrainStrategy.__init__.__kwdefaults__["ploss_decay"]


class Learner:
    """One draft."""

    def __init__(self, plan: Plan, start: dict[str, Tensor], target: dict[str, Tensor]) -> None:
        eagle3.LogSoftmaxLoss = ReferenceLoss
        self.draft = LlamaForCausalLMEagle3(draft_config(plan.shape), attention_backend="sdpa").float()
        missing, unexpected = self.draft.load_state_dict({**start, "embed_tokens.weight": target["embedding"]}, False)
        assert not unexpected, unexpected
        assert all("rotary" in name for name in missing), missing
        self.draft.embed_tokens.weight.requires_grad_(False)
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
        losses, *_ = self.model(
            input_ids=padding(batch["tokens"], left=False),
            attention_mask=batch["present"],
            target=None,
            loss_mask=batch["mask"][..., None],
            hidden_states=batch["aux"],
            target_hidden_for_compact=padding(batch["last"], left=False),
            target_head_weight=self.target_head,
        )
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
