"""TensorBoard: event files in the workspace, for `tensorboard --logdir`. Needs only its library, no torch."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

from draftyard_api.spec import Tracking
from draftyard_trainer.tracking.points import Point
from draftyard_trainer.tracking.tracked_run import TrackedRun
from draftyard_trainer.tracking.tracker import Destination, Session


def destination(tracking: Tracking) -> Destination:  # noqa: ARG001  the others read it
    """Always files."""
    return Destination("files", keeps_files=True)


class TensorboardRun:
    """One event file per session, all in one folder: TensorBoard shows them as one run."""

    url = None
    last_step = None

    def __init__(self, run: TrackedRun, session: Session) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2  # noqa: PLC0415  an optional library
        from tensorboard.summary.writer.event_file_writer import EventFileWriter  # noqa: PLC0415

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        self._writer = EventFileWriter(str(session.folder), filename_suffix=f".{session.label}")
        if session.number == 1:
            self._add(0, time.time(), self._text("config", f"```json\n{json.dumps(run.config, indent=1)}\n```"))

    def _text(self, tag: str, text: str) -> object:
        """Markdown, as the text page shows it."""
        from tensorboard.compat.proto import summary_pb2, tensor_pb2, types_pb2  # noqa: PLC0415

        plugin = summary_pb2.SummaryMetadata.PluginData(plugin_name="text")
        content = tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, string_val=[text.encode()])
        metadata = summary_pb2.SummaryMetadata(plugin_data=plugin)
        return summary_pb2.Summary(value=[self._summary.Value(tag=tag, metadata=metadata, tensor=content)])

    def _add(self, step: int, measured: float, summary: object) -> None:
        self._writer.add_event(self._event(wall_time=measured, step=step, summary=summary))

    def send(self, points: Sequence[Point]) -> None:
        """An event per point."""
        for point in points:
            values = [self._summary.Value(tag=tag, simple_value=value) for tag, value in point.values.items()]
            self._add(point.step, point.time, self._summary(value=values))
        self._writer.flush()

    def close(self, finished: bool) -> None:  # noqa: ARG002  event files have no end
        """End the file."""
        self._writer.close()


def connect(run: TrackedRun, session: Session) -> TensorboardRun:
    """A new event file."""
    return TensorboardRun(run, session)
