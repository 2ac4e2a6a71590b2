"""From the trainings of `on_path.py` to their table in the docs, and one line per figure that has a bar.

    python bench/path_report.py build/bench docs/performance.md

Reads `on-path.json` and, for what a peer would take, `step.json`; no number is typed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from report import Bar, Case, faster, finish

MARKERS = ("<!-- unroll: begin -->", "<!-- unroll: end -->")
Curve = list[dict[str, Any]]
DRAFT_TOKENS = "3"
"""Proposed tokens of the acceptance length that is compared."""
OWN_CASE = "h576-t512-b4"
"""The case with the shape and the lengths of `on_path.py`: how much faster than a peer a full unroll is there."""


def path_bars(found: dict[str, Curve], cases: dict[str, Case]) -> Iterator[Bar]:
    """Time to what a full unroll reaches at its end, beside the faster peer: it takes the steps of the full unroll."""
    wanted = found["full"][-1]["lengths"][DRAFT_TOKENS]
    early = [time_to(curve, wanted) for name, curve in found.items() if not name.startswith("full")]
    if not early:
        return
    for name, curve in found.items():
        if name.startswith("full"):
            yield Bar(f"on-path/time-to-acceptance-against-{name}", time_to(curve, wanted) / min(early), ">=", 1.0)
    gain = time_to(found["full"], wanted) / min(early)
    if OWN_CASE in cases:
        yield Bar("on-path/time-to-acceptance-against-peer", gain * faster(cases[OWN_CASE]), ">=", 3.0)


def time_to(curve: Curve, length: float) -> float:
    """Seconds until a draft reaches an acceptance length, straight between looks; infinite if it never does."""
    before = {"seconds": 0.0, "lengths": {DRAFT_TOKENS: 1.0}}
    for point in curve:
        low, high = before["lengths"][DRAFT_TOKENS], point["lengths"][DRAFT_TOKENS]
        if high >= length:
            share = (length - low) / (high - low) if high > low else 1.0
            return float(before["seconds"] + max(share, 0.0) * (point["seconds"] - before["seconds"]))
        before = point
    return float("inf")


def path_table(found: dict[str, Curve]) -> list[str]:
    """One line per way to unroll."""
    wanted = found["full"][-1]["lengths"][DRAFT_TOKENS]
    columns = ("unroll", "steps", "rows asked", "processor seconds", "acceptance length, K = 3", "K = 7",
               f"seconds to {wanted:.3f}")  # fmt: skip
    lines = ["", f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    for name, curve in found.items():
        end = curve[-1]
        lengths = " | ".join(f"{end['lengths'][key]:.3f} ± {end['spread'][key]:.3f}" for key in end["lengths"])
        reached = time_to(curve, wanted)
        lines.append(
            f"| {name} | {end['step']} | {end['asked']:.0%} | {end['seconds']:.0f} | {lengths} "
            f"| {'never' if reached == float('inf') else f'{reached:.0f}'} |"
        )
    return lines


def main(folder: Path, page: Path) -> None:
    """Write the part of the page between its markers, and print the bars."""
    found: dict[str, Curve] = json.loads((folder / "on-path.json").read_text())
    step = folder / "step.json"
    cases: dict[str, Case] = json.loads(step.read_text())["cases"] if step.exists() else {}
    finish(page, path_table(found), list(path_bars(found, cases)), MARKERS)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
