"""Rows of files, one at a time: JSON arrays, JSON lines and Parquet, compressed or not, alone or in a folder.

What a file is, its first bytes say. A file of any size needs the memory of its largest row, or row group.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

import ijson
import pyarrow as pa
import pyarrow.parquet as pq

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.reasons import Reason
from draftyard_trainer.data.conversation import SkipReason, decode_json

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# 1 MiB: hashing runs at the speed of sha256, whatever the disk
BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class BadRow:
    """A row that is no JSON. It counts like any other row."""

    reason: SkipReason


class Tail:
    """A file for the JSON parser that remembers whether it was read to its end.

    An error before the end is broken JSON, one after it is a file that was cut off; parsers do not tell these apart.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.reached_end = False

    def read(self, size: int = -1) -> bytes:
        """The next `size` bytes, fewer at the end."""
        block = self._file.read(size)
        # a parser may ask for 0 bytes to learn whether it gets text; that says nothing about the end
        self.reached_end = self.reached_end or (not block and size != 0)
        return block


def open_zstd(path: Path) -> AbstractContextManager[Any]:
    """Arrow's reader: others take a frame that was cut off for a whole one."""
    stream: AbstractContextManager[Any] = pa.input_stream(str(path), compression="zstd")
    return stream


PARQUET = b"PAR1"
OPENERS: dict[bytes, Callable[[Path], AbstractContextManager[Any]]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
    b"\x28\xb5\x2f\xfd": open_zstd,
}
"""By the first bytes of a compressed file."""
BROKEN = (EOFError, OSError, lzma.LZMAError, zlib.error)
"""What a compressed file ends in that was cut off or damaged."""
BATCH_ROWS = 1024
"""Rows of Parquet in memory at once."""


def read_rows(path: Path) -> Iterator[Any | BadRow]:
    """Yield each row, or BadRow, of a file, or of all files below a folder in the order of their names.

    Raises Failure: NOT_FOUND without a file, BAD_DATA for an array that is broken before its end (there is no telling
    where the next row starts) and for Parquet that cannot be read. A cut-off file gives all its whole rows, then one
    BadRow.
    """
    for file in files_of(path):
        yield from read_file(file)


def files_of(path: Path) -> list[Path]:
    """The file, or the files below a folder; hidden ones are no data. Raises Failure(NOT_FOUND)."""
    if path.is_dir():
        found = sorted(entry for entry in path.rglob("*") if entry.is_file() and not entry.name.startswith((".", "_")))
        if found:
            return found
    require_file(path)
    return [path]


def read_file(path: Path) -> Iterator[Any | BadRow]:
    """Rows of one file."""
    with path.open("rb") as file:
        start = file.read(8)
    if start.startswith(PARQUET):
        yield from read_parquet(path)
        return
    opener = next((opener for magic, opener in OPENERS.items() if start.startswith(magic)), None)
    if opener is None:
        with path.open("rb") as plain:
            yield from read_json(path, plain)
        return
    with opener(path) as unpacked:
        try:
            # it has what all of them lack, or have their own way: a look ahead, and lines
            yield from read_json(path, BufferedReader(unpacked, BLOCK_BYTES))
        except BROKEN:
            yield BadRow(SkipReason.TRUNCATED)


def read_json(path: Path, file: BufferedReader) -> Iterator[Any | BadRow]:
    """The first character says what it is: `[` an array, else a row in each line."""
    if first_character(file) == b"[":
        yield from read_array(path, file)
    else:
        yield from read_lines(file)


def read_parquet(path: Path) -> Iterator[Any]:
    """Rows of Parquet, as JSON would have them. Raises Failure(BAD_DATA)."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            for batch in file.iter_batches(batch_size=BATCH_ROWS):
                yield from batch.to_pylist()
    # values that Python has not (text that is no UTF-8, the year 10,000) are errors of its own
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        what = next(iter(str(error).splitlines()), type(error).__name__)
        message = f"data.source: {path} is no Parquet that can be read ({what}); accepted: whole files; write it anew"
        raise Failure(ExitCode.BAD_DATA, Reason.DATA_REJECTED, message) from error


def require_file(path: Path) -> None:
    """Raises Failure(NOT_FOUND) unless `path` is a file."""
    if not path.is_file():
        what = "is a folder without files" if path.is_dir() else "does not exist"
        raise Failure(
            ExitCode.NOT_FOUND,
            Reason.DATA_NOT_FOUND,
            f"data.source.file.uri: given {path}, which {what}; accepted: a file of JSON, JSON lines or Parquet, "
            "compressed or not, or a folder of such files",
        )


def first_character(file: BufferedReader) -> bytes:
    """The first byte that is no space, which the file is left at; empty in an empty file."""
    # editors on Windows write the mark; no JSON parser here takes it
    if file.peek(len(BYTE_ORDER_MARK)).startswith(BYTE_ORDER_MARK):
        file.read(len(BYTE_ORDER_MARK))
    # space before the data means nothing: block by block it is left behind
    while block := file.peek():
        data = block.lstrip()
        file.read(len(block) - len(data))
        if data:
            return data[:1]
    return b""


def read_array(path: Path, file: BinaryIO) -> Iterator[Any | BadRow]:
    """The elements of a JSON array, decoded as they come."""
    tail = Tail(file)
    rows = 0
    try:
        # use_float: without it every number is a Decimal, which neither JSON nor templates can write
        for row in ijson.items(tail, "item", use_float=True):
            rows += 1
            yield row
    # the parser leaves it to Python to find halves of surrogate pairs that are spelled in bytes
    except (ijson.JSONError, UnicodeDecodeError) as error:
        if not tail.reached_end:
            raise broken_array(path, rows, error) from error
        yield BadRow(SkipReason.TRUNCATED)


def broken_array(path: Path, rows: int, error: Exception) -> Failure:
    """The end of a stage that met JSON which no row can be found after."""
    # the parser's further lines are an excerpt of the data with an arrow below it
    what = str(error).splitlines()[0]
    return Failure(
        ExitCode.BAD_DATA,
        Reason.DATA_REJECTED,
        f"data.source.file.uri: {path} is broken after {rows} rows ({what}); accepted: a JSON array (its end may be "
        "cut off), or JSON lines, where a broken line costs one row only; mend the file or write it as JSON lines",
    )


def read_lines(file: BinaryIO) -> Iterator[Any | BadRow]:
    """One row for each line that is not blank."""
    for line in file:
        if line.isspace():
            continue
        try:
            yield decode_json(line.decode())
        except (ValueError, RecursionError):
            # only the last line of a file can lack its line feed
            cut_off = not line.endswith(b"\n")
            yield BadRow(SkipReason.TRUNCATED if cut_off else SkipReason.BAD_JSON)


def content_sha256(path: Path) -> str:
    """Hash of a file's bytes; of a folder, of the names and hashes of its files. Raises Failure(NOT_FOUND)."""
    files = files_of(path)
    if files == [path]:
        return file_sha256(path)
    said = "".join(f"{file.relative_to(path).as_posix()}\0{file_sha256(file)}\n" for file in files)
    return hashlib.sha256(said.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """Hash of one file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
