"""SwanLab: a server, or with SWANLAB_MODE=offline files in the workspace for `swanlab sync`."""

from __future__ import annotations

import os
from collections.abc import Sequence

from draftyard_api.spec import Swanlab, Tracking
from draftyard_trainer.tracking.points import Point
from draftyard_trainer.tracking.tracked_run import TrackedRun
from draftyard_trainer.tracking.tracker import Destination, Session

HOST = "https://api.swanlab.cn"
DEFAULT = Swanlab(project="draftyard")
"""For `draftyard track sync --to swanlab` of a run whose spec names no project."""


def mode() -> str:
    """What the library's own variable says."""
    return os.environ.get("SWANLAB_MODE", "online")


def destination(tracking: Tracking) -> Destination:
    """Files offline; otherwise a project on a server."""
    wanted = tracking.swanlab or DEFAULT
    if mode() != "online":
        return Destination(mode(), keeps_files=mode() in ("offline", "local"))
    host = os.environ.get("SWANLAB_API_HOST", HOST)
    return Destination("/".join((host, wanted.workspace or "-", wanted.project)), keeps_files=False)


class SwanlabRun:
    """An experiment of SwanLab."""

    last_step = None

    def __init__(self, run: TrackedRun, session: Session) -> None:
        import swanlab  # noqa: PLC0415  an optional library

        wanted = run.tracking.swanlab or DEFAULT
        if swanlab.has_run():
            # what a failed attempt left open
            swanlab.finish(state="aborted")
        settings = swanlab.Settings(
            interactive=False,
            terminal={"proxy_type": "none"},
            probe={"hardware": False, "requirements": False, "git": False, "monitor": False},
        )
        folder = session.folder / session.label
        folder.mkdir(parents=True, exist_ok=True)
        self._run = swanlab.init(
            project=wanted.project, workspace=wanted.workspace, id=session.id, name=run.run, resume="allow",
            config=run.config, tags=list(run.tags), log_dir=str(folder), mode=mode(), settings=settings,
        )  # fmt: skip

    @property
    def url(self) -> str | None:
        """Of the experiment's page."""
        return self._run.url if mode() == "online" else None

    def send(self, points: Sequence[Point]) -> None:
        """Values under their own step, in any order."""
        for point in points:
            self._run.log(dict(point.values), step=point.step)

    def close(self, finished: bool) -> None:
        """Wait for what is on its way."""
        self._run.finish(state="success" if finished else "aborted")


def connect(run: TrackedRun, session: Session) -> SwanlabRun:
    """A new experiment, or the one of this id."""
    return SwanlabRun(run, session)
