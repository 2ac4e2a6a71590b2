"""Presets: rows as their tables publish them, through the real loader and a mirror, into conversations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.names import ENV_DATASETS
from draftyard_api.spec import DataSource, Preset
from draftyard_trainer import commands
from draftyard_trainer.data.conversation import Conversation, SkipReason, read_row
from draftyard_trainer.data.files import BadRow
from draftyard_trainer.data.presets.known import PRESETS
from draftyard_trainer.data.presets.preset import Published
from draftyard_trainer.data.source import open_rows

SHAREGPT_TURNS = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]
OPENAI_TURNS = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
PLAIN = [("user", "Why?"), ("assistant", "So.")]
ROWS: dict[str, tuple[dict[str, Any], list[tuple[str, str]], str | None]] = {
    "sharegpt": ({"id": "a_0", "conversations": SHAREGPT_TURNS}, PLAIN, "a_0"),
    "ultrachat": ({"prompt": "Why?", "prompt_id": "p1", "messages": OPENAI_TURNS}, PLAIN, "p1"),
    "perfectblend": ({"conversations": SHAREGPT_TURNS, "source": "meta-math/MetaMathQA"}, PLAIN, None),
    "magpie-qwen": (
        {
            "uuid": "u-1",
            "instruction": "Why?",
            "response": "So.",
            "conversations": SHAREGPT_TURNS,
            "difficulty": "easy",
        },
        PLAIN,
        "u-1",
    ),
    "magicoder": ({"instruction": "Why?", "response": "So."}, PLAIN, None),
    "opc": ({"instruction": "Why?", "output": "So.", "tag": "x"}, PLAIN, None),
    "gsm8k": ({"question": "Why?", "answer": "So."}, PLAIN, None),
    "hendrycks-math": ({"problem": "Why?", "level": "Level 1", "type": "Algebra", "solution": "So."}, PLAIN, None),
    "code-alpaca": (
        {"instruction": "Sort", "input": "3, 1", "output": "1, 3"},
        [("user", "Sort\n\n3, 1"), ("assistant", "1, 3")],
        None,
    ),
    "camel": ({"role_1": "Biologist", "topic;": "x", "message_1": "Why?", "message_2": "So."}, PLAIN, None),
    "openthoughts": (
        {
            "system": "Think.",
            "conversations": [{"from": "user", "value": "Why?"}, {"from": "assistant", "value": "So."}],
        },
        [("system", "Think."), *PLAIN],
        None,
    ),
    "eaglechat": ({"id": "7", "conversations": OPENAI_TURNS}, PLAIN, "7"),
    "math500": (
        {
            "problem": "Why?",
            "solution": "So.",
            "answer": "4",
            "subject": "Algebra",
            "level": 2,
            "unique_id": "t/1.json",
        },
        PLAIN,
        "t/1.json",
    ),
    "humaneval": (
        {"task_id": "HumanEval/0", "prompt": "Why?", "canonical_solution": "So.", "test": "", "entry_point": "f"},
        PLAIN,
        "HumanEval/0",
    ),
}
"""A row as it is published, the conversation in it, and its id."""


def write_table(mirror: Path, table: Published, rows: list[dict[str, Any]]) -> None:
    """A table as its repository has it: files, and a card that says which configuration and split they are."""
    folder = mirror / table.hub_id
    folder.mkdir(parents=True, exist_ok=True)
    if table.files is not None:
        (folder / table.files).write_text(json.dumps(rows))
        return
    place = f"{table.config or 'data'}/{table.split}-00000-of-00001.parquet"
    (folder / place).parent.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / place)
    card = folder / "README.md"
    before = yaml.safe_load(card.read_text().split("---")[1])["configs"] if card.exists() else []
    files = [{"split": table.split, "path": f"{table.config or 'data'}/{table.split}-*"}]
    configs = [*before, {"config_name": table.config or "default", "data_files": files}]
    card.write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n")


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(ENV_DATASETS, str(tmp_path / "mirror"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "mirror"


def source_of(name: str) -> DataSource:
    return DataSource(preset=Preset(name=name))


@pytest.mark.parametrize("name", list(PRESETS))
def test_a_published_row_becomes_a_conversation(mirror: Path, name: str) -> None:
    row, said, identity = ROWS[name]
    preset = PRESETS[name]
    for table in preset.tables:
        write_table(mirror, table, [row])
    rows = open_rows(source_of(name))
    conversations = [read_row(each) for each in rows.rows()]
    assert len(conversations) == len(preset.tables)
    for conversation in conversations:
        assert isinstance(conversation, Conversation)
        assert [(message.role, message.content) for message in conversation.messages] == said
        assert identity is None or conversation.id == identity
    assert rows.sha256() == open_rows(source_of(name)).sha256()


def test_every_preset_has_a_row_here() -> None:
    assert set(ROWS) == set(PRESETS)


def test_the_hash_is_of_the_content(mirror: Path) -> None:
    (table,) = PRESETS["gsm8k"].tables
    write_table(mirror, table, [ROWS["gsm8k"][0]])
    before = open_rows(source_of("gsm8k")).sha256()
    (mirror / table.hub_id / "README.md").unlink()
    write_table(mirror, table, [ROWS["gsm8k"][0], ROWS["gsm8k"][0]])
    assert open_rows(source_of("gsm8k")).sha256() != before


def test_a_row_without_its_columns_is_skipped_and_told(mirror: Path) -> None:
    (table,) = PRESETS["gsm8k"].tables
    write_table(mirror, table, [{"question": "Why?"}])
    assert list(open_rows(source_of("gsm8k")).rows()) == [BadRow(SkipReason.MALFORMED)]


def test_an_unknown_preset_lists_all() -> None:
    with pytest.raises(Failure, match='given "shargpt"; accepted: sharegpt, ultrachat') as caught:
        open_rows(source_of("shargpt"))
    assert caught.value.code is ExitCode.NOT_FOUND


def test_a_mirror_without_the_table(mirror: Path) -> None:
    with pytest.raises(Failure, match=f"{ENV_DATASETS}: .*gsm8k does not exist; copy the files") as caught:
        open_rows(source_of("gsm8k")).sha256()
    assert caught.value.code is ExitCode.NOT_FOUND


def test_a_mirror_with_a_broken_table(mirror: Path) -> None:
    (table,) = PRESETS["gsm8k"].tables
    write_table(mirror, table, [ROWS["gsm8k"][0]])
    (mirror / table.hub_id / "README.md").write_text("---\nconfigs: []\n---\n")
    next((mirror / table.hub_id).rglob("*.parquet")).write_bytes(b"PAR1 is no table")
    with pytest.raises(Failure, match=r"data\.source\.preset: openai/gsm8k: it cannot be loaded"):
        list(open_rows(source_of("gsm8k")).rows())


def test_without_a_mirror_and_without_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """HF_HUB_OFFLINE is set where tests run: what was never downloaded is not there."""
    monkeypatch.delenv(ENV_DATASETS, raising=False)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    with pytest.raises(Failure, match=r"data\.source\.preset: openai/gsm8k: .*; ") as caught:
        open_rows(source_of("gsm8k")).sha256()
    assert caught.value.code in (ExitCode.NOT_FOUND, ExitCode.UNAVAILABLE)


def test_the_docs_list_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    listed = page.split("<!-- presets: begin -->\n")[1].split("<!-- presets: end -->")[0].splitlines()
    assert listed == [
        f"| `{preset.name}` | {preset.about} | {', '.join(dict.fromkeys(table.hub_id for table in preset.tables))} | "
        f"{preset.licence} |"
        for preset in PRESETS.values()
    ]
    assert commands.presets([]) == ExitCode.OK
    assert len(capsys.readouterr().out.splitlines()) == len(PRESETS)
