"""When a training ends before its last epoch: decided from the held-out scores alone, which every checkpoint holds.

So a resumed training decides as an undisturbed one, and all processes decide alike.
"""

from __future__ import annotations

from collections.abc import Sequence

from draftyard_api.spec import EarlyStop
from draftyard_trainer.checkpoint import Score


def evaluations_without_improvement(scores: Sequence[Score], min_delta: float) -> int:
    """How many of the last scores are not more than `min_delta` above the best before them.

    What is compared with moves only on an improvement: many small steps up that together pass `min_delta` are one.
    """
    waited, best = 0, -float("inf")
    for score in scores:
        if score.tau_sim > best + min_delta:
            waited, best = 0, score.tau_sim
        else:
            waited += 1
    return waited


def is_over(scores: Sequence[Score], rule: EarlyStop | None, first_epoch_steps: int) -> bool:
    """Whether the last evaluation ends the training. Never within the first epoch, whose end is the first chance."""
    if rule is None or not scores or scores[-1].step < first_epoch_steps:
        return False
    return evaluations_without_improvement(scores, rule.min_delta) >= rule.patience


def explain(scores: Sequence[Score], rule: EarlyStop, step: int) -> str:
    """The decision in words."""
    waited = evaluations_without_improvement(scores, rule.min_delta)
    return (
        f"stopped early at step {step}: no improvement above {rule.min_delta:g} in {waited} evaluations "
        f"(train.earlyStop)"
    )
