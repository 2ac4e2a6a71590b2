"""From rendered text to tokens and the spans of them that the target would have generated."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from tokenizers import Encoding, Tokenizer

from draftyard_trainer.data.document import Ids
from draftyard_trainer.data.template import Rendered, Span

# n tokens, s spans


@dataclass(frozen=True, eq=False)
class TokenRules:
    """What decides tokens and masks besides the text: ids that end an answer, and the longest document."""

    stop_ids: frozenset[int]
    max_length: int


@dataclass(frozen=True, eq=False)
class Tokenised:
    """`tokens[n]` and `spans[s, 2]` (start, length; ascending, apart) of one text; without spans there is no loss."""

    tokens: Ids
    spans: Ids
    was_truncated: bool
    turns_without_stop: int


@dataclass(frozen=True, eq=False)
class Pieces:
    """The tokens of a text: `ids[n]`, and the characters `[start, end)` that each of them covers, in the text's order.

    `characters` says them for one token. Few are asked: as lists they take longer to make than all that is done here.
    """

    text: str
    ids: Ids
    characters: Callable[[int], tuple[int, int]]

    @classmethod
    def of(cls, text: str, encoding: Encoding) -> Pieces:
        """From what the tokenizer returns."""
        # typed as if it might be None, which it is for tokens that the tokenizer adds of its own: none are
        characters = cast("Callable[[int], tuple[int, int]]", encoding.token_to_chars)
        return cls(text, np.fromiter(encoding.ids, dtype=np.int64, count=len(encoding)), characters)

    def start(self, place: int) -> int:
        """Where token `place` begins."""
        start, end = self.characters(place)
        # tokenizers with `trim_offsets` report a token of spaces as (n, n), n being its end; it begins where the token
        # before it ended
        return start if start < end else min(self.end(place - 1) if place else 0, start)

    def end(self, place: int) -> int:
        """Where token `place` ends."""
        return self.characters(place)[1]

    def first_from(self, character: int) -> int:
        """The first token with characters that begins at `character` or behind it; n if there is none."""
        place = bisect_left(range(len(self.ids)), character, key=self.start)
        while place < len(self.ids) and self.start(place) == self.end(place):
            place += 1
        return place

    def end_of_last_within(self, character: int) -> int:
        """The place behind the last token with characters that ends at `character` or before it; 0 if there is none."""
        place = bisect_right(range(len(self.ids)), character, key=self.end)
        while place and self.start(place - 1) == self.end(place - 1):
            place -= 1
        return place

    def is_space(self, place: int) -> bool:
        """Whether token `place` is nothing but space, such as a line feed that a template puts before a stop token."""
        return not self.text[self.start(place) : self.end(place)].strip()


def tokenise(tokenizer: Tokenizer, batch: Sequence[Rendered], rules: TokenRules) -> list[Tokenised]:
    """Tokenise texts once each, and find what is supervised."""
    return supervised(batch, encode(tokenizer, batch), rules)


def encode(tokenizer: Tokenizer, batch: Sequence[Rendered]) -> list[Encoding]:
    """The tokens of texts, without special tokens: the template has written its own bos, if it has one."""
    # all cores work on one batch, and no Python meanwhile
    return tokenizer.encode_batch([rendered.text for rendered in batch], add_special_tokens=False)


def supervised(batch: Sequence[Rendered], encodings: Sequence[Encoding], rules: TokenRules) -> list[Tokenised]:
    """What is supervised of texts and their tokens."""
    return [
        supervise(Pieces.of(rendered.text, encoding), rendered.spans, rules)
        for rendered, encoding in zip(batch, encodings, strict=True)
    ]


def supervise(pieces: Pieces, spans: Sequence[Span], rules: TokenRules) -> Tokenised:
    """Find the tokens of each span, end them at their stop token, and cut what no loss can reach."""
    ranges = [token_range(pieces, span) for span in spans]
    stops = np.flatnonzero(np.isin(pieces.ids, list(rules.stop_ids)))
    ended = [
        # cut at a limit: the template has closed it, and nobody has said that
        without_last_stop(pieces, place, stops) if span.is_unfinished else with_stop(pieces, place, stops)
        for place, span in zip(ranges, spans, strict=True)
    ]
    without_stop = sum(end == 0 or int(pieces.ids[end - 1]) not in rules.stop_ids for _, end in ended)
    # clipping after the stop token was found: a cut turn must not look like one without an end
    kept = merged([(start, min(end, rules.max_length)) for start, end in ended])
    num_tokens = len(pieces.ids)
    # the token after the last supervised one is read by the specforge alignment; attention is causal, so later ones
    # can change nothing
    last = kept[-1][1] + 1 if kept else 0
    return Tokenised(
        # cut by masks alone: alignment and number of steps can change without preparing again
        tokens=pieces.ids[: min(num_tokens, rules.max_length, last)],
        spans=np.array([(start, end - start) for start, end in kept], dtype=np.int64).reshape(-1, 2),
        was_truncated=num_tokens > rules.max_length,
        turns_without_stop=without_stop,
    )


def token_range(pieces: Pieces, span: Span) -> tuple[int, int]:
    """Tokens `[first, end)` that lie wholly inside a span; empty at the first token behind its start if none does.

    A token that the span's border cuts is outside. Tokens of no characters count as inside when they lie between two
    that are.
    """
    first, end = pieces.first_from(span.start), pieces.end_of_last_within(span.end)
    # an empty answer: the target would have written its stop token at once
    return first, max(first, end)


def with_stop(pieces: Pieces, place: tuple[int, int], stops: Ids) -> tuple[int, int]:
    """End a range with its stop token: the first one inside, else the next token, else the one behind a space token.

    `stops` are the places of all stop tokens, ascending.
    """
    start, end = place
    # users paste special tokens into text; what follows one inside an answer was never generated in one go
    following = int(np.searchsorted(stops, start))
    if following == len(stops):
        return place
    first = int(stops[following])
    ends_it = first <= end or (first == end + 1 and pieces.is_space(end))
    return (start, first + 1) if ends_it else place


def without_last_stop(pieces: Pieces, place: tuple[int, int], stops: Ids) -> tuple[int, int]:
    """Cut a range before the stop token that would end it, if that lies inside."""
    start, end = place
    ended_at = with_stop(pieces, place, stops)[1] - 1
    has_stop = start <= ended_at < end and ended_at in stops
    return (start, ended_at) if has_stop else place


def merged(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges in ascending order without empty ones; those that touch are one run of the mask."""
    runs: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if end <= start:
            continue
        if runs and start <= runs[-1][1]:
            runs[-1] = (runs[-1][0], max(end, runs[-1][1]))
        else:
            runs.append((start, end))
    return runs
