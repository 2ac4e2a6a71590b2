"""A shard: the documents that one index of the Job stores, in parts that are committed one by one.

    calibration.safetensors  before any part, of codecs that round
    part-000.<attempt>.bin   records          part-000.json   commit marker, names the .bin
    index.bin                all records      MANIFEST.json   last: complete and verified

A data file carries its attempt in its name and the marker names it: two pods of one index cannot mix bytes.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from draftyard_api.names import MANIFEST
from draftyard_api.schema import Model
from draftyard_trainer.data.document import Ids
from draftyard_trainer.hidden_states.calibration import CALIBRATION_FILE
from draftyard_trainer.hidden_states.codec import PackedSample, StateCodec
from draftyard_trainer.hidden_states.fidelity import Fidelity
from draftyard_trainer.hidden_states.record import CorruptRecordError, aligned, encode, read_header
from draftyard_trainer.storage.sealed import seal, unseal
from draftyard_trainer.storage.store import Store

FORMAT = 1
PART_BYTES = 512 * 2**20
PART_TOKENS = 32768
"""A part ends at the first of these two: it is what a killed pod loses, a minute's work at most on a CPU."""
ENCODERS = min(4, os.cpu_count() or 1)
"""Threads that compress records of one part: one of them writes 0.2 to 0.6 GB of bfloat16 a second."""
INDEX = "index.bin"
INDEX_DTYPE = np.dtype(
    [("doc_id", "<u8"), ("part", "<u4"), ("offset", "<u8"), ("bytes", "<u8"), ("tokens", "<u4"), ("labels", "<u4")]
)


Count = Annotated[int, Field(ge=0, lt=2**63)]
Small = Annotated[int, Field(ge=0, lt=2**32)]
"""What the index has room for."""
FileName = Annotated[str, Field(pattern=r"^part-[0-9]{3,6}\.[0-9a-f]{8}\.bin$")]
"""Of a data file: it can lead nowhere else."""


class Place(Model):
    """Where one record lies in its part."""

    doc_id: Count
    """Document."""
    offset: Count
    """First byte, a multiple of 64."""
    bytes: Count
    """Length, without padding."""
    tokens: Small
    """Its tokens."""
    labels: Small
    """Its label rows."""


class Skipped(Model):
    """A document that is not stored."""

    doc_id: Count
    """Document."""
    reason: str
    """Why."""
    layer: str
    """Which of its states: a captured layer's index, `last` or `lse`."""


class Part(Model):
    """Commit marker: it is written when the data file is whole and durable."""

    format: int = FORMAT
    """Version of this file."""
    number: Small
    """Place in the shard."""
    file: FileName
    """Data file, in the same folder."""
    bytes: Count
    """Its size."""
    sha256: str
    """Of its content."""
    records: tuple[Place, ...]
    """Its records, in order."""
    skipped: tuple[Skipped, ...]
    """Documents of this part that are not stored."""
    calibration_sha256: str | None = None
    """Of the sizes of channels that its states were divided by."""
    fidelity: Fidelity | None = None
    """What rounding did, on some of its rows."""

    @property
    def doc_ids(self) -> list[int]:
        """All documents of the part, stored or not, ascending."""
        return sorted([place.doc_id for place in self.records] + [skipped.doc_id for skipped in self.skipped])


class PartSummary(Model):
    """A part in the shard's manifest."""

    file: FileName
    """Data file."""
    bytes: Count
    """Its size."""
    sha256: str
    """Of its content."""
    documents: Count
    """Records."""


