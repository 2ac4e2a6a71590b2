"""What a run of this machine has cost so far: one line for every stage process, also of those that failed.

The results beside the tasks are those of the last attempt only, and a second run finds most work done.
"""

from __future__ import annotations

import time

from draftyard_api.names import history_path
from draftyard_api.progress import StageResult
from draftyard_api.schema import Model
from draftyard_trainer.storage.store import Store


class StageEnd(Model):
    """The end of one process."""

    label: str
    """The stage, with the number of a shard."""
    time: float
    """Unix time of the end."""
    result: StageResult
    """What it said."""


def record_end(store: Store, run: str, label: str, result: StageResult) -> None:
    """Add a line. The file is replaced whole, so a reader never finds half of one. Raises Failure."""
    name = history_path(run)
    before = store.read(name) if store.exists(name) else b""
    line = StageEnd(label=label, time=round(time.time(), 3), result=result)
    store.publish(name, before + line.model_dump_json(by_alias=True, exclude_none=True).encode() + b"\n")
