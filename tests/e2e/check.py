"""What a user meets on a real node, from `helm install` to killed API servers: `make e2e`, or `check.py POINT ...`.

Every point ends with lines `bar NAME VALUE (needs ...) ok|short`, computed from what the cluster says. With `--page
FILE` they are written between the markers of that page, too.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import deletion
import installing
import kills
import mistakes
import suspension
import two_nodes
import whole_runs

import report
from report import Bar

POINTS: dict[str, Callable[[], list[Bar]]] = {
    "claims": whole_runs.on_claims,
    "bucket": whole_runs.in_a_bucket,
    "two-nodes": two_nodes.bars,
    "suspension": suspension.bars,
    "deletion": deletion.bars,
    "kills": kills.bars,
    "mistakes": mistakes.bars,
}
"""In this order: the later ones compare their drafts with those of the earlier ones."""


def main() -> None:
    """Install, and ask all points or those that are named. It has measured also where one of them falls short."""
    parser = argparse.ArgumentParser(description="checks on the cluster that `make cluster-up` has made")
    parser.add_argument("points", nargs="*", metavar="POINT", help=f"of {', '.join(POINTS)}; all by default")
    parser.add_argument("--page", type=Path, help="the page that the figures are written to")
    given = parser.parse_args()
    if unknown := [name for name in given.points if name not in POINTS]:
        sys.exit(f"given {', '.join(unknown)}; accepted: {', '.join(POINTS)}")
    begun = time.monotonic()
    installing.install()
    bars: list[Bar] = []
    for name in given.points or POINTS:
        bars += answered(name)
        lines = [f"{len(bars)} figures, {(time.monotonic() - begun) / 60:.0f} minutes after the cluster was up."]
        if given.page:
            report.put(given.page, [*lines, "", "```", *map(str, bars), "```"], report.MARKERS)
    print("", *lines, *bars, sep="\n")


def answered(name: str) -> list[Bar]:
    """What a point comes to. One that does not get to its end falls short, and the others are asked all the same."""
    begun = time.monotonic()
    try:
        bars = POINTS[name]()
    except (RuntimeError, TimeoutError, ValueError, LookupError, subprocess.SubprocessError):
        traceback.print_exc()
        bars = [Bar(f"{name}/came-to-its-end", 0, ">=", 1)]
    print(f"{name}: {time.monotonic() - begun:.0f} s", *bars, sep="\n", flush=True)
    return bars


if __name__ == "__main__":
    main()
