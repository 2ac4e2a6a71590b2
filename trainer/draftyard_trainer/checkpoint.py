"""The state of a training, whole or not at all, and independent of the number of processes.

train/<run>/step-<n>/   weights.safetensors (fp32 masters, d2t, t2d)   adam.safetensors   MANIFEST.json
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.names import MANIFEST, checkpoint_path, train_path
from draftyard_api.reasons import Reason
from draftyard_api.schema import Model
from draftyard_trainer.draft.manifest import FileRecord
from draftyard_trainer.draft.model import DraftModel
from draftyard_trainer.fence import Fence
from draftyard_trainer.optim import Optimizer
from draftyard_trainer.storage.store import Store

WEIGHTS, ADAM = "weights.safetensors", "adam.safetensors"
STEP = re.compile(r"/step-(\d+)/")
BUFFERS = ("d2t", "t2d")
FORMAT = 2
"""Of the manifest. 1 did not say what rows and loss were, but only their hash."""
SUMS = ("plan_hash", "fingerprint")
"""Fields of an identity that differ whenever another one does."""


class Identity(Model):
    """What must be equal for a checkpoint to be gone on from; what differs is named. Texts are words `name=value`."""

    plan_hash: str
    """Documents, rows, their order, and the loss."""
    rows: str
    """How rows and steps are cut."""
    conventions: str
    """What the loss is."""
    vocabulary_sha256: str
    """The draft vocabulary."""
    draft: str
    """The draft's architecture."""
    source: str
    """The target, or the key of the stored states."""
    fingerprint: str
    """Everything else that decides the result."""


class Score(Model):
    """One held-out evaluation."""

    step: int
    """Optimizer steps before it."""
    tau_sim: float
    """Simulated acceptance length at K = draftTokens."""
    per_position: tuple[float, ...]
    """Joint accuracy of the first K steps."""
    documents: int
    """Held-out documents behind it."""


class CheckpointManifest(Model):
    """Where a training stands."""

    format: int = FORMAT
    """Version of this file."""
    step: int
    """Optimizer steps done."""
    total_steps: int
    """Of the whole training."""
    epoch: int
    """Epoch of the next row."""
    next_row: int
    """Its number in the epoch."""
    tokens_seen: int
    """Tokens trained on, repetitions counted."""
    identity: Identity
    """What it is a state of."""
    skipped: int
    """Steps without an update, since the gradient was not finite."""
    clipped: int
    """Steps with a clipped gradient."""
    skipped_in_a_row: int
    """The last steps that were skipped."""
    last_loss: str
    """Loss of the last step; a text, since NaN is legal."""
    scores: tuple[Score, ...]
    """All held-out evaluations so far."""
    files: dict[str, FileRecord]
    """Size and hash of the other files."""

    @property
    def best(self) -> Score | None:
        """The evaluation with the highest acceptance; the earliest of equals."""
        return max(self.scores, key=lambda score: score.tau_sim, default=None)


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A state in host memory, apart from the training that goes on: what a checkpoint is written from."""

    manifest: CheckpointManifest
    weights: dict[str, Tensor]
    """fp32 masters, d2t and t2d."""
    moments: dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Found:
    """A checkpoint whose files are whole."""

    manifest: CheckpointManifest
    weights: dict[str, Tensor]
    moments: dict[str, Tensor]


def draft_identity(draft: DraftModel) -> str:
    """The architecture as text."""
    return words(asdict(draft.config))


def words(settings: Mapping[str, object]) -> str:
    """Settings as text, by name: what differs between two can be shown without the rest."""
    return " ".join(f"{name}={value}".replace(" ", "") for name, value in sorted(settings.items()))


def parameter_names(draft: DraftModel) -> list[str]:
    """Names of the trained tensors, in the order of `trained_parameters`."""
    return [name for name, _ in draft.named_parameters()]


def take_snapshot(
    draft: DraftModel, optimizer: Optimizer, manifest: CheckpointManifest, reuse: Snapshot | None = None
) -> Snapshot:
    """Copy the state to the host: 12 bytes per parameter. `reuse`, an earlier one, gives its memory away."""
    names = parameter_names(draft)
    weights: dict[str, Tensor] = dict(zip(names, optimizer.masters, strict=True))
    weights.update({name: getattr(draft, name) for name in BUFFERS})
    held = copy_to_host(weights, reuse.weights if reuse else {})
    moments = copy_to_host(optimizer.moments(names), reuse.moments if reuse else {})
    if draft.d2t.is_cuda:
        torch.cuda.synchronize(draft.d2t.device)
    return Snapshot(manifest, held, moments)


def copy_to_host(tensors: Mapping[str, Tensor], earlier: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies by name, in the memory of earlier ones: fresh pages cost more than the copy itself.

    From a GPU they are on their way when this returns.
    """
    copies = {}
    for name, tensor in tensors.items():
        host = earlier.get(name)
        if host is None:
            host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        copies[name] = host.copy_(tensor.detach(), non_blocking=True)
    return copies


def write(store: Store, fence: Fence, run: str, snapshot: Snapshot) -> None:
    """Publish a checkpoint by one rename, after a look at the fence. Raises Failure(FENCED), Failure(NO_SPACE)."""
    fence.check()
    with store.create_folder(checkpoint_path(run, snapshot.manifest.step)) as folder:
        save_file(snapshot.weights, folder / WEIGHTS, metadata={"format": "pt"})
        save_file(snapshot.moments, folder / ADAM, metadata={"format": "pt"})
        files = {name: FileRecord.of(folder / name) for name in (WEIGHTS, ADAM)}
        whole = snapshot.manifest.model_copy(update={"files": files})
        (folder / MANIFEST).write_text(whole.model_dump_json(by_alias=True, indent=1))
        fence.check()


