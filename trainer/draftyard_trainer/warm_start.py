"""Warm starts: a run whose draft begins as another one, with that one's vocabulary, heads, MLP and rope.

`prepare` finds the draft, checks it against the target, and copies it beside the documents whose vocabulary it decides.
Training reads that copy: it needs no access to where the draft came from, and a draft that changes there changes
nothing here.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError

from draftyard_api import storage_uri
from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.names import MANIFEST, prepared_path
from draftyard_api.reasons import Reason
from draftyard_api.spec import Draft, Target
from draftyard_api.task import PrepareTask, TrainTask
from draftyard_trainer.data.document import Ids
from draftyard_trainer.data.manifest import PreparedManifest
from draftyard_trainer.data.vocabulary import DraftVocabulary
from draftyard_trainer.draft.config import DraftConfig
from draftyard_trainer.draft.files import LoadedDraft, draft_config, read_draft
from draftyard_trainer.draft.foreign_files import sha256_of
from draftyard_trainer.draft.header import CONFIG_FILE, WEIGHTS_FILE, DraftFiles, read_files
from draftyard_trainer.draft.manifest import FileRecord
from draftyard_trainer.draft.model import DraftModel
from draftyard_trainer.storage import opening
from draftyard_trainer.storage.store import Store
from draftyard_trainer.target.location import Hub, TargetFiles, fetch_snapshot

FOLDER = "initial-draft"
"""Below the prepared documents."""
FILES = (CONFIG_FILE, WEIGHTS_FILE)
KEPT = (
    "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "rms_norm_eps", "rope_theta",
    "rope_scaling",
)  # fmt: skip
"""Of the draft that is started from: with others its weights would mean something else."""
MUST_AGREE = ("hidden_size", "target_hidden_size", "vocab_size", "draft_vocab_size", "aux_layers")
FLAGS = ("fc_norm", "feed_normed_hidden", "norm_before_fc", "norm_before_residual")


@dataclass(frozen=True, eq=False)
class InitialDraft:
    """A draft to start from, whole and checked, in a local folder."""

    folder: Path
    config: DraftConfig
    ids: Ids
    """Its vocabulary: ascending target ids, `[D]`."""
    sha256: str
    """Of its config and its weights."""

    def vocabulary(self, train_counts: Ids) -> DraftVocabulary:
        """Its vocabulary, with how often each member is supervised in these documents."""
        return DraftVocabulary(self.ids, train_counts[self.ids], len(train_counts))

    def copy_to(self, prepared: Path) -> None:
        """Put its files beside prepared documents."""
        folder = prepared / FOLDER
        folder.mkdir()
        for name in FILES:
            shutil.copyfile(self.folder / name, folder / name)


# -- In prepare ----------------------------------------------------------------------------------


def find(task: PrepareTask, target: TargetFiles, hub: Hub | None = None) -> InitialDraft | None:
    """The draft that a task names; None where it names none.

    Raises Failure: NOT_FOUND, DENIED, UNAVAILABLE (where it lies), STALE_INPUT (files that are not what their manifest
    says), UNSUPPORTED for a draft of another target, or that no manifest of ours lies beside.
    """
    if task.draft.init_from is None:
        return None
    folder = locate(task.draft, hub)
    require_whole(folder, task.draft.init_from)
    try:
        files = read_files(folder)
        config = draft_config(files.config)
    except ValueError as error:
        raise unsupported(task.draft.init_from, str(error)) from error
    if target.config["vocab_size"] != config.vocab_size:
        what = f"its target has {config.vocab_size} tokens, this one {target.config['vocab_size']}"
        raise unsupported(task.draft.init_from, what)
    ids = vocabulary_ids(files, task.draft.init_from)
    return InitialDraft(folder, config, ids, sha256_of(folder, FILES))


def locate(draft: Draft, hub: Hub | None = None) -> Path:
    """The folder of the draft, downloaded if need be. Raises Failure."""
    given = draft.init_from
    assert given is not None
    location = storage_uri.parse(given)
    # the hub's and the bucket's messages are about a model; which field names it is ours to say
    named = Target(model=given, s3=draft.s3)
    try:
        if location.scheme == "hf":
            return fetch_snapshot(named, location.path, weights=True, hub=hub or Hub())
        if location.scheme == "s3":
            return opening.fetch_objects(given, draft.s3, "draft", wants).folder
    except FileNotFoundError as error:
        raise not_found(given, "there is no object below it") from error
    except Failure as failure:
        message = failure.message.replace("target.model", "draft.initFrom", 1)
        raise Failure(failure.code, failure.reason, message) from failure
    if location.scheme != "file":
        raise unsupported(given, "it cannot be opened here")
    if not Path(location.path).is_dir():
        raise not_found(given, f"{location.path} is no folder")
    return Path(location.path)


def wants(name: str) -> bool:
    """Whether an object below the draft's location is needed: those of the portable form, not what lies deeper."""
    return any(fnmatch(name, pattern) for pattern in (*FILES, MANIFEST))


def require_whole(folder: Path, given: str) -> None:
    """Raises Failure unless a manifest says that the files are a portable draft, and they are what it says."""
    try:
        found = json.loads((folder / MANIFEST).read_bytes())["files"]
        records = {name: FileRecord.model_validate(found[name]) for name in FILES}
    except (FileNotFoundError, ValueError, KeyError, TypeError, ValidationError) as error:
        what = (
            f"there is no {MANIFEST} of ours with {' and '.join(FILES)}; a checkpoint of SpecForge, speculators or "
            "EAGLE is read by `draftyard convert SOURCE OUT --target MODEL`, and OUT can be started from"
        )
        raise unsupported(given, what) from error
    for name, record in records.items():
        if not (folder / name).is_file() or FileRecord.of(folder / name) != record:
            message = f"draft.initFrom: given {given}; {name} is not what its {MANIFEST} says; copy the draft again"
            raise Failure(ExitCode.STALE_INPUT, Reason.STALE_INPUT, message)


