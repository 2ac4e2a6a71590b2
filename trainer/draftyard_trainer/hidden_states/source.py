"""Two sources of hidden states with one interface; what happens to a sample afterwards is in one place for both."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from draftyard_trainer.data.document import Ids
from draftyard_trainer.data.prepared import PreparedDataset
from draftyard_trainer.hidden_states.codec import PackedSample, StateCodec
from draftyard_trainer.hidden_states.key import stale
from draftyard_trainer.hidden_states.record import CorruptRecordError, decode
from draftyard_trainer.hidden_states.sample import Sample
from draftyard_trainer.hidden_states.shard import Shard
from draftyard_trainer.storage.cache import RecordCache
from draftyard_trainer.target.capture import CapturedTarget
from draftyard_trainer.target.head import TargetHead

PREFETCH_BYTES = 2 * 2**30
"""Records that are read ahead of their use, at most: memory is what bounds it, not a number of rows."""
READERS = {"file": 4, "s3": 64}
"""Threads that read records: a disk is kept busy by a few, a bucket answers slowly but to many at once."""


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

    def stream(self, rows: Sequence[Sequence[int]]) -> Generator[list[Sample], None, None]:
        """Samples of row after row; later rows are read while earlier ones are used."""
        ...


@dataclass(frozen=True, eq=False)
class OnlineSource:
    """States are made by the target when they are asked for, and never stored."""

    target: CapturedTarget
    dataset: PreparedDataset
    _thread: ThreadPoolExecutor = field(init=False, repr=False)
    """The one thread that captures: a loaded target cannot do so for two at once."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "_thread", build_thread(self.target.device))

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

    def stream(self, rows: Sequence[Sequence[int]]) -> Generator[list[Sample], None, None]:
        """The next row is captured while this one is used, and no more than that."""
        return one_ahead(self._thread, self.samples, rows)


def one_ahead(
    thread: ThreadPoolExecutor, samples: Callable[[Sequence[int]], list[Sample]], rows: Sequence[Sequence[int]]
) -> Generator[list[Sample], None, None]:
    """Samples of row after row, the next one made on `thread` while this one is used."""
    if not rows:
        return
    ahead = thread.submit(samples, rows[0])
    try:
        for following in (*rows[1:], None):
            made = ahead.result()
            if following is not None:
                ahead = thread.submit(samples, following)
            yield made
    finally:
        ahead.cancel()


def build_thread(device: torch.device) -> ThreadPoolExecutor:
    """One thread on the process's own device: which one is current is a matter of each thread."""
    if device.type == "cuda":
        return ThreadPoolExecutor(1, initializer=torch.cuda.set_device, initargs=(device,))
    return ThreadPoolExecutor(1)


@dataclass(frozen=True, eq=False)
class StoredShard:
    """A verified shard: where it is, its data files by part number, how its states are stored, its index."""

    shard: Shard
    files: tuple[str, ...]
    codec: StateCodec
    index: npt.NDArray[Any]
    """`INDEX_DTYPE`, one entry per record."""


@dataclass(frozen=True, eq=False)
class OfflineSource:
    """States are read from the workspace; every record is checked as it is read. `opening.open_stored` makes one."""

    head: TargetHead
    target_identity: str
    shards: tuple[StoredShard, ...]
    device: torch.device
    """Where states are unpacked: they travel there as they are stored."""
    cache: RecordCache | None = None
    """On the node's disk, where there is one and they lie in a bucket."""
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
        (samples,) = self.stream([doc_ids])
        return samples

    def stream(self, rows: Sequence[Sequence[int]]) -> Generator[list[Sample], None, None]:
        """Records are read, checked and decompressed by threads, up to `PREFETCH_BYTES` ahead; unpacked when used."""
        scheme = self.shards[0].shard.store.uri.partition(":")[0] if self.shards else "file"
        threads = ThreadPoolExecutor(READERS[scheme], thread_name_prefix="read")
        ahead: deque[list[Reading]] = deque()
        size = 0
        try:
            for row in (*rows, None):
                # what is read next must wait until there is room; a row larger than the bound is read alone
                while ahead and (row is None or size >= PREFETCH_BYTES):
                    readings = ahead.popleft()
                    yield [reading.sample(self.device) for reading in readings]
                    size -= sum(reading.num_bytes for reading in readings)
                if row is not None:
                    ahead.append([self._begin(doc_id, threads) for doc_id in row])
                    size += sum(reading.num_bytes for reading in ahead[-1])
        finally:
            threads.shutdown(cancel_futures=True)

    def _begin(self, doc_id: int, threads: ThreadPoolExecutor) -> Reading:
        """Start to read a record. Raises KeyError for one that is not stored."""
        place = int(np.searchsorted(self._doc_ids, doc_id))
        if place == len(self._doc_ids) or self._doc_ids[place] != doc_id:
            raise KeyError(doc_id)
        number, entry = self._where[place].tolist()
        stored = self.shards[number]
        row = stored.index[entry]
        return Reading(stored.codec, int(row["bytes"]), threads.submit(self._read, stored, row))

    def _read(self, stored: StoredShard, row: np.void) -> PackedSample:
        return read(stored, row, self.cache, pinned=self.device.type == "cuda")


@dataclass(frozen=True, eq=False)
class Reading:
    """A record on its way."""

    codec: StateCodec
    num_bytes: int
    packed: Future[PackedSample]

    def sample(self, device: torch.device) -> Sample:
        """Wait for it, and unpack it on `device`."""
        return self.codec.unpack(self.packed.result().to(device))


def read(stored: StoredShard, row: np.void, cache: RecordCache | None, pinned: bool) -> PackedSample:
    """One record; a broken one is read a second time, then its part is taken back, so that generate remakes it."""
    name, doc_id = f"{stored.shard.folder}/{stored.files[row['part']]}", int(row["doc_id"])
    store, offset, problem = stored.shard.store, int(row["offset"]), ""
    origin = partial(store.read_range, name, offset, int(row["bytes"]))
    for _ in range(2):
        try:
            record = origin() if cache is None else cache.read(f"{store.uri}/{name}", offset, origin)
            packed = decode(record, stored.codec, pinned)
        except (CorruptRecordError, FileNotFoundError) as error:
            problem = str(error)
            if cache is not None:
                cache.evict(f"{store.uri}/{name}", offset)
            continue
        if packed.document.doc_id == doc_id:
            return packed
        problem = f"it is the record of document {packed.document.doc_id}"
    stored.shard.distrust(int(row["part"]))
    raise stale(name, f"document {doc_id} at byte {row['offset']} is broken ({problem})")
