"""Masks of real tokenizers with their own templates: what is supervised is what the assistant said, and its end."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import real
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from draftyard_trainer.data.conversation import Conversation, read_row
from draftyard_trainer.data.files import read_rows
from draftyard_trainer.data.template import ChatTemplate, MaskSource, RenderError
from draftyard_trainer.data.tokenizer import load_tokenizer, stop_ids
from draftyard_trainer.data.tokens import Pieces, Tokenised, TokenRules, tokenise

SHAREGPT = real.FOLDER.parent / "fixtures" / "sharegpt.json"
ENDS = {
    "qwen3": "<|im_end|>",
    "llama3_1": "<|eot_id|>",
    "gemma3": "<end_of_turn>",
    "deepseek_v3": "<｜end▁of▁sentence｜>",
    "gptoss": "<|return|>",
    "qwen2": "<|im_end|>",
}
TEMPLATES = {"gptoss": "openai-gpt-oss-120b", "qwen2": "Qwen-Qwen2.5-7B-Instruct"}
"""Of llama.cpp's collection, for tokenizers that come without one."""
STOPS = {"gptoss": ("<|end|>",), "qwen2": ("<|im_end|>",)}
"""What `data.stopTokens` must name: earlier turns of gpt-oss end otherwise, and a vocabulary alone names no eos."""
LEADS = {"gptoss": "<|channel|>final<|message|>"}
"""What the target generates before an answer."""
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
        stops = stop_ids(Path(self.tokenizer.name_or_path), {}, self.tokenizer, STOPS.get(self.name, ()))
        return TokenRules(frozenset(stops), 4096)

    def end(self, is_last: bool = True) -> str:
        return "<|end|>" if self.name == "gptoss" and not is_last else ENDS[self.name]

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
        texts = [str(self.tokenizer.decode(document.tokens[start : start + size].tolist())) for start, size in spans]
        lead = LEADS.get(self.name, "")
        assert all(text.startswith(lead) for text in texts)
        return [text.removeprefix(lead) for text in texts]


def load(name: str, folder: Path) -> World:
    """A tokenizer as a model's folder has it; `folder` is for those that have to be put together."""
    collection = real.LLAMA_CPP.folder
    source = collection if name == "qwen2" else real.FOLDER / f"{name}-{real.VERSION}"
    if not (source.is_dir() and collection.is_dir()):
        pytest.skip("the tokenizers are not there: `make tokenizers` fetches them")
    if name not in TEMPLATES:
        return World(name, load_tokenizer(source, name, trust_remote_code=False))
    vocabulary = {"gguf_file": "ggml-vocab-qwen2.gguf"} if name == "qwen2" else {}
    tokenizer = AutoTokenizer.from_pretrained(source, **vocabulary)
    tokenizer.chat_template = (collection / f"{TEMPLATES[name]}.jinja").read_text()
    tokenizer.save_pretrained(folder)
    return World(name, load_tokenizer(folder, name, trust_remote_code=False))


@pytest.fixture(scope="module", params=list(ENDS))
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    return load(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.parametrize("case", list(CASES))
def test_what_the_assistant_said_is_supervised_with_its_end(world: World, case: str) -> None:
    row, answers = CASES[case]
    (document,) = world.tokenise(row)
    found = [text.removeprefix(EMPTY_THINKING) for text in world.supervised(document)]
    assert found == [answer + world.end(place == len(answers)) for place, answer in enumerate(answers, start=1)]
    assert document.turns_without_stop == 0


@pytest.mark.parametrize("case", list(CASES))
def test_there_is_one_bos_at_most(world: World, case: str) -> None:
    """Llama's template writes its own, and the tokenizer must not write another."""
    (document,) = world.tokenise(CASES[case][0])
    bos = world.tokenizer.bos_token_id
    if bos is not None:
        writes_it = world.name not in TEMPLATES
        assert document.tokens.tolist().count(bos) == writes_it
        assert (document.tokens[0] == bos) == writes_it


ODD = (
    "e\u0301\u0323 \u1100\u1161 \ufb01 \u00a0\u2028\u200d",
    "\u0327\u0301a \ud55c\uae00 \U0001f469\u200d\U0001f467",
    "  \t \r\n\n x ",
)
"""Marks in another order than normal forms have them, characters that a normal form splits or joins, spaces."""


def test_tokens_are_in_the_order_of_the_text(world: World) -> None:
    """What looking for a span by halving needs, on real conversations and on what normal forms change."""
    if not SHAREGPT.is_file():
        pytest.skip("the conversations are not there: `make fixtures` fetches them")
    rows = itertools.islice(read_rows(SHAREGPT), 100)
    texts = [*ODD, *(json.dumps(row, ensure_ascii=False)[:20_000] for row in rows)]
    encodings = world.tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
    for text, encoding in zip(texts, encodings, strict=True):
        pieces = Pieces.of(text, encoding)
        reach = [(pieces.start(place), pieces.end(place)) for place in range(len(pieces.ids))]
        assert reach == sorted(reach)
        assert [end for _, end in reach] == sorted(end for _, end in reach)
        assert encoding.offsets == [pieces.characters(place) for place in range(len(reach))]
    assert sum(map(len, encodings)) > 10_000


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
    rules = TokenRules(world.rules.stop_ids, 200)
    (document,) = tokenise(world.tokenizer.backend_tokenizer, [template.render(conversation)], rules)
    assert document.was_truncated
    assert len(document.tokens) == 200
    assert world.supervised(document)[0].removeprefix(EMPTY_THINKING).startswith("word word")


# -- What differs between families ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> World:
    return load("qwen3", tmp_path_factory.mktemp("qwen3"))


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


def test_a_template_that_refuses_a_conversation_says_why(tmp_path: Path) -> None:
    """Gemma's wants turns that alternate."""
    with pytest.raises(RenderError, match="alternate"):
        load("gemma3", tmp_path).tokenise(said(("user", "a"), ("user", "b"), ("assistant", "c")))


def test_thoughts_of_gpt_oss_are_a_channel_of_their_own(tmp_path: Path) -> None:
    gptoss = load("gptoss", tmp_path)
    first, second = gptoss.tokenise(THOUGHT, split_turns=True)
    for document, thought, answer in ((first, "Two and two.", "4."), (second, "I am.", "Yes.")):
        spans = document.spans.tolist()
        (text,) = (gptoss.tokenizer.decode(document.tokens[start : start + size].tolist()) for start, size in spans)
        final = f"<|start|>assistant<|channel|>final<|message|>{answer}<|return|>"
        assert text == f"<|channel|>analysis<|message|>{thought}<|end|>"
        assert final in str(gptoss.tokenizer.decode(document.tokens.tolist())) + final


def test_a_special_token_of_an_unknown_stop_is_told(tmp_path: Path) -> None:
    """Without `data.stopTokens` the earlier turns of gpt-oss end with nothing that ends an answer: they are counted."""
    gptoss = load("gptoss", tmp_path)
    row = said(("user", "One"), ("assistant", "Two."), ("user", "Three"), ("assistant", "Four."))
    conversation = read_row(row)
    assert isinstance(conversation, Conversation)
    rules = TokenRules(frozenset(stop_ids(tmp_path, {}, gptoss.tokenizer, ())), 4096)
    rendered = ChatTemplate(gptoss.tokenizer, {}).render(conversation)
    (document,) = tokenise(gptoss.tokenizer.backend_tokenizer, [rendered], rules)
    assert document.turns_without_stop == 1
