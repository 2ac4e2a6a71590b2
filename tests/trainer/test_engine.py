"""Engines: real HTTP to a small server that answers and counts as vLLM and SGLang do, and refuses in every way."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.spec import Tree
from draftyard_trainer import engine
from draftyard_trainer.draft.manifest import Settings
from draftyard_trainer.engine import Asked, ServedAnswer, connect, read_counters
from draftyard_trainer.served import require_shape

KEY = "sesame-7f3a"
REPLY = (5, 6, 7, 8, 9, 2)
"""Six tokens: one of prefill, then rounds of two accepted, none, and one that the end cuts."""
ASKED = Asked(max_new_tokens=6, stop_ids=(2,))


@dataclass
class Server:
    """What a server would say next; `requests` keeps what it was asked."""

    kind: str = "vllm"
    models: list[dict[str, Any]] = field(default_factory=lambda: [{"id": "target"}])
    key: str | None = None
    speculates: bool = True
    extra_tokens: int = 0
    """Of others, counted with every answer."""
    late: int = 0
    """How often old counters are told after an answer."""
    running: int = 0
    status: int | None = None
    tells_ids: bool = True
    drafts: int = 10
    accepted: int = 4
    positions: tuple[int, ...] = (3, 1, 0)
    generated: int = 100
    requests: list[tuple[str, Any]] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)

    def metrics(self) -> str:
        if self.stale:
            return self.stale.pop()
        lines = [
            "# TYPE vllm:generation_tokens counter",
            f'vllm:generation_tokens_total{{engine="0",model_name="t"}} {self.generated}.0',
            "# TYPE vllm:num_requests_running gauge",
            f'vllm:num_requests_running{{engine="0",model_name="t"}} {self.running}.0',
        ]
        if self.speculates:
            counted = {"drafts": self.drafts, "draft_tokens": 3 * self.drafts, "accepted_tokens": self.accepted}
            for name, value in counted.items():
                metric = f"vllm:spec_decode_num_{name}"
                # Several engines of one server count each for itself.
                lines += [f"# TYPE {metric} counter", f'{metric}_total{{engine="0"}} {value}.0',
                          f'{metric}_total{{engine="1"}} 0.0', f'{metric}_created{{engine="0"}} 1.7e+09']  # fmt: skip
            metric = "vllm:spec_decode_num_accepted_tokens_per_pos"
            lines.append(f"# TYPE {metric} counter")
            lines += [f'{metric}_total{{position="{place}"}} {value}.0' for place, value in enumerate(self.positions)]
        return "\n".join(lines) + "\n"

    def answer(self) -> None:
        """Count one answer: three rounds, of which the first accepts two."""
        self.stale = [self.metrics()] * self.late
        self.drafts += 3
        self.accepted += 2
        self.positions = (self.positions[0] + 1, self.positions[1] + 1, self.positions[2])
        self.generated += len(REPLY) + self.extra_tokens

    def respond(self, path: str, body: Any) -> Any:
        """The content behind a path; None where there is nothing."""
        known = {"/v1/models": self.list_models, **(self.of_vllm if self.kind == "vllm" else self.of_sglang)}
        return known[path](body) if path in known else None

    def list_models(self, _body: Any) -> Any:
        told = [{"owned_by": self.kind, **model} if isinstance(model, dict) else model for model in self.models]
        return {"object": "list", "data": told}

    @property
    def of_vllm(self) -> dict[str, Callable[[Any], Any]]:
        return {
            "/version": lambda _: {"version": "0.32.0"},
            "/metrics": lambda _: self.metrics(),
            "/v1/completions": self.complete,
        }

    @property
    def of_sglang(self) -> dict[str, Callable[[Any], Any]]:
        shape = {"speculative_num_steps": 5, "speculative_eagle_topk": 8, "speculative_num_draft_tokens": 64}
        told = {"speculative_algorithm": "EAGLE3", **shape} if self.speculates else {"speculative_algorithm": None}
        return {"/get_server_info": lambda _: {"version": "0.5.9", **told}, "/generate": self.generate}

    def complete(self, body: Any) -> Any:
        ids = REPLY[: body["max_tokens"]]
        if body["max_tokens"] > 1:
            self.answer()
        told = {"token_ids": list(ids)} if self.tells_ids else {}
        return {"choices": [{"text": "", **told}], "usage": {"completion_tokens": len(ids)}}

    def generate(self, body: Any) -> Any:
        ids = REPLY[: body["sampling_params"]["max_new_tokens"]]
        return {"output_ids": list(ids), "meta_info": {"completion_tokens": len(ids), "spec_verify_ct": 3}}


@contextmanager
def listening(server: Server) -> Iterator[str]:
    """The server's address while it runs."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(None)

        def do_POST(self) -> None:
            self.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def reply(self, body: Any) -> None:
            server.requests.append((self.path, body))
            status, content = 200, server.respond(self.path, body)
            if server.key and self.headers.get("Authorization") != f"Bearer {server.key}":
                status, content = 401, {"error": "no key"}
            elif server.status:
                status, content = server.status, {"error": "so it is"}
            elif content is None:
                status, content = 404, {"detail": "Not Found"}
            data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
            self.send_response(status)
            if status == 307:
                self.send_header("Location", "http://elsewhere.invalid/")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_address[1]}"
        finally:
            http.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "POLL_SECONDS", 0.001)
    monkeypatch.setattr(engine, "SETTLE_SECONDS", 0.2)


