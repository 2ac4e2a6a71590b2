"""A few replies in words, with what was accepted in each round: numbers alone convince nobody.

They are decoded here, where the target is at hand: whoever looks at them later needs no tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from draftyard_trainer.answers import Answer
from draftyard_trainer.chain import RoundCounts
from draftyard_trainer.data.tokenizer import load_tokenizer
from draftyard_trainer.draft.manifest import SampleReply
from draftyard_trainer.target.location import TargetFiles

SAMPLES = 8
PROMPT_TOKENS = 96
"""Of a prompt the end is kept: the question."""
UNFINISHED = "\N{REPLACEMENT CHARACTER}"
"""What decoders put for bytes that are no character yet."""

Decode = Callable[[Sequence[int]], str]


def sample_replies(
    files: TargetFiles, answers: Sequence[Answer], counts: Sequence[RoundCounts]
) -> tuple[SampleReply, ...]:
    """The first replies that took a round, in words."""
    tokenizer = load_tokenizer(files.path, files.model, files.trust_remote_code)

    def decode(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))

    chosen = [pair for pair in zip(answers, counts, strict=True) if pair[1].rounds][:SAMPLES]
    return tuple(
        SampleReply(
            doc_id=answer.doc_id,
            prompt=decode(answer.prompt[-PROMPT_TOKENS:]).lstrip(UNFINISHED),
            pieces=pieces(answer.reply, decode),
            accepted=count.by_round,
        )
        for answer, count in chosen
    )


def pieces(ids: Sequence[int], decode: Decode) -> tuple[str, ...]:
    """A text for each token, which joined are the whole: a character of several tokens is in the last of them."""
    found: list[str] = []
    first, told = 0, 0
    for end in range(1, len(ids) + 1):
        # From the last token that was whole: some tokenizers drop a space before the very first one.
        text = decode(ids[first:end])
        is_whole = not text.endswith(UNFINISHED) or end == len(ids)
        found.append(text[told:] if is_whole else "")
        if is_whole:
            first = end - 1
            told = len(decode(ids[first:end]))
    return tuple(found)
