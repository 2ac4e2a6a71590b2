"""The stage `evaluate`: what acceptance length the exported draft reaches, and whether it may be published.

The target answers prompts, our evaluator counts what a server would accept, the gate decides. A running engine can be
measured instead; what we predict for it is told beside it.
Everything is found again by a second attempt: answers, the report, the publication.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator, Sequence

from pydantic import ValidationError

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.names import EVALUATION, Stage, export_path
from draftyard_api.progress import Acceptance, StageResult
from draftyard_api.reasons import Reason
from draftyard_api.task import EvaluateTask
from draftyard_trainer import process
from draftyard_trainer.answers import Answer, Answers, answer_prompts
from draftyard_trainer.chain import ForcedCounts, count_forced, count_rounds, propose, share_forced
from draftyard_trainer.costs import predict_speedup
from draftyard_trainer.data.document import Ids
from draftyard_trainer.data.prepared import PreparedDataset
from draftyard_trainer.data.questions import file_sha256
from draftyard_trainer.draft.files import read_draft
from draftyard_trainer.draft.manifest import Evaluation, Seconds, Settings, TeacherForced
from draftyard_trainer.draft.model import DraftModel
from draftyard_trainer.export import ExportedDraft, open_export, publish
from draftyard_trainer.found import SHARED, AnswerCounts, Found
from draftyard_trainer.hidden_states.reclaiming import reclaim
from draftyard_trainer.hidden_states.sample import Sample
from draftyard_trainer.prompts import Limits, Prompts, choose_sets, no_prompts
from draftyard_trainer.reporting import Reporter
from draftyard_trainer.sampled import Draws, accept, acceptance_shares, uniforms
from draftyard_trainer.samples import sample_replies
from draftyard_trainer.served import open_engine, require_model, serve_answers
from draftyard_trainer.storage.opening import open_store
from draftyard_trainer.storage.store import Store
from draftyard_trainer.target.capture import CapturedTarget
from draftyard_trainer.target.location import locate
from draftyard_trainer.tracking.following import send_results
from draftyard_trainer.tree import propose_tree

AGREEMENT = 0.02
"""What an engine that serves this very draft stays within, in float32 at temperature 0."""
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
    """The settings that decide the result. Raises Failure(NOT_FOUND) when the task names prompts that are not there."""
    wanted = task.evaluate
    return Settings(
        draft_tokens=wanted.tree.steps if wanted.tree else wanted.draft_tokens,
        max_prompts=wanted.max_prompts,
        max_new_tokens=wanted.max_new_tokens,
        temperature=wanted.temperature,
        proposal=wanted.proposal,
        evaluator="engine" if wanted.engine else "draftyard",
        prompt_sets=wanted.prompt_sets,
        prompt_file_sha256=file_sha256(wanted.prompt_file),
        tree=wanted.tree,
        seed=task.seed if wanted.temperature else None,
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
    """Ask the target, let the draft propose, count; then ask the engine, where there is one."""
    dataset = PreparedDataset.open_checked(store, task.prepared)
    files = locate(task.target)
    settings = judged_as(task)
    max_positions = int(files.config.get("max_position_embeddings") or sys.maxsize)
    limits = Limits(settings.max_prompts, settings.max_new_tokens, max_positions)
    # Before the target is loaded: what cannot be judged should fail in seconds.
    chosen = choose_sets(task, dataset, files, limits)
    engine = open_engine(task, settings)
    # Also when every answer is known: the states of the answers are never stored.
    target = CapturedTarget.load(files, task.target.dtype, exported.manifest.aux_layers)
    stop_ids = dataset.manifest.stop_ids
    started = time.monotonic()
    answered = []
    for prompts in chosen:
        wanted = Answers(
            target=files.identity,
            dtype=task.target.dtype,
            tokens_sha256=prompts.source_sha256,
            stop_ids=stop_ids,
            max_new_tokens=settings.max_new_tokens,
            prompt_set=prompts.name,
            temperature=int(settings.temperature),
            seed=settings.seed or 0,
        )
        answered.append(answer_set(store, task.run, wanted, prompts, target, reporter))
    ready = time.monotonic()
    # Answers and states are in float32 on a CPU, so ids agree with an engine that computes in float32.
    draft = load_beside(exported, target)
    counts = [
        draft_answers(draft, target, answers, settings, prompts.name, reporter)
        for prompts, answers in zip(chosen, answered, strict=True)
    ]
    for prompts, answers, own in zip(chosen, answered, counts, strict=True):
        if not any(count.rounds for count in own.rounds):
            raise no_prompts(f"the target ends each of {len(answers)} answers to {prompts.name} after one token")
    seconds = Seconds(answering=round(ready - started, 3), drafting=round(time.monotonic() - ready, 3))
    found = Found(chosen, answered, counts)
    if engine is not None:
        require_model(engine, target, answered[0])
        found.served = [serve_answers(engine, answers, settings, stop_ids, reporter) for answers in answered]
    first = found.acceptance(0)
    return Evaluation(
        manifest_sha256=exported.manifest_sha256,
        settings=settings,
        **first.model_dump(include=set(SHARED)),
        teacher_forced=predict(counts[0].forced),
        seconds=seconds,
        sets=tuple(found.acceptance(place) for place in range(len(chosen))),
        together=found.together() if len(chosen) > 1 else None,
        speedup=predict_speedup(target, draft, answered[0][0].document(), settings, first.length),
        engine=found.described(engine) if engine is not None else None,
        samples=sample_replies(files, answered[0], counts[0].rounds),
    )


def answer_set(
    store: Store, run: str, wanted: Answers, prompts: Prompts, target: CapturedTarget, reporter: Reporter
) -> tuple[Answer, ...]:
    """The target's answers to a set: to what is asked first, then to what is asked behind these answers."""
    asked = dict(prompts.first)
    answers = answer_prompts(store, run, wanted, asked, target, reporter)
    for turn in itertools.count(1):
        further = prompts.next_turn(turn, answers)
        if not further:
            return answers
        asked |= further
        answers = answer_prompts(store, run, wanted, asked, target, reporter)
    raise AssertionError


