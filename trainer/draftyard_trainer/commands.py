"""The verbs that the trainer adds to the command `draftyard`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from draftyard_api.names import Stage
from draftyard_trainer import run as local
from draftyard_trainer.supervisor import supervise

Verb = Callable[[Sequence[str]], int]


def stage_verb(stage: Stage, summary: str) -> Verb:
    """A verb that runs one stage from its task file."""

    def verb(arguments: Sequence[str]) -> int:
        parser = argparse.ArgumentParser(prog=f"draftyard {stage}", description=summary)
        parser.add_argument("--task", type=Path, required=True, metavar="FILE", help="the task, as JSON")
        return supervise(stage, parser.parse_args(arguments).task)

    verb.__doc__ = summary
    return verb


prepare = stage_verb(Stage.PREPARE, "Turn conversations into tokens, loss masks and a draft vocabulary.")
generate = stage_verb(Stage.GENERATE, "Store the target's hidden states, one shard.")
train = stage_verb(Stage.TRAIN, "Train the draft and export it.")
evaluate = stage_verb(Stage.EVALUATE, "Measure the acceptance length and publish the draft.")


def run(arguments: Sequence[str]) -> int:
    """Run a DraftTraining on this machine, without a cluster."""
    parser = argparse.ArgumentParser(prog="draftyard run", description=run.__doc__)
    parser.add_argument("file", type=Path, metavar="FILE.yaml", help="the DraftTraining")
    parser.add_argument(
        "--workspace", type=Path, default=Path(".draftyard"), metavar="DIR", help="where everything is written"
    )
    parser.add_argument(
        "--claim",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="folder that stands for a claim in pvc://NAME/path; may be repeated",
    )
    options = parser.parse_args(arguments)
    claims = dict(text.partition("=")[::2] for text in options.claim)
    return local.run(options.file, options.workspace, {name: Path(folder) for name, folder in claims.items()})
