"""The verbs that the trainer adds to the command `draftyard`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.names import Stage
from draftyard_trainer import run as local
from draftyard_trainer.storage.opening import open_store
from draftyard_trainer.storage.store import Store
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


regenerate = stage_verb(Stage.REGENERATE, "Let the target answer conversations anew, one shard.")
prepare = stage_verb(Stage.PREPARE, "Turn conversations into tokens, loss masks and a draft vocabulary.")
generate = stage_verb(Stage.GENERATE, "Store the target's hidden states, one shard.")
train = stage_verb(Stage.TRAIN, "Train the draft and export it.")
evaluate = stage_verb(Stage.EVALUATE, "Measure the acceptance length and publish the draft.")


def run(arguments: Sequence[str]) -> int:
    """Run a DraftTraining on this machine, without a cluster."""
    parser = argparse.ArgumentParser(prog="draftyard run", description=run.__doc__)
    parser.add_argument("file", type=Path, metavar="FILE.yaml", help="the DraftTraining")
    parser.add_argument(
        "--workspace", default=".draftyard", metavar="DIR", help="where everything is written: a folder, or s3://..."
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
    bucket = options.workspace if options.workspace.startswith("s3://") else None
    folder = Path(".draftyard" if bucket else options.workspace)
    return local.run(options.file, folder, {name: Path(path) for name, path in claims.items()}, bucket)


def presets(arguments: Sequence[str]) -> int:
    """List the data sets that are known by name."""
    from draftyard_trainer.data.presets.known import PRESETS  # noqa: PLC0415

    argparse.ArgumentParser(prog="draftyard presets", description=presets.__doc__).parse_args(arguments)
    for preset in PRESETS.values():
        hub_ids = ", ".join(dict.fromkeys(table.hub_id for table in preset.tables))
        print(f"{preset.name:<16} {preset.about}; {hub_ids}; licence: {preset.licence}")
    return ExitCode.OK


def workspace_argument(parser: argparse.ArgumentParser) -> None:
    """The workspace, as every verb that looks into one takes it."""
    parser.add_argument(
        "workspace", nargs="?", default=".draftyard", metavar="WORKSPACE", help="a folder, or s3://bucket/prefix"
    )


def opened(workspace: str) -> Store:
    """The store behind what a person typed. Raises Failure."""
    return open_store(workspace if workspace.startswith("s3://") else f"file://{Path(workspace).resolve()}")


def inspect(arguments: Sequence[str]) -> int:
    """Show what is stored in a workspace; with --document one document, its supervised tokens in colour."""
    # they load torch, which the stages' own verbs must not wait for
    from draftyard_trainer import inspection  # noqa: PLC0415

    parser = argparse.ArgumentParser(prog="draftyard inspect", description=inspect.__doc__)
    workspace_argument(parser)
    parser.add_argument("--document", type=int, metavar="NUMBER", help="show this document, counted from 0")
    parser.add_argument("--prepared", metavar="FOLDER", help="of which prepared data, where there are several")
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="the target's folder, to decode tokens with")
    options = parser.parse_args(arguments)
    console = Console()
    try:
        store = opened(options.workspace)
        if options.document is None:
            inspection.inspect(store, console)
        else:
            inspection.show_document(store, console, options.document, options.prepared, options.tokenizer)
    except Failure as failure:
        return local.tell(Console(stderr=True), failure)
    return ExitCode.OK


def verify(arguments: Sequence[str]) -> int:
    """Read everything that is stored in a workspace, and compare it with what its manifests say."""
    from draftyard_trainer import verify as checking  # noqa: PLC0415

    parser = argparse.ArgumentParser(prog="draftyard verify", description=verify.__doc__)
    workspace_argument(parser)
    parser.add_argument(
        "--take-back", action="store_true", help="mark what is broken as not made, so that the next run makes it again"
    )
    options = parser.parse_args(arguments)
    console = Console(stderr=True)
    try:
        return checking.verify(opened(options.workspace), console, options.take_back)
    except Failure as failure:
        return local.tell(console, failure)
