"""The lines of `metrics.jsonl` as columns, thin enough to draw."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]
"""NaN where a line has no number: of a step that was skipped, or of an older version."""

MAX_POINTS = 600
"""Of one line on a plot: more than a screen has columns for."""
WINDOWS = 40
"""A smoothed line is a mean over a fortieth of the steps."""


@dataclass(frozen=True, eq=False)
class Curve:
    """Columns by name, one row a step; empty before the first step."""

    steps: Values
    columns: Mapping[str, Values] = field(default_factory=dict)
    lists: Mapping[str, Values] = field(default_factory=dict)
    """`[steps, T]`: a value for each step of the unroll."""
    broken_lines: int = 0
    """Lines that are no line of a curve."""

    def __len__(self) -> int:
        return len(self.steps)

    def column(self, name: str) -> Values:
        """A number for each step."""
        return self.columns.get(name, np.full(len(self), np.nan))

    def where(self, name: str) -> Values:
        """Steps whose column is true."""
        return self.steps[np.nan_to_num(self.column(name)) > 0]


NUMBERS = ("loss", "learningRate", "gradNorm", "clipped", "skipped", "spike", "tokens", "seconds", "dataSeconds",
           "tauSim", "onPolicy", "epoch")  # fmt: skip
LISTS = ("accuracy", "prefixAccuracy", "divergence", "acceptance")


def read_curve(text: str) -> Curve:
    """The curve of a run. A line that is torn or broken is counted and left out."""
    lines, broken = [], 0
    for line in text.splitlines():
        try:
            found = json.loads(line)
            lines.append((float(found["step"]), found))
        except (ValueError, KeyError, TypeError):
            broken += 1
    if not lines:
        return Curve(np.zeros(0), broken_lines=broken)
    found = [line for _, line in lines]
    return Curve(
        steps=np.array([step for step, _ in lines]),
        columns={name: np.array([number(line.get(name)) for line in found]) for name in NUMBERS},
        lists={name: rectangle([line.get(name) for line in found]) for name in LISTS},
        broken_lines=broken,
    )


def number(value: Any) -> float:
    """A value of a line as a number; texts such as "NaN" and "inf" are none that could be drawn."""
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else math.nan


def rectangle(rows: Sequence[Any]) -> Values:
    """`[steps, T]` of lists that may be absent."""
    lists = [row if isinstance(row, list) else [] for row in rows]
    width = max(map(len, lists))
    return np.array([[number(value) for value in row] + [math.nan] * (width - len(row)) for row in lists])


# -- What is drawn ----------------------------------------------------------------------------------


def thin(steps: Values, values: Values) -> tuple[list[float], list[float | None]]:
    """At most `MAX_POINTS` points: of each stretch of steps its lowest and its highest value, so that no peak is lost.

    A step without a number is a gap.
    """
    stretches = MAX_POINTS // 2
    if len(steps) <= MAX_POINTS:
        kept: Iterable[int] = range(len(steps))
    else:
        kept = sorted({int(place) for part in np.array_split(np.arange(len(steps)), stretches)
                       for place in extremes(part, values)})  # fmt: skip
    places = list(kept)
    return [float(steps[place]) for place in places], [drawable(values[place]) for place in places]


def extremes(part: npt.NDArray[np.int64], values: Values) -> Iterable[np.int64]:
    """Places of the lowest and of the highest value; the first place where there is no value."""
    finite = part[np.isfinite(values[part])]
    if not len(finite):
        return part[:1]
    return (finite[values[finite].argmin()], finite[values[finite].argmax()])


def drawable(value: float, digits: int = 5) -> float | None:
    """A number with few digits, for a small file; None for none."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


def smooth(values: Values) -> Values:
    """Means over a window around each step; steps without a number do not count, and have a value too."""
    window = max(1, len(values) // WINDOWS)
    if window == 1:
        return values
    finite = np.isfinite(values)
    sums = np.concatenate([[0.0], np.where(finite, values, 0.0).cumsum()])
    counts = np.concatenate([[0], finite.cumsum()])
    middle = np.arange(len(values))
    first, end = np.maximum(middle - window // 2, 0), np.minimum(middle + (window + 1) // 2, len(values))
    count = counts[end] - counts[first]
    return np.where(count > 0, (sums[end] - sums[first]) / np.maximum(count, 1), np.nan)
