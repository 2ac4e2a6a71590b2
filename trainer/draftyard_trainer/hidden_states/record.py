"""One document's states as bytes, self-contained and checked: any flipped bit is found.

header 64 B  magic, version, dtype and codec, doc id, n, label rows, spans, crc32c of all else, blobs' bytes, zeros
payload      x u32[n] | spans (u32 start, u32 length)[s] | tok i32[r] | lse f32[r] | aux scales f32[n, A] |
             last scales f32[r] | aux blob | last blob                       scales: of codecs that round
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import google_crc32c
import numpy as np
import torch

from draftyard_trainer.data.document import Document
from draftyard_trainer.hidden_states.codec import (
    CODECS,
    DTYPES,
    Layout,
    PackedSample,
    StateCodec,
    compress,
    decompress,
)
from draftyard_trainer.storage.sealed import checksum

# n tokens, s spans, r label rows, A captured layers

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

    form: int
    """Place in DTYPES, and 256 times the place in CODECS."""
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
            MAGIC, VERSION, self.form, self.doc_id, self.num_tokens, self.label_rows, self.spans, self.crc,
            self.aux_bytes, self.last_bytes,
        )  # fmt: skip

    @property
    def least_bytes(self) -> int:
        """The record without its scales, and without what aligns the next one."""
        payload = 4 * self.num_tokens + 8 * self.spans + 8 * self.label_rows + self.aux_bytes + self.last_bytes
        return HEADER.size + payload


def form_of(layout: Layout) -> int:
    """How a header names what the states look like."""
    return DTYPES.index(layout.dtype) + 256 * CODECS.index(layout.codec)


def encode(packed: PackedSample, codec: StateCodec) -> bytes:
    """A record, without padding. The sample is in host memory, or on its way there."""
    packed.wait()
    document = packed.document
    aux, last = compress(packed.aux), compress(packed.last)
    payload = b"".join(
        (
            document.tokens.astype("<u4").tobytes(),
            document.spans.astype("<u4").tobytes(),
            packed.tok.numpy().astype("<i4").tobytes(),
            packed.lse.numpy().astype("<f4").tobytes(),
            packed.aux.scales.numpy().astype("<f4").tobytes(),
            packed.last.scales.numpy().astype("<f4").tobytes(),
            aux,
            last,
        )
    )
    header = Header(
        form=form_of(codec.layout),
        doc_id=document.doc_id,
        num_tokens=document.num_tokens,
        label_rows=len(packed.tok),
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
    values = layout.planned_bytes(document.num_tokens, rows)
    return aligned(HEADER.size + 4 * document.num_tokens + 8 * spans + 8 * rows + values)


def read_header(record: bytes) -> Header:
    """The header of a record whose bytes are all there and unchanged. Raises CorruptRecordError."""
    if len(record) < HEADER.size:
        raise CorruptRecordError(f"{len(record)} bytes; a header has {HEADER.size}")
    magic, version, *numbers = HEADER.unpack_from(record)
    if magic != MAGIC or version != VERSION:
        raise CorruptRecordError(f"magic {magic!r} and version {version}; accepted: {MAGIC!r} and {VERSION}")
    header = Header(*numbers)
    if len(record) < header.least_bytes:
        raise CorruptRecordError(f"{len(record)} bytes; the header says at least {header.least_bytes}")
    zeroed = record[: CRC.start] + bytes(4) + record[CRC.stop : HEADER.size]
    crc = checksum(memoryview(record)[HEADER.size :], google_crc32c.value(zeroed))
    if crc != header.crc:
        raise CorruptRecordError(f"crc32c {crc:08x}; the header says {header.crc:08x}")
    return header


def checked(document: Document, rows: int) -> Document:
    """A document whose spans lie in it, ascending and apart, and have so many label rows. Raises ValueError."""
    starts, ends = document.spans[:, 0], document.spans.sum(axis=1)
    if (ends > document.num_tokens).any() or (starts[1:] < ends[:-1]).any():
        raise ValueError(f"spans {document.spans.tolist()} of {document.num_tokens} tokens")
    if len(document.label_rows()) != rows:
        raise ValueError(f"{rows} label rows; its spans have {len(document.label_rows())}")
    return document


def decode(record: bytes, codec: StateCodec, pinned: bool = False) -> PackedSample:
    """The sample in a record, in host memory. Raises CorruptRecordError for what was not written for this cache."""
    header = read_header(record)
    rows, tokens = header.label_rows, header.num_tokens
    scales = (tokens * codec.aux.num_scales, rows * codec.last.num_scales)
    given = (header.form, len(record))
    expected = (form_of(codec.layout), header.least_bytes + 4 * sum(scales))
    if given != expected:
        raise CorruptRecordError(f"form and bytes are {given}; expected {expected}")
    rest = memoryview(record)[HEADER.size :]

    def take(count: int, kind: str) -> np.ndarray[tuple[int], np.dtype[np.generic]]:
        nonlocal rest
        values = np.frombuffer(rest, dtype=kind, count=count)
        rest = rest[values.nbytes :]
        return values

    x, spans = take(tokens, "<u4").astype(np.int64), take(2 * header.spans, "<u4").astype(np.int64)
    tok, lse = take(rows, "<i4").astype(np.int32), take(rows, "<f4").astype(np.float32)
    aux_scales, last_scales = (torch.from_numpy(take(count, "<f4").astype(np.float32)) for count in scales)
    aux, last = rest[: header.aux_bytes], rest[header.aux_bytes :]
    try:
        return PackedSample(
            document=checked(Document(header.doc_id, x, spans.reshape(-1, 2)), rows),
            aux=decompress(aux, codec.aux, aux_scales.view(tokens, codec.aux.num_scales), pinned),
            last=decompress(last, codec.last, last_scales.view(rows, codec.last.num_scales), pinned),
            tok=torch.from_numpy(tok),
            lse=torch.from_numpy(lse),
        )
    except ValueError as error:
        raise CorruptRecordError(str(error)) from error
