"""Conversations that are held anew: what the user says is kept, what the assistant says is the target's own.

Turn by turn, in order: the target reads its own earlier answers, as it would when it is served. All conversations of a
part go on together, so that their questions can be answered in batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from tokenizers import Tokenizer

from draftyard_trainer.data.conversation import UNFINISHED, Conversation, Message, SkipReason, read_row
from draftyard_trainer.data.conversations import SKIPPED, Line
from draftyard_trainer.data.document import Ids
from draftyard_trainer.data.files import BadRow
from draftyard_trainer.data.template import ChatTemplate, RenderError


@dataclass(frozen=True, eq=False)
class Question:
    """What the target is asked: turn `turn` of the conversation in row `row` of the source."""

    row: int
    turn: int
    conversation: Conversation
    """Up to what is asked."""
    prompt: Ids
    """The same as tokens, with the beginning of an answer."""
    limit: int
    """Tokens of the answer at most."""


@dataclass(frozen=True)
class Reply:
    """What the target says."""

    message: Message
    tokens: int
    is_respelled: bool = False
    """Its text, read again, gives other tokens than were said."""


class Speaker(Protocol):
    """Who answers for the target."""

    @property
    def device(self) -> str:
        """What computes, for people."""
        ...

    def answer(self, questions: Sequence[Question]) -> list[Reply | None]:
        """A reply to each question; None where the target's numbers are not finite. Raises Failure."""
        ...


@dataclass(frozen=True, eq=False)
class Manner:
    """How conversations are held: the template and tokenizer of the target, and what fits."""

    template: ChatTemplate
    tokenizer: Tokenizer
    room: int
    """Tokens of a conversation at most: data.maxLength, or the target's positions where those are fewer."""
    max_new_tokens: int


@dataclass
class Dialogue:
    """One conversation that is held anew. It is over when nothing more of it is asked."""

    row: int
    given: Conversation | None
    skipped: str = ""
    """Why there is no conversation."""
    messages: list[Message] = field(default_factory=list)
    is_over: bool = False
    replies: list[Reply] = field(default_factory=list)

    @classmethod
    def of(cls, row: int, content: object) -> Dialogue:
        """The conversation in a row of the source, if there is one that can be held."""
        read = content.reason if isinstance(content, BadRow) else read_row(content)
        if isinstance(read, SkipReason):
            return cls(row, None, read, is_over=True)
        if read.text is not None:
            # nobody says where its turns are
            return cls(row, None, SkipReason.RENDERED, is_over=True)
        return cls(row, read)

    def ask(self, manner: Manner) -> Question | None:
        """The next question; None when the conversation is over."""
        if self.given is None or self.is_over:
            return None
        rest = self.given.messages[len(self.messages) :]
        asked = next((place for place, message in enumerate(rest) if message.role == "assistant"), None)
        if asked is None:
            self.messages += rest
            self.is_over = True
            return None
        before = replace(self.given, messages=(*self.messages, *rest[:asked]))
        try:
            text = manner.template.prompt(before)
        except RenderError:
            self._end(SkipReason.TEMPLATE_ERROR)
            return None
        prompt = np.array(manner.tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.int64)
        limit = min(manner.max_new_tokens, manner.room - len(prompt))
        if limit < 1 or not len(prompt):
            self._end(SkipReason.TOO_LONG)
            return None
        # a question that is not asked is not left behind either
        self.messages = list(before.messages)
        return Question(self.row, len(self.replies), before, prompt, limit)

    def hear(self, reply: Reply | None) -> None:
        """Take the answer to the last question."""
        assert self.given is not None
        if reply is None:
            self.skipped, self.is_over = SkipReason.NOT_FINITE, True
            return
        asked = self.given.messages[len(self.messages)]
        self.replies.append(reply)
        self.messages.append(reply.message)
        # what tools have said answers the calls of somebody else
        self.is_over = bool(asked.tool_calls or reply.message.tool_calls)

    def _end(self, reason: SkipReason) -> None:
        """Nothing more can be asked: what was answered before stays."""
        self.is_over = True
        if not self.replies:
            self.skipped = reason

    def line(self) -> Line:
        """As it is stored."""
        if self.skipped or self.given is None:
            return {"row": self.row, SKIPPED: str(self.skipped)}
        tools = {"tools": list(self.given.tools)} if self.given.tools else {}
        return {
            "row": self.row,
            "id": self.given.id,
            "messages": [as_json(message) for message in self.messages],
            **tools,
            "answers": len(self.replies),
            "unfinished": sum(reply.message.is_unfinished for reply in self.replies),
            "respelled": sum(reply.is_respelled for reply in self.replies),
            "tokens": sum(reply.tokens for reply in self.replies),
        }


def as_json(message: Message) -> dict[str, Any]:
    """A message as files have it."""
    return message.for_template() | ({UNFINISHED: True} if message.is_unfinished else {})


def hold(dialogues: Sequence[Dialogue], manner: Manner, speaker: Speaker) -> list[Line]:
    """Go through all turns of some conversations. Raises Failure."""
    while asked := [(dialogue, question) for dialogue in dialogues if (question := dialogue.ask(manner))]:
        replies = speaker.answer([question for _, question in asked])
        for (dialogue, _), reply in zip(asked, replies, strict=True):
            dialogue.hear(reply)
    return [dialogue.line() for dialogue in dialogues]
