"""The end of a training: the best checkpoint becomes an export, and the result is kept for whoever asks again."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from pydantic import ValidationError

from draftyard_api.exit_codes import Failure
from draftyard_api.names import PUBLISHED, RESULT_FILE, Stage, export_path, train_path
from draftyard_api.progress import StageResult, Trained
from draftyard_api.spec import Train
from draftyard_api.task import TrainTask
from draftyard_trainer import optim
from draftyard_trainer.checkpoint import CheckpointManifest, Score
from draftyard_trainer.data.prepared import PreparedDataset
from draftyard_trainer.draft.manifest import (
    Conventions,
    DataIdentity,
    Provenance,
    Schedule,
    Selected,
    TargetIdentity,
    TextIdentity,
    VocabularyIdentity,
)
from draftyard_trainer.export import LLAMA, Evidence, export_draft, open_export, publish, target_facts
from draftyard_trainer.loop import Trainer
from draftyard_trainer.loss import DECAY
from draftyard_trainer.storage.store import Store


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a finished training hands to its export."""

    task: TrainTask
    dataset: PreparedDataset
    state: CheckpointManifest
    best: Score
    trained: Trained
    on_policy: str
    """Share of the last step's label rows whose next token is the target's own choice; empty without a step."""
    target_identity: str
    """Commit or content hash of the target."""
    resumed_from: int | None = None
    """Step of the checkpoint at which the process went on that came to the end."""
    stopped_early: str | None = None
    """Why there were fewer steps than planned."""


def find_finished(store: Store, task: TrainTask) -> StageResult | None:
    """The stored result of this very training, if its export is still there and whole."""
    name = result_name(task)
    try:
        result = StageResult.model_validate_json(store.read(name))
        exported = open_export(store, task.run, task.fingerprint)
    except (FileNotFoundError, ValidationError, Failure):
        return None
    published = store.exists(f"{export_path(task.run)}/{PUBLISHED}")
    if exported.manifest_sha256 != result.manifest_sha256 or (task.publishes and not published):
        return None
    return result


def result_name(task: TrainTask) -> str:
    """Where the result of a finished training is kept."""
    return f"{train_path(task.run)}/{RESULT_FILE}"


def export_best(store: Store, outcome: Outcome, trainer: Trainer) -> StageResult:
    """Export the draft that the trainer holds, publish it if no evaluate stage decides, and keep the result."""
    task, draft = outcome.task, trainer.draft
    name = export_path(task.run)
    head = trainer.source.head
    facts = target_facts(draft.config, head.config, outcome.dataset.manifest.key, task.target.dtype)
    (sample,) = trainer.source.samples([probe_document(outcome.dataset)])
    # a text model inside of a larger one has no class of its own
    architectures = tuple(head.config.get("architectures") or LLAMA)
    evidence = Evidence(facts, sample, head.embed, task.train.ttt_steps, architectures)
    sha256 = export_draft(store, name, draft, provenance(outcome), evidence)
    published = publish(store, task.run, task.target, outcome.trained.acceptance) if task.publishes else None
    exported = f"exported step {outcome.best.step} of {outcome.state.total_steps}"
    result = StageResult(
        stage=Stage.TRAIN,
        message="; ".join(filter(None, (exported, outcome.stopped_early))),
        manifest_sha256=sha256,
        bytes=sum(store.size(file) or 0 for file in store.list(name)),
        trained=outcome.trained,
        resumed_from_step=outcome.resumed_from,
        published=published,
    )
    store.publish(result_name(task), result.model_dump_json(by_alias=True, exclude_none=True).encode())
    return result


def probe_document(dataset: PreparedDataset) -> int:
    """The training document whose length is the median: long enough to see rope, short enough to be quick."""
    ids = dataset.train_ids
    by_length = ids[np.argsort(dataset.lengths[ids], kind="stable")]
    return int(by_length[len(by_length) // 2])


def provenance(outcome: Outcome) -> Provenance:
    """Everything that the manifest says of where the draft comes from."""
    task, dataset, best = outcome.task, outcome.dataset, outcome.best
    manifest, train = dataset.manifest, task.train
    key = manifest.key
    return Provenance(
        run=task.run,
        fingerprint=task.fingerprint,
        profile=task.draft.profile,
        target=TargetIdentity(model=task.target.model, commit=outcome.target_identity, dtype=task.target.dtype),
        text=TextIdentity(
            tokenizer_sha256=key.tokenizer_sha256,
            template_sha256=key.template_sha256,
            template_kwargs=key.template_kwargs,
        ),
        data=DataIdentity(
            revision=manifest.data_sha256,
            tokens_sha256=manifest.tokens_sha256,
            documents=manifest.counts.train_documents,
            tokens=manifest.counts.train_tokens,
            on_policy=outcome.on_policy or None,
        ),
        initial_draft=key.initial_draft,
        hidden_states_key=task.hidden_states.key if task.hidden_states else None,
        conventions=Conventions(
            alignment=train.loss_mask_alignment,
            normalise="tokens",
            objective=train.objective,
            out_of_vocab=train.out_of_vocab,
            unroll=train.unroll,
            ttt_steps=train.ttt_steps,
            decay=DECAY,
        ),
        vocabulary=VocabularyIdentity(
            size=manifest.vocab_size,
            sha256=hashlib.sha256(dataset.vocabulary.ids.astype("<i8").tobytes()).hexdigest(),
            coverage=f"{manifest.vocab_coverage:.4f}",
        ),
        schedule=Schedule(
            steps=outcome.state.step,
            epochs=train.epochs,
            stopped_early=outcome.stopped_early,
            seed=train.seed,
            plan_hash=outcome.state.identity.plan_hash,
            optimizer=optimizer_numbers(train),
        ),
        checkpoint=Selected(step=best.step, why=reason(outcome)),
        metrics=metrics(best),
    )


def reason(outcome: Outcome) -> str:
    """Why this checkpoint."""
    evaluations = len(outcome.state.scores)
    if not evaluations:
        return "the last one: no held-out documents have states"
    return f"highest simulated acceptance length of {evaluations} evaluations"


def optimizer_numbers(train: Train) -> dict[str, float | int | str]:
    """AdamW and its schedule."""
    return {
        "name": "adamw",
        "beta1": optim.BETAS[0],
        "beta2": optim.BETAS[1],
        "eps": optim.EPS,
        "learningRate": train.learning_rate,
        "warmupRatio": train.warmup_ratio,
        "gradClip": train.grad_clip,
        "weightDecay": train.weight_decay,
        "tokensPerBatch": train.tokens_per_batch,
        "rowTokens": train.row_tokens,
    }


def metrics(best: Score) -> dict[str, str]:
    """The held-out numbers of the exported checkpoint, as texts; none when nothing was held out."""
    if not best.documents:
        return {}
    positions = {f"prefix_accuracy_{step}": f"{share:.4f}" for step, share in enumerate(best.per_position)}
    return {"tau_sim": f"{best.tau_sim:.4f}", **positions}
