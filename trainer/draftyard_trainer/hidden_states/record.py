"""One document's states as bytes, self-contained and checked: any flipped bit is found.

header 64 B  magic, version, dtype, doc id, n, label rows, spans, crc32c of everything else, bytes of both blobs, zeros
payload      x u32[n] | spans (u32 start, u32 length)[s] | tok i32[r] | lse f32[r] | aux blob | last blob
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import google_crc32c
import numpy as np
import torch

from draftyard_trainer.data.document import Document
from draftyard_trainer.hidden_states.codec import DTYPES, Layout, decode_values, encode_values
from draftyard_trainer.hidden_states.sample import Sample

# n tokens, s spans, r label rows

MAGIC, VERSION = b"DYR1", 1
HEADER = struct.Struct("<4sHHQIIIIQQ16x")
CRC = slice(28, 32)
ALIGNMENT = 64
"""Each record starts at a multiple of this."""


class CorruptRecordError(ValueError):
    """Bytes that are no whole record."""


@dataclass(frozen=True)
class Header:
    """The fixed part of a record."""

    dtype: int
    doc_id: int
    num_tokens: int
    label_rows: int
    spans: int
    crc: int
    aux_bytes: int
    last_bytes: int

    def pack(self) -> bytes:
        """The 64 bytes."""
        return HEADER.pack(
            MAGIC, VERSION, self.dtype, self.doc_id, self.num_tokens, self.label_rows, self.spans, self.crc,
            self.aux_bytes, self.last_bytes,
        )  # fmt: skip

    @property
    def record_bytes(self) -> int:
        """The whole record, without what aligns the next one."""
        payload = 4 * self.num_tokens + 8 * self.spans + 8 * self.label_rows + self.aux_bytes + self.last_bytes
        return HEADER.size + payload


def encode(sample: Sample) -> bytes:
    """A record, without padding. Raises ValueError for a dtype that no record names."""
    document = sample.document
    aux, last = encode_values(sample.aux), encode_values(sample.last)
    payload = b"".join(
        (
            document.tokens.astype("<u4").tobytes(),
            document.spans.astype("<u4").tobytes(),
            sample.tok.cpu().numpy().astype("<i4").tobytes(),
            sample.lse.cpu().numpy().astype("<f4").tobytes(),
            aux,
            last,
        )
    )
    header = Header(
        dtype=DTYPES.index(sample.aux.dtype),
        doc_id=document.doc_id,
        num_tokens=document.num_tokens,
        label_rows=len(sample.tok),
        spans=len(document.spans),
        crc=0,
        aux_bytes=len(aux),
        last_bytes=len(last),
    ).pack()
    crc = google_crc32c.extend(google_crc32c.value(header), payload)
    return header[: CRC.start] + struct.pack("<I", crc) + header[CRC.stop :] + payload


def aligned(size: int) -> int:
    """Where the next record may start."""
    return size + -size % ALIGNMENT


def estimated_bytes(document: Document, layout: Layout) -> int:
    """Size of a document's record before it exists; with codec `none` it is exact."""
    rows, spans = len(document.label_rows()), len(document.spans)
    values = layout.encoded_bytes(document.num_tokens, rows)
    return aligned(HEADER.size + 4 * document.num_tokens + 8 * spans + 8 * rows + values)


def read_header(record: bytes) -> Header:
    """The header of a record whose bytes are all there and unchanged. Raises CorruptRecordError."""
    if len(record) < HEADER.size:
        raise CorruptRecordError(f"{len(record)} bytes; a header has {HEADER.size}")
    magic, version, *numbers = HEADER.unpack_from(record)
    if magic != MAGIC or version != VERSION:
        raise CorruptRecordError(f"magic {magic!r} and version {version}; accepted: {MAGIC!r} and {VERSION}")
    header = Header(*numbers)
    if len(record) != header.record_bytes:
        raise CorruptRecordError(f"{len(record)} bytes; the header says {header.record_bytes}")
    zeroed = record[: CRC.start] + bytes(4) + record[CRC.stop : HEADER.size]
    crc = google_crc32c.extend(google_crc32c.value(zeroed), record[HEADER.size :])
    if crc != header.crc:
        raise CorruptRecordError(f"crc32c {crc:08x}; the header says {header.crc:08x}")
    return header


def decode(record: bytes, layout: Layout) -> Sample:
    """The sample in a record. Raises CorruptRecordError for bytes that `encode` did not write for this cache."""
    header = read_header(record)
    given = (header.dtype, header.aux_bytes, header.last_bytes)
    expected = (
        DTYPES.index(layout.dtype),
        layout.encoded_bytes(header.num_tokens, 0),
        layout.encoded_bytes(0, header.label_rows),
    )
    if given != expected:
        raise CorruptRecordError(f"dtype and bytes of the states are {given}; expected {expected}")
    rest = memoryview(record)[HEADER.size :]

    def take(size: int) -> memoryview:
        nonlocal rest
        taken, rest = rest[:size], rest[size:]
        return taken

    tokens = np.frombuffer(take(4 * header.num_tokens), dtype="<u4").astype(np.int64)
    spans = np.frombuffer(take(8 * header.spans), dtype="<u4").astype(np.int64).reshape(-1, 2)
    tok = np.frombuffer(take(4 * header.label_rows), dtype="<i4").astype(np.int32)
    lse = np.frombuffer(take(4 * header.label_rows), dtype="<f4").astype(np.float32)
    return Sample(
        document=Document(header.doc_id, tokens, spans),
        aux=decode_values(take(header.aux_bytes), layout.num_aux * layout.width, layout.dtype),
        last=decode_values(take(header.last_bytes), layout.width, layout.dtype),
        tok=torch.from_numpy(tok),
        lse=torch.from_numpy(lse),
    )
