"""A running vLLM or SGLang server, asked for answers and for what it counted on the way. Its own module: no torch.

Prompts go as token ids, one at a time, so that what is counted in between belongs to one answer. Of vLLM that is the
difference of its Prometheus counters, of SGLang the counts beside each answer: its gauge of the acceptance length
(`sglang:spec_accept_length`) is a mean of the last moments, of which no difference can be taken.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from prometheus_client.parser import text_string_to_metric_families

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.reasons import Reason
from draftyard_trainer.connection import URL_FIELD, Connection, rejected, usable

SETTLE_SECONDS = 10.0
"""How long the counters of a finished answer may take to be told."""
POLL_SECONDS = 0.02
SPECULATION = "vllm:spec_decode_num_"


@dataclass(frozen=True)
class Asked:
    """What every prompt is answered under."""

    max_new_tokens: int
    stop_ids: tuple[int, ...]
    temperature: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Identity:
    """Which server it is."""

    name: str
    """vllm or sglang."""
    version: str
    model: str
    """As it calls the target."""
    steps: int | None
    """Tokens that its draft looks ahead, as far as it says so."""
    top_k: int = 1
    draft_tokens: int | None = None
    """Of a tree, the verified token included."""


@dataclass(frozen=True)
class ServedAnswer:
    """One answer, and what the server counted for it."""

    tokens: tuple[int, ...] | None
    """Token ids; None where the server does not tell them."""
    num_tokens: int
    rounds: int
    accepted: int
    per_position: tuple[int, ...] | None
    """Rounds in which proposals 0..i were all accepted; None where the server does not count them."""
    seconds: float


class Engine(Protocol):
    """A server that speculates."""

    @property
    def identity(self) -> Identity:
        """Which one."""
        ...

    def first_token(self, prompt: Sequence[int]) -> int | None:
        """The most likely token behind a prompt; None where the server does not tell ids."""
        ...

    def answer(self, prompt: Sequence[int], asked: Asked) -> ServedAnswer:
        """Ask one prompt, alone. Raises Failure when others were answered at the same time."""
        ...


def connect(url: str, key: str | None) -> Engine:
    """Find out what listens there.

    Raises Failure: UNAVAILABLE when nothing answers, DENIED when the key is refused, BAD_TASK for what is no vLLM or
    SGLang, serves several models, or does not speculate.
    """
    connection = Connection(url, usable(key, URL_FIELD))
    with understood(connection.url):
        served = [one for one in connection.get("/v1/models")["data"] if not one.get("parent")]
    if len(served) != 1:
        names = ", ".join(str(one.get("id")) for one in served) or "none"
        raise rejected(f"{url} serves {len(served)} models ({names}); accepted: a server of the target alone")
    match served[0].get("owned_by"):
        case "vllm":
            return Vllm.of(connection, served[0]["id"])
        case "sglang":
            return Sglang.of(connection, served[0]["id"])
        case other:
            raise rejected(f"{url} is a server of {other}; accepted: vllm, sglang")


@contextmanager
def understood(url: str) -> Iterator[None]:
    """Raises Failure(BAD_TASK) where a server answers in another form than is known of it."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        what = f"{url} answers in a form that is not known ({type(error).__name__}: {error})"
        raise rejected(f"{what}; accepted: a server of vLLM or SGLang") from error


def no_speculation(url: str, how: str) -> Failure:
    """A server without a draft."""
    return rejected(f"{url} does no speculative decoding; start it with the exported draft ({how})")


# -- vLLM -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Counters:
    """What vLLM has counted since it started, over all its engines."""

    drafts: int
    accepted: int
    per_position: tuple[int, ...]
    generated: int
    busy: int
    """Requests that run or wait now."""


