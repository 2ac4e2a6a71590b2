"""What surviving costs, in a process of its own: steps with and without a save, or steps of several processes.

    python bench/reliability_worker.py save --folder build/bench/save
    torchrun --nproc-per-node 2 bench/reliability_worker.py steps

Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import draftyard
import inputs
from cases import SMOLLM2, Case
from draftyard_api.spec import Checkpoint, Draft, Export, Target, Train
from draftyard_api.task import TrainTask
from draftyard_trainer import checkpoint, parallel
from draftyard_trainer.checkpoint import CheckpointManifest, Identity
from draftyard_trainer.fence import Fence
from draftyard_trainer.journal import Journal
from draftyard_trainer.parallel import World
from draftyard_trainer.saving import Saver
from draftyard_trainer.storage.local import LocalStore

CASE = Case("h576-t512-b4", SMOLLM2, 512, batch=4)
"""A draft for SmolLM2; four rows in a step, of equal length, so that processes have equal shares."""
RUN = "bench"
STEPS, SAVES = 5, 3


@dataclass(frozen=True)
class TimedWorld(World):
    """Remembers how long gradients took to be summed, the wait for the slower process included."""

    seconds: list[float] = field(default_factory=list)

    def sum_gradients(self, gradients: Sequence[Tensor]) -> None:
        """As it is, and timed."""
        started = time.perf_counter()
        super().sum_gradients(gradients)
        self.seconds.append(time.perf_counter() - started)


def build() -> draftyard.Bench:
    """The trainer, a row for each document."""
    return draftyard.build(CASE, inputs.make(CASE.shape, inputs.made_up(CASE)), packed=False)


def take_step(bench: draftyard.Bench, index: int) -> float:
    """Seconds of a step."""
    started = time.perf_counter()
    bench.step(index)
    return time.perf_counter() - started


def measure_steps() -> dict[str, Any] | None:
    """Median step of this many processes, and the exchange in it; None in all but the first."""
    bench = build()
    with parallel.join() as world:
        timed = TimedWorld(world.rank, world.size, world.device)
        bench = replace(bench, trainer=replace(bench.trainer, world=timed))
        seconds = []
        for index in range(1 + STEPS):
            world.barrier()
            seconds.append(take_step(bench, index))
        if not world.leads:
            return None
    return {
        "processes": world.size,
        "seconds": seconds[1:],
        "exchange_seconds": timed.seconds[1:],
        "parameters": sum(parameter.numel() for parameter in bench.trainer.draft.trained_parameters()),
    }


def measure_saves(folder: Path) -> dict[str, Any]:
    """What a save adds to the steps that are taken meanwhile, and how long the state takes to be read back."""
    shutil.rmtree(folder, ignore_errors=True)
    bench, store = build(), LocalStore(folder)
    task = TrainTask(
        run=RUN, uid=RUN, workspace=store.uri, mode="Online", target=Target(model="a/b"), draft=Draft(),
        aux_layers=(1, 2, 3), prepared="p", train=Train(checkpoint=Checkpoint(keep_last=1)), publishes=True,
        export=Export(), fingerprint="f",
    )  # fmt: skip
    fence = Fence.take(store, task)
    saver = Saver(fence, task, Journal.open(fence, RUN, 0))
    usual = [take_step(bench, index) for index in range(1 + STEPS)][1:]
    step = statistics.median(usual)
    saves = [measure_save(bench, saver, number, step) for number in range(1, SAVES + 1)]
    started = time.perf_counter()
    found = checkpoint.load(store, RUN, SAVES)
    assert found is not None
    checkpoint.resume(found, bench.trainer.draft, bench.trainer.optimizer)
    loaded = time.perf_counter() - started
    num_bytes = sum(file.bytes for file in found.manifest.files.values())
    shutil.rmtree(folder)
    # the first one also takes the memory that later ones use again
    return {"step_seconds": usual, "saves": saves, "bytes": num_bytes, "load_seconds": loaded}


def measure_save(bench: draftyard.Bench, saver: Saver, number: int, step: float) -> dict[str, float]:
    """One save: seconds in which nothing was trained, and by how much the steps beside the write were longer."""
    trainer = bench.trainer
    began = time.perf_counter()
    saver.wait()
    saver.save(trainer.draft, trainer.optimizer, manifest(number))
    copied = time.perf_counter() - began
    beside = []
    while not beside or not saver.is_idle:
        beside.append(take_step(bench, number))
    saver.wait()
    assert saver.failure is None
    return {
        "copy_seconds": copied,
        "slower_seconds": sum(beside) - step * len(beside),
        "write_seconds": time.perf_counter() - began,
    }


def manifest(step: int) -> CheckpointManifest:
    """What a checkpoint says of itself; nothing here reads it."""
    names = Identity.model_fields
    return CheckpointManifest(
        step=step, total_steps=SAVES, epoch=0, next_row=0, tokens_seen=0, identity=Identity(**dict.fromkeys(names, "")),
        skipped=0, clipped=0, skipped_in_a_row=0, last_loss="0", scores=(), files={},
    )  # fmt: skip


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("save", "steps"))
    parser.add_argument("--folder", type=Path, default=Path("build/bench/save"))
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    found = measure_steps() if options.what == "steps" else measure_saves(options.folder)
    if found is not None:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
