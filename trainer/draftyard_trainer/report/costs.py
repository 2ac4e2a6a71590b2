"""What a run took, stage by stage: from the ends of its processes where they are kept, else from what stages leave."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from draftyard_api.names import Stage
from draftyard_trainer.report.record import Record


@dataclass(frozen=True)
class Cost:
    """One stage. None: not recorded."""

    stage: str
    processes: int | None
    """How many worked on it, those that failed or were stopped included."""
    seconds: float | None
    """Wall-clock of all of them."""
    tokens: int | None
    """Tokens that went through it, repetitions counted."""
    bytes: int | None
    """What it keeps in the workspace."""
    peak_memory: int | None
    """Largest resident memory of a process."""
    note: str = ""
    """What the seconds leave out."""

    @property
    def tokens_per_second(self) -> float | None:
        """Over the whole stage, start and end included."""
        return self.tokens / self.seconds if self.tokens and self.seconds else None


def costs(record: Record) -> list[Cost]:
    """The stages that left something, in their order."""
    found = [prepare(record), generate(record), train(record), export(record), evaluate(record)]
    return [cost for cost in found if cost is not None]


def measured(record: Record, stage: Stage) -> tuple[int | None, float | None, int | None]:
    """Processes, seconds and peak memory of a stage, as its processes said."""
    results = [end.result for end in record.history if end.result.stage is stage]
    if not results:
        return None, None, None
    memory = [result.peak_memory_bytes for result in results if result.peak_memory_bytes is not None]
    return len(results), sum(result.seconds or 0 for result in results), max(memory, default=None)


def prepare(record: Record) -> Cost | None:
    """Tokens and masks."""
    if record.documents is None:
        return None
    processes, seconds, memory = measured(record, Stage.PREPARE)
    manifest = record.documents.manifest
    return Cost("prepare", processes, seconds, manifest.counts.tokens, manifest.bytes, memory)


def generate(record: Record) -> Cost | None:
    """Stored hidden states."""
    if record.states is None:
        return None
    shards = record.states.complete
    processes, seconds, memory = measured(record, Stage.GENERATE)
    note = ""
    if seconds is None and shards:
        seconds, note = sum(shard.seconds for shard in shards), "the last attempt of each shard"
    tokens, stored = sum(shard.tokens for shard in shards), sum(shard.bytes for shard in shards)
    return Cost("generate", processes, seconds, tokens, stored, memory, note)


def train(record: Record) -> Cost | None:
    """Steps, scores, checkpoints."""
    if not len(record.curve):
        return None
    processes, seconds, memory = measured(record, Stage.TRAIN)
    note = ""
    if seconds is None:
        seconds, note = float(np.nansum(record.curve.column("seconds"))), "steps only"
    tokens = int(np.nansum(record.curve.column("tokens")))
    return Cost("train", processes, seconds, tokens, record.train_bytes, memory, note)


def export(record: Record) -> Cost | None:
    """The draft, which train writes."""
    if record.manifest is None:
        return None
    return Cost("export", None, None, None, record.export_bytes, None, "part of train")


def evaluate(record: Record) -> Cost | None:
    """Answers and proposals."""
    if record.evaluation is None:
        return None
    processes, seconds, memory = measured(record, Stage.EVALUATE)
    note = ""
    if seconds is None:
        told = record.evaluation.seconds
        seconds, note = told.answering + told.drafting, "answering and drafting in the last attempt"
    return Cost("evaluate", processes, seconds, record.evaluation.reply_tokens, None, memory, note)
