"""From a task to its source of hidden states. Stored ones are verified before anything is loaded.

What is found broken is taken back first, so that generate, when it runs again, makes exactly that anew.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from draftyard_api.names import hidden_states_path, shard_path
from draftyard_api.task import StoredStatesRef, TrainTask
from draftyard_trainer.data.document import Ids
from draftyard_trainer.data.prepared import PreparedDataset
from draftyard_trainer.hidden_states import calibration
from draftyard_trainer.hidden_states.calibration import CALIBRATION_FILE
from draftyard_trainer.hidden_states.codec import Layout, StateCodec
from draftyard_trainer.hidden_states.key import TARGET_FILE, StatesKey, read_key, stale
from draftyard_trainer.hidden_states.shard import INDEX, INDEX_DTYPE, Shard, ShardManifest, documents_of, is_intact
from draftyard_trainer.hidden_states.source import OfflineSource, OnlineSource, Source, StoredShard
from draftyard_trainer.storage.cache import RecordCache
from draftyard_trainer.storage.store import Store
from draftyard_trainer.target.capture import DTYPES, CapturedTarget
from draftyard_trainer.target.head import TargetHead
from draftyard_trainer.target.location import locate

CPU = torch.device("cpu")


def open_source(store: Store, task: TrainTask, dataset: PreparedDataset, device: torch.device) -> Source:
    """Stored states where the task names some, else the target itself, loaded on `device`."""
    if task.hidden_states is not None:
        return open_stored(store, task.hidden_states, dataset, device)
    target = CapturedTarget.load(locate(task.target), task.target.dtype, task.aux_layers, device)
    return OnlineSource(target, dataset)


def open_stored(
    store: Store, ref: StoredStatesRef, dataset: PreparedDataset, device: torch.device = CPU
) -> OfflineSource:
    """Verify stored states and read their index. Raises Failure(STALE_INPUT) naming what is gone or broken."""
    folder = hidden_states_path(ref.key, ref.num_shards)
    key = read_key(store, folder)
    if key is None or key.name() != ref.key:
        raise stale(folder, "key.json is missing, or not of the content that the folder is named by")
    if key.tokens_sha256 != dataset.manifest.tokens_sha256:
        raise stale(folder, f"tokensSha256: given {dataset.manifest.tokens_sha256}; the cache has {key.tokens_sha256}")
    head = load_head(store, f"{folder}/{TARGET_FILE}")
    layout = layout_of(key, head)
    shards = tuple(
        open_shard(
            Shard(store, shard_path(ref.key, ref.num_shards, number)),
            key,
            documents_of(len(dataset), number, ref.num_shards),
            layout,
            device,
        )
        for number in ref.shards
    )
    require_no_document_twice(folder, shards)
    # a disk needs no copy of itself
    cache = RecordCache.from_environment() if store.uri.startswith("s3://") else None
    return OfflineSource(head, key.target, shards, device, cache)


def layout_of(key: StatesKey, head: TargetHead) -> Layout:
    """What the records of a cache look like."""
    return Layout(len(key.aux_layers), head.lm_head.shape[1], DTYPES[key.dtype], key.codec)


def load_head(store: Store, name: str) -> TargetHead:
    """The target's head beside the states. Raises Failure(STALE_INPUT), after deleting a broken file."""
    try:
        return TargetHead.load(store.fetch(name))
    except FileNotFoundError as error:
        raise stale(name, "it is missing") from error
    except ValueError as error:
        store.delete(name)
        raise stale(name, f"it is broken ({error})") from error


def open_shard(shard: Shard, key: StatesKey, doc_ids: Ids, layout: Layout, device: torch.device) -> StoredShard:
    """A complete shard of these documents, verified; unpacked on `device`. Raises Failure(STALE_INPUT)."""
    manifest = shard.manifest()
    if manifest is None:
        raise stale(shard.folder, "MANIFEST.json is missing, broken, or of another version")
    index = read_index(shard)
    problem = find_problem(shard, manifest, key, doc_ids, index)
    if problem is not None:
        shard.distrust(problem.part)
        raise stale(shard.folder, problem.what)
    codec = shard_codec(shard, manifest, layout, device)
    return StoredShard(shard, tuple(part.file for part in manifest.parts), codec, index)


