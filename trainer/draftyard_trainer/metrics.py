"""Sums and counts behind every number that training reports; they are added up before anything is divided."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

# T steps of the unroll


@dataclass(frozen=True, eq=False)
class MetricSums:
    """fp64 sums per step, `[T]`, over supervised pairs (t, k); `labels` and `on_policy` over label rows, `[1]`."""

    gated: Tensor
    """Supervised pairs."""
    asked: Tensor
    """Those that were run: all, unless rows leave the unroll when their chain is rejected."""
    hits: Tensor
    """The draft's first choice is the target's."""
    joint: Tensor
    """... and so were all earlier ones of the same row."""
    in_vocab: Tensor
    """The target's choice is in the draft vocabulary."""
    ce: Tensor
    """Cross-entropy of the in-vocabulary pairs, nats."""
    entropy: Tensor
    """Entropy of their labels, nats: cross-entropy minus entropy is the divergence."""
    accept: Tensor
    """Probability of acceptance when sampling at temperature 1."""
    loss: Tensor
    """Contribution to the loss, as weighted and normalised for the optimizer step."""
    labels: Tensor
    """Label rows whose next token is known."""
    on_policy: Tensor
    """... and is the target's own choice."""

    @classmethod
    def zeros(cls, steps: int, device: torch.device | str = "cpu") -> MetricSums:
        """Nothing counted yet."""
        wide = {
            entry.name: torch.zeros(steps, dtype=torch.float64, device=device)
            for entry in fields(cls)
            if entry.name not in ("labels", "on_policy")
        }
        single = {name: torch.zeros(1, dtype=torch.float64, device=device) for name in ("labels", "on_policy")}
        return cls(**wide, **single)

    def __add__(self, other: MetricSums) -> MetricSums:
        """Sums of both."""
        return MetricSums(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    def to(self, device: torch.device | str) -> MetricSums:
        """The same sums elsewhere."""
        return MetricSums(**{entry.name: getattr(self, entry.name).to(device) for entry in fields(self)})

    def flat(self) -> Tensor:
        """All sums as one vector, for an all-reduce."""
        return torch.cat([getattr(self, entry.name) for entry in fields(self)])

    def from_flat(self, vector: Tensor) -> MetricSums:
        """The inverse of `flat`, with this value's sizes."""
        parts = vector.split([len(getattr(self, entry.name)) for entry in fields(self)])
        return MetricSums(**{entry.name: part for entry, part in zip(fields(self), parts, strict=True)})

    def accuracy(self) -> Tensor:
        """`[T]`: share of the pairs of each step that hit."""
        return self.hits / self.asked.clamp(min=1)

    def prefix_accuracy(self) -> Tensor:
        """`[T]`: share of the supervised pairs that hit, with all earlier steps of their row; one not run is none."""
        return self.joint / self.gated.clamp(min=1)

    def divergence(self) -> Tensor:
        """`[T]`: mean KL divergence of the in-vocabulary pairs, nats."""
        return (self.ce - self.entropy) / self.in_vocab.clamp(min=1)

    def acceptance(self) -> Tensor:
        """`[T]`: expected acceptance at temperature 1."""
        return self.accept / self.asked.clamp(min=1)

    def tau_sim(self, draft_tokens: int) -> float:
        """Simulated acceptance length with K = `draft_tokens`: 1 plus the joint accuracies of the first K steps."""
        return 1.0 + float(self.prefix_accuracy()[:draft_tokens].sum())

    def tau_marginal(self, draft_tokens: int) -> float:
        """The same from products of step accuracies; it ignores that hits go together. For comparison only."""
        return 1.0 + float(self.accuracy()[:draft_tokens].cumprod(0).sum())

    def on_policy_share(self) -> float:
        """Share of the label rows whose next token the target itself would have chosen."""
        return float(self.on_policy / self.labels.clamp(min=1))

    def total_loss(self) -> float:
        """The loss of the optimizer step."""
        return float(self.loss.sum())
