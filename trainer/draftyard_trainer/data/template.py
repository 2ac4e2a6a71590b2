"""From a conversation to the text that the target would read, and the parts of it that the target would have said."""

from __future__ import annotations

import functools
import inspect
import itertools
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
from draftyard_trainer.data.compiled import CompiledTemplate, Replaced, compile_template, replacements
from draftyard_trainer.data.conversation import Conversation, Message

# the same expression by which transformers looks for the tag
GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")
RENDER_ERRORS = (
    TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError,
)  # fmt: skip
"""What a chat template can end in: its own `raise_exception`, or Python's errors about values it did not expect."""

OWN_ARGUMENTS = frozenset({*inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters, "messages"})
"""Template arguments by these names are taken for arguments of the renderer."""
PRIVATE_USE = range(0xE000, 0xF8FE)
"""Characters that no text means anything by: three of them stand for an answer that is looked for."""


RESULT = "\uf8fe\uf8ff"
"""Stands for what a tool answered."""


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
    is_unfinished: bool = False
    """Of an answer that was cut: the stop token behind it was not said."""


@dataclass(frozen=True)
class Rendered:
    """A text and its assistant spans, ascending; `turns` were looked for, `not_located` of them not found."""

    text: str
    spans: tuple[Span, ...]
    source: MaskSource
    turns: int
    not_located: int = 0


Changes = tuple[str, list[tuple[int, Span | None]]]
"""A text, and for each message that was replaced where it is in the text; None if it is not shown."""


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
        return marked(self._located(conversation), conversation, conversation.assistant_turns())

    def _located(self, conversation: Conversation) -> Rendered:
        """The text of messages with their answers. Raises RenderError."""
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
            whole = self._located(conversation)
            last = replace(whole, spans=whole.spans[-1:], turns=1, not_located=0 if whole.spans else 1)
        else:
            last = self._by_difference(conversation, [turn])
        return marked(last, conversation, [turn])

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

    @functools.cached_property
    def _variables(self) -> Mapping[str, Any]:
        """What a template sees besides the conversation."""
        return {**self.tokenizer.special_tokens_map, **self.kwargs}

    def _compiled(self, conversation: Conversation) -> CompiledTemplate | None:
        """The template, where it sees of the conversation just what is there; None where the library adds to it.

        It does so for thoughts and tools, which have several spellings. Raises RenderError.
        """
        is_plain = not (conversation.tools or OWN_ARGUMENTS & self.kwargs.keys()) and all(
            not (message.tool_calls or message.carried) for message in conversation.messages
        )
        if not is_plain or not conversation.messages:
            return None
        try:
            return compile_template(self._source(conversation))
        except TemplateError as error:
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
        text, changes = self._changes_at_once(conversation, turns) or self._changes(conversation, turns)
        prompt_ends = (self._prompt_end(conversation, turn, text) if change else None for turn, change in changes)
        spans = tuple(
            # what lies between the prompt and the content was generated too: a thinking header, a channel
            change if prompt_end is None else Span(min(prompt_end, change.start), change.end)
            for (_, change), prompt_end in zip(changes, prompt_ends, strict=True)
            if change is not None
        )
        if not spans and recognise(text):
            return self._where_headers_agree(conversation, turns, text)
        return Rendered(text, spans, MaskSource.DIFF, len(turns), len(turns) - len(spans))

    def _changes(self, conversation: Conversation, turns: Sequence[int]) -> Changes:
        """The text, and where it changes with each answer: one rendering for each. Raises RenderError."""
        text = self._text(conversation)
        sentinel = unused_sentinel(text)
        found: list[tuple[int, Span | None]] = []
        for turn in turns:
            try:
                other = self._text(answered(conversation, (turn,), sentinel))
            except RenderError:
                found.append((turn, None))
                continue
            change = changed(text, Replaced(0, len(text), other), sentinel)
            found.append((turn, None if self._holds_results(conversation, turn) else change))
        return text, found

    def _holds_results(self, conversation: Conversation, turn: int) -> bool:
        """Whether what tools answered lies in what changes with the calls: then that is not the answer alone.

        Gemma 4 writes results into the turn that asked for them.
        """
        messages = list(conversation.messages)
        behind = itertools.takewhile(lambda place: messages[place].role == "tool", range(turn + 1, len(messages)))
        results = list(behind) if messages[turn].tool_calls else []
        if not results:
            return False
        for place in results:
            messages[place] = replace(messages[place], content=RESULT)
        marked = replace(conversation, messages=tuple(messages))
        try:
            text = self._text(marked)
            sentinel = unused_sentinel(text)
            span = changed(text, Replaced(0, len(text), self._text(answered(marked, (turn,), sentinel))), sentinel)
        except RenderError:
            return True
        return span is None or RESULT in text[span.start : span.end]

    def _changes_at_once(self, conversation: Conversation, turns: Sequence[int]) -> Changes | None:
        """The same from one rendering with all answers replaced; None where it is not sure to be the same.

        Raises RenderError.
        """
        compiled = self._compiled(conversation)
        if compiled is None:
            return None
        try:
            whole = compiled.trace(messages_of(conversation), turns, self._variables)
        except RENDER_ERRORS as error:
            raise RenderError(f"{type(error).__name__}: {error}") from error
        if whole is None:
            return None
        sentinel = unused_sentinel(whole.text)
        replaced = answered(conversation, turns, sentinel)
        try:
            other = compiled.trace(messages_of(replaced), turns, self._variables)
        except RENDER_ERRORS:
            return None
        if other is None or other.readers != whole.readers:
            return None
        return whole.text, [
            (turn, None if change is None else changed(whole.text, change, sentinel))
            for turn, change in zip(turns, replacements(whole, other, turns), strict=True)
        ]

    def _where_headers_agree(self, conversation: Conversation, turns: Sequence[int], text: str) -> Rendered:
        """Between known headers, as far as the answers are there: a template that shows none has headers too."""
        spans = self._between_headers(text).spans[-len(turns) :]
        said = [conversation.messages[turn].content.strip() for turn in turns[-len(spans) :]]
        kept = tuple(
            span for span, answer in zip(spans, said, strict=True) if answer and answer in text[span.start : span.end]
        )
        return Rendered(text, kept, MaskSource.HEADERS, len(turns), len(turns) - len(kept))

    def _prompt_end(self, conversation: Conversation, turn: int, text: str) -> int | None:
        """Where the target begins to write message `turn`: right after the generation prompt.

        None when `text` does not go on as that prompt does, or when the template does not render what came before.
        """
        before = conversation.upto(turn - 1)
        try:
            prompt, shortest = self._prompt(before)
        except RenderError:
            return None
        prompt_end = common_prefix(prompt, text)
        # shorter: history is written differently from `text`, as templates do that drop earlier thinking
        return prompt_end if prompt_end >= shortest else None

    def prompt(self, conversation: Conversation) -> str:
        """What a server gives the target to answer to. Raises RenderError."""
        return self._prompt(conversation)[0]

    def _prompt(self, conversation: Conversation) -> tuple[str, int]:
        """The conversation with a generation prompt, and its length without one. Raises RenderError."""
        compiled = self._compiled(conversation)
        if compiled is None:
            return self._text(conversation, add_generation_prompt=True), len(self._text(conversation))
        messages = messages_of(conversation)
        try:
            prompt, shortest = compiled.render_prompt(messages, self._variables)
            return prompt, len(compiled.render(messages, self._variables)) if shortest is None else shortest
        except RENDER_ERRORS as error:
            raise RenderError(f"{type(error).__name__}: {error}") from error

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


