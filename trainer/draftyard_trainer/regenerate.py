"""The stage `regenerate`: one shard of the conversations, with the target's own answers in place of the given ones.

Parts that an earlier attempt committed are not made again; a killed pod loses the part that it was working on.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from draftyard_api import __version__
from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.names import ENV_SHARD, MANIFEST, conversation_shard_path
from draftyard_api.progress import Regenerated, StageResult
from draftyard_api.reasons import Reason
from draftyard_api.spec import OwnAnswers
from draftyard_api.task import RegenerateTask
from draftyard_trainer import process
from draftyard_trainer.chat_endpoint import Asking, EngineSpeaker
from draftyard_trainer.data.built_in import known_format
from draftyard_trainer.data.conversation import SkipReason
from draftyard_trainer.data.conversations import (
    ConversationManifest,
    ConversationShard,
    ConversationsKey,
    Counted,
    Part,
    counted,
    write_key,
)
from draftyard_trainer.data.source import RowSource, open_rows
from draftyard_trainer.data.template import ChatTemplate
from draftyard_trainer.data.tokenizer import load_tokenizer, stop_ids
from draftyard_trainer.dialogue import Dialogue, Manner, Speaker, hold
from draftyard_trainer.reporting import Reporter
from draftyard_trainer.speaker import TargetSpeaker
from draftyard_trainer.storage.opening import open_store
from draftyard_trainer.storage.store import Store
from draftyard_trainer.target.capture import CapturedTarget
from draftyard_trainer.target.location import TargetFiles, locate, require_one_gpu

PART_ROWS = 64
"""Conversations that go on together: what a batch of the target is taken from, and what a killed pod loses."""
ENGINE_PART_ROWS = 512
"""The same with an engine, which answers many at once. How parts are cut is a part of the key's format."""
MAX_NOT_FINITE_SHARE = 0.001
"""Conversations with logits that are not finite; one is always allowed."""


@dataclass(frozen=True, eq=False)
class Work:
    """One shard to make, and from what."""

    shard: ConversationShard
    number: int
    key: ConversationsKey
    task: RegenerateTask
    own: OwnAnswers
    source: RowSource
    files: TargetFiles
    tokenizer: PreTrainedTokenizerBase
    manner: Manner
    part_rows: int


def regenerate(task: RegenerateTask, reporter: Reporter) -> StageResult:
    """Make one shard, unless it is there.

    Raises Failure: NOT_FOUND without the model or the data, UNSUPPORTED for a target that cannot be used, BAD_DATA for
    data that cannot be read, BAD_SHARD for too many conversations with numbers that are not finite, UNAVAILABLE when an
    engine is out of reach, NO_SPACE, INTERRUPTED.
    """
    return regenerate_in(open_store(task.workspace, task.workspace_s3), task, reporter)


def regenerate_in(store: Store, task: RegenerateTask, reporter: Reporter, part_rows: int | None = None) -> StageResult:
    """The same, in a store that is open; `part_rows` other than those that the key's format names are for tests."""
    work = plan_work(store, task)
    if part_rows is not None:
        work = replace(work, part_rows=part_rows)
    write_key(store, work.key, task.num_shards)
    manifest = work.shard.manifest()
    if manifest is None or manifest.key != work.key.sha256():
        manifest = make_shard(work, speaker_of(work, reporter), reporter)
    work.shard.tidy(manifest)
    return result(work, manifest)


