"""The engine's process, with an engine of a few lines in place of vLLM: what it is told, and what is counted."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import serving
from serving import Question, ask

ENGINE = """
from types import SimpleNamespace as Record

class SamplingParams:
    def __init__(self, **settings):
        assert settings["temperature"] == 0
        assert settings["stop_token_ids"] == [2]
        self.max_tokens = settings["max_tokens"]

class LLM:
    def __init__(self, target, **settings):
        self.draft = settings.get("speculative_config")
        assert self.draft is None or self.draft["num_speculative_tokens"] == 3
        # A warm-up that is counted, too.
        self.rounds = 4

    def generate(self, prompts, sampling, use_tqdm):
        self.rounds += 10
        return [Record(outputs=[Record(token_ids=prompt["prompt_token_ids"][: sampling.max_tokens])])
                for prompt in prompts]

    def get_metrics(self):
        if not self.draft:
            return []
        counted = {"drafts": self.rounds, "accepted_tokens": self.rounds // 2}
        found = [Record(name=f"vllm:spec_decode_num_{name}", value=value) for name, value in counted.items()]
        values = [self.rounds // 2, 0, 0]
        return [*found, Record(name="vllm:spec_decode_num_accepted_tokens_per_pos", values=values)]
"""
QUESTION = Question([[5, 6, 7], [8]], [2], max_new_tokens=2, draft_tokens=3)


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "vllm.py").write_text(ENGINE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def test_counters_are_those_of_the_prompts_alone(engine):
    served = ask(Path(sys.executable), QUESTION, engine, engine / "draft")
    assert served.replies == [[5, 6], [8]]
    assert (served.rounds, served.accepted, served.per_position) == (10, 5, [5, 0, 0])
    assert served.length == 1.5


def test_without_a_draft_nothing_is_counted(engine):
    served = ask(Path(sys.executable), QUESTION, engine, None)
    assert (served.replies, served.rounds, served.per_position, served.length) == ([[5, 6], [8]], 0, [], 1.0)


def test_an_engine_that_fails_ends_the_run_with_what_it_said(engine):
    (engine / "vllm.py").write_text("raise RuntimeError('no such device')")
    with pytest.raises(SystemExit, match="no such device"):
        ask(Path(sys.executable), QUESTION, engine, None)


def test_positions_that_appear_with_the_first_answer_count_from_zero(engine, monkeypatch):
    monkeypatch.syspath_prepend(engine)
    late = ENGINE.replace("if not self.draft:", "if self.rounds == 4:")
    (engine / "vllm.py").write_text(late)
    monkeypatch.delitem(sys.modules, "vllm", raising=False)
    said = serving.answer(QUESTION, "target", "draft")
    monkeypatch.delitem(sys.modules, "vllm", raising=False)
    assert (said.rounds, said.per_position) == (14, [7, 0, 0])