@dataclass(frozen=True, eq=False)
class StoredPart:
    """What an attempt remembers of a committed part: 36 bytes for a record."""

    summary: PartSummary
    index: npt.NDArray[Any]
    """`INDEX_DTYPE`, its records in order."""
    skipped: tuple[Skipped, ...]
    calibration_sha256: str | None
    fidelity: Fidelity | None

    @classmethod
    def of(cls, part: Part) -> StoredPart:
        """Of a part that is there."""
        rows = [
            (place.doc_id, part.number, place.offset, place.bytes, place.tokens, place.labels) for place in part.records
        ]
        summary = PartSummary(file=part.file, bytes=part.bytes, sha256=part.sha256, documents=len(rows))
        index = np.array(rows, dtype=INDEX_DTYPE)
        return cls(summary, index, part.skipped, part.calibration_sha256, part.fidelity)


class ShardManifest(Model):
    """Written last: the shard is complete, and every part was verified."""

    format: int = FORMAT
    """Version of this file."""
    key: str
    """Full hash of the key document."""
    shard: int
    """Number of the shard."""
    shards: int
    """Number of all shards of this cut."""
    codec: str
    """How states are stored."""
    documents: Count
    """Stored documents."""
    tokens: Count
    """Their tokens."""
    label_rows: Count
    """Their label rows."""
    bytes: Count
    """Bytes of all parts."""
    parts: tuple[PartSummary, ...]
    """In order."""
    skipped: tuple[Skipped, ...]
    """Documents that are not stored."""
    index_sha256: str
    """Of index.bin."""
    calibration_sha256: str | None = None
    """Of calibration.safetensors; None for codecs that lose nothing."""
    fidelity: Fidelity | None = None
    """What rounding did, on some rows of all parts."""
    product: str
    """Version of Draftyard."""
    device: str
    """What the last attempt computed on."""
    seconds: float
    """Time of the last attempt."""
    tokens_per_second: float | None
    """Its rate; None when it captured nothing."""


def documents_of(num_documents: int, shard: int, shards: int) -> Ids:
    """Document d belongs to shard d mod S, ascending."""
    return np.arange(shard, num_documents, shards, dtype=np.int64)


def cut_parts(doc_ids: Ids, lengths: Ids, sizes: Ids, part_bytes: int = PART_BYTES) -> list[Ids]:
    """Consecutive documents of at most `part_bytes` and PART_TOKENS; a larger document is a part of its own.

    It depends on what `prepare` wrote alone, so every attempt cuts alike.
    """
    starts: list[int] = []
    bytes_left = tokens_left = 0
    for place, (length, size) in enumerate(zip(lengths, sizes, strict=True)):
        if not starts or size > bytes_left or length > tokens_left:
            starts.append(place)
            bytes_left, tokens_left = part_bytes, PART_TOKENS
        bytes_left -= int(size)
        tokens_left -= int(length)
    return np.split(doc_ids, starts[1:]) if starts else []


@dataclass(frozen=True, eq=False)
class CapturedPart:
    """What a part will be made of, in host memory."""

    samples: Iterable[PackedSample]
    skipped: Sequence[Skipped] = ()
    calibration_sha256: str | None = None
    fidelity: Fidelity | None = None