@dataclass(frozen=True)
class Vllm:
    """A vLLM server."""

    connection: Connection
    identity: Identity

    @classmethod
    def of(cls, connection: Connection, model: str) -> Vllm:
        """Raises Failure(BAD_TASK) for a server without a draft, or one that is busy with others."""
        counters = read_counters(connection.text("/metrics"))
        if counters is None:
            raise no_speculation(connection.url, "--speculative-config")
        if counters.busy:
            raise others_ask(connection.url, f"{counters.busy} requests run or wait")
        version = str(connection.get("/version").get("version", "unknown"))
        return cls(connection, Identity("vllm", version, model, len(counters.per_position) or None))

    def first_token(self, prompt: Sequence[int]) -> int | None:
        """The most likely token behind a prompt."""
        tokens, _ = complete(self.connection, self.identity.model, prompt, Asked(max_new_tokens=1, stop_ids=()))
        return tokens[0] if tokens else None

    def answer(self, prompt: Sequence[int], asked: Asked) -> ServedAnswer:
        """Ask one prompt, and take the difference of all counters."""
        before = self._counters()
        started = time.monotonic()
        tokens, count = complete(self.connection, self.identity.model, prompt, asked)
        seconds = time.monotonic() - started
        after = self._settled(before, count)
        positions = zip(after.per_position, before.per_position, strict=True)
        return ServedAnswer(
            tokens=tokens,
            num_tokens=count,
            rounds=after.drafts - before.drafts,
            accepted=after.accepted - before.accepted,
            per_position=tuple(now - then for now, then in positions) or None,
            seconds=seconds,
        )

    def _counters(self) -> Counters:
        counters = read_counters(self.connection.text("/metrics"))
        if counters is None:
            raise no_speculation(self.connection.url, "--speculative-config")
        return counters

    def _settled(self, before: Counters, count: int) -> Counters:
        """The counters once they hold an answer of `count` tokens, and nothing else."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            after = self._counters()
            seen = after.generated - before.generated
            if seen == count:
                return after
            if seen > count or time.monotonic() > deadline:
                raise others_ask(self.connection.url, f"it counts {seen} tokens for an answer of {count}")
            time.sleep(POLL_SECONDS)


def complete(
    connection: Connection, model: str, prompt: Sequence[int], asked: Asked
) -> tuple[tuple[int, ...] | None, int]:
    """Token ids of an answer, where the server tells them, and their number.

    The model's own generation defaults must not count, so all of them are named.
    """
    body = {
        "model": model, "prompt": list(prompt), "max_tokens": asked.max_new_tokens, "temperature": asked.temperature,
        "seed": asked.seed, "stop_token_ids": list(asked.stop_ids), "top_p": 1.0, "top_k": -1, "min_p": 0.0,
        "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "return_token_ids": True,
        "stream": False,
    }  # fmt: skip
    answer = connection.post("/v1/completions", body)
    with understood(connection.url):
        ids = answer["choices"][0].get("token_ids")
        return None if ids is None else tuple(ids), int(answer["usage"]["completion_tokens"])


def read_counters(text: str) -> Counters | None:
    """What a vLLM has counted, out of its metrics; None where it counts no speculation."""
    values: dict[str, float] = {}
    positions: dict[int, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            name = sample.name.removesuffix("_total")
            if name == f"{SPECULATION}accepted_tokens_per_pos":
                place = int(sample.labels["position"])
                positions[place] = positions.get(place, 0) + sample.value
            elif not name.endswith(("_created", "_bucket")):
                values[name] = values.get(name, 0) + sample.value
    if f"{SPECULATION}drafts" not in values:
        return None
    return Counters(
        drafts=int(values[f"{SPECULATION}drafts"]),
        accepted=int(values.get(f"{SPECULATION}accepted_tokens", 0)),
        per_position=tuple(int(positions[place]) for place in sorted(positions)),
        generated=int(values.get("vllm:generation_tokens", 0)),
        busy=int(values.get("vllm:num_requests_running", 0) + values.get("vllm:num_requests_waiting", 0)),
    )


def others_ask(url: str, why: str) -> Failure:
    """What is counted belongs to others, too. It may be over at the next attempt."""
    message = f"{URL_FIELD}: {url} answers others at the same time ({why}); accepted: a server that nobody "
    return Failure(ExitCode.UNAVAILABLE, Reason.STORAGE_UNAVAILABLE, f"{message}else asks meanwhile")


# -- SGLang ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sglang:
    """An SGLang server. Its own endpoint takes and tells token ids, and the rounds of each answer."""

    connection: Connection
    identity: Identity

    @classmethod
    def of(cls, connection: Connection, model: str) -> Sglang:
        """Raises Failure(BAD_TASK) for a server without a draft."""
        info = connection.get("/server_info", "/get_server_info")
        if not info.get("speculative_algorithm"):
            raise no_speculation(connection.url, "--speculative-draft-model-path")
        identity = Identity(
            "sglang",
            str(info.get("version", "unknown")),
            model,
            info.get("speculative_num_steps"),
            int(info.get("speculative_eagle_topk") or 1),
            info.get("speculative_num_draft_tokens"),
        )
        return cls(connection, identity)

    def first_token(self, prompt: Sequence[int]) -> int | None:
        """The most likely token behind a prompt."""
        ids = self._generate(prompt, Asked(max_new_tokens=1, stop_ids=())).get("output_ids")
        return int(ids[0]) if ids else None

    def answer(self, prompt: Sequence[int], asked: Asked) -> ServedAnswer:
        """Ask one prompt; what is counted for it stands beside it, whoever else asks."""
        started = time.monotonic()
        answer = self._generate(prompt, asked)
        with understood(self.connection.url):
            told, ids = answer["meta_info"], answer.get("output_ids")
            count, rounds = int(told["completion_tokens"]), int(told["spec_verify_ct"])
        # The first token comes from prefill, and each round adds one to those that it accepts.
        accepted = max(count - 1 - rounds, 0)
        seconds = time.monotonic() - started
        return ServedAnswer(None if ids is None else tuple(ids), count, rounds, accepted, None, seconds)

    def _generate(self, prompt: Sequence[int], asked: Asked) -> dict[str, Any]:
        sampling = {
            "max_new_tokens": asked.max_new_tokens, "temperature": asked.temperature, "top_p": 1.0, "top_k": -1,
            "min_p": 0.0, "repetition_penalty": 1.0, "stop_token_ids": list(asked.stop_ids),
        }  # fmt: skip
        return self.connection.post("/generate", {"input_ids": list(prompt), "sampling_params": sampling})
