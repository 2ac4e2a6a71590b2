"""`metrics.jsonl`: a line per optimizer step, and what stands out in it.

A resumed run drops what came after its checkpoint, so the curve is one, and every row of an epoch is in it once.
"""

from __future__ import annotations

import json
import math
import statistics
import time
from collections import deque
from collections.abc import Collection
from typing import Any

import torch

from draftyard_api.names import METRICS, train_path
from draftyard_trainer.checkpoint import CheckpointManifest
from draftyard_trainer.fence import Fence
from draftyard_trainer.loop import StepReport
from draftyard_trainer.order import Step

SECONDS_BETWEEN_WRITES = 10.0
SPIKE_STEPS = 64
"""Losses that a new one is compared with."""
MIN_SPIKE_STEPS = 16
"""Below that many, nothing is said: at the start the loss falls by itself."""
SPIKE_DEVIATIONS = 8.0
"""A loss so many median deviations above the median is a spike: batches differ by two or three."""
LEAST_DEVIATION = 0.01
"""As a share of the median: a curve that is almost flat has no spikes of a thousandth."""


class Journal:
    """The lines of one training, in memory and, now and then, in the workspace."""

    def __init__(self, fence: Fence, run: str, lines: list[str]) -> None:
        self.lines = lines
        self._fence = fence
        self._name = f"{train_path(run)}/{METRICS}"
        self._written = -math.inf
        found = [json.loads(line) for line in lines]
        self._losses = deque((line["loss"] for line in found if is_usual(line)), maxlen=SPIKE_STEPS)
        """What a new loss is compared with."""
        self.spikes = sum(line.get("spike", False) for line in found)
        """Steps whose loss stands out."""

    @classmethod
    def open(cls, fence: Fence, run: str, steps: int) -> Journal:
        """Keep the lines of the first `steps` steps: the others are gone at once, before a tracker reads them."""
        name = f"{train_path(run)}/{METRICS}"
        lines = fence.store.read(name).decode().splitlines() if fence.store.exists(name) else []
        kept = [line for line in lines if json.loads(line)["step"] <= steps]
        if len(kept) < len(lines):
            fence.store.publish(name, "".join(f"{line}\n" for line in kept).encode())
        return cls(fence, run, kept)

    def add(self, line: dict[str, Any]) -> bool:
        """Add a line. Returns whether its loss is a spike, which changes nothing but the line."""
        line["spike"] = is_spike(line["loss"], self._losses)
        self.spikes += int(line["spike"])
        if is_usual(line):
            self._losses.append(line["loss"])
        self.lines.append(json.dumps(line))
        return bool(line["spike"])

    @property
    def is_due(self) -> bool:
        """Whether it is time to write."""
        return time.monotonic() - self._written > SECONDS_BETWEEN_WRITES

    def write(self, count: int) -> None:
        """Write the first `count` lines, whole. Raises Failure(FENCED)."""
        self._fence.check()
        self._fence.store.publish(self._name, "".join(f"{line}\n" for line in self.lines[:count]).encode())
        self._written = time.monotonic()

    def last(self, field: str) -> str:
        """A number of the last line with four digits; empty without a line, or where it lacks the field."""
        value = json.loads(self.lines[-1]).get(field) if self.lines else None
        return "" if value is None else f"{value:.4f}"


def is_usual(line: dict[str, Any]) -> bool:
    """Whether a line's loss tells what to expect: one that is not finite, a text, does not, nor does a spike."""
    return isinstance(line["loss"], float) and not line.get("spike", False)


def is_spike(loss: float | str, before: Collection[float]) -> bool:
    """Whether a finite loss is far above those before it: medians, so that one spike does not hide the next."""
    if isinstance(loss, str) or len(before) < MIN_SPIKE_STEPS:
        return False
    middle = statistics.median(before)
    deviation = statistics.median(abs(value - middle) for value in before)
    return loss > middle + SPIKE_DEVIATIONS * max(deviation, LEAST_DEVIATION * middle)


def journal_line(
    step: Step, state: CheckpointManifest, report: StepReport, seconds: float, draft_tokens: int
) -> dict[str, Any]:
    """One line: plain numbers, a list per unroll step, acceptance lengths at K = draftTokens."""

    def rounded(values: torch.Tensor) -> list[float | str]:
        return [legal(round(value, 6)) for value in values.tolist()]

    sums = report.sums
    return {
        "step": state.step,
        "time": round(time.time(), 3),
        "epoch": state.epoch,
        "rows": [step.epoch, step.first_row, step.next_row],
        "documents": report.trained.documents,
        "documentHash": report.trained.hash,
        "loss": legal(sums.total_loss()),
        "learningRate": report.update.learning_rate,
        "gradNorm": legal(report.update.grad_norm),
        "clipped": report.update.clipped,
        "skipped": report.update.skipped,
        "tokens": report.tokens,
        "seconds": round(seconds, 4),
        "dataSeconds": round(report.waited, 4),
        "tauSim": round(sums.tau_sim(draft_tokens), 6),
        "tauMarginal": round(sums.tau_marginal(draft_tokens), 6),
        "accuracy": rounded(sums.accuracy()),
        "prefixAccuracy": rounded(sums.prefix_accuracy()),
        "divergence": rounded(sums.divergence()),
        "acceptance": rounded(sums.acceptance()),
        "onPolicy": round(sums.on_policy_share(), 6),
    }


def legal(value: float) -> float | str:
    """A number as JSON has it: NaN and infinities, of a step that is skipped, are texts."""
    return value if math.isfinite(value) else str(value)
