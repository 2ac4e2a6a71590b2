"""The prepared documents of a run: counts, lengths, and how often the draft vocabulary's members are used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from draftyard_api.names import prepared_path
from draftyard_trainer.data.manifest import PreparedManifest
from draftyard_trainer.data.prepared import INDEX, INDEX_DTYPE, VOCABULARY, VOCABULARY_DTYPE, read_manifest
from draftyard_trainer.storage.store import Store

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


def find_documents(store: Store, belongs: Callable[[str, PreparedManifest], bool]) -> Documents | None:
    """The first folder of documents that belongs to the run."""
    names = sorted({name.split("/")[1] for name in store.list("prepare") if name.count("/") > 1})
    read = ((name, read_manifest(store, name)) for name in names)
    name, prepared = next(((name, found) for name, found in read if found and belongs(name, found)), ("", None))
    if prepared is None:
        return None
    folder = prepared_path(name)
    index = read_array(store, f"{folder}/{INDEX}", INDEX_DTYPE)
    lengths, held_out = index["num_tokens"].astype(np.int64), index["held_out"].astype(np.bool_)
    counts = read_array(store, f"{folder}/{VOCABULARY}", VOCABULARY_DTYPE)["count"].astype(np.int64)
    return Documents(
        name=name,
        manifest=prepared,
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
