"""When to look at a run again, if nothing happens before. Values in, values out."""

from __future__ import annotations

from datetime import datetime

from draftyard_api.status import DraftTrainingStatus, Phase
from draftyard_operator.actions import cleanup_time
from draftyard_operator.ledger import Ledger
from draftyard_operator.observe import Observed
from draftyard_operator.run import Run, is_terminal, stage_of

SOON_SECONDS = 1.0
WORKING_SECONDS = 20.0
"""While pods run: they are asked how far they are."""
BLOCKED_SECONDS = 30.0
"""Claims and rights are not watched."""
BY_PHASE = {Phase.SUSPENDED: None, Phase.SUSPENDING: SOON_SECONDS, Phase.BLOCKED: BLOCKED_SECONDS}


def look_again(run: Run, decided: DraftTrainingStatus, seen: Observed, num_actions: int, now: datetime) -> float | None:
    """Seconds until the next look; None for not before something happens."""
    if decided.stages != run.status.stages or is_terminal(decided) != is_terminal(run.status):
        # what was decided is stored, and waits to be done
        return 0.0
    if num_actions:
        return SOON_SECONDS
    if is_terminal(decided):
        due = cleanup_time(run)
        if any(pod.is_live for pod in seen.pods):
            return WORKING_SECONDS
        return max((due - now).total_seconds(), SOON_SECONDS) if due is not None and seen.children else None
    if decided.phase in BY_PHASE:
        return BY_PHASE[decided.phase]
    return min(WORKING_SECONDS, next_attempt(run, decided, seen, now))


def next_attempt(run: Run, decided: DraftTrainingStatus, seen: Observed, now: datetime) -> float:
    """Seconds until the wait after an ended attempt is over."""
    book = Ledger(run, seen, now, decided)
    stage = book.current() if run.spec is not None else None
    if stage is None or stage_of(decided, stage).state != "Pending":
        return WORKING_SECONDS
    wait = (book.due(stage) - now).total_seconds()
    return wait if wait > 0 else SOON_SECONDS
