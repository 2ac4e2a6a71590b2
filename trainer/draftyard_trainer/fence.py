"""One writer per run: a token in the workspace, taken at the start and read back before each publish."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.names import FENCE, train_path
from draftyard_api.reasons import Reason
from draftyard_trainer.storage.store import Store

if TYPE_CHECKING:
    from draftyard_api.task import BaseTask


@dataclass(frozen=True)
class Fence:
    """The token of this process."""

    store: Store
    name: str
    token: bytes

    @classmethod
    def take(cls, store: Store, task: BaseTask) -> Fence:
        """Take the run over from whoever had it. A Job may replace a pod in an attempt: the token is per process."""
        said = {"uid": task.uid, "attempt": task.attempt, "process": secrets.token_hex(8)}
        fence = cls(store, f"{train_path(task.run)}/{FENCE}", json.dumps(said).encode())
        store.publish(fence.name, fence.token)
        return fence

    def check(self) -> None:
        """Raise Failure(FENCED) when another process has taken the run over: it must not be written to any more."""
        if not self.store.exists(self.name) or self.store.read(self.name) != self.token:
            message = f"{self.name}: another process has taken this run over; nothing more is written"
            raise Failure(ExitCode.FENCED, Reason.FENCED, message)
