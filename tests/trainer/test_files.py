"""Arrays, lines, cut-off and broken files: every row is counted, and no file has to fit into memory."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.reasons import Reason
from draftyard_trainer.data.conversation import SkipReason
from draftyard_trainer.data.files import BadRow, content_sha256, read_rows

ROWS = [{"id": f"row {number}", "text": "é☃ 😀 words " * number} for number in range(4)]
TRUNCATED, BAD = BadRow(SkipReason.TRUNCATED), BadRow(SkipReason.BAD_JSON)


def written(folder: Path, content: bytes | str, name: str = "data.json") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def lines(rows: list[dict[str, str]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@pytest.mark.parametrize("name", ["data.json", "data.jsonl", "data"])
@pytest.mark.parametrize(
    "content",
    [
        pytest.param(json.dumps(ROWS), id="an array on one line"),
        pytest.param(json.dumps(ROWS, indent=2, ensure_ascii=False), id="an array on many lines"),
        pytest.param("\ufeff \n" + json.dumps(ROWS), id="an array behind a byte order mark and space"),
        pytest.param(lines(ROWS), id="lines"),
        pytest.param(lines(ROWS).rstrip("\n"), id="lines without a last line feed"),
        pytest.param(lines(ROWS).replace("\n", "\r\n\r\n"), id="lines with carriage returns and blank lines"),
        pytest.param("\ufeff" + lines(ROWS), id="lines behind a byte order mark"),
    ],
)
def test_the_content_says_what_a_file_is_not_its_name(tmp_path: Path, content: str, name: str) -> None:
    assert list(read_rows(written(tmp_path, content, name))) == ROWS


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        pytest.param("", [], id="an empty file"),
        pytest.param(" \n\n", [], id="only space"),
        pytest.param("[]", [], id="an empty array"),
        pytest.param("[", [TRUNCATED], id="an array that ends at once"),
        pytest.param("[1, 2.5, null]", [1, 2.5, None], id="elements that are no objects"),
        pytest.param('[{"a": 1}, {"a":', [{"a": 1}, TRUNCATED], id="an array cut inside of a row"),
        pytest.param('[{"a": 1}', [{"a": 1}, TRUNCATED], id="an array cut behind a row"),
        pytest.param('{"a": 1}\n{"a"\n{"a": 2}\n', [{"a": 1}, BAD, {"a": 2}], id="a broken line"),
        pytest.param('{"a": 1}\nodd\n[1]\n', [{"a": 1}, BAD, [1]], id="lines that are no objects"),
        pytest.param('{"a": 1}\n{"a', [{"a": 1}, TRUNCATED], id="lines cut inside of a row"),
        pytest.param(b'{"a": "\xff"}\n{"a": 2}\n', [BAD, {"a": 2}], id="a line that is no UTF-8"),
        pytest.param("{" * 50_000 + "\n" + '{"a": 2}\n', [BAD, {"a": 2}], id="a line of braces"),
        pytest.param('{"a":' * 50_000 + "\n" + '{"a": 2}\n', [BAD, {"a": 2}], id="a line that is too deep"),
    ],
)
def test_what_cannot_be_read_is_one_row_with_a_reason(tmp_path: Path, content: str | bytes, rows: list[object]) -> None:
    assert list(read_rows(written(tmp_path, content))) == rows


def test_an_array_may_be_cut_at_any_byte(tmp_path: Path) -> None:
    whole = json.dumps(ROWS[:3], ensure_ascii=False).encode()
    for cut in range(1, len(whole)):
        rows = list(read_rows(written(tmp_path, whole[:cut])))
        finished = sum(whole[:cut].count(f'"row {number}"'.encode()) for number in range(3))
        assert rows[-1] == TRUNCATED, cut
        assert len(rows) - 1 in (finished, finished - 1), cut
        assert rows[:-1] == ROWS[: len(rows) - 1], cut


@pytest.mark.parametrize(
    "content",
    [
        pytest.param('[{"a": 1}, {"a" 2}, {"a": 3}]', id="a missing colon"),
        pytest.param('[{"a": 1}, {"a": tru}, {"a": 3}]', id="a misspelled word"),
        pytest.param('[{"a": 1}] {"a": 2}', id="something behind the array"),
        pytest.param(b'[{"a": 1}, {"a": "\xff\xff"}, {"a": 3}]', id="bytes that are no UTF-8"),
    ],
)
def test_an_array_that_is_broken_before_its_end_is_refused(tmp_path: Path, content: str | bytes) -> None:
    """Nobody knows where its next row starts; to go on would train on a fraction of the data in silence."""
    path = written(tmp_path, content)
    with pytest.raises(Failure) as caught:
        list(read_rows(path))
    assert (caught.value.code, caught.value.reason) == (ExitCode.BAD_DATA, Reason.DATA_REJECTED)
    assert str(path) in caught.value.message
    assert "after 1 rows" in caught.value.message
    assert "JSON lines" in caught.value.message


@pytest.mark.parametrize(("name", "what"), [("absent.json", "does not exist"), (".", "is a folder")])
def test_a_missing_file_is_named(tmp_path: Path, name: str, what: str) -> None:
    for read in (lambda path: list(read_rows(path)), content_sha256):
        with pytest.raises(Failure) as caught:
            read(tmp_path / name)
        assert (caught.value.code, caught.value.reason) == (ExitCode.NOT_FOUND, Reason.DATA_NOT_FOUND)
        assert what in caught.value.message
        assert "data.source.file.uri" in caught.value.message


def test_content_hash(tmp_path: Path) -> None:
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert content_sha256(written(tmp_path, "abc")) == known


@pytest.mark.parametrize("as_lines", [True, False], ids=["lines", "array"])
def test_memory_is_that_of_a_row_not_of_the_file(tmp_path: Path, as_lines: bool) -> None:
    row = {"id": "x", "text": "word " * 2_000}
    count = 2_000  # 20 MB
    content = (json.dumps(row) + "\n") * count if as_lines else "[" + ",".join([json.dumps(row)] * count) + "]"
    path = written(tmp_path, content)
    del content
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_rows(path)) == count
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20


# -- Other forms of the same rows -----------------------------------------------------------------------

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstandard.ZstdCompressor().compress,
}


@pytest.mark.parametrize("kind", list(PACKERS))
@pytest.mark.parametrize("is_array", [True, False])
def test_compressed_files(tmp_path: Path, kind: str, is_array: bool) -> None:
    """By what they hold, not by their names."""
    plain = json.dumps(ROWS) if is_array else "\n".join(json.dumps(row) for row in ROWS)
    path = tmp_path / "data"
    path.write_bytes(PACKERS[kind](plain.encode()))
    assert list(read_rows(path)) == ROWS


@pytest.mark.parametrize("kind", list(PACKERS))
def test_a_cut_off_compressed_file_gives_its_whole_rows(tmp_path: Path, kind: str) -> None:
    rows = [
        {"text": f"{number} " + "".join(chr(97 + (number * i) % 26) for i in range(2000))} for number in range(3000)
    ]
    packed = PACKERS[kind]("\n".join(json.dumps(row) for row in rows).encode())
    path = tmp_path / "data"
    path.write_bytes(packed[: len(packed) // 2])
    found = list(read_rows(path))
    assert found[-1] == BadRow(SkipReason.TRUNCATED)
    whole = [row for row in found if not isinstance(row, BadRow)]
    assert whole == rows[: len(whole)]
    assert len(found) - len(whole) <= 2


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "data"
    pq.write_table(pa.Table.from_pylist(ROWS), path)
    assert list(read_rows(path)) == ROWS
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(Failure, match="is no Parquet that can be read") as caught:
        list(read_rows(path))
    assert caught.value.code is ExitCode.BAD_DATA


def test_a_folder_of_files(tmp_path: Path) -> None:
    """In the order of their names; what is hidden is no data."""
    folder = tmp_path / "corpus"
    (folder / "sub").mkdir(parents=True)
    (folder / "b.json").write_text(json.dumps(ROWS[:1]))
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(json.dumps(ROWS[1]).encode()))
    (folder / "sub" / "c.json").write_text(json.dumps(ROWS[2:]))
    (folder / "_SUCCESS").touch()
    (folder / ".part").write_text("no")
    assert list(read_rows(folder)) == [ROWS[1], ROWS[0], *ROWS[2:]]
    before = content_sha256(folder)
    (folder / "b.json").rename(folder / "d.json")
    assert content_sha256(folder) != before


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="which is a folder without files") as caught:
        list(read_rows(tmp_path))
    assert caught.value.code is ExitCode.NOT_FOUND
