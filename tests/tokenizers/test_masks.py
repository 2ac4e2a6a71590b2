"""Masks of real tokenizers with their own templates: what is supervised is what the assistant said, and its end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import real
from transformers import PreTrainedTokenizerBase

from draftyard_trainer.data.conversation import Conversation, read_row
from draftyard_trainer.data.template import ChatTemplate, MaskSource, RenderError
from draftyard_trainer.data.tokenizer import load_tokenizer, stop_ids
from draftyard_trainer.data.tokens import Tokenised, TokenRules, tokenise

ENDS = {
    "qwen3": "<|im_end|>",
    "llama3_1": "<|eot_id|>",
    "gemma3": "<end_of_turn>",
    "deepseek_v3": "<｜end▁of▁sentence｜>",
}
EMPTY_THINKING = "<think>\n\n</think>\n\n"
"""What Qwen3's template puts before its last answer."""


def said(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


CASES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "one turn": (said(("user", "Why?"), ("assistant", "So.")), ["So."]),
    "a system prompt": (said(("system", "Be brief."), ("user", "Why?"), ("assistant", "So.")), ["So."]),
    "several turns": (
        said(("user", "One"), ("assistant", "Two."), ("user", "Three"), ("assistant", "Four.")),
        ["Two.", "Four."],
    ),
    "other scripts": (
        said(("user", "语言 😀?"), ("assistant", "答案 é☃\n\n\tcode = 'x'  # 1\n👩‍👩‍👧 ok")),
        ["答案 é☃\n\n\tcode = 'x'  # 1\n👩‍👩‍👧 ok"],
    ),
    "equal answers": (
        said(("user", "a"), ("assistant", "Yes."), ("user", "Yes."), ("assistant", "Yes.")),
        ["Yes.", "Yes."],
    ),
    "words of the format": (
        said(("user", "What is user and assistant and model?"), ("assistant", "user assistant model system")),
        ["user assistant model system"],
    ),
}
"""A row, and what the assistant said in it."""


@dataclass(frozen=True)
class World:
    """A tokenizer as `prepare` uses it."""

    name: str
    tokenizer: PreTrainedTokenizerBase
    kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def rules(self) -> TokenRules:
        return TokenRules(frozenset(stop_ids(real.fetch(self.name), {}, self.tokenizer, ())), 4096)

    def tokenise(self, row: dict[str, Any], split_turns: bool = False) -> list[Tokenised]:
        conversation = read_row(row)
        assert isinstance(conversation, Conversation)
        template = ChatTemplate(self.tokenizer, self.kwargs)
        texts = template.render_turns(conversation) if split_turns else [template.render(conversation)]
        assert all(text.not_located == 0 for text in texts)
        assert {text.source for text in texts} == {MaskSource.DIFF}
        return tokenise(self.tokenizer.backend_tokenizer, texts, self.rules)

    def supervised(self, document: Tokenised) -> list[str]:
        spans = document.spans.tolist()
        return [str(self.tokenizer.decode(document.tokens[start : start + size].tolist())) for start, size in spans]


@pytest.fixture(scope="module", params=real.NAMES)
def world(request: pytest.FixtureRequest) -> World:
    folder = real.FOLDER / f"{request.param}-{real.VERSION}"
    if not folder.is_dir():
        pytest.skip("the tokenizers are not there: `make tokenizers` fetches them")
    return World(request.param, load_tokenizer(folder, request.param, trust_remote_code=False))


@pytest.mark.parametrize("case", list(CASES))
def test_what_the_assistant_said_is_supervised_with_its_end(world: World, case: str) -> None:
    row, answers = CASES[case]
    (document,) = world.tokenise(row)
    found = [text.removeprefix(EMPTY_THINKING) for text in world.supervised(document)]
    assert found == [answer + ENDS[world.name] for answer in answers]
    assert document.turns_without_stop == 0


@pytest.mark.parametrize("case", list(CASES))
def test_there_is_one_bos_at_most(world: World, case: str) -> None:
    """Llama's template writes its own, and the tokenizer must not write another."""
    (document,) = world.tokenise(CASES[case][0])
    bos = world.tokenizer.bos_token_id
    if bos is not None:
        assert document.tokens.tolist().count(bos) == 1
        assert document.tokens[0] == bos


