"""What leaving the unroll early gives: acceptance on held-out prompts against the time of training.

    python bench/on_path.py --out build/bench/on-path.json

Drafts for SmolLM2 from its own answers, from several seeds, unrolled in full and along the path of a server. Every
training is a process of its own with one thread; its time is that of its processor, so that a busy machine counts
less. Finished trainings are kept: the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track

import on_policy
from draftyard import Documents
from draftyard_api.spec import Draft, Train
from draftyard_trainer.chain import RoundCounts, count_rounds, propose, summarise
from draftyard_trainer.draft.config import derive
from draftyard_trainer.draft.model import DraftModel
from draftyard_trainer.loop import Trainer
from draftyard_trainer.loss import Teacher
from draftyard_trainer.on_path import PathRule
from draftyard_trainer.optim import Optimizer
from draftyard_trainer.order import RowPlan, epoch_steps
from draftyard_trainer.parallel import World

SEEDS = (1, 2, 3)
ROW = 1024
LEARNING_RATE = 0.001
JUDGED_EVERY = 20
DRAFT_TOKENS = (3, 7)
"""Lengths are told for both: what is served by default, and all that is trained."""


@dataclass(frozen=True)
class Variant:
    """One way to unroll, for so many epochs."""

    name: str
    epochs: int = 2
    ttt_steps: int = 7
    rule: PathRule | None = None

    def config(self, seed: int) -> Train:
        """The training of one seed."""
        return Train(
            epochs=self.epochs, ttt_steps=self.ttt_steps, row_tokens=ROW, tokens_per_batch=ROW, seed=seed,
            learning_rate=LEARNING_RATE, unroll="full" if self.rule is None else "onPath",
        )  # fmt: skip


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("full"),
        Variant("full-3-steps", ttt_steps=3),
        Variant("argmax-floor0.1", rule=PathRule("argmax", 0.1)),
        Variant("sampled-floor0.1", rule=PathRule("sampled", 0.1)),
    )
}


def train(variant: Variant, seed: int, data: on_policy.OnPolicy, config: Any) -> list[dict[str, Any]]:
    """One training; every so often its time so far and what the draft reaches."""
    draft = DraftModel(config)
    draft.set_vocabulary(data.vocabulary)
    draft.initialise(seed)
    draft.attach_embedding(data.head.embed)
    documents = Documents(data.trained)
    wanted = variant.config(seed)
    plan = RowPlan(np.arange(len(data.trained)), documents.lengths, ROW, seed)
    steps = []
    for epoch in range(wanted.epochs):
        steps += epoch_steps(plan, epoch, 1, len(steps))
    optimizer = Optimizer(draft.trained_parameters(), wanted, len(steps))
    trainer = Trainer(
        draft, optimizer, documents, documents, Teacher.of(data.head, draft.target_ids()),  # type: ignore[arg-type]
        World(0, 1, torch.device("cpu")), wanted,
    )  # fmt: skip
    if variant.rule is not None:
        trainer = replace(trainer, path=variant.rule)
    curve, seconds, asked, gated = [], 0.0, 0.0, 0.0
    for step in track(steps, description=f"{variant.name} {seed}"):
        started = time.process_time()
        report = trainer.step(step)
        seconds += time.process_time() - started
        asked, gated = asked + float(report.sums.asked.sum()), gated + float(report.sums.gated.sum())
        if (step.index + 1) % JUDGED_EVERY == 0 or step.index + 1 == len(steps):
            lengths = judge(draft, data)
            curve.append({"step": step.index + 1, "seconds": seconds, "asked": asked / gated, "lengths": lengths})
    return curve


def judge(draft: DraftModel, data: on_policy.OnPolicy) -> dict[str, float]:
    """Tokens per round on the held-out answers, as a server would count them, by the number of proposals."""
    counts: dict[int, list[RoundCounts]] = {each: [] for each in DRAFT_TOKENS}
    for sample in data.held_out:
        # the first proposals do not depend on how many follow
        proposed = propose(draft, sample, max(DRAFT_TOKENS), forced=False)
        for each, found in counts.items():
            found.append(count_rounds(sample.document.tokens, int(sample.document.spans[0, 0]), proposed[:each]))
    return {str(each): summarise(found).length for each, found in counts.items()}


def work(folder: Path, model: Path, name: str, seed: int) -> None:
    """One training in this process, kept in the folder."""
    torch.set_num_threads(1)
    data = on_policy.load(folder, model)
    config = derive(data.head.config, Draft(vocab_size=on_policy.DRAFT_VOCABULARY), on_policy.DRAFT_VOCABULARY,
                    on_policy.AUX_LAYERS)  # fmt: skip
    curve = train(VARIANTS[name], seed, data, config)
    (folder / f"{name}-{seed}.json").write_text(json.dumps(curve))


def summary(folder: Path, names: list[str]) -> dict[str, Any]:
    """Per variant, over the seeds: the curve of the mean length against the mean time."""
    return {name: list(map(mean_of, zip(*curves(folder, name), strict=True))) for name in names}


def curves(folder: Path, name: str) -> list[list[dict[str, Any]]]:
    """The curve of every seed."""
    return [json.loads((folder / f"{name}-{seed}.json").read_text()) for seed in SEEDS]


def mean_of(points: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    """The same look at the trainings of all seeds."""
    lengths = {key: [point["lengths"][key] for point in points] for key in points[0]["lengths"]}
    return {
        "step": points[0]["step"],
        **{key: statistics.mean(point[key] for point in points) for key in ("seconds", "asked")},
        "lengths": {key: statistics.mean(values) for key, values in lengths.items()},
        "spread": {key: statistics.stdev(values) for key, values in lengths.items()},
    }


def main() -> None:
    """Make the data, run what is missing, two at a time, and write one JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("build/bench/on-path.json"))
    parser.add_argument("--folder", type=Path, default=Path("build/bench/on-path"))
    parser.add_argument("--model", type=Path, default=Path("build/fixtures/smollm2-135m-instruct"))
    parser.add_argument("--conversations", type=Path, default=Path("build/fixtures/sharegpt.json"))
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--one", help="VARIANT:SEED, in this process")
    parser.add_argument("--parallel", type=int, default=2)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if arguments.one:
        name, seed = arguments.one.split(":")
        work(arguments.folder, arguments.model, name, int(seed))
        return
    names = arguments.variants.split(",")
    on_policy.make(arguments.folder, arguments.model, arguments.conversations)
    missing = [
        f"{name}:{seed}" for seed in SEEDS for name in names if not (arguments.folder / f"{name}-{seed}.json").exists()
    ]
    own = [sys.executable, __file__, "--folder", str(arguments.folder), "--model", str(arguments.model), "--one"]
    with ThreadPoolExecutor(arguments.parallel) as pool:
        list(pool.map(lambda job: subprocess.run([*own, job], check=True), missing))
    arguments.out.write_text(json.dumps(summary(arguments.folder, names), indent=1))


if __name__ == "__main__":
    main()
