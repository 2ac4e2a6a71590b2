"""Everything that one run left in a workspace, read from manifests and curves alone: no weights, no target.

A run may be unfinished, ungated, without stored states or without held-out data: what is not there is None or empty.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ValidationError

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.names import (
    MANIFEST,
    METRICS,
    PUBLISHED,
    TASK_FILE,
    Stage,
    checkpoint_path,
    export_path,
    hidden_states_path,
    history_path,
    prepared_path,
    runs_path,
    train_path,
)
from draftyard_api.reasons import Reason
from draftyard_api.task import EvaluateTask, TrainTask
from draftyard_trainer import inventory
from draftyard_trainer.checkpoint import CheckpointManifest, steps_of
from draftyard_trainer.data.manifest import PreparedManifest
from draftyard_trainer.data.prepared import INDEX, INDEX_DTYPE, VOCABULARY, VOCABULARY_DTYPE
from draftyard_trainer.draft.manifest import Evaluation, Manifest, Published
from draftyard_trainer.evaluate import EVALUATION
from draftyard_trainer.hidden_states.key import USERS
from draftyard_trainer.history import StageEnd
from draftyard_trainer.inventory import Cache, PreparedFolder
from draftyard_trainer.report.curve import Curve, read_curve
from draftyard_trainer.storage.store import Store

ModelT = TypeVar("ModelT", bound=BaseModel)
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Documents:
    """The prepared documents of a run."""

    name: str
    manifest: PreparedManifest
    train_lengths: Numbers
    """Tokens of each training document."""
    held_out_lengths: Numbers
    """Tokens of each held-out document."""
    vocabulary_counts: Numbers
    """How often training documents supervise each member of the draft vocabulary, most frequent first."""


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
    checkpoint: CheckpointManifest | None
    """The newest one: where an unfinished training stands, and all held-out scores."""
    documents: Documents | None
    """What it was trained on."""
    states: Cache | None
    """Offline: the stored hidden states."""
    target_config: dict[str, Any] | None
    """Of the target, where it lies beside the states."""
    history: tuple[StageEnd, ...]
    """How every process of a stage ended, in order; only runs of this machine keep that."""
    train_task: TrainTask | None
    """What training was told, where it is kept."""
    evaluate_task: EvaluateTask | None
    """What evaluate was told, where it is kept."""
    stored_bytes: dict[str, int]
    """Bytes below `train/<run>` and `export/<run>`."""

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
    manifest = inventory.read_draft(store, run)
    exported = sha256_of(store, f"{export_path(run)}/{MANIFEST}")
    checkpoint = newest_checkpoint(store, run)
    train_task = read_model(store, f"{runs_path(run)}/{Stage.TRAIN}/{TASK_FILE}", TrainTask)
    states = find_states(store, run, manifest, train_task)
    return Record(
        run=run,
        where=store.uri,
        manifest=manifest,
        evaluation=of_export(read_model(store, f"{export_path(run)}/{EVALUATION}", Evaluation), exported),
        published=of_export(read_model(store, f"{export_path(run)}/{PUBLISHED}", Published), exported),
        curve=read_curve(read_text(store, f"{train_path(run)}/{METRICS}")),
        checkpoint=checkpoint,
        documents=find_documents(store, manifest, train_task, states, checkpoint),
        states=states,
        target_config=config_beside(store, states),
        history=read_history(store, run),
        train_task=train_task,
        evaluate_task=read_model(store, f"{runs_path(run)}/{Stage.EVALUATE}/{TASK_FILE}", EvaluateTask),
        stored_bytes={
            folder: sum(store.size(name) or 0 for name in store.list(folder))
            for folder in (train_path(run), export_path(run))
        },
    )


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


def newest_checkpoint(store: Store, run: str) -> CheckpointManifest | None:
    """The manifest of the newest checkpoint that this version can read."""
    found = (
        read_model(store, f"{checkpoint_path(run, step)}/{MANIFEST}", CheckpointManifest)
        for step in reversed(steps_of(store, run))
    )
    return next((manifest for manifest in found if manifest is not None), None)


def find_states(store: Store, run: str, manifest: Manifest | None, task: TrainTask | None) -> Cache | None:
    """The stored hidden states of a run: what training was told, else what carries the run's mark."""
    names = set(store.list("hidden-states"))
    folders = {(match[1], int(match[2])) for name in names if (match := inventory.CACHE.match(name))}
    told = task.hidden_states if task else None
    if told is not None:
        wanted = {(told.key, told.num_shards)}
    else:
        wanted = {each for each in folders if f"{hidden_states_path(*each)}/{USERS}/{run}" in names}
        if manifest is not None:
            # An earlier run of the same name may have left its mark elsewhere.
            wanted = {each for each in wanted if each[0] == manifest.hidden_states_key}
    chosen = min(wanted & folders, default=None)
    return None if chosen is None else inventory.open_cache(store, *chosen, names)


def config_beside(store: Store, states: Cache | None) -> dict[str, Any] | None:
    """The target's config, as the states keep it."""
    if states is None:
        return None
    return inventory.read_target_config(store, hidden_states_path(states.key, states.num_shards)) or None


def find_documents(
    store: Store,
    manifest: Manifest | None,
    task: TrainTask | None,
    states: Cache | None,
    checkpoint: CheckpointManifest | None,
) -> Documents | None:
    """The prepared documents of a run, known by name, or by hashes that an export, a checkpoint or states carry."""

    def belongs(folder: PreparedFolder) -> bool:
        found = folder.manifest
        if found is None:
            return False
        if manifest is not None:
            same = found.tokens_sha256 == manifest.data.tokens_sha256
            return same and found.vocab_size == manifest.vocabulary.size
        if task is not None:
            return folder.name == task.prepared
        if checkpoint is not None:
            return found.vocabulary_sha256 == checkpoint.identity.vocabulary_sha256
        key = states.document if states else None
        return key is not None and found.tokens_sha256 == key.tokens_sha256

    chosen = next(filter(belongs, inventory.prepared_folders(store)), None)
    if chosen is None or chosen.manifest is None:
        return None
    folder = prepared_path(chosen.name)
    index = read_array(store, f"{folder}/{INDEX}", INDEX_DTYPE)
    lengths, held_out = index["num_tokens"].astype(np.int64), index["held_out"].astype(np.bool_)
    counts = read_array(store, f"{folder}/{VOCABULARY}", VOCABULARY_DTYPE)["count"].astype(np.int64)
    return Documents(
        name=chosen.name,
        manifest=chosen.manifest,
        train_lengths=lengths[~held_out],
        held_out_lengths=lengths[held_out],
        vocabulary_counts=np.sort(counts)[::-1],
    )


def read_array(store: Store, name: str, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Records of a file; none where it is absent or cut short, which `draftyard verify` is there to say."""
    try:
        content = store.read(name)
    except FileNotFoundError:
        content = b""
    return np.frombuffer(content[: len(content) // dtype.itemsize * dtype.itemsize], dtype=dtype)
