"""Drafts for SmolLM2 by this project and by both peers, trained alike and served by a real vLLM.

    python bench/quality.py --out build/bench/quality.json [--only peers|objectives]

Every training is a process of its own with one thread, two at a time; every engine one after the other. What is
trained or served is kept in a folder named by the settings: the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from safetensors.torch import load_file

import on_policy
import quality_draft
from draftyard_api.names import Stage
from draftyard_trainer.supervisor import worker_environment
from on_policy import OnPolicy, Scale
from recipe import CHOICES, Recipe, trained_file
from serving import Question, Served, ask

HERE = Path(__file__).parent
PEERS = ("specforge", "speculators")
OURS = "draftyard"
OBJECTIVES = {OURS: "kl", "lk_alpha": "lk_alpha", "lk_hybrid": "lk_hybrid"}
"""Our own drafts, by what they are trained with."""
SECTIONS = {"peers": (OURS, *PEERS), "objectives": tuple(OBJECTIVES)}
DONE, SERVED, PLAIN = quality_draft.DONE, "served.json", "plain.json"
"""Beside each draft; the last one is of the target alone."""
Result = dict[str, Any]


@dataclass(frozen=True)
class Work:
    """One run of the comparison: its settings, and where things lie."""

    recipe: Recipe
    seeds: tuple[int, ...]
    model: Path
    conversations: Path
    root: Path

    @property
    def scale(self) -> Scale:
        """Of the documents."""
        return Scale(self.recipe.trained, self.recipe.held_out, self.recipe.reply)

    @property
    def data(self) -> Path:
        """Documents with their states; at their usual scale those of `on_path.py`."""
        name = "-".join(str(part) for part in asdict(self.scale).values())
        return self.root / ("on-path" if self.scale == Scale() else f"on-policy-{name}")

    @property
    def folder(self) -> Path:
        """Results of these settings."""
        return self.root / "quality" / self.recipe.key()

    def draft(self, name: str, seed: int) -> Path:
        """Export of one draft, and what is told of it."""
        return self.folder / f"{name}-{seed}"

    def load(self) -> OnPolicy:
        """The documents."""
        return on_policy.load(self.data, self.model, self.scale)

    def arguments(self) -> list[str]:
        """What starts the same work in another process."""
        settings = {f"--{name.replace('_', '-')}": value for name, value in asdict(self.recipe).items()}
        places = {"--model": self.model, "--conversations": self.conversations, "--root": self.root}
        return [str(part) for pair in {**settings, **places}.items() for part in pair]


def prepare(work: Work) -> None:
    """Documents, and what peers start from."""
    work.data.mkdir(parents=True, exist_ok=True)
    work.folder.mkdir(parents=True, exist_ok=True)
    on_policy.make(work.data, work.model, work.conversations, work.scale)
    quality_draft.write_inputs(work.folder, work.load(), work.data / on_policy.STATES, work.recipe, work.seeds)


def require(engine: Path) -> None:
    """What is served in the end must be there in the beginning. Raises SystemExit."""
    for python, target in {
        engine: "make -C tests/serve venv",
        **{peer_python(peer): f"make -C bench .venv-bench-{peer}/installed" for peer in PEERS},
    }.items():
        if not python.exists():
            raise SystemExit(f"{python}: not there; `{target}` makes it")


def peer_python(trainer: str) -> Path:
    """A peer's own environment."""
    return HERE / f".venv-bench-{trainer}/bin/python"