def measure(url: str, key: str | None) -> ServedAnswer:
    return connect(url, key).answer((1, 2), ASKED)


def refused(server: Server, key: str | None = None) -> Failure:
    with listening(server) as url, pytest.raises(Failure) as caught:
        measure(url, key)
    return caught.value


# -- vLLM -------------------------------------------------------------------------------------------------------


def test_vllm_is_asked_by_token_ids_and_its_counters_are_differences():
    server = Server(key=KEY, late=2)
    with listening(server) as url:
        found = connect(f"{url}/", KEY)
        answers = [found.answer((1, 2, 3), ASKED) for _ in range(2)]
    assert (found.identity.name, found.identity.version, found.identity.steps) == ("vllm", "0.32.0", 3)
    for answer in answers:
        assert (answer.tokens, answer.num_tokens) == (REPLY, 6)
        assert (answer.rounds, answer.accepted, answer.per_position) == (3, 2, (1, 1, 0))
    asked = next(body for path, body in server.requests if path == "/v1/completions")
    assert (asked["prompt"], asked["max_tokens"], asked["stop_token_ids"]) == ([1, 2, 3], 6, [2])
    # The target's generation config may name other values, which a server takes where a request names none.
    assert (asked["temperature"], asked["top_p"], asked["top_k"], asked["repetition_penalty"]) == (0, 1.0, -1, 1.0)


def test_a_server_that_tells_no_ids_is_still_counted():
    with listening(Server(tells_ids=False)) as url:
        found = connect(url, None)
        answer = found.answer((1,), ASKED)
        assert found.first_token((1,)) is None
    assert (answer.tokens, answer.num_tokens, answer.rounds) == (None, 6, 3)


def test_counters_of_a_server_without_a_draft_are_none():
    assert read_counters(Server(speculates=False).metrics()) is None
    counters = read_counters(Server().metrics())
    assert counters is not None
    assert (counters.drafts, counters.accepted, counters.per_position, counters.generated) == (10, 4, (3, 1, 0), 100)


# -- SGLang -----------------------------------------------------------------------------------------------------


def test_sglang_tells_rounds_beside_each_answer():
    server = Server(kind="sglang")
    with listening(server) as url:
        found = connect(url, None)
        answer = found.answer((1, 2), ASKED)
        assert found.first_token((1, 2)) == 5
    assert (found.identity.steps, found.identity.top_k, found.identity.draft_tokens) == (5, 8, 64)
    # Six tokens of which one is of prefill and one of each of three rounds.
    assert (answer.tokens, answer.rounds, answer.accepted, answer.per_position) == (REPLY, 3, 2, None)
    assert [path for path, _ in server.requests][1:3] == ["/server_info", "/get_server_info"]


# -- What cannot be measured --------------------------------------------------------------------------------------

