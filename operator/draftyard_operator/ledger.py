"""The stage table, as one pass rewrites it: attempts are numbered, ended, counted and told. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from draftyard_api.names import MAX_ATTEMPT, Stage
from draftyard_api.plan import stages
from draftyard_api.reasons import Reason
from draftyard_api.status import MAX_HISTORY, Attempt, DraftTrainingStatus, StageStatus
from draftyard_operator import times
from draftyard_operator.observe import Observed
from draftyard_operator.run import Run, stage_of

MAX_MESSAGE = 1024
LONGEST_WAIT = 600
UNCOUNTED_WAIT, LONGEST_UNCOUNTED_WAIT = 10, 300
FULL_WAIT = 600
"""Seconds between two tries of a workspace that was full and has not grown."""


@dataclass(frozen=True)
class Conclusion:
    """How a run ends."""

    succeeded: bool
    reason: Reason
    message: str


def cut(message: str) -> str:
    """A message that fits into the status."""
    return message if len(message) <= MAX_MESSAGE else f"{message[: MAX_MESSAGE - 3]}..."


@dataclass
class Ledger:
    """The status while a pass decides. What is written here is stored before anything follows from it."""

    run: Run
    seen: Observed
    now: datetime
    status: DraftTrainingStatus
    conclusion: Conclusion | None = None

    @property
    def time(self) -> str:
        """Now, as it is stored."""
        return times.render(self.now)

    def change(self, **fields: object) -> None:
        """Set fields of the status."""
        self.status = self.status.model_copy(update=fields)

    # -- Stages -----------------------------------------------------------------------------------------------------

    def stage(self, stage: Stage) -> StageStatus:
        """Where a stage stands."""
        return stage_of(self.status, stage)

    def run_stage(self, stage: Stage) -> StageStatus:
        """Where it stood when the pass began."""
        return stage_of(self.run.status, stage)

    def change_stage(self, stage: Stage, **fields: object) -> None:
        """Set fields of a stage; the table has the run's stages, in their order."""
        changed = self.stage(stage).model_copy(update=fields)
        order = stages(self.run.wanted)
        table = [changed if one is stage else self.stage(one) for one in order]
        self.change(stages=tuple(table))

    def current(self) -> Stage | None:
        """The first stage that is not done; None when all are."""
        return next((one for one in stages(self.run.wanted) if self.stage(one).state != "Succeeded"), None)

    # -- Attempts ---------------------------------------------------------------------------------------------------

    def start_attempt(self, stage: Stage) -> None:
        """Number the next attempt. Its child is made once this is stored."""
        attempt = self.stage(stage).attempt + 1
        if attempt > MAX_ATTEMPT:
            self.fail(stage, Reason.RETRIES_EXHAUSTED, f"{stage}: {MAX_ATTEMPT} attempts, and no more have names")
            return
        self.change_stage(
            stage, state="Running", attempt=attempt, child=None, start_time=None, completion_time=None,
            resumed_from_step=None,
        )  # fmt: skip
        self.change(progress=None)

    def end_attempt(self, stage: Stage, reason: Reason, message: str, *, counted: bool) -> None:
        """An attempt is over, and another one may follow."""
        self._record(stage, reason, message)
        held = self.stage(stage)
        field = "counted" if counted else "uncounted"
        self.change_stage(stage, state="Pending", completion_time=self.time, **{field: getattr(held, field) + 1})
        self.change(progress=None)

    def succeed(self, stage: Stage) -> None:
        """A stage is done, and its output verified."""
        self.change_stage(stage, state="Succeeded", completion_time=self.time)
        self.change(progress=None)

    def reopen(self, stage: Stage) -> None:
        """A stage that was done, or that runs with an old task, is done again by its next attempt."""
        self.change_stage(stage, state="Pending", completion_time=self.time)

    def _record(self, stage: Stage, reason: Reason, message: str) -> None:
        held = self.stage(stage)
        entry = Attempt(
            stage=stage, attempt=held.attempt, reason=reason, message=cut(message), start_time=held.start_time,
            completion_time=self.time,
        )  # fmt: skip
        self.change(history=(*(self.status.history or ()), entry)[-MAX_HISTORY:])

    # -- Ends -------------------------------------------------------------------------------------------------------

    def fail(self, stage: Stage, reason: Reason, message: str) -> None:
        """The run ends, and a person must change something."""
        held = self.stage(stage)
        # an attempt that has ended already is in the history
        if held.state == "Running":
            self._record(stage, reason, message)
        self.change_stage(stage, state="Failed", completion_time=self.time)
        self._conclude(Conclusion(False, reason, message))

    def complete(self, reason: Reason, message: str) -> None:
        """The run ends well."""
        skipped = [one for one in stages(self.run.wanted) if self.stage(one).state == "Pending"]
        for stage in skipped:
            self.change_stage(stage, state="Skipped")
        self._conclude(Conclusion(True, reason, message))

    def _conclude(self, conclusion: Conclusion) -> None:
        self.conclusion = conclusion
        self.change(completion_time=self.time, frozen_time=self.status.frozen_time or self.time)

    # -- Waiting ----------------------------------------------------------------------------------------------------

    def last_end(self, stage: Stage) -> Attempt | None:
        """How the last attempt of a stage ended; None when it did not end for a reason of its own."""
        held = self.stage(stage)
        found = (one for one in reversed(self.status.history or ()) if one.stage is stage)
        last = next(found, None)
        return last if last is not None and last.attempt == held.attempt else None

    def due(self, stage: Stage) -> datetime:
        """When the next attempt of a stage may start."""
        held, last = self.stage(stage), self.last_end(stage)
        if last is None or held.completion_time is None:
            return self.now
        wait = wait_after(last.reason, held.counted, self.in_a_row(stage), self.run.wanted.retry.backoff_seconds)
        ended = times.parse(held.completion_time)
        # a clock that was set back by a day does not make anybody wait for a day
        return self.now if ended > self.now else ended + timedelta(seconds=wait)

    def in_a_row(self, stage: Stage) -> int:
        """Attempts of a stage that ended last, one after the other, without being counted."""
        number = 0
        for entry in reversed(self.status.history or ()):
            if entry.stage is not stage or entry.reason in COUNTED:
                break
            number += 1
        return number

    def times_ended(self, stage: Stage, reason: Reason) -> int:
        """Attempts of a stage that are remembered to have ended so."""
        return sum(entry.stage is stage and entry.reason == reason for entry in self.status.history or ())


COUNTED = (Reason.POD_FAILED, Reason.OUT_OF_MEMORY, Reason.PROGRESS_DEADLINE_EXCEEDED)
"""Ends of attempts that use up retry.maxAttempts."""
AT_ONCE = (Reason.SUSPENDED, Reason.STALE_INPUT)
"""Ends after which nothing is gained by waiting: a person resumes, or another stage has run meanwhile."""


def wait_after(reason: str, counted: int, in_a_row: int, backoff: int) -> float:
    """Seconds between the end of an attempt and the next one."""
    if reason in AT_ONCE:
        return 0.0
    if reason == Reason.WORKSPACE_FULL:
        return FULL_WAIT
    if reason in COUNTED:
        return min(backoff * 2.0 ** min(counted - 1, 16), LONGEST_WAIT)
    return min(UNCOUNTED_WAIT * 2.0 ** min(in_a_row - 1, 16), LONGEST_UNCOUNTED_WAIT)
