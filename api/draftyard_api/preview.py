"""`draftyard plan FILE.yaml`: what a run will do and cost, without doing any of it."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError
from rich import box
from rich.console import Console
from rich.table import Table

from draftyard_api import document, estimate, names, storage_uri
from draftyard_api import plan as planning
from draftyard_api.exit_codes import ExitCode
from draftyard_api.names import Stage
from draftyard_api.progress import StageResult
from draftyard_api.schema import Codec
from draftyard_api.spec import DraftTrainingSpec
from draftyard_api.status import Plan
from draftyard_api.targets import WELL_KNOWN, TargetShape

BASIS = {
    "Assumed": "before prepare has counted",
    "Counted": "from exact counts",
    "Measured": "from exact counts and the speed and size of finished shards",
}
"""Where the numbers of a plan come from, in words."""


def plan(arguments: Sequence[str]) -> int:
    """Say what a DraftTraining will take: stages, tokens, bytes, GPU-hours. Nothing is started."""
    parser = argparse.ArgumentParser(prog="draftyard plan", description=plan.__doc__)
    parser.add_argument("file", type=Path, metavar="FILE.yaml", help="the DraftTraining")
    parser.add_argument("--workspace", default=".draftyard", metavar="DIR", help="as for draftyard run")
    parser.add_argument("--like", metavar="ORG/NAME", help="the well-known model that target.model is a copy of")
    options = parser.parse_args(arguments)
    try:
        training = document.load(options.file)
    except document.SpecErrors as error:
        print("\n".join(error.errors), file=sys.stderr)
        return ExitCode.BAD_TASK
    spec = training.spec
    shape = find_shape(like(spec, options.like), options.file.resolve().parent)
    if shape is None:
        given = f"--like: given {options.like}" if options.like else f"spec.target.model: given {spec.target.model}"
        print(
            f"{given}, whose shape is not known before prepare has read its config.json; accepted here: a local "
            f"folder, or --like with one of {', '.join(WELL_KNOWN)}",
            file=sys.stderr,
        )
        return ExitCode.NOT_FOUND
    # tasks and results of a run in a bucket lie in this folder, and a bucket has no limit
    is_bucket = options.workspace.startswith("s3://")
    workspace = Path(".draftyard" if is_bucket else options.workspace)
    amount = find_amount(training, workspace, options.file.resolve().parent)
    free = None if is_bucket else free_bytes(workspace)
    made = estimate.estimate(spec, shape, amount, free)
    if amount.basis == "Counted":
        made = estimate.measured(made, spec, shape, amount, finished_shards(training, workspace))
    show(Console(), spec, made)
    print_memory(spec, shape)
    too_small = None if free is None else estimate.proposal(spec, shape, amount, free)
    if too_small:
        print(f"spec.workspace: {too_small}", file=sys.stderr)
        return ExitCode.NO_SPACE
    return ExitCode.OK


def like(spec: DraftTrainingSpec, model: str | None) -> DraftTrainingSpec:
    """The same run with the model that its target is a copy of: a claim or a bucket cannot be looked into here."""
    if model is None:
        return spec
    return spec.model_copy(update={"target": spec.target.model_copy(update={"model": model})})


def find_shape(spec: DraftTrainingSpec, base: Path) -> TargetShape | None:
    """The target's shape from its folder, or from the list of well-known targets."""
    uri = storage_uri.parse(spec.target.model)
    if uri.scheme == "file":
        config = (base / uri.path).resolve() / "config.json"
        return TargetShape.from_config(json.loads(config.read_text())) if config.is_file() else None
    known = WELL_KNOWN.get(uri.path) if uri.scheme == "hf" else None
    return TargetShape.from_config(known) if known else None


def find_amount(training: document.DraftTraining, workspace: Path, base: Path) -> estimate.Amount:
    """What prepare counted in this workspace, else a guess from the file's size."""
    result = read_result(workspace / "runs" / training.metadata.name / Stage.PREPARE)
    if result is not None and result.prepared is not None:
        return estimate.counted(result.prepared.counts)
    source = training.spec.data.source.file
    path = (base / storage_uri.parse(source.uri).path).resolve() if source and storage_uri.is_file(source.uri) else None
    return estimate.assumed(training.spec, path.stat().st_size if path and path.is_file() else None)


def finished_shards(training: document.DraftTraining, workspace: Path) -> list[StageResult]:
    """What generate has finished in this workspace."""
    folders = sorted((workspace / "runs" / training.metadata.name).glob(f"{Stage.GENERATE}-*"))
    return [result for result in map(read_result, folders) if result is not None]


