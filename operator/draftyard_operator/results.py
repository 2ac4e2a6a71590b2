"""From what a stage left behind to what the status keeps of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from draftyard_api import plan, serving, storage_uri
from draftyard_api.names import WORKSPACE_MOUNT, Stage
from draftyard_api.progress import Acceptance, Prepared, Progress, StageResult
from draftyard_api.status import (
    AcceptanceStatus,
    CheckpointStatus,
    DraftTrainingStatus,
    ExportStatus,
    HiddenStatesStatus,
    ProgressStatus,
    Resolved,
)
from draftyard_api.task import ConversationsRef
from draftyard_operator import intervals, times
from draftyard_operator.ledger import MAX_MESSAGE, Ledger
from draftyard_operator.observe import Child, Pod
from draftyard_operator.run import claim_name, shards_of

WRITE_SECONDS = 10
"""Progress is stored at most this often."""
KEEP_ALIVE_SHARE = 6
"""A heartbeat without progress is stored this many times within deadlines.progressSeconds."""


def succeeded(pods: Sequence[Pod]) -> list[StageResult]:
    """Results of the pods of an attempt that ended well, the lowest index first."""
    ended = sorted((pod for pod in pods if pod.end is not None), key=lambda pod: pod.index)
    return [pod.end.result for pod in ended if pod.end and pod.end.result and not pod.end.result.exit_code]


# -- What regenerate left --------------------------------------------------------------------------------------------


def keep_conversations(ledger: Ledger, results: Iterable[StageResult]) -> bool:
    """Keep where the target's own answers are, and which target it was. Returns whether all shards say the same."""
    made = [result.regenerated for result in results if result.regenerated is not None]
    if len({(one.key, one.target_commit) for one in made}) != 1:
        return False
    before = ledger.status.resolved or Resolved()
    known = {"conversations": made[0].key, "target_commit": made[0].target_commit}
    ledger.change(resolved=before.model_copy(update=known))
    return True


def stored_conversations(status: DraftTrainingStatus) -> ConversationsRef | None:
    """What was kept of regenerate; None for a run without that stage."""
    key = status.resolved.conversations if status.resolved else None
    shards = status.plan.regenerate_shards if status.plan else None
    return None if key is None or shards is None else ConversationsRef(key=key, num_shards=shards)


# -- What prepare found -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StoredPrepared:
    """What later tasks name the result of prepare by, read back from the status."""

    prepared: str
    aux_layers: tuple[int, ...]
    fingerprint: str
    documents: int


def stored_prepared(status: DraftTrainingStatus) -> StoredPrepared:
    """What was kept of prepare; it is there once the stage has succeeded."""
    resolved, plan = status.resolved, status.plan
    assert resolved is not None
    assert resolved.prepared is not None
    assert resolved.aux_layers is not None
    assert plan is not None
    assert status.fingerprint is not None
    return StoredPrepared(resolved.prepared, resolved.aux_layers, status.fingerprint, plan.samples)


def keep_prepared(ledger: Ledger, prepared: Prepared, image: str) -> None:
    """Keep what names in the spec turned out to stand for."""
    template = ledger.run.wanted.data.chat_template
    resolved = Resolved(
        target_commit=prepared.target_commit,
        data_revision=prepared.data_sha256,
        chat_template="tokenizer" if template == "auto" else template,
        aux_layers=prepared.aux_layers,
        conversations=ledger.status.resolved.conversations if ledger.status.resolved else None,
        prepared=prepared.prepared,
        image=image or None,
    )
    ledger.change(resolved=resolved, fingerprint=prepared.fingerprint)


# -- What the other stages made ---------------------------------------------------------------------------------------


def keep_result(ledger: Ledger, result: StageResult) -> None:
    """Keep what a stage reached, also of one that missed its gate."""
    if result.trained is not None:
        trained = result.trained
        keep_resumed(ledger, result.resumed_from_step)
        ledger.change(checkpoint=CheckpointStatus(last_step=trained.steps, best_step=max(trained.best_step, 0)))
        keep_acceptance(ledger, trained.acceptance)
        keep_on_policy(ledger, trained.on_policy)
    if result.acceptance is not None:
        keep_acceptance(ledger, result.acceptance)
    if result.published is not None:
        uri = as_users_see(ledger, result.published)
        ledger.change(
            export=ExportStatus(
                published=True, uri=uri, manifest_sha256=result.manifest_sha256, serve=serve_lines(ledger, uri)
            )
        )
    stored = ledger.status.hidden_states
    if stored is not None and result.states_reclaimed is not None:
        ledger.change(hidden_states=stored.model_copy(update={"reclaimed": result.states_reclaimed}))


def keep_acceptance(ledger: Ledger, found: Acceptance) -> None:
    """How many tokens one verification step yields."""
    told = AcceptanceStatus(
        length=found.length, per_position=found.per_position[:16], draft_tokens=found.draft_tokens,
        prompts=found.prompts, source="Measured" if found.source == "Measured" else "Simulated",
    )  # fmt: skip
    ledger.change(acceptance=told)


