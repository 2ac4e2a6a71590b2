"""`draftyard <stage> --task task.json`: the process that a pod starts.

It starts the working process (for train under torchrun), forwards signals to it, and ends with the exit code and the
termination message of the rank that decides. It imports no torch, so it outlives a worker that is out of memory.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.names import (
    DEFAULT_TERMINATION_LOG,
    ENV_PARENT,
    ENV_TERMINATION_LOG,
    PROGRESS_FILE,
    RESULT_FILE,
    Stage,
)
from draftyard_api.progress import MAX_TERMINATION_BYTES, StageResult
from draftyard_api.reasons import Reason
from draftyard_api.task import GenerateTask, TrainTask
from draftyard_trainer import progress_server
from draftyard_trainer.process import die_with_parent, failed, read_task, state_dir, write_result

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def supervise(stage: Stage, task_file: Path) -> int:
    """Run one stage to its end. Returns the exit code of the deciding rank."""
    die_with_parent()
    state = state_dir()
    for leftover in (state / PROGRESS_FILE, *state.glob("result*.json")):
        leftover.unlink(missing_ok=True)
    try:
        with progress_server.serving(state):
            ended = run_worker(worker_command(stage, task_file), worker_environment(stage))
        result = decide(stage, read_results(state), ended)
    except Failure as failure:
        result = failed(stage, failure.code, failure.reason, failure.message)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    result = result.model_copy(update={"peak_memory_bytes": peak})
    write_result(state, 0, result)
    write_termination_message(result)
    if result.exit_code:
        print(f"{stage}: {result.reason}: {result.message}", file=sys.stderr)
    return result.exit_code


def worker_command(stage: Stage, task_file: Path) -> list[str]:
    """What to start. Train runs under torchrun, also with one process; PET_* of a PyTorchJob win over these flags.

    Generate runs under it where the target needs several GPUs.
    """
    module = [f"draftyard_trainer.{stage}", "--task", str(task_file)]
    processes = 1
    if stage is Stage.TRAIN:
        processes = read_task(task_file, TrainTask).train.gpus_per_node
    elif stage is Stage.GENERATE:
        processes = read_task(task_file, GenerateTask).target.tensor_parallel
    if processes == 1 and stage is not Stage.TRAIN:
        return [sys.executable, "-m", *module]
    is_told = stage is Stage.TRAIN and "PET_NNODES" in os.environ
    flags = [] if is_told else ["--standalone", "--nproc-per-node", str(processes)]
    return [sys.executable, "-m", "torch.distributed.run", *flags, "-m", *module]


@dataclass(frozen=True)
class Ended:
    """How the working process ended: its exit code, 128 + n for signal n, and whether it was asked to."""

    exit_code: int
    was_asked: bool = False


TRAIN_ENVIRONMENT = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "GOMP_SPINCOUNT": "20000",
}
"""For training on a CPU; a GPU does not notice.

A step frees tensors of many MB and asks for the same sizes again: given back in between, their pages would be cleared
anew in every step. And it runs thousands of short parallel loops: threads that sleep at once lose a sixth of the step
to waking up, threads that spin for long starve whoever shares the cores. 20000 turns are tens of microseconds.
"""


def worker_environment(stage: Stage) -> dict[str, str]:
    """The worker's environment; what is set from outside wins.

    Idle threads must sleep: two spinning pools on few cores run 30 times slower.
    """
    ours = TRAIN_ENVIRONMENT if stage is Stage.TRAIN else {}
    return {"OMP_WAIT_POLICY": "PASSIVE", **ours, **os.environ, ENV_PARENT: str(os.getpid())}


def run_worker(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Ended:
    """Start the worker, pass SIGTERM and SIGINT on as SIGTERM, and wait."""
    asked: list[int] = []
    with subprocess.Popen(command, env=environment) as worker:  # noqa: S603  a list, never a shell

        def forward(number: int, _frame: object) -> None:
            asked.append(number)
            worker.send_signal(signal.SIGTERM)

        before = {number: signal.signal(number, forward) for number in STOP_SIGNALS}
        try:
            code = worker.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    return Ended(128 - code if code < 0 else code, bool(asked))


def read_results(state: Path) -> list[StageResult]:
    """What the ranks left, rank 0 first; a rank that was killed left nothing."""
    found = []
    for path in sorted(state.glob("result*.json"), key=lambda path: (path.name != RESULT_FILE, path.name)):
        try:
            found.append(StageResult.model_validate_json(path.read_bytes()))
        except (OSError, ValidationError):
            continue
    return found


def decide(stage: Stage, results: Sequence[StageResult], ended: Ended) -> StageResult:
    """The result that counts. torchrun says 1 for whatever a worker said, so the ranks' own words come first.

    A code that says what happened wins over ERROR, and rank 0 wins among equals: the survivors of a broken process
    group all end with ERROR, and what they say counts only when nobody knows better.
    """
    telling = [result for result in results if result.exit_code not in (ExitCode.OK, ExitCode.ERROR)]
    erring = [result for result in results if result.exit_code == ExitCode.ERROR]
    erring.sort(key=lambda result: result.reason is Reason.DISRUPTED)
    if telling or erring:
        return (telling or erring)[0]
    if ended.exit_code == 0 and results:
        return results[0]
    if ended.was_asked:
        # It was stopped before it listened to signals: nothing was begun that could be lost.
        return failed(stage, ExitCode.INTERRUPTED, Reason.INTERRUPTED, f"{stage}: stopped by a signal")
    message = f"the working process ended with code {ended.exit_code} and left no result"
    if ended.exit_code == 128 + signal.SIGKILL:
        message += ": killed, most often for memory"
    return failed(stage, ExitCode.ERROR, Reason.POD_FAILED, message)


def write_termination_message(result: StageResult) -> None:
    """One line of JSON for the kubelet, cut to what it keeps. Outside a pod there may be no such file."""
    text = result.model_dump_json(by_alias=True, exclude_none=True)
    if len(text.encode()) > MAX_TERMINATION_BYTES:
        text = result.model_copy(update={"message": result.message[:512]}).model_dump_json(
            by_alias=True, exclude_none=True
        )
    path = Path(os.environ.get(ENV_TERMINATION_LOG, DEFAULT_TERMINATION_LOG))
    if path.parent.is_dir() and os.access(path if path.exists() else path.parent, os.W_OK):
        path.write_text(text)
