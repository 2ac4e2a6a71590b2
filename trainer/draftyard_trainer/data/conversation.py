"""One row of a data set as a conversation: roles made equal, and cut where its order breaks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

# ShareGPT has 7 names for 3 roles; a name that is not here (function_call, observation) is not guessed at, since a
# wrong guess would supervise text that the target never writes
ROLES: Mapping[str, str] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
}
FOLLOWS: Mapping[str, tuple[str, ...]] = {"assistant": ("user", "tool"), "tool": ("assistant", "tool")}
"""Roles that must answer something, and what; any other role may come at any place."""

QUESTIONS = ("prompt", "instruction", "question")
ANSWERS = ("response", "output", "answer", "completion")
"""Columns of rows with one question and one answer; `input` goes on with the question, `system` comes before it."""
ACCEPTED = (
    f"messages, conversations, text, or one of {', '.join(QUESTIONS)} with one of {', '.join(ANSWERS)} "
    "(and input, system)"
)
"""Columns that a row can be read from."""

CARRIED = ("name", "tool_call_id", "reasoning_content", "thinking")
"""Further keys of a message that chat templates read; they are passed on as they are."""
UNFINISHED = "unfinished"
"""Key of an answer that was cut at a limit."""


class SkipReason(StrEnum):
    """Why a row gave no document."""

    BAD_JSON = "badJson"
    TRUNCATED = "truncated"
    NOT_AN_OBJECT = "notAnObject"
    EMPTY = "empty"
    MALFORMED = "malformed"
    UNKNOWN_ROLE = "unknownRole"
    NO_ASSISTANT = "noAssistant"
    TEMPLATE_ERROR = "templateError"
    RENDERED = "rendered"
    TOO_LONG = "tooLong"
    NOT_FINITE = "notFinite"
    NO_LOSS = "noLoss"


class UnusableRowError(ValueError):
    """A row that gives no conversation, and why."""

    def __init__(self, reason: SkipReason) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Message:
    """What one side said, as a chat template reads it."""

    role: str
    content: str
    tool_calls: tuple[Any, ...] = ()
    carried: tuple[tuple[str, Any], ...] = ()
    is_unfinished: bool = False
    """An answer that was cut at a limit: its end is not what anybody said, and is not learned."""

    def for_template(self) -> dict[str, Any]:
        """The message as chat templates expect it; an absent key is safer than a None or an empty list."""
        calls = {"tool_calls": list(self.tool_calls)} if self.tool_calls else {}
        return {"role": self.role, "content": self.content, **calls, **dict(self.carried)}


@dataclass(frozen=True)
class Conversation:
    """`messages` (and `tools`), or `text` that is rendered already; exactly one of the two is filled."""

    id: str
    messages: tuple[Message, ...] = ()
    tools: tuple[Any, ...] = ()
    text: str | None = None

    def upto(self, turn: int) -> Conversation:
        """The conversation as it was when message `turn` had just been said."""
        return replace(self, messages=self.messages[: turn + 1])

    def assistant_turns(self) -> list[int]:
        """Places of the assistant's messages."""
        return [place for place, message in enumerate(self.messages) if message.role == "assistant"]


def read_row(row: object) -> Conversation | SkipReason:
    """Read a ShareGPT, OpenAI or preformatted row. Never raises: a row that cannot be used has a reason."""
    try:
        return conversation_of(row)
    except UnusableRowError as error:
        return error.reason
    # parsers take deeper values than Python can walk through
    except RecursionError:
        return SkipReason.MALFORMED


def conversation_of(row: object) -> Conversation:
    """The conversation of a row: roles made equal, a leading part without a user dropped. Raises UnusableRowError."""
    if not isinstance(row, Mapping):
        raise UnusableRowError(SkipReason.NOT_AN_OBJECT)
    # an empty list counts as absent: exports write both keys and fill one
    turns = row.get("conversations") or row.get("messages")
    if not turns and row.get("text"):
        return Conversation(row_id(row), text=read_text(row["text"]))
    if not turns:
        turns = read_pair(row)
    messages = well_ordered(read_messages(turns))
    if all(message.role != "assistant" for message in messages):
        raise UnusableRowError(SkipReason.NO_ASSISTANT)
    return Conversation(row_id(row), messages, read_list(row.get("tools")))


