"""Serve a draft with real vLLM on a CPU: the same answers as without it, and the acceptance length that was measured.

    python tests/serve/serve_check.py --draft DIR --target DIR --prompts answers.json

`answers.json` is what `draftyard evaluate` leaves in `train/<run>/`: the prompts it used, as token ids. The engine runs
twice, each time in a process of its own: with the draft and without. Ends with one `bar` line per demand; exit code 1
when one of them falls short. It runs in a virtual environment that has vLLM, so it imports nothing of Draftyard.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

KV_CACHE_GIB = "2"
MAX_ACCEPTANCE_DIFFERENCE = 0.02


@dataclass(frozen=True)
class Question:
    """What the engine is asked; token ids, so no template can differ."""

    prompts: list[list[int]]
    stop_ids: list[int]
    max_new_tokens: int
    draft_tokens: int


@dataclass(frozen=True)
class Answer:
    """What the engine said: reply ids per prompt, and its counters of speculation (zero without a draft)."""

    replies: list[list[int]]
    rounds: int
    accepted: int
    per_position: list[int]
    seconds: float

    @property
    def acceptance_length(self) -> float:
        """Tokens per round, the target's own included."""
        return 1 + self.accepted / max(self.rounds, 1)


def main() -> int:
    """Run both engines and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draft", type=Path, required=True, help="export/<run> of a workspace")
    parser.add_argument("--target", type=Path, required=True, help="folder of the target")
    parser.add_argument("--prompts", type=Path, required=True, help="train/<run>/answers.json of the same workspace")
    parser.add_argument(
        "--limit", type=int, default=None, help="prompts at most; without it the acceptance is compared"
    )
    arguments = parser.parse_args()
    evaluation = json.loads((arguments.draft / "evaluation.json").read_text())
    answers = json.loads(arguments.prompts.read_text())
    question = read_question(answers, evaluation, arguments.limit)
    plain = ask(question, arguments.target, None)
    drafted = ask(question, arguments.target, arguments.draft)
    ours = [answer["reply"] for answer in answers["answers"]][: len(question.prompts)]
    print(f"{len(question.prompts)} prompts, {question.max_new_tokens} new tokens at most, K={question.draft_tokens}")
    print(f"without draft: {plain.seconds:.1f} s, with draft: {drafted.seconds:.1f} s")
    print(f"replies equal to draftyard's own: {share_equal(ours, plain.replies):.4f}")
    print(f"vllm: rounds {drafted.rounds}, accepted {drafted.accepted}, per position {drafted.per_position}")
    print(f"evaluate: rounds {evaluation['rounds']}, accepted {evaluation['accepted']}")
    print(f"acceptance length: vllm {drafted.acceptance_length:.4f}, evaluate {evaluation['length']:.4f}")
    bars = [bar_at_least("serve_ids_equal_share", share_equal(plain.replies, drafted.replies), 1.0)]
    if arguments.limit is None:
        difference = abs(drafted.acceptance_length / evaluation["length"] - 1)
        bars.append(bar_at_most("serve_acceptance_vs_evaluate", difference, MAX_ACCEPTANCE_DIFFERENCE))
    return 0 if all(bars) else 1


def read_question(answers: dict[str, Any], evaluation: dict[str, Any], limit: int | None) -> Question:
    """The prompts that the evaluation used, under its settings."""
    prompts = [answer["prompt"] for answer in answers["answers"]]
    if not prompts or (limit is None and len(prompts) != evaluation["prompts"]):
        raise SystemExit(f"--prompts: given {len(prompts)} prompts; the draft was evaluated on {evaluation['prompts']}")
    settings = evaluation["settings"]
    return Question(prompts[:limit], answers["stopIds"], settings["maxNewTokens"], settings["draftTokens"])


def ask(question: Question, target: Path, draft: Path | None) -> Answer:
    """Run the engine in a process of its own: two engines in one would share counters and memory."""
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder, "question.json"), Path(folder, "answer.json")
        given.write_text(json.dumps(asdict(question)))
        command = [sys.executable, __file__, "--engine", str(given), str(found), str(target.resolve())]
        command += [str(draft.resolve())] if draft else []
        environment = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": KV_CACHE_GIB}
        subprocess.run(command, check=True, stdout=sys.stderr, env={**environment, **os.environ})
        return Answer(**json.loads(found.read_text()))


def run_engine(question: Question, target: str, draft: str | None) -> Answer:
    """Answer every prompt with vLLM. Counters are cumulative, and nothing else asks this engine."""
    from vllm import LLM, SamplingParams  # noqa: PLC0415  only the engine's process pays for the import

    speculative = {"method": "eagle3", "model": draft, "num_speculative_tokens": question.draft_tokens}
    engine = LLM(
        target,
        dtype="float32",
        enforce_eager=True,
        enable_prefix_caching=False,
        disable_log_stats=False,
        **({"speculative_config": speculative} if draft else {}),
    )
    sampling = SamplingParams(
        temperature=0, max_tokens=question.max_new_tokens, stop_token_ids=question.stop_ids, detokenize=False
    )
    started = time.monotonic()
    outputs = engine.generate([{"prompt_token_ids": ids} for ids in question.prompts], sampling, use_tqdm=False)
    seconds = time.monotonic() - started
    counters = {metric.name: metric for metric in engine.get_metrics()}
    per_position = counters.get("vllm:spec_decode_num_accepted_tokens_per_pos")
    return Answer(
        replies=[list(output.outputs[0].token_ids) for output in outputs],
        rounds=getattr(counters.get("vllm:spec_decode_num_drafts"), "value", 0),
        accepted=getattr(counters.get("vllm:spec_decode_num_accepted_tokens"), "value", 0),
        per_position=list(per_position.values) if per_position else [],
        seconds=seconds,
    )


def share_equal(left: list[list[int]], right: list[list[int]]) -> float:
    """Share of the prompts whose replies are the same, token by token."""
    return sum(one == other for one, other in zip(left, right, strict=True)) / len(left)


def bar_at_least(name: str, value: float, needed: float) -> bool:
    """Print a bar that a value must reach."""
    return print_bar(f"{name} {value:.4f} (needs >= {needed})", value >= needed)


def bar_at_most(name: str, value: float, needed: float) -> bool:
    """Print a bar that a value must stay below."""
    return print_bar(f"{name} {value:.4f} (needs <= {needed})", value <= needed)


def print_bar(text: str, holds: bool) -> bool:
    """Print one bar line, and return whether it holds."""
    print(f"bar {text} {'ok' if holds else 'short'}", flush=True)
    return holds


if __name__ == "__main__":
    if sys.argv[1:2] == ["--engine"]:
        # The engine's process: question file, answer file, target, and the draft where there is one.
        asked = Question(**json.loads(Path(sys.argv[2]).read_text()))
        said = run_engine(asked, sys.argv[4], sys.argv[5] if len(sys.argv) > 5 else None)
        Path(sys.argv[3]).write_text(json.dumps(asdict(said)))
    else:
        sys.exit(main())
