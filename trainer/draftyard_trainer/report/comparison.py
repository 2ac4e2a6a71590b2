"""Runs side by side: what was asked of them where it differs, and what came of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.table import Table

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.names import RUN_NAME_PATTERN
from draftyard_api.reasons import Reason
from draftyard_trainer import display
from draftyard_trainer.report.costs import costs
from draftyard_trainer.report.curve import Values, smooth
from draftyard_trainer.report.figures import Figure, Trace, line
from draftyard_trainer.report.page import render
from draftyard_trainer.report.record import Record, read_record, runs_of
from draftyard_trainer.report.settings import differing, settings
from draftyard_trainer.report.verdict import Verdict, judge
from draftyard_trainer.storage.store import Store

NAMED = re.compile(rf"^(?P<workspace>.+):(?P<run>{RUN_NAME_PATTERN.strip('^$')})$")
MAX_RUNS = 8
"""As many as there are colours, and as fit beside each other."""
NONE = "-"


@dataclass(frozen=True, eq=False)
class Column:
    """One run."""

    label: str
    record: Record
    verdict: Verdict


def find_records(places: Sequence[str], opened: Callable[[str], Store]) -> list[Record]:
    """Records of `WORKSPACE:RUN`, or of every run of a WORKSPACE. Raises Failure(NOT_FOUND, BAD_TASK)."""
    records = []
    for place in places:
        match = NAMED.match(place)
        store = opened(match["workspace"] if match else place)
        found = runs_of(store)
        wanted = [match["run"]] if match else found
        if not wanted or set(wanted) - set(found):
            accepted = ", ".join(found) or "a workspace with a run; there is none"
            raise Failure(
                ExitCode.NOT_FOUND, Reason.TASK_REJECTED, f"given {place}; accepted as a run there: {accepted}"
            )
        records += [read_record(store, run) for run in wanted]
    if not 2 <= len(records) <= MAX_RUNS:
        message = f"given {len(records)} runs; accepted: 2 to {MAX_RUNS}, each as WORKSPACE or WORKSPACE:RUN"
        raise Failure(ExitCode.BAD_TASK, Reason.TASK_REJECTED, message)
    return records


def columns(records: Sequence[Record]) -> list[Column]:
    """Runs with labels that tell them apart: the name, with the workspace where two share it."""
    names = [record.run for record in records]
    labels = [
        record.run if names.count(record.run) == 1 else f"{record.where.rpartition('/')[2]}:{record.run}"
        for record in records
    ]
    if len(set(labels)) < len(labels):
        labels = [f"{record.where.removeprefix('file://')}:{record.run}" for record in records]
    return [Column(label, record, judge(record)) for label, record in zip(labels, records, strict=True)]


Rows = dict[str, list[str]]


def results(compared: Sequence[Column]) -> Rows:
    """What came of the runs, a row each."""
    rows: Rows = {
        "state": [column.verdict.badge for column in compared],
        "acceptance length": [length(column.verdict) for column in compared],
        "known from": [known(column.verdict) for column in compared],
    }
    most = max((column.verdict.reach.draft_tokens for column in compared if column.verdict.reach), default=0)
    for place in range(most):
        rows[f"accepted at {place + 1}"] = [position(column.verdict, place) for column in compared]
    rows["speed-up, estimated"] = [
        f"{column.verdict.speed_up.factor:.2f}" if column.verdict.speed_up else NONE for column in compared
    ]
    return rows | spent(compared)


def length(verdict: Verdict) -> str:
    """`1.27 (1.21 to 1.33)`."""
    reach = verdict.reach
    if reach is None:
        return NONE
    interval = f" ({reach.interval[0]:.2f} to {reach.interval[1]:.2f})" if reach.interval else ""
    return f"{reach.length:.2f}{interval}"


def known(verdict: Verdict) -> str:
    """How, and on how much."""
    return f"{verdict.reach.source}, {verdict.reach.samples}" if verdict.reach else NONE


def position(verdict: Verdict, place: int) -> str:
    """Share of the rounds."""
    shares = verdict.reach.per_position if verdict.reach else ()
    return f"{shares[place]:.1%}" if place < len(shares) else NONE


def spent(compared: Sequence[Column]) -> Rows:
    """Tokens, time and bytes of each stage that any of the runs has."""
    by_run = [{cost.stage: cost for cost in costs(column.record)} for column in compared]
    rows: Rows = {}
    for stage in dict.fromkeys(stage for found in by_run for stage in found):
        of_stage = [found.get(stage) for found in by_run]
        shown = {
            "time": [
                display.duration(cost.seconds) if cost and cost.seconds is not None else NONE for cost in of_stage
            ],
            "tokens": [f"{cost.tokens:,}" if cost and cost.tokens is not None else NONE for cost in of_stage],
            "bytes": [display.size(cost.bytes) if cost and cost.bytes is not None else NONE for cost in of_stage],
        }
        rows |= {f"{stage} {what}": row for what, row in shown.items() if set(row) != {NONE}}
    return rows


def table(compared: Sequence[Column]) -> Table:
    """For a terminal: settings that differ, a line, results."""
    made = Table(title="runs side by side", title_justify="left")
    made.add_column("")
    for column in compared:
        made.add_column(column.label, overflow="fold")
    for name, row in differing([settings(column.record) for column in compared]).items():
        made.add_row(name, *row)
    made.add_section()
    for name, row in results(compared).items():
        made.add_row(name, *row)
    return made


# -- As a page ----------------------------------------------------------------------------------------


def page(compared: Sequence[Column]) -> str:
    """The same as HTML, with curves laid over each other."""
    plots = overlaid(compared)
    values = {
        "compared": compared,
        "settings": differing([settings(column.record) for column in compared]),
        "results": results(compared),
        "plots": plots,
    }
    return render("compare.html", plots, values)


def overlaid(compared: Sequence[Column]) -> list[Figure]:
    """One line a run, smoothed, over steps; and over the tokens that they have seen."""
    wanted = (
        ("acceptance", "Acceptance length, simulated", "tauSim", "tokens a pass", "Teacher-forced on training rows."),
        ("loss", "Loss", "loss", "loss", "Comparable only between runs with one objective and one number of steps."),
        ("divergence", "Divergence of the first proposal", "divergence", "nats", "KL from the target."),
        ("rate", "Learning rate", "learningRate", "learning rate", "The schedules."),
    )
    made = []
    for name, title, field, unit, caption in wanted:
        traces = [trace(column, number, field) for number, column in enumerate(compared, start=1)]
        drawn = [each for each in traces if each["x"]]
        axes = {"yformat": ".1e"} if name == "rate" else {}
        if drawn:
            made.append(Figure(name, title, caption, drawn, "step", unit, axes))
    return made + by_tokens(compared)


def trace(column: Column, number: int, field: str) -> Trace:
    """One run's line."""
    curve = column.record.curve
    values = first_position(curve.lists[field]) if field in curve.lists else curve.column(field)
    return line(column.label, curve.steps, smooth(values), number)


def first_position(table: Values) -> Values:
    """The first step of the unroll; nothing of a curve without one."""
    return table[:, 0] if table.shape[1] else table.sum(axis=1)


def by_tokens(compared: Sequence[Column]) -> list[Figure]:
    """Acceptance over tokens: runs with other batches are alike there."""
    traces = []
    for number, column in enumerate(compared, start=1):
        curve = column.record.curve
        if len(curve):
            seen = curve.column("tokens").cumsum()
            traces.append(line(column.label, seen, smooth(curve.column("tauSim")), number))
    if not traces:
        return []
    figure = Figure("tokens", "Acceptance length over tokens", "Tokens that were trained on, repetitions counted.",
                    traces, "tokens", "tokens a pass", {})  # fmt: skip
    return [figure]
