"""Spans become tokens: exact at both ends, with the stop token, without a second bos."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase

from draftyard_trainer.data.conversation import Conversation, Message
from draftyard_trainer.data.document import Document
from draftyard_trainer.data.template import ChatTemplate, MaskSource, Rendered, Span
from draftyard_trainer.data.tokens import Pieces, Tokenised, TokenRules, supervise, token_range, tokenise
from draftyard_trainer.testing import CHATML, write_tokenizer

BOS, START, STOP = 0, 1, 2
RULES = TokenRules(frozenset({STOP}), max_length=10_000)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def pieces(*texts: str, stop: str = "$") -> Pieces:
    """One token for each text, side by side; the text `stop` has the stop token's id, all others count up from 10."""
    ends = np.cumsum([len(text) for text in texts])
    ids = [STOP if text == stop else 10 + place for place, text in enumerate(texts)]
    return placed("".join(texts), ids, list(zip(ends - [len(text) for text in texts], ends, strict=True)))


def placed(text: str, ids: Sequence[int], characters: Sequence[tuple[int, int]]) -> Pieces:
    return Pieces(text, np.array(ids), characters.__getitem__)


def spans_of(found: Tokenised) -> list[tuple[int, int]]:
    return [(int(start), int(length)) for start, length in found.spans]


@pytest.mark.parametrize(
    ("tokens", "spans", "found"),
    [
        pytest.param(["q", "abc", "$"], [(1, 4)], [(1, 2)], id="the stop token behind the span is in"),
        pytest.param(["q", "abc", "\n", "$"], [(1, 4)], [(1, 3)], id="also behind a space token"),
        pytest.param(["q", "abc", "x", "$"], [(1, 4)], [(1, 1)], id="but not behind a word"),
        pytest.param(["q", "abc", "\n", "\n", "$"], [(1, 4)], [(1, 1)], id="nor behind two space tokens"),
        pytest.param(["q", "abc", "$", "\n"], [(1, 6)], [(1, 2)], id="the template's line feed behind it is out"),
        pytest.param(["q", "a", "$", "b", "$"], [(1, 4)], [(1, 2)], id="cut after the first stop token inside"),
        pytest.param(["q", "abc"], [(1, 4)], [(1, 1)], id="no stop token at the end of the text"),
        pytest.param(["qa", "bc", "$"], [(1, 4)], [(1, 2)], id="a token that the start cuts is out"),
        pytest.param(["q", "ab", "cd", "$"], [(1, 4)], [(1, 1)], id="a token that the end cuts is out"),
        pytest.param(["q", "$", "r"], [(1, 1)], [(1, 1)], id="an empty answer is its stop token"),
        pytest.param(["q", "r"], [(1, 1)], [], id="an empty answer without one is nothing"),
        pytest.param(["q"], [(1, 1)], [], id="an empty answer at the end of the text"),
        pytest.param(["q", "a", "$", "r", "b", "$"], [(1, 2), (4, 5)], [(1, 2), (4, 2)], id="two turns"),
        pytest.param(["q", "a", "$", "b", "$"], [(1, 2), (3, 4)], [(1, 4)], id="turns that touch are one run"),
        pytest.param(["q", "r"], [], [], id="no span"),
    ],
)
def test_spans(tokens: list[str], spans: list[tuple[int, int]], found: list[tuple[int, int]]) -> None:
    assert spans_of(supervise(pieces(*tokens), [Span(*span) for span in spans], RULES)) == found


@pytest.mark.parametrize(
    ("spans", "count"),
    [
        pytest.param([(1, 2), (4, 5)], 1, id="one of two"),
        pytest.param([(1, 2)], 0, id="none"),
        pytest.param([(4, 5)], 1, id="the last one"),
    ],
)
def test_turns_that_no_stop_token_ends_are_counted(spans: list[tuple[int, int]], count: int) -> None:
    text = pieces("q", "a", "$", "r", "b", "s")
    assert supervise(text, [Span(*span) for span in spans], RULES).turns_without_stop == count


