"""`draftyard plan FILE.yaml`: what a run will do and cost, without doing any of it."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from draftyard_api import document, estimate, names, storage_uri
from draftyard_api import plan as planning
from draftyard_api.exit_codes import ExitCode
from draftyard_api.names import Stage
from draftyard_api.progress import StageResult
from draftyard_api.spec import DraftTrainingSpec
from draftyard_api.status import Plan
from draftyard_api.targets import WELL_KNOWN, TargetShape


def plan(arguments: Sequence[str]) -> int:
    """Say what a DraftTraining will take: stages, tokens, bytes, GPU-hours. Nothing is started."""
    parser = argparse.ArgumentParser(prog="draftyard plan", description=plan.__doc__)
    parser.add_argument("file", type=Path, metavar="FILE.yaml", help="the DraftTraining")
    parser.add_argument(
        "--workspace", type=Path, default=Path(".draftyard"), metavar="DIR", help="as for draftyard run"
    )
    options = parser.parse_args(arguments)
    try:
        training = document.load(options.file)
    except document.SpecErrors as error:
        print("\n".join(error.errors), file=sys.stderr)
        return ExitCode.BAD_TASK
    spec = training.spec
    shape = find_shape(spec, options.file.resolve().parent)
    if shape is None:
        known = ", ".join(WELL_KNOWN)
        print(
            f"spec.target.model: given {spec.target.model}, whose shape is not known before prepare has read its "
            f"config.json; accepted here: a local folder, or one of {known}",
            file=sys.stderr,
        )
        return ExitCode.NOT_FOUND
    amount = find_amount(training, options.workspace, options.file.resolve().parent)
    free = free_bytes(options.workspace)
    made = estimate.estimate(spec, shape, amount, free)
    if amount.basis == "Counted":
        made = estimate.measured(made, spec, shape, amount, finished_shards(training, options.workspace))
    show(Console(), spec, made)
    too_small = estimate.proposal(spec, shape, amount, free)
    if too_small:
        print(f"spec.workspace: {too_small}", file=sys.stderr)
        return ExitCode.NO_SPACE
    return ExitCode.OK


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
    """Print the plan as a table, and what it assumes."""
    table = Table(title=f"{spec.mode}: {made.basis.lower()} plan", title_justify="left")
    for heading in ("stage", "what", "bytes", "GPU-hours"):
        table.add_column(heading, justify="left" if heading in ("stage", "what") else "right")
    disk, hours = made.bytes, made.gpu_hours
    shards = f", {made.shards} shards" if made.shards else ""
    rows = {
        Stage.PREPARE: (
            f"{made.samples} documents, {made.tokens} tokens, {made.loss_tokens} supervised",
            disk.prepare,
            "0",
        ),
        Stage.GENERATE: (f"hidden states{shards}", disk.hidden_states, hours.generate or "0"),
        Stage.TRAIN: (f"{made.steps} steps", disk.checkpoints + disk.export, hours.train or "0"),
        Stage.EVALUATE: ("acceptance length, gate", 0, hours.evaluate or "0"),
    }
    for stage in planning.stages(spec):
        what, count, cost = rows[stage]
        table.add_row(stage, what, f"{count / 2**20:,.0f} MiB", cost)
    table.add_row("total", "", f"{disk.needed / 2**20:,.0f} MiB", hours.total, style="bold")
    console.print(table)
    if disk.hidden_states_by_codec and spec.hidden_states:
        sizes = ", ".join(f"{codec} {estimate.bytes_text(size)}" for codec, size in disk.hidden_states_by_codec.items())
        console.print(f"hidden states by codec: {sizes}; chosen: {spec.hidden_states.codec}", highlight=False)
    console.print(f"assumes {made.assumes}", highlight=False, soft_wrap=True)
