"""Trainings as programs: started, watched, and compared with one that nobody disturbed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import psutil
from workshops import Workshop

from draftyard_api.names import ENV_STATE_DIR, RESULT_FILE
from draftyard_api.progress import StageResult
from draftyard_api.task import TrainTask

UNDISTURBED = "undisturbed"
ALONE = ("-m", "draftyard_trainer.train")
IN_PAIRS = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *ALONE)
SUPERVISED = ("-m", "draftyard_api.cli", "train")
"""As a pod starts it: with as many processes as the task says."""
SECONDS = 300


def start(
    task: TrainTask, state: Path, module: tuple[str, ...] = ALONE, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """The training as a program."""
    state.mkdir(exist_ok=True)
    file = state / "task.json"
    file.write_text(task.model_dump_json(by_alias=True, exclude_none=True))
    given = {**os.environ, ENV_STATE_DIR: str(state), "OMP_NUM_THREADS": "1", **(environment or {})}
    with (state / "log.txt").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, *module, "--task", str(file)], env=given, stdout=log, stderr=subprocess.STDOUT
        )


def wait_for_checkpoints(workshop: Workshop, run: str, process: subprocess.Popen[bytes], count: int) -> None:
    deadline = time.monotonic() + SECONDS
    while len(workshop.steps(run)) < count:
        assert process.poll() is None, "ended before it could be disturbed"
        assert time.monotonic() < deadline
        time.sleep(0.005)


def wait_for_step(workshop: Workshop, run: str, process: subprocess.Popen[bytes], step: int) -> None:
    """Until there is a checkpoint of this step or a later one."""
    deadline = time.monotonic() + SECONDS
    while not workshop.steps(run) or workshop.steps(run)[-1] < step:
        assert process.poll() is None, "ended before it could be disturbed"
        assert time.monotonic() < deadline
        time.sleep(0.005)


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL for all at once, as when a node is gone."""
    tree = [process, *psutil.Process(process.pid).children(recursive=True)]
    for each in tree:
        each.kill()
    process.wait()


def find_rank(process: subprocess.Popen[bytes], rank: int) -> psutil.Process:
    """One of the processes that torchrun started."""
    for child in psutil.Process(process.pid).children(recursive=True):
        if child.environ().get("RANK") == str(rank):
            return child
    raise AssertionError(f"no process has rank {rank}")


def results_of_pair(state: Path) -> list[StageResult]:
    return [StageResult.model_validate_json((state / name).read_bytes()) for name in (RESULT_FILE, "result.1.json")]


def scores_of(workshop: Workshop, run: str) -> list[dict[str, object]]:
    """All evaluations, as the last checkpoint has them."""
    found: list[dict[str, object]] = json.loads(workshop.checkpoint(run, workshop.steps(run)[-1]).read_text())["scores"]
    return found


def assert_ends_as_undisturbed(workshop: Workshop, run: str, result: StageResult, undisturbed: StageResult) -> None:
    """The same draft to the bit, the same numbers, one curve without a seam, and the same manifest but for the name."""
    assert workshop.model(run).read_bytes() == workshop.model(UNDISTURBED).read_bytes()
    assert result.trained == undisturbed.trained
    # One more or one fewer, and another checkpoint could be the best.
    assert scores_of(workshop, run) == scores_of(workshop, UNDISTURBED)
    curve, wanted = workshop.metrics(run), workshop.metrics(UNDISTURBED)
    assert [line["step"] for line in curve] == list(range(1, len(wanted) + 1))
    for line in (*curve, *wanted):
        del line["time"], line["seconds"], line["dataSeconds"]
    assert curve == wanted
    assert {**workshop.manifest(run), "run": UNDISTURBED} == workshop.manifest(UNDISTURBED)


def assert_nearly_undisturbed(workshop: Workshop, run: str, wanted_run: str = UNDISTURBED) -> None:
    """The same draft up to the order of sums: another number of processes took the steps."""
    tensors, wanted = workshop.tensors(run), workshop.tensors(wanted_run)
    assert sorted(tensors) == sorted(wanted)
    for name, tensor in wanted.items():
        difference = (tensors[name].double() - tensor.double()).abs().max()
        assert difference <= 1e-5 * tensor.double().abs().max(), name
