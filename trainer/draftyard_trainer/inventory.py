"""What lies in a workspace: own answers, prepared documents, hidden states, drafts. Only manifests are read."""

from __future__ import annotations

import json
import re
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import partial

from pydantic import ValidationError

from draftyard_api.names import (
    MANIFEST,
    PUBLISHED,
    conversation_shard_path,
    export_path,
    hidden_states_path,
    shard_path,
)
from draftyard_trainer.data.conversations import ConversationManifest, ConversationShard
from draftyard_trainer.data.manifest import PreparedManifest
from draftyard_trainer.data.prepared import read_manifest
from draftyard_trainer.draft.header import read_entries
from draftyard_trainer.draft.manifest import Manifest
from draftyard_trainer.hidden_states import fidelity
from draftyard_trainer.hidden_states.fidelity import Fidelity
from draftyard_trainer.hidden_states.key import TARGET_FILE, USERS, StatesKey, read_key
from draftyard_trainer.hidden_states.shard import Shard, ShardManifest
from draftyard_trainer.storage.store import Store

ANSWERS = re.compile(r"^conversations/([^/]+)/s(\d{1,4})/")
CACHE = re.compile(r"^hidden-states/([^/]+)/s(\d{1,5})/")


@dataclass(frozen=True)
class Conversations:
    """`conversations/<key>/s<S>`."""

    key: str
    num_shards: int
    shards: tuple[ConversationManifest | None, ...]
    """By number; None where a shard is not complete."""

    @property
    def complete(self) -> list[ConversationManifest]:
        """Manifests of complete shards."""
        return [shard for shard in self.shards if shard is not None]


@dataclass(frozen=True)
class PreparedFolder:
    """`prepare/<name>`."""

    name: str
    manifest: PreparedManifest | None
    """None when it cannot be read."""


@dataclass(frozen=True)
class Cache:
    """`hidden-states/<key>/s<S>`."""

    key: str
    num_shards: int
    document: StatesKey | None
    """The key document; None when it cannot be read."""
    shards: tuple[ShardManifest | None, ...]
    """By number; None where a shard is not complete."""
    users: tuple[str, ...]
    """Runs that use it."""
    width: int | None
    """H of the target, where its head is there to say it."""

    @property
    def complete(self) -> list[ShardManifest]:
        """Manifests of complete shards."""
        return [shard for shard in self.shards if shard is not None]

    @property
    def fidelity(self) -> Fidelity:
        """Over all complete shards; of nothing for codecs that lose nothing."""
        return fidelity.total(shard.fidelity for shard in self.complete)


@dataclass(frozen=True)
class Draft:
    """`export/<run>`."""

    run: str
    manifest: Manifest | None
    """None when it cannot be read."""
    is_published: bool


def conversations(store: Store) -> list[Conversations]:
    """All of them, by key and number of shards."""
    names = set(store.list("conversations"))
    found = sorted({(match[1], int(match[2])) for name in names if (match := ANSWERS.match(name))})
    made = []
    for key, num_shards in found:
        paths = (conversation_shard_path(key, num_shards, number) for number in range(num_shards))
        # in a bucket every question is a request
        shards = [ConversationShard(store, path) if f"{path}/{MANIFEST}" in names else None for path in paths]
        made.append(Conversations(key, num_shards, tuple(shard.manifest() if shard else None for shard in shards)))
    return made


def prepared_folders(store: Store) -> list[PreparedFolder]:
    """All of them, by name."""
    names = sorted({name.split("/")[1] for name in store.list("prepare") if name.count("/") > 1})
    return [PreparedFolder(name, read_manifest(store, name)) for name in names]


def caches(store: Store) -> list[Cache]:
    """All of them, by key and number of shards."""
    names = set(store.list("hidden-states"))
    found = sorted({(match[1], int(match[2])) for name in names if (match := CACHE.match(name))})
    return [open_cache(store, key, num_shards, names) for key, num_shards in found]


def open_cache(store: Store, key: str, num_shards: int, names: AbstractSet[str]) -> Cache:
    """One cache, whatever state it is in; `names` are all objects below `hidden-states`."""
    folder = hidden_states_path(key, num_shards)
    users = sorted(name.rpartition("/")[2] for name in names if name.startswith(f"{folder}/{USERS}/"))
    paths = (shard_path(key, num_shards, number) for number in range(num_shards))
    # in a bucket every question is a request
    shards = (Shard(store, path).manifest() if f"{path}/{MANIFEST}" in names else None for path in paths)
    return Cache(key, num_shards, read_key(store, folder), tuple(shards), tuple(users), width_of(store, folder))


def width_of(store: Store, folder: str) -> int | None:
    """Hidden size, as the config beside the states says it; of a file of gigabytes only the header is read."""
    try:
        entries, _ = read_entries(partial(store.read_range, f"{folder}/{TARGET_FILE}"), TARGET_FILE)
        return int(json.loads(entries["__metadata__"]["config"])["hidden_size"])
    except (FileNotFoundError, KeyError, TypeError, ValueError, RecursionError):
        return None


def drafts(store: Store) -> list[Draft]:
    """All of them, by run."""
    runs = sorted({name.split("/")[1] for name in store.list("export") if name.count("/") > 1})
    return [Draft(run, read_draft(store, run), store.exists(f"{export_path(run)}/{PUBLISHED}")) for run in runs]


def read_draft(store: Store, run: str) -> Manifest | None:
    """A draft's manifest, if this version can read it."""
    try:
        return Manifest.model_validate_json(store.read(f"{export_path(run)}/{MANIFEST}"))
    except (FileNotFoundError, ValidationError):
        return None
