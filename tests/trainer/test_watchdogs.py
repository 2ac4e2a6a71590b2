"""What goes wrong around a training: ranks that hang or are gone, disks that fill up, losses that are no numbers.

Whatever it is, all processes end, in finite time, with one exit code, and the next start ends as if nothing had been.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from attempts import (
    IN_PAIRS,
    SUPERVISED,
    assert_ends_as_undisturbed,
    assert_nearly_undisturbed,
    find_rank,
    results_of_pair,
    start,
    wait_for_checkpoints,
)

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.names import ENV_PEER_SECONDS, RESULT_FILE
from draftyard_api.progress import StageResult
from draftyard_api.reasons import Reason
from draftyard_trainer import checkpoint, parallel
from draftyard_trainer.optim import MAX_SKIPPED_IN_A_ROW, Optimizer

PEER_SECONDS = 10
QUICK = {ENV_PEER_SECONDS: str(PEER_SECONDS)}
"""Of a test: nobody waits 20 minutes for one who hangs."""
TORCHRUN_SECONDS = 30
"""What torchrun gives ranks that do not hear, once another one has failed; it has no setting."""


def end_of(process: subprocess.Popen[bytes], state: Path, seconds: float) -> StageResult:
    """How a supervised training ended, within some seconds."""
    code = process.wait(timeout=seconds)
    result = StageResult.model_validate_json((state / RESULT_FILE).read_bytes())
    assert result.exit_code == code, (state / "log.txt").read_text()
    return result


# -- Ranks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_rank_that_hangs_ends_the_attempt_in_finite_time(workshop, undisturbed, tmp_path, rank):
    run = f"hangs-{rank}"
    process = start(workshop.task(run, gpus_per_node=2), tmp_path, SUPERVISED, QUICK)
    wait_for_checkpoints(workshop, run, process, count=1)
    # a stopped process answers nobody, and no signal but SIGKILL ends it
    find_rank(process, rank).send_signal(signal.SIGSTOP)
    result = end_of(process, tmp_path, seconds=PEER_SECONDS + TORCHRUN_SECONDS + 60)
    assert (result.exit_code, result.reason) == (ExitCode.ERROR, Reason.DISRUPTED)
    assert f"process {1 - rank} of 2 lost another one" in result.message
    assert f"does not answer for {PEER_SECONDS} s" in result.message
    assert workshop.steps(run), "the checkpoints stay"
    workshop.train(workshop.task(run))
    assert_nearly_undisturbed(workshop, run)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_ends_the_attempt_at_once(workshop, undisturbed, tmp_path, rank):
    run = f"dies-{rank}"
    process = start(workshop.task(run, gpus_per_node=2), tmp_path, SUPERVISED)
    wait_for_checkpoints(workshop, run, process, count=1)
    find_rank(process, rank).kill()
    started = time.monotonic()
    result = end_of(process, tmp_path, seconds=60)
    assert time.monotonic() - started < 30
    assert result.exit_code == ExitCode.ERROR
    if result.reason is Reason.DISRUPTED:
        assert f"process {1 - rank} of 2 lost another one" in result.message
    else:
        assert "left no result" in result.message, "torchrun killed the survivor before it noticed"
    workshop.train(workshop.task(run))
    assert_nearly_undisturbed(workshop, run)


@pytest.mark.parametrize("given", ["0", "-1", "ten", "1.5", ""])
def test_a_time_that_is_none_is_refused(monkeypatch, given):
    monkeypatch.setenv(ENV_PEER_SECONDS, given)
    with pytest.raises(Failure, match=f"{ENV_PEER_SECONDS}: given {given}; accepted: whole seconds") as caught:
        parallel.peer_seconds()
    assert caught.value.code == ExitCode.BAD_TASK


def test_a_rank_that_hangs_is_given_up_after_twenty_minutes(monkeypatch):
    monkeypatch.delenv(ENV_PEER_SECONDS, raising=False)
    assert parallel.peer_seconds() == 1200


# -- The disk -------------------------------------------------------------------------------------


def fail_from(count: int) -> object:
    """A `save_file` that finds the disk full from its file number `count` on; two files make a checkpoint."""
    whole, made = checkpoint.save_file, 0

    def save(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        nonlocal made
        made += 1
        if made >= count:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        whole(tensors, path, metadata)

    return save


@pytest.mark.parametrize("count", [1, 3, 4], ids=["the first", "weights of the second", "moments of the second"])
def test_a_disk_that_fills_up_ends_the_training_and_keeps_the_older_checkpoint(
    workshop, undisturbed, monkeypatch, count
):
    run = f"full-{count}"
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save_file", fail_from(count))
        with pytest.raises(Failure) as caught:
            workshop.train(workshop.task(run))
    assert (caught.value.code, caught.value.reason) == (ExitCode.NO_SPACE, Reason.WORKSPACE_FULL)
    assert "no space left" in caught.value.message
    assert workshop.steps(run) == ([] if count == 1 else [4])
    assert_ends_as_undisturbed(workshop, run, workshop.train(workshop.task(run)), undisturbed)


def test_a_disk_that_is_full_when_a_stop_is_asked_for_is_told_instead(workshop, monkeypatch):
    """What was said to be saved is saved."""
    monkeypatch.setattr(checkpoint, "save_file", fail_from(1))
    with pytest.raises(Failure) as caught:
        workshop.train(workshop.task("full-stop"), workshop.stopping_at(2))
    assert caught.value.code == ExitCode.NO_SPACE
    assert workshop.steps("full-stop") == []


def test_a_stop_waits_for_the_write_that_goes_on_and_for_its_own(workshop, undisturbed, monkeypatch):
    whole = checkpoint.save_file

    def slowly(*arguments: object, **named: object) -> None:
        time.sleep(0.3)
        whole(*arguments, **named)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save_file", slowly)
        with pytest.raises(Failure) as caught:
            workshop.train(workshop.task("slow"), workshop.stopping_at(5))
    assert caught.value.code == ExitCode.INTERRUPTED
    assert workshop.steps("slow") == [4, 5]
    assert [line["step"] for line in workshop.metrics("slow")] == [1, 2, 3, 4, 5]
    assert_ends_as_undisturbed(workshop, "slow", workshop.train(workshop.task("slow")), undisturbed)


FILLS_UP = """
import os, sys
from pathlib import Path
sys.path.insert(0, os.path.dirname({tests!r}))
from draftyard_api.task import TrainTask
from draftyard_trainer import checkpoint, process
from draftyard_trainer.train import train
from test_watchdogs import fail_from

