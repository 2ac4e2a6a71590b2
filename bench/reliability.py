"""What surviving costs: the stall of a save, the way from a restart to the first step, and what two processes give.

python bench/reliability.py --out build/bench/reliability.json --page docs/reliability.md
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from chaos_world import POLL_SECONDS, RUN, World, start
from waiting import until

from draftyard_api.names import ENV_STATE_DIR, MANIFEST
from draftyard_api.spec import Checkpoint
from draftyard_trainer.reporting import read_progress
from reliability_worker import CASE
from report import Bar, finish

ROOT = Path(__file__).resolve().parents[1]
WORKER = "bench/reliability_worker.py"
THREADS = 2
MARKERS = ("<!-- cost: begin -->", "<!-- cost: end -->")
WAIT_SECONDS = 300
INTERVAL = Checkpoint().every_steps
"""Steps between two saves when nobody says otherwise."""


def worker(arguments: list[str], threads: int) -> dict[str, Any]:
    """What a measuring process says."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    told = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    found: dict[str, Any] = json.loads(told.stdout.strip().splitlines()[-1])
    return found


def measure_steps(processes: int) -> dict[str, Any]:
    """Steps of so many processes, one thread each."""
    group = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return worker([*group, WORKER, "steps"], threads=1)


def measure_restart(folder: Path) -> float:
    """Seconds from the start of a stopped training to the end of its first new step, on a target of no size."""
    shutil.rmtree(folder, ignore_errors=True)
    world = World.make(folder)
    workspace = folder / "workspace"
    run = start(world.write_run("restart", "Online"), str(workspace), folder)
    steps = workspace / "train" / RUN
    until(lambda: len(list(steps.glob(f"step-*/{MANIFEST}"))) > 1, WAIT_SECONDS, "a second checkpoint", POLL_SECONDS)
    run.send_signal(signal.SIGTERM)
    run.wait(timeout=WAIT_SECONDS)
    done = max(int(path.parent.name.removeprefix("step-")) for path in steps.glob(f"step-*/{MANIFEST}"))
    state = folder / "state"
    state.mkdir()
    task = workspace / "runs" / RUN / "train" / "task.json"
    command = [sys.executable, "-m", "draftyard_api.cli", "train", "--task", str(task)]
    started = time.monotonic()
    with subprocess.Popen(command, env={**os.environ, ENV_STATE_DIR: str(state)}) as training:
        until(
            lambda: (found := read_progress(state)) and (found.step or 0) > done, WAIT_SECONDS, "a step", POLL_SECONDS
        )
        seconds = time.monotonic() - started
        training.terminate()
    shutil.rmtree(folder)
    return seconds


def stall(saves: dict[str, Any]) -> float:
    """Seconds that a save costs a training: the copy, and what the steps beside the write were slower by."""
    return max(save["copy_seconds"] + max(save["slower_seconds"], 0.0) for save in saves["saves"])


def bars(found: dict[str, Any]) -> list[Bar]:
    """Figures with a bar."""
    saves, one, two = found["saves"], found["steps"]["1"], found["steps"]["2"]
    step = statistics.median(saves["step_seconds"])
    scaling = statistics.median(one["seconds"]) / statistics.median(two["seconds"])
    return [
        Bar("checkpoint/stall-share", stall(saves) / (INTERVAL * step + stall(saves)), "<=", 0.02),
        Bar("resume/seconds-to-first-step", found["restart_seconds"] + saves["load_seconds"], "<=", 20),
        Bar("scaling/two-processes", scaling, ">=", 1.7),
    ]


def lines(found: dict[str, Any]) -> list[str]:
    """What was measured, in words."""
    saves, one, two = found["saves"], found["steps"]["1"], found["steps"]["2"]
    size = f"{one['parameters'] / 1e6:.1f} million parameters"
    return [
        f"A draft of {size} for SmolLM2's shape, fp32, steps of {found['tokens']} tokens.",
        "",
        f"- {save_line(saves)}",
        f"- {restart_line(found['restart_seconds'], saves)}",
        f"- {scaling_line(one, two)}",
    ]


def save_line(saves: dict[str, Any]) -> str:
    """The cost of a save."""
    first, *later = saves["saves"]
    middle = {name: statistics.median(save[name] for save in later) for name in first}
    return (
        f"A save copies {saves['bytes'] / 2**20:.0f} MiB: {first['copy_seconds']:.2f} s the first time, when it also "
        f"takes the memory, then {middle['copy_seconds']:.2f} s. The write goes on for {middle['write_seconds']:.1f} s "
        f"beside steps of {statistics.median(saves['step_seconds']):.2f} s on all {THREADS} cores; they are slower by "
        f"{middle['slower_seconds']:.2f} s together. The stall is both, of the dearest save, spread over {INTERVAL} "
        "such steps."
    )


def restart_line(seconds: float, saves: dict[str, Any]) -> str:
    """The way back."""
    return (
        f"From the start of a process to the end of its first new step: {seconds:.1f} s with a target of no size, and "
        f"{saves['load_seconds']:.2f} s more to read, check and take over the checkpoint of that draft. Loading a real "
        "target comes on top."
    )


def scaling_line(one: dict[str, Any], two: dict[str, Any]) -> str:
    """One process and two."""
    alone, pair = (statistics.median(each["seconds"]) for each in (one, two))
    exchange = statistics.median(two["exchange_seconds"])
    return (
        f"One process takes {alone:.2f} s for a step, two take {pair:.2f} s, one thread each. The exchange of "
        f"{4 * two['parameters'] / 2**20:.0f} MiB of gradients is {exchange:.2f} s of it ({exchange / pair:.1%}), the "
        "wait for the slower process included."
    )


def main() -> None:
    """Measure, write what was found, and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench" / "reliability.json")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "reliability.md")
    options = parser.parse_args()
    folder = options.out.resolve().parent
    folder.mkdir(parents=True, exist_ok=True)
    found = {
        "saves": worker([WORKER, "save", "--folder", str(folder / "save")], THREADS),
        "steps": {str(processes): measure_steps(processes) for processes in (1, 2)},
        "restart_seconds": measure_restart(folder / "restart"),
        "tokens": CASE.batch * CASE.length,
    }
    options.out.write_text(json.dumps(found, indent=1))
    finish(options.page, lines(found), bars(found), MARKERS)


if __name__ == "__main__":
    main()
