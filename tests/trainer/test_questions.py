"""Sets of questions: published schemas, files of one's own, and what is said of those that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_presets import write_table

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.names import ENV_DATASETS
from draftyard_api.spec import PromptFile
from draftyard_trainer.data.conversation import Message, SkipReason
from draftyard_trainer.data.questions import (
    TABLES,
    Question,
    QuestionSource,
    file_sha256,
    read_question,
    require_questions,
)

ASKED = Question((Message("user", "Why?"),))
ROWS = {
    # Hand-made rows of the published schemas.
    "mt-bench, as first published": (
        {"question_id": 81, "category": "writing", "turns": ["Why?", "And how?"], "reference": []},
        Question((Message("user", "Why?"),), ("And how?",)),
    ),
    "mt-bench, as on the hub": (
        {"prompt_id": 81, "category": "writing", "prompt": ["Why?", "And how?"], "reference": []},
        Question((Message("user", "Why?"),), ("And how?",)),
    ),
    "gsm8k": ({"question": "Why?", "answer": "#### 3"}, ASKED),
    "humaneval": ({"task_id": "HumanEval/0", "prompt": "Why?", "canonical_solution": "x", "entry_point": "f"}, ASKED),
    "a conversation up to its first answer": (
        {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"},
                      {"role": "assistant", "content": "So."}, {"role": "user", "content": "How?"}]},
        Question((Message("system", "Be brief."), Message("user", "Why?"))),
    ),
    "a conversation that nobody has answered": ({"conversations": [{"from": "human", "value": "Why?"}]}, ASKED),
    "an instruction with its input": (
        {"instruction": "Sort", "input": "3, 1", "system": "Be brief."},
        Question((Message("system", "Be brief."), Message("user", "Sort\n\n3, 1"))),
    ),
    "no object": ("Why?", SkipReason.NOT_AN_OBJECT),
    "no question": ({"answer": "So."}, SkipReason.EMPTY),
    "no turns": ({"turns": [], "prompt": []}, SkipReason.EMPTY),
    "a turn that is no text": ({"turns": ["Why?", 3]}, SkipReason.MALFORMED),
    "two questions": ({"prompt": "Why?", "question": "How?"}, SkipReason.MALFORMED),
    "only a system prompt": ({"messages": [{"role": "system", "content": "Be brief."}]}, SkipReason.EMPTY),
    "a role that is not guessed at": ({"messages": [{"role": "oracle", "content": "Why?"}]}, SkipReason.UNKNOWN_ROLE),
}  # fmt: skip


@pytest.mark.parametrize(("row", "read"), ROWS.values(), ids=ROWS.keys())
def test_rows_are_read_or_have_a_reason(row, read):
    assert read_question(row) == read


def in_file(folder: Path, *rows: object) -> PromptFile:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return PromptFile(uri=f"file://{path}")


def test_a_file_of_one_s_own_is_read_and_hashed(tmp_path):
    file = in_file(tmp_path, {"prompt": "Why?"}, {"question": "How?"})
    assert len(list(QuestionSource("file", file).rows())) == 2
    before = file_sha256(file)
    assert file_sha256(in_file(tmp_path, {"prompt": "Why not?"})) != before
    assert file_sha256(None) is None
    require_questions(QuestionSource("file", file))


def test_a_file_that_is_not_there_is_said(tmp_path):
    file = PromptFile(uri=f"file://{tmp_path}/none.jsonl")
    for ask in (lambda: require_questions(QuestionSource("file", file)), lambda: file_sha256(file)):
        with pytest.raises(Failure, match=r"evaluate\.promptFile\.uri: given file://.*none\.jsonl") as caught:
            ask()
        assert caught.value.code == ExitCode.NOT_FOUND


def test_a_file_without_a_question_is_said(tmp_path):
    file = in_file(tmp_path, {"text": "nobody asks"})
    with pytest.raises(
        Failure, match="file has no question \\(its first row is empty\\); accepted: rows with"
    ) as caught:
        require_questions(QuestionSource("file", file))
    assert caught.value.code == ExitCode.BAD_DATA


@pytest.mark.parametrize("name", sorted(TABLES))
def test_a_well_known_set_is_read_from_a_mirror(tmp_path, monkeypatch, name):
    rows = {
        "mt-bench": {"prompt_id": 81, "category": "writing", "prompt": ["Why?", "And how?"], "reference": ["", ""]},
        "gsm8k": {"question": "Why?", "answer": "#### 3"},
        "humaneval": {"task_id": "HumanEval/0", "prompt": "Why?", "canonical_solution": "x"},
    }
    write_table(tmp_path / "mirror", TABLES[name], [rows[name]])
    monkeypatch.setenv(ENV_DATASETS, str(tmp_path / "mirror"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    found = [read_question(row) for row in QuestionSource(name).rows()]
    assert found == [Question((Message("user", "Why?"),), ("And how?",) if name == "mt-bench" else ())]


def test_a_set_that_the_mirror_lacks_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv(ENV_DATASETS, str(tmp_path))
    with pytest.raises(Failure, match="copy the files of HuggingFaceH4/mt_bench_prompts there"):
        require_questions(QuestionSource("mt-bench"))
