"""Whether a run that was disturbed ended as one that was not: weights, manifest, samples, and what is visible."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any

from safetensors.torch import load

from draftyard_api.names import MANIFEST, METRICS, PUBLISHED, checkpoint_path, export_path, train_path
from draftyard_trainer import checkpoint, inventory, verify
from draftyard_trainer.storage.store import Store

NEARLY = 1e-5
SETTLE_SECONDS = 2.0
ROUNDED = ("files", "probe", "metrics", "data")
"""What of a manifest depends on the last bits of weights."""


@dataclass(frozen=True)
class Ending:
    """What a finished run leaves."""

    model: bytes
    manifest: dict[str, Any]
    published: dict[str, Any]
    curve: list[dict[str, Any]]


def ending_files(run: str) -> tuple[str, ...]:
    """What an ending is read from, in the order of its fields."""
    export = export_path(run)
    return (f"{export}/model.safetensors", f"{export}/{MANIFEST}", f"{export}/{PUBLISHED}",
            f"{train_path(run)}/{METRICS}")  # fmt: skip


def read_ending(store: Store, run: str) -> Ending:
    """Raises FileNotFoundError for what is not there."""
    model, manifest, published, curve = map(store.read, ending_files(run))
    return Ending(model, json.loads(manifest), json.loads(published), [json.loads(line) for line in curve.splitlines()])


def keep_ending(store: Store, elsewhere: Store, run: str) -> None:
    """Copy what `read_ending` reads."""
    for name in ending_files(run):
        elsewhere.publish(name, store.read(name))


@dataclass(frozen=True)
class Samples:
    """Documents that were not trained on as often as they should have been."""

    lost: int
    doubled: int


def compare_samples(curve: Sequence[dict[str, Any]], wanted: Sequence[dict[str, Any]]) -> Samples:
    """From the row logs of two curves: steps that lack, or come twice, or were taken with other documents."""
    found = defaultdict(list)
    for line in curve:
        found[line["step"]].append((line["documents"], line["documentHash"]))
    lost = doubled = 0
    for line in wanted:
        documents, first = line["documents"], (line["documents"], line["documentHash"])
        taken = found.pop(line["step"], [])
        if not taken:
            lost += documents
            continue
        doubled += sum(count for count, _ in taken[1:])
        if taken[0] != first:
            # other documents: as many as that may be lost, or twice there
            difference = taken[0][0] - documents
            lost += max(-difference, 0) if difference else documents
            doubled += max(difference, 0) if difference else documents
    doubled += sum(count for lines in found.values() for count, _ in lines)
    return Samples(lost, doubled)


def compare_weights(found: bytes, wanted: bytes) -> float:
    """Largest difference of a tensor, as a share of its largest number; 0.0 to the bit, infinite for other tensors."""
    if found == wanted:
        return 0.0
    ours, theirs = load(found), load(wanted)
    if {name: tensor.shape for name, tensor in ours.items()} != {name: tensor.shape for name, tensor in theirs.items()}:
        return float("inf")
    shares = [
        float((ours[name].double() - tensor.double()).abs().max() / tensor.double().abs().max().clamp(min=1e-30))
        for name, tensor in theirs.items()
    ]
    # bytes that differ where tensors do not are a difference too
    return max(shares) or float("inf")


def compare_manifests(found: dict[str, Any], wanted: dict[str, Any], is_exact: bool) -> list[str]:
    """Fields that differ."""
    skipped = () if is_exact else ROUNDED
    names = sorted(found.keys() | wanted.keys())
    return [name for name in names if name not in skipped and found.get(name) != wanted.get(name)]


def find_partial(store: Store, run: str) -> list[str]:
    """What a reader sees and that is not whole. Looked at twice: a former process may be writing or removing now."""
    first = find_broken(store, run)
    if not first:
        return []
    time.sleep(SETTLE_SECONDS)
    return sorted(first & find_broken(store, run))


def find_broken(store: Store, run: str) -> set[str]:
    """Names of answers, prepared data, parts, shards, exports and checkpoints that are not what their manifest says."""
    parts = (inventory.prepared_folders(store), inventory.caches(store), inventory.drafts(store))
    checked = chain(verify.check_answers(store, inventory.conversations(store)), verify.check_all(store, *parts))
    broken = {each.name for each in checked if isinstance(each, verify.Finding)}
    if store.uri.startswith("s3://"):
        # without its manifest nobody reads a folder there: what a killed writer left of it is not visible
        broken = {name for name in broken if not name.endswith(MANIFEST) or store.exists(name)}
    return broken | {
        checkpoint_path(run, step) for step in checkpoint.steps_of(store, run) if not is_whole(store, run, step)
    }


def is_whole(store: Store, run: str, step: int) -> bool:
    """Whether a checkpoint that has a manifest can be gone on from; one that is removed meanwhile can."""
    with suppress(FileNotFoundError):
        return checkpoint.load(store, run, step) is not None
    return True