@dataclass(frozen=True)
class Shard:
    """One shard's folder in a store."""

    store: Store
    folder: str

    def manifest(self) -> ShardManifest | None:
        """The manifest of a complete shard, else None."""
        try:
            return ShardManifest.model_validate_json(unseal(self.store.read(f"{self.folder}/{MANIFEST}")))
        except (FileNotFoundError, ValueError):
            return None

    def part(self, number: int) -> Part | None:
        """What the commit marker of a part says; None without one that can be read."""
        try:
            return Part.model_validate_json(unseal(self.store.read(self.marker(number))))
        except (FileNotFoundError, ValueError):
            return None

    def committed(self, number: int, doc_ids: list[int], calibration_sha256: str | None) -> Part | None:
        """A part with these documents that an earlier attempt committed, and whose first record reads back."""
        part = self.part(number)
        if part is None:
            return None
        is_whole = self.store.size(f"{self.folder}/{part.file}") == part.bytes
        is_ours = part.number == number and part.doc_ids == doc_ids
        is_readable = part.calibration_sha256 == calibration_sha256
        return part if is_whole and is_ours and is_readable and self._reads_back(part) else None

    def _reads_back(self, part: Part) -> bool:
        if not part.records:
            return True
        place = part.records[0]
        record = self.store.read_range(f"{self.folder}/{part.file}", place.offset, place.bytes)
        return is_intact(record, place.doc_id)

    def commit(self, number: int, captured: CapturedPart, codec: StateCodec) -> Part:
        """Write a part's data file, its samples in their order, then its marker."""
        file = f"part-{number:03d}.{secrets.token_hex(4)}.bin"
        places: list[Place] = []
        digest = hashlib.sha256()
        offset = 0
        with self.store.create(f"{self.folder}/{file}") as sink:
            for sample, record in encoded(captured.samples, codec):
                padded = record.ljust(aligned(len(record)), b"\0")
                sink.write(padded)
                digest.update(padded)
                places.append(describe(sample, offset, len(record)))
                offset += len(padded)
        part = Part(
            number=number,
            file=file,
            bytes=offset,
            sha256=digest.hexdigest(),
            records=tuple(places),
            skipped=tuple(captured.skipped),
            calibration_sha256=captured.calibration_sha256,
            fidelity=captured.fidelity,
        )
        marker = part.model_dump_json(by_alias=True, exclude_none=True).encode()
        self.store.publish(self.marker(number), seal(marker))
        return part

    def complete(self, manifest: ShardManifest, parts: Sequence[StoredPart]) -> None:
        """Write the index and then, as the very last, the manifest."""
        self.store.publish(f"{self.folder}/{INDEX}", index_bytes(parts))
        content = seal(manifest.model_dump_json(by_alias=True, indent=1).encode())
        self.store.publish(f"{self.folder}/{MANIFEST}", content)

    def tidy(self, manifest: ShardManifest) -> None:
        """Remove what killed or beaten attempts left in a complete shard."""
        files = {part.file for part in manifest.parts}
        for name in self.store.list(self.folder):
            if name.endswith(".bin") and name.rpartition("/")[2] not in files | {INDEX}:
                self.store.delete(name)
        self.store.sweep(self.folder)

    def distrust(self, part: int | None = None, calibration: bool = False) -> None:
        """Take back that the shard is complete, and what of it is broken: generate then makes only that again."""
        self.store.delete(f"{self.folder}/{MANIFEST}")
        if calibration:
            self.store.delete(f"{self.folder}/{CALIBRATION_FILE}")
        if part is not None:
            self.store.delete(self.marker(part))

    def marker(self, number: int) -> str:
        """Name of a part's commit marker."""
        return f"{self.folder}/part-{number:03d}.json"


def is_intact(record: bytes, doc_id: int) -> bool:
    """Whether a record reads back and is the one of this document."""
    try:
        return read_header(record).doc_id == doc_id
    except CorruptRecordError:
        return False


def encoded(samples: Iterable[PackedSample], codec: StateCodec) -> Iterator[tuple[PackedSample, bytes]]:
    """Samples with their records, in order; several threads compress, a few records ahead."""
    with ThreadPoolExecutor(ENCODERS, thread_name_prefix="encode") as threads:
        ahead: deque[tuple[PackedSample, Future[bytes]]] = deque()
        for sample in samples:
            ahead.append((sample, threads.submit(encode, sample, codec)))
            if len(ahead) > 2 * ENCODERS:
                first, record = ahead.popleft()
                yield first, record.result()
        for first, record in ahead:
            yield first, record.result()


def describe(sample: PackedSample, offset: int, size: int) -> Place:
    """The index entry of a record."""
    document = sample.document
    return Place(doc_id=document.doc_id, offset=offset, bytes=size, tokens=document.num_tokens, labels=len(sample.tok))


def index_bytes(parts: Sequence[StoredPart]) -> bytes:
    """All records of a shard, in order."""
    return b"".join(part.index.tobytes() for part in parts)
