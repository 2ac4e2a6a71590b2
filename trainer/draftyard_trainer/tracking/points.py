"""What a tracker is told: numbers at optimizer steps, out of what a run leaves in its workspace."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from draftyard_api.names import EVALUATION, MANIFEST, METRICS, PUBLISHED, RESULT_FILE, export_path, train_path
from draftyard_api.schema import Model
from draftyard_trainer.storage.store import Store

STEP = "train/step"
"""The last value of every row, so that a tracker which has it has the whole row."""
NOT_SHOWN = {"step", "rows", "documentHash", "time"}
"""Fields of a journal line that are no curve."""


class Kind(StrEnum):
    """Where a point comes from."""

    ROW = "row"
    SCORE = "score"
    RESULT = "result"


@dataclass(frozen=True)
class Point:
    """Values at one optimizer step."""

    kind: Kind
    step: int
    values: Mapping[str, float]
    time: float
    """Unix seconds at which they were measured."""
    name: str = ""
    """Of a result."""


class Position(Model):
    """How far a tracker has come."""

    step: int = 0
    """Last row of the journal."""
    score: int = 0
    """Step of the last held-out score."""
    results: tuple[str, ...] = ()
    """Names of results."""

    def behind(self, point: Point) -> Position:
        """Once this point is sent too."""
        match point.kind:
            case Kind.ROW:
                return self.model_copy(update={"step": max(self.step, point.step)})
            case Kind.SCORE:
                return self.model_copy(update={"score": max(self.score, point.step)})
            case Kind.RESULT:
                return self.model_copy(update={"results": (*self.results, point.name)})

    def has(self, point: Point) -> bool:
        """Whether a point was sent."""
        match point.kind:
            case Kind.ROW:
                return point.step <= self.step
            case Kind.SCORE:
                return point.step <= self.score
            case Kind.RESULT:
                return point.name in self.results


def row(line: Mapping[str, Any]) -> Point:
    """One line of the journal. Lists have a value per unroll step, counted from 1."""
    values: dict[str, float] = {}
    for field, value in line.items():
        if field in NOT_SHOWN:
            continue
        if isinstance(value, list):
            values.update({f"{field}/{number}": float(each) for number, each in enumerate(value, start=1)})
        else:
            # NaN and infinities of a skipped step are texts in the journal
            values[f"train/{field}"] = float(value)
    values[STEP] = float(line["step"])
    return Point(Kind.ROW, line["step"], values, line.get("time") or time.time())


def score(found: Mapping[str, Any], measured: float) -> Point:
    """A held-out score, as a checkpoint's manifest has it."""
    values = {"heldOut/tauSim": float(found["tauSim"]), "heldOut/documents": float(found["documents"])}
    values |= positions("heldOut/position", found["perPosition"])
    return Point(Kind.SCORE, found["step"], values, measured)


def positions(name: str, shares: Iterable[float | str]) -> dict[str, float]:
    """A value per drafted token, counted from 1."""
    return {f"{name}/{number}": float(share) for number, share in enumerate(shares, start=1)}


class Curve:
    """The points of one run, read again and again while the run grows.

    Rows come out of the journal, held-out scores out of the newest checkpoint (a resumed run starts there, so it never
    takes one back), results out of the files that train and evaluate leave.
    """

    def __init__(self, store: Store, run: str, fingerprint: str) -> None:
        self._store = store
        self._run = run
        self._fingerprint = fingerprint
        self._offset = 0
        self._mark = b""
        """The last line that was read: when it is not there any more, the journal was cut by a resumed run."""
        self._times: dict[int, float] = {}

    def rewind(self) -> None:
        """Read everything again: not all that was read could be sent."""
        self._offset, self._mark = 0, b""

    def points(self, position: Position, final: bool) -> list[Point]:
        """What is new behind a position, in order of steps; with `final` also the results."""
        rows = [row(json.loads(line)) for line in self._lines()]
        self._times.update({point.step: point.time for point in rows})
        found = [*rows, *(self._scores() if rows or final else ()), *(self._results() if final else ())]
        new = [point for point in found if not position.has(point)]
        return sorted(new, key=lambda point: point.step)

    def _lines(self) -> list[bytes]:
        """Whole lines behind those that were read."""
        name = f"{train_path(self._run)}/{METRICS}"
        size = self._store.size(name)
        if size is None or size == self._offset:
            return []
        first = self._offset - len(self._mark)
        data = self._store.read_range(name, first, size - first) if size > first else b""
        if not data.startswith(self._mark):
            first, self._mark = 0, b""
            data = self._store.read(name)
        data = data[: data.rfind(b"\n") + 1]
        lines = data[len(self._mark) :].splitlines(keepends=True)
        if lines:
            self._offset, self._mark = first + len(data), lines[-1]
        return lines

    def _scores(self) -> list[Point]:
        """All that the newest checkpoint has."""
        folder = f"{train_path(self._run)}/step-"
        manifests = [name for name in self._store.list(train_path(self._run)) if name.startswith(folder)]
        manifests = [name for name in manifests if name.endswith(f"/{MANIFEST}")]
        if not manifests:
            return []
        manifest = self._read(manifests[-1]) or {}
        now = time.time()
        return [score(found, self._times.get(found["step"], now)) for found in manifest.get("scores", ())]

    def _results(self) -> list[Point]:
        """The end of the training and what evaluate measured, if both are about this very draft."""
        exported = self._read(f"{export_path(self._run)}/{MANIFEST}") or {}
        trained = self._read(f"{train_path(self._run)}/{RESULT_FILE}") or {}
        if exported.get("fingerprint") != self._fingerprint or "trained" not in trained:
            return []
        told, now = trained["trained"], time.time()
        values = {"result/bestStep": float(told["bestStep"])}
        if told.get("acceptance"):
            values["result/simulatedAcceptanceLength"] = float(told["acceptance"]["length"])
            values |= positions("result/simulatedPosition", told["acceptance"]["perPosition"])
        found = [Point(Kind.RESULT, told["steps"], values, now, "trained")]
        judged = self._read(f"{export_path(self._run)}/{EVALUATION}") or {}
        if judged and judged.get("manifestSha256") == trained.get("manifestSha256"):
            low, high = judged["interval"]
            values = {
                "result/acceptanceLength": float(judged["length"]),
                "result/acceptanceLow": float(low),
                "result/acceptanceHigh": float(high),
                "result/published": float(self._store.exists(f"{export_path(self._run)}/{PUBLISHED}")),
                **positions("result/position", judged["perPosition"]),
            }
            found.append(Point(Kind.RESULT, told["steps"], values, now, "evaluated"))
        return found

    def _read(self, name: str) -> dict[str, Any] | None:
        """A JSON file; None when it is absent, or gone since it was listed."""
        try:
            found: dict[str, Any] = json.loads(self._store.read(name))
        except FileNotFoundError:
            return None
        return found
