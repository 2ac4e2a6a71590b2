"""What a person sees of a local run: a bar per stage while it works, and a table at the end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from draftyard_api import serving
from draftyard_api.progress import Acceptance, Progress, StageResult
from draftyard_api.spec import Evaluate, Tree

SECONDS_BETWEEN_LINES = 15.0
"""Without a terminal a bar would fill a log: a line now and then says the same."""


class StageBar:
    """The live view of one stage; use it as a context manager."""

    def __init__(self, console: Console, label: str) -> None:
        self._console = console
        self._label = label
        self._bars = Bars(
            TextColumn("{task.description:<18}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]} {task.fields[detail]}"),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None
        self._activity = ""
        self._lined = time.monotonic()

    def __enter__(self) -> Self:
        self._bars.start()
        if not self._console.is_terminal:
            self._console.print(f"{self._label}: starting", highlight=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def show(self, progress: Progress) -> None:
        """Draw one reading."""
        detail = describe(progress)
        if self._task is None or progress.activity != self._activity:
            self._activity = progress.activity
            self._task = self._bars.add_task(f"{self._label} {progress.activity}", unit="", detail="", total=None)
        self._bars.update(self._task, completed=progress.done, total=progress.total, unit=progress.unit, detail=detail)
        now = time.monotonic()
        if not self._console.is_terminal and now - self._lined >= SECONDS_BETWEEN_LINES:
            self._lined = now
            self._console.print(f"{self._label}: {counted(progress)} {detail}".rstrip(), highlight=False)


def counted(progress: Progress) -> str:
    """`capturing 1200 of 90000 tokens, 3 min left`."""
    of_total = f" of {progress.total}" if progress.total is not None else ""
    left = progress.estimated_remaining_seconds
    remaining = f", {duration(left)} left" if left is not None else ""
    return f"{progress.activity} {progress.done}{of_total} {progress.unit}{remaining}"


def describe(progress: Progress) -> str:
    """Rate, loss and acceptance, where a stage reports them."""
    parts = []
    if progress.tokens_per_second:
        parts.append(f"{progress.tokens_per_second} tok/s")
    if progress.loss:
        parts.append(f"loss {progress.loss}")
    if progress.acceptance:
        parts.append(f"acceptance {progress.acceptance}")
    return " ".join(parts)


def duration(seconds: float) -> str:
    """`47 s`, `3 min 20 s`, `5 h 58 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(count: float) -> str:
    """`512 B`, `1.4 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} TiB"


def stage_table(results: Sequence[StageResult]) -> Table:
    """One line per finished stage: what it made, how large, how long, how much memory."""
    table = Table(title="stages", title_justify="left")
    for heading in ("stage", "result"):
        table.add_column(heading)
    for heading in ("bytes", "time", "peak memory"):
        table.add_column(heading, justify="right")
    for result in results:
        table.add_row(
            str(result.stage),
            outcome(result),
            size(result.bytes) if result.bytes is not None else "",
            duration(result.seconds or 0),
            size(result.peak_memory_bytes) if result.peak_memory_bytes is not None else "",
        )
    return table


def outcome(result: StageResult) -> str:
    """What one stage made, in a few words."""
    if result.regenerated:
        own = result.regenerated
        return (
            f"shard {own.shard + 1} of {own.shards}: {own.conversations} conversations, {own.answers} answers of "
            f"{own.tokens} tokens, {own.unfinished} cut at their limit"
        )
    if result.prepared:
        counts = result.prepared.counts
        return (
            f"{counts.documents} documents, {counts.tokens} tokens ({counts.loss_tokens} supervised), "
            f"{sum(counts.skipped.values())} rows skipped, coverage {result.prepared.vocab_coverage}"
        )
    if result.hidden_states:
        states = result.hidden_states
        return f"shard {states.shard + 1} of {states.shards}: {states.documents} documents, {states.tokens} tokens"
    if result.trained:
        trained = result.trained
        return (
            f"{trained.steps} steps, loss {trained.loss}; best step {trained.best_step}, {accepted(trained.acceptance)}"
        )
    if result.acceptance:
        return accepted(result.acceptance)
    return result.message


def accepted(acceptance: Acceptance) -> str:
    """`acceptance length 1.26 (0.22 0.05 0.01), simulated on 12 documents`."""
    positions = " ".join(acceptance.per_position)
    unit = "documents" if acceptance.source == "Simulated" else "prompts"
    return (
        f"acceptance length {acceptance.length} ({positions}), {acceptance.source.lower()} "
        f"on {acceptance.prompts} {unit}"
    )


def conditions(acceptance: Acceptance, judged: Evaluate | None) -> str:
    """Under which conditions a length was reached: `held out, K=3, greedy`."""
    if acceptance.source == "Simulated" or judged is None:
        return f"held out, simulated, K={acceptance.draft_tokens}, greedy"
    asked = "held out" if judged.prompt_sets[0] == "heldOut" else judged.prompt_sets[0]
    if judged.tree:
        proposed = f"tree of {judged.tree.steps} steps, topK {judged.tree.top_k}, {judged.tree.draft_tokens} tokens"
    else:
        proposed = f"K={acceptance.draft_tokens}"
    return f"{asked}, {proposed}, {'temperature 1' if judged.temperature else 'greedy'}"


def serve_lines(target: str, draft: str, draft_tokens: int, tree: Tree | None = None) -> list[str]:
    """How to serve the draft."""
    return [serving.vllm(target, draft, draft_tokens), serving.sglang(target, draft, draft_tokens, tree)]
