"""What `prepare` counts while it reads, and when the counts mean that the data cannot be trained from."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.reasons import Reason
from draftyard_trainer.data.conversation import ACCEPTED, SkipReason
from draftyard_trainer.data.manifest import MaskReport
from draftyard_trainer.data.template import MaskSource, Rendered
from draftyard_trainer.data.tokens import Tokenised

LOG = logging.getLogger(__name__)
MAX_NOT_LOCATED = 0.01
"""Share of the assistant turns that may be lost before the chat template counts as not understood."""
SHOWN_CHARACTERS = 6000
EXCERPT_CHARACTERS = 300
OPEN, CLOSE = "⟦", "⟧"
"""Around supervised text in a conversation that is shown."""


@dataclass
class Tally:
    """Counts of one pass over the rows; `example` is a text to show when they are bad."""

    rows: int = 0
    rows_used: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    turns: int = 0
    turns_not_located: int = 0
    turns_without_stop: int = 0
    truncated: int = 0
    example: Rendered | None = None
    template_error: str = ""
    columns: tuple[str, ...] = ()
    """Of the first row that no conversation could be read from."""

    def skip(self, reason: SkipReason) -> None:
        """Count a row that gives no document."""
        self.skipped[reason] += 1

    def saw(self, rendered: Rendered) -> None:
        """Count a rendered text. Raises Failure(BAD_DATA) when the template's own tags mark nothing in it."""
        self.sources[rendered.source] += 1
        self.turns += rendered.turns
        self.turns_not_located += rendered.not_located
        # a text with a lost answer says more than one where all is well
        if self.example is None or (rendered.not_located and not self.example.not_located):
            self.example = rendered
        # at once, not at 1 %: such a template is wrong for every conversation, and loss 0 would look like success
        if rendered.source is MaskSource.TAGS and rendered.turns and not rendered.spans:
            self.example = rendered
            raise self.rejected(
                "the template has generation tags, but they mark nothing of a conversation with an answer"
            )

    def wrote(self, tokenised: Tokenised) -> None:
        """Count a document."""
        self.truncated += tokenised.was_truncated
        self.turns_without_stop += tokenised.turns_without_stop

    def mask_report(self) -> MaskReport:
        """How answers were found."""
        return MaskReport(
            sources=dict(sorted(self.sources.items())),
            turns=self.turns,
            turns_not_located=self.turns_not_located,
            turns_without_stop=self.turns_without_stop,
        )

    def check(self) -> None:
        """Raises Failure(BAD_DATA) when training would silently learn nothing, or from too little."""
        assert self.rows == self.rows_used + self.skipped.total(), "rows are lost"
        if self.turns_not_located > MAX_NOT_LOCATED * self.turns:
            raise self.rejected(
                f"{self.turns_not_located} of {self.turns} answers cannot be found in what the chat template renders"
            )
        if not self.rows_used:
            raise self.rejected("no conversation has an answer to learn from")

    def rejected(self, what: str) -> Failure:
        """The end of the stage: what is wrong, what was counted, and one conversation with its mask marked."""
        # sorted, so that the same data gives the same message
        skipped = ", ".join(f"{reason} {count}" for reason, count in sorted(self.skipped.items())) or "none"
        error = f"; the chat template said: {self.template_error}" if self.template_error else ""
        if self.columns and not self.rows_used:
            error += f"; columns found: {', '.join(self.columns)}; accepted: {ACCEPTED}"
        excerpt = ""
        if self.example is not None:
            # the message of a pod has room for 1,024 characters, the log for all of it
            LOG.error(
                "one conversation as rendered, %s around what is supervised:\n%s", OPEN + CLOSE, show(self.example)
            )
            excerpt = f"; one conversation, supervised text in {OPEN}{CLOSE}: {show(self.example, EXCERPT_CHARACTERS)}"
        return Failure(
            ExitCode.BAD_DATA,
            Reason.DATA_REJECTED,
            f"data: {what} (rows {self.rows}, skipped: {skipped}{error}); accepted: conversations whose answers the "
            f"chat template shows; set data.chatTemplate or data.templateKwargs, or mend data.source{excerpt}",
        )


def show(rendered: Rendered, limit: int = SHOWN_CHARACTERS) -> str:
    """A rendered text with its supervised parts in brackets, cut at `limit` characters."""
    # spans are ascending and apart, so one pass is enough
    shown, place = [], 0
    for span in rendered.spans:
        shown += [rendered.text[place : span.start], OPEN, rendered.text[span.start : span.end], CLOSE]
        place = span.end
    marked = "".join(shown) + rendered.text[place:]
    return marked if len(marked) <= limit else marked[:limit] + " …"
