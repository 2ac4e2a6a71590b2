"""`draftyard verify WORKSPACE`: every byte that is stored is read and compared with what its manifest says.

A reader checks what it reads; this checks all of it, before a training of days or after a disk has had trouble.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.names import export_path, prepared_path, shard_path
from draftyard_trainer import inventory
from draftyard_trainer.data.prepared import PreparedDataset
from draftyard_trainer.draft.manifest import FileRecord
from draftyard_trainer.hidden_states.calibration import CALIBRATION_FILE
from draftyard_trainer.hidden_states.opening import read_index
from draftyard_trainer.hidden_states.record import aligned
from draftyard_trainer.hidden_states.shard import Shard, ShardManifest, is_intact
from draftyard_trainer.inventory import Cache, Draft, PreparedFolder
from draftyard_trainer.storage.store import Store


@dataclass(frozen=True)
class Finding:
    """Something broken: where, and what is wrong with it."""

    name: str
    what: str
    take_back: Callable[[], None] | None = None
    """Marks it as not made; None where the next run finds out by itself."""


def verify(store: Store, console: Console, takes_back: bool = False) -> int:
    """Check a workspace. Returns OK, or STALE_INPUT when something is broken.

    With `takes_back` broken parts and shards are marked as not made, so that the next run makes exactly those again.
    """
    folders, caches, drafts = inventory.prepared_folders(store), inventory.caches(store), inventory.drafts(store)
    total = sum(folder.manifest.bytes for folder in folders if folder.manifest)
    total += sum(shard.bytes for cache in caches for shard in cache.complete)
    total += sum(record.bytes for draft in drafts if draft.manifest for record in draft.manifest.files.values())
    findings = []
    columns = (TextColumn("verifying"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("verifying", total=total)
        for each in check_all(store, folders, caches, drafts):
            if isinstance(each, int):
                bar.advance(task, each)
                continue
            findings.append(each)
            console.print(f"{each.name}: {each.what}", style="red", highlight=False, soft_wrap=True)
            if takes_back and each.take_back is not None:
                each.take_back()
    if findings:
        advice = (
            "run the training again: it makes these anew" if takes_back else "--take-back lets the next run mend it"
        )
        console.print(f"{len(findings)} broken of {total} bytes checked; {advice}", highlight=False)
        return ExitCode.STALE_INPUT
    console.print(f"{total} bytes checked, all as their manifests say", highlight=False)
    return ExitCode.OK


def check_all(
    store: Store, folders: list[PreparedFolder], caches: list[Cache], drafts: list[Draft]
) -> Iterator[Finding | int]:
    """Findings, and in between how many bytes have been checked."""
    for folder in folders:
        yield from check_prepared(store, folder)
    for cache in caches:
        for number, manifest in enumerate(cache.shards):
            if manifest is not None:
                yield from check_shard(Shard(store, shard_path(cache.key, cache.num_shards, number)), manifest)
    for draft in drafts:
        yield from check_draft(store, draft)


def check_prepared(store: Store, folder: PreparedFolder) -> Iterator[Finding | int]:
    """Tokens, masks, split and vocabulary."""
    name = prepared_path(folder.name)
    if folder.manifest is None:
        yield Finding(name, "its MANIFEST.json cannot be read")
        return
    try:
        dataset = PreparedDataset.open(store, folder.name)
    except Failure as failure:
        yield Finding(name, failure.message)
        return
    if dataset.tokens_sha256() != folder.manifest.tokens_sha256:
        yield Finding(name, "its tokens or masks are not those that were written")
    yield folder.manifest.bytes


def check_shard(shard: Shard, manifest: ShardManifest) -> Iterator[Finding | int]:
    """Index, calibration, and every record of every part."""
    index = read_index(shard)
    if hashlib.sha256(index.tobytes()).hexdigest() != manifest.index_sha256:
        yield Finding(shard.folder, "index.bin is missing, or not what the manifest names", shard.distrust)
        return
    if manifest.calibration_sha256 is not None and digest_of(shard) != manifest.calibration_sha256:
        what = f"{CALIBRATION_FILE} is missing, or not what the manifest names"
        yield Finding(shard.folder, what, partial(shard.distrust, calibration=True))
    for number, part in enumerate(manifest.parts):
        digest = hashlib.sha256()
        broken = []
        for row in index[index["part"] == number]:
            size = aligned(int(row["bytes"]))
            try:
                content = shard.store.read_range(f"{shard.folder}/{part.file}", int(row["offset"]), size)
            except FileNotFoundError:
                content = b""
            digest.update(content)
            if not is_intact(content[: int(row["bytes"])], int(row["doc_id"])):
                broken.append(int(row["doc_id"]))
            yield size
        if broken:
            listed = ", ".join(map(str, broken[:5]))
            what = f"{part.file}: {len(broken)} broken records (documents {listed})"
        elif digest.hexdigest() != part.sha256:
            what = f"{part.file}: its bytes are not those that were written"
        else:
            continue
        yield Finding(shard.folder, what, partial(shard.distrust, number))


def digest_of(shard: Shard) -> str | None:
    """Hash of the shard's calibration; None without one."""
    try:
        return hashlib.sha256(shard.store.read(f"{shard.folder}/{CALIBRATION_FILE}")).hexdigest()
    except FileNotFoundError:
        return None


def check_draft(store: Store, draft: Draft) -> Iterator[Finding | int]:
    """Every file of an export."""
    name = export_path(draft.run)
    if draft.manifest is None:
        yield Finding(name, "its MANIFEST.json cannot be read")
        return
    for file, expected in draft.manifest.files.items():
        try:
            is_whole = FileRecord.of(store.fetch(f"{name}/{file}")) == expected
        except FileNotFoundError:
            is_whole = False
        if not is_whole:
            yield Finding(name, f"{file} is missing, or not what the manifest names")
        yield expected.bytes
