"""Two sources of hidden states with one interface; what happens to a sample afterwards is in one place for both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from draftyard_trainer.data.document import Ids
from draftyard_trainer.data.prepared import PreparedDataset
from draftyard_trainer.hidden_states.codec import Layout
from draftyard_trainer.hidden_states.key import stale
from draftyard_trainer.hidden_states.record import CorruptRecordError, decode
from draftyard_trainer.hidden_states.sample import Sample
from draftyard_trainer.hidden_states.shard import Shard
from draftyard_trainer.target.capture import CapturedTarget
from draftyard_trainer.target.head import TargetHead


class Source(Protocol):
    """Yields samples by document id, whoever made them."""

    @property
    def head(self) -> TargetHead:
        """The target's head, embedding, final norm and text config."""
        ...

    @property
    def target_identity(self) -> str:
        """Commit or content hash of the target."""
        ...

    def available(self, doc_ids: Ids) -> Ids:
        """Those of the documents that have states."""
        ...

    def samples(self, doc_ids: Sequence[int]) -> list[Sample]:
        """Samples in the order of the ids."""
        ...


@dataclass(frozen=True, eq=False)
class OnlineSource:
    """States are made by the target when they are asked for, and never stored."""

    target: CapturedTarget
    dataset: PreparedDataset

    @property
    def head(self) -> TargetHead:
        """The loaded target's."""
        return self.target.head

    @property
    def target_identity(self) -> str:
        """The loaded target's."""
        return self.target.identity

    def available(self, doc_ids: Ids) -> Ids:
        """All of them."""
        return doc_ids

    def samples(self, doc_ids: Sequence[int]) -> list[Sample]:
        """Capture the documents."""
        return self.target.capture([self.dataset.document(doc_id) for doc_id in doc_ids])


@dataclass(frozen=True, eq=False)
class StoredShard:
    """A verified shard: where it is, its data files by part number, its index."""

    shard: Shard
    files: tuple[str, ...]
    index: npt.NDArray[Any]
    """`INDEX_DTYPE`, one entry per record."""


@dataclass(frozen=True, eq=False)
class OfflineSource:
    """States are read from the workspace; every record is checked as it is read. `opening.open_stored` makes one."""

    head: TargetHead
    target_identity: str
    layout: Layout
    shards: tuple[StoredShard, ...]
    _doc_ids: Ids = field(init=False, repr=False)
    """Ids of all stored documents, ascending."""
    _where: Ids = field(init=False, repr=False)
    """`[N, 2]`: shard and index entry of each of them."""

    def __post_init__(self) -> None:
        ids = [stored.index["doc_id"].astype(np.int64) for stored in self.shards]
        where = [
            np.stack([np.full(len(own), place, dtype=np.int64), np.arange(len(own))], axis=1)
            for place, own in enumerate(ids)
        ]
        joined = np.concatenate([np.zeros(0, dtype=np.int64), *ids])
        order = np.argsort(joined, kind="stable")
        object.__setattr__(self, "_doc_ids", joined[order])
        object.__setattr__(self, "_where", np.concatenate([np.zeros((0, 2), dtype=np.int64), *where])[order])

    def available(self, doc_ids: Ids) -> Ids:
        """Those that are stored: documents with values that are not finite are not, nor those of missing shards."""
        found: Ids = doc_ids[np.isin(doc_ids, self._doc_ids)]
        return found

    def samples(self, doc_ids: Sequence[int]) -> list[Sample]:
        """Read the documents. Raises Failure(STALE_INPUT) for a broken record, KeyError for one that is not stored."""
        return [self._read(doc_id) for doc_id in doc_ids]

    def _read(self, doc_id: int) -> Sample:
        """One record; a broken one is read a second time, then its part is taken back, so that generate remakes it."""
        place = int(np.searchsorted(self._doc_ids, doc_id))
        if place == len(self._doc_ids) or self._doc_ids[place] != doc_id:
            raise KeyError(doc_id)
        number, entry = self._where[place].tolist()
        stored = self.shards[number]
        row = stored.index[entry]
        name = f"{stored.shard.folder}/{stored.files[row['part']]}"
        problem = ""
        for _ in range(2):
            try:
                record = stored.shard.store.read_range(name, int(row["offset"]), int(row["bytes"]))
                sample = decode(record, self.layout)
            except (CorruptRecordError, FileNotFoundError) as error:
                problem = str(error)
                continue
            if sample.document.doc_id == doc_id:
                return sample
            problem = f"it is the record of document {sample.document.doc_id}"
        stored.shard.distrust(int(row["part"]))
        raise stale(name, f"document {doc_id} at byte {row['offset']} is broken ({problem})")
