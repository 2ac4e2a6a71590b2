"""Stored hidden states, as their manifests describe them: only what a report shows, whatever version wrote the rest."""

from __future__ import annotations

import json
import re
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel

from draftyard_api.names import MANIFEST, hidden_states_path, shard_path
from draftyard_trainer.draft.header import read_entries
from draftyard_trainer.hidden_states.rounding import Fidelity, total
from draftyard_trainer.storage.sealed import unseal
from draftyard_trainer.storage.store import Store

CACHE = re.compile(r"^hidden-states/([^/]+)/s(\d{1,5})/")
KEY_FILE, TARGET_FILE, USERS = "key.json", "target.safetensors", "users"


class View(BaseModel):
    """A part of a document: fields that this version does not know are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore", alias_generator=to_camel, populate_by_name=True)


ViewT = TypeVar("ViewT", bound=View)


class Key(View):
    """What decided the states."""

    codec: str
    """How they are stored."""
    dtype: str
    """Precision of the values."""
    aux_layers: tuple[int, ...]
    """Captured layers."""
    tokens_sha256: str
    """Of the documents."""


class ShardOf(View):
    """A complete shard."""

    documents: int
    """Stored documents."""
    tokens: int
    """Their tokens."""
    bytes: int
    """Of all parts."""
    seconds: float
    """Time of the last attempt."""
    fidelity: Fidelity | None = None
    """What rounding did."""


@dataclass(frozen=True)
class States:
    """`hidden-states/<key>/s<S>`."""

    num_shards: int
    key: Key | None
    """None when it cannot be read."""
    complete: tuple[ShardOf, ...]
    """Shards that are."""
    target_config: dict[str, Any] | None
    """Of the target, as it lies beside the states."""

    @property
    def fidelity(self) -> Fidelity:
        """Over all complete shards; of nothing for codecs that lose nothing."""
        return total(shard.fidelity for shard in self.complete)


def find_states(store: Store, run: str, told: tuple[str, int] | None, key: str | None) -> States | None:
    """The states of a run: those that training was told of, else those of the export's key, else those with its mark.

    `told` is a key and a number of shards. Whoever finds states complete trains from them, also without a mark.
    """
    names = set(store.list("hidden-states"))
    folders = {(match[1], int(match[2])) for name in names if (match := CACHE.match(name))}
    marked = {each for each in folders if f"{hidden_states_path(*each)}/{USERS}/{run}" in names}
    if told is not None:
        wanted = {told} & folders
    elif key is not None:
        of_key = {each for each in folders if each[0] == key}
        wanted = of_key & marked or of_key
    else:
        wanted = marked
    return open_states(store, *min(wanted), names) if wanted else None


def open_states(store: Store, key: str, num_shards: int, names: AbstractSet[str]) -> States:
    """One cut of one content, whatever state it is in; `names` are all objects below `hidden-states`."""
    folder = hidden_states_path(key, num_shards)
    manifests = (f"{shard_path(key, num_shards, number)}/{MANIFEST}" for number in range(num_shards))
    # in a bucket every question is a request
    shards = [read_view(store, name, ShardOf) for name in manifests if name in names]
    return States(
        num_shards=num_shards,
        key=read_view(store, f"{folder}/{KEY_FILE}", Key),
        complete=tuple(shard for shard in shards if shard is not None),
        target_config=read_target_config(store, f"{folder}/{TARGET_FILE}"),
    )


def read_view(store: Store, name: str, view: type[ViewT]) -> ViewT | None:
    """A part of a sealed document; None when it is absent, broken, or lacks what is wanted."""
    try:
        return view.model_validate_json(unseal(store.read(name)))
    except (FileNotFoundError, ValidationError, ValueError):
        return None


def read_target_config(store: Store, name: str) -> dict[str, Any] | None:
    """The config in the metadata of the target's head; of a file of gigabytes only the header is read."""
    try:
        entries, _ = read_entries(partial(store.read_range, name), TARGET_FILE)
        found = json.loads(entries["__metadata__"]["config"])
    except (FileNotFoundError, KeyError, TypeError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
