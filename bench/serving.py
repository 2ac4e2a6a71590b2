"""Answers of a real vLLM on a CPU to prompts given as token ids, with a draft or without.

As a program it is the engine's process, in the environment of `tests/serve`:

    .venv-serve/bin/python bench/serving.py QUESTION.json ANSWER.json TARGET [DRAFT]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ENGINE = {
    "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "2", "OMP_WAIT_POLICY": "PASSIVE"
}  # fmt: skip
COUNTERS = {"rounds": "vllm:spec_decode_num_drafts", "accepted": "vllm:spec_decode_num_accepted_tokens"}
PER_POSITION = "vllm:spec_decode_num_accepted_tokens_per_pos"


@dataclass(frozen=True)
class Question:
    """What an engine is asked; token ids, so that no template can differ."""

    prompts: list[list[int]]
    stop_ids: list[int]
    max_new_tokens: int
    draft_tokens: int


@dataclass(frozen=True)
class Served:
    """What it said and counted."""

    replies: list[list[int]]
    rounds: int
    accepted: int
    per_position: list[int]
    seconds: float

    @property
    def length(self) -> float:
        """Tokens per round, the target's own included."""
        return 1 + self.accepted / max(self.rounds, 1)


def ask(python: Path, question: Question, target: Path, draft: Path | None) -> Served:
    """Start an engine in a process of its own, ask all prompts at once, and stop it."""
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder, "question.json"), Path(folder, "answer.json")
        given.write_text(json.dumps(asdict(question)))
        command = [str(python), __file__, str(given), str(found), str(target.resolve())]
        command += [str(draft.resolve())] if draft else []
        done = subprocess.run(command, check=False, capture_output=True, text=True, env={**ENGINE, **os.environ})
        if done.returncode:
            raise SystemExit(f"{draft or target}: vLLM ended with {done.returncode}:\n{done.stderr[-3000:]}")
        return Served(**json.loads(found.read_text()))


def answer(question: Question, target: str, draft: str | None) -> Served:
    """In the engine's process. Nothing else asks this engine: what its counters rise by is of these prompts."""
    from vllm import LLM, SamplingParams  # noqa: PLC0415  only the engine's process has it

    speculative = {"method": "eagle3", "model": draft, "num_speculative_tokens": question.draft_tokens}
    engine = LLM(
        target, dtype="float32", enforce_eager=True, enable_prefix_caching=False, disable_log_stats=False,
        **({"speculative_config": speculative} if draft else {}),
    )  # fmt: skip
    sampling = SamplingParams(
        temperature=0, max_tokens=question.max_new_tokens, stop_token_ids=question.stop_ids, detokenize=False
    )
    before = read_counters(engine)
    started = time.monotonic()
    outputs = engine.generate([{"prompt_token_ids": ids} for ids in question.prompts], sampling, use_tqdm=False)
    seconds = time.monotonic() - started
    after = read_counters(engine)
    # Before its first answer an engine may not list the positions yet.
    early = before["positions"] or [0] * len(after["positions"])
    return Served(
        replies=[list(output.outputs[0].token_ids) for output in outputs],
        rounds=after["rounds"][0] - before["rounds"][0],
        accepted=after["accepted"][0] - before["accepted"][0],
        per_position=[late - value for late, value in zip(after["positions"], early, strict=True)],
        seconds=seconds,
    )


def read_counters(engine: Any) -> dict[str, list[int]]:
    """The engine's counters of speculation; zeros without a draft."""
    found = {metric.name: metric for metric in engine.get_metrics()}
    counted = {name: [int(getattr(found.get(key), "value", 0))] for name, key in COUNTERS.items()}
    return {**counted, "positions": [int(value) for value in getattr(found.get(PER_POSITION), "values", [])]}


if __name__ == "__main__":
    asked = Question(**json.loads(Path(sys.argv[1]).read_text()))
    said = answer(asked, sys.argv[3], sys.argv[4] if len(sys.argv) > 4 else None)
    Path(sys.argv[2]).write_text(json.dumps(asdict(said)))