def plan_work(store: Store, task: RegenerateTask) -> Work:
    """Read what the task names: everything but the weights. Raises Failure."""
    own, data = task.data.regenerate, task.data
    if own is None:
        raise Failure(ExitCode.BAD_TASK, Reason.TASK_REJECTED, "data.regenerate: given none; accepted: a block")
    number = shard_number(task)
    source = open_rows(data.source)
    if own.engine is None:
        require_one_gpu(task.target, "with data.regenerate and no engine")
    files = locate(task.target, weights=own.engine is None)
    tokenizer = load_tokenizer(files.path, task.target.model, task.target.trust_remote_code)
    template = ChatTemplate(tokenizer, data.template_kwargs, known_format(data.chat_template))
    positions = int(files.config.get("max_position_embeddings") or data.max_length)
    key = ConversationsKey(
        target=files.identity,
        dtype=task.target.dtype,
        data_sha256=source.sha256(),
        template_sha256=hashlib.sha256(template.text.encode()).hexdigest(),
        template_kwargs=data.template_kwargs,
        stop_ids=stop_ids(files.path, files.config, tokenizer, data.stop_tokens),
        max_samples=data.max_samples,
        max_length=data.max_length,
        max_new_tokens=own.max_new_tokens,
        temperature=repr(float(own.temperature)),
        seed=task.seed if own.temperature > 0 else None,
        engine="transformers" if own.engine is None else f"engine {served_name(task, own)}",
    )
    room = min(data.max_length, positions)
    return Work(
        shard=ConversationShard(store, conversation_shard_path(key.name(), task.num_shards, number)),
        number=number, key=key, task=task, own=own, source=source, files=files, tokenizer=tokenizer,
        manner=Manner(template, tokenizer.backend_tokenizer, room, own.max_new_tokens),
        part_rows=PART_ROWS if own.engine is None else ENGINE_PART_ROWS,
    )  # fmt: skip


def shard_number(task: RegenerateTask) -> int:
    """The task's own number, else the pod's completion index. Raises Failure(BAD_TASK) without either."""
    given = os.environ.get(ENV_SHARD) if task.shard is None else str(task.shard)
    if given is None or not given.isdecimal() or int(given) >= task.num_shards:
        message = f"shard: given {given}; accepted: 0 to {task.num_shards - 1}, in {ENV_SHARD} or in the task"
        raise Failure(ExitCode.BAD_TASK, Reason.TASK_REJECTED, message)
    return int(given)


def served_name(task: RegenerateTask, own: OwnAnswers) -> str:
    """The name under which an engine serves the target."""
    named = own.engine.model if own.engine is not None else None
    return named or task.target.model.removeprefix("hf://")


def speaker_of(work: Work, reporter: Reporter) -> Speaker:
    """Who answers. Raises Failure(UNSUPPORTED) for a target that cannot be loaded."""

    def look() -> None:
        # a heartbeat, and the safe point at which a stop is heard: a part is whole or not there
        reporter.advance(0)

    own, data, seed = work.own, work.task.data, work.task.seed
    if own.engine is not None:
        asking = Asking(served_name(work.task, own), own.temperature, seed, data.template_kwargs, data.stop_tokens)
        return EngineSpeaker(own.engine, asking, look)
    target = CapturedTarget.load(work.files, work.task.target.dtype, ())
    return TargetSpeaker(target, work.tokenizer, work.key.stop_ids, own.temperature, seed, look)


# -- The shard ------------------------------------------------------------------------------------


def make_shard(work: Work, speaker: Speaker, reporter: Reporter) -> ConversationManifest:
    """Make the parts that are not committed yet, then the manifest; or take what another attempt completed."""
    started = time.monotonic()
    # read twice, so that no more than a part is in memory
    num_rows = sum(1 for _ in rows_of(work))
    mine = range(work.number, num_rows, work.task.num_shards)
    cut = [mine[start : start + work.part_rows] for start in range(0, len(mine), work.part_rows)]
    parts = committed(work, cut)
    found = total(parts)
    reporter.begin("answering", "conversations", total=len(mine), done=found.rows)
    for number, dialogues in enumerate(dialogues_of(work)):
        if number in parts:
            continue
        beaten_by = work.shard.manifest()
        if beaten_by is not None and beaten_by.key == work.key.sha256():
            return beaten_by
        lines = hold(dialogues, work.manner, speaker)
        refuse_not_finite(work, total(parts) + counted(lines))
        parts[number] = work.shard.commit(number, lines)
        rate = (total(parts).tokens - found.tokens) / max(time.monotonic() - started, 1e-9)
        reporter.update(tokens_per_second=f"{rate:.0f}")
        reporter.advance(len(dialogues))
    manifest = summarise(work, speaker, [parts[number] for number in range(len(cut))], found, started)
    work.shard.complete(manifest)
    return manifest


