"""From a conversation to the text that the target would read, and the parts of it that the target would have said."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from draftyard_trainer.data.built_in import ChatFormat, recognise
from draftyard_trainer.data.conversation import Conversation, Message

# the same expression by which transformers looks for the tag
GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")
RENDER_ERRORS = (TemplateError, TypeError, ValueError, LookupError, AttributeError)
"""What a chat template can end in: its own `raise_exception`, or Python's errors about values it did not expect."""

PRIVATE_USE = range(0xE000, 0xF8FE)
"""Characters that no text means anything by: three of them stand for an answer that is looked for."""


class MaskSource(StrEnum):
    """How the assistant's parts of a text were found."""

    TAGS = "tags"
    """The template marks them with `{% generation %}`."""
    DIFF = "diff"
    """By what changes when one answer is replaced."""
    HEADERS = "headers"
    """Between an assistant header and an end of turn."""


class RenderError(ValueError):
    """The chat template does not take this conversation; a server would refuse it too."""


@dataclass(frozen=True)
class Span:
    """Characters `[start, end)` of a rendered text."""

    start: int
    end: int


@dataclass(frozen=True)
class Rendered:
    """A text and its assistant spans, ascending; `turns` were looked for, `not_located` of them not found."""

    text: str
    spans: tuple[Span, ...]
    source: MaskSource
    turns: int
    not_located: int = 0


