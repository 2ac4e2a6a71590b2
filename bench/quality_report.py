"""From what `quality.py` measured to the tables of the docs, and one line per figure that has a bar.

    python bench/quality_report.py build/bench/quality.json docs/quality.md

No number is typed.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from report import PEERS, Bar, finish, put

MARKERS = ("<!-- quality: begin -->", "<!-- quality: end -->")
OBJECTIVE_MARKERS = ("<!-- objectives: begin -->", "<!-- objectives: end -->")
OURS = "draftyard"
NAMES = {OURS: "Draftyard", "specforge": "SpecForge", "speculators": "speculators"}
Seeds = dict[str, dict[str, Any]]
"""What is told of the draft of each seed."""


def mean(seeds: Seeds, of: Callable[[dict[str, Any]], float]) -> float:
    """Over the seeds."""
    return statistics.mean(of(draft) for draft in seeds.values())


def spread(seeds: Seeds, of: Callable[[dict[str, Any]], float]) -> str:
    """Mean and deviation over the seeds; no deviation of a single one."""
    values = [of(draft) for draft in seeds.values()]
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{deviation}"


def served(draft: dict[str, Any]) -> float:
    """Acceptance length in the engine."""
    return float(draft["served"]["length"])


def predicted(draft: dict[str, Any]) -> float:
    """Acceptance length as `evaluate` has it."""
    return float(draft["predicted"]["length"])


def deviation(draft: dict[str, Any]) -> float:
    """How far the prediction is from what was served."""
    return abs(predicted(draft) / served(draft) - 1)


def peer_bars(found: dict[str, Seeds]) -> Iterator[Bar]:
    """Figures of the comparison with peers."""
    for peer in PEERS:
        yield Bar(f"quality/ours-over-{peer}", mean(found[OURS], served) / mean(found[peer], served), ">=", 1.0)
    drafts = [draft for seeds in found.values() for draft in seeds.values()]
    yield Bar("quality/predicted-over-served", max(deviation(draft) for draft in drafts), "<=", 0.02)
    yield Bar("quality/greedy-ids-equal", min(draft["served"]["ids_equal"] for draft in drafts), ">=", 1.0)


def peer_table(found: dict[str, Seeds]) -> list[str]:
    """One line per trainer."""
    columns = (
        "draft by", "acceptance length, served", "of each seed", "predicted by `evaluate`", "largest deviation",
        "positions 1, 2, 3 accepted", "greedy ids equal", "processor seconds of training",
    )  # fmt: skip
    return [*heading(columns), *(peer_line(name, seeds) for name, seeds in found.items())]


def peer_line(name: str, seeds: Seeds) -> str:
    """The line of one trainer."""
    drafts = list(seeds.values())
    cells = (
        NAMES[name],
        spread(seeds, served),
        ", ".join(f"{served(draft):.3f}" for draft in drafts),
        spread(seeds, predicted),
        f"{max(deviation(draft) for draft in drafts):.2%}",
        shares([draft["served"]["per_position"] for draft in drafts]),
        f"{min(draft['served']['ids_equal'] for draft in drafts):.0%}",
        f"{mean(seeds, lambda draft: draft['seconds']):.0f}",
    )
    return f"| {' | '.join(cells)} |"


def objective_table(found: dict[str, Seeds]) -> list[str]:
    """One line per objective; ours is trained with `kl` above."""
    columns = ("objective", "acceptance length, greedy", "positions 1, 2, 3 accepted",
               "accepted when sampling, steps 1, 2, 3", "processor seconds of training")  # fmt: skip
    lines = heading(columns)
    for name, seeds in found.items():
        drafts = [draft["predicted"] for draft in seeds.values()]
        cells = (
            f"`{'kl' if name == OURS else name}`",
            spread(seeds, predicted),
            shares([draft["per_position"] for draft in drafts]),
            shares([draft["sampled"] for draft in drafts]),
            f"{mean(seeds, lambda draft: draft['seconds']):.0f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def heading(columns: Sequence[str]) -> list[str]:
    """The first two lines of a table."""
    return [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]


def shares(rows: Sequence[Sequence[float]]) -> str:
    """Means by place."""
    return ", ".join(f"{statistics.mean(column):.1%}" for column in zip(*rows, strict=True))


def scope(report: dict[str, Any], seeds: Seeds) -> str:
    """What was trained and served, in one sentence."""
    recipe = report["recipe"]
    return (
        f"{recipe['steps']} steps of at most {recipe['row_tokens']} tokens out of {recipe['trained']} documents, "
        f"{recipe['ttt_steps']} unroll steps, peak learning rate {recipe['learning_rate']:g}, seeds "
        f"{', '.join(seeds)}; {recipe['held_out']} held-out prompts, at most {recipe['reply']} new tokens, "
        f"K = {recipe['draft_tokens']}, greedy."
    )


def main(file: Path, page: Path) -> None:
    """Write the parts of the page between their markers, and print the bars."""
    report = json.loads(file.read_text())
    if "objectives" in report:
        found = report["objectives"]
        put(page, ["", scope(report, found[OURS]), "", *objective_table(found), ""], OBJECTIVE_MARKERS)
    if "peers" in report:
        found = report["peers"]
        lines = ["", scope(report, found[OURS]), "", *peer_table(found)]
        finish(page, lines, list(peer_bars(found)), MARKERS)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