if os.environ["RANK"] == "0":
    checkpoint.save_file = fail_from(3)
sys.exit(process.main(TrainTask, train))
"""


def test_all_processes_end_alike_when_the_one_that_writes_finds_the_disk_full(workshop, tmp_path):
    """Also on another machine, which sees neither the disk nor the log of the first."""
    program = tmp_path / "fills_up.py"
    program.write_text(FILLS_UP.format(tests=__file__))
    process = start(workshop.task("pair-full"), tmp_path, (*IN_PAIRS[:-2], str(program)))
    process.wait(timeout=120)
    first, second = results_of_pair(tmp_path)
    assert first.exit_code == ExitCode.NO_SPACE, (tmp_path / "log.txt").read_text()
    assert (second.exit_code, second.reason, second.message) == (first.exit_code, first.reason, first.message)
    assert workshop.steps("pair-full") == [4]


# -- Losses ---------------------------------------------------------------------------------------


def poison(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """Gradients of these steps are no numbers."""
    whole = Optimizer.step

    def step(optimizer: Optimizer, index: int) -> object:
        if index in steps:
            optimizer.gradients()[0][0] = float("nan")
        return whole(optimizer, index)

    monkeypatch.setattr(Optimizer, "step", step)


def test_steps_without_numbers_are_skipped_and_counted_and_the_rest_goes_on(workshop, monkeypatch):
    poison(monkeypatch, {3, 9, 10})
    workshop.train(workshop.task("skips", epochs=1))
    curve = workshop.metrics("skips")
    assert [line["step"] for line in curve if line["skipped"]] == [4, 10, 11]
    last = json.loads(workshop.checkpoint("skips", workshop.steps("skips")[-1]).read_text())
    assert (last["skipped"], last["skippedInARow"]) == (3, 0)
    assert all(bool(torch.isfinite(tensor.float()).all()) for tensor in workshop.tensors("skips").values())


def test_too_many_in_a_row_end_the_training_also_over_a_resume(workshop, monkeypatch):
    """A training that is stopped every few steps must not go on for ever."""
    poison(monkeypatch, set(range(4, 100)))
    with pytest.raises(Failure) as caught:
        workshop.train(workshop.task("diverges", epochs=1), workshop.stopping_at(9))
    assert caught.value.code == ExitCode.INTERRUPTED
    with pytest.raises(Failure, match=f"not finite in {MAX_SKIPPED_IN_A_ROW} steps in a row, up to step 13") as caught:
        workshop.train(workshop.task("diverges", epochs=1))
    assert caught.value.code == ExitCode.DIVERGED
