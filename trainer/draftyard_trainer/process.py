"""The working process of a stage: reads the task, listens to signals, and leaves a result behind.

The supervisor (`supervisor.py`) starts it, alone or under torchrun, and turns what it leaves into an exit code.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.names import DEFAULT_STATE_DIR, ENV_PARENT, ENV_STATE_DIR, RESULT_FILE, Stage
from draftyard_api.progress import StageResult
from draftyard_api.reasons import Reason
from draftyard_api.task import BaseTask
from draftyard_trainer.reporting import Reporter
from draftyard_trainer.storage import access

TaskT = TypeVar("TaskT", bound=BaseTask)
PR_SET_PDEATHSIG = 1


def main(task_type: type[TaskT], work: Callable[[TaskT, Reporter], StageResult]) -> int:
    """Run a stage as this process. Returns its exit code; rank 0 leaves `result.json`, rank r `result.<r>.json`."""
    stage = Stage(task_type.model_fields["stage"].default)
    parser = argparse.ArgumentParser(prog=f"draftyard {stage}")
    parser.add_argument("--task", type=Path, required=True)
    arguments = parser.parse_args()
    die_with_parent()
    state = state_dir()
    rank = int(os.environ.get("RANK", "0"))
    reporter = Reporter(stage, state if rank == 0 else None)
    stop_on_signals(reporter)
    started = time.monotonic()
    result = attempt(stage, lambda: work(read_task(arguments.task, task_type), reporter))
    result = result.model_copy(update={"seconds": round(time.monotonic() - started, 3)})
    write_result(state, rank, result)
    return result.exit_code


def attempt(stage: Stage, work: Callable[[], StageResult]) -> StageResult:
    """Call `work` and turn every end, foreseen or not, into a result."""
    try:
        return work()
    except Exception as error:  # whatever it is, the status must say it
        if not isinstance(error, Failure):
            print_trace()
        failure = failure_of(error)
        return failed(stage, failure.code, failure.reason, failure.message)


def failure_of(error: BaseException) -> Failure:
    """What an error, foreseen or not, means as the end of a stage."""
    if isinstance(error, Failure):
        return error
    if isinstance(error, OSError) and access.is_full(error):
        message = f"workspace: no space left ({error.filename or 'device'}); free some, or use a larger one"
        return Failure(ExitCode.NO_SPACE, Reason.WORKSPACE_FULL, message)
    if isinstance(error, OSError) and access.is_refused(error):
        return access.denied(access.place(error), error)
    reason = Reason.OUT_OF_MEMORY if isinstance(error, MemoryError) else Reason.POD_FAILED
    return Failure(ExitCode.ERROR, reason, last_line(error))


def print_trace() -> None:
    """The traceback for the log, which may be on the very disk that is full."""
    with suppress(OSError):
        traceback.print_exc()


def failed(stage: Stage, code: ExitCode, reason: Reason, message: str) -> StageResult:
    """The result of a stage that did not reach its end."""
    return StageResult(stage=stage, exit_code=int(code), reason=reason, message=message[:1024])


def last_line(error: BaseException) -> str:
    """The line of a traceback that says what happened."""
    return traceback.format_exception_only(error)[-1].strip()


def read_task(path: Path, task_type: type[TaskT]) -> TaskT:
    """The task in `path`. Raises Failure(BAD_TASK) naming every field that is wrong."""
    try:
        return task_type.model_validate_json(path.read_bytes())
    except OSError as error:
        raise Failure(ExitCode.BAD_TASK, Reason.TASK_REJECTED, f"--task {path}: {error.strerror}") from error
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, line['loc']))}: {line['msg']}" for line in error.errors())
        raise Failure(ExitCode.BAD_TASK, Reason.TASK_REJECTED, f"--task {path}: {wrong}") from error


def stop_on_signals(reporter: Reporter) -> None:
    """SIGTERM and SIGINT ask the stage to stop at its next safe point."""

    def ask(_signal: int, _frame: object) -> None:
        reporter.stop_requested = True

    signal.signal(signal.SIGTERM, ask)
    signal.signal(signal.SIGINT, ask)


def die_with_parent() -> None:
    """Be asked to stop when the process that started this one is gone, or a killed run would work on unseen.

    Raises SystemExit(INTERRUPTED) when it is gone already: imports take seconds. Ranks are started by torchrun, which
    names nobody.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    parent = os.environ.get(ENV_PARENT)
    if parent is not None and "RANK" not in os.environ and int(parent) != os.getppid():
        sys.exit(ExitCode.INTERRUPTED)


def state_dir() -> Path:
    """Where progress and results are left; made if absent."""
    folder = Path(os.environ.get(ENV_STATE_DIR, DEFAULT_STATE_DIR))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_result(state: Path, rank: int, result: StageResult) -> None:
    """Leave the result of one rank, whole or not at all."""
    name = RESULT_FILE if rank == 0 else f"result.{rank}.json"
    staged = state / f".{name}.{os.getpid()}"
    staged.write_text(result.model_dump_json(by_alias=True, exclude_none=True))
    staged.replace(state / name)
