"""Rows of a JSON array or of JSON lines, one at a time: a file of any size needs the memory of its largest row."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ijson

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


def read_rows(path: Path) -> Iterator[Any | BadRow]:
    """Yield each row, or BadRow. The first character says what the file is: `[` an array, else a row in each line.

    Raises Failure(NOT_FOUND) without a file and Failure(BAD_DATA) for an array that is broken before its end:
    there is no telling where the next row starts. A cut-off array gives all its whole rows, then one BadRow.
    """
    require_file(path)
    with path.open("rb") as file:
        if first_character(file) == b"[":
            yield from read_array(path, file)
        else:
            yield from read_lines(file)


def require_file(path: Path) -> None:
    """Raises Failure(NOT_FOUND) unless `path` is a file."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise Failure(
            ExitCode.NOT_FOUND,
            Reason.DATA_NOT_FOUND,
            f"data.source.file.uri: given {path}, which {what}; accepted: a file of JSON or JSON lines",
        )


def first_character(file: BinaryIO) -> bytes:
    """The first byte that is no space, with the file left after a byte order mark; empty in an empty file."""
    # editors on Windows write the mark; no JSON parser here takes it
    if file.read(len(BYTE_ORDER_MARK)) != BYTE_ORDER_MARK:
        file.seek(0)
    start = file.tell()
    character = file.read(1)
    # byte by byte, but only as far as the first character of the data
    while character.isspace():
        character = file.read(1)
    file.seek(start)
    return character


def read_array(path: Path, file: BinaryIO) -> Iterator[Any | BadRow]:
    """The elements of a JSON array, decoded as they come."""
    tail = Tail(file)
    rows = 0
    try:
        # use_float: without it every number is a Decimal, which neither JSON nor templates can write
        for row in ijson.items(tail, "item", use_float=True):
            rows += 1
            yield row
    except ijson.JSONError as error:
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
    """Hash of the file's bytes. Raises Failure(NOT_FOUND)."""
    require_file(path)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
