"""The check itself, with an engine of a few lines in place of vLLM: what it compares, and when it falls short."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("serve_check.py")
ENGINE = """
import json, os
from types import SimpleNamespace as Record

FAKE = json.loads(os.environ["FAKE_ENGINE"])

class SamplingParams:
    def __init__(self, **settings):
        assert settings["temperature"] == 0
        self.max_tokens = settings["max_tokens"]

class LLM:
    def __init__(self, model, **settings):
        self.speculative = settings.get("speculative_config")

    def generate(self, prompts, sampling, use_tqdm):
        reply = FAKE["drafted"] if self.speculative else FAKE["plain"]
        return [Record(outputs=[Record(token_ids=tuple(reply[: sampling.max_tokens]))]) for _ in prompts]

    def get_metrics(self):
        if not self.speculative:
            return []
        counters = {"drafts": FAKE["rounds"], "accepted_tokens": FAKE["accepted"]}
        found = [Record(name=f"vllm:spec_decode_num_{name}", value=value) for name, value in counters.items()]
        return [*found, Record(name="vllm:spec_decode_num_accepted_tokens_per_pos", values=[FAKE["accepted"], 0, 0])]
"""


def run_check(folder: Path, *arguments: str, length: float = 1.5, prompts: int = 2, **engine: object) -> list[str]:
    """The lines that the script prints, then its exit code."""
    fake = {"plain": [5, 6, 2], "drafted": [5, 6, 2], "rounds": 10, "accepted": 5, **engine}
    (folder / "vllm.py").write_text(ENGINE)
    settings = {"maxNewTokens": 8, "draftTokens": 3}
    evaluation = {"length": length, "rounds": 10, "accepted": 5, "prompts": prompts, "settings": settings}
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    answers = [{"docId": index, "prompt": [1, index], "reply": [5, 6, 2]} for index in range(2)]
    (folder / "answers.json").write_text(json.dumps({"stopIds": [2], "answers": answers}))
    command = [sys.executable, str(SCRIPT), "--draft", str(folder), "--target", str(folder)]
    command += ["--prompts", str(folder / "answers.json"), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(folder), "FAKE_ENGINE": json.dumps(fake)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return [*done.stdout.splitlines(), done.stderr.strip(), f"exit {done.returncode}"]


def bars(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith("bar ")]


def test_an_engine_that_agrees_passes(tmp_path):
    lines = run_check(tmp_path)
    assert bars(lines) == [
        "bar serve_ids_equal_share 1.0000 (needs >= 1.0) ok",
        "bar serve_acceptance_vs_evaluate 0.0000 (needs <= 0.02) ok",
    ]
    assert lines[-1] == "exit 0"
    assert "replies equal to draftyard's own: 1.0000" in lines


@pytest.mark.parametrize(
    ("engine", "bar"),
    [
        ({"drafted": [5, 7, 2]}, "bar serve_ids_equal_share 0.0000 (needs >= 1.0) short"),
        ({"accepted": 6}, "bar serve_acceptance_vs_evaluate 0.0667 (needs <= 0.02) short"),
    ],
    ids=["other ids with the draft", "another acceptance length"],
)
def test_a_difference_falls_short(tmp_path, engine, bar):
    lines = run_check(tmp_path, **engine)
    assert bar in lines
    assert lines[-1] == "exit 1"


def test_a_part_of_the_prompts_says_nothing_of_acceptance(tmp_path):
    lines = run_check(tmp_path, "--limit", "1", accepted=9)
    assert bars(lines) == ["bar serve_ids_equal_share 1.0000 (needs >= 1.0) ok"]
    assert lines[-1] == "exit 0"


def test_answers_of_another_evaluation_are_refused(tmp_path):
    lines = run_check(tmp_path, prompts=3)
    assert "given 2 prompts; the draft was evaluated on 3" in lines[-2]
    assert lines[-1] == "exit 1"
