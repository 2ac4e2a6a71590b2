"""Where answers are, found the plain way: one rendering by the library for each answer and each prompt."""

from __future__ import annotations

from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from draftyard_trainer.data.conversation import Conversation, Message
from draftyard_trainer.data.template import RENDER_ERRORS, unused_sentinel

Spans = list[tuple[int, int] | None]


def rendered(tokenizer: PreTrainedTokenizerBase, conversation: Conversation, prompts: bool = False) -> str:
    messages = [message.for_template() for message in conversation.messages]
    tools = list(conversation.tools) or None
    return str(tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=prompts))


def common(one: str, other: str) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (mine, yours) in pairs if mine != yours), min(len(one), len(other)))


def prompt_end(tokenizer: PreTrainedTokenizerBase, conversation: Conversation, turn: int, text: str) -> int | None:
    before = conversation.upto(turn - 1)
    try:
        shortest = len(rendered(tokenizer, before))
        end = common(rendered(tokenizer, before, prompts=True), text)
    except RENDER_ERRORS:
        return None
    return end if end >= shortest else None


def holds_results(tokenizer: PreTrainedTokenizerBase, conversation: Conversation, turn: int) -> bool:
    """Whether a part that changes with a call has in it what the tool answered."""
    following = conversation.messages[turn + 1 :]
    if not (conversation.messages[turn].tool_calls and following and following[0].role == "tool"):
        return False
    results = [Message("tool", "<result>", (), said.carried) if said.role == "tool" else said for said in following]
    asked, silent = conversation.messages[turn], Message("assistant", "<silent>")
    called, other = (
        rendered(tokenizer, replace(conversation, messages=(*conversation.messages[:turn], said, *results)))
        for said in (asked, silent)
    )
    return "<result>" in called[common(called, other) : len(called) - common(called[::-1], other[::-1])]


def reference_span(
    tokenizer: PreTrainedTokenizerBase, conversation: Conversation, turn: int, text: str
) -> tuple[int, int] | None:
    sentinel = unused_sentinel(text)
    messages = list(conversation.messages)
    messages[turn] = Message("assistant", sentinel)
    try:
        other = rendered(tokenizer, replace(conversation, messages=tuple(messages)))
    except RENDER_ERRORS:
        return None
    if other.count(sentinel) != 1:
        return None
    start, end = common(other, text), len(text) - common(other[::-1], text[::-1])
    if end < start:
        return None
    if holds_results(tokenizer, conversation, turn):
        return None
    prompted = prompt_end(tokenizer, conversation, turn, text)
    return (start if prompted is None else min(prompted, start)), end


def reference_spans(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> tuple[str, Spans]:
    """The text, and the span of each answer; None where it cannot be found."""
    text = rendered(tokenizer, conversation)
    turns = conversation.assistant_turns()
    return text, [reference_span(tokenizer, conversation, turn, text) for turn in turns]
