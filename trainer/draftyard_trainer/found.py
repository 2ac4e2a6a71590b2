"""What an evaluation has found: answers of several sets of prompts, and how many tokens rounds gave in each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from draftyard_trainer import served as serving
from draftyard_trainer.answers import Answer
from draftyard_trainer.chain import ForcedCounts, RoundCounts, summarise
from draftyard_trainer.draft.manifest import Served, SetAcceptance
from draftyard_trainer.engine import Engine, ServedAnswer
from draftyard_trainer.prompts import Prompts

SHARED = (
    "length", "interval", "per_position", "rounds", "accepted", "prompts", "skipped_prompts", "reply_tokens",
)  # fmt: skip
"""What a report says of its first set in its own fields, as it did when there was only one."""


@dataclass(frozen=True, eq=False)
class AnswerCounts:
    """Per answer: rounds of the proposals, and the teacher-forced comparison."""

    rounds: list[RoundCounts]
    forced: list[ForcedCounts]


@dataclass(eq=False)
class Found:
    """One entry per set, in the order of the task."""

    prompts: Sequence[Prompts]
    answers: Sequence[tuple[Answer, ...]]
    own: Sequence[AnswerCounts]
    served: list[list[ServedAnswer]] = field(default_factory=list)
    """What an engine answered; empty without one."""

    def acceptance(self, place: int) -> SetAcceptance:
        """One set: as the engine counted, or else our own evaluator."""
        return self._summary(self.prompts[place].name, [place])

    def together(self) -> SetAcceptance:
        """All prompts as one set: rounds are what is weighed."""
        return self._summary("together", list(range(len(self.prompts))))

    def described(self, engine: Engine) -> Served:
        """The engine beside our own prediction for the first set."""
        served = [one for part in self.served for one in part]
        answers = [one for part in self.answers for one in part]
        predicted = summarise(self.own[0].rounds).length
        return serving.describe(engine.identity, served, answers, self.acceptance(0).length, predicted)

    def _summary(self, name: str, places: list[int]) -> SetAcceptance:
        skipped: dict[str, int] = {}
        for place in places:
            for reason, count in self.prompts[place].skipped.items():
                skipped[reason] = skipped.get(reason, 0) + count
        if self.served:
            answers = [one for place in places for one in self.served[place]]
            found = summarise([serving.rounds_of(one) for one in answers])
            has_positions = all(one.per_position is not None for one in answers)
            tokens = sum(one.num_tokens for one in answers)
        else:
            found = summarise([count for place in places for count in self.own[place].rounds])
            has_positions, tokens = True, sum(len(one.reply) for place in places for one in self.answers[place])
        return SetAcceptance(
            name=name,
            length=found.length,
            interval=found.interval,
            per_position=found.per_position if has_positions else (),
            per_position_intervals=found.per_position_intervals if has_positions else (),
            rounds=found.rounds,
            accepted=found.accepted,
            prompts=sum(len(self.answers[place]) for place in places),
            skipped_prompts=skipped,
            reply_tokens=tokens,
        )
