"""Whatever is in rows, files and prepared folders: documents, a counted row or one Failure."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.names import MANIFEST, Stage, prepared_path
from draftyard_trainer.data.building import Recipe, build_documents
from draftyard_trainer.data.conversation import CARRIED, ROLES, Conversation, SkipReason, decode_json, read_row
from draftyard_trainer.data.document import Document
from draftyard_trainer.data.files import BadRow, read_rows
from draftyard_trainer.data.prepared import INDEX, SPANS, TOKENS, VOCABULARY, PreparedDataset, PreparedWriter
from draftyard_trainer.data.template import ChatTemplate
from draftyard_trainer.data.tokens import TokenRules
from draftyard_trainer.hidden_states.testing import prepare_documents
from draftyard_trainer.reporting import Reporter
from draftyard_trainer.storage.local import LocalStore
from draftyard_trainer.testing import write_tokenizer

T = TypeVar("T")
SHARED_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
TOOL_TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}{% for tool in tools %}{{ tool.function.name }}{% endfor %}{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.reasoning_content %}<think>{{ message.reasoning_content }}</think>{% endif %}{{ message.content }}"
    "{% for call in message.tool_calls or [] %}{{ call.function.name }}{{ call.function.arguments | tojson }}"
    "{% for number in range(call.times or 0) %}.{% endfor %}{% endfor %}<|im_end|>\n{% endfor %}"
)
"""Reads all that a row may carry, with values of any kind."""


# -- Rows -------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["type", "text", "function", "arguments", "name", "times"]), inner, max_size=4
        )
    ),
    max_leaves=10,
)
SAID = st.text(max_size=8) | JSON
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from([*ROLES, "odd"]), "content": SAID},
    optional={"tool_calls": JSON | st.lists(JSON), **dict.fromkeys(CARRIED, JSON)},
)
COLUMNS = ("id", "conversations", "messages", "text", "tools", "prompt", "response", "input", "system", "output")
ROW = st.fixed_dictionaries(
    {"messages": st.lists(MESSAGE, max_size=6) | JSON}, optional={"id": JSON, "tools": JSON | st.lists(JSON)}
) | st.dictionaries(st.sampled_from(COLUMNS), JSON | st.text(max_size=8))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    tokenizer = write_tokenizer(tmp_path_factory.mktemp("tokenizer"), TOOL_TEMPLATE)
    rules = TokenRules(frozenset({2}), 256)
    return Recipe(ChatTemplate(tokenizer, {}), tokenizer.backend_tokenizer, rules, split_turns=False, eval_fraction=0.2)


def build(folder: Path, made: Recipe, rows: list[Any]) -> None:
    """All rows become documents or are counted, and spans lie inside of their documents."""
    folder.mkdir(exist_ok=True)
    with PreparedWriter(folder, 384) as writer:
        tally = build_documents(rows, made, writer, Reporter(Stage.PREPARE))
    assert tally.rows == len(rows) == writer.documents + tally.skipped.total()
    tokens = np.fromfile(folder / TOKENS, dtype=np.uint32)
    assert len(tokens) == writer.tokens
    assert len(tokens) == 0 or tokens.max() < 384


@settings(SHARED_FOLDER, max_examples=150)
@given(rows=st.lists(ROW | JSON, max_size=6))
def test_any_row_is_a_document_or_counted(tmp_path: Path, made: Recipe, rows: list[Any]) -> None:
    # as the reader gives them: without half surrogate pairs
    build(tmp_path / "prepared", made, [decode_json(json.dumps(row)) for row in rows])


def deep(inner: Any, wrap: Callable[[Any], Any], levels: int = 900) -> Any:
    for _ in range(levels):
        inner = wrap(inner)
    return inner


def said(*turns: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Hi"}, *turns], **fields}


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(deep("x", lambda inner: [inner]), id="a list"),
        pytest.param(said({"role": "assistant", "content": deep("x", lambda inner: [{"text": inner}])}), id="content"),
        pytest.param(said({"role": "assistant", "content": "a"}, tools=[deep("x", lambda i: {"a": i})]), id="tools"),
        pytest.param(
            said({"role": "assistant", "content": "a", "tool_calls": [deep("x", lambda i: {"function": i})]}),
            id="tool calls",
        ),
        pytest.param(
            said({"role": "assistant", "content": "a", "tool_calls": [{"function": {}, "times": 10**9}]}),
            id="a range without end",
        ),
    ],
)
def test_rows_that_are_too_deep_or_too_much(tmp_path: Path, made: Recipe, row: Any) -> None:
    build(tmp_path / "prepared", made, [row])


# -- Files ------------------------------------------------------------------------------------------------

ROWS: list[dict[str, Any]] = [
    {
        "id": f"{number}",
        "messages": [{"role": "user", "content": f"é {number}"}, {"role": "assistant", "content": "😀"}],
    }
    for number in range(8)
]
DATED = [{**row, "at": datetime(2020, 1, 1, tzinfo=UTC), "on": date(2020, 1, 1), "share": 0.5} for row in ROWS]
LINES = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS).encode()
ARRAY = json.dumps(ROWS, ensure_ascii=False).encode()
ESCAPED = json.dumps(ROWS).encode()
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstandard.ZstdCompressor().compress,
    "zstd with a checksum": zstandard.ZstdCompressor(write_checksum=True).compress,
}


def parquet(compression: str) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(DATED), sink, compression=compression, write_page_checksum=True)
    return bytes(sink.getvalue().to_pybytes())


FILES = {
    **{f"{name}, {kind}": pack(data) for kind, pack in PACKERS.items() for name, data in (
        ("lines", LINES), ("an array", ARRAY), ("an array with escapes", ESCAPED)
    )},
    **{f"Parquet, {compression}": parquet(compression) for compression in ("none", "snappy", "zstd")},
}  # fmt: skip


def attempt(action: Callable[[], T]) -> T | Failure:
    """What it gives, or the one error that it may end in."""
    try:
        return action()
    except Failure as failure:
        return failure


def read(path: Path) -> list[Any] | Failure:
    found = attempt(lambda: list(read_rows(path)))
    if isinstance(found, Failure):
        assert found.code is ExitCode.BAD_DATA
        assert str(path) in found.message
        return found
    for row in found:
        assert isinstance(row, BadRow) or isinstance(read_row(row), Conversation | SkipReason)
    return found


def test_the_files_are_whole(tmp_path: Path) -> None:
    for name, content in FILES.items():
        path = tmp_path / "data"
        path.write_bytes(content)
        found = read(path)
        assert isinstance(found, list)
        assert [row["messages"] for row in found] == [row["messages"] for row in ROWS], name


@settings(SHARED_FOLDER, max_examples=25)
@pytest.mark.parametrize("name", list(FILES))
@given(data=st.data())
def test_a_file_cut_anywhere(tmp_path: Path, name: str, data: st.DataObject) -> None:
    """All rows before the cut, then a row that is counted; or an error. Rows of JSON lines may end at a cut."""
    whole = FILES[name]
    cut = data.draw(st.integers(1, len(whole) - 1))
    path = tmp_path / "data"
    path.write_bytes(whole[:cut])
    found = read(path)
    if isinstance(found, Failure):
        return
    rows = [row for row in found if not isinstance(row, BadRow)]
    assert rows == ROWS[: len(rows)]
    if name != "lines, plain":
        assert found[-1] == BadRow(SkipReason.TRUNCATED)


@settings(SHARED_FOLDER, max_examples=60)
@pytest.mark.parametrize("name", list(FILES))
@given(data=st.data())
def test_a_file_with_any_byte_changed(tmp_path: Path, name: str, data: st.DataObject) -> None:
    """The content of a plain file may then be another, as if somebody had written it; nothing else may happen."""
    changed = bytearray(FILES[name])
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(st.integers(1, 255))
    path = tmp_path / "data"
    path.write_bytes(bytes(changed))
    read(path)


@settings(SHARED_FOLDER, max_examples=200)
@given(content=st.binary(max_size=60) | st.text('[]{}":,\\ud0e1-.\n ', max_size=40).map(str.encode))
def test_any_bytes_at_all(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "data"
    path.write_bytes(content)
    read(path)


# -- Prepared folders ---------------------------------------------------------------------------------------

DOCUMENTS = [
    Document(number, np.arange(3, 12 + number), np.array([[2, 3], [6, 2 + number % 2]])) for number in range(10)
]


def check_documents(dataset: PreparedDataset) -> None:
    """Those that were written, whatever was done to the files."""
    assert len(dataset) == len(DOCUMENTS)
    assert dataset.rows.tolist() == list(range(10))
    assert dataset.held_out_ids.tolist() == [4, 9]
    for number, written in enumerate(DOCUMENTS):
        document = dataset.document(number)
        assert document.tokens.tolist() == written.tokens.tolist()
        assert document.spans.tolist() == written.spans.tolist()


@settings(SHARED_FOLDER, max_examples=120)
@pytest.mark.parametrize("name", [MANIFEST, INDEX, TOKENS, SPANS, VOCABULARY])
@given(data=st.data())
def test_a_broken_folder_is_refused_or_gives_the_same_documents(tmp_path: Path, name: str, data: st.DataObject) -> None:
    store = LocalStore(tmp_path)
    path = tmp_path / prepared_path("fuzz") / name
    if not path.exists():
        prepare_documents(store, DOCUMENTS, folder="fuzz")
        path.with_suffix(".whole").write_bytes(path.read_bytes())
    whole = path.with_suffix(".whole").read_bytes()
    place, value = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.none() | st.integers(1, 255))
    # None: cut there
    broken = whole[:place] if value is None else whole[:place] + bytes([whole[place] ^ value]) + whole[place + 1 :]
    path.write_bytes(broken)
    dataset = attempt(lambda: PreparedDataset.open_checked(store, "fuzz"))
    if isinstance(dataset, Failure):
        assert dataset.code is ExitCode.STALE_INPUT
        assert "fuzz" in dataset.message
        return
    # texts and counts of the manifest that nothing is read by
    assert name == MANIFEST
    check_documents(dataset)
