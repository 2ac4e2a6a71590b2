"""Rows of real data sets become conversations, or are skipped with a reason."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftyard_trainer.data.conversation import (
    ANSWERS,
    QUESTIONS,
    ROLES,
    Conversation,
    SkipReason,
    decode_json,
    read_row,
)


def sharegpt(*turns: tuple[str, Any], **fields: Any) -> dict[str, Any]:
    return {"id": "one", "conversations": [{"from": speaker, "value": value} for speaker, value in turns], **fields}


def openai(*messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"messages": list(messages), **fields}


def read(row: object) -> Conversation:
    conversation = read_row(row)
    assert isinstance(conversation, Conversation), conversation
    return conversation


def roles(conversation: Conversation) -> str:
    return " ".join(message.role for message in conversation.messages)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        pytest.param([], SkipReason.NOT_AN_OBJECT, id="a list is no row"),
        pytest.param("text", SkipReason.NOT_AN_OBJECT, id="a text is no row"),
        pytest.param({}, SkipReason.EMPTY, id="neither messages nor text"),
        pytest.param({"conversations": []}, SkipReason.EMPTY, id="no messages"),
        pytest.param({"conversations": None, "text": ""}, SkipReason.EMPTY, id="empty text"),
        pytest.param({"conversations": "Hello"}, SkipReason.MALFORMED, id="messages that are text"),
        pytest.param({"conversations": ["Hello"]}, SkipReason.MALFORMED, id="a message that is text"),
        pytest.param(sharegpt(("human", 7), ("gpt", "x")), SkipReason.MALFORMED, id="content that is a number"),
        pytest.param({"text": {"a": 1}}, SkipReason.MALFORMED, id="text that is an object"),
        pytest.param(
            openai({"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}),
            SkipReason.MALFORMED,
            id="a picture",
        ),
        pytest.param(
            sharegpt(("human", "a"), ("gpt", "b"), tools={"name": "f"}),
            SkipReason.MALFORMED,
            id="tools that are no list",
        ),
        pytest.param(sharegpt(("human", "a"), ("function_call", "b")), SkipReason.UNKNOWN_ROLE, id="unknown speaker"),
        pytest.param({"messages": [{"content": "a"}]}, SkipReason.UNKNOWN_ROLE, id="no speaker"),
        pytest.param({"messages": [{"role": ["user"]}]}, SkipReason.UNKNOWN_ROLE, id="a speaker that is a list"),
        pytest.param(sharegpt(("human", "a"), ("human", "b")), SkipReason.NO_ASSISTANT, id="nobody answers"),
        pytest.param(sharegpt(("gpt", "a"), ("gpt", "b")), SkipReason.NO_ASSISTANT, id="nobody asks"),
        pytest.param(sharegpt(("system", "s")), SkipReason.NO_ASSISTANT, id="only a system prompt"),
        pytest.param(
            sharegpt(("human", "a"), ("system", "s"), ("gpt", "b")), SkipReason.NO_ASSISTANT, id="cut before the answer"
        ),
    ],
)
def test_rows_that_give_no_conversation_have_a_reason(row: object, reason: SkipReason) -> None:
    assert read_row(row) is reason


@pytest.mark.parametrize(
    ("speaker", "role"),
    [
        ("human", "user"),
        ("user", "user"),
        ("gpt", "assistant"),
        ("chatgpt", "assistant"),
        ("bing", "assistant"),
        ("bard", "assistant"),
        ("assistant", "assistant"),
    ],
)
def test_speakers_of_all_data_sets_become_the_roles_of_templates(speaker: str, role: str) -> None:
    row = sharegpt(("human", "a"), ("gpt", "b"), ("human", "c"), (speaker, "d"))
    if role == "user":
        assert roles(read(row)) == "user assistant user user"
    else:
        assert roles(read(row)) == "user assistant user assistant"


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        pytest.param("human gpt human gpt", "user assistant user assistant", id="in order"),
        pytest.param("system human gpt", "system user assistant", id="a leading system message stays"),
        pytest.param("gpt human gpt", "user assistant", id="a leading answer goes"),
        pytest.param("gpt gpt tool human gpt", "user assistant", id="all leading answers go"),
        pytest.param("system gpt human gpt", "system user assistant", id="they go behind a system message too"),
        pytest.param("gpt system human gpt", "user assistant", id="a system message after them is not leading"),
        pytest.param("human gpt gpt human gpt", "user assistant", id="cut where an answer follows an answer"),
        pytest.param(
            "human gpt system gpt", "user assistant system", id="cut where an answer follows a system message"
        ),
        pytest.param("human gpt human tool gpt", "user assistant user", id="cut where a tool answers a user"),
        pytest.param("human gpt tool tool gpt", "user assistant tool tool assistant", id="tools answer calls"),
        pytest.param("human human gpt", "user user assistant", id="a user may say two things"),
        pytest.param("human gpt human", "user assistant user", id="an unanswered question stays"),
    ],
)
def test_order(said: str, kept: str) -> None:
    assert roles(read(sharegpt(*((speaker, "x") for speaker in said.split())))) == kept


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("answer", ANSWERS)
def test_a_row_with_a_question_and_an_answer(question: str, answer: str) -> None:
    found = read({question: "Why?", answer: "So.", "id": "x", "score": 1})
    assert [(said.role, said.content) for said in found.messages] == [("user", "Why?"), ("assistant", "So.")]
    assert found.id == "x"


def test_a_question_goes_on_and_a_system_prompt_comes_first() -> None:
    found = read({"instruction": "Sort", "input": "3, 1", "output": "1, 3", "system": "Be brief."})
    assert [said.content for said in found.messages] == ["Be brief.", "Sort\n\n3, 1", "1, 3"]
    assert [said.content for said in read({"prompt": "a", "input": "", "answer": "b"}).messages] == ["a", "b"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        pytest.param({"prompt": "a"}, SkipReason.EMPTY, id="no answer"),
        pytest.param({"output": "a"}, SkipReason.EMPTY, id="no question"),
        pytest.param({"prompt": "a", "question": "b", "answer": "c"}, SkipReason.MALFORMED, id="two questions"),
        pytest.param({"prompt": "a", "answer": "b", "output": "c"}, SkipReason.MALFORMED, id="two answers"),
        pytest.param({"prompt": ["a"], "answer": "b"}, SkipReason.MALFORMED, id="a list"),
        pytest.param({"prompt": "a", "input": 1, "answer": "b"}, SkipReason.MALFORMED, id="a number goes on"),
        pytest.param({"prompt": "a", "answer": 7}, SkipReason.MALFORMED, id="a number answers"),
    ],
)
def test_pairs_that_are_none(row: dict[str, Any], reason: SkipReason) -> None:
    assert read_row(row) is reason


def test_messages_win_over_pairs() -> None:
    row = {
        **openai({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}),
        "prompt": "c",
        "answer": "d",
    }
    assert read(row).messages[1].content == "b"


def test_no_system_prompt_is_added() -> None:
    assert roles(read(sharegpt(("human", "a"), ("gpt", "b")))) == "user assistant"


def test_the_given_id_is_kept_and_may_be_a_number() -> None:
    assert read(sharegpt(("human", "a"), ("gpt", "b"))).id == "one"
    assert read(sharegpt(("human", "a"), ("gpt", "b"), id=17)).id == "17"


def test_rows_without_an_id_are_named_by_their_content() -> None:
    first = openai({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, source="x")
    swapped = {"source": "x", "messages": [{"content": "a", "role": "user"}, {"content": "b", "role": "assistant"}]}
    other = openai({"role": "user", "content": "a"}, {"role": "assistant", "content": "c"}, source="x")
    assert read(first).id == read(swapped).id
    assert read(first).id != read(other).id
    assert len(read(first).id) == 64


def test_none_is_empty_text() -> None:
    assert read(sharegpt(("human", None), ("gpt", "b"))).messages[0].content == ""


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "Hello "}, {"type": "text", "text": "there"}]
    row = openai({"role": "user", "content": parts}, {"role": "assistant", "content": "Hi"})
    assert read(row).messages[0].content == "Hello there"


def test_messages_win_over_text() -> None:
    row = sharegpt(("human", "a"), ("gpt", "b"), text="rendered")
    assert read(row).text is None
    assert read({"text": "rendered"}).text == "rendered"


@pytest.mark.parametrize(
    ("given_tools", "tools"),
    [
        pytest.param(None, (), id="none"),
        pytest.param([], (), id="an empty list loses no row"),
        pytest.param("", (), id="empty text"),
        pytest.param("[]", (), id="an empty list as text"),
        pytest.param([{"name": "f"}], ({"name": "f"},), id="a list"),
        pytest.param('[{"name": "f"}]', ({"name": "f"},), id="JSON text"),
    ],
)
def test_tools(given_tools: object, tools: tuple[Any, ...]) -> None:
    assert read(sharegpt(("human", "a"), ("gpt", "b"), tools=given_tools)).tools == tools


@pytest.mark.parametrize(
    "calls",
    [
        pytest.param([{"function": {"name": "f", "arguments": '{"x": 1}'}}], id="arguments as text"),
        pytest.param([{"function": {"name": "f", "arguments": {"x": 1}}}], id="arguments as an object"),
        pytest.param('[{"function": {"name": "f", "arguments": "{\\"x\\": 1}"}}]', id="everything as text"),
    ],
)
def test_tool_calls_reach_the_template_as_objects(calls: object) -> None:
    row = openai({"role": "user", "content": "a"}, {"role": "assistant", "content": None, "tool_calls": calls})
    message = read(row).messages[1].for_template()
    assert message["tool_calls"] == [{"function": {"name": "f", "arguments": {"x": 1}}}]
    assert message["content"] == ""


def test_flat_and_broken_arguments() -> None:
    calls = [{"name": "f", "arguments": '{"x": 1}'}, {"name": "g", "arguments": "not json"}, "odd"]
    row = openai({"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": calls})
    expected = ({"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": "not json"}, "odd")
    assert read(row).messages[1].tool_calls == expected


def test_what_templates_read_besides_content_is_carried_and_the_rest_is_not() -> None:
    row = openai(
        {"role": "user", "content": "a", "weight": 0.5},
        {"role": "assistant", "content": "b", "reasoning_content": "because", "name": None},
    )
    user, assistant = (message.for_template() for message in read(row).messages)
    assert user == {"role": "user", "content": "a"}
    assert assistant == {"role": "assistant", "content": "b", "reasoning_content": "because"}


def test_a_conversation_up_to_a_turn() -> None:
    conversation = read(sharegpt(("system", "s"), ("human", "a"), ("gpt", "b"), ("human", "c"), ("gpt", "d")))
    assert conversation.assistant_turns() == [2, 4]
    assert roles(conversation.upto(2)) == "system user assistant"
    assert conversation.upto(2).id == conversation.id


@pytest.mark.parametrize(
    ("spelled", "value"),
    [
        pytest.param('"\\ud83d\\ude00"', "😀", id="a whole pair is an emoji"),
        pytest.param('"a\\ud83d"', "a\ufffd", id="half a pair is mended"),
        pytest.param('{"k\\uDE00": ["\\ud83dx"]}', {"k\ufffd": ["\ufffdx"]}, id="inside of objects too"),
        pytest.param('"a\nb\tc"', "a\nb\tc", id="raw control characters are taken"),
        pytest.param('"\\\\ud83d"', "\\ud83d", id="an escaped backslash is no escape"),
    ],
)
def test_json_that_real_exports_spell(spelled: str, value: object) -> None:
    assert decode_json(spelled) == value


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
MESSAGES = st.fixed_dictionaries({"from": st.sampled_from([*ROLES, "odd"]), "value": st.text(max_size=3) | JSON})


@given(st.dictionaries(st.sampled_from(["id", "conversations", "messages", "text", "tools"]), JSON) | JSON)
def test_no_json_value_ends_the_stage(row: object) -> None:
    read_row(row)  # must not raise
    assert isinstance(read_row(row), Conversation | SkipReason)


@given(st.lists(MESSAGES, max_size=8))
def test_every_conversation_is_one_that_a_server_could_have_had(messages: list[dict[str, Any]]) -> None:
    conversation = read_row({"conversations": messages})
    if isinstance(conversation, SkipReason):
        return
    said = [message.role for message in conversation.messages]
    assert said[0] == "user" or said[:2] == ["system", "user"]
    assert "assistant" in said
    before = dict(enumerate(said, start=1))
    assert all(before[place] in ("user", "tool") for place, role in enumerate(said) if role == "assistant")
    assert all(before[place] in ("assistant", "tool") for place, role in enumerate(said) if role == "tool")
