"""Batches and the thread change nothing: files are those of one row after another, and errors end the stage."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Encoding, Tokenizer
from transformers import AutoConfig

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.names import Stage
from draftyard_api.task import PrepareTask
from draftyard_trainer.data import building
from draftyard_trainer.data.building import Recipe, build_documents
from draftyard_trainer.data.conversation import Conversation, read_row
from draftyard_trainer.data.prepared import INDEX, SPANS, TOKENS, PreparedWriter
from draftyard_trainer.data.split import is_held_out
from draftyard_trainer.data.tally import Tally
from draftyard_trainer.data.template import ChatTemplate, Rendered, RenderError
from draftyard_trainer.data.tokens import TokenRules, encode, tokenise
from draftyard_trainer.prepare import prepare
from draftyard_trainer.reporting import Reporter
from draftyard_trainer.storage.local import LocalStore
from draftyard_trainer.testing import CHATML, FAMILIES, SHAPE, words, write_tokenizer

V = 384
REFUSING = CHATML.replace("{% for", "{% if messages | length == 5 %}{{ raise_exception('five') }}{% endif %}{% for", 1)
TAGS_SOMETIMES = CHATML.replace(
    "{{ message['content'] }}",
    "{% if message['role'] == 'assistant' and 'untagged' not in message['content'] %}"
    "{% generation %}{{ message['content'] }}{% endgeneration %}{% else %}{{ message['content'] }}{% endif %}",
)


def row(number: int) -> dict[str, Any]:
    """Rows of different lengths, some of which give no document."""
    turns = 1 + number % 3
    said = [
        {"role": role, "content": words(1 + (number * 7 + turn) % 40, seed=number + turn)}
        for turn in range(turns)
        for role in ("user", "assistant")
    ]
    match number % 11:
        case 4:
            return {"messages": []}
        case 7:
            return {"messages": [{"role": "user", "content": "x " * 400}, *said[1:]]}  # no answer within the limit
        case 9:
            return {"messages": [*said[:4], {"role": "user", "content": "and?"}]}
    return {"messages": said}


ROWS = [row(number) for number in range(60)]


def recipe(folder: Path, template: str = REFUSING, split_turns: bool = False) -> Recipe:
    tokenizer = write_tokenizer(folder, template)
    rules = TokenRules(frozenset({2}), 256)
    return Recipe(ChatTemplate(tokenizer, {}), tokenizer.backend_tokenizer, rules, split_turns, 0.3)


def serially(rows: Iterable[object], made: Recipe, writer: PreparedWriter) -> int:
    """The plain way: one text after another, rendered, tokenised and written before the next. Returns rows used."""
    used = 0
    for place, given in enumerate(rows):
        said = read_row(given)
        if not isinstance(said, Conversation):
            continue
        try:
            texts = made.template.render_turns(said) if made.split_turns else [made.template.render(said)]
        except RenderError:
            continue
        documents = [tokenise(made.tokenizer, [text], made.rules)[0] for text in texts]
        for document in documents:
            if len(document.spans):
                writer.add(place, document, is_held_out(said.id, made.eval_fraction))
        used += any(len(document.spans) for document in documents)
    return used


def files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in (TOKENS, SPANS, INDEX)}


def built(folder: Path, made: Recipe, rows: Sequence[object] = ROWS) -> tuple[PreparedWriter, Tally]:
    folder.mkdir()
    with PreparedWriter(folder, V) as writer:
        tally = build_documents(rows, made, writer, Reporter(Stage.PREPARE))
    return writer, tally


def no_thread_is_left() -> bool:
    return not any(thread.name.startswith("tokenise") for thread in threading.enumerate())


@pytest.mark.parametrize("split_turns", [False, True])
@pytest.mark.parametrize("characters", [1, 300, 2_000, 1 << 20])
def test_files_are_those_of_one_row_after_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, characters: int, split_turns: bool
) -> None:
    made = recipe(tmp_path / "tokenizer", split_turns=split_turns)
    (tmp_path / "serial").mkdir()
    with PreparedWriter(tmp_path / "serial", V) as serial:
        used = serially(ROWS, made, serial)
    monkeypatch.setattr(building, "BATCH_CHARACTERS", characters)
    writer, tally = built(tmp_path / "batches", made)
    assert files(tmp_path / "batches") == files(tmp_path / "serial")
    assert writer.tokens_sha256() == serial.tokens_sha256()
    assert writer.documents > 40
    assert (tally.rows, tally.rows_used) == (60, used)
    # no conversation up to an answer has five messages
    assert set(tally.skipped) == {"empty", "noLoss"} | (set() if split_turns else {"templateError"})
    assert tally.rows == tally.rows_used + tally.skipped.total()
    assert no_thread_is_left()


def test_without_rows_there_is_nothing(tmp_path: Path) -> None:
    writer, tally = built(tmp_path / "none", recipe(tmp_path / "tokenizer"), [])
    assert (writer.documents, tally.rows) == (0, 0)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_an_error_of_the_tokenizer_ends_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    calls = 0

    def failing(tokenizer: Tokenizer, texts: Sequence[Rendered]) -> list[Encoding]:
        nonlocal calls
        calls += 1
        if calls == batch:
            raise MemoryError("too long")
        return encode(tokenizer, texts)

    monkeypatch.setattr(building, "encode", failing)
    monkeypatch.setattr(building, "BATCH_CHARACTERS", 300)
    with pytest.raises(MemoryError, match="too long"):
        built(tmp_path / "broken", recipe(tmp_path / "tokenizer"))
    assert no_thread_is_left()


def test_an_error_while_rendering_ends_the_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "BATCH_CHARACTERS", 300)
    rows = [*ROWS[:3], {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "untagged"}]}]
    with pytest.raises(Failure, match="generation tags, but they mark nothing") as caught:
        built(tmp_path / "broken", recipe(tmp_path / "tokenizer", TAGS_SOMETIMES), rows)
    assert caught.value.code is ExitCode.BAD_DATA
    assert no_thread_is_left()


def test_an_error_while_writing_waits_for_the_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "BATCH_CHARACTERS", 300)
    (tmp_path / "small").mkdir()
    with PreparedWriter(tmp_path / "small", 3) as writer, pytest.raises(Failure, match="ids below 3") as caught:
        build_documents(ROWS, recipe(tmp_path / "tokenizer"), writer, Reporter(Stage.PREPARE))
    assert caught.value.code is ExitCode.UNSUPPORTED
    assert no_thread_is_left()


# -- The stage ------------------------------------------------------------------------------------------


def task_of(folder: Path) -> PrepareTask:
    model = folder / "model"
    AutoConfig.for_model(**{**SHAPE, **FAMILIES["llama"]}).save_pretrained(model)
    write_tokenizer(model, CHATML)
    (folder / "rows.jsonl").write_text("".join(json.dumps(given) + "\n" for given in ROWS))
    fields = {
        "run": "tiny", "uid": "u", "workspace": f"file://{folder / 'workspace'}", "mode": "Online", "evaluates": True,
        "target": {"model": f"file://{model}"}, "frozenSha256": "f" * 64,
        "train": {"rowTokens": 256, "tokensPerBatch": 512, "epochs": 1},
        "data": {"source": {"file": {"uri": f"file://{folder / 'rows.jsonl'}"}}, "evalFraction": 0.3, "maxLength": 256},
        "draft": {"vocabSize": 256}, "export": {},
    }  # fmt: skip
    return PrepareTask.model_validate_json(json.dumps(fields))


def test_an_error_of_the_thread_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(tokenizer: Tokenizer, texts: Sequence[Rendered]) -> list[Encoding]:
        raise MemoryError("too long")

    task = task_of(tmp_path)
    with monkeypatch.context() as broken:
        broken.setattr(building, "encode", failing)
        with pytest.raises(MemoryError, match="too long"):
            prepare(task, Reporter(Stage.PREPARE))
    store = LocalStore(tmp_path / "workspace")
    assert store.list("") == []
    assert prepare(task, Reporter(Stage.PREPARE)).prepared is not None
    assert store.list("") != []


KILLED = """
import os, signal, sys
from draftyard_api.names import Stage
from draftyard_api.task import PrepareTask
from draftyard_trainer.data import building
from draftyard_trainer.prepare import prepare
from draftyard_trainer.reporting import Reporter

encode, calls = building.encode, []

def killing(tokenizer, texts):
    calls.append(len(texts))
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return encode(tokenizer, texts)

building.BATCH_CHARACTERS, building.encode = 300, killing
prepare(PrepareTask.model_validate_json(sys.stdin.read()), Reporter(Stage.PREPARE))
"""


def test_a_kill_in_the_middle_leaves_nothing_half_published(tmp_path: Path) -> None:
    task = task_of(tmp_path)
    content = task.model_dump_json(by_alias=True)
    killed = subprocess.run([sys.executable, "-c", KILLED], input=content, text=True, check=False, cwd=tmp_path)
    assert killed.returncode == -signal.SIGKILL
    store = LocalStore(tmp_path / "workspace")
    # it died while it was writing, and nothing of that is to be seen
    assert any((tmp_path / "workspace").rglob(TOKENS))
    assert store.list("") == []
    found = prepare(task, Reporter(Stage.PREPARE)).prepared
    assert found is not None
    other = task.model_copy(update={"workspace": f"file://{tmp_path / 'other'}"})
    again = prepare(other, Reporter(Stage.PREPARE)).prepared
    assert again is not None
    assert found.tokens_sha256 == again.tokens_sha256