def read_result(folder: Path) -> StageResult | None:
    """What a stage process left behind; None where there is nothing that can be read."""
    try:
        return StageResult.model_validate_json((folder / names.RESULT_FILE).read_bytes())
    except (OSError, ValidationError):
        return None


def free_bytes(workspace: Path) -> int:
    """Free bytes of the disk that the workspace is or will be on."""
    existing = workspace.resolve()
    while not existing.exists():
        existing = existing.parent
    return shutil.disk_usage(existing).free


def show(console: Console, spec: DraftTrainingSpec, made: Plan) -> None:
    """Print the plan: the data, what each stage takes, what each codec would, and what is assumed."""
    console.print(f"{spec.mode} plan, {BASIS[made.basis]}", style="bold", highlight=False)
    supervised = f"{made.loss_tokens:,} of them supervised"
    console.print(f"{made.samples:,} documents, {made.tokens:,} tokens, {supervised}", highlight=False)
    console.print(stage_table(spec, made))
    if spec.hidden_states and made.bytes.hidden_states_by_codec:
        console.print(codec_table(spec.hidden_states.codec, made))
    free = made.bytes.free
    limit = "no limit is known" if free is None else f"{estimate.bytes_text(free)} are free"
    console.print(f"disk: {estimate.bytes_text(made.bytes.needed)} are needed, {limit}", highlight=False)
    console.print(f"assumes {made.assumes}", highlight=False)


def print_memory(spec: DraftTrainingSpec, shape: TargetShape) -> None:
    """Host memory that training takes at the least, and a warning where its pods may not have it."""
    least = estimate.bytes_text(estimate.host_memory(spec, shape))
    print(f"memory: {least} at the least in the pod of process 0 of train")
    warning = estimate.too_little_memory(spec, shape)
    if warning:
        print(f"warning: spec.{warning}", file=sys.stderr)


def table_of(*headings: str) -> Table:
    """A table without a frame: words on the left, numbers on the right, none of them broken."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="left" if place < 2 else "right", no_wrap=place != 1)
    return table


def stage_table(spec: DraftTrainingSpec, made: Plan) -> Table:
    """One line per stage."""
    disk, hours = made.bytes, made.gpu_hours
    codec = f", {spec.hidden_states.codec}" if spec.hidden_states else ""
    shards = f" in {counted(made.shards)}" if made.shards else ""
    own = "" if made.regenerate_shards is None else f" in {counted(made.regenerate_shards)}"
    rows = {
        Stage.REGENERATE: (f"the target's own answers{own}", disk.conversations, hours.regenerate),
        Stage.PREPARE: ("tokens, masks, draft vocabulary", disk.prepare, None),
        Stage.GENERATE: (f"hidden states{shards}{codec}", disk.hidden_states, hours.generate),
        Stage.TRAIN: (f"{made.steps:,} steps, checkpoints, export", disk.checkpoints + disk.export, hours.train),
        Stage.EVALUATE: ("acceptance length, gate", 0, hours.evaluate),
    }
    table = table_of("stage", "what", "disk", "GPU-hours")
    for stage in planning.stages(spec):
        what, count, cost = rows[stage]
        table.add_row(stage, what, estimate.bytes_text(count) if count else "-", cost_text(cost))
    table.add_section()
    table.add_row("total", "", estimate.bytes_text(disk.needed), cost_text(hours.total), style="bold")
    return table


def counted(shards: int) -> str:
    """`1 shard`, `24 shards`."""
    return f"{shards} {'shard' if shards == 1 else 'shards'}"


def codec_table(chosen: Codec, made: Plan) -> Table:
    """What the hidden states would take with each codec, and whether the whole run would fit."""
    disk = made.bytes
    table = table_of("codec", "", "hidden states", "whole run", "fits")
    for codec, planned in (disk.hidden_states_by_codec or {}).items():
        # finished shards know better than the table of shares
        size = disk.hidden_states if codec == chosen else planned
        needed = disk.needed - disk.hidden_states + size
        fits = "-" if disk.free is None else "yes" if estimate.fits(needed, disk.free) else "no"
        sizes = (estimate.bytes_text(size), estimate.bytes_text(needed))
        is_chosen = codec == chosen
        table.add_row(codec, "chosen" if is_chosen else "", *sizes, fits, style="bold" if is_chosen else "")
    return table


def cost_text(hours: str | None) -> str:
    """GPU-hours for people; a dash where a stage needs no GPU."""
    if hours is None:
        return "-"
    return "< 0.001" if float(hours) == 0 else hours
