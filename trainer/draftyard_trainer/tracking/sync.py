"""`draftyard track sync`: what trackers have not got yet, out of the files that a run has left."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.names import METRICS, train_path
from draftyard_api.reasons import Reason
from draftyard_api.schema import Tracker
from draftyard_trainer.storage.store import Store
from draftyard_trainer.tracking.following import Followers, Place
from draftyard_trainer.tracking.points import Position
from draftyard_trainer.tracking.tracked_run import (
    RUN_FILE,
    Cursor,
    TrackedRun,
    files_path,
    read_cursor,
    read_run,
)
from draftyard_trainer.tracking.tracker import is_installed, not_installed

SECONDS = 3600.0
"""A long run is a million numbers, and a server takes a thousand at once."""


def sync(store: Store, name: str, wanted: Sequence[Tracker], console: Console) -> int:
    """Send a run to the trackers of its spec, or to those that are wanted. Returns ERROR when one has not got all.

    Raises Failure(STALE_INPUT) for a run that was never trained here.
    """
    run = read_run(store, name)
    if run is None or not store.exists(f"{train_path(name)}/{METRICS}"):
        known = ", ".join(sorted(tracked(store))) or "none"
        message = f"--run: given {name}, which has no {METRICS} or no tracking/{RUN_FILE}; accepted: {known}"
        raise Failure(ExitCode.STALE_INPUT, Reason.STALE_INPUT, message)
    trackers = tuple(wanted) or run.tracking.report_to
    if not trackers:
        console.print(f"{name}: its spec names no tracker; say which one with --to", highlight=False)
        return ExitCode.ERROR
    missing = [tracker for tracker in trackers if not is_installed(tracker)]
    for tracker in missing:
        console.print(f"{tracker}: {not_installed(tracker)}", style="yellow", highlight=False, soft_wrap=True)
    there = [tracker for tracker in trackers if tracker not in missing]
    before = {tracker: read_cursor(store, name, tracker) for tracker in there}
    followers = Followers()
    followers.start(Place(store.uri, name), there, SECONDS)
    whole = followers.end(SECONDS)
    for tracker in there:
        line = outcome(store, run, tracker, before[tracker])
        console.print(line, style="" if whole[tracker] else "yellow", highlight=False, soft_wrap=True)
    return ExitCode.OK if all(whole.values()) and not missing else ExitCode.ERROR


def tracked(store: Store) -> set[str]:
    """Runs of a workspace that can be sent."""
    return {name.split("/")[1] for name in store.list("train") if name.endswith(f"/tracking/{RUN_FILE}")}


def outcome(store: Store, run: TrackedRun, tracker: Tracker, before: Cursor | None = None) -> str:
    """How far a tracker is, in a line."""
    cursor = read_cursor(store, run.run, tracker)
    if cursor is None or cursor.fingerprint != run.fingerprint:
        return f"{tracker}: nothing was sent"
    where = cursor.url or (files_path(run.run, tracker) if cursor.destination in ("files", "offline", "local") else "")
    where = where or cursor.destination
    since = before.sent if before is not None and before.destination == cursor.destination else Position()
    done = f"sent up to step {cursor.sent.step}" if cursor.sent != since else f"is at step {cursor.sent.step}"
    return f"{tracker}: {done}, {where}"