def steps_of(store: Store, run: str) -> list[int]:
    """Steps that have a checkpoint, ascending."""
    return numbers(name for name in store.list(train_path(run)) if name.endswith(f"/{MANIFEST}"))


def folders_of(store: Store, run: str) -> list[int]:
    """Steps that have any file, ascending."""
    return numbers(store.list(train_path(run)))


def numbers(names: Iterable[str]) -> list[int]:
    """Steps that the names of files tell."""
    return sorted({int(match[1]) for match in map(STEP.search, names) if match})


def read_manifest(store: Store, run: str, step: int) -> CheckpointManifest | None:
    """The manifest of a step, if it is one and its files have the sizes that it names."""
    folder = checkpoint_path(run, step)
    try:
        content = store.read(f"{folder}/{MANIFEST}")
        refuse_other_formats(content, folder)
        manifest = CheckpointManifest.model_validate_json(content)
    except (FileNotFoundError, ValidationError):
        return None
    whole = all(store.size(f"{folder}/{name}") == file.bytes for name, file in manifest.files.items())
    return manifest if whole else None


def refuse_other_formats(content: bytes, folder: str) -> None:
    """Raise Failure(EXISTS) for what another version wrote: passed over as broken, it would be removed in the end."""
    try:
        found = json.loads(content)
    except ValueError:
        return
    given = found.get("format", FORMAT) if isinstance(found, dict) else FORMAT
    if given != FORMAT:
        message = f"{folder}: given format {given}; accepted: {FORMAT}; use the version that wrote it, or another name"
        raise Failure(ExitCode.EXISTS, Reason.OUTPUT_EXISTS, message)


def load(store: Store, run: str, step: int) -> Found | None:
    """A checkpoint with verified hashes; None if it is not whole."""
    manifest = read_manifest(store, run, step)
    if manifest is None or set(manifest.files) != {WEIGHTS, ADAM}:
        return None
    folder = checkpoint_path(run, step)
    paths = {name: store.fetch(f"{folder}/{name}") for name in manifest.files}
    if any(FileRecord.of(paths[name]) != file for name, file in manifest.files.items()):
        return None
    return Found(manifest, load_file(paths[WEIGHTS]), load_file(paths[ADAM]))


def newest(store: Store, run: str, wanted: Identity) -> Found | None:
    """The newest whole checkpoint of this very training, or None for a fresh start.

    Raises Failure(EXISTS) naming every field in which a whole checkpoint belongs to another training: a silent fresh
    start over it would lose work, and going on would mix two trainings.
    """
    for step in reversed(steps_of(store, run)):
        found = load(store, run, step)
        if found is None:
            continue
        refuse_others(found.manifest.identity, wanted, checkpoint_path(run, step))
        return found
    return None


def refuse_others(found: Identity, wanted: Identity, where: str) -> None:
    """Raise Failure(EXISTS) naming what differs; sums over all only where nothing else tells."""
    names = [name for name in Identity.model_fields if getattr(found, name) != getattr(wanted, name)]
    telling = [name for name in names if name not in SUMS] or names
    if telling:
        differ = "; ".join(difference(name, getattr(wanted, name), getattr(found, name)) for name in telling)
        message = f"{where} belongs to another training ({differ}); use another name, or remove train/<run>"
        raise Failure(ExitCode.EXISTS, Reason.OUTPUT_EXISTS, message)


def difference(name: str, given: str, found: str) -> str:
    """The words that only one of two texts has."""
    ours, theirs = given.split(), found.split()
    new = " ".join(word for word in ours if word not in theirs)
    old = " ".join(word for word in theirs if word not in ours)
    return f"{name}: given {new}; the checkpoint has {old}"


def resume(found: Found, draft: DraftModel, optimizer: Optimizer) -> None:
    """Put a checkpoint's state into draft and optimizer. Raises Failure(STALE_INPUT) naming a missing tensor."""
    with torch.no_grad():
        for name in BUFFERS:
            getattr(draft, name).copy_(found.weights[name])
    try:
        optimizer.restore(parameter_names(draft), found.weights, found.moments)
    except KeyError as error:
        message = f"checkpoint of step {found.manifest.step}: tensor {error} is missing; remove it to use an older one"
        raise Failure(ExitCode.STALE_INPUT, Reason.STALE_INPUT, message) from error
    optimizer.skipped = found.manifest.skipped
    optimizer.clipped = found.manifest.clipped
    optimizer.skipped_in_a_row = found.manifest.skipped_in_a_row


def prune(store: Store, run: str, newest: int, keep_last: int, keep: Sequence[int]) -> None:
    """Remove all but the last `keep_last` up to step `newest` and those in `keep`; of each the manifest goes first.

    Later ones are broken, or the training would have gone on from them: counted, they could push out whole ones.
    Folders without a manifest go too: a removal that was cut off.
    """
    steps = [step for step in steps_of(store, run) if step <= newest]
    kept = {*steps[max(len(steps) - keep_last, 0) :], *keep}
    for step in folders_of(store, run):
        if step not in kept:
            store.delete(f"{checkpoint_path(run, step)}/{MANIFEST}")
            store.delete_folder(checkpoint_path(run, step))