def marked(rendered: Rendered, conversation: Conversation, turns: Sequence[int]) -> Rendered:
    """With the spans of unfinished answers marked; all of them, where nobody says which span is whose."""
    unfinished = [conversation.messages[turn].is_unfinished for turn in turns]
    if not any(unfinished):
        return rendered
    if len(rendered.spans) != len(turns):
        unfinished = [True] * len(rendered.spans)
    pairs = zip(rendered.spans, unfinished, strict=True)
    return replace(rendered, spans=tuple(replace(span, is_unfinished=cut) for span, cut in pairs))


def messages_of(conversation: Conversation) -> list[dict[str, Any]]:
    """The messages as chat templates read them."""
    return [message.for_template() for message in conversation.messages]


def answered(conversation: Conversation, turns: Sequence[int], answer: str) -> Conversation:
    """The conversation with `answer` in place of some messages, whole: without tool calls and reasoning.

    What those add to the text is then part of what changes.
    """
    messages = list(conversation.messages)
    for turn in turns:
        messages[turn] = Message("assistant", answer)
    return replace(conversation, messages=tuple(messages))


def changed(text: str, change: Replaced, sentinel: str) -> Span | None:
    """The part of `text` that an answer is, from what another answer, `sentinel`, makes of it; None if it is not shown.

    `change.other` stands in place of `text[change.start:change.end]`, in a text that is otherwise the same.
    """
    start, end, other = change.start, change.end, change.other
    own, width = text[start:end], len(sentinel) - 1
    # 0: not rendered. 2 or more: between the first and the last there is text of others. It may begin or end outside
    around = f"{text[max(0, start - width) : start]}{other}{text[end : end + width]}"
    if around.count(sentinel) != 1:
        return None
    # the sentinel is not in `text`, so neither end can run past the answer, whatever the answer is
    before, after = common_prefix(other, own), common_suffix(other, own)
    # one is all of the other: what follows it, or stands before it, may go on alike
    shorter = min(len(other), len(own))
    if before == shorter:
        before = common_prefix(other + text[end:], text[start:])
    if after == shorter:
        after = common_suffix(text[:start] + other, text[:end])
    # the common ends overlap: there is no place between them
    return Span(start + before, end - after) if start + before <= end - after else None


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
