"""The stage `evaluate`: what acceptance length the exported draft reaches, and whether it may be published.

The target answers held-out prompts greedily, the chain evaluator counts what a server would accept, the gate decides.
Everything is found again by a second attempt: answers, the report, the publication.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.names import EVALUATION, Stage, export_path
from draftyard_api.progress import Acceptance, StageResult
from draftyard_api.reasons import Reason
from draftyard_api.task import EvaluateTask
from draftyard_trainer import process
from draftyard_trainer.answers import Answer, Answers, answer_prompts, choose_prompts
from draftyard_trainer.chain import (
    ForcedCounts,
    RoundCounts,
    count_forced,
    count_rounds,
    propose,
    share_forced,
    summarise,
)
from draftyard_trainer.data.prepared import PreparedDataset
from draftyard_trainer.draft.files import read_draft
from draftyard_trainer.draft.manifest import Evaluation, Seconds, Settings, TeacherForced
from draftyard_trainer.draft.model import DraftModel
from draftyard_trainer.export import ExportedDraft, open_export, publish
from draftyard_trainer.hidden_states.reclaiming import reclaim
from draftyard_trainer.reporting import Reporter
from draftyard_trainer.samples import sample_replies
from draftyard_trainer.storage.opening import open_store
from draftyard_trainer.storage.store import Store
from draftyard_trainer.target.capture import CapturedTarget
from draftyard_trainer.target.location import locate
from draftyard_trainer.tracking.following import send_results

TOKENS_AT_ONCE = 8192
"""Captured together: at most 0.4 GB of states for a width of 4096 in float32."""


def evaluate(task: EvaluateTask, reporter: Reporter) -> StageResult:
    """Judge the export of a run and publish it when it passes the gate.

    Raises Failure: STALE_INPUT without a whole export or prepared data, BAD_DATA without a usable held-out prompt,
    GATE_MISSED below the gate (the export and its report stay, unpublished), INTERRUPTED when a stop was asked for.
    """
    store = open_store(task.workspace, task.workspace_s3)
    exported = open_export(store, task.run, task.fingerprint)
    # The gate is no part of the report: it is applied to it, so a finished measurement is judged without the target.
    report = read_evaluation(store, task, exported)
    if report is None:
        report = measure(store, task, exported, reporter)
        content = report.model_dump_json(by_alias=True, exclude_none=True, indent=1).encode()
        store.publish(f"{export_path(task.run)}/{EVALUATION}", content)
    try:
        return reclaim(store, task, conclude(store, task, exported, report))
    finally:
        # Also below the gate: the report is there.
        send_results(store, task)


def judged_as(task: EvaluateTask) -> Settings:
    """The settings that decide the result."""
    wanted = task.evaluate
    return Settings(
        draft_tokens=wanted.draft_tokens, max_prompts=wanted.max_prompts, max_new_tokens=wanted.max_new_tokens
    )


def read_evaluation(store: Store, task: EvaluateTask, exported: ExportedDraft) -> Evaluation | None:
    """The report of an earlier attempt on this very export under these very settings."""
    try:
        found = Evaluation.model_validate_json(store.read(f"{export_path(task.run)}/{EVALUATION}"))
    except (FileNotFoundError, ValidationError):
        return None
    same = found.manifest_sha256 == exported.manifest_sha256 and found.settings == judged_as(task)
    return found if same else None


def measure(store: Store, task: EvaluateTask, exported: ExportedDraft, reporter: Reporter) -> Evaluation:
    """Ask the target, let the draft propose, count."""
    dataset = PreparedDataset.open_checked(store, task.prepared)
    files = locate(task.target)
    settings = judged_as(task)
    max_positions = int(files.config.get("max_position_embeddings") or sys.maxsize)
    # Before the target is loaded: what cannot be judged should fail in seconds.
    chosen = choose_prompts(dataset, settings.max_prompts, settings.max_new_tokens, max_positions)
    if not chosen.doc_ids:
        raise no_prompts(f"none of {len(dataset.held_out_ids)} held-out documents gives a prompt ({chosen.skipped})")
    # Also when every answer is known: the states of the answers are never stored.
    target = CapturedTarget.load(files, task.target.dtype, exported.manifest.aux_layers)
    wanted = Answers(
        target=files.identity,
        dtype=task.target.dtype,
        tokens_sha256=dataset.manifest.tokens_sha256,
        stop_ids=dataset.manifest.stop_ids,
        max_new_tokens=settings.max_new_tokens,
    )
    started = time.monotonic()
    prompts = {doc_id: dataset.prompt(doc_id) for doc_id in chosen.doc_ids}
    answers = answer_prompts(store, task.run, wanted, prompts, target, reporter)
    answered = time.monotonic()
    # Answers and states are in float32 on a CPU, so ids agree with an engine that computes in float32.
    counts = draft_answers(exported, target, answers, settings.draft_tokens, reporter)
    if not any(count.rounds for count in counts.rounds):
        raise no_prompts(f"the target ends each of {len(answers)} answers after one token")
    acceptance = summarise(counts.rounds)
    return Evaluation(
        manifest_sha256=exported.manifest_sha256,
        settings=settings,
        length=acceptance.length,
        interval=acceptance.interval,
        per_position=acceptance.per_position,
        rounds=acceptance.rounds,
        accepted=acceptance.accepted,
        prompts=len(answers),
        skipped_prompts=chosen.skipped,
        reply_tokens=sum(len(answer.reply) for answer in answers),
        teacher_forced=predict(counts.forced),
        seconds=Seconds(answering=round(answered - started, 3), drafting=round(time.monotonic() - answered, 3)),
        samples=sample_replies(files, answers, counts.rounds),
    )


@dataclass(frozen=True, eq=False)
class AnswerCounts:
    """Per answer: rounds of the chain, and the teacher-forced comparison."""

    rounds: list[RoundCounts]
    forced: list[ForcedCounts]


def draft_answers(
    exported: ExportedDraft, target: CapturedTarget, answers: Sequence[Answer], draft_tokens: int, reporter: Reporter
) -> AnswerCounts:
    """Let the draft propose at every position of every answer, and count."""
    draft = load_beside(exported, target)
    counts = AnswerCounts([], [])
    reporter.begin("drafting", "prompts", total=len(answers))
    for batch in batches(answers):
        for answer, sample in zip(batch, target.capture([answer.document() for answer in batch]), strict=True):
            tokens, length = sample.document.tokens, len(answer.prompt)
            # Both passes took 2 s where the target's answers took 29 s (SmolLM2, 16 replies of 64 tokens, two cores).
            own = propose(draft, sample, draft_tokens, forced=False)
            counts.rounds.append(count_rounds(tokens, length, own))
            forced = propose(draft, sample, draft_tokens, forced=True)
            counts.forced.append(count_forced(tokens, length, forced))
        reporter.advance(len(batch))
    return counts


def load_beside(exported: ExportedDraft, target: CapturedTarget) -> DraftModel:
    """The draft from its files alone, beside the target and with its embedding, as an engine has it."""
    embedding_VH = target.head.embed
    draft = read_draft(exported.folder, embedding_VH.dtype).model.to(target.device)
    draft.attach_embedding(embedding_VH)
    return draft


def batches(answers: Sequence[Answer]) -> Iterator[list[Answer]]:
    """Neighbours whose tokens fit into one capture; an answer that is longer goes alone."""
    batch: list[Answer] = []
    tokens = 0
    for answer in answers:
        size = len(answer.prompt) + len(answer.reply)
        if batch and tokens + size > TOKENS_AT_ONCE:
            yield batch
            batch, tokens = [], 0
        batch.append(answer)
        tokens += size
    if batch:
        yield batch


def predict(counts: Sequence[ForcedCounts]) -> TeacherForced:
    """What training would say of the same answers."""
    shares = share_forced(counts)
    return TeacherForced(length=1 + sum(shares), per_position=shares)


def no_prompts(what: str) -> Failure:
    """There is nothing to judge the draft on."""
    message = f"data.evalFraction: {what}; accepted: a fraction, or more data, that leaves conversations to ask"
    return Failure(ExitCode.BAD_DATA, Reason.DATA_REJECTED, message)


def conclude(store: Store, task: EvaluateTask, exported: ExportedDraft, report: Evaluation) -> StageResult:
    """Publish, or refuse. Raises Failure(GATE_MISSED)."""
    verdict = explain(report, task.evaluate.min_acceptance_length)
    required = task.evaluate.min_acceptance_length
    # The report is written already: a missed gate leaves something to look at.
    if required is not None and report.length < required:
        message = f"{verdict}; the export is kept, unpublished"
        raise Failure(ExitCode.GATE_MISSED, Reason.ACCEPTANCE_TOO_LOW, message)
    acceptance = Acceptance(
        length=f"{report.length:.2f}",
        per_position=tuple(f"{share:.2f}" for share in report.per_position),
        draft_tokens=report.settings.draft_tokens,
        prompts=report.prompts,
        source="Measured",
    )
    return StageResult(
        stage=Stage.EVALUATE,
        message=verdict,
        manifest_sha256=exported.manifest_sha256,
        bytes=sum(file.bytes for file in exported.manifest.files.values()),
        acceptance=acceptance,
        published=publish(store, task.run, task.target, acceptance, report.settings),
    )


def explain(report: Evaluation, required: float | None) -> str:
    """The result in one line; says so when the gate lies inside the interval, so that chance may have decided."""
    behind = f"({report.prompts} prompts, {report.settings.draft_tokens} draft tokens)"
    if required is None:
        return f"acceptance length {report.length:.2f} {behind}"
    # Ungated runs have no verdict to doubt, so the interval is left to the report.
    low, high = report.interval
    # 2.499 must not read as "2.50, required 2.5".
    digits = 2 if round(report.length, 2) < required or report.length >= required else 4
    line = f"acceptance length {report.length:.{digits}f}, required {required:g} {behind}"
    if low <= required <= high:
        line += f"; the gate lies inside the 95 % interval {low:.2f} to {high:.2f}"
    return line


if __name__ == "__main__":
    sys.exit(process.main(EvaluateTask, evaluate))
