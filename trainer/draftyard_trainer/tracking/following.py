"""What a stage does for trackers: it says what the run is, starts a process for each, and forgets them until the end.

Nothing here waits while a stage works, and nothing here ends one.
"""

from __future__ import annotations

import importlib.metadata
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from pydantic import JsonValue

import draftyard_api
from draftyard_api.schema import S3Access, Tracker
from draftyard_api.spec import Train
from draftyard_api.task import BaseTask, EvaluateTask, TrainTask
from draftyard_trainer.storage.store import Store
from draftyard_trainer.tracking import quiet
from draftyard_trainer.tracking.tracked_run import TrackedRun, read_run, write_run

FINISH_SECONDS = 30.0
"""What trackers have at the end of a stage that has done its work."""
STOP_SECONDS = 5.0
"""What they have when a stage is stopped or fails: everything is saved by then, and the pod must end."""
FIELDS = set(Train.model_fields) - {"pod"}
SHOWN: dict[str, Any] = {
    "run": True, "mode": True, "draft": True, "aux_layers": True, "draft_tokens": True, "prepared": True,
    "hidden_states": {"key"}, "fingerprint": True, "target": {"model", "revision", "dtype"}, "train": FIELDS,
}  # fmt: skip
"""Fields of a task that are shown: none that names a Secret, or a machine."""
LIBRARIES = ("torch", "transformers")


@dataclass(frozen=True)
class Place:
    """Where a run lies."""

    workspace: str
    run: str
    access: S3Access | None = None

    @classmethod
    def of(cls, task: BaseTask) -> Place:
        """Of a task's run."""
        return cls(task.workspace, task.run, task.workspace_s3)


class Followers:
    """The trackers' processes of one stage."""

    def __init__(self) -> None:
        self._processes: dict[Tracker, subprocess.Popen[bytes]] = {}

    def start(self, place: Place, trackers: Sequence[Tracker], seconds: float) -> None:
        """A process per tracker, which ends `seconds` behind the end of this one at the latest.

        In sessions of their own: whoever stops the stage must not stop them before they have its last points.
        """
        command = [sys.executable, "-m", "draftyard_trainer.tracking.follower"]
        command += ["--workspace", place.workspace, "--run", place.run, "--seconds", str(seconds)]
        if place.access is not None:
            command += ["--access", place.access.model_dump_json(by_alias=True, exclude_none=True)]
        for tracker in trackers:
            self._processes[tracker] = subprocess.Popen(  # noqa: S603  a list, never a shell
                [*command, "--tracker", tracker], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                env=quiet.allowed(tracker, os.environ), start_new_session=True,
            )  # fmt: skip

    def end(self, seconds: float) -> dict[Tracker, bool]:
        """Let them send what is left, and end them when that takes too long. Returns which have sent everything."""
        deadline = time.monotonic() + seconds
        for process in self._processes.values():
            assert process.stdin is not None
            with suppress(OSError):
                process.stdin.close()
        ended = {tracker: end(tracker, process, deadline) for tracker, process in self._processes.items()}
        self._processes.clear()
        return ended


def end(tracker: Tracker, process: subprocess.Popen[bytes], deadline: float) -> bool:
    """Wait for a process until then, and kill it with all that its library has started."""
    try:
        return process.wait(max(deadline - time.monotonic(), 0)) == 0
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        say(f"{tracker}: not done in time; `draftyard track sync` sends the rest")
        return False


@contextmanager
def following() -> Iterator[Followers]:
    """Trackers for as long as the block lasts; after a failure or a stop they have little time."""
    followers = Followers()
    try:
        yield followers
    except BaseException:
        followers.end(STOP_SECONDS)
        raise
    followers.end(FINISH_SECONDS)


def begin(followers: Followers, store: Store, task: TrainTask, facts: Mapping[str, JsonValue]) -> None:
    """Keep what the run is, for now and for later, and let its trackers follow it. Never raises."""
    try:
        write_run(store, describe(task, facts))
        followers.start(Place.of(task), task.tracking.report_to, FINISH_SECONDS)
    except Exception as error:  # whatever it is, the training is more important
        say(f"nothing is sent: {error}")


def send_results(store: Store, task: EvaluateTask) -> None:
    """Send what evaluate has found, and what training could not send. Never raises."""
    if not task.tracking.report_to:
        return
    followers = Followers()
    try:
        run = read_run(store, task.run)
        if run is None:
            return
        write_run(store, run.model_copy(update={"tracking": task.tracking}))
        followers.start(Place.of(task), task.tracking.report_to, FINISH_SECONDS)
    except Exception as error:  # as above
        say(f"nothing is sent: {error}")
    followers.end(FINISH_SECONDS)


def describe(task: TrainTask, facts: Mapping[str, JsonValue]) -> TrackedRun:
    """The run as trackers show it: fields by name, so that nothing is shown because it was added."""
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    shown = task.model_dump(mode="json", by_alias=True, exclude_none=True, include=SHOWN)
    model = task.target.model.rstrip("/").rpartition("/")[2]
    config = {**shown, **facts, "versions": {"draftyard": draftyard_api.__version__, **versions}}
    tags = ("draftyard", task.mode, task.draft.profile, model[:64])
    return TrackedRun(
        run=task.run, fingerprint=task.fingerprint, tracking=task.tracking, config=config, tags=tags
    )  # fmt: skip


def say(text: str) -> None:
    """A line in the stage's log."""
    print(f"tracking: {text}", file=sys.stderr)