def draft_answers(
    draft: DraftModel,
    target: CapturedTarget,
    answers: Sequence[Answer],
    settings: Settings,
    prompt_set: str,
    reporter: Reporter,
) -> AnswerCounts:
    """Let the draft propose at every position of every answer, and count."""
    counts = AnswerCounts([], [])
    reporter.begin("drafting", "prompts", total=len(answers))
    for batch in batches(answers):
        for answer, sample in zip(batch, target.capture([answer.document() for answer in batch]), strict=True):
            tokens, length = sample.document.tokens, len(answer.prompt)
            # Both passes took 2 s where the target's answers took 29 s (SmolLM2, 16 replies of 64 tokens, two cores).
            own = proposals(draft, target, sample, settings, prompt_set)
            counts.rounds.append(count_rounds(tokens, length, own))
            forced = propose(draft, sample, settings.draft_tokens, forced=True)
            counts.forced.append(count_forced(tokens, length, forced))
        reporter.advance(len(batch))
    return counts


def proposals(draft: DraftModel, target: CapturedTarget, sample: Sample, settings: Settings, prompt_set: str) -> Ids:
    """What a round can accept of an answer at every position, `[K, n]`."""
    if settings.tree is not None:
        return propose_tree(draft, sample, settings.tree)
    if settings.temperature:
        document = sample.document
        chances = uniforms(settings.seed or 0, prompt_set, document.doc_id, Draws.ACCEPT, document.num_tokens)
        shares = acceptance_shares(draft, target.head, sample, settings.draft_tokens)
        return accept(document.tokens, shares, chances)
    return propose(draft, sample, settings.draft_tokens, forced=False)


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
        message="; ".join((verdict, *remarks(report))),
        manifest_sha256=exported.manifest_sha256,
        bytes=sum(file.bytes for file in exported.manifest.files.values()),
        acceptance=acceptance,
        published=publish(store, task.run, task.target, acceptance, report.settings),
    )


def explain(report: Evaluation, required: float | None) -> str:
    """The result in one line; says so when the gate lies inside the interval, so that chance may have decided."""
    tree = report.settings.tree
    proposed = f"a tree of {tree.draft_tokens} tokens" if tree else f"{report.settings.draft_tokens} draft tokens"
    behind = f"({report.prompts} prompts, {proposed})"
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


def remarks(report: Evaluation) -> Iterator[str]:
    """What else a person should know, each in a few words."""
    for one in report.sets[1:]:
        yield f"{one.name} {one.length:.2f} ({one.prompts} prompts)"
    if report.speedup is not None:
        yield f"predicted speed-up {report.speedup.value:.2f} for one user"
    engine = report.engine
    if engine is None:
        return
    yield f"measured in {engine.name} {engine.version}, {engine.difference:+.1%} from the predicted length"
    if not report.settings.temperature and abs(engine.difference) > AGREEMENT:
        yield f"more than {AGREEMENT:.0%} apart: does it serve this draft?"


if __name__ == "__main__":
    sys.exit(process.main(EvaluateTask, evaluate))
