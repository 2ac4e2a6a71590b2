"""Files that carry a checksum of themselves: whoever reads them finds every flipped bit, white space included.

A JSON document begins with `{"sha256":"<of all that follows>",`, and stays JSON. A safetensors file has `crc32c` in its
metadata: of the whole file, with eight zeros in that place.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from typing import BinaryIO

import google_crc32c

JSON_SEAL = b'{"sha256":"%s",'
JSON_SEAL_BYTES = len(JSON_SEAL) - 2 + 64
CRC, ZEROS = "crc32c", "00000000"
"""What the metadata of tensors hold before they are sealed."""
TENSORS_SEAL = re.compile(rb'[{,]"crc32c":"([0-9a-f]{8})"')
"""In a header; inside another text of it the quotation marks would be escaped."""
MAX_HEADER_BYTES = 100_000_000
"""As safetensors has it: a header of a million tensors."""
PIECE_BYTES = 2**16
"""The checksum wants bytes of their own: pieces of this size are copied inside a core's cache."""

Read = Callable[[int, int], bytes]
"""Bytes of a file: offset and length, fewer at its end."""


# -- JSON -----------------------------------------------------------------------------------------


def seal(document: bytes) -> bytes:
    """A JSON object, which must not be empty, with its checksum in front."""
    rest = document[1:]
    return JSON_SEAL % digest(rest) + rest


def unseal(content: bytes) -> bytes:
    """The JSON object that was sealed. Raises ValueError for anything else."""
    rest = content[JSON_SEAL_BYTES:]
    if content[:JSON_SEAL_BYTES] != JSON_SEAL % digest(rest):
        raise ValueError("its content does not have the sha256 that it begins with")
    return b"{" + rest


def digest(content: bytes) -> bytes:
    """64 hex digits."""
    return hashlib.sha256(content).hexdigest().encode()


# -- Tensors ----------------------------------------------------------------------------------------


def write_tensors(content: bytes, sink: BinaryIO) -> None:
    """Write a safetensors file, made with `{CRC: ZEROS}` in its metadata, with its checksum; nothing is copied."""
    at = place_of_seal(content[8 : 8 + int.from_bytes(content[:8], "little")])
    view = memoryview(content)
    sink.write(view[:at])
    sink.write(f"{checksum(view):08x}".encode())
    sink.write(view[at + len(ZEROS) :])


def check_tensors(read: Read, num_bytes: int) -> None:
    """Read a safetensors file once. Raises ValueError unless it is one that `write_tensors` wrote, bit for bit."""
    length = int.from_bytes(read(0, 8), "little")
    if not 0 < length <= min(MAX_HEADER_BYTES, num_bytes - 8):
        raise ValueError("no header of safetensors")
    header = read(8, length)
    at = place_of_seal(header)
    found = header[at - 8 : at - 8 + len(ZEROS)].decode()
    start = read(0, at) + ZEROS.encode()
    crc = google_crc32c.value(start)
    for piece in pieces(read, len(start), num_bytes):
        crc = checksum(memoryview(piece), crc)
    if f"{crc:08x}" != found:
        raise ValueError(f"crc32c {crc:08x}; its header says {found}")


def place_of_seal(header: bytes) -> int:
    """Where in the file the checksum is. Raises ValueError for a header without one."""
    found = TENSORS_SEAL.search(header)
    if found is None:
        raise ValueError("its header has no crc32c")
    return 8 + found.start(1)


def pieces(read: Read, first: int, end: int) -> Iterator[bytes]:
    """The bytes from `first` to `end`; fewer, where the file is shorter."""
    size = 256 * PIECE_BYTES
    for start in range(first, end, size):
        yield read(start, min(size, end - start))


def checksum(content: memoryview, crc: int = 0) -> int:
    """crc32c of bytes that follow those with the checksum `crc`."""
    for start in range(0, len(content), PIECE_BYTES):
        crc = google_crc32c.extend(crc, bytes(content[start : start + PIECE_BYTES]))
    return crc
