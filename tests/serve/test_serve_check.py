"""The check itself, with a server of a few lines in place of vLLM: what it compares, and when it falls short."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("serve_check.py")
SERVER = """
import argparse, json, os
from http.server import BaseHTTPRequestHandler, HTTPServer

FAKE = json.loads(os.environ["FAKE_ENGINE"])
parser = argparse.ArgumentParser()
for name in ("model", "served-model-name", "host", "port", "dtype", "speculative-config"):
    parser.add_argument(f"--{name}")
for name in ("enforce-eager", "no-enable-prefix-caching"):
    parser.add_argument(f"--{name}", action="store_true", required=True)
arguments = parser.parse_args()
if FAKE.get("broken"):
    raise SystemExit("no such model")
speculative = json.loads(arguments.speculative_config) if arguments.speculative_config else None
counted = {"drafts": 0, "accepted": 0, "generated": 0}

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/metrics":
            lines = [f'vllm:generation_tokens_total {counted["generated"]}']
            if speculative:
                lines += [f'vllm:spec_decode_num_drafts_total {counted["drafts"]}',
                          f'vllm:spec_decode_num_accepted_tokens_total {counted["accepted"]}']
                lines += [f'vllm:spec_decode_num_accepted_tokens_per_pos_total{{position="{place}"}} '
                          f'{counted["accepted"] if place == 0 else 0}' for place in range(3)]
            self.say(chr(10).join(lines) + chr(10))
        elif self.path == "/version":
            self.say(json.dumps({"version": "0.0"}))
        else:
            self.say(json.dumps({"data": [{"id": arguments.served_model_name, "owned_by": "vllm"}]}))

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.headers["Authorization"] == "Bearer " + os.environ["VLLM_API_KEY"]
        assert (body["temperature"], body["stop_token_ids"] in ([2], [])) == (0, True)
        reply = (FAKE["drafted"] if speculative else FAKE["plain"])[: body["max_tokens"]]
        counted["drafts"] += FAKE["rounds"]
        counted["accepted"] += FAKE["accepted"]
        counted["generated"] += len(reply)
        self.say(json.dumps({"choices": [{"token_ids": reply}], "usage": {"completion_tokens": len(reply)}}))

    def say(self, text):
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass

HTTPServer((arguments.host, int(arguments.port)), Handler).serve_forever()
"""


def run_check(
    folder: Path, *arguments: str, length: float = 1.5, prompts: int = 2, settings: object = None, **engine: object
) -> list[str]:
    """The lines that the script prints, then its exit code. Rounds and accepted tokens are those of one answer."""
    fake = {"plain": [5, 6, 2], "drafted": [5, 6, 2], "rounds": 10, "accepted": 5, **engine}
    package = folder / "vllm" / "entrypoints" / "openai"
    package.mkdir(parents=True)
    (package / "api_server.py").write_text(SERVER)
    settings = settings or {"maxNewTokens": 8, "draftTokens": 3}
    evaluation = {"length": length, "rounds": 20, "accepted": 10, "prompts": prompts, "settings": settings}
    (folder / "evaluation.json").write_text(json.dumps(evaluation | {"speedup": {"value": 1.25}}))
    answers = [{"docId": index, "prompt": [1, index], "reply": [5, 6, 2]} for index in range(2)]
    (folder / "answers.json").write_text(json.dumps({"stopIds": [2], "answers": answers}))
    command = [sys.executable, str(SCRIPT), "--draft", str(folder), "--target", str(folder)]
    command += ["--prompts", str(folder / "answers.json"), *arguments]
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "FAKE_ENGINE": json.dumps(fake)}
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
    # Two answers: what the server did before them is not counted.
    assert "vllm: rounds 20, accepted 10, per position [10, 0, 0]" in lines
    assert any(line.endswith("evaluate predicted 1.25 for its own code") for line in lines)


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
    # it measured: a figure that is short is told, not an error
    assert lines[-1] == "exit 0"


def test_a_part_of_the_prompts_says_nothing_of_acceptance(tmp_path):
    lines = run_check(tmp_path, "--limit", "1", accepted=9)
    assert bars(lines) == ["bar serve_ids_equal_share 1.0000 (needs >= 1.0) ok"]
    assert lines[-1] == "exit 0"


def test_answers_of_another_evaluation_are_refused(tmp_path):
    lines = run_check(tmp_path, prompts=3)
    assert "given 2 prompts; the draft was evaluated on 3" in lines[-2]
    assert lines[-1] == "exit 1"


def test_what_vllm_cannot_do_on_a_cpu_is_not_compared(tmp_path):
    lines = run_check(tmp_path, settings={"maxNewTokens": 8, "draftTokens": 3, "temperature": 1.0})
    assert "right for a chain at temperature 0 only" in lines[-2]


def test_a_server_that_does_not_start_shows_its_log(tmp_path):
    lines = run_check(tmp_path, broken=True)
    assert "vllm did not start:" in lines[-2]
    assert "no such model" in lines[-2]