@dataclass(frozen=True)
class ChatTemplate:
    """The target's chat template with the arguments of the run. `known` is a built-in format that was asked for."""

    tokenizer: PreTrainedTokenizerBase
    kwargs: Mapping[str, Any]
    known: ChatFormat | None = None

    @property
    def text(self) -> str:
        """The jinja source that renders conversations; empty where only rendered text can be read."""
        if self.known is not None:
            return self.known.template
        own = self.tokenizer.chat_template
        return own if isinstance(own, str) else json.dumps(own or "", sort_keys=True)

    def render(self, conversation: Conversation) -> Rendered:
        """The whole conversation as one text with all answers located. Raises RenderError."""
        # no template has a part in it: headers are all there is to go by
        if conversation.text is not None:
            return self._between_headers(conversation.text)
        if self.known is not None:
            return self._between_headers(self._text(conversation), len(conversation.assistant_turns()))
        # first the template's own word, then what can be observed of it
        if GENERATION_TAG.search(self._source(conversation)):
            return self._by_tags(conversation)
        return self._by_difference(conversation, conversation.assistant_turns())

    def render_turns(self, conversation: Conversation) -> list[Rendered]:
        """One text for each answer, as it was when that was generated: with no later text, and earlier thinking gone.

        Raises RenderError. Rendered text has no turns that could be taken apart, so it stays one.
        """
        if conversation.text is not None:
            return [self.render(conversation)]
        return [self._last_turn(conversation.upto(turn), turn) for turn in conversation.assistant_turns()]

    def _last_turn(self, conversation: Conversation, turn: int) -> Rendered:
        """The text up to and with message `turn`, of which only that message is located."""
        if self.known is not None or GENERATION_TAG.search(self._source(conversation)):
            whole = self.render(conversation)
            return replace(whole, spans=whole.spans[-1:], turns=1, not_located=0 if whole.spans else 1)
        return self._by_difference(conversation, [turn])

    def _source(self, conversation: Conversation) -> str:
        """The jinja source for this conversation: some tokenizers have another one for tools. Raises RenderError."""
        try:
            return str(self.tokenizer.get_chat_template(None, list(conversation.tools) or None))
        except ValueError as error:
            raise RenderError(str(error)) from error

    def _text(self, conversation: Conversation, add_generation_prompt: bool = False) -> str:
        """The conversation as a server renders it. Raises RenderError."""
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    [message.for_template() for message in conversation.messages],
                    tools=list(conversation.tools) or None,
                    chat_template=self.known.template if self.known else None,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    **self.kwargs,
                )
            )
        except RENDER_ERRORS as error:
            raise RenderError(f"{type(error).__name__}: {error}") from error

    def _by_tags(self, conversation: Conversation) -> Rendered:
        """Where the template's own generation tags are. Raises RenderError."""
        try:
            # not `apply_chat_template`: its mask is one of tokens, and marks one that the border of a span cuts
            rendered: Any = render_jinja_template(
                conversations=[[message.for_template() for message in conversation.messages]],
                tools=list(conversation.tools) or None,
                chat_template=self._source(conversation),
                return_assistant_tokens_mask=True,
                **{**self.tokenizer.special_tokens_map, **self.kwargs},
            )
        except RENDER_ERRORS as error:
            raise RenderError(f"{type(error).__name__}: {error}") from error
        texts, ranges = rendered
        spans = tuple(Span(start, end) for start, end in ranges[0] if end > start)
        turns = conversation.assistant_turns()
        # with several tagged parts in one answer (thinking, content) nobody says which belongs to which turn
        if len(turns) == len(spans):
            pairs = zip(turns, spans, strict=True)
            spans = tuple(self._without_prompt(conversation, turn, texts[0], span) for turn, span in pairs)
        return Rendered(texts[0], spans, MaskSource.TAGS, len(turns), max(0, len(turns) - len(spans)))

    def _without_prompt(self, conversation: Conversation, turn: int, text: str, span: Span) -> Span:
        """A tagged span without the header that the generation prompt writes: some templates tag that as well."""
        prompt_end = self._prompt_end(conversation, turn, text)
        is_inside = prompt_end is not None and span.start < prompt_end <= span.end
        return Span(prompt_end, span.end) if is_inside and prompt_end is not None else span

    def _by_difference(self, conversation: Conversation, turns: Sequence[int]) -> Rendered:
        """Where the text changes when an answer does; between known headers if it never does. Raises RenderError."""
        text = self._text(conversation)
        located = [self._locate(conversation, turn, text) for turn in turns]
        spans = tuple(span for span in located if span is not None)
        if not spans and recognise(text):
            return self._where_headers_agree(conversation, turns, text)
        return Rendered(text, spans, MaskSource.DIFF, len(turns), len(turns) - len(spans))

    def _where_headers_agree(self, conversation: Conversation, turns: Sequence[int], text: str) -> Rendered:
        """Between known headers, as far as the answers are there: a template that shows none has headers too."""
        spans = self._between_headers(text).spans[-len(turns) :]
        said = [conversation.messages[turn].content.strip() for turn in turns[-len(spans) :]]
        kept = tuple(
            span for span, answer in zip(spans, said, strict=True) if answer and answer in text[span.start : span.end]
        )
        return Rendered(text, kept, MaskSource.HEADERS, len(turns), len(turns) - len(kept))

    def _locate(self, conversation: Conversation, turn: int, text: str) -> Span | None:
        """Where message `turn` is in `text`, with what it generated before its content; None if it is not shown."""
        sentinel = unused_sentinel(text)
        messages = list(conversation.messages)
        # without tool calls and reasoning: what they add to the text is then part of the difference
        messages[turn] = Message("assistant", sentinel)
        try:
            other = self._text(replace(conversation, messages=tuple(messages)))
        except RenderError:
            return None
        # 0: not rendered. 2 or more: between the first and the last there is text of others
        if other.count(sentinel) != 1:
            return None
        # the sentinel is not in `text`, so neither end can run past the answer, whatever the answer is
        start = common_prefix(other, text)
        end = len(text) - common_suffix(other, text)
        # the common ends overlap: there is no place between them
        if end < start:
            return None
        # what lies between the prompt and the content was generated too: a thinking header, a channel
        prompt_end = self._prompt_end(conversation, turn, text)
        return Span(start if prompt_end is None else min(prompt_end, start), end)

    def _prompt_end(self, conversation: Conversation, turn: int, text: str) -> int | None:
        """Where the target begins to write message `turn`: right after the generation prompt.

        None when `text` does not go on as that prompt does, or when the template does not render what came before.
        """
        before = conversation.upto(turn - 1)
        try:
            shortest = len(self._text(before))
            prompt_end = common_prefix(self._text(before, add_generation_prompt=True), text)
        except RenderError:
            return None
        # shorter: history is written differently from `text`, as templates do that drop earlier thinking
        return prompt_end if prompt_end >= shortest else None

    def _between_headers(self, text: str, turns: int | None = None) -> Rendered:
        """Between each assistant header and the end of its turn, by the format asked for or recognised in the text.

        `turns` is how many there must be; rendered text alone does not say it.
        """
        known = self.known or recognise(text)
        if known is None:
            return Rendered(text, (), MaskSource.HEADERS, turns=1, not_located=1)
        spans = []
        header = text.find(known.assistant_header)
        while header >= 0:
            start = header + len(known.assistant_header)
            # an answer without an end is one that was cut off: what is there is still what the target wrote
            closed = text.find(known.end_of_turn, start)
            end = closed if closed >= 0 else len(text)
            spans.append(Span(start, end))
            header = text.find(known.assistant_header, end)
        turns = len(spans) if turns is None else turns
        return Rendered(text, tuple(spans), MaskSource.HEADERS, turns, max(0, turns - len(spans)))


def unused_sentinel(text: str) -> str:
    """Three private-use characters that do not occur in `text` as one string."""
    # 6,398 candidates; a text that holds them all is no conversation
    candidates = (chr(code) + chr(code + 1) + chr(code + 2) for code in PRIVATE_USE)
    return next(candidate for candidate in candidates if candidate not in text)


def common_prefix(one: str, other: str) -> int:
    """Length of the longest common prefix. Halving makes it a few block comparisons in place of one per character."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def common_suffix(one: str, other: str) -> int:
    """Length of the longest common suffix."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[len(one) - middle : len(one) - low] == other[len(other) - middle : len(other) - low]:
            low = middle
        else:
            high = middle - 1
    return low
