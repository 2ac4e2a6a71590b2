"""Real libraries, real files, read back: a training that is killed and resumed is one curve in every tracker."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import attempts
import numpy as np
import psutil
import pytest
import tracker_files
from mlflow.tracking import MlflowClient
from rich.console import Console
from swanlab.converter.wb.wbdatastore import WBDataStoreReader
from tracker_files import Curves
from wandb.proto import wandb_internal_pb2
from workshops import Workshop

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.names import EVALUATION, METRICS, Stage, export_path, train_path
from draftyard_api.schema import Tracker
from draftyard_api.spec import Evaluate, Export, Mlflow, Swanlab, Tracking, Wandb
from draftyard_api.task import EvaluateTask
from draftyard_trainer.evaluate import evaluate
from draftyard_trainer.reporting import Reporter
from draftyard_trainer.tracking import following
from draftyard_trainer.tracking.sync import sync
from draftyard_trainer.tracking.tracked_run import read_cursor

RUN = "tracked"
TRACKERS: tuple[Tracker, ...] = ("tensorboard", "wandb", "swanlab", "mlflow")
SECRETS = {
    "WANDB_API_KEY": "local-" + "5ec7e7" * 6,
    "SWANLAB_API_KEY": "5ec7e7swanlab",
    "MLFLOW_TRACKING_TOKEN": "5ec7e7mlflow",
}
OFFLINE = {"WANDB_MODE": "offline", "SWANLAB_MODE": "offline", "HOME": "/dev/null/home", **SECRETS}
"""As in a pod: a home that nobody can write to."""
EXACT: dict[Tracker, Callable[[float], float]] = {
    "tensorboard": lambda value: float(np.float32(value)),
    "swanlab": float,
    "wandb": float,
    "mlflow": float,
}


def tracking(folder: Path, *trackers: Tracker) -> Tracking:
    blocks = {
        "wandb": Wandb(project="drafts"),
        "swanlab": Swanlab(project="drafts"),
        "mlflow": Mlflow(uri=f"sqlite:///{folder}/mlflow.db", experiment="drafts"),
    }
    return Tracking(report_to=trackers, **{name: block for name, block in blocks.items() if name in trackers})


def outlast(store: Any, run: str, log: Path | None = None) -> int:
    """`draftyard track sync`, with what it says."""
    with (log or Path(os.devnull)).open("a") as file:
        return sync(store, run, (), Console(file=file))


@dataclass(frozen=True)
class Tracked:
    """A training that was killed with its trackers, and its files."""

    workshop: Workshop
    folder: Path
    killed_at: int
    """Steps of the journal when everything was killed."""

    def curves(self, tracker: Tracker) -> Curves:
        if tracker == "mlflow":
            return tracker_files.of_mlflow(f"sqlite:///{self.folder}/mlflow.db", "drafts")
        read = {
            "tensorboard": tracker_files.of_tensorboard,
            "wandb": tracker_files.of_wandb,
            "swanlab": tracker_files.of_swanlab,
        }[tracker]
        return read(self.workshop.path(f"{train_path(RUN)}/{tracker}"))


def wanted(workshop: Workshop, run: str) -> Curves:
    """What must be in every tracker, out of the journal and the last checkpoint alone."""
    curves: Curves = {}
    for line in workshop.metrics(run):
        for name, value in line.items():
            if isinstance(value, list) and name != "rows":
                for number, each in enumerate(value, start=1):
                    curves.setdefault(f"{name}/{number}", []).append((line["step"], float(each)))
            elif name not in ("rows", "time", "documentHash"):
                curves.setdefault(f"train/{name}", []).append((line["step"], float(value)))
    for score in attempts.scores_of(workshop, run):
        curves.setdefault("heldOut/tauSim", []).append((score["step"], score["tauSim"]))  # type: ignore[arg-type]
    return curves


@pytest.fixture(scope="module")
def tracked(workshop, tmp_path_factory) -> Tracked:
    """Stopped as a node is gone, once every tracker has some of it; then started again, to the end."""
    folder = tmp_path_factory.mktemp("tracked")
    task = workshop.task(RUN).model_copy(update={"tracking": tracking(folder, *TRACKERS)})
    process = attempts.start(task, folder / "first", environment=OFFLINE)
    attempts.wait_for_step(workshop, RUN, process, 8)
    process.send_signal(signal.SIGSTOP)
    deadline = time.monotonic() + 300
    while any(cursor is None or not cursor.sent.step for cursor in cursors(workshop)):
        assert time.monotonic() < deadline, (folder / "first/log.txt").read_text()
        time.sleep(0.05)
    killed_at = len(workshop.metrics(RUN))
    attempts.kill_tree(process)
    again = attempts.start(task, folder / "second", environment=OFFLINE)
    assert again.wait(timeout=300) == 0, (folder / "second/log.txt").read_text()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in OFFLINE.items():
            patch.setenv(name, value)
        # On a machine that is busy the time at the end of a training may not be enough for all.
        assert outlast(workshop.store, RUN, folder / "sync.txt") == ExitCode.OK, (folder / "sync.txt").read_text()
    return Tracked(workshop, folder, killed_at)


def cursors(workshop: Workshop) -> list[Any]:
    return [read_cursor(workshop.store, RUN, tracker) for tracker in TRACKERS]


def test_it_was_killed_on_its_way_and_resumed(tracked):
    result = json.loads((tracked.folder / "second/result.json").read_text())
    steps = [line["step"] for line in tracked.workshop.metrics(RUN)]
    assert 8 <= result["resumedFromStep"] < len(steps)
    assert tracked.killed_at < len(steps)
    assert steps == list(range(1, len(steps) + 1))
    assert all(cursor.session >= 2 for cursor in cursors(tracked.workshop))


@pytest.mark.parametrize("tracker", TRACKERS)
def test_every_value_of_the_journal_is_there_once(tracked, tracker):
    found, there = tracked.curves(tracker), wanted(tracked.workshop, RUN)
    timed = {"train/seconds", "train/dataSeconds"} if tracker == "mlflow" else set()
    for name, points in there.items():
        given = found[name]
        if name == "heldOut/tauSim" and tracker == "wandb":
            # Their own axis: W&B's history never goes back to the step of a score.
            axis = [int(value) for _, value in found["heldOut/step"]]
            given = list(zip(axis, (value for _, value in given), strict=True))
        assert [step for step, _ in given] == [step for step, _ in points], name
        if name not in timed:
            exact = [EXACT[tracker](value) for _, value in points]
            assert [value for _, value in given] == pytest.approx(exact, rel=1e-12, nan_ok=True), name


@pytest.mark.parametrize("tracker", TRACKERS)
def test_the_result_is_there_once(tracked, tracker):
    told = json.loads(tracked.workshop.path(f"{train_path(RUN)}/result.json").read_text())["trained"]
    found = tracked.curves(tracker)
    ((_, length),) = found["result/simulatedAcceptanceLength"]
    assert length == pytest.approx(float(told["acceptance"]["length"]))
    assert [value for _, value in found["result/bestStep"]] == [told["bestStep"]]


def test_one_run_of_mlflow_with_its_name_its_config_and_its_end(tracked):
    client = MlflowClient(f"sqlite:///{tracked.folder}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("drafts").experiment_id])
    assert (run.info.run_name, run.info.status) == (RUN, "FINISHED")
    assert run.data.params["train.learningRate"] == "0.003"
    assert run.data.params["fingerprint"] == tracked.workshop.prepared.fingerprint
    assert run.data.tags["draftyard.tag.eagle3"] == "true"


def test_one_run_of_wandb_in_all_its_files(tracked):
    told = set()
    for file in tracked.workshop.path(f"{train_path(RUN)}/wandb").rglob("*.wandb"):
        with WBDataStoreReader() as reader:
            reader.open(file)
            records = [wandb_internal_pb2.Record.FromString(data) for data in iter(reader.scan, None)]
        run = next(record.run for record in records if record.HasField("run"))
        config = {item.key: item.value_json for item in run.config.update}
        told.add((run.run_id, run.display_name, run.project, tuple(run.tags), config["draftTokens"]))
    assert told == {(cursors(tracked.workshop)[1].id, RUN, "drafts", ("draftyard", "Online", "eagle3", "target"), "3")}


def test_a_second_sync_sends_nothing(tracked, monkeypatch):
    for name, value in OFFLINE.items():
        monkeypatch.setenv(name, value)
    before = {tracker: tracked.curves(tracker) for tracker in TRACKERS}
    log = tracked.folder / "again.txt"
    assert outlast(tracked.workshop.store, RUN, log) == ExitCode.OK
    steps = len(tracked.workshop.metrics(RUN))
    assert [line.split(",")[0] for line in log.read_text().splitlines()] == [
        f"{tracker}: is at step {steps}" for tracker in TRACKERS
    ]
    assert {tracker: tracked.curves(tracker) for tracker in TRACKERS} == before


def test_no_secret_is_in_any_file_or_log(tracked):
    files = [path for root in (tracked.workshop.store.root, tracked.folder) for path in root.rglob("*")]
    found = [
        path
        for path in files
        if path.is_file() and any(secret.encode() in path.read_bytes() for secret in SECRETS.values())
    ]
    assert len(files) > 50
    assert found == []


def test_nothing_is_said_when_all_is_well(tracked):
    for log in ("first/log.txt", "second/log.txt"):
        lines = (tracked.folder / log).read_text().splitlines()
        assert [line for line in lines if "tracking" in line and "not done in time" not in line] == []


# -- What training owes to trackers: nothing ---------------------------------------------------------------------------


def test_a_hub_that_is_down_stops_nothing_and_has_all_of_it_later(workshop, tmp_path, monkeypatch, capfd):
    run = "down"
    for name, value in {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": SECRETS["WANDB_API_KEY"]}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(following, "FINISH_SECONDS", 2.0)
    task = workshop.task(run).model_copy(update={"tracking": tracking(tmp_path, "wandb")})
    result = workshop.train(task)
    assert result.exit_code == ExitCode.OK
    cursor = read_cursor(workshop.store, run, "wandb")
    assert cursor is None or not cursor.sent.step
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("tracking: ")]
    assert len(said) == 1
    assert children() == []
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert outlast(workshop.store, run) == ExitCode.OK
    found = tracker_files.of_wandb(workshop.path(f"{train_path(run)}/wandb"))
    assert found["train/loss"] == wanted(workshop, run)["train/loss"]


def test_a_library_that_hangs_is_ended_behind_the_training(workshop, tmp_path, monkeypatch, capfd):
    (tmp_path / "front").mkdir()
    (tmp_path / "front/wandb.py").write_text("import signal\nwhile True:\n    signal.pause()\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "front"), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr(following, "FINISH_SECONDS", 1.0)
    task = workshop.task("hangs").model_copy(update={"tracking": tracking(tmp_path, "wandb")})
    assert workshop.train(task).exit_code == ExitCode.OK
    assert "tracking: wandb: not done in time; `draftyard track sync` sends the rest" in capfd.readouterr().err
    assert children() == []


def test_a_stop_waits_for_no_tracker(workshop, tmp_path, monkeypatch):
    (tmp_path / "front").mkdir()
    (tmp_path / "front/wandb.py").write_text("import time\ntime.sleep(600)\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "front"), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr(following, "STOP_SECONDS", 0.5)
    task = workshop.task("stops").model_copy(update={"tracking": tracking(tmp_path, "wandb")})
    with pytest.raises(Failure) as caught:
        workshop.train(task, workshop.stopping_at(3))
    assert caught.value.code == ExitCode.INTERRUPTED
    assert workshop.steps("stops") == [3]
    assert children() == []


def children() -> list[str]:
    """Processes of trackers that are still there."""
    found = psutil.Process().children(recursive=True)
    return [line for child in found if "tracking.follower" in (line := " ".join(child.cmdline()))]


def test_what_evaluate_measures_goes_to_the_same_run(workshop, tmp_path):
    run = "judged"
    task = workshop.task(run, publishes=False).model_copy(update={"tracking": tracking(tmp_path, "tensorboard")})
    workshop.train(task)
    judge = EvaluateTask(
        run=run, uid=task.uid, workspace=task.workspace, target=task.target, prepared=task.prepared,
        evaluate=Evaluate(max_prompts=4, max_new_tokens=8, min_acceptance_length=6.0), export=Export(),
        tracking=task.tracking, fingerprint=task.fingerprint,
    )  # fmt: skip
    with pytest.raises(Failure, match="required 6"):
        evaluate(judge, Reporter(Stage.EVALUATE))
    outlast(workshop.store, run)
    found = tracker_files.of_tensorboard(workshop.path(f"{train_path(run)}/tensorboard"))
    report = json.loads(workshop.path(f"{export_path(run)}/{EVALUATION}").read_text())
    steps = len(workshop.metrics(run))
    assert found["result/acceptanceLength"] == [(steps, float(np.float32(report["length"])))]
    assert found["result/published"] == [(steps, 0.0)]
    assert len(found["train/loss"]) == steps


# -- The command ------------------------------------------------------------------------------------------------------


def test_sync_of_a_run_that_is_not_there_says_which_are(tracked):
    with pytest.raises(Failure, match=r"--run: given nobody, which has no metrics.jsonl .* accepted: .*tracked"):
        outlast(tracked.workshop.store, "nobody")


def test_a_tracker_that_no_spec_named_gets_a_run_afterwards(tracked, monkeypatch):
    monkeypatch.setenv("SWANLAB_MODE", "offline")
    workshop = tracked.workshop
    workshop.train(workshop.task("later"))
    assert outlast(workshop.store, "later") == ExitCode.ERROR, "nobody said where to"
    assert sync(workshop.store, "later", ("tensorboard",), Console(quiet=True)) == ExitCode.OK
    found = tracker_files.of_tensorboard(workshop.path(f"{train_path('later')}/tensorboard"))
    assert [step for step, _ in found["train/loss"]] == [line["step"] for line in workshop.metrics("later")]
    assert workshop.path(f"{train_path('later')}/{METRICS}").exists()
