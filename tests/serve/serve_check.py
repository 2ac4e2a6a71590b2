"""Serve a draft with real vLLM on a CPU: the same answers as without it, and the acceptance length that was predicted.

    python tests/serve/serve_check.py --draft DIR --target DIR --prompts answers.json

`answers.json` is what `draftyard evaluate` leaves in `train/<run>/`: the prompts it used, as token ids. The server runs
twice, with the draft and without, and is asked by the code that `evaluate.engine` asks with. Ends with one `bar` line
per figure, and with 0 when it has measured, whatever is short. It runs in a virtual environment that has vLLM, with our
three packages on its path: what is taken from them needs none of their libraries.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from draftyard_api.exit_codes import Failure
from draftyard_operator.testing.ports import free_port
from draftyard_trainer.connection import Connection
from draftyard_trainer.engine import Asked, complete, connect

KV_CACHE_GIB = "2"
MAX_ACCEPTANCE_DIFFERENCE = 0.02
START_SECONDS = 900
MODEL = "target"


@dataclass(frozen=True)
class Question:
    """What the engine is asked; token ids, so no template can differ."""

    prompts: list[list[int]]
    asked: Asked
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


def main() -> None:
    """Run both servers and compare."""
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
    limit = question.asked.max_new_tokens
    print(f"{len(question.prompts)} prompts, {limit} new tokens at most, K={question.draft_tokens}")
    print(f"without draft: {plain.seconds:.1f} s, with draft: {drafted.seconds:.1f} s")
    tell_speedup(evaluation, plain.seconds / drafted.seconds)
    print(f"replies equal to draftyard's own: {share_equal(ours, plain.replies):.4f}")
    print(f"vllm: rounds {drafted.rounds}, accepted {drafted.accepted}, per position {drafted.per_position}")
    print(f"evaluate: rounds {evaluation['rounds']}, accepted {evaluation['accepted']}")
    print(f"acceptance length: vllm {drafted.acceptance_length:.4f}, evaluate {evaluation['length']:.4f}")
    bar_at_least("serve_ids_equal_share", share_equal(plain.replies, drafted.replies), 1.0)
    if arguments.limit is None:
        difference = abs(drafted.acceptance_length / evaluation["length"] - 1)
        bar_at_most("serve_acceptance_vs_evaluate", difference, MAX_ACCEPTANCE_DIFFERENCE)


def read_question(answers: dict[str, Any], evaluation: dict[str, Any], limit: int | None) -> Question:
    """The prompts that the evaluation used, under its settings."""
    prompts = [answer["prompt"] for answer in answers["answers"]]
    if not prompts or (limit is None and len(prompts) != evaluation["prompts"]):
        raise SystemExit(f"--prompts: given {len(prompts)} prompts; the draft was evaluated on {evaluation['prompts']}")
    settings = evaluation["settings"]
    if settings.get("temperature") or settings.get("proposal", "chain") != "chain":
        raise SystemExit("--draft: vLLM on a CPU is right for a chain at temperature 0 only; evaluated otherwise")
    asked = Asked(settings["maxNewTokens"], tuple(answers["stopIds"]))
    return Question(prompts[:limit], asked, settings["draftTokens"])


def tell_speedup(evaluation: dict[str, Any], served: float) -> None:
    """For information: kernels and a server's own work differ from what the evaluator has measured."""
    predicted = evaluation.get("speedup")
    beside = f", evaluate predicted {predicted['value']:.2f} for its own code" if predicted else ""
    print(f"speed-up for one user: vllm {served:.2f}{beside}")


def ask(question: Question, target: Path, draft: Path | None) -> Answer:
    """Start a server, ask it every prompt, one after the other, and stop it."""
    key = secrets.token_hex(8)
    with serving(target, draft, question.draft_tokens, key) as url:
        # The first answer of a server pays for what it makes once.
        complete(Connection(url, key), MODEL, question.prompts[0], Asked(2, ()))
        return ask_plainly(question, url, key) if draft is None else ask_counted(question, url, key)


def ask_plainly(question: Question, url: str, key: str) -> Answer:
    """Without a draft there is nothing to count."""
    connection, started = Connection(url, key), time.monotonic()
    replies = [complete(connection, MODEL, prompt, question.asked)[0] for prompt in question.prompts]
    return Answer([list(reply or ()) for reply in replies], 0, 0, [], time.monotonic() - started)


def ask_counted(question: Question, url: str, key: str) -> Answer:
    """With a draft: as the stage `evaluate` asks."""
    engine = connect(url, key)
    print(f"{engine.identity.name} {engine.identity.version}, it looks {engine.identity.steps} tokens ahead")
    answers = [engine.answer(prompt, question.asked) for prompt in question.prompts]
    positions = zip(*(one.per_position or () for one in answers), strict=True)
    return Answer(
        replies=[list(one.tokens or ()) for one in answers],
        rounds=sum(one.rounds for one in answers),
        accepted=sum(one.accepted for one in answers),
        per_position=[sum(position) for position in positions],
        seconds=sum(one.seconds for one in answers),
    )


@contextmanager
def serving(target: Path, draft: Path | None, draft_tokens: int, key: str) -> Iterator[str]:
    """The address of a server that has loaded its models; it is stopped in the end."""
    port = free_port()
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(target.resolve()),
        "--served-model-name", MODEL, "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32",
        "--enforce-eager", "--no-enable-prefix-caching",
    ]  # fmt: skip
    if draft is not None:
        speculative = {"method": "eagle3", "model": str(draft.resolve()), "num_speculative_tokens": draft_tokens}
        command += ["--speculative-config", json.dumps(speculative)]
    # The key goes into the environment: arguments of a process can be read by everybody.
    environment = {
        "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": KV_CACHE_GIB, **os.environ,
        "VLLM_API_KEY": key,
    }  # fmt: skip
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until_ready(process, Connection(url, key), log)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_until_ready(process: subprocess.Popen[bytes], connection: Connection, log: Any) -> None:
    """Raises SystemExit with the end of the log when it ends, or does not answer in time."""
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            connection.get("/v1/models")
        except Failure:
            time.sleep(0.5)
        else:
            return
    log.seek(0)
    raise SystemExit(f"vllm did not start:\n{log.read()[-4000:]}")


def share_equal(left: list[list[int]], right: list[list[int]]) -> float:
    """Share of the prompts whose replies are the same, token by token."""
    return sum(one == other for one, other in zip(left, right, strict=True)) / len(left)


def bar_at_least(name: str, value: float, needed: float) -> None:
    """Print a bar that a value must reach."""
    print_bar(f"{name} {value:.4f} (needs >= {needed})", value >= needed)


def bar_at_most(name: str, value: float, needed: float) -> None:
    """Print a bar that a value must stay below."""
    print_bar(f"{name} {value:.4f} (needs <= {needed})", value <= needed)


def print_bar(text: str, holds: bool) -> None:
    """Print one bar line."""
    print(f"bar {text} {'ok' if holds else 'short'}", flush=True)


if __name__ == "__main__":
    main()
