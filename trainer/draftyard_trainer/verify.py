"""`draftyard verify WORKSPACE`: every byte that is stored is read and compared with what its manifest says.

A reader checks what it reads; this checks all of it, before a training of days or after a disk has had trouble.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import partial

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.names import (
    MANIFEST,
    conversation_shard_path,
    export_path,
    hidden_states_path,
    prepared_path,
    shard_path,
)
from draftyard_trainer import inventory, warm_start
from draftyard_trainer.data.conversations import ConversationShard
from draftyard_trainer.data.prepared import PreparedDataset
from draftyard_trainer.draft.manifest import FileRecord
from draftyard_trainer.hidden_states import calibration
from draftyard_trainer.hidden_states.calibration import CALIBRATION_FILE
from draftyard_trainer.hidden_states.key import KEY_FILE, PROBE_FILE, TARGET_FILE
from draftyard_trainer.hidden_states.opening import is_index_of, read_index
from draftyard_trainer.hidden_states.probe import read_probe
from draftyard_trainer.hidden_states.record import aligned
from draftyard_trainer.hidden_states.shard import INDEX, Shard, ShardManifest, StoredPart, is_intact
from draftyard_trainer.inventory import Cache, Conversations, Draft, PreparedFolder
from draftyard_trainer.storage.sealed import check_tensors
from draftyard_trainer.storage.store import Store

MARKER = re.compile(r"part-(\d{3,6})\.json")
SHARED = (TARGET_FILE, PROBE_FILE, CALIBRATION_FILE)
"""What lies beside the shards of a cache, apart from its key."""


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
    own = inventory.conversations(store)
    total = sum(shard.bytes for found in own for shard in found.complete)
    total += sum(folder.manifest.bytes for folder in folders if folder.manifest)
    total += sum(shard.bytes for cache in caches for shard in cache.complete)
    shared = (f"{hidden_states_path(cache.key, cache.num_shards)}/{file}" for cache in caches for file in SHARED)
    total += sum(store.size(name) or 0 for name in shared)
    total += sum(record.bytes for draft in drafts if draft.manifest for record in draft.manifest.files.values())
    findings = []
    columns = (TextColumn("verifying"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("verifying", total=total)
        for each in itertools.chain(check_answers(store, own), check_all(store, folders, caches, drafts)):
            if isinstance(each, int):
                bar.advance(task, each)
                continue
            findings.append(each)
            console.print(f"{each.name} {each.what}", style="red", highlight=False, soft_wrap=True)
            if takes_back and each.take_back is not None:
                each.take_back()
    for cache in caches:
        complete, wanted = len(cache.complete), cache.num_shards
        if complete < wanted:
            folder = hidden_states_path(cache.key, wanted)
            console.print(f"{folder}: {complete} of {wanted} shards are complete", highlight=False)
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
        yield from check_cache(store, cache)
    for draft in drafts:
        yield from check_draft(store, draft)


def check_answers(store: Store, own: list[Conversations]) -> Iterator[Finding | int]:
    """Every part of the target's own answers."""
    for found in own:
        for number, manifest in enumerate(found.shards):
            shard = ConversationShard(store, conversation_shard_path(found.key, found.num_shards, number))
            if manifest is None and store.exists(f"{shard.folder}/{MANIFEST}"):
                yield Finding(f"{shard.folder}/{MANIFEST}", "is broken, or of another version", shard.distrust)
            for part in manifest.parts if manifest else ():
                if shard.content(part) is None:
                    what = "is missing, or does not have the bytes that were written"
                    yield Finding(f"{shard.folder}/{part.file}", what, partial(shard.distrust, part))
                yield part.bytes


def check_prepared(store: Store, folder: PreparedFolder) -> Iterator[Finding | int]:
    """Tokens, masks, split and vocabulary."""
    name = prepared_path(folder.name)
    if folder.manifest is None:
        yield Finding(f"{name}/{MANIFEST}", "cannot be read")
        return
    try:
        dataset = PreparedDataset.open(store, folder.name)
    except Failure as failure:
        yield Finding(name, f"cannot be used: {failure.message}")
        return
    if dataset.tokens_sha256() != folder.manifest.tokens_sha256:
        yield Finding(name, "does not have the tokens or masks that were written")
    if not warm_start.is_kept(store, folder.name, folder.manifest.key.initial_draft):
        yield Finding(f"{name}/{warm_start.FOLDER}", "is missing, or not the draft to start from")
    yield folder.manifest.bytes


