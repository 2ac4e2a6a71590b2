"""From what was measured to the table of the docs, and one line per figure that has a bar.

    python bench/report.py build/bench docs/performance.md [--rows]

Reads `step.json` and, where they are, `capture.json` and `gpu.json`; no number is typed. With `--rows` what was not
measured stays on the page as it is.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import ge, le
from pathlib import Path
from typing import Any

BEGIN, END = MARKERS = ("<!-- measured: begin -->", "<!-- measured: end -->")
GPU_MARKERS = ("<!-- gpu: begin -->", "<!-- gpu: end -->")
"""Apart: most machines have none, and leave what another one measured."""
PEERS = ("specforge", "speculators")
PADDING, PACKING = PEERS
LONG = 4096
SUBJECT = re.compile(r"bar \S+|\| [\w.-]+ \||- [\w.-]+: \w+|- \w+ \w+")
"""Begins each line that tells a number: what the number is of."""
SIGNS: dict[str, Callable[[float, float], bool]] = {">=": ge, "<=": le}
Case = dict[str, Any]


@dataclass(frozen=True)
class Bar:
    """One figure and what it has to be."""

    name: str
    value: float
    sign: str
    wanted: float

    @property
    def is_met(self) -> bool:
        """Whether it is what it has to be."""
        return SIGNS[self.sign](self.value, self.wanted)

    def __str__(self) -> str:
        verdict = "ok" if self.is_met else "short"
        return f"bar {self.name} {self.value:.3g} (needs {self.sign} {self.wanted:g}) {verdict}"


def seconds(case: Case, trainer: str) -> float:
    """Median step; infinite where it did not fit."""
    result = case["results"].get(trainer, {})
    return statistics.median(result["seconds"]) if "seconds" in result else float("inf")


def memory(case: Case, trainer: str) -> float:
    """Peak above the loaded model, MiB; infinite where it did not fit."""
    result = case["results"].get(trainer, {})
    return float(result.get("peak_mib", float("inf")))


def faster(case: Case) -> float:
    """Step of this project against the faster peer."""
    return min(seconds(case, peer) for peer in PEERS) / seconds(case, "draftyard")


def leaner(case: Case) -> float:
    """Memory of this project as a share of the smaller peer's."""
    return memory(case, "draftyard") / min(memory(case, peer) for peer in PEERS)


def limit_share(case: Case) -> float:
    """Share of the step that bare products would take."""
    return seconds(case, "limit") / seconds(case, "draftyard")


def step_bars(cases: dict[str, Case]) -> Iterator[Bar]:
    """Figures of the training step."""
    for name, case in cases.items():
        yield Bar(f"limit-share/{name}", limit_share(case), ">=", 0.75)
        if case["dense"]:
            yield Bar(f"speed/{name}", faster(case), ">=", 1.25)
        shape = case["case"]["shape"]
        if shape["draft_vocab_size"] == 32000:
            yield Bar(f"memory/{name}", leaner(case), "<=", 0.33)
        elif case["case"]["length"] >= LONG:
            yield Bar(f"memory/{name}", leaner(case), "<=", 0.25)
        if shape["draft_vocab_size"] == 32000 and not case["dense"]:
            ours = seconds(case, "draftyard")
            yield Bar(f"speed-vs-packing/{name}", seconds(case, PACKING) / ours, ">=", 2.0)
            yield Bar(f"speed-vs-padding/{name}", seconds(case, PADDING) / ours, ">=", 4.0)
    if {"h256-t2048", "h256-t8192"} <= cases.keys():
        growth = memory(cases["h256-t8192"], "draftyard") / memory(cases["h256-t2048"], "draftyard")
        yield Bar("memory-growth/t2048-t8192", growth, "<=", 4.2)


def capture_bars(found: dict[str, float]) -> Iterator[Bar]:
    """Figures of the capture."""
    yield Bar("capture-copies", found["bare"] / found["copies"], ">=", 0.95)
    yield Bar("capture-stored", found["bare"] / found["stored"], ">=", 0.80)


def step_table(cases: dict[str, Case]) -> list[str]:
    """One line per case."""
    columns = (
        "case", "tokens (padded)", "supervised", "Draftyard", "SpecForge", "speculators", "share of the limit",
        "faster than the faster peer", "memory above the model, MiB: ours, SpecForge, speculators",
    )  # fmt: skip
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    for name, case in cases.items():
        times = " | ".join(written(seconds(case, trainer), "s") for trainer in ("draftyard", *PEERS))
        peaks = ", ".join(written(memory(case, trainer), "") for trainer in ("draftyard", *PEERS))
        lines.append(
            f"| {name} | {case['tokens']} ({case['padded']}) | {case['supervised'] / case['tokens']:.0%} | {times} "
            f"| {limit_share(case):.2f} | {faster(case):.2f}x | {peaks} |"
        )
    return lines


