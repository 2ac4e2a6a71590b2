"""Real conversations of two packages, as somebody would bring them: lines of JSON, prepared with Qwen3's tokenizer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import real
import yaml
from transformers import AutoConfig, AutoTokenizer

from draftyard_api.names import Stage
from draftyard_api.task import PrepareTask
from draftyard_trainer.data.conversation import Conversation, read_row
from draftyard_trainer.data.prepared import PreparedDataset
from draftyard_trainer.prepare import prepare
from draftyard_trainer.reporting import Reporter
from draftyard_trainer.storage.local import LocalStore
from draftyard_trainer.testing import FAMILIES, SHAPE

QWEN3 = real.FOLDER / f"qwen3-{real.VERSION}"
MAX_LENGTH = 1024
EMPTY_THINKING = "<think>\n\n</think>\n\n"
"""What Qwen3's template puts before its last answer."""


def chitchat() -> Iterator[dict[str, Any]]:
    """Two people; whoever begins asks. What one says in a row is one message."""
    talks = json.loads((real.CHITCHAT.folder / "dataset.json").read_text())
    for name, talk in talks.items():
        said = [group for group in talk["messages"] if group]
        messages = [
            {
                "role": "user" if group[0]["sender"] == said[0][0]["sender"] else "assistant",
                "content": "\n".join(message["text"] for message in group),
            }
            for group in said
        ]
        yield {"id": name, "messages": messages}


def chatterbot() -> Iterator[dict[str, Any]]:
    """Questions and answers in turns, by topics."""
    for path in sorted(real.CHATTERBOT.folder.glob("*.yml")):
        for said in yaml.safe_load(path.read_text())["conversations"]:
            roles = ("user", "assistant")
            yield {
                "messages": [{"role": roles[place % 2], "content": content} for place, content in enumerate(said)],
                "topic": path.stem,
            }


CORPORA = {"chitchat": chitchat, "chatterbot": chatterbot}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder as far as `prepare` reads it."""
    folders = (QWEN3, real.CHITCHAT.folder, real.CHATTERBOT.folder)
    if not all(folder.is_dir() for folder in folders):
        pytest.skip("the tokenizers are not there: `make tokenizers` fetches them")
    folder = tmp_path_factory.mktemp("model")
    shutil.copytree(QWEN3, folder, dirs_exist_ok=True)
    # the stop token of the shape is another model's: here it is the text "#"
    own = {"vocab_size": 151_936, "eos_token_id": 151_645}
    AutoConfig.for_model(**{**SHAPE, **FAMILIES["qwen3"], **own}).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "corpus", [pytest.param(name, marks=pytest.mark.slow if name == "chitchat" else ()) for name in CORPORA]
)
def test_every_row_is_supervised_word_for_word_or_counted(tmp_path: Path, model: Path, corpus: str) -> None:
    rows = list(CORPORA[corpus]())
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = {
        "run": corpus, "uid": "u", "workspace": f"file://{tmp_path / 'workspace'}", "mode": "Online", "evaluates": True,
        "target": {"model": f"file://{model}"}, "frozenSha256": "f" * 64,
        "train": {"rowTokens": MAX_LENGTH, "tokensPerBatch": 4 * MAX_LENGTH, "epochs": 1},
        "data": {"source": {"file": {"uri": f"file://{source}"}}, "evalFraction": 0.1, "maxLength": MAX_LENGTH},
        "draft": {"vocabSize": 4096}, "export": {},
    }  # fmt: skip
    found = prepare(PrepareTask.model_validate_json(json.dumps(fields)), Reporter(Stage.PREPARE)).prepared
    assert found is not None
    counts = found.counts
    assert counts.rows == len(rows) == counts.documents + sum(counts.skipped.values())
    # many talks of the one corpus are of people to whom nobody answers
    unanswered = sum(all(message["role"] == "user" for message in row["messages"]) for row in rows)
    assert counts.skipped.get("noAssistant", 0) == unanswered
    assert counts.documents > 0.99 * (len(rows) - unanswered)
    dataset = PreparedDataset.open_checked(LocalStore(tmp_path / "workspace"), found.prepared)
    assert dataset.manifest.mask.turns_not_located == dataset.manifest.mask.turns_without_stop == 0
    tokenizer = AutoTokenizer.from_pretrained(model)
    whole = 0
    for doc_id, row in enumerate(dataset.rows.tolist()):
        conversation = read_row(rows[row])
        assert isinstance(conversation, Conversation)
        # the template takes line breaks away before an answer
        said = [f"{conversation.messages[turn].content}<|im_end|>".lstrip() for turn in conversation.assistant_turns()]
        document = dataset.document(doc_id)
        spans = [
            str(tokenizer.decode(document.tokens[start : start + length].tolist())).lstrip()
            for start, length in document.spans.tolist()
        ]
        texts = [text.removeprefix(EMPTY_THINKING) for text in spans]
        if texts == said:
            whole += 1
            continue
        # cut at the limit: whole answers, then the beginning of one; half a character may be left of it
        *before, last = spans
        wanted = said[len(before)]
        assert before == said[: len(before)]
        assert any(text.startswith(last.rstrip("\ufffd")) for text in (wanted, EMPTY_THINKING + wanted))
    assert counts.documents - counts.truncated_documents <= whole <= counts.documents
    assert whole > counts.documents / 2