def test_tokens_of_no_characters_do_not_tear_a_run() -> None:
    torn = placed("qab cd$", [10, 11, 12, 13, STOP], [(0, 1), (1, 3), (4, 4), (4, 6), (6, 7)])
    assert spans_of(supervise(torn, [Span(1, 6)], RULES)) == [(1, 4)]


def test_pieces_of_one_character_share_it() -> None:
    shared = placed("q☃$", [10, 11, 12, 13, STOP], [(0, 1), (1, 2), (1, 2), (1, 2), (2, 3)])
    assert spans_of(supervise(shared, [Span(1, 2)], RULES)) == [(1, 4)]


def naive_range(text: Pieces, span: Span) -> tuple[int, int]:
    """Every token looked at: from the first to the last one with characters that all lie inside."""
    reach = [(text.start(place), text.end(place)) for place in range(len(text.ids))]
    inside = [place for place, (start, end) in enumerate(reach) if span.start <= start < end <= span.end]
    behind = [place for place, (start, end) in enumerate(reach) if span.start <= start < end]
    first = behind[0] if behind else len(reach)
    return (inside[0], inside[-1] + 1) if inside else (first, first)


@given(
    # how far each token goes on behind the one before it, and how much of that it covers; -1: it shares the last one's
    st.lists(st.tuples(st.integers(-1, 3), st.integers(0, 3)), max_size=12),
    st.integers(0, 30),
    st.integers(0, 12),
)
def test_the_tokens_of_a_span_are_those_that_looking_at_each_one_finds(
    steps: list[tuple[int, int]], start: int, length: int
) -> None:
    characters: list[tuple[int, int]] = []
    for step, covered in steps:
        last = characters[-1] if characters else (0, 0)
        end = last[1] + max(step, 0)
        characters.append(last if step < 0 else (end - min(covered, step), end))
    text = placed("x" * 40, range(10, 10 + len(steps)), characters)
    assert token_range(text, Span(start, start + length)) == naive_range(text, Span(start, start + length))


@pytest.mark.parametrize(
    ("max_length", "num_tokens", "found", "was_truncated"),
    [
        pytest.param(100, 7, [(1, 2), (4, 2)], False, id="the tail behind the last supervised token but one is cut"),
        pytest.param(9, 7, [(1, 2), (4, 2)], False, id="exactly as long as allowed"),
        pytest.param(8, 7, [(1, 2), (4, 2)], True, id="cut, though nothing supervised is lost"),
        pytest.param(6, 6, [(1, 2), (4, 2)], True, id="cut right behind the stop token"),
        pytest.param(5, 5, [(1, 2), (4, 1)], True, id="cut inside of a turn"),
        pytest.param(4, 4, [(1, 2)], True, id="cut before a turn"),
        pytest.param(1, 0, [], True, id="cut before all turns"),
    ],
)
def test_length(max_length: int, num_tokens: int, found: list[tuple[int, int]], was_truncated: bool) -> None:
    text = pieces("q", "a", "$", "r", "b", "$", "s", "t", "u")
    result = supervise(text, [Span(1, 2), Span(4, 5)], TokenRules(frozenset({STOP}), max_length))
    assert len(result.tokens) == num_tokens
    assert result.tokens.tolist() == text.ids[:num_tokens].tolist()
    assert (spans_of(result), result.was_truncated) == (found, was_truncated)


def rendered(tokenizer: PreTrainedTokenizerBase, answers: Sequence[str], template: str = CHATML) -> Rendered:
    messages: list[Message] = []
    for number, answer in enumerate(answers):
        messages += [Message("user", f"Question {number}?"), Message("assistant", answer)]
    tokenizer.chat_template = template
    return ChatTemplate(tokenizer, {}).render(Conversation("one", tuple(messages)))


def said(tokenizer: PreTrainedTokenizerBase, found: Tokenised) -> list[str]:
    return [
        str(tokenizer.decode(found.tokens[start : start + length].tolist(), clean_up_tokenization_spaces=False))
        for start, length in found.spans
    ]