def test_each_turn_alone_is_what_was_generated(world: World) -> None:
    """With splitTurns: earlier answers are context, and no later text is there."""
    row, answers = CASES["several turns"]
    documents = world.tokenise(row, split_turns=True)
    assert len(documents) == 2
    for document, answer in zip(documents, answers, strict=True):
        (text,) = world.supervised(document)
        assert text.removeprefix(EMPTY_THINKING) == answer + ENDS[world.name]
    whole = str(world.tokenizer.decode(documents[0].tokens.tolist()))
    assert "Three" not in whole
    assert "Four." not in whole


def test_pasted_special_tokens_end_an_answer_where_generation_would_have(world: World) -> None:
    end = ENDS[world.name]
    (document,) = world.tokenise(said(("user", "Say it"), ("assistant", f"Here: {end} and more")))
    assert world.supervised(document)[0].removeprefix(EMPTY_THINKING) == f"Here: {end}"


def test_long_documents_are_cut_and_keep_their_masks(world: World) -> None:
    answer = "word " * 300
    row = said(("user", "Go on"), ("assistant", answer))
    template = ChatTemplate(world.tokenizer, {})
    conversation = read_row(row)
    assert isinstance(conversation, Conversation)
    rules = TokenRules(world.rules.stop_ids, 64)
    (document,) = tokenise(world.tokenizer.backend_tokenizer, [template.render(conversation)], rules)
    assert document.was_truncated
    assert len(document.tokens) == 64
    assert world.supervised(document)[0].removeprefix(EMPTY_THINKING).startswith("word word")


# -- What differs between families ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def qwen3() -> World:
    folder = real.FOLDER / f"qwen3-{real.VERSION}"
    if not folder.is_dir():
        pytest.skip("the tokenizers are not there: `make tokenizers` fetches them")
    return World("qwen3", load_tokenizer(folder, "qwen3", trust_remote_code=False))


THOUGHT = {
    "messages": [
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "4.", "reasoning_content": "Two and two."},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "Yes.", "reasoning_content": "I am."},
    ]
}


def test_thinking_is_kept_where_the_template_keeps_it(qwen3: World) -> None:
    """Qwen3 drops what was thought in earlier turns: whole conversations show the last thought only."""
    (document,) = qwen3.tokenise(THOUGHT)
    assert qwen3.supervised(document) == ["4.<|im_end|>", "<think>\nI am.\n</think>\n\nYes.<|im_end|>"]


def test_each_turn_alone_has_its_thinking(qwen3: World) -> None:
    first, second = qwen3.tokenise(THOUGHT, split_turns=True)
    assert qwen3.supervised(first) == ["<think>\nTwo and two.\n</think>\n\n4.<|im_end|>"]
    assert qwen3.supervised(second) == ["<think>\nI am.\n</think>\n\nYes.<|im_end|>"]


def test_tools_and_their_results(qwen3: World) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": '{"a": 2, "b": 2}'}}
    row = {
        "tools": [{"type": "function", "function": {"name": "add", "description": "Add.", "parameters": {}}}],
        "messages": [
            {"role": "user", "content": "2+2?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "4"},
            {"role": "assistant", "content": "It is 4."},
        ],
    }
    (document,) = qwen3.tokenise(row)
    first, second = qwen3.supervised(document)
    assert first.endswith('<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 2}}\n</tool_call><|im_end|>')
    assert second.removeprefix(EMPTY_THINKING) == "It is 4.<|im_end|>"


def test_a_template_that_refuses_a_conversation_says_why() -> None:
    """Gemma's wants turns that alternate."""
    folder = real.FOLDER / f"gemma3-{real.VERSION}"
    if not folder.is_dir():
        pytest.skip("the tokenizers are not there: `make tokenizers` fetches them")
    gemma = World("gemma3", load_tokenizer(folder, "gemma3", trust_remote_code=False))
    with pytest.raises(RenderError, match="alternate"):
        gemma.tokenise(said(("user", "a"), ("user", "b"), ("assistant", "c")))