def read_pair(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The turns of a row with one question and one answer. Raises UnusableRowError."""
    questions = [name for name in QUESTIONS if row.get(name) is not None]
    answers = [name for name in ANSWERS if row.get(name) is not None]
    if not (questions and answers):
        raise UnusableRowError(SkipReason.EMPTY)
    # `prompt` beside `instruction`: which one the answer answers is a guess, and a wrong one trains on nonsense
    if len(questions) > 1 or len(answers) > 1:
        raise UnusableRowError(SkipReason.MALFORMED)
    asked, more = row[questions[0]], row.get("input")
    if not isinstance(asked, str) or not isinstance(more, str | None):
        raise UnusableRowError(SkipReason.MALFORMED)
    system = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    question = {"role": "user", "content": f"{asked}\n\n{more}" if more else asked}
    return [*system, question, {"role": "assistant", "content": row[answers[0]]}]


def row_id(row: Mapping[str, Any]) -> str:
    """The row's own id, or the hash of the row with its keys sorted: equal rows share it in every file."""
    # ShareGPT has 123 duplicate ids; such rows fall into the same split, which is all that ids are for
    given = row.get("id")
    if isinstance(given, str | int) and given != "":
        return str(given)
    canonical = json.dumps(row, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


def read_messages(turns: object) -> tuple[Message, ...]:
    """All messages in their order. Raises UnusableRowError."""
    if not isinstance(turns, Sequence) or isinstance(turns, str):
        raise UnusableRowError(SkipReason.MALFORMED)
    return tuple(read_message(turn) for turn in turns)


def read_message(turn: object) -> Message:
    """One message; `None` content is empty text. Raises UnusableRowError."""
    if not isinstance(turn, Mapping):
        raise UnusableRowError(SkipReason.MALFORMED)
    # `role` before `from`: rows with both are converted ones, whose `from` is the older spelling
    speaker = turn.get("role", turn.get("from"))
    role = ROLES.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        raise UnusableRowError(SkipReason.UNKNOWN_ROLE)
    carried = tuple((key, turn[key]) for key in CARRIED if turn.get(key) is not None)
    content = read_text(turn.get("content", turn.get("value")))
    is_unfinished = turn.get(UNFINISHED) is True
    return Message(role, content, read_tool_calls(turn.get("tool_calls")), carried, is_unfinished)


def well_ordered(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """A leading system message and all from the first user message on, up to the first answer to nobody."""
    # 6,401 of ShareGPT's 17,671 conversations do not start with a question: they are parts of longer ones
    system = messages[:1] if messages[0].role == "system" else ()
    rest = messages[len(system) :]
    first_user = next((place for place, message in enumerate(rest) if message.role == "user"), len(rest))
    rest = rest[first_user:]
    # what stands before the violation is a whole conversation; what comes after it answers something that is missing
    for place, message in enumerate(rest[1:], start=1):
        if message.role in FOLLOWS and rest[place - 1].role not in FOLLOWS[message.role]:
            return system + rest[:place]
    return system + rest


def read_text(value: object) -> str:
    """Content as text: None is empty, a list of text parts is joined. Raises UnusableRowError for anything else."""
    if value is None:
        return ""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "".join(read_part(part) for part in value)
    if not isinstance(value, str):
        raise UnusableRowError(SkipReason.MALFORMED)
    return value


def read_part(part: object) -> str:
    """One part of a content list: only text can be learned from."""
    if isinstance(part, Mapping) and part.get("type", "text") == "text":
        return read_text(part.get("text"))
    raise UnusableRowError(SkipReason.MALFORMED)


def read_list(value: object) -> tuple[Any, ...]:
    """`tools` or `tool_calls`: a list, or JSON text of one; None and empty lists mean none. Raises UnusableRowError."""
    # some exports hold lists as JSON text, so that every row has the same columns; an empty one must not cost the row
    decoded = decoded_or_as_it_is(value) if isinstance(value, str) and value else value
    if not decoded:
        return ()
    if not isinstance(decoded, Sequence) or isinstance(decoded, str):
        raise UnusableRowError(SkipReason.MALFORMED)
    return tuple(decoded)


def read_tool_calls(value: object) -> tuple[Any, ...]:
    """The calls with their arguments as objects, which is what templates iterate over."""
    return tuple(with_decoded_arguments(call) for call in read_list(value))


def with_decoded_arguments(call: object) -> object:
    """OpenAI sends arguments as JSON text, inside `function` or flat; text that is no JSON stays as it is."""
    if not isinstance(call, Mapping):
        return call
    # a copy: the row belongs to its reader
    decoded = dict(call)
    if isinstance(decoded.get("arguments"), str):
        decoded["arguments"] = decoded_or_as_it_is(decoded["arguments"])
    if isinstance(decoded.get("function"), Mapping):
        decoded["function"] = with_decoded_arguments(decoded["function"])
    return decoded


def decoded_or_as_it_is(text: str) -> Any:
    """The value that `text` spells, or `text` itself."""
    try:
        return decode_json(text)
    except ValueError:
        return text


def decode_json(text: str) -> Any:
    """The value that `text` spells, with U+FFFD in place of half surrogate pairs. Raises ValueError.

    JSON can spell half an emoji, which has no UTF-8: the tokenizer would end the stage at it.
    """
    # not strict: real exports have raw line feeds and tabs inside strings
    value = json.loads(text, strict=False)
    if "\\ud" not in text.lower():
        return value
    plain = json.dumps(value, ensure_ascii=False)
    return json.loads(plain.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace"))
