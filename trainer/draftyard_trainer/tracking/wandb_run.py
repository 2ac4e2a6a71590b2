"""Weights & Biases: a server, or with WANDB_MODE=offline files in the workspace for `wandb sync`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal, cast

from draftyard_api.spec import Tracking, Wandb
from draftyard_trainer.tracking.points import STEP, Kind, Point
from draftyard_trainer.tracking.tracked_run import TrackedRun
from draftyard_trainer.tracking.tracker import Destination, Session

HOST = "https://api.wandb.ai"
START_SECONDS = 30
FLUSH_SECONDS = 2.0
DEFAULT = Wandb(project="draftyard")
"""For `draftyard track sync --to wandb` of a run whose spec names no project."""


Mode = Literal["online", "offline", "disabled", "shared"]


def mode() -> Mode:
    """What the library's own variable says; another value is the library's to refuse."""
    given = os.environ.get("WANDB_MODE", "online")
    return "offline" if given == "dryrun" else cast("Mode", given)


def destination(tracking: Tracking) -> Destination:
    """Files offline; otherwise a project on a server."""
    wanted = tracking.wandb or DEFAULT
    if mode() != "online":
        return Destination(mode(), keeps_files=mode() == "offline")
    host = os.environ.get("WANDB_BASE_URL", HOST)
    return Destination("/".join((host, wanted.entity or "-", wanted.project)), keeps_files=False)


class WandbRun:
    """A run of W&B. Its history has a row per optimizer step, under the step's own number."""

    def __init__(self, run: TrackedRun, session: Session) -> None:
        import wandb  # noqa: PLC0415  an optional library

        wanted = run.tracking.wandb or DEFAULT
        settings = wandb.Settings(
            silent=True, console="off", disable_code=True, disable_git=True, disable_job_creation=True,
            x_disable_stats=True, x_disable_machine_info=True, x_save_requirements=False,
            x_transaction_log_flush_interval=FLUSH_SECONDS, init_timeout=START_SECONDS,
            finish_timeout=session.seconds,
        )  # fmt: skip
        folder = session.folder / session.label
        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=wanted.project, entity=wanted.entity, id=session.id, name=run.run, resume="allow",
            config=run.config, tags=list(run.tags), dir=folder, mode=mode(), settings=settings,
        )  # fmt: skip
        # A score or a result may come when the history is behind its step, and W&B never goes back.
        self._run.define_metric("heldOut/step", hidden=True)
        self._run.define_metric("heldOut/*", step_metric="heldOut/step")

    @property
    def url(self) -> str | None:
        """Of the run's page."""
        return self._run.url if mode() == "online" else None

    @property
    def last_step(self) -> int | None:
        """What the server has. A history that it has, and we never told of, is left as it is."""
        if mode() != "online":
            return None
        return int(self._run.summary.get(STEP) or 0) if self._run.resumed else 0

    def send(self, points: Sequence[Point]) -> None:
        """A row of the history per point; the library drops rows that it has."""
        for point in points:
            values = {**point.values, "_timestamp": point.time}
            step = point.step
            if point.kind is not Kind.ROW:
                step = max(step, self._run.step)
            if point.kind is Kind.SCORE:
                values["heldOut/step"] = point.step
            self._run.log(values, step=step)

    def close(self, finished: bool) -> None:
        """Wait for what is on its way."""
        self._run.finish(exit_code=0 if finished else 1)


def connect(run: TrackedRun, session: Session) -> WandbRun:
    """A new run, or the one of this id."""
    return WandbRun(run, session)
