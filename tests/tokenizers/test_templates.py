"""The chat templates of llama.cpp's collection: what is supervised is what the assistant said, in every one of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import real
from reference_spans import reference_spans
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from draftyard_api.exit_codes import Failure
from draftyard_trainer.data.conversation import Conversation, read_row
from draftyard_trainer.data.tally import Tally
from draftyard_trainer.data.template import (
    GENERATION_TAG,
    RENDER_ERRORS,
    ChatTemplate,
    MaskSource,
    Rendered,
    RenderError,
)
from draftyard_trainer.data.tokens import Tokenised, TokenRules, tokenise

RULES = TokenRules(frozenset(), 1 << 20)
CALL = {"id": "123456789", "type": "function", "function": {"name": "add", "arguments": '{"a": 2, "b": 40}'}}
PARAMETERS = {"type": "object", "properties": {"a": {"type": "number", "description": "One number."}}}
ADD = {"type": "function", "function": {"name": "add", "description": "Adds numbers.", "parameters": PARAMETERS}}


def said(*turns: tuple[str, str], **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns], **fields}


PLAIN: dict[str, dict[str, Any]] = {
    "one turn": said(("user", "Why?"), ("assistant", "Because so.")),
    "several turns": said(
        ("user", "One?"), ("assistant", "Two."), ("user", "Three?"), ("assistant", "Two."), ("user", "?"),
        ("assistant", "Fünf 😀\n\ncode"),
    ),
    "a system prompt": said(("system", "Be brief."), ("user", "Why?"), ("assistant", "Because so.")),
}  # fmt: skip
"""Rows whose answers every template must show as they are."""
TOOLS = {
    "tools": [ADD],
    "messages": [
        {"role": "user", "content": "2+40?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "The sum: 42", "tool_call_id": "123456789", "name": "add"},
        {"role": "assistant", "content": "It is 42."},
    ],
}
THOUGHTS = {
    "messages": [
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "It is 4.", "reasoning_content": "Two and two."},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "Yes I am.", "reasoning_content": "Very sure."},
    ]
}

THINKS, CUT = "</think>", "/think>"
"""Where the generation prompt opens a thought, its end is generated; where it might, its first character is common."""
LEADS: dict[str, str] = {
    "Cohere2MoE": "EXT|>",
    "GLM-4.6": "\n<think></think>\n",
    "GLM-4.7-Flash": CUT,
    "Kimi-K2-Thinking": "<think></think>",
    "Kimi-K3": "<|close|>think<|sep|><|open|>response<|sep|>",
    "MiniMax-M3": "</mm:think>",
    "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": THINKS,
    "Reka-Edge": " ",
    "Spark2.5": CUT,
    "deepseek-ai-DeepSeek-V3.2": CUT,
    "inclusionai-ling-3.0-flash": THINKS,
    "llama-cpp-rwkv-world": " ",
    "meetkai-functionary-medium-v3.2": "all\n",
    "muse-glimmer": " to=user<|message|>",
    "openai-gpt-oss-120b": "<|channel|>final<|message|>",
    "poolside-Laguna-S-2.1": THINKS,
    "poolside-Laguna-XS-2.1": "\n",
    "poolside-Laguna-XS.2": "\n",
    "upstage-Solar-Open-100B": "<|content|>",
}
"""What a template writes between the generation prompt and an answer: generated, so supervised. Others: nothing."""
LAST_LEADS = {
    "Qwen-Qwen3-0.6B": "<think>\n\n</think>\n\n",
    "Qwen3.5-4B": "\n</think>\n\n",
    "StepFun3.5-Flash": "\n</think>\n",
}
"""The same, for templates that write it before the last answer alone."""
TAILS = {
    "LFM2.5-8B-A1B": "<|im_end|>\n",
    "poolside-Laguna-S-2.1": "</assistant>\n",
    "poolside-Laguna-XS-2.1": "\n</assistant>\n",
    "poolside-Laguna-XS.2": "\n</assistant>\n",
}
"""What generation tags hold behind an answer: these templates have tags."""

NEEDS_TOOLS = "reads a list of tools, which a conversation without tools has not"
NEEDS_FUNCTIONS = "reads functions, which no server gives it"
WRITES_APPEND = "appends to a list, which the sandbox of every server refuses"
REFUSED: dict[tuple[str, str], str] = {
    **{
        (name, row): NEEDS_TOOLS
        for name in (
            "CohereForAI-c4ai-command-r-plus-tool_use",
            "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use",
            "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
        )
        for row in (*PLAIN, "thoughts")
    },
    **{("fireworks-ai-llama-3-firefunction-v2", row): NEEDS_FUNCTIONS for row in (*PLAIN, "thoughts", "tools")},
    ("google-gemma-2-2b-it", "a system prompt"): "takes no system prompt",
    ("google-gemma-2-2b-it", "tools"): "takes users and assistants alone, in turns",
    ("Kimi-K2-Instruct", "tools"): WRITES_APPEND,
    ("Kimi-K2-Thinking", "tools"): WRITES_APPEND,
    ("llama-cpp-deepseek-r1", "tools"): "writes a list as JSON that it has not read",
    ("meetkai-functionary-medium-v3.2", "tools"): "takes arguments as text, and rows have them as objects",
}
"""Rows that a template does not take, and why; it is said as an error, and such rows are counted."""
NEEDS_CALL = "takes no result without a call, so the call cannot be replaced"
NOT_LOCATED = {
    "MiniMax-M2": NEEDS_CALL,
    "MiniMax-M3": NEEDS_CALL,
    "Mistral-Small-3.2-24B-Instruct-2506": NEEDS_CALL,
    "mistralai-Ministral-3-14B-Reasoning-2512": NEEDS_CALL,
    "mistralai-Mistral-Nemo-Instruct-2407": NEEDS_CALL,
    "openai-gpt-oss-120b": NEEDS_CALL,
    "deepseek-ai-DeepSeek-V3.2": "writes the result otherwise after a call",
    "google-gemma-4-31B-it": "writes the result into the turn that asked for it",
}
"""Calls that are not found: they are counted, and a run that has more than 1 % of them ends."""
WRITES_NO_CALLS = {
    "HuggingFaceTB-SmolLM3-3B", "LFM2-8B-A1B", "LFM2.5-Instruct", "deepseek-ai-DeepSeek-R1-Distill-Llama-8B",
    "ibm-granite-granite-3.3-2B-Instruct", "llama-cpp-rwkv-world", "microsoft-Phi-3.5-mini-instruct",
}  # fmt: skip
"""Templates that leave calls out: there is nothing to find but an empty answer."""


def folder() -> Path:
    return real.LLAMA_CPP.folder


NAMES = sorted(path.stem for path in folder().glob("*.jinja")) or ["absent"]


@pytest.fixture(scope="module")
def neutral() -> PreTrainedTokenizerBase:
    """A tokenizer of bytes: it knows every text and merges nothing. Each test gives it another template."""
    if not folder().is_dir():
        pytest.skip("the templates are not there: `make tokenizers` fetches them")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_alone = Tokenizer(models.BPE({letter: place for place, letter in enumerate(alphabet)}, []))
    bytes_alone.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bytes_alone.decoder = decoders.ByteLevel()
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=bytes_alone, **special)


def conversation_of(row: dict[str, Any]) -> Conversation:
    conversation = read_row(row)
    assert isinstance(conversation, Conversation)
    return conversation


def use(tokenizer: PreTrainedTokenizerBase, name: str) -> ChatTemplate:
    tokenizer.chat_template = (folder() / f"{name}.jinja").read_text()
    return ChatTemplate(tokenizer, {})


def refused(template: ChatTemplate, name: str, row: str) -> bool:
    """Whether the row is one that the template is known not to take; fails if it takes it by now."""
    if (name, row) not in REFUSED:
        return False
    with pytest.raises(RenderError):
        template.render(conversation_of({**PLAIN, "tools": TOOLS, "thoughts": THOUGHTS}[row]))
    return True


def texts(rendered: Rendered) -> list[str]:
    return [rendered.text[span.start : span.end] for span in rendered.spans]


def decoded(tokenizer: PreTrainedTokenizerBase, document: Tokenised) -> list[str]:
    spans = document.spans.tolist()
    return [str(tokenizer.decode(document.tokens[start : start + size].tolist())) for start, size in spans]


def expected(name: str, answers: list[str]) -> list[str]:
    lead, tail = LEADS.get(name, ""), TAILS.get(name, "")
    leads = [*([lead] * (len(answers) - 1)), LAST_LEADS.get(name, lead)]
    return [lead + answer + tail for lead, answer in zip(leads, answers, strict=True)]


def test_the_collection_is_whole(neutral: PreTrainedTokenizerBase) -> None:
    assert len(NAMES) == 70
    listed = {*LEADS, *LAST_LEADS, *TAILS, *NOT_LOCATED, *WRITES_NO_CALLS, *(name for name, _ in REFUSED)}
    assert listed <= set(NAMES)
    tagged = {name for name in NAMES if GENERATION_TAG.search((folder() / f"{name}.jinja").read_text())}
    assert tagged == set(TAILS)


@pytest.mark.parametrize("row", list(PLAIN))
@pytest.mark.parametrize("name", NAMES)
def test_what_the_assistant_said_is_supervised(neutral: PreTrainedTokenizerBase, name: str, row: str) -> None:
    template = use(neutral, name)
    if refused(template, name, row):
        return
    conversation = conversation_of(PLAIN[row])
    answers = [str(conversation.messages[turn].content) for turn in conversation.assistant_turns()]
    rendered = template.render(conversation)
    assert rendered.source is (MaskSource.TAGS if name in TAILS else MaskSource.DIFF)
    wanted = expected(name, answers)
    assert texts(rendered) == wanted
    (document,) = tokenise(neutral.backend_tokenizer, [rendered], RULES)
    assert decoded(neutral, document) == wanted
    assert document.tokens.tolist().count(neutral.bos_token_id) <= 1


@pytest.mark.parametrize("name", NAMES)
def test_each_turn_alone(neutral: PreTrainedTokenizerBase, name: str) -> None:
    template = use(neutral, name)
    if refused(template, name, "several turns"):
        return
    conversation = conversation_of(PLAIN["several turns"])
    turns = template.render_turns(conversation)
    answers = [str(conversation.messages[turn].content) for turn in conversation.assistant_turns()]
    assert [texts(turn) for turn in turns] == [expected(name, [answer]) for answer in answers]
    assert "Three?" not in turns[0].text
    assert "Fünf" not in turns[1].text


@pytest.mark.parametrize("name", NAMES)
def test_tools(neutral: PreTrainedTokenizerBase, name: str) -> None:
    template = use(neutral, name)
    if refused(template, name, "tools"):
        return
    rendered = template.render(conversation_of(TOOLS))
    assert rendered.not_located == (name in NOT_LOCATED)
    found = texts(rendered)
    assert found[-1].removesuffix(TAILS.get(name, "")).endswith("It is 42.")
    assert not any("The sum" in text for text in found)
    if name in NOT_LOCATED:
        assert len(found) == 1
    elif name in WRITES_NO_CALLS:
        assert found[0].strip() == ""
    else:
        assert "add" in found[0]
        assert "40" in found[0]


@pytest.mark.parametrize("name", NAMES)
def test_thoughts_that_are_shown_are_supervised(neutral: PreTrainedTokenizerBase, name: str) -> None:
    template = use(neutral, name)
    if refused(template, name, "thoughts"):
        return
    conversation = conversation_of(THOUGHTS)
    tail = TAILS.get(name, "")
    whole = template.render(conversation)
    for rendered, kept in ((whole, [0, 1]), *zip(template.render_turns(conversation), ([0], [1]), strict=True)):
        for text, turn in zip(texts(rendered), kept, strict=True):
            thought, answer = (("Two and two.", "It is 4."), ("Very sure.", "Yes I am."))[turn]
            assert text.removesuffix(tail).endswith(answer)
            assert (thought in text) == (thought in rendered.text)


@pytest.mark.parametrize("name", NAMES)
def test_spans_are_those_of_one_rendering_for_each_answer(neutral: PreTrainedTokenizerBase, name: str) -> None:
    template = use(neutral, name)
    if name in TAILS:
        return
    for row in (*PLAIN.values(), TOOLS, THOUGHTS, AWKWARD):
        conversation = conversation_of(row)
        try:
            text, spans = reference_spans(neutral, conversation)
        except RENDER_ERRORS:
            with pytest.raises(RenderError):
                template.render(conversation)
            continue
        rendered = template.render(conversation)
        assert rendered.text == text
        assert [(span.start, span.end) for span in rendered.spans] == [span for span in spans if span is not None]


AWKWARD = said(
    ("user", "<think>?"), ("assistant", "  <think>\nhm</think>\n\nTwo. "), ("user", "</think>"),
    ("assistant", ""), ("user", "<tool_response>x</tool_response>"), ("assistant", "\ue000\ue001\ue002\n"),
)  # fmt: skip


def test_answers_that_are_not_found_end_the_stage(neutral: PreTrainedTokenizerBase) -> None:
    template = use(neutral, "openai-gpt-oss-120b")
    tally = Tally(rows=1, rows_used=1)
    tally.saw(template.render(conversation_of(TOOLS)))
    with pytest.raises(Failure, match="1 of 2 answers cannot be found"):
        tally.check()
