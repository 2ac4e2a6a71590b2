"""One trainer in a process of its own: a few optimizer steps, timed, and the memory they took.

    python bench/worker.py TRAINER INPUTS.safetensors CASE --warmup 1 --steps 3

Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from cases import chosen

KIB_PER_MIB = 1024
TRAINERS: dict[str, tuple[str, dict[str, bool]]] = {
    "draftyard": ("draftyard", {}),
    "apart": ("draftyard", {"packed": False}),
    "specforge": ("specforge_peer", {}),
    "speculators": ("speculators_peer", {}),
    "limit": ("limit", {}),
}
"""Module beside this one, and how it is built. `apart` takes the documents of a row one by one."""


def status(field: str) -> float:
    """A figure of this process in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / KIB_PER_MIB
    raise RuntimeError(f"/proc/self/status has no {field}")


def main() -> None:
    """Build, warm up, measure."""
    parser = argparse.ArgumentParser()
    parser.add_argument("trainer", choices=TRAINERS)
    parser.add_argument("inputs", type=Path)
    parser.add_argument("case")
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    (case,) = chosen(arguments.case)
    module, options = TRAINERS[arguments.trainer]
    trainer = importlib.import_module(module).build(case, load_file(arguments.inputs), **options)
    gc.collect()
    loaded = status("VmRSS")
    # 5 makes the kernel forget the peak so far.
    Path("/proc/self/clear_refs").write_text("5")
    losses = None
    seconds = []
    for number in range(arguments.warmup + arguments.steps):
        started = time.perf_counter()
        told = trainer.step(number)
        seconds.append(time.perf_counter() - started)
        losses = losses or told
    print(
        json.dumps(
            {
                "seconds": seconds[arguments.warmup :],
                "losses": losses,
                "loaded_mib": loaded,
                "peak_mib": status("VmHWM") - loaded,
                "torch": torch.__version__,
            }
        )
    )


if __name__ == "__main__":
    main()
