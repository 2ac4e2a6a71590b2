"""From the operator under load to its table in the docs, and one line per figure that has a bar.

    python bench/operator_report.py build/bench docs/performance.md

Reads `operator-real.json` and `operator-fake.json`; no number is typed.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from draftyard_operator.schedule import WORKING_SECONDS
from report import Bar, finish

Json = Any
MARKERS = ("<!-- operator: begin -->", "<!-- operator: end -->")
SERVERS = ("real", "fake")
START_SECONDS, CHANGE_SECONDS = 30, 2
MEMORY_MIB = {"real": 250, "fake": 512}
"""The promise for a thousand objects; the limit of the chart for more."""
REQUESTS_PER_LOOK = 2
"""Idle: a run that trains is looked at every WORKING_SECONDS, and costs so many requests each time at most."""


def p99(seconds: list[float]) -> float:
    """99th percentile."""
    return statistics.quantiles(seconds, n=100, method="inclusive")[98]


def per_minute(measured: Json) -> float:
    """Requests of a minute in which nothing happens."""
    return Counter(measured["idle_requests"]).total() * 60 / measured["idle_seconds"]


def bars(measured: Json) -> Iterator[Bar]:
    """What has to hold."""
    load = measured["load"]
    name = f"operator-{measured['server']}-{load['objects']}"
    looks = load["active"] * 60 / WORKING_SECONDS
    yield Bar(f"{name}/start-seconds", measured["start_seconds"], "<=", START_SECONDS)
    yield Bar(f"{name}/memory-mib", measured["peak_mib"], "<=", MEMORY_MIB[measured["server"]])
    yield Bar(f"{name}/spec-change-p99-seconds", p99(measured["change_seconds"]), "<=", CHANGE_SECONDS)
    yield Bar(f"{name}/idle-requests-per-minute", per_minute(measured), "<=", REQUESTS_PER_LOOK * looks)


def line(measured: Json) -> str:
    """One server's line of the table."""
    load, seconds = measured["load"], measured["change_seconds"]
    idle = ", ".join(
        f"{count * 60 / measured['idle_seconds']:.0f} {name}"
        for name, count in Counter(measured["idle_requests"]).most_common(5)
    )
    return (
        f"| {measured['server']} | {load['objects']:,} | {load['active']} | {measured['start_seconds']:.1f} s, "
        f"{Counter(measured['start_requests']).total()} requests | {measured['peak_mib']:.0f} MiB "
        f"| {statistics.median(seconds):.2f} s, {p99(seconds):.2f} s | {per_minute(measured):.0f}: {idle} "
        f"| {measured['idle_processor_share']:.1%} |"
    )


def main(folder: Path, page: Path) -> None:
    """Write the part of the page between the markers, and print the bars."""
    files = [folder / f"operator-{server}.json" for server in SERVERS]
    found = [json.loads(file.read_text()) for file in files if file.exists()]
    columns = ("API server", "objects", "of which train", "start", "peak memory", "a change of a spec: median, p99",
               "requests a minute while nothing happens", "of a processor, idle")  # fmt: skip
    lines = ["", f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}", *map(line, found)]
    finish(page, lines, [bar for measured in found for bar in bars(measured)], MARKERS)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
