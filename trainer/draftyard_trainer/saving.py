"""What the leading process leaves of a training, written by a thread while the training goes on.

One write at a time. A save is the curve, then the checkpoint, then the removal of old ones: a resumed run drops lines
that are too many, but cannot make up those that are missing; and nothing is removed before its successor is there.
"""

from __future__ import annotations

from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from draftyard_api.exit_codes import Failure
from draftyard_api.task import TrainTask
from draftyard_trainer import checkpoint
from draftyard_trainer.checkpoint import CheckpointManifest, Snapshot
from draftyard_trainer.draft.model import DraftModel
from draftyard_trainer.fence import Fence
from draftyard_trainer.journal import Journal
from draftyard_trainer.optim import Optimizer
from draftyard_trainer.process import failure_of


class Saver:
    """Writes curve and checkpoints of one run. A write that fails is asked for, never raised where it began."""

    def __init__(
        self, fence: Fence, task: TrainTask, journal: Journal, saved: CheckpointManifest | None = None
    ) -> None:
        self.journal = journal
        self._fence = fence
        self._run = task.run
        self._keep_last = task.train.checkpoint.keep_last
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="save")
        self._write: Future[None] | None = None
        self._snapshot: Snapshot | None = None
        self.saved = saved
        """The newest checkpoint that is there."""

    @property
    def failure(self) -> Failure | None:
        """Why the last write came to nothing; None as long as it goes on or when it went well."""
        if self._write is None or not self._write.done():
            return None
        error = self._write.exception()
        return None if error is None else failure_of(error)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being written and nothing went wrong."""
        return self._write is None or (self._write.done() and self.failure is None)

    def wait(self) -> None:
        """Wait for the write that goes on; afterwards `failure` is about it."""
        if self._write is not None:
            futures.wait([self._write])

    def add(self, line: dict[str, Any]) -> bool:
        """Add a line to the curve, and begin to write it now and then. Returns whether its loss is a spike."""
        stands_out = self.journal.add(line)
        if self.is_idle and self.journal.is_due:
            self._write = self._thread.submit(self.journal.write, len(self.journal.lines))
        return stands_out

    def save(self, draft: DraftModel, optimizer: Optimizer, state: CheckpointManifest) -> None:
        """Copy the state and begin to write it. Call it after `wait`, and not after a failure."""
        # what the write before it was made from is free again
        self._snapshot = checkpoint.take_snapshot(draft, optimizer, state, self._snapshot)
        self._write = self._thread.submit(self._save, self._snapshot, len(self.journal.lines))

    def _save(self, snapshot: Snapshot, lines: int) -> None:
        self.journal.write(lines)
        checkpoint.write(self._fence.store, self._fence, self._run, snapshot)
        self.saved = snapshot.manifest
        step, best = snapshot.manifest.step, snapshot.manifest.best
        checkpoint.prune(self._fence.store, self._run, step, self._keep_last, [best.step] if best else [])
