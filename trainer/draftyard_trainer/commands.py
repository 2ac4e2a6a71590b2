"""The verbs that the trainer adds to the command `draftyard`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

from rich.console import Console

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.names import Stage
from draftyard_api.reasons import Reason
from draftyard_api.schema import Tracker
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


def convert(arguments: Sequence[str]) -> int:
    """Read a draft of SpecForge, speculators or EAGLE, and write one that a run can start from."""
    from draftyard_trainer import convert as converting  # noqa: PLC0415

    parser = argparse.ArgumentParser(prog="draftyard convert", description=convert.__doc__)
    parser.add_argument("source", metavar="SOURCE", help="a folder with *.safetensors, org/name, or s3://bucket/prefix")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write; it must not exist")
    parser.add_argument(
        "--target", required=True, metavar="MODEL", help="the target that the draft is for: a folder, or org/name"
    )
    options = parser.parse_args(arguments)
    folder = Path(options.target)
    target = f"file://{folder.resolve()}" if folder.is_dir() else options.target
    try:
        return converting.convert(options.source, options.out, target, Console())
    except Failure as failure:
        return local.tell(Console(stderr=True), failure)


def track(arguments: Sequence[str]) -> int:
    """Send a run's curves to trackers that have not got all of them: `draftyard track sync WORKSPACE --run NAME`."""
    from draftyard_trainer.tracking.sync import sync  # noqa: PLC0415  as above

    parser = argparse.ArgumentParser(prog="draftyard track", description=track.__doc__)
    verbs = parser.add_subparsers(required=True, metavar="sync")
    verb = verbs.add_parser("sync", description=track.__doc__)
    workspace_argument(verb)
    verb.add_argument("--run", required=True, metavar="NAME", help="the run, of which no training is going on")
    verb.add_argument(
        "--to",
        action="append",
        default=[],
        choices=get_args(Tracker),
        help="a tracker, in place of those of the run's spec; may be repeated",
    )
    options = parser.parse_args(arguments)
    try:
        return sync(opened(options.workspace), options.run, options.to, Console())
    except Failure as failure:
        return local.tell(Console(stderr=True), failure)


def export(arguments: Sequence[str]) -> int:
    """Give a published draft away, with a model card: to a folder, a bucket, or a repository of the hub."""
    from draftyard_trainer import pushing  # noqa: PLC0415

    parser = argparse.ArgumentParser(prog="draftyard export", description=export.__doc__)
    workspace_argument(parser)
    parser.add_argument("--run", required=True, metavar="NAME", help="whose draft: `draftyard inspect` lists them")
    parser.add_argument("--to", type=Path, metavar="DIR", help="a folder to write it to")
    parser.add_argument("--push", metavar="URI", help="hf://org/name (with HF_TOKEN), or s3://bucket/prefix")
    parser.add_argument(
        "--profile", default="portable", choices=pushing.FORMS, help="portable: both engines; speculators: vllm serve"
    )
    parser.add_argument("--private", action="store_true", help="make a new repository of the hub private")
    parser.add_argument("--allow-unpublished", action="store_true", help="also one below its gate; its card says so")
    parser.add_argument("--replace", action="store_true", help="put it in the place of another draft")
    options = parser.parse_args(arguments)
    wish = pushing.Wish(
        options.run, options.to, options.push, options.profile, options.private, options.allow_unpublished,
        options.replace,
    )  # fmt: skip
    console = Console(stderr=True)
    try:
        return pushing.export(opened(options.workspace), wish, console)
    except Failure as failure:
        return local.tell(console, failure)


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


def report(arguments: Sequence[str]) -> int:
    """Write one HTML page about a run: how good the draft is, how to serve it, and why."""
    from draftyard_trainer.report import page  # noqa: PLC0415
    from draftyard_trainer.report.record import choose_run, read_record  # noqa: PLC0415

    parser = argparse.ArgumentParser(prog="draftyard report", description=report.__doc__)
    workspace_argument(parser)
    parser.add_argument("--run", metavar="NAME", help="which run, where there are several")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to write it (default: ./report-NAME.html)")
    options = parser.parse_args(arguments)
    console = Console(stderr=True)
    try:
        store = opened(options.workspace)
        run = choose_run(store, options.run)
        return write_page(options.out or Path(f"report-{run}.html"), page.report(read_record(store, run)))
    except Failure as failure:
        return local.tell(console, failure)


def compare(arguments: Sequence[str]) -> int:
    """Put runs side by side: settings that differ, acceptance, time, bytes; with --html also their curves."""
    from draftyard_trainer.report import comparison  # noqa: PLC0415

    parser = argparse.ArgumentParser(prog="draftyard compare", description=compare.__doc__)
    parser.add_argument(
        "runs", nargs="+", metavar="WORKSPACE[:RUN]", help="a folder or s3://bucket/prefix; without :RUN all its runs"
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page, too")
    options = parser.parse_args(arguments)
    try:
        compared = comparison.columns(comparison.find_records(options.runs, opened))
    except Failure as failure:
        return local.tell(Console(stderr=True), failure)
    Console().print(comparison.table(compared))
    return write_page(options.html, comparison.page(compared)) if options.html else ExitCode.OK


def write_page(path: Path, content: str) -> int:
    """Write an HTML file and say where. Returns an exit code."""
    try:
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        failure = Failure(ExitCode.DENIED, Reason.STORAGE_ACCESS_DENIED, f"given {path}: {error.strerror}")
        return local.tell(Console(stderr=True), failure)
    print(f"report: {path}")
    return ExitCode.OK
