"""A server with an OpenAI-compatible interface that answers for the target: `POST <url>/chat/completions`.

It renders conversations with its own template and samples with its own numbers, so only the text comes from it. A
key is sent to the host of the URL and to nobody else: redirects are refused.
"""

from __future__ import annotations

import json
import os
import queue
import threading
import urllib.error
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from http.client import HTTPException
from typing import Any

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.names import ENV_ENGINE_KEY
from draftyard_api.reasons import Reason
from draftyard_api.spec import ChatEngine
from draftyard_trainer.connection import send, usable
from draftyard_trainer.data.conversation import Message, UnusableRowError, read_message
from draftyard_trainer.dialogue import Question, Reply
from draftyard_trainer.target.sampling import draw_keys

WAITS_SECONDS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Before each further try while the server is out of reach, overloaded or starting: about a minute."""
LONGEST_WAIT_SECONDS = 120.0
"""What a server may ask for in Retry-After."""
ANSWER_SECONDS = 1800.0
"""Without a byte from the server: an answer of thousands of tokens on a loaded server comes late."""
LOOK_SECONDS = 1.0
"""Between two looks at signals while answers are waited for."""
AGAIN = (
    HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.INTERNAL_SERVER_ERROR,
    HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT,
)  # fmt: skip
FIELD = "data.regenerate.engine"
SHOWN = 300
"""Characters of what a server says about an error."""


@dataclass(frozen=True)
class Asking:
    """What is the same in every question."""

    model: str
    temperature: float
    seed: int
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    stop: tuple[str, ...] = ()

    def body(self, question: Question) -> dict[str, Any]:
        """The request, in the fields that vLLM and SGLang share with OpenAI's interface."""
        key = int(draw_keys(self.seed, [question.row], [question.turn])[0])
        drawn = {"seed": key >> 33} if self.temperature > 0 else {}
        kwargs = {"chat_template_kwargs": dict(self.template_kwargs)} if self.template_kwargs else {}
        tools = {"tools": list(question.conversation.tools)} if question.conversation.tools else {}
        return {
            "model": self.model,
            "messages": [wire(message) for message in question.conversation.messages],
            "max_tokens": question.limit,
            "temperature": self.temperature,
            **drawn,
            **({"stop": list(self.stop)} if self.stop else {}),
            **kwargs,
            **tools,
        }


def wire(message: Message) -> dict[str, Any]:
    """A message as the interface has it: arguments of calls are texts there."""
    made = message.for_template()
    if message.tool_calls:
        made["tool_calls"] = [with_text_arguments(call) for call in message.tool_calls]
    return made


