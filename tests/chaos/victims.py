"""The processes of a run: who they are, and which of them is chosen."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

import psutil

from draftyard_api.names import Stage


def tree_of(pid: int) -> list[psutil.Process]:
    """A process and all that it started, in the order of their ids."""
    try:
        root = psutil.Process(pid)
        return [root, *sorted(root.children(recursive=True), key=lambda each: each.pid)]
    except psutil.NoSuchProcess:
        return []


def running_stage(pid: int) -> Stage | None:
    """The stage whose supervisor runs below a `draftyard run`."""
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(pid).children():
            with suppress(psutil.Error, ValueError):
                words = child.cmdline()
                if "draftyard_api.cli" in words:
                    return Stage(words[words.index("draftyard_api.cli") + 1])
    return None


def role_of(process: psutil.Process) -> str:
    """What it does in the run, for people."""
    words = process.cmdline()
    if "draftyard_api.cli" in words:
        verb = words[words.index("draftyard_api.cli") + 1]
        return "draftyard run" if verb == "run" else f"{verb}: first process"
    if "torch.distributed.run" in words:
        return "train: torchrun"
    module = next((word for word in words if word.startswith("draftyard_trainer.")), "a helper")
    rank = process.environ().get("RANK")
    return f"{module.removeprefix('draftyard_trainer.')}: " + ("working process" if rank is None else f"rank {rank}")


def wait_until_none_names(folder: Path, seconds: float) -> int:
    """Wait for processes whose command line names a folder to end. Returns how many have not."""
    deadline = time.monotonic() + seconds
    while True:
        left = [process for process in psutil.process_iter() if names(process, folder)]
        if not left or time.monotonic() > deadline:
            for process in left:
                with suppress(psutil.Error):
                    process.kill()
            return len(left)
        time.sleep(0.1)


def names(process: psutil.Process, folder: Path) -> bool:
    try:
        return any(f"{folder}/" in word for word in process.cmdline())
    except psutil.Error:
        return False