def environment() -> dict[str, str]:
    """The same for all trainings: as our own supervisor sets it, one thread each. Nothing is compiled on a CPU."""
    return {**worker_environment(Stage.TRAIN), "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}


def train_by_peer(work: Work, trainer: str, seed: int) -> Result:
    """A peer's training, in its own environment."""
    command = [peer_python(trainer), "-W", "ignore", HERE / "peer_training.py", trainer, work.folder, str(seed)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment(), check=False)
    if done.returncode:
        raise SystemExit(f"{trainer} {seed} ended with {done.returncode}")
    told: Result = json.loads(done.stdout.splitlines()[-1])
    return told


def make_draft(work: Work, name: str, seed: int) -> None:
    """One draft in this process: trained, exported by the rules, judged by our own evaluator, and kept."""
    torch.set_num_threads(1)
    folder = work.draft(name, seed)
    # Before the documents are loaded: two processes would hold them.
    told = train_by_peer(work, name, seed) if name in PEERS else {}
    data = work.load()
    if name in PEERS:
        raw = trained_file(work.folder, name, seed)
        state = load_file(raw)
        choices = state.pop(CHOICES)
        draft = quality_draft.assemble(state, data, quality_draft.config_of(data))
        told["agreement"] = quality_draft.agreement(draft, data.held_out[0], choices)
        if told["agreement"] < quality_draft.AGREEMENT:
            raise SystemExit(f"{name} {seed}: its export makes {told['agreement']:.1%} of its own choices")
    else:
        draft, told["seconds"] = quality_draft.train(data, work.recipe, seed, OBJECTIVES[name])
    told["warnings"] = quality_draft.export(folder, draft, data, work.recipe.ttt_steps)
    quality_draft.keep(folder, {**told, "predicted": quality_draft.predict(folder, data, work.recipe)})
    trained_file(work.folder, name, seed).unlink(missing_ok=True)


def untrained(work: Work, names: Sequence[str]) -> list[tuple[str, int]]:
    """Drafts that are not kept yet; seed by seed, so that a run that is stopped has whole seeds."""
    return [(name, seed) for seed in work.seeds for name in names if not (work.draft(name, seed) / DONE).exists()]


def train_all(work: Work, names: Sequence[str], parallel: int) -> None:
    """Whatever is missing, some at a time."""

    def start(job: tuple[str, int]) -> None:
        command = [sys.executable, __file__, *work.arguments(), "--one", f"{job[0]}:{job[1]}"]
        subprocess.run(command, check=True, env=environment())

    with ThreadPoolExecutor(parallel) as pool:
        list(pool.map(start, untrained(work, names)))


def question(work: Work) -> Question:
    """The held-out prompts."""
    documents = [sample.document for sample in work.load().held_out]
    prompts = [document.tokens[: document.spans[0, 0]].tolist() for document in documents]
    return Question(prompts, on_policy.stop_ids(work.data), work.recipe.reply, work.recipe.draft_tokens)


def serve(work: Work, names: Sequence[str], python: Path) -> None:
    """The target alone and with each draft, whatever is missing."""
    asked = question(work)
    wanted: dict[Path, Path | None] = {work.folder / PLAIN: None}
    wanted |= {work.draft(name, seed) / SERVED: work.draft(name, seed) for seed in work.seeds for name in names}
    for file, draft in track(wanted.items(), description="vLLM"):
        if not file.exists():
            keep_served(file, ask(python, asked, work.model, draft))


def keep_served(file: Path, served: Served) -> None:
    """Write what an engine said."""
    staged = file.with_suffix(".tmp")
    staged.write_text(json.dumps(asdict(served)))
    staged.replace(file)


def tell_draft(work: Work, name: str, seed: int, plain: Served | None) -> Result:
    """What is known of one draft; what was served with it, where that was asked for."""
    folder = work.draft(name, seed)
    told: Result = json.loads((folder / DONE).read_text())
    if plain is None:
        return told
    served = Served(**json.loads((folder / SERVED).read_text()))
    equal = [one == other for one, other in zip(plain.replies, served.replies, strict=True)]
    positions = [count / served.rounds for count in served.per_position]
    return {**told, "served": {"length": served.length, "rounds": served.rounds, "accepted": served.accepted,
            "per_position": positions, "seconds": served.seconds, "ids_equal": sum(equal) / len(equal)}}  # fmt: skip


def tell(work: Work, section: str) -> Result:
    """A section of the result: by draft, by seed."""
    plain = Served(**json.loads((work.folder / PLAIN).read_text())) if section == "peers" else None
    return {name: {str(seed): tell_draft(work, name, seed, plain) for seed in work.seeds} for name in SECTIONS[section]}


def read_arguments() -> argparse.Namespace:
    """What the command line says; every setting of the recipe is an option."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("build/bench/quality.json"))
    parser.add_argument("--root", type=Path, default=Path("build/bench"))
    parser.add_argument("--model", type=Path, default=Path("build/fixtures/smollm2-135m-instruct"))
    parser.add_argument("--conversations", type=Path, default=Path("build/fixtures/sharegpt.json"))
    parser.add_argument("--engine", type=Path, default=Path(".venv-serve/bin/python"), help="Python that has vLLM")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--only", choices=tuple(SECTIONS), help="one part of the comparison")
    parser.add_argument("--one", help="NAME:SEED, in this process")
    parser.add_argument("--parallel", type=int, default=os.cpu_count() or 1)
    for setting in fields(Recipe):
        name = f"--{setting.name.replace('_', '-')}"
        parser.add_argument(name, type=type(setting.default), default=setting.default)
    return parser.parse_args()


def main() -> None:
    """Make the documents, train and serve what is missing, and write one JSON; sections not asked for stay."""
    arguments = read_arguments()
    recipe = Recipe(**{setting.name: getattr(arguments, setting.name) for setting in fields(Recipe)})
    seeds = tuple(int(seed) for seed in arguments.seeds.split(","))
    work = Work(recipe, seeds, arguments.model, arguments.conversations, arguments.root)
    if arguments.one:
        name, seed = arguments.one.split(":")
        make_draft(work, name, int(seed))
        return
    sections = [arguments.only] if arguments.only else list(SECTIONS)
    if "peers" in sections:
        require(arguments.engine)
    prepare(work)
    report: Result = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    if report.get("recipe") != asdict(recipe):
        report = {"recipe": asdict(recipe)}
    for section in sections:
        train_all(work, SECTIONS[section], arguments.parallel)
        if section == "peers":
            serve(work, SECTIONS[section], arguments.engine)
        report[section] = tell(work, section)
        arguments.out.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
