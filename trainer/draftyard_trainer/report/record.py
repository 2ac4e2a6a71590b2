"""Everything that one run left in a workspace, read from manifests and curves alone: no weights, no target.

A run may be unfinished, ungated, without stored states or without held-out data: what is not there is None or empty.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.names import (
    EVALUATION,
    MANIFEST,
    METRICS,
    PUBLISHED,
    TASK_FILE,
    Stage,
    export_path,
    history_path,
    runs_path,
    train_path,
)
from draftyard_api.reasons import Reason
from draftyard_api.task import EvaluateTask, TrainTask
from draftyard_trainer.data.manifest import PreparedManifest
from draftyard_trainer.draft.manifest import Evaluation, Manifest, Published
from draftyard_trainer.history import StageEnd
from draftyard_trainer.report.curve import Curve, read_curve
from draftyard_trainer.report.documents import Documents, find_documents
from draftyard_trainer.report.states import States, View, find_states
from draftyard_trainer.storage.store import Store

ModelT = TypeVar("ModelT", bound=BaseModel)
CHECKPOINT = re.compile(rf"/step-\d+/{MANIFEST}$")
"""Numbers of steps have leading zeros, so names are in the order of steps."""


class Score(View):
    """One held-out evaluation."""

    step: int
    """Optimizer steps before it."""
    tau_sim: float
    """Simulated acceptance length."""
    per_position: tuple[float, ...]
    """Joint accuracy of the first K steps."""
    documents: int
    """Held-out documents behind it."""


class Identity(View):
    """What a checkpoint is a state of."""

    vocabulary_sha256: str
    """The draft vocabulary."""


class Standing(View):
    """Where a training stands: what a report needs of a checkpoint's manifest, of whatever version."""

    step: int
    """Optimizer steps done."""
    total_steps: int
    """Of the whole training."""
    identity: Identity
    """What it is a state of."""
    scores: tuple[Score, ...] = ()
    """All held-out evaluations so far."""

    @property
    def best(self) -> Score | None:
        """The evaluation with the highest acceptance; the earliest of equals."""
        return max(self.scores, key=lambda score: score.tau_sim, default=None)


@dataclass(frozen=True, eq=False)
class Record:
    """What a report is made of."""

    run: str
    where: str
    """URI of the workspace."""
    manifest: Manifest | None
    """Of the export."""
    evaluation: Evaluation | None
    """Of this very export."""
    published: Published | None
    """Of this very export."""
    curve: Curve
    """A line per step."""
    checkpoint: Standing | None
    """The newest one: where an unfinished training stands, and all held-out scores."""
    documents: Documents | None
    """What it was trained on."""
    states: States | None
    """Offline: the stored hidden states."""
    history: tuple[StageEnd, ...]
    """How every process of a stage ended, in order; only runs of this machine keep that."""
    train_task: TrainTask | None
    """What training was told, where it is kept."""
    evaluate_task: EvaluateTask | None
    """What evaluate was told, where it is kept."""
    train_bytes: int
    """Bytes below `train/<run>`."""
    export_bytes: int
    """Bytes below `export/<run>`."""

    @property
    def mode(self) -> str | None:
        """Online or Offline, where anything says it."""
        if self.train_task is not None:
            return self.train_task.mode
        if self.manifest is not None:
            return "Offline" if self.manifest.hidden_states_key else "Online"
        return "Offline" if self.states is not None else None

    @property
    def gate(self) -> float | None:
        """The acceptance length that was required, where it is known."""
        return self.evaluate_task.evaluate.min_acceptance_length if self.evaluate_task else None


def runs_of(store: Store) -> list[str]:
    """Names of all runs that trained, exported or were started here."""
    names = (name for folder in ("train", "export", "runs") for name in store.list(folder))
    return sorted({name.split("/")[1] for name in names if name.count("/") > 1})


def choose_run(store: Store, wanted: str | None) -> str:
    """The run that is meant. Raises Failure(NOT_FOUND) naming those that are there."""
    found = runs_of(store)
    if wanted is None and len(found) == 1:
        return found[0]
    if wanted in found and wanted is not None:
        return wanted
    accepted = ", ".join(found) or f"a workspace with a run; there is none in {store.uri}"
    raise Failure(ExitCode.NOT_FOUND, Reason.TASK_REJECTED, f"--run: given {wanted or 'none'}; accepted: {accepted}")


