"""What a working stage tells the process around it: progress in a small file, replaced whole, twice a second."""

from __future__ import annotations

import os
import time
from pathlib import Path

from pydantic import ValidationError

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.names import PROGRESS_FILE, Stage
from draftyard_api.progress import Progress
from draftyard_api.reasons import Reason

MIN_SECONDS_BETWEEN_WRITES = 0.5


class Reporter:
    """Progress of one stage. Without a folder it counts and writes nothing, which is what tests want."""

    def __init__(self, stage: Stage, folder: Path | None = None) -> None:
        self.stage = stage
        self.stop_requested = False
        """Set by SIGTERM; `advance` then ends the stage at the next safe point, `train` saves a checkpoint first."""
        self._folder = folder
        self._progress = Progress(stage=stage, heartbeat=time.time())
        self._found = 0
        self._started = time.monotonic()
        self._written = 0.0

    @property
    def progress(self) -> Progress:
        """The last reading."""
        return self._progress

    def begin(self, activity: str, unit: str, total: int | None = None, done: int = 0) -> None:
        """Start a countable activity. `done` is what an earlier attempt left: it counts, but not for the rate."""
        self._found = done
        self._started = time.monotonic()
        self._progress = Progress(
            stage=self.stage, activity=activity, unit=unit, done=done, total=total, heartbeat=time.time()
        )
        self._write()

    def advance(self, amount: int = 1) -> None:
        """Count finished work. Raises Failure(INTERRUPTED) when a stop was asked for: call it where that is safe."""
        self.update(done=self._progress.done + amount)
        if self.stop_requested:
            raise interrupted(self.stage)

    def update(self, **fields: int | str | None) -> None:
        """Replace fields of the reading, and write it unless the last one is very fresh. Never stops the stage."""
        now = time.monotonic()
        done = int(fields.get("done") or self._progress.done)
        elapsed = max(now - self._started, 1e-9)
        rate = (done - self._found) / elapsed
        remaining = None
        if self._progress.total is not None and rate > 0:
            remaining = int((self._progress.total - done) / rate)
        self._progress = self._progress.model_copy(
            update={**fields, "estimated_remaining_seconds": remaining, "heartbeat": time.time()}
        )
        if now - self._written >= MIN_SECONDS_BETWEEN_WRITES or done == self._progress.total:
            self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        if self._folder is None:
            return
        staged = self._folder / f".{PROGRESS_FILE}.{os.getpid()}"
        staged.write_text(self._progress.model_dump_json(by_alias=True, exclude_none=True))
        staged.replace(self._folder / PROGRESS_FILE)


def read_progress(folder: Path) -> Progress | None:
    """What a reporter wrote last; None before its first reading, and when there is nothing that can be read."""
    try:
        return Progress.model_validate_json((folder / PROGRESS_FILE).read_bytes())
    except (OSError, ValidationError):
        return None


def interrupted(stage: Stage) -> Failure:
    """The end of a stage that was asked to stop: finished work is kept, and the next start goes on from it."""
    return Failure(ExitCode.INTERRUPTED, Reason.INTERRUPTED, f"{stage}: stopped by a signal; finished work is kept")