def shard_codec(shard: Shard, manifest: ShardManifest, layout: Layout, device: torch.device) -> StateCodec:
    """How the states of one shard are stored. Raises Failure(STALE_INPUT) for sizes of channels that are not whole."""
    if not layout.is_rounded:
        return StateCodec.of(layout, None)
    try:
        content = shard.store.read(f"{shard.folder}/{CALIBRATION_FILE}")
        channels = calibration.parse(content)
        is_ours = hashlib.sha256(content).hexdigest() == manifest.calibration_sha256
        fits = channels.aux.shape == (layout.num_aux, layout.width)
    except (FileNotFoundError, ValueError):
        is_ours = fits = False
    if not (is_ours and fits):
        shard.distrust(calibration=True)
        raise stale(shard.folder, f"{CALIBRATION_FILE} is missing, or not what the manifest names")
    return StateCodec.of(layout, channels.to(device))


def read_index(shard: Shard) -> npt.NDArray[np.void]:
    """The shard's index, whatever it holds; empty when it is gone or cut off."""
    try:
        content = shard.store.read(f"{shard.folder}/{INDEX}")
    except FileNotFoundError:
        content = b""
    return np.frombuffer(content if len(content) % INDEX_DTYPE.itemsize == 0 else b"", dtype=INDEX_DTYPE)


@dataclass(frozen=True)
class Problem:
    """What is wrong with a shard, and in which part, where that is known."""

    what: str
    part: int | None = None


def find_problem(
    shard: Shard, manifest: ShardManifest, key: StatesKey, doc_ids: Ids, index: npt.NDArray[np.void]
) -> Problem | None:
    """Compare a shard with its manifest: the key, the counts, the index, the parts' sizes, and one record at random."""
    if manifest.key != key.sha256():
        return Problem(f"key: given {key.sha256()}; its manifest has {manifest.key}")
    counts = (manifest.documents, len(manifest.skipped))
    if sum(counts) != len(doc_ids):
        return Problem(f"it has {counts[0]} documents and {counts[1]} skipped, not {len(doc_ids)}")
    if not is_index_of(manifest, index) or len(index) != manifest.documents:
        return Problem(f"{INDEX} is missing, or not what the manifest names")
    skipped = np.array([each.doc_id for each in manifest.skipped], dtype=np.int64)
    if not np.array_equal(np.sort(np.concatenate([index["doc_id"].astype(np.int64), skipped])), doc_ids):
        return Problem("its documents are not those of its number")
    for number, part in enumerate(manifest.parts):
        size = shard.store.size(f"{shard.folder}/{part.file}")
        if size != part.bytes:
            return Problem(f"{part.file} has {size} bytes, not {part.bytes}", number)
    return broken_record(shard, manifest, index)


def broken_record(shard: Shard, manifest: ShardManifest, index: npt.NDArray[np.void]) -> Problem | None:
    """Read one record at random."""
    if len(index):
        row = index[secrets.randbelow(len(index))]
        number = int(row["part"])
        name = f"{shard.folder}/{manifest.parts[number].file}"
        record = shard.store.read_range(name, int(row["offset"]), int(row["bytes"]))
        if not is_intact(record, int(row["doc_id"])):
            return Problem(f"{name}: document {row['doc_id']} at byte {row['offset']} does not read back", number)
    return None


def is_index_of(manifest: ShardManifest, index: npt.NDArray[np.void]) -> bool:
    """Whether an index is the one that the manifest names, and its records lie inside its parts."""
    if hashlib.sha256(index.tobytes()).hexdigest() != manifest.index_sha256:
        return False
    sizes = np.array([part.bytes for part in manifest.parts], dtype=np.uint64)
    if len(index) and int(index["part"].max()) >= len(sizes):
        return False
    room = sizes[index["part"]]
    # not their sum, which may be too large for 64 bits
    return bool(((index["bytes"] <= room) & (index["offset"] <= room - index["bytes"])).all())


def require_no_document_twice(folder: str, shards: tuple[StoredShard, ...]) -> None:
    """Raises Failure(STALE_INPUT), after taking all shards back: there is no telling which one is right."""
    ids = np.concatenate([np.zeros(0, dtype=np.uint64), *(stored.index["doc_id"] for stored in shards)])
    unique, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        for stored in shards:
            stored.shard.distrust()
        raise stale(folder, f"document {unique[counts > 1][0]} is stored twice")
