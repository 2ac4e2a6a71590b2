"""What trackers are told, and how one that is killed, away, slow or missing only has it told later."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from draftyard_api.names import (
    EVALUATION,
    MANIFEST,
    METRICS,
    PUBLISHED,
    RESULT_FILE,
    checkpoint_path,
    export_path,
    train_path,
)
from draftyard_api.schema import SecretRef
from draftyard_api.spec import Mlflow, Tracking, Wandb
from draftyard_trainer.storage.local import LocalStore
from draftyard_trainer.storage.store import Store
from draftyard_trainer.tracking import follower as following_page
from draftyard_trainer.tracking import mlflow_run, quiet, wandb_run
from draftyard_trainer.tracking.follower import Follower, Superseded, follow
from draftyard_trainer.tracking.points import Curve, Kind, Point, Position, row
from draftyard_trainer.tracking.tracked_run import TrackedRun, read_cursor, read_run, write_run
from draftyard_trainer.tracking.tracker import Connection, Destination, Session

RUN = "r"
TRACKED = TrackedRun(run=RUN, fingerprint="sha256:f1", tracking=Tracking(), config={"epochs": 2}, tags=("draftyard",))


def line(step: int, **more: Any) -> dict[str, Any]:
    return {"step": step, "time": 1000.0 + step, "rows": [0, 0, 1], "loss": 1 / step, "accuracy": [0.5, 0.25], **more}


def write_journal(store: Store, steps: Sequence[int], **more: Any) -> None:
    text = "".join(f"{json.dumps(line(step, **more))}\n" for step in steps)
    store.publish(f"{train_path(RUN)}/{METRICS}", text.encode())


def write_checkpoint(store: Store, step: int, scored: Sequence[int]) -> None:
    scores = [{"step": each, "tauSim": 1 + each / 100, "perPosition": [0.5, 0.1], "documents": 9} for each in scored]
    store.publish(f"{checkpoint_path(RUN, step)}/{MANIFEST}", json.dumps({"step": step, "scores": scores}).encode())


def write_results(store: Store, fingerprint: str = "sha256:f1", judged: str = "m1") -> None:
    told = {"steps": 4, "bestStep": 2, "acceptance": {"length": "1.50", "perPosition": ["0.40", "0.10"]}}
    evaluation = {"manifestSha256": judged, "length": 1.75, "interval": [1.5, 2.0], "perPosition": [0.5, 0.25]}
    for name, content in {
        f"{export_path(RUN)}/{MANIFEST}": {"fingerprint": fingerprint},
        f"{train_path(RUN)}/{RESULT_FILE}": {"manifestSha256": "m1", "trained": told},
        f"{export_path(RUN)}/{EVALUATION}": evaluation,
        f"{export_path(RUN)}/{PUBLISHED}": {},
    }.items():
        store.publish(name, json.dumps(content).encode())


@pytest.fixture
def store(tmp_path) -> LocalStore:
    found = LocalStore(tmp_path)
    write_run(found, TRACKED)
    return found


# -- Points -----------------------------------------------------------------------------------------------------------


def test_a_line_is_a_value_per_number_and_per_unroll_step():
    told = row(line(3, loss="nan", clipped=True, documentHash=12345))
    assert math.isnan(told.values["train/loss"])
    del told.values["train/loss"]  # type: ignore[attr-defined]
    assert told.values == {"accuracy/1": 0.5, "accuracy/2": 0.25, "train/clipped": 1.0, "train/step": 3.0}
    assert (told.kind, told.step, told.time) == (Kind.ROW, 3, 1003.0)
    assert list(told.values)[-1] == "train/step", "who has it has the row"


def test_only_what_is_new_is_read_and_only_whole_lines(store):
    curve = Curve(store, RUN, TRACKED.fingerprint)
    assert curve.points(Position(), final=False) == []
    write_journal(store, [1, 2])
    assert [point.step for point in curve.points(Position(), final=False)] == [1, 2]
    whole = store.read(f"{train_path(RUN)}/{METRICS}")
    store.publish(f"{train_path(RUN)}/{METRICS}", whole + json.dumps(line(3)).encode())
    assert curve.points(Position(step=2), final=False) == []
    write_journal(store, [1, 2, 3, 4])
    assert [point.step for point in curve.points(Position(step=2), final=False)] == [3, 4]


def test_a_journal_that_was_cut_is_read_again_and_nothing_twice(store):
    curve = Curve(store, RUN, TRACKED.fingerprint)
    write_journal(store, [1, 2, 3, 4, 5])
    curve.points(Position(), final=False)
    write_journal(store, [1, 2, 3], seconds=0.5)
    assert curve.points(Position(step=5), final=False) == []
    write_journal(store, [1, 2, 3, 4, 5, 6], seconds=0.5)
    assert [point.step for point in curve.points(Position(step=5), final=False)] == [6]


def test_scores_come_from_the_newest_checkpoint_at_the_time_of_their_step(store):
    write_journal(store, [1, 2, 3, 4, 5])
    write_checkpoint(store, 2, [2])
    write_checkpoint(store, 4, [2, 4])
    curve = Curve(store, RUN, TRACKED.fingerprint)
    found = [(point.kind.value, point.step) for point in curve.points(Position(step=3, score=2), final=False)]
    assert found == [("row", 4), ("score", 4), ("row", 5)]
    curve.rewind()
    (told,) = curve.points(Position(step=5, score=2), final=True)
    assert told.values == {
        "heldOut/tauSim": 1.04, "heldOut/documents": 9.0, "heldOut/position/1": 0.5, "heldOut/position/2": 0.1,
    }  # fmt: skip
    assert told.time == 1004.0


def test_results_are_told_at_the_end(store):
    write_results(store)
    curve = Curve(store, RUN, TRACKED.fingerprint)
    assert curve.points(Position(), final=False) == []
    trained, judged = curve.points(Position(), final=True)
    assert (trained.name, trained.step, judged.name, judged.step) == ("trained", 4, "evaluated", 4)
    assert trained.values["result/simulatedAcceptanceLength"] == 1.5
    assert judged.values == {
        "result/acceptanceLength": 1.75, "result/acceptanceLow": 1.5, "result/acceptanceHigh": 2.0,
        "result/published": 1.0, "result/position/1": 0.5, "result/position/2": 0.25,
    }  # fmt: skip
    assert curve.points(Position(results=("trained",)), final=True) == [
        Point(Kind.RESULT, 4, judged.values, pytest.approx(judged.time, abs=60), "evaluated")
    ]


@pytest.mark.parametrize(
    ("fingerprint", "judged", "names"),
    [
        pytest.param("sha256:other", "m1", [], id="an export of another run of this name"),
        pytest.param("sha256:f1", "m0", ["trained"], id="an evaluation of an earlier export"),
    ],
)
def test_results_of_another_draft_are_not_told(store, fingerprint, judged, names):
    write_results(store, fingerprint, judged)
    found = Curve(store, RUN, TRACKED.fingerprint).points(Position(), final=True)
    assert [point.name for point in found] == names


# -- One follower -----------------------------------------------------------------------------------------------------


@dataclass
class Server:
    """A tracker that stays when its clients go."""

    name: str = "there"
    keeps_files: bool = False
    tells: bool = False
    """Whether it says what it has."""
    rows: list[int] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    broken: Exception | None = None
    finished: list[bool] = field(default_factory=list)

    def destination(self, tracking: Tracking) -> Destination:  # noqa: ARG002  the others read it
        return Destination(self.name, self.keeps_files)

    def connect(self, run: TrackedRun, session: Session) -> Connection:  # noqa: ARG002
        if self.broken:
            raise self.broken
        self.ids.append(session.id)
        return Client(self, session)


@dataclass
class Client:
    server: Server
    session: Session

    @property
    def url(self) -> str | None:
        return f"https://there/{self.session.id}"

    @property
    def last_step(self) -> int | None:
        return max(self.server.rows, default=0) if self.server.tells else None

    def send(self, points: Sequence[Point]) -> None:
        if self.server.broken:
            raise self.server.broken
        steps = [point.step for point in points if point.kind is Kind.ROW]
        self.server.rows += steps
        if self.server.keeps_files:
            with (self.session.folder / f"curve.{self.session.label}").open("a") as file:
                file.writelines(f"{step}\n" for step in steps)

    def close(self, finished: bool) -> None:
        self.server.finished.append(finished)


class Bucket:
    """A store that is no folder to trackers."""

    def __init__(self, store: LocalStore) -> None:
        self.uri = "s3://bucket/prefix"
        self._store = store

    def __getattr__(self, name: str) -> Any:
        if name == "root":
            raise AttributeError(name)
        return getattr(self._store, name)


def open_follower(store: Store, server: Server, scratch: Path, run: TrackedRun = TRACKED) -> Follower:
    return Follower(store, run, "wandb", server, scratch)


def in_files(store: Store) -> list[int]:
    return [int(text) for name in store.list(f"{train_path(RUN)}/wandb") for text in store.read(name).split()]


def test_the_next_process_goes_on_with_the_same_run_where_the_last_one_was(store, tmp_path):
    server = Server()
    write_journal(store, [1, 2, 3])
    first = open_follower(store, server, tmp_path)
    first.advance(final=False)
    write_journal(store, range(1, 6))
    second = open_follower(store, server, tmp_path)
    second.advance(final=True)
    second.close()
    assert server.rows == [1, 2, 3, 4, 5]
    assert len(set(server.ids)) == 1
    cursor = read_cursor(store, RUN, "wandb")
    assert cursor is not None
    assert (cursor.sent.step, cursor.url) == (5, f"https://there/{server.ids[0]}")
    assert server.finished == [False], "no result: the training goes on some day"


def test_a_process_that_was_taken_over_from_stops(store, tmp_path):
    server = Server()
    write_journal(store, [1])
    first = open_follower(store, server, tmp_path)
    first.advance(final=False)
    open_follower(store, server, tmp_path)
    write_journal(store, [1, 2])
    with pytest.raises(Superseded):
        first.advance(final=False)
    assert server.rows == [1]


def test_what_a_server_has_counts_more_than_what_was_handed_over(store, tmp_path):
    server = Server(tells=True)
    write_journal(store, range(1, 7))
    open_follower(store, server, tmp_path).advance(final=False)
    server.rows = [1, 2, 3, 4]  # two were on their way when everything was killed
    open_follower(store, server, tmp_path).advance(final=False)
    assert server.rows == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("is_folder", [True, False], ids=["a folder", "a bucket"])
def test_files_of_a_session_that_was_killed_are_written_anew(store, tmp_path, is_folder):
    place: Store = store if is_folder else Bucket(store)
    server = Server(keeps_files=True)
    write_journal(store, [1, 2])
    first = open_follower(place, server, tmp_path / "a")
    first.advance(final=False)
    first.close()
    write_journal(store, [1, 2, 3, 4, 5])
    killed = open_follower(place, server, tmp_path / "b")
    killed.advance(final=False)
    assert in_files(store) == [1, 2, 3, 4, 5]
    write_journal(store, [1, 2, 3, 4])  # what was resumed began at step 4
    last = open_follower(place, server, tmp_path / "c")
    last.advance(final=True)
    last.close()
    assert in_files(store) == [1, 2, 3, 4]
    sessions = [name.rpartition(".")[2] for name in store.list(f"{train_path(RUN)}/wandb")]
    assert sessions == ["session-1", "session-3"]


def test_beside_a_server_nothing_is_left_in_the_workspace(store, tmp_path):
    write_journal(store, [1])
    open_follower(store, Server(), tmp_path / "scratch").advance(final=True)
    assert (tmp_path / "scratch/wandb").is_dir()
    assert not (store.root / "train/r/wandb").exists()


def test_files_that_would_be_empty_are_not_made(store, tmp_path):
    server = Server(keeps_files=True)
    one = open_follower(store, server, tmp_path)
    one.advance(final=True)
    one.close()
    assert (server.ids, store.list(f"{train_path(RUN)}/wandb")) == ([], [])


def test_files_from_before_it_went_to_a_server_are_not_added_to(store, tmp_path):
    write_journal(store, [1, 2])
    for server in (Server("files", keeps_files=True), Server("server"), Server("files", keeps_files=True)):
        one = open_follower(store, server, tmp_path)
        one.advance(final=True)
        one.close()
    assert in_files(store) == [1, 2]


def test_no_torch_is_loaded_beside_the_training():
    code = "import sys, draftyard_trainer.tracking.follower; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("change", "same_id"),
    [
        pytest.param({"name": "elsewhere"}, True, id="another place gets all of the run"),
        pytest.param({"fingerprint": "sha256:f2"}, False, id="another run of the same name is another run"),
    ],
)
def test_from_the_beginning(store, tmp_path, change, same_id):
    write_journal(store, [1, 2])
    before, after = Server(), Server(name=change.get("name", "there"))
    open_follower(store, before, tmp_path).advance(final=False)
    run = TRACKED.model_copy(update={"fingerprint": change.get("fingerprint", TRACKED.fingerprint)})
    open_follower(store, after, tmp_path, run).advance(final=False)
    assert after.rows == [1, 2]
    assert (after.ids == before.ids) is same_id


# -- Away, and back ---------------------------------------------------------------------------------------------------


class Ended(threading.Event):
    """An end that comes after some waits, and makes none of them."""

    def __init__(self, waits: Sequence[Any]) -> None:
        super().__init__()
        self.waits = list(waits)
        self.waited: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.waited.append(timeout)
        act = self.waits.pop(0)
        act()
        if not self.waits:
            self.set()
        return self.is_set()


def nothing() -> None:
    """Time passes."""


def test_a_tracker_that_is_away_is_said_to_be_once_and_has_everything_in_the_end(store, tmp_path):
    server = Server(broken=ConnectionError("no route"))
    said: list[str] = []
    write_journal(store, [1, 2])

    def is_back() -> None:
        server.broken = None
        write_journal(store, [1, 2, 3])

    ended = Ended([nothing, nothing, is_back, nothing])
    assert follow(lambda: open_follower(store, server, tmp_path), ended, said.append)
    assert said == [
        "ConnectionError: no route; training goes on, and metrics.jsonl has every point", "can be reached again",
    ]  # fmt: skip
    assert server.rows == [1, 2, 3]
    assert ended.waited == [30.0, 60.0, 120.0, following_page.POLL_SECONDS]


def test_a_tracker_that_stays_away_is_tried_once_more_at_the_end(store, tmp_path):
    server = Server(broken=ConnectionError("no route"))
    write_journal(store, [1])
    assert not follow(lambda: open_follower(store, server, tmp_path), Ended([nothing] * 8), [].append)
    server.broken = None
    assert follow(lambda: open_follower(store, server, tmp_path), Ended([nothing]), [].append)
    assert server.rows == [1]


def test_files_of_a_session_that_failed_hold_nothing_twice(store, tmp_path):
    server = Server(keeps_files=True)
    write_journal(store, [1, 2])

    def breaks() -> None:
        server.broken = OSError(28, "No space left on device")
        write_journal(store, [1, 2, 3])

    def is_mended() -> None:
        server.broken = None

    ended = Ended([breaks, is_mended, nothing])
    assert follow(lambda: open_follower(store, server, tmp_path), ended, [].append)
    assert in_files(store) == [1, 2, 3]


# -- Secrets ----------------------------------------------------------------------------------------------------------


def test_an_error_tells_no_secret(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "local-0123456789")
    error = ValueError("https://me:word@host/x refused\n  Authorization: local-0123456789")
    assert quiet.told(error) == "ValueError: https://***@host/x refused Authorization: ***"


def test_a_tracker_sees_no_key_of_another():
    given = {"PATH": "p", "HF_TOKEN": "h", "WANDB_API_KEY": "w", "SWANLAB_API_KEY": "s", "MLFLOW_TRACKING_TOKEN": "m"}
    assert quiet.allowed("wandb", given) == {"PATH": "p", "WANDB_API_KEY": "w"}
    assert quiet.allowed("tensorboard", given) == {"PATH": "p"}


def test_where_libraries_may_write(tmp_path):
    made = quiet.environment(tmp_path, {"HOME": "/nowhere", "WANDB_ERROR_REPORTING": "true"})
    assert made["HOME"] == str(tmp_path)
    assert Path(made["WANDB_CACHE_DIR"]).parent == tmp_path
    assert "WANDB_ERROR_REPORTING" not in made, "what a person sets is left"
    assert "HOME" not in quiet.environment(tmp_path, {"HOME": str(tmp_path)})


def test_names_of_secrets_are_not_kept(store):
    block = Wandb(project="p", secret_ref=SecretRef(name="hidden"))
    wanted = Tracking(report_to=("wandb",), wandb=block)
    write_run(store, TRACKED.model_copy(update={"tracking": wanted}))
    found = read_run(store, RUN)
    assert found is not None
    assert found.tracking.wandb == Wandb(project="p")
    assert "hidden" not in (store.root / "train/r/tracking/run.json").read_text()


def test_a_password_in_a_uri_is_no_part_of_a_place():
    wanted = Tracking(report_to=("mlflow",), mlflow=Mlflow(uri="https://me:word@host:5000/x", experiment="e"))
    assert mlflow_run.destination(wanted).name == "https://host:5000/x e"
    local = Tracking(report_to=("mlflow",), mlflow=Mlflow(uri="sqlite:////data/m.db", experiment="e"))
    assert mlflow_run.destination(local).name == "sqlite:////data/m.db e"


@pytest.mark.parametrize(
    ("mode", "name", "keeps_files"),
    [("offline", "offline", True), ("dryrun", "offline", True), ("online", "https://host/team/p", False)],
)
def test_the_librarys_own_variable_says_where(monkeypatch, mode, name, keeps_files):
    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setenv("WANDB_BASE_URL", "https://host")
    wanted = Tracking(report_to=("wandb",), wandb=Wandb(project="p", entity="team"))
    assert wandb_run.destination(wanted) == Destination(name, keeps_files)


def test_a_cursor_that_cannot_be_read_is_a_new_one(store, tmp_path):
    server = Server()
    write_journal(store, [1])
    store.publish(f"{train_path(RUN)}/tracking/wandb.json", b"{")
    one = open_follower(store, server, tmp_path)
    one.advance(final=False)
    assert server.rows == [1]
    assert read_cursor(store, RUN, "wandb") is not None


# -- The process ------------------------------------------------------------------------------------------------------


def start(store: LocalStore, tracker: str, environment: dict[str, str], seconds: int = 60) -> subprocess.Popen[str]:
    command = [
        sys.executable, "-m", "draftyard_trainer.tracking.follower", "--workspace", store.uri, "--run", RUN,
        "--tracker", tracker, "--seconds", str(seconds),
    ]  # fmt: skip
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, **environment},
    )  # fmt: skip


def library(folder: Path, name: str, text: str) -> dict[str, str]:
    """A library in front of the real one, in the environment that finds it."""
    folder.mkdir()
    (folder / f"{name}.py").write_text(text)
    return {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}


def test_a_library_that_is_not_there_is_named_with_its_extra(store, tmp_path):
    absent = library(tmp_path / "front", "sitecustomize", "import sys\nsys.modules['wandb'] = None\n")
    process = start(store, "wandb", absent)
    out, said = process.communicate(timeout=120)
    assert (process.returncode, out) == (1, "")
    assert said == (
        "tracking: wandb: the library is not installed: pip install 'draftyard[wandb]'; "
        "training goes on, and metrics.jsonl has every point\n"
    )


def test_a_library_that_hangs_ends_with_the_run(store, tmp_path):
    write_journal(store, [1])
    hangs = library(tmp_path / "front", "wandb", "import time\nprint('noise', flush=True)\ntime.sleep(600)\n")
    process = start(store, "wandb", hangs | {"WANDB_MODE": "offline"}, seconds=1)
    out, said = process.communicate(timeout=120)
    assert process.returncode < 0, "a signal, whatever it was doing"
    assert (out, said) == ("", "")