REFUSALS = {
    "no draft": (
        Server(speculates=False), ExitCode.BAD_TASK, "does no speculative decoding; start it with the exported draft",
    ),
    "no draft in SGLang": (Server(kind="sglang", speculates=False), ExitCode.BAD_TASK, "speculative-draft-model-path"),
    "several models": (
        Server(models=[{"id": "a"}, {"id": "b"}]), ExitCode.BAD_TASK, r"serves 2 models \(a, b\); accepted: a server",
    ),
    "another kind of server": (
        Server(kind="llamacpp"), ExitCode.BAD_TASK, "is a server of llamacpp; accepted: vllm, sglang",
    ),
    "others wait": (Server(running=2), ExitCode.UNAVAILABLE, r"answers others at the same time \(2 requests"),
    "others are answered": (Server(extra_tokens=4), ExitCode.UNAVAILABLE, "counts 10 tokens for an answer of 6"),
    "an answer that is never counted": (Server(late=9999), ExitCode.UNAVAILABLE, "counts 0 tokens for an answer of 6"),
    "a key that it does not take": (
        Server(key="other"), ExitCode.DENIED, r"refuses access \(401\); set evaluate.engine.secretRef",
    ),
    "it is overloaded": (Server(status=503), ExitCode.UNAVAILABLE, "answers 503"),
    "it does not like what is asked": (Server(status=400), ExitCode.BAD_TASK, "answers 400: .*so it is"),
    "it sends us elsewhere": (Server(status=307), ExitCode.BAD_TASK, r"leads elsewhere \(307\)"),
    "an answer in another form": (
        Server(models=["a"]), ExitCode.BAD_TASK, "answers in a form that is not known",  # type: ignore[list-item]
    ),
    "no server of models": (
        Server(status=404), ExitCode.BAD_TASK, "does not exist; accepted: a server of vLLM or SGLang",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("server", "code", "message"), REFUSALS.values(), ids=REFUSALS.keys())
def test_what_is_wrong_is_said(server, code, message):
    failure = refused(server, key=KEY)
    assert failure.code == code
    assert failure.message.startswith("evaluate.engine")
    assert re.search(message, failure.message)
    assert KEY not in failure.message


def test_a_server_that_is_not_there_may_be_there_later():
    with pytest.raises(Failure, match="does not answer") as caught:
        connect("http://127.0.0.1:9", None)
    assert caught.value.code == ExitCode.UNAVAILABLE


def test_adapters_of_the_target_are_no_models_of_their_own():
    with listening(Server(models=[{"id": "target"}, {"id": "adapter", "parent": "target"}])) as url:
        assert connect(url, None).identity.model == "target"


def test_a_key_is_not_shown():
    with listening(Server(key=KEY)) as url:
        # As a Secret made from a file holds it.
        assert KEY not in repr(connect(url, f"{KEY}\n"))


def test_a_key_that_no_header_can_hold_is_refused_and_not_shown():
    failure = refused(Server(), key=f"{KEY}\nX: y")
    assert failure.code == ExitCode.BAD_TASK
    assert KEY not in failure.message


def settings(draft_tokens: int, tree: Tree | None = None) -> Settings:
    return Settings(draft_tokens=draft_tokens, max_prompts=1, max_new_tokens=1, tree=tree)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("vllm", settings(3), None),
        ("vllm", settings(5), "proposes 3 steps, topK 1; accepted: 5 steps, topK 1, as evaluate.draftTokens says"),
        ("sglang", settings(5, Tree()), None),
        ("sglang", settings(5), "proposes 5 steps, topK 8; accepted: 5 steps, topK 1, as evaluate.draftTokens says"),
        (
            "sglang", settings(5, Tree(draft_tokens=32)),
            "proposes 5 steps, topK 8, 64 tokens; accepted: 5 steps, topK 8, 32 tokens, as evaluate.tree says",
        ),
        ("vllm", settings(5, Tree()), "proposes 3 steps, topK 1; accepted: 5 steps, topK 8, 64 tokens"),
    ],
    ids=["a chain", "another chain", "a tree", "a tree for a chain", "another tree", "a chain for a tree"],
)  # fmt: skip
def test_a_server_must_propose_as_the_run_says(kind, settings, message):
    with listening(Server(kind=kind)) as url:
        identity = connect(url, None).identity
    if message is None:
        require_shape(identity, settings)
        return
    with pytest.raises(Failure, match=message) as caught:
        require_shape(identity, settings)
    assert caught.value.code == ExitCode.BAD_TASK
