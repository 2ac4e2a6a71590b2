"""From the records of runs to the table of docs/reliability.md, and one line per figure that has a bar."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from comparison import NEARLY

from report import Bar, finish

MARKERS = ("<!-- chaos: begin -->", "<!-- chaos: end -->")
Record = dict[str, Any]


def bars(records: Sequence[Record], wanted_runs: int, fewest_kills: int) -> list[Bar]:
    """What a record of runs has to show."""
    return [
        Bar("chaos/runs", len(records), ">=", wanted_runs),
        Bar("chaos/fewest-kills-of-a-run", min((record["kills"] for record in records), default=0), ">=", fewest_kills),
        Bar("chaos/not-finished", sum(record["codes"][-1:] != [0] for record in records), "<=", 0),
        Bar("chaos/stuck", sum(record["stuck"] for record in records), "<=", 0),
        Bar("chaos/samples-lost", total(records, "lost"), "<=", 0),
        Bar("chaos/samples-doubled", total(records, "doubled"), "<=", 0),
        Bar("chaos/visible-partial-artefacts", sum(len(record["partial"]) for record in records), "<=", 0),
        Bar("chaos/other-manifests", sum(record["manifest"] != [] for record in records), "<=", 0),
        Bar("chaos/other-weights-at-one-world-size", worst(records, is_reshaped=False), "<=", 0),
        Bar("chaos/other-weights-at-others", worst(records, is_reshaped=True), "<=", NEARLY),
    ]


def total(records: Sequence[Record], name: str) -> float:
    """Of all runs; a run that left no curve has lost everything."""
    return sum(float("inf") if record[name] is None else record[name] for record in records)


def worst(records: Sequence[Record], is_reshaped: bool) -> float:
    """Largest difference of weights among runs of one kind; infinite for a run without weights."""
    of_kind = [record for record in records if (set(record["processes"]) != {1}) == is_reshaped]
    return max(
        (float("inf") if record["difference"] is None else record["difference"] for record in of_kind), default=0
    )


def lines(records: Sequence[Record], code: str) -> list[str]:
    """What was done, how it ended, and one line per run."""
    done = Counter((each["kind"], each["victim"]) for record in records for each in record["done"])
    kinds = Counter(each["kind"] for record in records for each in record["done"])
    attempts = sum(len(record["codes"]) for record in records)
    kills = sum(record["kills"] for record in records)
    return [
        f"{len(records)} runs with {kills} kills, in {attempts} attempts; trainer of sources `{code}`.",
        "",
        "What was done: " + ", ".join(f"{count} x {kind}" for kind, count in kinds.most_common()) + ".",
        "",
        "| killed | SIGKILL | SIGTERM |",
        "| --- | --- | --- |",
        *victim_lines(done),
        "",
        "| seed | mode | answers | workspace | processes | attempts | kills | seconds | weights differ by |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *map(record_line, records),
    ]


def victim_lines(done: Counter[tuple[str, str]]) -> list[str]:
    """How often each process was killed."""
    victims = sorted({victim for kind, victim in done if kind.startswith("SIG")})
    return [f"| {victim} | {done['SIGKILL', victim]} | {done['SIGTERM', victim]} |" for victim in victims]


def record_line(record: Record) -> str:
    """One run."""
    difference = record["difference"]
    told = "no weights" if difference is None else "nothing" if difference == 0 else f"{difference:.1e}"
    processes = ", ".join(map(str, record["processes"]))
    cells = (
        record["seed"], record["mode"], "its own" if record["regenerates"] else "given", record["storage"], processes,
        len(record["codes"]), record["kills"], f"{record['seconds']:.0f}", told,
    )  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def write(page: Path, records: Sequence[Record], code: str, wanted: tuple[int, int]) -> None:
    """Write the part of the page between the markers, and print the bars; `wanted` are runs, and kills of each."""
    finish(page, lines(records, code), bars(records, *wanted), MARKERS)
