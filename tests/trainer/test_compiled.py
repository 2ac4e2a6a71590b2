"""Answers found from one rendering are those that one rendering each finds, or are not found that way at all."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.exceptions import SecurityError, TemplateError, UndefinedError
from reference_spans import reference_spans
from transformers import PreTrainedTokenizerBase

from draftyard_trainer.data import compiled
from draftyard_trainer.data.compiled import CompiledTemplate, Replaced, Traced, compile_template, replacements
from draftyard_trainer.data.conversation import Conversation, Message
from draftyard_trainer.data.template import (
    RENDER_ERRORS,
    ChatTemplate,
    RenderError,
    Span,
    changed,
    messages_of,
)
from draftyard_trainer.testing import CHATML, write_tokenizer

LOOP = "{% for message in messages %}"
SAY = "[{{ message.role }}: {{ message.content }}]"
PROMPT = "{% if add_generation_prompt %}<|assistant|>{% endif %}"
PLAIN = LOOP + SAY + "{% endfor %}" + PROMPT
BACKWARDS = (  # as Qwen3's: the last question is looked for first, and answers after it are written otherwise
    "{% set ns = namespace(last=0) %}{% for message in messages[::-1] %}"
    "{% if message.role == 'user' and not message.content.startswith('<tool>') and ns.last == 0 %}"
    "{% set ns.last = messages | length - loop.index %}{% endif %}{% endfor %}"
    + LOOP
    + "{% set content = message.content %}{% if '</think>' in content %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "<|{{ message.role }}|>{% if loop.index0 > ns.last and loop.last %}<think></think>{% endif %}{{ content }}<|end|>"
    "{% endfor %}" + PROMPT
)
TWO_LOOPS = "{% for message in messages %}{% set unused = message.content %}{% endfor %}" + PLAIN
APART = {
    "plain": PLAIN,
    "backwards": BACKWARDS,
    "two loops": TWO_LOOPS,
    "under a condition": "{% if messages[0].role == 'system' %}S{{ messages[0].content }}{% endif %}"
    "{% if true %}" + PLAIN + "{% else %}none{% endif %}",
    "by a macro": "{% macro say(message) %}"
    + SAY
    + "{% endmacro %}"
    + LOOP
    + "{{ say(message) }}{% endfor %}"
    + PROMPT,
    "goes on": LOOP + "{% if message.role == 'system' %}{% continue %}{% endif %}" + SAY + "{% endfor %}" + PROMPT,
    "whole messages": LOOP + "{{ message | tojson }}{{ message }}{% endfor %}" + PROMPT,
    "trims": LOOP + "<|{{ message.role }}|>{{ message['content'] | trim }}<|end|>{% endfor %}" + PROMPT,
    "asks for keys": LOOP
    + "{% if 'content' in message and message.get('content') %}"
    + SAY
    + "{% endif %}{% endfor %}",
    "a question shows what its answer is like": LOOP
    + SAY
    + "{% if not loop.last and 'a' in loop.nextitem.content %}A{% endif %}{% if 'a' in message.content %}B{% endif %}"
    "{% endfor %}",
}
"""Templates whose answers keep to themselves."""

TOGETHER = {
    "an answer chooses what follows": "{% set ns = namespace(seen=false) %}"
    + LOOP
    + SAY
    + "{% if ns.seen %}!{% endif %}{% if 'a' in message.content %}{% set ns.seen = true %}{% endif %}{% endfor %}",
    "an answer is read before the loop": "{% if 'a' in messages[1].content %}A{% endif %}" + PLAIN,
    "an answer is read after the loop": PLAIN + "{{ messages[-1].content | length }}",
    "the answer before": LOOP
    + SAY
    + "{% if loop.index0 > 1 and 'a' in messages[loop.index0 - 2].content %}A{% endif %}{% endfor %}",
    "ends early": LOOP + SAY + "{% if 'a' in message.content %}{% break %}{% endif %}{% endfor %}",
    "only some": "{% for message in messages if 'a' not in message.content %}" + SAY + "{% endfor %}",
    "only some, by a filter": "{% for message in messages | rejectattr('content', 'equalto', 'a') %}"
    + SAY
    + "{% endfor %}",
    "only some, by a filter under a name": "{% set some = messages | rejectattr('content', 'equalto', 'a') %}"
    "{% for message in some %}" + SAY + "{% endfor %}",
    "what changes": LOOP + SAY + "{% if loop.changed('a' in message.content) %}C{% endif %}{% endfor %}",
    "what changes, by its name as text": LOOP
    + SAY
    + "{% if loop['changed']('a' in message.content) %}C{% endif %}{% endfor %}",
    "what changes, by a filter": LOOP
    + SAY
    + "{% if (loop | attr('changed'))('a' in message.content) %}C{% endif %}{% endfor %}",
    "joins": "{% set comma = joiner(',') %}" + LOOP + SAY + "{% if 'a' in message.content %}{{ comma() }}{% endif %}"
    "{% endfor %}",
    "a loop in a macro": "{% macro all() %}" + LOOP + SAY + "{% endfor %}{% endmacro %}{{ all() }}" + PROMPT,
    "a loop that is kept": "{% set kept %}" + LOOP + SAY + "{% endfor %}{% endset %}{{ kept | upper }}",
    "all in one iteration": "{% for once in [1] %}" + LOOP + SAY + "{% endfor %}{% endfor %}",
}
"""Templates where an answer may change the text of others."""

PROMPTS = {
    "at the end": PLAIN,
    "with thinking": PLAIN.replace(
        "<|assistant|>{% endif %}", "<|assistant|>{% if thinks is defined %}<think>{% endif %}{% endif %}"
    ),
    "in the loop": LOOP + SAY + "{% if loop.last and add_generation_prompt %}<|assistant|>{% endif %}{% endfor %}",
    "has a default": "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
    + PLAIN,
    "none": LOOP + SAY + "{% endfor %}",
}
"""Templates whose text without a generation prompt is known from the text with one."""

PROMPTS_UNKNOWN = {
    "else": PLAIN.replace("<|assistant|>{% endif %}", "<|assistant|>{% else %}<|eos|>{% endif %}"),
    "not": PLAIN + "{% if not add_generation_prompt %}<|eos|>{% endif %}",
    "sets": PLAIN.replace("<|assistant|>{% endif %}", "<|assistant|>{% set more = 1 %}{% endif %}{{ more }}"),
    "as a value": PLAIN + "{{ add_generation_prompt }}",
    "in a macro": "{% macro end() %}" + PROMPT + "{% endmacro %}" + LOOP + SAY + "{% endfor %}{{ end() | upper }}",
    "either": PLAIN.replace("if add_generation_prompt", "if add_generation_prompt or messages"),
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def conversation(*answers: str, system: str | None = None) -> Conversation:
    messages = [] if system is None else [Message("system", system)]
    for number, answer in enumerate(answers):
        messages += [Message("user", f"Question {number}?"), Message("assistant", answer)]
    return Conversation("one", tuple(messages))


def compile_source(source: str) -> CompiledTemplate:
    found = compile_template(source)
    assert found is not None
    return found


def trace(source: str, said: Conversation) -> Traced | None:
    return compile_source(source).trace(messages_of(said), said.assistant_turns(), {})


def agree(tokenizer: PreTrainedTokenizerBase, source: str, said: Conversation) -> None:
    """What the product finds is what the reference finds."""
    tokenizer.chat_template = source
    try:
        text, spans = reference_spans(tokenizer, said)
    except RENDER_ERRORS:
        with pytest.raises(RenderError):
            ChatTemplate(tokenizer, {}).render(said)
        return
    found = ChatTemplate(tokenizer, {}).render(said)
    kept = [span for span in spans if span is not None]
    assert found.text == text
    assert [(span.start, span.end) for span in found.spans] == kept
    assert found.not_located == len(spans) - len(kept)


# -- What is proven -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(APART))
def test_answers_that_keep_to_themselves_are_told_apart(name: str) -> None:
    found = trace(APART[name], conversation("a", "b", "c", system="s"))
    assert found is not None
    assert {reader for reader in found.readers if reader is not None} == {2, 4, 6}
    assert "".join(found.part(place) for place in range(len(found.readers))) == found.text


@pytest.mark.parametrize("name", list(TOGETHER))
def test_answers_that_reach_others_are_not(name: str) -> None:
    assert trace(TOGETHER[name], conversation("a", "b", "c")) is None


def test_what_users_say_may_choose_anything() -> None:
    source = "{% set ns = namespace(n=0) %}" + LOOP + "{% if message.role == 'user' %}{% set ns.n = "
    source += "message.content | length %}{% endif %}" + SAY + "{{ ns.n }}{% endfor %}"
    assert trace(source, conversation("a", "b")) is not None


ANSWER = st.text("ab<>/think\n ", max_size=9) | st.sampled_from(
    ["<think>x</think>y", "\ue000\ue001\ue002", "<|end|>", ""]
)


@settings(max_examples=300, deadline=None)
@given(
    source=st.sampled_from([*APART.values(), *TOGETHER.values(), *PROMPTS.values(), *PROMPTS_UNKNOWN.values(), CHATML]),
    answers=st.lists(ANSWER, min_size=1, max_size=4),
    system=st.none() | ANSWER,
)
def test_spans_are_those_of_one_rendering_for_each_answer(
    tokenizer: PreTrainedTokenizerBase, source: str, answers: list[str], system: str | None
) -> None:
    agree(tokenizer, source, conversation(*answers, system=system))


STATEMENTS = st.sampled_from([
    "{{ message.content }}", "{{ message['content'] | trim }}", "{{ message.role }}", "<|x|>", "{{ ns.x }}",
    "{% set ns.x = ns.x + 1 %}", "{% set ns.x = message.content | length %}", "{% set y = message.content %}",
    "{{ y }}", "{% if message.content %}+{% endif %}", "{% if loop.last %}-{% endif %}", "{{ messages[-1].content }}",
    "{% if message.role == 'assistant' %}{{ message.content.strip('a') }}{% endif %}", "{{ messages[0].content }}",
    "{% if 'a' in message.content %}{% continue %}{% endif %}", "{% if loop.first %}{% continue %}{% endif %}",
    "{% if add_generation_prompt and loop.last %}>{% endif %}", "{{ message.content.split('</think>')[-1] }}",
    "{% for c in message.content %}{{ c }}{% endfor %}", "{{ loop.index }}", "{{ message.get('content') }}",
    "{% if loop.previtem is defined %}{{ loop.previtem.content }}{% endif %}", "{{ message | length }}",
])  # fmt: skip
ENDINGS = st.sampled_from(["", PROMPT, "{{ ns.x }}", "{{ messages[-1].content }}", "{{ y }}", PLAIN])


@settings(max_examples=400, deadline=None)
@given(
    loops=st.lists(st.lists(STATEMENTS, min_size=1, max_size=5), min_size=1, max_size=2),
    ending=ENDINGS,
    answers=st.lists(ANSWER, min_size=1, max_size=3),
)
def test_spans_of_made_up_templates(
    tokenizer: PreTrainedTokenizerBase, loops: list[list[str]], ending: str, answers: list[str]
) -> None:
    """Whatever a template does with its messages: proven equal and equal, or not proven."""
    bodies = "".join(f"{LOOP}{''.join(body)}{{% endfor %}}" for body in loops)
    agree(tokenizer, "{% set ns = namespace(x=0) %}" + bodies + ending, conversation(*answers))


# -- Prompts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*PROMPTS, *PROMPTS_UNKNOWN])
def test_the_length_without_a_prompt(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    source = {**PROMPTS, **PROMPTS_UNKNOWN}[name]
    messages = messages_of(conversation("a", "b"))
    text, shortest = compile_source(source).render_prompt(messages, {"thinks": True})
    known: dict[str, Any] = {"chat_template": source, "tokenize": False, "thinks": True}
    assert text == tokenizer.apply_chat_template(messages, add_generation_prompt=True, **known)
    if name in PROMPTS_UNKNOWN:
        assert shortest is None
    else:
        assert shortest == len(str(tokenizer.apply_chat_template(messages, **known)))


# -- Rendering as the library does ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "error"),
    [
        pytest.param("{{ raise_exception('no') }}", TemplateError, id="raises"),
        pytest.param("{{ messages[9].content }}", UndefinedError, id="is not there"),
        pytest.param("{{ ''.__class__.mro() }}", SecurityError, id="reaches for the interpreter"),
        pytest.param("{{ messages[0].__class__.mro() }}", SecurityError, id="through a message"),
        pytest.param("{{ messages.append(1) }}", SecurityError, id="changes the messages"),
        pytest.param("{{ messages[0].update(a=1) }}", SecurityError, id="changes a message"),
    ],
)
def test_the_sandbox_holds(source: str, error: type[Exception]) -> None:
    said = conversation("a")
    for run in (
        lambda: compile_source(source).render(messages_of(said), {}),
        lambda: compile_source(source).trace(messages_of(said), [1], {}),
    ):
        with pytest.raises(error):
            run()


def test_arguments_and_names_reach_the_template() -> None:
    source = "{{ bos_token }}{{ style }}{{ tools is none }}{{ documents is none }}{{ add_generation_prompt }}"
    assert compile_source(source).render([], {"bos_token": "<s>", "style": "x"}) == "<s>xTrueTrueFalse"


def test_a_missing_key_is_undefined_as_ever() -> None:
    source = LOOP + "{{ message.nothing is defined }}{{ message.items is defined }}{{ message.nothing }}{% endfor %}"
    said = conversation("a")
    assert compile_source(source).render(messages_of(said), {}) == "FalseTrue" * 2
    found = trace(source, said)
    assert found is not None
    assert found.text == "FalseTrue" * 2


def test_without_the_library_s_compiler_answers_are_found_the_slow_way(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = conversation("a", "b", system="s")
    tokenizer.chat_template = CHATML
    quick = ChatTemplate(tokenizer, {}).render(said)
    compile_template.cache_clear()
    monkeypatch.setattr(compiled, "LIBRARY_COMPILER", "compiler of another version")
    try:
        assert compile_template(CHATML) is None
        assert ChatTemplate(tokenizer, {}).render(said) == quick
    finally:
        compile_template.cache_clear()
    assert [quick.text[span.start : span.end] for span in quick.spans] == ["a", "b"]


# -- Another answer in a text ---------------------------------------------------------------------------


def test_replacements_take_all_parts_of_an_answer() -> None:
    one = Traced("abXcdYef", [0, 2, 3, 5, 6, 8], [1, None, 1, 3, None])
    other = Traced("12X34Zef", [0, 2, 3, 5, 6, 8], [1, None, 1, 3, None])
    assert list(replacements(one, other, [1, 3, 5])) == [Replaced(0, 5, "12X34"), Replaced(5, 6, "Z"), None]


@given(st.text("ab", max_size=6), st.text("ab", max_size=4), st.text("ab", max_size=6), st.text("abS", max_size=6))
def test_a_local_change_is_the_change_of_the_whole(before: str, own: str, after: str, other: str) -> None:
    text = before + own + after
    local = changed(text, Replaced(len(before), len(before) + len(own), other), "S")
    whole = changed(text, Replaced(0, len(text), before + other + after), "S")
    assert local == whole
    assert (local is None) == (other.count("S") != 1) or local is None


def test_a_change_that_is_not_there() -> None:
    assert changed("abc", Replaced(1, 2, "x"), "S") is None
    assert changed("abc", Replaced(1, 2, "S"), "S") == Span(1, 2)
