"""The first process of a pod: which rank decides, what a signal does, what the kubelet reads."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from draftyard_api.exit_codes import ExitCode
from draftyard_api.names import ENV_STATE_DIR, ENV_TERMINATION_LOG, Stage
from draftyard_api.progress import MAX_TERMINATION_BYTES, StageResult
from draftyard_trainer import process, supervisor


def result(code: int, message: str = "") -> StageResult:
    return StageResult(stage=Stage.TRAIN, exit_code=code, message=message)


@pytest.mark.parametrize(
    ("results", "ended", "decides"),
    [
        pytest.param([result(0, "rank 0")], (0,), (0, "rank 0"), id="rank 0 speaks for a success"),
        pytest.param(
            [result(1, "lost peer"), result(79, "full")], (1,), (79, "full"), id="a telling code wins over ERROR"
        ),
        pytest.param([result(75, "saved"), result(81, "fenced")], (1,), (75, "saved"), id="rank 0 wins among equals"),
        pytest.param(
            [result(0), result(1, "rank 1 died")], (1,), (1, "rank 1 died"), id="one failed rank fails the stage"
        ),
        pytest.param([], (137,), (1, "ended with code 137"), id="killed for memory"),
        pytest.param([], (0,), (1, "left no result"), id="success without a result is none"),
        pytest.param([result(0)], (1,), (1, "ended with code 1"), id="a worker that fails after its result"),
        pytest.param([], (143, True), (75, "stopped by a signal"), id="stopped before it listened"),
        pytest.param([result(1, "boom")], (1, True), (1, "boom"), id="an error stays one when a stop was asked for"),
    ],
)
def test_decide(results, ended, decides):
    decided = supervisor.decide(Stage.TRAIN, results, supervisor.Ended(*ended))
    assert decided.exit_code == decides[0]
    assert decides[1] in decided.message


def test_results_are_read_rank_0_first_and_torn_files_are_passed_over(tmp_path):
    process.write_result(tmp_path, 1, result(1, "one"))
    process.write_result(tmp_path, 0, result(0, "zero"))
    (tmp_path / "result.2.json").write_text("{")
    assert [each.message for each in supervisor.read_results(tmp_path)] == ["zero", "one"]


def test_stages_start_as_modules_and_train_under_torchrun(tmp_path):
    assert supervisor.worker_command(Stage.PREPARE, tmp_path)[1:3] == ["-m", "draftyard_trainer.prepare"]


def test_the_exit_code_of_a_killed_worker_is_the_shells(tmp_path):
    program = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert supervisor.run_worker([sys.executable, "-c", program]) == supervisor.Ended(128 + signal.SIGKILL)


def test_a_bad_task_ends_with_64_and_a_termination_message(tmp_path):
    task = tmp_path / "task.json"
    task.write_text('{"run": 7}')
    log = tmp_path / "termination-log"
    done = subprocess.run(
        [sys.executable, "-m", "draftyard_api.cli", "train", "--task", str(task)],
        env={**os.environ, ENV_STATE_DIR: str(tmp_path / "state"), ENV_TERMINATION_LOG: str(log)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == ExitCode.BAD_TASK
    said = json.loads(log.read_text())
    assert (said["exitCode"], said["reason"]) == (64, "TaskRejected")
    assert "run: Input should be a valid string" in done.stderr


def test_a_signal_reaches_the_worker(tmp_path):
    """The supervisor passes SIGTERM on and waits for the worker's own end."""
    ready = tmp_path / "ready"
    worker = (
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
        f"pathlib.Path({str(ready)!r}).touch()\n"
        "time.sleep(60)\n"
    )
    program = (
        "import sys\nfrom draftyard_trainer import supervisor\n"
        f"sys.exit(supervisor.run_worker([sys.executable, '-c', {worker!r}]).exit_code)"
    )
    with subprocess.Popen([sys.executable, "-c", program]) as running:
        while not ready.exists():
            assert running.poll() is None
            time.sleep(0.02)
        running.terminate()
        assert running.wait(timeout=20) == 75


def test_a_long_message_still_fits_what_the_kubelet_keeps(tmp_path, monkeypatch):
    log = tmp_path / "termination-log"
    monkeypatch.setenv(ENV_TERMINATION_LOG, str(log))
    supervisor.write_termination_message(result(1, "é" * 3000))
    assert len(log.read_bytes()) <= MAX_TERMINATION_BYTES
    assert json.loads(log.read_text())["exitCode"] == 1


def test_training_keeps_the_memory_it_frees(monkeypatch):
    monkeypatch.delenv("MALLOC_MMAP_MAX_", raising=False)
    assert supervisor.worker_environment(Stage.TRAIN)["MALLOC_MMAP_MAX_"] == "0"
    assert "MALLOC_MMAP_MAX_" not in supervisor.worker_environment(Stage.GENERATE)
    monkeypatch.setenv("MALLOC_MMAP_MAX_", "7")
    assert supervisor.worker_environment(Stage.TRAIN)["MALLOC_MMAP_MAX_"] == "7"


@pytest.mark.parametrize("stage", [Stage.PREPARE, Stage.TRAIN])
def test_idle_threads_sleep_unless_the_user_says_otherwise(monkeypatch, stage):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert supervisor.worker_environment(stage)["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert supervisor.worker_environment(stage)["OMP_WAIT_POLICY"] == "ACTIVE"