def keep_on_policy(ledger: Ledger, share: str | None) -> None:
    """How much of the data the target itself would have said: once known, it is a fact about the data."""
    plan = ledger.status.plan
    if plan is not None and plan.on_policy_share is None and is_number(share):
        ledger.change(plan=plan.model_copy(update={"on_policy_share": share}))


def is_number(text: str | None) -> bool:
    """Whether a text is a finite number: a pod may say anything."""
    try:
        return text is not None and len(text) <= 32 and math.isfinite(float(text))
    except ValueError:
        return False


def as_users_see(ledger: Ledger, uri: str) -> str:
    """A location that a pod wrote to, as one outside of the pod names it."""
    pvc, prefix = ledger.run.wanted.workspace.pvc, f"file://{WORKSPACE_MOUNT}/"
    if pvc is None or not uri.startswith(prefix):
        return uri
    return f"pvc://{claim_name(ledger.run)}/{uri.removeprefix(prefix)}"


def serve_lines(ledger: Ledger, uri: str) -> dict[str, str]:
    """How to serve the draft."""
    spec = ledger.run.wanted
    target = storage_uri.parse(spec.target.model)
    name = target.path if target.scheme == "hf" else str(target)
    draft_tokens, tree = plan.draft_tokens(spec), spec.evaluate.tree if spec.evaluate else None
    return {"vllm": serving.vllm(name, uri, draft_tokens), "sglang": serving.sglang(name, uri, draft_tokens, tree)}


def keep_states(ledger: Ledger, results: Iterable[StageResult]) -> None:
    """Bytes and key of the hidden states, from the shards whose results are there."""
    shards = [result.hidden_states for result in results if result.hidden_states is not None]
    if not shards:
        return
    known, number = sum(shard.bytes for shard in shards), ledger.status.plan.shards if ledger.status.plan else None
    # pods may be collected before the others end: what is not known is taken to be like what is
    stored = known * max(number or 0, len(shards)) // len(shards)
    agreements = [float(shard.argmax_agreement) for shard in shards if shard.argmax_agreement is not None]
    ledger.change(
        hidden_states=HiddenStatesStatus(
            key=shards[0].key, bytes=stored, argmax_agreement=f"{min(agreements):.4f}" if agreements else None
        )
    )


# -- Progress ---------------------------------------------------------------------------------------------------------


def keep_saved(ledger: Ledger, reading: Progress | None) -> None:
    """Keep which checkpoints training would go on from, and export."""
    if reading is None or reading.stage is not Stage.TRAIN or reading.checkpoint_step is None:
        return
    last, best = max(reading.checkpoint_step, 0), reading.best_step
    ledger.change(checkpoint=CheckpointStatus(last_step=last, best_step=None if best is None else max(best, 0)))


def keep_shards(ledger: Ledger, stage: Stage, child: Child) -> None:
    """Which shards are finished, and which are given up."""
    completed = intervals.shorten(child.completed, MAX_MESSAGE)
    ledger.change_stage(stage, completed_shards=completed, failed_shards=child.failed)


def keep_progress(ledger: Ledger, reading: Progress | None, child: Child) -> None:
    """Store a reading when it says a percent more, or now and then that the stage is alive."""
    before = ledger.status.progress
    if reading is None:
        return
    if reading.stage is Stage.TRAIN:
        keep_resumed(ledger, reading.resumed_from_step)
        keep_on_policy(ledger, reading.on_policy)
    told = progress_status(ledger, reading, child)
    if before is not None and not is_news(ledger, before, told):
        return
    ledger.change(progress=told)


def keep_resumed(ledger: Ledger, step: int | None) -> None:
    """Keep at which checkpoint training went on; a Job may replace its pod within an attempt."""
    if step is not None:
        ledger.change_stage(Stage.TRAIN, resumed_from_step=max(step, 0))


def is_news(ledger: Ledger, before: ProgressStatus, told: ProgressStatus) -> bool:
    """Whether a reading is worth a write."""
    if before.heartbeat == told.heartbeat or before.last_updated_time is None:
        return before.heartbeat is None
    age = times.seconds_since(before.last_updated_time, ledger.now)
    if age < WRITE_SECONDS:
        return False
    keep_alive = ledger.run.wanted.deadlines.progress_seconds / KEEP_ALIVE_SHARE
    return before.percent != told.percent or age >= keep_alive


def progress_status(ledger: Ledger, reading: Progress, child: Child) -> ProgressStatus:
    """A reading as the status tells it."""
    done, total = reading.done, reading.total
    remaining = reading.estimated_remaining_seconds
    shards = shards_of(ledger.status, reading.stage)
    if shards is not None:
        # the pod that was asked knows its own shard only
        done, total = intervals.count(child.completed), shards
        remaining = None
    percent = min(100 * done // total, 100) if total else None
    return ProgressStatus(
        percent=percent,
        percentage=None if percent is None else f"{percent}%",
        step=reading.step, total_steps=reading.total_steps, epoch=reading.epoch, loss=reading.loss,
        tokens_per_second=reading.tokens_per_second,
        eta=None if remaining is None else times.duration(max(remaining, 0)),
        estimated_remaining_seconds=None if remaining is None else max(remaining, 0),
        heartbeat=max(int(reading.heartbeat), 0),
        last_updated_time=ledger.time,
    )  # fmt: skip
