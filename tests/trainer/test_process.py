"""Every end of a stage, foreseen or not, becomes a result with a code, a reason and a message."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys

import pytest

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.names import Stage
from draftyard_api.progress import StageResult
from draftyard_api.reasons import Reason
from draftyard_api.spec import Evaluate, Export, Target
from draftyard_api.task import EvaluateTask
from draftyard_trainer import process
from draftyard_trainer.reporting import Reporter
from draftyard_trainer.storage.local import LocalStore


def raising(error: Exception):
    def work() -> StageResult:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "code", "reason", "words"),
    [
        pytest.param(
            Failure(ExitCode.BAD_DATA, Reason.DATA_REJECTED, "data: empty"), 65, "DataRejected", "data: empty",
            id="a failure keeps its words",
        ),
        pytest.param(
            OSError(errno.ENOSPC, "No space left on device", "/data/x"), 79, "WorkspaceFull", "no space left (/data/x)",
            id="a full disk",
        ),
        pytest.param(
            OSError(errno.EDQUOT, "Disk quota exceeded", "/data/x"), 79, "WorkspaceFull", "no space left (/data/x)",
            id="a used up quota",
        ),
        pytest.param(
            PermissionError(errno.EACCES, "Permission denied", "/data/workspace/draftyard/prepare"), 77,
            "StorageAccessDenied", "workspace: /data/workspace/draftyard/prepare: Permission denied; give uid",
            id="a workspace of somebody else",
        ),
        pytest.param(
            PermissionError(errno.EPERM, "Operation not permitted", b"/data/claims/models/llama/config.json"), 77,
            "StorageAccessDenied", "claim models: /data/claims/models/llama/config.json: Operation not permitted; give",
            id="a claim of somebody else",
        ),
        pytest.param(
            OSError(errno.EROFS, "Read-only file system", "/elsewhere/x"), 77, "StorageAccessDenied",
            "/elsewhere/x: Read-only file system; take a claim or a folder that can be written", id="a read-only disk",
        ),
        pytest.param(
            PermissionError(errno.EPERM, "Operation not permitted"), 1, "PodFailed", "Operation not permitted",
            id="a system call that is about no file",
        ),
        pytest.param(OSError(errno.EIO, "I/O error"), 1, "PodFailed", "I/O error", id="a broken disk"),
        pytest.param(MemoryError("4 GiB"), 1, "OutOfMemory", "4 GiB", id="no memory"),
        pytest.param(KeyError("lm_head"), 1, "PodFailed", "KeyError: 'lm_head'", id="a bug"),
    ],
)  # fmt: skip
def test_ends(error, code, reason, words):
    result = process.attempt(Stage.TRAIN, raising(error))
    assert (result.exit_code, result.reason) == (code, reason)
    assert words in result.message


UNREADABLE = """
import sys
from pathlib import Path
from draftyard_api.names import Stage
from draftyard_trainer import process
from draftyard_trainer.storage.local import LocalStore

store = LocalStore(Path(sys.argv[1]))
work = {"exists": lambda: store.exists("train/r1/a"), "list": lambda: store.list("train"),
        "size": lambda: store.size("train/r1/a"), "fetch": lambda: store.fetch("train/r1/a"),
        "write": lambda: store.publish("train/b", b"x"), "target": lambda: Path(sys.argv[1], "train/r1/a").is_file()}
print(process.attempt(Stage.TRAIN, work[sys.argv[2]]).model_dump_json(by_alias=True))
"""


@pytest.mark.parametrize("what", ["exists", "list", "size", "fetch", "write", "target"])
def test_a_folder_of_somebody_else_is_one_clear_end(tmp_path, what):
    """For a real user without the rights: an unreadable folder must not pass for an empty one."""
    store = LocalStore(tmp_path)
    store.publish("train/r1/a", b"x")
    (tmp_path / "train").chmod(0)
    leash = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []
    try:
        done = subprocess.run(
            [*leash, sys.executable, "-c", UNREADABLE, str(tmp_path), what], capture_output=True, text=True, check=True
        )
    finally:
        (tmp_path / "train").chmod(0o755)
    result = StageResult.model_validate_json(done.stdout)
    assert (result.exit_code, result.reason) == (ExitCode.DENIED, Reason.STORAGE_ACCESS_DENIED)
    assert str(tmp_path) in result.message
    assert "pod.securityContext.fsGroup" in result.message


def test_a_result_passes_through():
    done = StageResult(stage=Stage.TRAIN, message="done")
    assert process.attempt(Stage.TRAIN, lambda: done) is done


def test_long_messages_are_cut():
    result = process.failed(Stage.TRAIN, ExitCode.ERROR, Reason.POD_FAILED, "x" * 5000)
    assert len(result.message) == 1024


def evaluate_task(**changes) -> EvaluateTask:
    fields = {
        "run": "r", "uid": "u", "workspace": "file:///w", "target": Target(model="a/b"), "prepared": "p",
        "evaluate": Evaluate(), "export": Export(), "fingerprint": "f",
    }  # fmt: skip
    return EvaluateTask(**{**fields, **changes})


def test_a_task_survives_its_file(tmp_path):
    path = tmp_path / "task.json"
    path.write_text(evaluate_task().model_dump_json(by_alias=True, exclude_none=True))
    assert process.read_task(path, EvaluateTask) == evaluate_task()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param(None, "No such file", id="absent"),
        pytest.param("{", "Invalid JSON", id="no JSON"),
        pytest.param('{"run": "r", "colour": 1}', "colour: Extra inputs are not permitted", id="unknown field"),
        pytest.param('{"run": 7}', "run: Input should be a valid string", id="wrong type"),
    ],
)
def test_a_bad_task_is_rejected_with_what_is_wrong(tmp_path, text, words):
    path = tmp_path / "task.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(Failure, match="--task") as caught:
        process.read_task(path, EvaluateTask)
    assert caught.value.code == ExitCode.BAD_TASK
    assert words in caught.value.message


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_ask_for_a_stop(number):
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    reporter = Reporter(Stage.TRAIN)
    try:
        process.stop_on_signals(reporter)
        os.kill(os.getpid(), number)
        assert reporter.stop_requested
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def test_results_of_ranks_have_their_own_files(tmp_path):
    for rank in (0, 3):
        process.write_result(tmp_path, rank, StageResult(stage=Stage.TRAIN, message=str(rank)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["result.3.json", "result.json"]


CHILD = """
import os, time
from draftyard_trainer import process
time.sleep(float(os.environ["LATE"]))
process.die_with_parent()
print("works", flush=True)
"""
PARENT = f"""
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {CHILD!r}], env={{**os.environ, "DRAFTYARD_PARENT": str(os.getpid())}})
time.sleep(float(os.environ["LIVES"]))
os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize(("lives", "late", "words"), [(0, 2, ""), (20, 0, "works\n")], ids=["gone", "there"])
def test_whoever_gets_ready_after_its_parent_is_gone_does_not_begin(lives, late, words):
    environment = {**os.environ, "LIVES": str(lives), "LATE": str(late)}
    environment.pop("RANK", None)
    command = [sys.executable, "-c", PARENT]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as parent:
        # a line, or the end of the file once all who could write are gone
        assert parent.stdout.readline() == words
        parent.kill()


def test_ranks_are_not_asked_who_started_them(monkeypatch):
    monkeypatch.setenv("DRAFTYARD_PARENT", "1")
    monkeypatch.setenv("RANK", "0")
    process.die_with_parent()
    monkeypatch.delenv("RANK")
    with pytest.raises(SystemExit, match="75"):
        process.die_with_parent()
