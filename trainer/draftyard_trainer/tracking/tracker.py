"""What every tracker can do, and how one is found by its name."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from draftyard_api.schema import Tracker
from draftyard_api.spec import Tracking
from draftyard_trainer.tracking.points import Point
from draftyard_trainer.tracking.tracked_run import TrackedRun


@dataclass(frozen=True)
class Destination:
    """Where points go, as the spec and the library's own variables say."""

    name: str
    """The same place has the same name; no credentials."""
    keeps_files: bool
    """True: the tracker writes files in the workspace. False: a server has the points."""


@dataclass(frozen=True)
class Session:
    """One time that a tracker is open."""

    id: str
    """What the tracker knows the run by."""
    number: int
    """Counted from 1."""
    folder: Path
    """Where its files go."""
    seconds: float
    """How long it may take to end."""

    @property
    def label(self) -> str:
        """Part of the name of every file of this session."""
        return f"session-{self.number}"


class Connection(Protocol):
    """A run that is open in a tracker. Every method may raise whatever its library raises, or hang."""

    @property
    def url(self) -> str | None:
        """Where a person looks at it."""
        ...

    @property
    def last_step(self) -> int | None:
        """The last row that a server is known to have; None when it does not tell."""
        ...

    def send(self, points: Sequence[Point]) -> None:
        """Hand points over, in order of steps."""
        ...

    def close(self, finished: bool) -> None:
        """End the session; `finished` says whether the training has come to its end."""
        ...


class TrackerModule(Protocol):
    """A module of this package, such as `wandb_run`."""

    def destination(self, tracking: Tracking) -> Destination:
        """Where points go; loads no library."""
        ...

    def connect(self, run: TrackedRun, session: Session) -> Connection:
        """Open the run, a new one or the one of this id."""
        ...


def module_of(tracker: Tracker) -> TrackerModule:
    """The module of a tracker. It loads the library only when it connects."""
    return cast("TrackerModule", importlib.import_module(f"draftyard_trainer.tracking.{tracker}_run"))


def is_installed(tracker: Tracker) -> bool:
    """Whether its library is there; the extra and the library have the tracker's name."""
    return importlib.util.find_spec(tracker) is not None


def not_installed(tracker: Tracker) -> str:
    """What to do about a library that is not there."""
    return f"the library is not installed: pip install 'draftyard[{tracker}]'"
