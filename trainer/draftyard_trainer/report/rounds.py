"""A reply as a server makes it: round after round, what the draft proposed well and what the target added."""

from __future__ import annotations

import math
from dataclasses import dataclass

from draftyard_trainer.draft.manifest import SampleReply

LEVELS = 4
"""Tints that the style sheet has."""


@dataclass(frozen=True)
class Round:
    """Accepted proposals, and the target's own token, which the last round may lack."""

    accepted: str
    own: str
    count: int
    level: int
    """1 to `LEVELS`: how many of the proposals were accepted; 0 for none."""


@dataclass(frozen=True)
class Reply:
    """One sample, ready to be shown."""

    doc_id: int
    prompt: str
    first: str
    """The token that comes from reading the prompt."""
    rounds: tuple[Round, ...]

    @property
    def length(self) -> float:
        """Tokens a pass."""
        return 1 + sum(each.count for each in self.rounds) / max(len(self.rounds), 1)


def replay(sample: SampleReply, draft_tokens: int) -> Reply:
    """The rounds of a sample with `draft_tokens` proposals each."""
    pieces, place, rounds = sample.pieces, 1, []
    for count in sample.accepted:
        end = place + count
        level = math.ceil(LEVELS * min(count, draft_tokens) / max(draft_tokens, 1))
        rounds.append(Round("".join(pieces[place:end]), "".join(pieces[end : end + 1]), count, level))
        place = end + 1
    return Reply(sample.doc_id, sample.prompt, "".join(pieces[:1]), tuple(rounds))