def check_cache(store: Store, cache: Cache) -> Iterator[Finding | int]:
    """What all shards share, then each of them."""
    folder = hidden_states_path(cache.key, cache.num_shards)
    names = set(store.list(folder))
    if cache.document is None or cache.document.name() != cache.key:
        yield finding(store, f"{folder}/{KEY_FILE}", "is missing, broken, or not of this folder")
    is_needed = bool(cache.complete)
    for file, is_whole in ((TARGET_FILE, is_sealed), (PROBE_FILE, has_probe), (CALIBRATION_FILE, has_channels)):
        name = f"{folder}/{file}"
        # shards keep their own sizes of channels: those of all are a help for the next one
        if name not in names and (not is_needed or file == CALIBRATION_FILE):
            continue
        if name not in names or not is_whole(store, name):
            yield finding(store, name, "is missing, or broken")
        yield store.size(name) or 0
    for number, manifest in enumerate(cache.shards):
        shard = Shard(store, shard_path(cache.key, cache.num_shards, number))
        yield from check_documents(shard, manifest, names)
        if manifest is not None:
            yield from check_records(shard, manifest)


def finding(store: Store, name: str, what: str) -> Finding:
    """A broken file that the next run makes again when it is gone."""
    return Finding(name, what, partial(store.delete, name))


def is_sealed(store: Store, name: str) -> bool:
    """Whether tensors have the checksum in their header; read in pieces, since there may be gigabytes."""
    try:
        check_tensors(partial(store.read_range, name), store.size(name) or 0)
    except ValueError:
        return False
    return True


def has_probe(store: Store, name: str) -> bool:
    """Whether a probe can be read."""
    return read_probe(store, name) is not None


def has_channels(store: Store, name: str) -> bool:
    """Whether sizes of channels can be read."""
    try:
        calibration.parse(store.read(name))
    except ValueError:
        return False
    return True


def check_documents(shard: Shard, manifest: ShardManifest | None, names: AbstractSet[str]) -> Iterator[Finding | int]:
    """A shard's manifest and commit markers; those of a shard that is not complete, too."""
    if manifest is None and f"{shard.folder}/{MANIFEST}" in names:
        yield Finding(f"{shard.folder}/{MANIFEST}", "is broken, or of another version", shard.distrust)
    for name in sorted(names):
        found = MARKER.fullmatch(name.removeprefix(f"{shard.folder}/"))
        if found is None:
            continue
        number = int(found[1])
        part = shard.part(number)
        expected = manifest.parts[number] if manifest and number < len(manifest.parts) else None
        if part is None:
            yield finding(shard.store, name, "is broken, or of another version")
        elif manifest is not None and StoredPart.of(part).summary != expected:
            yield finding(shard.store, name, "is not of the part that the manifest names")


def check_records(shard: Shard, manifest: ShardManifest) -> Iterator[Finding | int]:
    """Index, calibration, and every record of every part."""
    index = read_index(shard)
    if not is_index_of(manifest, index):
        yield Finding(f"{shard.folder}/{INDEX}", "is missing, or not what the manifest names", shard.distrust)
        return
    if manifest.calibration_sha256 is not None and digest_of(shard) != manifest.calibration_sha256:
        what = "is missing, or not what the manifest names"
        yield Finding(f"{shard.folder}/{CALIBRATION_FILE}", what, partial(shard.distrust, calibration=True))
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
            what = f"has {len(broken)} broken records (documents {listed})"
        elif digest.hexdigest() != part.sha256:
            what = "does not have the bytes that were written"
        else:
            continue
        yield Finding(f"{shard.folder}/{part.file}", what, partial(shard.distrust, number))


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
        yield Finding(f"{name}/{MANIFEST}", "cannot be read")
        return
    for file, expected in draft.manifest.files.items():
        try:
            is_whole = FileRecord.of(store.fetch(f"{name}/{file}")) == expected
        except FileNotFoundError:
            is_whole = False
        if not is_whole:
            yield Finding(f"{name}/{file}", "is missing, or not what the manifest names")
        yield expected.bytes
