"""Chat templates of every awkward family: the right text is found, and nothing else is supervised."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from draftyard_trainer.data.built_in import FORMATS, recognise
from draftyard_trainer.data.conversation import Conversation, Message
from draftyard_trainer.data.template import (
    ChatTemplate,
    MaskSource,
    Rendered,
    RenderError,
    common_prefix,
    common_suffix,
    unused_sentinel,
)
from draftyard_trainer.testing import CHATML, write_tokenizer

TURN = "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
LOOP = "{% for message in messages %}"

THINKING = (  # earlier thinking is dropped, the last answer always has a thinking block
    LOOP + "<|im_start|>{{ message.role }}\n{% set parts = message.content.split('</think>') %}"
    "{% if message.role == 'assistant' and loop.last %}"
    "<think>\n{{ parts[0].split('<think>')[-1].strip() if parts | length > 1 else '' }}\n</think>\n\n{% endif %}"
    "{{ parts[-1].lstrip('\n') }}<|im_end|>\n{% endfor %}" + PROMPT
)
OPEN_THINKING = THINKING.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
OWN_BOS = "{{ bos_token }}" + CHATML
TAGGED = (
    LOOP + "{% if message.role == 'assistant' %}<|im_start|>assistant\n"
    "{% generation %}{{ message.content }}<|im_end|>\n{% endgeneration %}"
    "{% else %}" + TURN + "{% endif %}{% endfor %}" + PROMPT
)
TAGGED_WITH_HEADER = TAGGED.replace(
    "<|im_start|>assistant\n{% generation %}", "{% generation %}<|im_start|>assistant\n", 1
)
TAGS_AROUND_NOTHING = TAGGED.replace("{{ message.content }}<|im_end|>\n{% endgen", "{% endgen")
MERGES_SYSTEM = (
    "{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\n\n' %}{% set rest = messages[1:] %}"
    "{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}"
    "{% for message in rest %}{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/...') }}{% endif %}"
    "<start_of_turn>{{ 'model' if message.role == 'assistant' else message.role }}\n"
    "{{ first if loop.first else '' }}{{ message.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
RAISES_ON_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
)
CHANNELS = (  # the header goes on behind the generation prompt
    LOOP + "<|start|>{{ message.role }}{% if message.role == 'assistant' %}<|channel|>final{% endif %}"
    "<|message|>{{ message.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
MUTE = LOOP + "{% if message.role != 'assistant' %}" + TURN + "{% endif %}{% endfor %}" + PROMPT
ECHO = CHATML + "{% for message in messages %}{{ message.content }}{% endfor %}"
NO_PROMPT = LOOP + TURN + "{% endfor %}"
CALLS = (
    LOOP + "<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{% for call in message.tool_calls or [] %}<tool_call>{{ call | tojson }}</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}" + PROMPT
)

ANSWERS = ("Four.\n\nTwo and two.", "Six")
MakeTemplate = Callable[..., ChatTemplate]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def make(tokenizer: PreTrainedTokenizerBase) -> MakeTemplate:
    def build(source: str | None, known: str | None = None, **kwargs: Any) -> ChatTemplate:
        tokenizer.chat_template = source
        return ChatTemplate(tokenizer, kwargs, FORMATS[known] if known else None)

    return build


def conversation(*answers: str, system: str = "") -> Conversation:
    messages = [Message("system", system)] if system else []
    for number, answer in enumerate(answers):
        messages += [Message("user", f"Question {number}?"), Message("assistant", answer)]
    return Conversation("one", tuple(messages))


def supervised(rendered: Rendered) -> list[str]:
    return [rendered.text[span.start : span.end] for span in rendered.spans]


@pytest.mark.parametrize(
    ("source", "texts", "how"),
    [
        pytest.param(CHATML, list(ANSWERS), MaskSource.DIFF, id="plain"),
        pytest.param(OWN_BOS, list(ANSWERS), MaskSource.DIFF, id="writes its own bos"),
        pytest.param(
            THINKING, [ANSWERS[0], "<think>\n\n</think>\n\nSix"], MaskSource.DIFF, id="thinks in the last turn only"
        ),
        pytest.param(
            OPEN_THINKING, [ANSWERS[0], "\n</think>\n\nSix"], MaskSource.DIFF, id="the prompt opens the thinking"
        ),
        pytest.param(MERGES_SYSTEM, list(ANSWERS), MaskSource.DIFF, id="merges system into the first user"),
        pytest.param(
            CHANNELS, [f"<|channel|>final<|message|>{answer}" for answer in ANSWERS], MaskSource.DIFF, id="channels"
        ),
        pytest.param(
            NO_PROMPT,
            [f"<|im_start|>assistant\n{answer}" for answer in ANSWERS],
            MaskSource.DIFF,
            id="has no generation prompt, so the target writes the header",
        ),
        pytest.param(TAGGED, [f"{answer}<|im_end|>\n" for answer in ANSWERS], MaskSource.TAGS, id="tags"),
        pytest.param(
            TAGGED_WITH_HEADER,
            [f"{answer}<|im_end|>\n" for answer in ANSWERS],
            MaskSource.TAGS,
            id="tags its header too",
        ),
    ],
)
def test_answers_are_located(make: MakeTemplate, source: str, texts: list[str], how: MaskSource) -> None:
    rendered = make(source).render(conversation(*ANSWERS))
    assert supervised(rendered) == texts
    assert (rendered.source, rendered.turns, rendered.not_located) == (how, 2, 0)


def test_the_text_is_what_a_server_renders(make: MakeTemplate) -> None:
    rendered = make(OWN_BOS).render(conversation("Four.", system="Be brief."))
    assert rendered.text == (
        "<|endoftext|><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nQuestion 0?<|im_end|>\n"
        "<|im_start|>assistant\nFour.<|im_end|>\n"
    )


def test_what_comes_before_an_answer_is_the_generation_prompt(make: MakeTemplate) -> None:
    for source in (CHATML, OWN_BOS, OPEN_THINKING, MERGES_SYSTEM, CHANNELS, TAGGED_WITH_HEADER):
        template = make(source)
        for number, rendered in enumerate(template.render_turns(conversation(*ANSWERS))):
            messages = [message.for_template() for message in conversation(*ANSWERS).messages[: 2 * number + 1]]
            prompt = template.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            assert rendered.text[: rendered.spans[0].start] == prompt


def test_a_system_prompt_that_is_merged_is_no_part_of_an_answer(make: MakeTemplate) -> None:
    rendered = make(MERGES_SYSTEM).render(conversation(*ANSWERS, system="Six"))
    assert supervised(rendered) == list(ANSWERS)
    assert rendered.spans[0].start > rendered.text.index("Six")


def test_trimmed_content_is_supervised_as_it_is_rendered(make: MakeTemplate) -> None:
    assert supervised(make(MERGES_SYSTEM).render(conversation("  Four. \n", "Six\n"))) == ["Four.", "Six"]


def test_equal_answers_are_told_apart(make: MakeTemplate) -> None:
    rendered = make(CHATML).render(conversation("Yes", "Yes", "Yes"))
    assert supervised(rendered) == ["Yes"] * 3
    assert len({span.start for span in rendered.spans}) == 3


def test_an_empty_answer_is_an_empty_span_where_it_would_be(make: MakeTemplate) -> None:
    rendered = make(CHATML).render(conversation("", "Six"))
    assert supervised(rendered) == ["", "Six"]
    assert rendered.text[rendered.spans[0].start :].startswith("<|im_end|>")


def test_an_answer_with_the_sentinel_in_it_is_still_found(make: MakeTemplate) -> None:
    assert supervised(make(CHATML).render(conversation("\ue000\ue001\ue002"))) == ["\ue000\ue001\ue002"]
    assert unused_sentinel("plain") == "\ue000\ue001\ue002"
    assert unused_sentinel("\ue000\ue001\ue002") == "\ue001\ue002\ue003"


def test_thinking_is_supervised_where_it_is_rendered(make: MakeTemplate) -> None:
    said = conversation("<think>\nHm\n</think>\n\nFour.", "<think>\nOh\n</think>\n\nSix")
    assert supervised(make(THINKING).render(said)) == ["Four.", "<think>\nOh\n</think>\n\nSix"]
    assert [supervised(turn) for turn in make(THINKING).render_turns(said)] == [
        ["<think>\nHm\n</think>\n\nFour."],
        ["<think>\nOh\n</think>\n\nSix"],
    ]


def test_tool_calls_are_supervised_and_tool_answers_are_not(make: MakeTemplate) -> None:
    call = {"name": "add", "arguments": {"x": 2}}
    messages = (
        Message("user", "2 and 2?"),
        Message("assistant", "", tool_calls=(call,)),
        Message("tool", "4"),
        Message("assistant", "Four."),
    )
    rendered = make(CALLS).render(Conversation("one", messages))
    expected = '<tool_call>{"name": "add", "arguments": {"x": 2}}</tool_call>'
    assert supervised(rendered) == [expected, "Four."]


def test_template_arguments_reach_the_template(make: MakeTemplate) -> None:
    source = "{% if shout is defined and shout %}LOUD {% endif %}" + CHATML
    assert make(source, shout=True).render(conversation("Four.")).text.startswith("LOUD <|im_start|>")
    assert make(source).render(conversation("Four.")).text.startswith("<|im_start|>")


def test_a_template_for_tools_is_taken_with_tools(make: MakeTemplate) -> None:
    template = make(None)
    template.tokenizer.chat_template = {"default": CHATML, "tool_use": "TOOLS {{ tools | length }} " + TAGGED}
    with_tools = Conversation("one", conversation("Four.").messages, tools=({"name": "add"},))
    assert template.render(with_tools).text.startswith("TOOLS 1 <|im_start|>user")
    assert template.render(with_tools).source is MaskSource.TAGS
    assert template.render(conversation("Four.")).source is MaskSource.DIFF


@pytest.mark.parametrize(
    ("source", "what"),
    [
        pytest.param(RAISES_ON_SYSTEM, "System role not supported", id="raises"),
        pytest.param("{{ nothing.at.all }}", "UndefinedError", id="reads what is not there"),
        pytest.param("{% for %}", "TemplateSyntaxError", id="is no template"),
        pytest.param("{{ 1 + 'a' }}", "TypeError", id="breaks in python"),
        pytest.param(None, "chat_template is not set", id="is absent"),
        pytest.param(TAGGED + "{{ raise_exception('tagged too') }}", "tagged too", id="raises and has tags"),
    ],
)
def test_a_template_that_refuses_a_conversation_says_why(make: MakeTemplate, source: str | None, what: str) -> None:
    with pytest.raises(RenderError, match=what):
        make(source).render(conversation("Four.", system="Be brief."))


def test_an_answer_that_is_not_rendered_is_not_located(make: MakeTemplate) -> None:
    rendered = make(MUTE).render(conversation(*ANSWERS))
    assert (rendered.spans, rendered.turns, rendered.not_located) == ((), 2, 2)


def test_an_answer_that_is_rendered_twice_is_not_located(make: MakeTemplate) -> None:
    """Between its first and its last place there is text of others."""
    echo = ECHO.replace("<|im_start|>assistant", "<|reply|>")
    rendered = make(echo.replace("<|im_start|>", "<|said|>")).render(conversation(*ANSWERS))
    assert (rendered.spans, rendered.not_located) == ((), 2)


def test_known_headers_help_where_the_difference_finds_nothing(make: MakeTemplate) -> None:
    fussy = "{% if messages[-1].content != 'Six' %}{{ raise_exception('Six!') }}{% endif %}" + CHATML
    rendered = make(fussy).render(conversation("Six"))
    assert (supervised(rendered), rendered.source) == (["Six"], MaskSource.HEADERS)


def test_known_headers_around_nothing_locate_nothing(make: MakeTemplate) -> None:
    """Or a template without answers would train a draft on stop tokens alone."""
    mute = CHATML.replace("{{ message['content'] }}", "{{ message['content'] if message['role'] == 'user' }}")
    rendered = make(mute).render(conversation(*ANSWERS))
    assert (rendered.spans, rendered.turns, rendered.not_located) == ((), 2, 2)


def test_turns_that_only_some_renders_show(make: MakeTemplate) -> None:
    """A template that keeps the last answer alone: the other one is counted, not guessed."""
    last_only = LOOP + "{% if message.role == 'user' or loop.last %}" + TURN + "{% endif %}{% endfor %}" + PROMPT
    rendered = make(last_only).render(conversation(*ANSWERS))
    assert supervised(rendered) == ["Six"]
    assert (rendered.turns, rendered.not_located) == (2, 1)


def test_tags_around_nothing_leave_nothing(make: MakeTemplate) -> None:
    rendered = make(TAGS_AROUND_NOTHING).render(conversation(*ANSWERS))
    assert (rendered.spans, rendered.source, rendered.turns) == ((), MaskSource.TAGS, 2)


@pytest.mark.parametrize("source", [CHATML, TAGGED, THINKING])
def test_turns_apart_end_with_their_answer(make: MakeTemplate, source: str) -> None:
    turns = make(source).render_turns(conversation(*ANSWERS, system="Be brief."))
    assert len(turns) == 2
    for rendered, answer in zip(turns, ANSWERS, strict=True):
        assert len(rendered.spans) == rendered.turns == 1
        assert answer in supervised(rendered)[0]
        assert rendered.text.endswith(f"{answer}<|im_end|>\n")
    assert "Question 1" not in turns[0].text


# -- Formats known by name --------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_a_named_format_renders_and_locates_by_itself(make: MakeTemplate, name: str) -> None:
    template = make(None, known=name)
    rendered = template.render(conversation(*ANSWERS, system="Be brief."))
    assert supervised(rendered) == list(ANSWERS)
    assert (rendered.source, rendered.turns, rendered.not_located) == (MaskSource.HEADERS, 2, 0)
    assert recognise(rendered.text) is FORMATS[name]
    assert [supervised(turn) for turn in template.render_turns(conversation(*ANSWERS))] == [[text] for text in ANSWERS]


@pytest.mark.parametrize("name", FORMATS)
def test_the_difference_agrees_with_the_headers(make: MakeTemplate, name: str) -> None:
    by_headers = make(None, known=name).render(conversation(*ANSWERS))
    by_difference = make(FORMATS[name].template).render(conversation(*ANSWERS))
    assert by_difference.source is MaskSource.DIFF
    assert (by_difference.text, by_difference.spans) == (by_headers.text, by_headers.spans)


def test_rendered_text_is_read_between_headers(make: MakeTemplate) -> None:
    text = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>\n<|im_start|>assistant\nopen end"
    template = make(CHATML)
    rendered = template.render(Conversation("one", text=text))
    assert (rendered.text, supervised(rendered), rendered.turns) == (text, ["Ho", "open end"], 2)
    assert template.render_turns(Conversation("one", text=text)) == [rendered]


def test_rendered_text_of_an_unknown_format_has_no_answers(make: MakeTemplate) -> None:
    rendered = make(CHATML).render(Conversation("one", text="Q: Hi\nA: Ho"))
    assert (rendered.spans, rendered.turns, rendered.not_located) == ((), 1, 1)


def test_the_source_of_a_template_is_what_is_hashed(make: MakeTemplate) -> None:
    assert make(CHATML).text == CHATML
    assert make(CHATML, known="gemma").text == FORMATS["gemma"].template
    assert make(None).text == '""'
    template = make(None)
    template.tokenizer.chat_template = {"b": "B", "a": "A"}
    assert template.text == '{"a": "A", "b": "B"}'


# -- Properties ----------------------------------------------------------------------------

HEADERS = {CHATML: "", OWN_BOS: "", CHANNELS: "<|channel|>final<|message|>", NO_PROMPT: "<|im_start|>assistant\n"}
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@given(st.text("ab", max_size=9), st.text("ab", max_size=9))
def test_common_ends(one: str, other: str) -> None:
    prefix, suffix = common_prefix(one, other), common_suffix(one, other)
    assert one[:prefix] == other[:prefix]
    assert one[prefix : prefix + 1] != other[prefix : prefix + 1] or prefix == min(len(one), len(other))
    assert common_prefix(one[::-1], other[::-1]) == suffix


@given(st.lists(TEXT, min_size=1, max_size=4), st.sampled_from(list(HEADERS)))
def test_any_answers_are_found_exactly(tokenizer: PreTrainedTokenizerBase, answers: list[str], source: str) -> None:
    tokenizer.chat_template = source
    rendered = ChatTemplate(tokenizer, {}).render(conversation(*answers))
    assert supervised(rendered) == [HEADERS[source] + answer for answer in answers]