def read_record(store: Store, run: str) -> Record:
    """Read what a run left. Raises Failure where storage does not answer; whatever is broken counts as absent."""
    manifest = read_model(store, f"{export_path(run)}/{MANIFEST}", Manifest)
    exported = sha256_of(store, f"{export_path(run)}/{MANIFEST}")
    checkpoint = newest_checkpoint(store, run)
    train_task = read_model(store, f"{runs_path(run)}/{Stage.TRAIN}/{TASK_FILE}", TrainTask)
    history = read_history(store, run)
    states = None if is_online(manifest, train_task) else states_of(store, run, manifest, train_task)
    return Record(
        run=run,
        where=store.uri,
        manifest=manifest,
        evaluation=of_export(read_model(store, f"{export_path(run)}/{EVALUATION}", Evaluation), exported),
        published=of_export(read_model(store, f"{export_path(run)}/{PUBLISHED}", Published), exported),
        curve=read_curve(read_text(store, f"{train_path(run)}/{METRICS}")),
        checkpoint=checkpoint,
        documents=find_documents(store, belonging(manifest, prepared_name(train_task, history), states, checkpoint)),
        states=states,
        history=history,
        train_task=train_task,
        evaluate_task=read_model(store, f"{runs_path(run)}/{Stage.EVALUATE}/{TASK_FILE}", EvaluateTask),
        train_bytes=bytes_below(store, train_path(run)),
        export_bytes=bytes_below(store, export_path(run)),
    )


def is_online(manifest: Manifest | None, task: TrainTask | None) -> bool:
    """Whether a run is known to have no stored states."""
    if manifest is not None:
        return manifest.hidden_states_key is None
    return task is not None and task.mode == "Online"


def states_of(store: Store, run: str, manifest: Manifest | None, task: TrainTask | None) -> States | None:
    """The stored states of a run that may have some."""
    told = task.hidden_states if task else None
    key = manifest.hidden_states_key if manifest else None
    return find_states(store, run, (told.key, told.num_shards) if told else None, key)


def bytes_below(store: Store, folder: str) -> int:
    """Size of all objects below a folder."""
    return sum(store.size(name) or 0 for name in store.list(folder))


def read_text(store: Store, name: str) -> str:
    """A text; empty where there is none."""
    try:
        return store.read(name).decode(errors="replace")
    except FileNotFoundError:
        return ""


def read_model(store: Store, name: str, model: type[ModelT]) -> ModelT | None:
    """A document; None where there is none that this version can read."""
    try:
        return model.model_validate_json(store.read(name))
    except (FileNotFoundError, ValidationError):
        return None


def sha256_of(store: Store, name: str) -> str | None:
    """Hash of an object; None where there is none."""
    try:
        return hashlib.sha256(store.read(name)).hexdigest()
    except FileNotFoundError:
        return None


def of_export(document: ModelT | None, manifest_sha256: str | None) -> ModelT | None:
    """A document about an export, unless it is about an earlier one of the same name."""
    return document if document is not None and getattr(document, "manifest_sha256", None) == manifest_sha256 else None


def read_history(store: Store, run: str) -> tuple[StageEnd, ...]:
    """How every process of a stage ended, in order; lines that this version cannot read are left out."""
    found = []
    for line in read_text(store, history_path(run)).splitlines():
        with suppress(ValidationError):
            found.append(StageEnd.model_validate_json(line))
    return tuple(found)


def newest_checkpoint(store: Store, run: str) -> Standing | None:
    """The newest checkpoint whose manifest can be read."""
    names = [name for name in store.list(train_path(run)) if CHECKPOINT.search(name)]
    found = (read_model(store, name, Standing) for name in reversed(names))
    return next((standing for standing in found if standing is not None), None)


def prepared_name(task: TrainTask | None, history: Sequence[StageEnd]) -> str | None:
    """The folder of the documents, as training was told or as prepare said."""
    if task is not None:
        return task.prepared
    return next((end.result.prepared.prepared for end in reversed(history) if end.result.prepared), None)


def belonging(
    manifest: Manifest | None, told: str | None, states: States | None, checkpoint: Standing | None
) -> Callable[[str, PreparedManifest], bool]:
    """Whether a folder of documents is the run's: by what the export says, by name, by a checkpoint, by the states."""

    def belongs(name: str, found: PreparedManifest) -> bool:
        if manifest is not None:
            same = found.tokens_sha256 == manifest.data.tokens_sha256
            return same and found.vocab_size == manifest.vocabulary.size
        if told is not None:
            return name == told
        if checkpoint is not None:
            return found.vocabulary_sha256 == checkpoint.identity.vocabulary_sha256
        return states is not None and states.key is not None and found.tokens_sha256 == states.key.tokens_sha256

    return belongs