def with_text_arguments(call: Any) -> Any:
    """A call whose arguments are a text."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or isinstance(function.get("arguments"), str):
        return call
    return {**call, "function": {**function, "arguments": json.dumps(function.get("arguments"))}}


@dataclass(frozen=True, eq=False)
class EngineSpeaker:
    """The target behind a URL."""

    engine: ChatEngine
    asking: Asking
    look: Callable[[], None]
    """Called now and then; may end the stage."""
    pause: Callable[[threading.Event, float], object] = threading.Event.wait
    """Waits before a further try, unless all is over by then."""
    waits_seconds: tuple[float, ...] = WAITS_SECONDS
    device: str = "engine"

    def answer(self, questions: Sequence[Question]) -> list[Reply | None]:
        """A reply to each question, `concurrency` of them at a time.

        Raises Failure: DENIED when the server refuses us, NOT_FOUND when it does not serve the model, UNAVAILABLE when
        it is out of reach after all tries, BAD_TASK when it does not take what it is asked.
        """
        waiting = deque(enumerate(questions))
        answered: queue.SimpleQueue[tuple[int, Reply | Exception]] = queue.SimpleQueue()
        over = threading.Event()

        def work() -> None:
            while not over.is_set():
                try:
                    place, question = waiting.popleft()
                except IndexError:
                    return
                try:
                    answered.put((place, self._ask(question, over)))
                except Exception as error:  # whoever waits for the answer raises it
                    answered.put((place, error))

        # daemons: a stage that is told to stop does not wait for answers that nobody will read
        for _ in range(min(self.engine.concurrency, len(questions))):
            threading.Thread(target=work, name="ask", daemon=True).start()
        try:
            replies = self._gather(answered, len(questions))
        finally:
            over.set()
        return [replies[place] for place in range(len(questions))]

    def _gather(self, answered: queue.SimpleQueue[tuple[int, Reply | Exception]], number: int) -> dict[int, Reply]:
        """So many answers, by place. Raises what the first one raised that failed, and what `look` raises."""
        replies: dict[int, Reply] = {}
        while len(replies) < number:
            self.look()
            try:
                place, made = answered.get(timeout=LOOK_SECONDS)
            except queue.Empty:
                continue
            if isinstance(made, Exception):
                raise made
            replies[place] = made
        return replies

    def _ask(self, question: Question, over: threading.Event) -> Reply:
        """One question, again while it makes sense. Raises Failure."""
        body = json.dumps(self.asking.body(question)).encode("utf-8", "replace")
        for wait in (*self.waits_seconds, None):
            try:
                return read_reply(self._post(body), question.limit)
            except urllib.error.HTTPError as error:
                if error.code not in AGAIN:
                    raise refused(self.engine.url, self.asking.model, error) from error
                why, asked_for = f"it answers {error.code}: {said(error)}", retry_after(error)
            except (OSError, HTTPException) as error:
                why, asked_for = str(getattr(error, "reason", error)), 0.0
            if wait is None:
                raise unavailable(self.engine.url, why, len(self.waits_seconds) + 1)
            self.pause(over, max(wait, asked_for))
        raise AssertionError("the last try returns or raises")

    def _post(self, body: bytes) -> bytes:
        """The answer of the server. Raises Failure for a key that no header holds, and as `send` does."""
        key = usable(os.environ.get(ENV_ENGINE_KEY), f"{FIELD}.secretRef")
        return send(f"{self.engine.url.rstrip('/')}/chat/completions", body, key, ANSWER_SECONDS)


# -- What comes back ------------------------------------------------------------------------------


def read_reply(content: bytes, limit: int) -> Reply:
    """The message in an answer. Raises Failure(BAD_TASK) for anything that is no chat completion."""
    try:
        answer = json.loads(content)
        (choice, *_) = answer["choices"]
        given = choice["message"]
        message = read_message({**given, "role": "assistant", **thoughts(given)})
        tokens = int((answer.get("usage") or {}).get("completion_tokens") or 0)
        is_unfinished = choice.get("finish_reason") == "length"
    except (ValueError, KeyError, TypeError, AttributeError, UnusableRowError) as error:
        excerpt = content[:SHOWN].decode("utf-8", "replace")
        message_text = f"{FIELD}: its answer is no chat completion ({excerpt}); accepted: an OpenAI-compatible server"
        raise Failure(ExitCode.BAD_TASK, Reason.TASK_REJECTED, message_text) from error
    own = Message("assistant", message.content, message.tool_calls, message.carried, is_unfinished)
    return Reply(own, min(tokens, limit) if tokens else 0)


def thoughts(given: Mapping[str, Any]) -> dict[str, Any]:
    """What a server has parted from the answer, under the name that chat templates read."""
    found = given.get("reasoning_content") or given.get("reasoning")
    return {"reasoning_content": found} if isinstance(found, str) and found else {}


def said(error: urllib.error.HTTPError) -> str:
    """The beginning of what a server says about an error."""
    try:
        return " ".join(error.read(4 * SHOWN).decode("utf-8", "replace").split())[:SHOWN] or str(error.reason)
    except (OSError, HTTPException):
        return str(error.reason)


def retry_after(error: urllib.error.HTTPError) -> float:
    """Seconds that a server asks to wait; 0 where it does not, or names a date."""
    text = error.headers.get("Retry-After") or ""
    return min(float(text), LONGEST_WAIT_SECONDS) if text.isdecimal() else 0.0


def refused(url: str, model: str, error: urllib.error.HTTPError) -> Failure:
    """The end of a stage whose questions are not taken."""
    what = f"{FIELD}: {url} answers {error.code}: {said(error)}"
    if error.code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        todo = f"set {FIELD}.secretRef to a Secret with a {ENV_ENGINE_KEY} that it takes"
        return Failure(ExitCode.DENIED, Reason.MODEL_ACCESS_DENIED, f"{what}; {todo}")
    if error.code == HTTPStatus.NOT_FOUND:
        todo = f"check {FIELD}.url, and {FIELD}.model: given {model}; accepted: a name in {url}/models"
        return Failure(ExitCode.NOT_FOUND, Reason.MODEL_NOT_FOUND, f"{what}; {todo}")
    todo = "accepted: a server that takes data.maxLength tokens, data.templateKwargs and these conversations"
    return Failure(ExitCode.BAD_TASK, Reason.TASK_REJECTED, f"{what}; {todo}")


def unavailable(url: str, why: str, tries: int) -> Failure:
    """The end of an attempt: a later one may find the server."""
    message = f"{FIELD}: {url} is out of reach after {tries} tries: {why}"
    return Failure(ExitCode.UNAVAILABLE, Reason.STORAGE_UNAVAILABLE, message)
