"""Questions that a target is asked to judge a draft: well-known sets, and files of one's own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from draftyard_api import storage_uri
from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.reasons import Reason
from draftyard_api.schema import PromptSet
from draftyard_api.spec import PromptFile
from draftyard_trainer.data.conversation import (
    QUESTIONS,
    Message,
    SkipReason,
    UnusableRowError,
    read_list,
    read_messages,
    well_ordered,
)
from draftyard_trainer.data.files import BadRow, content_sha256, read_rows
from draftyard_trainer.data.presets.preset import Published

TABLES: Mapping[str, Published] = {
    "mt-bench": Published("HuggingFaceH4/mt_bench_prompts"),
    # The split that no preset trains on.
    "gsm8k": Published("openai/gsm8k", "main", split="test"),
    "humaneval": Published("openai/openai_humaneval", split="test"),
}
ACCEPTED = f"messages or conversations, turns, or one of {', '.join(QUESTIONS)} (and input, system)"


@dataclass(frozen=True)
class Question:
    """What is put to the target: messages before its first answer, and what is asked after each answer."""

    opening: tuple[Message, ...]
    further: tuple[str, ...] = ()
    tools: tuple[Any, ...] = ()


def read_question(row: object) -> Question | SkipReason:
    """Read a row; answers in it are left out. Never raises: a row that cannot be used has a reason."""
    try:
        return question_of(row)
    except UnusableRowError as error:
        return error.reason
    except RecursionError:
        return SkipReason.MALFORMED


def question_of(row: object) -> Question:
    """The question of a row. Raises UnusableRowError."""
    if not isinstance(row, Mapping):
        raise UnusableRowError(SkipReason.NOT_AN_OBJECT)
    # MT-Bench: `turns` in its first publication, a list in `prompt` in a later one.
    turns = row.get("turns") or row.get("prompt")
    if isinstance(turns, Sequence) and not isinstance(turns, str):
        return of_turns(turns)
    said = row.get("conversations") or row.get("messages")
    if said:
        return Question(opening_of(well_ordered(read_messages(said))), (), read_list(row.get("tools")))
    return of_columns(row)


def of_turns(turns: Sequence[object]) -> Question:
    """Questions one after the other, each asked when the one before it is answered. Raises UnusableRowError."""
    texts = [turn for turn in turns if isinstance(turn, str) and turn]
    if len(texts) != len(turns):
        raise UnusableRowError(SkipReason.MALFORMED)
    if not texts:
        raise UnusableRowError(SkipReason.EMPTY)
    return Question((Message("user", texts[0]),), tuple(texts[1:]))


def opening_of(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """What was said before the first answer. Raises UnusableRowError when nobody asked."""
    first = next((place for place, message in enumerate(messages) if message.role == "assistant"), len(messages))
    if all(message.role != "user" for message in messages[:first]):
        raise UnusableRowError(SkipReason.EMPTY)
    return messages[:first]


def of_columns(row: Mapping[str, Any]) -> Question:
    """A question in a column of its own. Raises UnusableRowError."""
    asked = [row[name] for name in QUESTIONS if row.get(name) is not None]
    if not asked:
        raise UnusableRowError(SkipReason.EMPTY)
    more = row.get("input")
    # Two questions in one row: which of them is meant is not guessed.
    if len(asked) > 1 or not isinstance(asked[0], str) or not isinstance(more, str | None):
        raise UnusableRowError(SkipReason.MALFORMED)
    system = (Message("system", str(row["system"])),) if row.get("system") else ()
    return Question((*system, Message("user", f"{asked[0]}\n\n{more}" if more else asked[0])))


@dataclass(frozen=True)
class QuestionSource:
    """One set of questions."""

    name: PromptSet
    file: PromptFile | None = None
    """With the set `file`: where it lies, as an absolute `file://` location."""

    def rows(self) -> Iterator[Any | BadRow]:
        """Rows, always in the same order. Raises Failure: NOT_FOUND, UNAVAILABLE, DENIED, BAD_DATA."""
        if self.name == "file":
            yield from read_rows(file_path(self.file))
            return
        # It brings the hub's library along, which files do not need.
        from draftyard_trainer.data.presets import loading  # noqa: PLC0415

        yield from loading.load(TABLES[self.name], f"evaluate.promptSets {self.name}")


def file_path(file: PromptFile | None) -> Path:
    """Where own prompts lie. Raises Failure(NOT_FOUND)."""
    assert file is not None
    path = storage_uri.local_path(file.uri)
    if path is None or not path.exists():
        message = f"evaluate.promptFile.uri: given {file.uri}; accepted: a file or a folder that exists"
        raise Failure(ExitCode.NOT_FOUND, Reason.DATA_NOT_FOUND, message)
    return path


def file_sha256(file: PromptFile | None) -> str | None:
    """Hash of the content of own prompts; None where there are none. Raises Failure(NOT_FOUND)."""
    return None if file is None else content_sha256(file_path(file))


def require_questions(source: QuestionSource) -> None:
    """Raises Failure when there is no question in a set: said before hours of training, not after them."""
    first: SkipReason | None = None
    for row in source.rows():
        read = row.reason if isinstance(row, BadRow) else read_question(row)
        if isinstance(read, Question):
            return
        first = first or read
    why = f"its first row is {first}" if first else "it has no rows"
    message = f"evaluate.promptSets: {source.name} has no question ({why}); accepted: rows with {ACCEPTED}"
    raise Failure(ExitCode.BAD_DATA, Reason.DATA_REJECTED, message)


def digest(texts: Sequence[str]) -> str:
    """Hash of texts, none of which can move into its neighbour."""
    said = "".join(f"{len(text)}\0{text}" for text in texts)
    return hashlib.sha256(said.encode("utf-8", "surrogatepass")).hexdigest()
