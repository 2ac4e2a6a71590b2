"""What rounding did to labels and states, as sums that add up. Who looks at stored states reads it without torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Self, TypeVar

from pydantic import Field, model_validator

from draftyard_api.schema import Codec, Model

Number = TypeVar("Number", int, float)

BINS_PER_DECADE, SMALLEST, LARGEST = 10, -9, 2
"""Divergences are counted in bins from 1e-9 to 100 nats: counts of parts add up, and a bin is a quarter wide."""
NUM_BINS = (LARGEST - SMALLEST) * BINS_PER_DECADE
STANDARD_ERRORS = 3.0
"""A miss that chance explains is none."""


@dataclass(frozen=True)
class Bounds:
    """What a codec promises."""

    error: float
    """Largest error of a layer, relative to its whitened size."""
    divergence: float = 1e-3
    """Largest mean divergence of the labels, nats."""
    agreement: float = 0.975
    """Smallest share of labels whose most likely token stays."""


BOUNDS: Mapping[Codec, Bounds] = {"balanced": Bounds(error=0.015), "compact": Bounds(error=0.05)}


Count = Annotated[int, Field(ge=0)]
Size = Annotated[float, Field(ge=0)]


class Fidelity(Model):
    """Sums over measured rows; those of parts add up to those of a shard."""

    rows: Count = 0
    """Label rows."""
    divergence: Size = 0.0
    """Sum of KL(labels of the true states, labels of the stored ones), nats, over the whole vocabulary."""
    divergence_squared: Size = 0.0
    """Sum of its squares."""
    largest: Size = 0.0
    """Largest of them."""
    histogram: Annotated[tuple[Count, ...], Field(min_length=NUM_BINS, max_length=NUM_BINS)] = (0,) * NUM_BINS
    """How many lie in each bin."""
    agreeing: Count = 0
    """Rows whose most likely token stays."""
    errors: tuple[Size, ...] = ()
    """Sum of squared differences of each captured layer and of the final state, whitened."""
    sizes: tuple[Size, ...] = ()
    """Sum of squares of the values."""

    @model_validator(mode="after")
    def fits(self) -> Self:
        """An error has a size."""
        if len(self.errors) != len(self.sizes):
            raise ValueError(f"{len(self.errors)} errors and {len(self.sizes)} sizes")
        return self

    def __add__(self, other: Self) -> Self:
        """Of both."""
        if not other.sizes:
            return self
        if not self.sizes:
            return other
        return type(self)(
            rows=self.rows + other.rows,
            divergence=self.divergence + other.divergence,
            divergence_squared=self.divergence_squared + other.divergence_squared,
            largest=max(self.largest, other.largest),
            histogram=added(self.histogram, other.histogram),
            agreeing=self.agreeing + other.agreeing,
            errors=added(self.errors, other.errors),
            sizes=added(self.sizes, other.sizes),
        )

    @property
    def mean(self) -> float:
        """Mean divergence, nats."""
        return self.divergence / max(self.rows, 1)

    @property
    def p99(self) -> float:
        """What 99 of 100 divergences stay below, nats: the upper border of a bin."""
        left = math.ceil(0.99 * self.rows)
        for place, count in enumerate(self.histogram):
            left -= count
            if left <= 0:
                return 10 ** (SMALLEST + (place + 1) / BINS_PER_DECADE)
        return 10.0**LARGEST

    @property
    def agreement(self) -> float:
        """Share of rows whose most likely token stays."""
        return self.agreeing / max(self.rows, 1)

    @property
    def relative_errors(self) -> tuple[float, ...]:
        """Of each captured layer, and of the final state."""
        pairs = zip(self.errors, self.sizes, strict=True)
        return tuple(math.sqrt(error / size) if size else 0.0 for error, size in pairs)

    def problems(self, bounds: Bounds) -> list[str]:
        """What misses its bound by more than chance, in words."""
        found = []
        chance = STANDARD_ERRORS / math.sqrt(max(self.rows, 1))
        spread = math.sqrt(max(self.divergence_squared / max(self.rows, 1) - self.mean**2, 0.0))
        if self.mean - chance * spread > bounds.divergence:
            found.append(f"labels move by {self.mean:.2g} nats on average (at most {bounds.divergence:g})")
        if self.rows and self.agreement + chance * math.sqrt(self.agreement * (1 - self.agreement)) < bounds.agreement:
            found.append(f"{self.agreement:.1%} of the most likely tokens stay (at least {bounds.agreement:.1%})")
        if self.errors and max(self.relative_errors) > bounds.error:
            found.append(f"states are off by {max(self.relative_errors):.3g} of their size (at most {bounds.error:g})")
        return found


def total(measured: Iterable[Fidelity | None]) -> Fidelity:
    """Of all parts."""
    return sum((each for each in measured if each is not None), Fidelity())


def added(one: tuple[Number, ...], other: tuple[Number, ...]) -> tuple[Number, ...]:
    """Element by element."""
    return tuple(left + right for left, right in zip(one, other, strict=True))
