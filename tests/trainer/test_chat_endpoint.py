"""An OpenAI-compatible server as the target: what it is asked, what is read, and what its errors mean."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.names import ENV_ENGINE_KEY, Stage
from draftyard_api.reasons import Reason
from draftyard_api.spec import ChatEngine, Data, DataSource, FileSource, OwnAnswers, Target
from draftyard_api.task import ConversationsRef, RegenerateTask
from draftyard_trainer import testing
from draftyard_trainer.chat_endpoint import Asking, EngineSpeaker, read_reply
from draftyard_trainer.data.conversation import Conversation, Message
from draftyard_trainer.data.conversations import ConversationRows
from draftyard_trainer.dialogue import Question
from draftyard_trainer.regenerate import regenerate
from draftyard_trainer.reporting import Reporter
from draftyard_trainer.storage.local import LocalStore

Json = Any
KEY = "sk-very-secret"


class Server(ThreadingHTTPServer):
    """Answers by a script: status, headers and body for each request."""

    daemon_threads = True

    def __init__(self, script: Callable[[Json, int], tuple[int, dict[str, str], Json]]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script = script
        self.asked: list[tuple[str, Json, str | None]] = []
        self.lock = threading.Lock()
        self.busy = self.most_busy = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.asked.append((self.path, body, self.headers.get("Authorization")))
            number = len(server.asked)
            server.busy += 1
            server.most_busy = max(server.most_busy, server.busy)
        status, headers, answer = server.script(body, number)
        with server.lock:
            server.busy -= 1
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(script: Callable[[Json, int], tuple[int, dict[str, str], Json]]) -> Iterator[Server]:
    server = Server(script)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def completion(text: str | None, finish: str = "stop", tokens: int = 3, **message: Json) -> Json:
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text, **message}}
    return {"choices": [choice], "usage": {"completion_tokens": tokens}}


def echo(body: Json, _number: int) -> tuple[int, dict[str, str], Json]:
    """Says what it was asked last, in capitals."""
    return 200, {}, completion(body["messages"][-1]["content"].upper())


def question(row: int = 0, text: str = "why", turn: int = 0) -> Question:
    conversation = Conversation("a", (Message("system", "Be brief."), Message("user", text)))
    return Question(row, turn, conversation, np.array([1, 2, 3]), limit=20)


def speaker(url: str, waits: tuple[float, ...] = (0.0, 0.0), **changes: Any) -> EngineSpeaker:
    asking = Asking("llama", changes.pop("temperature", 0.0), seed=7, **changes.pop("asking", {}))
    return EngineSpeaker(ChatEngine(url=url, **changes), asking, lambda: None, lambda _over, _seconds: None, waits)


# -- What it is asked --------------------------------------------------------------------------------


def test_a_question_is_the_whole_conversation_so_far(monkeypatch):
    monkeypatch.setenv(ENV_ENGINE_KEY, KEY)
    with serving(echo) as server:
        asking = {"template_kwargs": {"enable_thinking": False}, "stop": ("<|end|>",)}
        (reply,) = speaker(server.url, asking=asking).answer([question()])
    assert reply is not None
    assert (reply.message, reply.tokens) == (Message("assistant", "WHY"), 3)
    (path, body, authorization) = server.asked[0]
    assert (path, authorization) == ("/v1/chat/completions", f"Bearer {KEY}")
    assert body == {
        "model": "llama", "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "why"}],
        "max_tokens": 20, "temperature": 0.0, "chat_template_kwargs": {"enable_thinking": False}, "stop": ["<|end|>"],
    }  # fmt: skip


def test_a_secret_that_was_made_from_a_file_ends_in_a_line_feed(monkeypatch):
    monkeypatch.setenv(ENV_ENGINE_KEY, f"{KEY}\n")
    with serving(echo) as server:
        speaker(server.url).answer([question()])
    assert server.asked[0][2] == f"Bearer {KEY}"


def test_a_key_that_no_header_holds_is_refused_and_not_shown(monkeypatch):
    monkeypatch.setenv(ENV_ENGINE_KEY, "two\nlines")
    with serving(echo) as server, pytest.raises(Failure) as caught:
        speaker(server.url).answer([question()])
    assert server.asked == []
    assert caught.value.code == ExitCode.BAD_TASK
    assert "data.regenerate.engine.secretRef: the key in" in str(caught.value)
    assert "two" not in str(caught.value)


def test_without_a_secret_nobody_is_named(monkeypatch):
    monkeypatch.delenv(ENV_ENGINE_KEY, raising=False)
    with serving(echo) as server:
        speaker(server.url).answer([question()])
    assert server.asked[0][2] is None


def test_draws_have_a_seed_of_their_own_and_the_same_one_again():
    with serving(echo) as server:
        talker = speaker(server.url, temperature=0.7, concurrency=1)
        talker.answer([question(0), question(1), question(0, turn=1), question(0)])
    seeds = [body["seed"] for _, body, _ in server.asked]
    assert len(set(seeds[:3])) == 3
    assert seeds[3] == seeds[0]
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_no_more_are_asked_at_once_than_wanted_and_each_gets_its_own_answer():
    gate = threading.Barrier(3, timeout=10)

    def together(body: Json, number: int) -> tuple[int, dict[str, str], Json]:
        gate.wait()
        return echo(body, number)

    with serving(together) as server:
        replies = speaker(server.url, concurrency=3).answer([question(row, f"q{row}") for row in range(12)])
    assert [reply.message.content for reply in replies if reply] == [f"Q{row}" for row in range(12)]
    assert server.most_busy == 3


# -- What is read ------------------------------------------------------------------------------------


def read(answer: Json) -> Any:
    return read_reply(json.dumps(answer).encode(), limit=20)


def test_an_answer_that_was_cut_is_unfinished():
    assert read(completion("so", "length")).message.is_unfinished
    assert not read(completion("so")).message.is_unfinished


def test_thoughts_and_calls_are_kept_apart():
    call = {"type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}
    message = read(completion(None, "tool_calls", tool_calls=[call], reasoning="hm")).message
    assert message.content == ""
    assert message.tool_calls[0]["function"]["arguments"] == {"at": 1}
    assert dict(message.carried) == {"reasoning_content": "hm"}


@pytest.mark.parametrize(
    "content", [b"<html>", b"{}", b'{"choices": []}', b'{"choices": [{"message": 3}]}', b'{"choices": [null]}', b"\xff"]
)
def test_what_is_no_completion_is_said(content):
    with pytest.raises(Failure, match=r"data\.regenerate\.engine: its answer is no chat completion") as caught:
        read_reply(content, limit=20)
    assert caught.value.code is ExitCode.BAD_TASK


# -- What its errors mean ----------------------------------------------------------------------------


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_is_busy_is_asked_again(status):
    def later(body: Json, number: int) -> tuple[int, dict[str, str], Json]:
        return (status, {"Retry-After": "5"}, {"error": "busy"}) if number < 3 else echo(body, number)

    waited: list[float] = []
    with serving(later) as server:
        asking = Asking("llama", 0.0, seed=7)
        patient = EngineSpeaker(
            ChatEngine(url=server.url), asking, lambda: None, lambda _over, seconds: waited.append(seconds), (1.0, 8.0)
        )
        (reply,) = patient.answer([question()])
    assert reply is not None
    assert waited == [5.0, 8.0]


def test_after_all_tries_it_is_out_of_reach():
    with serving(lambda _body, _number: (503, {}, {"error": "starting"})) as server, pytest.raises(Failure) as caught:
        speaker(server.url).answer([question()])
    assert (caught.value.code, caught.value.reason) == (ExitCode.UNAVAILABLE, Reason.STORAGE_UNAVAILABLE)
    assert "after 3 tries: it answers 503" in caught.value.message


def test_nobody_listens():
    with serving(echo) as server:
        url = server.url
    with pytest.raises(Failure, match=r"out of reach after 3 tries: .*refused") as caught:
        speaker(url).answer([question()])
    assert caught.value.code is ExitCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (401, ExitCode.DENIED, "set data.regenerate.engine.secretRef"),
        (403, ExitCode.DENIED, "set data.regenerate.engine.secretRef"),
        (404, ExitCode.NOT_FOUND, "data.regenerate.engine.model: given llama"),
        (400, ExitCode.BAD_TASK, "answers 400: .*context length"),
        (302, ExitCode.BAD_TASK, "answers 302"),
    ],
)
def test_what_no_further_try_changes_ends_the_stage(monkeypatch, status, code, words):
    monkeypatch.setenv(ENV_ENGINE_KEY, KEY)
    elsewhere: list[int] = []
    with serving(lambda _body, _number: (200, {}, elsewhere.append(1) or completion("no"))) as other:
        headers = {"Location": f"{other.url}/chat/completions"} if status == 302 else {}
        with serving(lambda _body, _number: (status, headers, {"error": "context length"})) as server:
            with pytest.raises(Failure, match=words) as caught:
                speaker(server.url).answer([question()])
            assert len(server.asked) == 1
    assert caught.value.code is code
    assert KEY not in caught.value.message
    # a key that goes along with a redirect is given away
    assert elsewhere == []


def test_a_stop_does_not_wait_for_answers():
    gate = threading.Event()

    def never(body: Json, number: int) -> tuple[int, dict[str, str], Json]:
        gate.wait(20)
        return echo(body, number)

    def stop() -> None:
        raise Failure(ExitCode.INTERRUPTED, Reason.INTERRUPTED, "stopped")

    with serving(never) as server:
        begun = time.monotonic()
        with pytest.raises(Failure, match="stopped"):
            replace(speaker(server.url), look=stop).answer([question()])
        assert time.monotonic() - begun < 10
        gate.set()


def test_the_first_failure_ends_all_questions():
    with serving(lambda _body, _number: (401, {}, {})) as server, pytest.raises(Failure):
        speaker(server.url, concurrency=1).answer([question(row) for row in range(50)])
    assert len(server.asked) < 50


# -- The whole stage ---------------------------------------------------------------------------------


def test_the_stage_with_an_engine(tmp_path: Path):
    """It needs no weights of the target: the tokenizer says what fits, the server answers."""
    folder = testing.write_target(tmp_path / "target")
    (folder / "model.safetensors").unlink()
    chat = testing.write_conversations(tmp_path / "chat.json", 5)
    store = LocalStore(tmp_path / "workspace")
    with serving(echo) as server:
        own = OwnAnswers(max_new_tokens=32, engine=ChatEngine(url=server.url, model="llama", concurrency=4))
        task = RegenerateTask(
            run="tiny", uid="u", workspace=store.uri, target=Target(model=f"file://{folder}"), seed=7, num_shards=1,
            shard=0, data=Data(source=DataSource(file=FileSource(uri=f"file://{chat}")), regenerate=own),
        )  # fmt: skip
        made = regenerate(task, Reporter(Stage.REGENERATE)).regenerated
    assert made is not None
    assert (made.conversations, made.answers, made.tokens) == (5, 10, 30)
    rows = ConversationRows.open(store, ConversationsRef(key=made.key, num_shards=1)).rows()
    for row in rows:
        said = [message["content"] for message in row["messages"]]
        assert said[1::2] == [text.upper() for text in said[::2]]
    # the second question comes with the first answer
    assert {len(body["messages"]) for _, body, _ in server.asked} == {1, 3}
    assert "http" not in store.read(f"conversations/{made.key}/s1/key.json").decode()
