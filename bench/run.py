"""Measure the training step of this project, of both peers and of the bare arithmetic, side by side in one run.

    python bench/run.py --out build/bench/step.json [--cases NAME,..] [--rounds 3,2]

Each trainer is a process of its own; in every round all of them get their turn, one at a time. Whoever disagrees about
the loss stops the run: then there is nothing to compare.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

import inputs
from cases import TTT_STEPS, Case, chosen
from draftyard_api.names import Stage
from draftyard_trainer.order import RowPlan
from draftyard_trainer.supervisor import worker_environment

HERE = Path(__file__).parent
PYTHONS = {
    "specforge": HERE / ".venv-bench-specforge/bin/python",
    "speculators": HERE / ".venv-bench-speculators/bin/python",
}
"""Peers live in environments of their own; the rest in this one."""
TRAINERS = ("draftyard", "specforge", "speculators", "limit")
AGREEMENT = 1e-4
"""Relative difference of the losses of any two, per unroll step."""
ROW_TOKENS = 8192
THREADS = 2
Result = dict[str, Any]


def environment() -> dict[str, str]:
    """The same for all: what this project's own supervisor sets. Neither peer can be compiled on a CPU."""
    return {**worker_environment(Stage.TRAIN), "OMP_NUM_THREADS": str(THREADS), "TORCHDYNAMO_DISABLE": "1"}


def visit(trainer: str, case: Case, file: Path, steps: int) -> Result:
    """One turn of one trainer."""
    python = PYTHONS.get(trainer, Path(sys.executable))
    command = [python, "-W", "ignore", HERE / "worker.py", trainer, file, case.name, "--steps", str(steps),
               "--threads", str(THREADS)]  # fmt: skip
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    if done.returncode == -9:
        return {"failed": "out of memory"}
    if done.returncode:
        raise SystemExit(f"{trainer} on {case.name} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    result: Result = json.loads(done.stdout.splitlines()[-1])
    return result


def merge(visits: Sequence[Result]) -> Result:
    """All turns of one trainer as one result."""
    if any("failed" in turn for turn in visits):
        return {"failed": next(turn["failed"] for turn in visits if "failed" in turn)}
    return {
        "seconds": [second for turn in visits for second in turn["seconds"]],
        "peak_mib": max(turn["peak_mib"] for turn in visits),
        "losses": visits[0]["losses"],
        "torch": visits[0]["torch"],
    }


def disagreement(results: dict[str, Result]) -> float:
    """Largest relative difference between this project's losses and a peer's, in the peer's own form."""
    ours = results["draftyard"]["losses"]
    found = [0.0]
    for name in PYTHONS:
        for form, losses in results.get(name, {}).get("losses", {}).items():
            found += [abs(theirs / mine - 1) for theirs, mine in zip(losses, ours[form], strict=True)]
    return max(found)


def measure(case: Case, documents: list[inputs.Lengths], file: Path, rounds: Sequence[int]) -> Result:
    """All rounds of a case. Raises SystemExit where the losses differ."""
    trainers = (*TRAINERS, "apart") if case.is_real else TRAINERS
    visits: dict[str, list[Result]] = {name: [] for name in trainers}
    for number, steps in enumerate(rounds):
        for name in trainers:
            visits[name].append(visit(name, case, file, steps))
        if number == 0:
            worst = disagreement({name: turns[0] for name, turns in visits.items()})
            if worst > AGREEMENT:
                raise SystemExit(f"{case.name}: losses differ by {worst:.1e}; at most {AGREEMENT:.0e}")
    return {
        "case": asdict(case),
        "tokens": sum(document.num_tokens for document in documents),
        "padded": case.batch * max(document.num_tokens for document in documents),
        "supervised": sum(document.supervised for document in documents),
        "dense": case.is_dense,
        "disagreement": worst,
        "results": {name: merge(turns) for name, turns in visits.items()},
    }


def packing_waste(lengths: list[inputs.Lengths]) -> float:
    """Share of the rows that no token fills, at the default row length."""
    tokens = np.array([document.num_tokens for document in lengths])
    return 1 - RowPlan(np.arange(len(tokens)), tokens, ROW_TOKENS, seed=0).fill(epoch=0)


def measured(cases: Sequence[Case], arguments: argparse.Namespace) -> Iterator[tuple[str, Result]]:
    """Case by case, inputs made and removed."""
    rounds = [int(steps) for steps in arguments.rounds.split(",")]
    for case in track(cases, description="training steps", console=None):
        file = arguments.out.with_name(f"{case.name}.safetensors")
        documents = inputs.write(case, arguments.model, arguments.conversations, file)
        try:
            yield case.name, measure(case, documents, file, rounds)
        finally:
            file.unlink()


def main() -> None:
    """Measure and write one JSON; what is in it already stays for the cases that are not asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cases", default="")
    parser.add_argument("--rounds", default="3,2", help="timed steps of each round")
    parser.add_argument("--model", type=Path, default=Path("build/fixtures/smollm2-135m-instruct"))
    parser.add_argument("--conversations", type=Path, default=Path("build/fixtures/sharegpt.json"))
    arguments = parser.parse_args()
    report: Result = json.loads(arguments.out.read_text()) if arguments.out.exists() else {"cases": {}}
    report["threads"], report["cores"], report["ttt_steps"] = THREADS, os.cpu_count(), TTT_STEPS
    report["packing_waste"] = packing_waste(inputs.real_lengths(arguments.model, arguments.conversations, 2048))
    for name, result in measured(chosen(arguments.cases), arguments):
        report["cases"][name] = result
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
