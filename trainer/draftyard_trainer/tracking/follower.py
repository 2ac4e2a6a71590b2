"""One tracker, beside one run: reads what the run leaves in the workspace, and sends what is new until it ends.

A process of its own. Its standard input is a pipe whose other end the training holds: when that is closed, by a
training that has ended or that was killed, what is left is sent, within seconds that are told.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from draftyard_api.schema import S3Access, Tracker
from draftyard_trainer.storage.local import LocalStore
from draftyard_trainer.storage.opening import open_store
from draftyard_trainer.storage.store import Store
from draftyard_trainer.tracking import quiet, tracked_run
from draftyard_trainer.tracking.points import Curve, Point, Position
from draftyard_trainer.tracking.tracked_run import Cursor, TrackedRun, files_path
from draftyard_trainer.tracking.tracker import (
    Connection,
    Session,
    TrackerModule,
    is_installed,
    module_of,
    not_installed,
)

POLL_SECONDS = 5.0
"""The journal is written every ten."""
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 30.0, 600.0
"""Between two tries to reach a tracker that is away, doubled each time."""
POINTS_AT_ONCE = 500


class Superseded(Exception):
    """Another process sends this run to this tracker now."""


class Follower:
    """Sends one run to one tracker, from wherever the last one stopped."""

    def __init__(
        self,
        store: Store,
        run: TrackedRun,
        tracker: Tracker,
        module: TrackerModule,
        scratch: Path,
        seconds: float = 60.0,
    ) -> None:
        self._store = store
        self._run = run
        self._tracker = tracker
        self._module = module
        self._seconds = seconds
        self._destination = self._module.destination(run.tracking)
        self._files = files_path(run.run, tracker)
        # what a library leaves beside a server is nothing for the workspace
        self._folder = scratch / tracker
        if isinstance(store, LocalStore) and self._destination.keeps_files:
            self._folder = store.root / self._files
        self._uploaded: dict[str, tuple[int, int]] = {}
        self._curve = Curve(store, run.run, run.fingerprint)
        self._connection: Connection | None = None
        found = tracked_run.read_cursor(store, run.run, tracker)
        self._cursor = tracked_run.next_cursor(found, run, self._destination.name)
        self._write_cursor(self._cursor)
        if self._cursor.open_since is not None:
            self._remove_session(self._cursor.session)
            self._write_cursor(self._cursor.model_copy(update={"sent": self._cursor.open_since, "open_since": None}))
        if self._destination.keeps_files and self._cursor.sent == Position():
            # of a former run of this name, or from before it went to a server meanwhile
            store.delete_folder(self._files)

    def advance(self, final: bool) -> None:
        """Send what is new. Raises whatever the library or the storage raises; Superseded."""
        self._require_hold()
        points = self._curve.points(self._cursor.sent, final)
        if self._connection is None:
            if self._destination.keeps_files and not points:
                return
            self._connect()
            # A server may have less than was thought.
            self._curve.rewind()
            points = self._curve.points(self._cursor.sent, final)
        for first in range(0, len(points), POINTS_AT_ONCE):
            self._send(points[first : first + POINTS_AT_ONCE])

    def close(self) -> None:
        """End the session: only now is what a tracker wrote into files whole."""
        if self._connection is None:
            return
        self._connection.close(finished="trained" in self._cursor.sent.results)
        self._connection = None
        self._upload()
        self._write_cursor(self._cursor.model_copy(update={"open_since": None}))

    def give_up(self) -> None:
        """Forget a connection that failed; the next one begins where this one was sure to have come to."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):
                connection.close(finished=False)
        since = self._cursor.open_since
        if since is not None:
            self._remove_session(self._cursor.session)
            self._write_cursor(self._cursor.model_copy(update={"sent": since, "open_since": None}))
        self._curve.rewind()

    def _connect(self) -> None:
        since = self._cursor.sent if self._destination.keeps_files else None
        self._write_cursor(self._cursor.model_copy(update={"session": self._cursor.session + 1, "open_since": since}))
        self._folder.mkdir(parents=True, exist_ok=True)
        session = Session(self._cursor.id, self._cursor.session, self._folder, self._seconds)
        self._connection = self._module.connect(self._run, session)
        told = self._connection.last_step
        sent = self._cursor.sent
        if told is not None:
            # What was on its way when a process died is known to the server alone.
            sent = sent.model_copy(update={"step": told}) if told else Position()
        self._write_cursor(self._cursor.model_copy(update={"sent": sent, "url": self._connection.url}))

    def _send(self, batch: Sequence[Point]) -> None:
        assert self._connection is not None
        self._connection.send(batch)
        sent = self._cursor.sent
        for point in batch:
            sent = sent.behind(point)
        self._upload()
        self._write_cursor(self._cursor.model_copy(update={"sent": sent}))

    def _require_hold(self) -> None:
        found = tracked_run.read_cursor(self._store, self._run.run, self._tracker)
        if found is None or found.holder != self._cursor.holder:
            raise Superseded

    def _write_cursor(self, cursor: Cursor) -> None:
        tracked_run.write_cursor(self._store, self._run.run, self._tracker, cursor)
        self._cursor = cursor

    def _remove_session(self, number: int) -> None:
        """Remove the files of a session, wherever its label stands in their names."""
        label = re.compile(rf"(^|[./])session-{number}($|/)")
        for name in self._store.list(self._files):
            if label.search(name.removeprefix(f"{self._files}/")):
                self._store.delete(name)

    def _upload(self) -> None:
        """Copy what has changed to a workspace that is no folder."""
        if isinstance(self._store, LocalStore) or not self._destination.keeps_files:
            return
        for path in sorted(self._folder.rglob("*")):
            if path.is_symlink() or not path.is_file():
                continue
            name, found = path.relative_to(self._folder).as_posix(), path.stat()
            state = (found.st_size, found.st_mtime_ns)
            if self._uploaded.get(name) != state:
                self._store.publish(f"{self._files}/{name}", path.read_bytes())
                self._uploaded[name] = state


