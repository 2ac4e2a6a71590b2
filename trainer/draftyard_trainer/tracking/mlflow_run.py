"""MLflow: a tracking server, or a database or folder of its own, as `tracking.mlflow.uri` says."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pydantic import JsonValue

from draftyard_api.spec import Mlflow, Tracking
from draftyard_trainer.tracking.points import STEP, Point
from draftyard_trainer.tracking.quiet import CREDENTIALS
from draftyard_trainer.tracking.tracked_run import TrackedRun
from draftyard_trainer.tracking.tracker import Destination, Session

if TYPE_CHECKING:
    from mlflow.entities import Metric

ID_TAG = "draftyard.id"
METRICS_AT_ONCE, PARAMS_AT_ONCE = 1000, 100
"""What a server takes in one request."""
PARAM_CHARACTERS = 500
"""Of a value, on servers of every version."""


def wanted(tracking: Tracking) -> Mlflow:
    """The spec's block; for `draftyard track sync --to mlflow` without one, what the library's variables say."""
    if tracking.mlflow is not None:
        return tracking.mlflow
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        raise ValueError("tracking.mlflow.uri: not in the run's spec; set MLFLOW_TRACKING_URI")
    return Mlflow(uri=uri, experiment=os.environ.get("MLFLOW_EXPERIMENT_NAME") or "draftyard")


def destination(tracking: Tracking) -> Destination:
    """The experiment behind a URI, whose credentials, if it has any, are nobody's business."""
    block = wanted(tracking)
    return Destination(f"{CREDENTIALS.sub('', block.uri)} {block.experiment}", keeps_files=False)


class MlflowRun:
    """A run of MLflow. The server gives runs ids of its own, so ours is a tag."""

    def __init__(self, run: TrackedRun, session: Session) -> None:
        from mlflow.entities import Metric, Param  # noqa: PLC0415  an optional library
        from mlflow.tracking import MlflowClient  # noqa: PLC0415

        self._metric = Metric
        block = wanted(run.tracking)
        if urlsplit(block.uri).scheme in ("", "file"):
            # Later versions refuse folders unless they are told that one is meant.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        self._client = MlflowClient(block.uri)
        experiment = self._client.get_experiment_by_name(block.experiment)
        number = experiment.experiment_id if experiment else self._client.create_experiment(block.experiment)
        (*found,) = self._client.search_runs([number], f"tags.`{ID_TAG}` = '{session.id}'", max_results=1)
        if not found:
            tags = {ID_TAG: session.id, **{f"draftyard.tag.{tag}": "true" for tag in run.tags}}
            found = [self._client.create_run(number, run_name=run.run, tags=tags)]
            params = [Param(name, value[:PARAM_CHARACTERS]) for name, value in flat(run.config)]
            for first in range(0, len(params), PARAMS_AT_ONCE):
                self._client.log_batch(found[0].info.run_id, params=params[first : first + PARAMS_AT_ONCE])
        self._id = found[0].info.run_id
        self._last_step = int(found[0].data.metrics.get(STEP, 0))
        self._client.update_run(self._id, status="RUNNING")
        self.url: str | None = None
        if urlsplit(block.uri).scheme in ("http", "https"):
            self.url = f"{destination(run.tracking).name.partition(' ')[0]}/#/experiments/{number}/runs/{self._id}"

    @property
    def last_step(self) -> int | None:
        """What the server has."""
        return self._last_step

    def send(self, points: Sequence[Point]) -> None:
        """Whole points in every request, so that a server that has a row's step has the row."""
        batch: list[Metric] = []
        for point in points:
            time = int(point.time * 1000)
            made = [self._metric(name, value, time, point.step) for name, value in point.values.items()]
            if len(batch) + len(made) > METRICS_AT_ONCE:
                self._client.log_batch(self._id, metrics=batch)
                batch = []
            batch += made
        if batch:
            self._client.log_batch(self._id, metrics=batch)

    def close(self, finished: bool) -> None:
        """Everything is sent already."""
        self._client.set_terminated(self._id, "FINISHED" if finished else "KILLED")


def flat(config: Mapping[str, JsonValue], before: str = "") -> Iterator[tuple[str, str]]:
    """`a.b` and its value, as a text."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", str(value)


def connect(run: TrackedRun, session: Session) -> MlflowRun:
    """A new run, or the one of this id."""
    return MlflowRun(run, session)