def test_bos_is_written_by_the_template_alone(tokenizer: PreTrainedTokenizerBase) -> None:
    """A tokenizer that adds a bos of its own, as Llama 3.1's does, must not give a second one."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", BOS)]
    )
    assert backend.encode("the").ids[0] == BOS
    with_bos = rendered(tokenizer, ["Four."], "{{ bos_token }}" + CHATML)
    without_bos = rendered(tokenizer, ["Four."])
    found, plain = tokenise(backend, [with_bos, without_bos], RULES)
    assert found.tokens[:2].tolist() == [BOS, START]
    assert plain.tokens[:1].tolist() == [START]


def test_the_mask_is_the_same_with_offsets_that_leave_spaces_out(tokenizer: PreTrainedTokenizerBase) -> None:
    trimming = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    trimming.post_processor = processors.ByteLevel(trim_offsets=True)
    texts = [rendered(tokenizer, ["one   two \n\n  three", "x  ", "\n\n y\n", "  z"])]
    exact, trimmed = (tokenise(backend, texts, RULES)[0] for backend in (tokenizer.backend_tokenizer, trimming))
    assert exact.tokens.tolist() == trimmed.tokens.tolist()
    assert spans_of(exact) == spans_of(trimmed)


def test_a_batch_keeps_its_order(tokenizer: PreTrainedTokenizerBase) -> None:
    texts = [rendered(tokenizer, [f"Answer {number}"] * (1 + number % 3)) for number in range(50)]
    for number, found in enumerate(tokenise(tokenizer.backend_tokenizer, texts, RULES)):
        assert said(tokenizer, found) == [f"Answer {number}<|im_end|>"] * (1 + number % 3)


def test_a_tokenizer_of_words() -> None:
    """No byte pieces: an unknown word has offsets like any other."""
    vocabulary = {"[UNK]": 0, "user": 1, "$": 2, "fine": 3, ":": 4}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))  # noqa: S106  no password
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    text = "user : hello | fine strange $ user"
    start = text.index("fine")
    found = tokenise(words, [Rendered(text, (Span(start, text.index(" $")),), MaskSource.DIFF, 1)], RULES)[0]
    assert spans_of(found) == [(4, 3)]
    assert found.tokens.tolist() == [1, 4, 0, 0, 3, 0, 2, 1]


ANSWER = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40).filter(
    # a leading space can join the line feed of the header in one token, which then belongs to neither
    lambda text: not text[0].isspace()
)


@given(st.lists(ANSWER, min_size=1, max_size=4))
def test_what_is_supervised_is_the_answers_and_their_stop_tokens(
    tokenizer: PreTrainedTokenizerBase, answers: list[str]
) -> None:
    assume(not any("<|" in answer for answer in answers))
    found = tokenise(tokenizer.backend_tokenizer, [rendered(tokenizer, answers)], RULES)[0]
    assert said(tokenizer, found) == [f"{answer}<|im_end|>" for answer in answers]
    assert found.turns_without_stop == 0


@given(st.lists(ANSWER, min_size=1, max_size=3), st.integers(1, 60))
def test_a_shorter_limit_gives_a_prefix(
    tokenizer: PreTrainedTokenizerBase, answers: list[str], max_length: int
) -> None:
    text = [rendered(tokenizer, answers)]
    whole = tokenise(tokenizer.backend_tokenizer, text, RULES)[0]
    cut = tokenise(tokenizer.backend_tokenizer, text, TokenRules(RULES.stop_ids, max_length))[0]
    assert len(cut.tokens) <= max_length
    assert cut.tokens.tolist() == whole.tokens[: len(cut.tokens)].tolist()
    whole_mask, cut_mask = (Document(0, found.tokens, found.spans).mask() for found in (whole, cut))
    assert cut_mask.tolist() == whole_mask[: len(cut_mask)].tolist()
    assert cut_mask.sum() == whole_mask[:max_length].sum()