def written(value: float, unit: str) -> str:
    """A measured number, or that there is none."""
    if value == float("inf"):
        return "did not fit"
    return f"{value:.2f} {unit}" if unit else f"{value:,.0f}"


def apart_lines(cases: dict[str, Case]) -> list[str]:
    """What packing gives beyond what it saves in padding."""
    return [
        f"- {name}: its documents one by one take {seconds(case, 'apart') / seconds(case, 'draftyard'):.2f} times "
        "the packed step."
        for name, case in cases.items()
        if "apart" in case["results"]
    ]


def bound_lines(cases: dict[str, Case]) -> list[str]:
    """How much faster than padding a step can be at most: as fast as its bare products, on a batch that fits."""
    return [
        f"- {name}: {PADDING} takes {seconds(case, PADDING) / seconds(case, 'limit'):.2f} times the bare products, "
        f"which no exact step can be faster than, and {memory(case, PADDING) / 1024:.1f} GiB above the model."
        for name, case in cases.items()
        if case["padded"] > case["tokens"] and "seconds" in case["results"].get(PADDING, {})
    ]


def gpu_table(report: dict[str, Any]) -> list[str]:
    """One line per case on a GPU."""
    lines = [
        f"On one {report['gpu']} with torch {report['torch']}, bf16, one whole optimizer step:",
        "",
        "| case | tokens | step | tokens/s | TFLOP/s | share of the limit | peak above the model |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {name} | {found['tokens']} | {found['seconds']:.3f} s | {found['tokens_per_second']:,.0f} "
        f"| {found['tflops']:.0f} | {found['limit_share']:.2f} | {found['peak_gib']:.1f} GiB |"
        for name, found in report["cases"].items()
    ]
    return lines


def renewed(old: list[str], new: list[str]) -> list[str]:
    """The old lines, each with the new one of the same subject in its place. Raises SystemExit for a new subject."""
    subjects = {match[0]: line for line in new if (match := SUBJECT.match(line))}
    there = {match[0] for line in old if (match := SUBJECT.match(line))}
    if missing := sorted(subjects.keys() - there):
        raise SystemExit(f"the page has no line of {', '.join(missing)}: write all of it, without --rows")
    return [subjects[match[0]] if (match := SUBJECT.match(line)) and match[0] in subjects else line for line in old]


def main(folder: Path, page: Path, rows: bool = False) -> None:
    """Write the part of the page between the markers, or renew its lines, and print the bars."""
    step = json.loads((folder / "step.json").read_text())
    cases: dict[str, Case] = step["cases"]
    bars = [*step_bars(cases), Bar("packing-waste", step["packing_waste"], "<=", 0.03)]
    lines = [f"{step['threads']} threads, fp32, {step['ttt_steps']} unroll steps, median of whole optimizer steps.", ""]
    lines += [*step_table(cases), "", *apart_lines(cases), *bound_lines(cases)]
    lines.append(f"- Packed rows of real lengths waste {step['packing_waste']:.1%} of their places.")
    if (folder / "capture.json").exists():
        found = json.loads((folder / "capture.json").read_text())["seconds"]
        bars += capture_bars(found)
        lines.append(
            f"- Capture, in tokens/s of a bare forward: {found['bare'] / found['copies']:.2f} with hooks and copies, "
            f"{found['bare'] / found['stored']:.2f} with labels and written to disk."
        )
    if (folder / "gpu.json").exists():
        put(page, gpu_table(json.loads((folder / "gpu.json").read_text())), GPU_MARKERS)
    if rows:
        put(page, renewed(between(page, MARKERS), [*lines, *map(str, bars)]), MARKERS)
        print("\n".join(map(str, bars)))
    else:
        finish(page, lines, bars)


def finish(page: Path, lines: list[str], bars: list[Bar], markers: tuple[str, str] = MARKERS) -> None:
    """Write lines and bars between the markers of a page, and print the bars."""
    put(page, [*lines, "", "```", *map(str, bars), "```"], markers)
    print("\n".join(map(str, bars)))


def between(page: Path, markers: tuple[str, str]) -> list[str]:
    """Lines between the markers of a page."""
    text, (begin, end) = page.read_text(), markers
    return text[text.index(begin) + len(begin) : text.index(end)].strip("\n").split("\n")


def put(page: Path, lines: list[str], markers: tuple[str, str]) -> None:
    """Write lines between the markers of a page."""
    text, (begin, end) = page.read_text(), markers
    head, tail = text[: text.index(begin) + len(begin)], text[text.index(end) :]
    page.write_text("\n".join([head, *lines, tail]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("page", type=Path)
    parser.add_argument("--rows", action="store_true")
    main(**vars(parser.parse_args()))