class Attempts:
    """Tries to send, ever more rarely while that fails. A tracker that is away is said to be once."""

    def __init__(self, open_follower: Callable[[], Follower], say: Callable[[str], None]) -> None:
        self._open = open_follower
        self._say = say
        self._follower: Follower | None = None
        self._wait = FIRST_WAIT_SECONDS
        self.is_away = False

    def take(self, final: bool) -> float:
        """Try once. Returns the seconds to wait for the next time. Raises Superseded."""
        try:
            self._follower = self._follower or self._open()
            self._follower.advance(final)
            if final:
                self._follower.close()
        except Superseded:
            raise
        except Exception as error:  # whatever a library raises, the points are safe in the journal
            return self._failed(error)
        if self.is_away:
            self._say("can be reached again")
        self.is_away, self._wait = False, FIRST_WAIT_SECONDS
        return POLL_SECONDS

    def _failed(self, error: Exception) -> float:
        if not self.is_away:
            self._say(f"{quiet.told(error)}; training goes on, and metrics.jsonl has every point")
        self.is_away = True
        if self._follower is not None:
            with suppress(Exception):
                self._follower.give_up()
        wait, self._wait = self._wait, min(2 * self._wait, LONGEST_WAIT_SECONDS)
        return wait


def follow(open_follower: Callable[[], Follower], ended: threading.Event, say: Callable[[str], None]) -> bool:
    """Send until the run has ended, and once more. Returns whether all of it was sent."""
    attempts = Attempts(open_follower, say)
    while True:
        final = ended.is_set()
        try:
            wait = attempts.take(final)
        except Superseded:
            say("another process has taken over")
            return False
        if final:
            return not attempts.is_away
        ended.wait(wait)


def main(arguments: Sequence[str] | None = None) -> int:
    """Follow a run. Returns 0 when all of it was sent."""
    parser = argparse.ArgumentParser(prog="tracking")
    parser.add_argument("--workspace", required=True)
    parser.add_argument("--access", type=S3Access.model_validate_json)
    parser.add_argument("--run", required=True)
    parser.add_argument("--tracker", required=True)
    parser.add_argument("--seconds", type=float, required=True, help="what it may take behind the end of the run")
    given = parser.parse_args(arguments)
    life, voice = os.dup(0), os.dup(2)
    quiet.hush()
    ended = threading.Event()
    threading.Thread(target=wait_for_end, args=(life, ended, given.seconds), daemon=True).start()

    def say(text: str) -> None:
        with suppress(OSError):
            os.write(voice, f"tracking: {given.tracker}: {text}\n".encode())

    if not is_installed(given.tracker):
        say(f"{not_installed(given.tracker)}; training goes on, and metrics.jsonl has every point")
        return 1
    with suppress(OSError):
        os.nice(10)
    with tempfile.TemporaryDirectory(prefix="draftyard-tracking-", ignore_cleanup_errors=True) as folder:
        scratch = Path(folder)
        os.environ.update(quiet.environment(scratch, os.environ))
        os.chdir(scratch)

        def open_follower() -> Follower:
            store = open_store(given.workspace, given.access)
            run = tracked_run.read_run(store, given.run)
            if run is None:
                raise FileNotFoundError(f"{tracked_run.tracking_path(given.run)}: no run that trackers know")
            return Follower(store, run, given.tracker, module_of(given.tracker), scratch, 0.8 * given.seconds)

        is_whole = follow(open_follower, ended, say)
    return 0 if is_whole else 1


def wait_for_end(life: int, ended: threading.Event, seconds: float) -> None:
    """Wait until the other end of the pipe is closed; from then on the process has so many seconds to live."""
    while os.read(life, 4096):
        pass
    # It ends the process, since a library may be in the middle of whatever never returns.
    signal.alarm(max(int(seconds), 1))
    ended.set()


if __name__ == "__main__":
    sys.exit(main())