def vocabulary_ids(files: DraftFiles, given: str) -> Ids:
    """Target ids of its tokens. Raises Failure(UNSUPPORTED) where they are no vocabulary of this target."""
    offsets = files.read_integers("d2t")
    ids = None if offsets is None else offsets + np.arange(len(offsets))
    size = int(files.config["vocab_size"])
    if ids is None or not len(ids) or ids[0] < 0 or ids[-1] >= size or not (np.diff(ids) > 0).all():
        raise unsupported(given, f"its d2t is no ascending list of tokens in 0..{size - 1}")
    return ids


def require_fit(initial: InitialDraft, draft: Draft, aux_layers: tuple[int, ...], keep_ids: tuple[int, ...]) -> None:
    """Raises Failure for what a spec asks of a draft that began as something else."""
    given, config = str(draft.init_from), initial.config
    if config.aux_layers != aux_layers:
        what = f"it reads the layers {list(config.aux_layers)}, and draft.auxLayers are {list(aux_layers)}"
        raise unsupported(given, f"{what}; leave draft.auxLayers out, and they are the draft's")
    profile = profile_of(config)
    if profile != draft.profile:
        raise unsupported(given, f"its norms are those of profile {profile}, and draft.profile is {draft.profile}")
    if draft.intermediate_size not in (None, config.intermediate_size):
        what = f"its MLP is {config.intermediate_size} wide, and draft.intermediateSize is {draft.intermediate_size}"
        raise unsupported(given, f"{what}; leave draft.intermediateSize out, and it is the draft's")
    missing = sorted(set(keep_ids) - set(initial.ids.tolist()))
    if missing:
        message = (
            f"draft.keepTokens: given tokens {missing}, which the vocabulary of {given} lacks; accepted: tokens that "
            "it has, since a warm start keeps it, or no draft.initFrom"
        )
        raise Failure(ExitCode.BAD_TASK, Reason.TASK_REJECTED, message)


def profile_of(config: DraftConfig) -> str:
    """The profile that has these flags; `none` where none has."""
    given = tuple(getattr(config, name) for name in FLAGS)
    return {(False,) * 4: "eagle3", (True, True, False, False): "eagle3.1"}.get(given, "none")


# -- In train ------------------------------------------------------------------------------------


def is_kept(store: Store, prepared: str, wanted: str | None) -> bool:
    """Whether the draft to start from lies whole beside prepared documents; true where none is asked for."""
    if wanted is None:
        return True
    try:
        folder = store.fetch_folder(f"{prepared_path(prepared)}/{FOLDER}", FILES)
    except FileNotFoundError:
        return False
    return sha256_of(folder, FILES) == wanted


def open_initial(store: Store, task: TrainTask, manifest: PreparedManifest) -> LoadedDraft | None:
    """The draft to start from, as prepare left it; None for random weights. Raises Failure(STALE_INPUT)."""
    wanted = manifest.key.initial_draft
    if wanted is None and task.draft.init_from is None:
        return None
    name = f"{prepared_path(task.prepared)}/{FOLDER}"
    try:
        folder = store.fetch_folder(name, FILES)
        if sha256_of(folder, FILES) != wanted:
            raise ValueError("it is not the draft that was prepared")
        return read_draft(folder, torch.float32)
    except (FileNotFoundError, ValueError) as error:
        message = f"{name}: {error}; prepare has to run again"
        raise Failure(ExitCode.STALE_INPUT, Reason.STALE_INPUT, message) from error


def begin_as(initial: LoadedDraft, derived: DraftConfig, vocabulary: DraftVocabulary) -> DraftModel:
    """The draft in training mode, of its own architecture where its weights depend on it, and of the target's else.

    Raises Failure(STALE_INPUT) where prepared data and draft do not belong together.
    """
    config = replace(derived, **{name: getattr(initial.config, name) for name in KEPT})
    differ = [name for name in (*MUST_AGREE, *FLAGS) if getattr(initial.config, name) != getattr(config, name)]
    ids = initial.model.target_ids().numpy()
    if differ or not np.array_equal(ids, vocabulary.ids):
        what = ", ".join(differ) or "its vocabulary"
        message = f"draft.initFrom: {what}: not as prepared; prepare has to run again"
        raise Failure(ExitCode.STALE_INPUT, Reason.STALE_INPUT, message)
    return rebuilt(initial, config)


def rebuilt(initial: LoadedDraft, config: DraftConfig) -> DraftModel:
    """The same weights in a model of `config`, which differs in what no weight depends on."""
    model = DraftModel(config)
    model.load_state_dict(initial.model.state_dict())
    return model


# -- Where it is not -----------------------------------------------------------------------------


def not_found(given: str, why: str) -> Failure:
    """A draft that is not there."""
    message = (
        f"draft.initFrom: given {given}; {why}; accepted: an export of ours, or what `draftyard convert` made, in a "
        "folder, on a claim, in a bucket or on the hub"
    )
    return Failure(ExitCode.NOT_FOUND, Reason.MODEL_NOT_FOUND, message)


def unsupported(given: str, why: str) -> Failure:
    """A draft that is there, and cannot be started from."""
    message = f"draft.initFrom: given {given}; {why}"
    return Failure(ExitCode.UNSUPPORTED, Reason.TARGET_UNSUPPORTED, message)