def rows_of(work: Work) -> Iterator[Any]:
    """The rows of the source that are read at all."""
    return itertools.islice(work.source.rows(), work.task.data.max_samples)


def dialogues_of(work: Work) -> Iterator[list[Dialogue]]:
    """The shard's rows, part by part, as conversations that are not held yet: every attempt cuts alike."""
    mine = itertools.islice(enumerate(rows_of(work)), work.number, None, work.task.num_shards)
    while part := [Dialogue.of(place, row) for place, row in itertools.islice(mine, work.part_rows)]:
        yield part


def committed(work: Work, cut: Sequence[range]) -> dict[int, Part]:
    """Parts that an earlier attempt left, whole and of the same rows, by number."""
    left = work.shard.committed()
    found: dict[int, Part] = {}
    for number, rows in enumerate(cut):
        part = work.shard.read_part(number, left[number], rows) if number in left else None
        if part is not None:
            found[number] = part
    return found


def total(parts: Mapping[int, Part]) -> Counted:
    """What some parts came to."""
    return sum((part.counts for part in parts.values()), Counted())


def summarise(
    work: Work, speaker: Speaker, parts: Sequence[Part], found: Counted, started: float
) -> ConversationManifest:
    """The manifest of a finished shard."""
    seconds = time.monotonic() - started
    counts = sum((part.counts for part in parts), Counted())
    said = counts.tokens - found.tokens
    return ConversationManifest(
        key=work.key.sha256(),
        shard=work.number,
        shards=work.task.num_shards,
        counts=counts,
        parts=tuple(part.stored for part in parts),
        product=__version__,
        device=speaker.device,
        seconds=round(seconds, 3),
        tokens_per_second=round(said / max(seconds, 1e-9), 1) if said else None,
    )


def refuse_not_finite(work: Work, counts: Counted) -> None:
    """Raises Failure when more conversations met logits that are not finite than chance explains."""
    bad = counts.skipped.get(SkipReason.NOT_FINITE, 0)
    if bad and not counts.conversations:
        message = (
            f"target.dtype: given {work.task.target.dtype}; no logits of {bad} conversations are finite; accepted: the "
            "dtype that the target was made for, as in its config.json"
        )
        raise Failure(ExitCode.BAD_DATA, Reason.DATA_REJECTED, message)
    allowed = max(1, int(MAX_NOT_FINITE_SHARE * counts.rows))
    if bad > allowed:
        message = (
            f"{work.shard.folder}: {bad} of {counts.rows} conversations have logits that are not finite; accepted: "
            f"{allowed}; check target.dtype"
        )
        raise Failure(ExitCode.BAD_SHARD, Reason.SHARDS_FAILED, message)


# -- What comes out -------------------------------------------------------------------------------


def result(work: Work, manifest: ConversationManifest) -> StageResult:
    """How the stage ended."""
    counts = manifest.counts
    content = work.shard.store.read(f"{work.shard.folder}/{MANIFEST}")
    return StageResult(
        stage=work.task.stage,
        message=(
            f"{counts.conversations} conversations, {counts.answers} answers of {counts.tokens} tokens, "
            f"{counts.unfinished} cut at their limit; {sum(counts.skipped.values())} rows skipped"
        ),
        manifest_sha256=hashlib.sha256(content).hexdigest(),
        bytes=manifest.bytes,
        regenerated=Regenerated(
            key=work.key.name(),
            shard=work.number,
            shards=work.task.num_shards,
            conversations=counts.conversations,
            answers=counts.answers,
            unfinished=counts.unfinished,
            tokens=counts.tokens,
            skipped=counts.skipped,
            target_commit=work.files.identity,
            tokens_per_second=manifest.tokens_per_second,
        ),
    )


if __name__ == "__main__":
    sys.exit(process.main(RegenerateTask, regenerate))
