"""`draftyard convert SOURCE OUT`: a draft of SpecForge, speculators or EAGLE becomes one that a run can start from.

Everything that was found, and how it was read, is shown and kept; what cannot be ours is refused before anything is
written.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from torch import Tensor

import draftyard_api
from draftyard_api import storage_uri
from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.names import MANIFEST
from draftyard_api.reasons import Reason
from draftyard_api.spec import Draft, Target
from draftyard_trainer import conformance, warm_start
from draftyard_trainer.conformance_rules import TargetFacts, TextHashes
from draftyard_trainer.draft.files import engine_config
from draftyard_trainer.draft.foreign import Line, Reading, read_foreign
from draftyard_trainer.draft.foreign_files import sha256_of
from draftyard_trainer.draft.header import CONFIG_FILE, WEIGHTS_FILE
from draftyard_trainer.draft.manifest import ConvertedManifest, FileRecord, Mapping
from draftyard_trainer.export import ENGINES, to_export
from draftyard_trainer.storage.local import LocalStore
from draftyard_trainer.target.head import TargetHead
from draftyard_trainer.target.location import TargetFiles, locate

EVERYTHING = ("*.safetensors", CONFIG_FILE)
NO_TEXT = TextHashes("", "")
"""A converted draft says nothing of the text it was trained on."""


def convert(source: str, out: Path, target: str, console: Console) -> int:
    """Read a foreign draft, show how, and write it. Returns OK. Raises Failure, ValueError."""
    if out.exists():
        raise refused(f"OUT: given {out}, which exists; accepted: a folder that does not")
    folder = find_source(source)
    files = locate(Target(model=target), weights=False)
    try:
        reading = read_foreign(folder, files.config)
    except ValueError as error:
        raise refused(f"{source}: {error}") from error
    lines = [*reading.lines, *embedding_lines(reading, target)]
    write(out, reading, lines, source, folder, files)
    console.print(table(lines))
    console.print(f"written: {out}; start from it with draft.initFrom", highlight=False, soft_wrap=True)
    return ExitCode.OK


def find_source(source: str) -> Path:
    """The folder of the draft. Raises Failure."""
    try:
        location = storage_uri.parse(source)
    except ValueError:
        # a plain relative folder, as people type it
        return Path(source)
    # `drafts/mine` is also a name on the hub: what lies here is meant
    if location.scheme == "hf" and Path(source).is_dir():
        return Path(source)
    if location.scheme in ("hf", "s3"):
        return warm_start.locate(Draft(init_from=source))
    return Path(location.path)


def embedding_lines(reading: Reading, target: str) -> list[Line]:
    """What becomes of an embedding that the draft ships: engines and we use the target's."""
    if reading.embedding is None:
        return [Line("embed_tokens", "absent", "the target's")]
    files = locate(Target(model=target))
    ours = TargetHead.from_folder(files.path, files.config).embed
    return [Line("embed_tokens", str(list(reading.embedding.shape)), compared(reading.embedding, ours))]


def compared(theirs: Tensor, ours: Tensor) -> str:
    """Whether an embedding is the target's, in the coarser of both dtypes."""
    if theirs.shape != ours.shape:
        return "dropped; it has another shape than the target's, which training uses"
    coarser = min(theirs.dtype, ours.dtype, key=lambda dtype: torch.finfo(dtype).bits)
    rows = int((theirs.to(coarser) != ours.to(coarser)).any(-1).sum())
    if not rows:
        return "dropped; it is the target's"
    return f"dropped; {rows} of {len(ours)} rows are NOT the target's, which training and SGLang use"


def write(out: Path, reading: Reading, lines: list[Line], source: str, folder: Path, target: TargetFiles) -> None:
    """The draft's folder, whole or not at all. Raises Failure(NOT_CONFORMANT)."""
    config = reading.draft.config
    profile = warm_start.profile_of(config)
    facts = TargetFacts(
        profile=profile,
        vocab_size=config.vocab_size,
        max_position_embeddings=config.max_position_embeddings,
        rope_theta=config.rope_theta,
        rope_scaling=config.rope_scaling,
        aux_layers=config.aux_layers,
        marker_ids=(),
        dtype=reading.dtype,
        captured=NO_TEXT,
        served=NO_TEXT,
        engines=ENGINES[profile],
    )
    with LocalStore(out.resolve().parent).create_folder(out.name) as staged:
        text = json.dumps(engine_config(config, reading.dtype), indent=1, ensure_ascii=False)
        (staged / CONFIG_FILE).write_text(text + "\n")
        tensors = {name: to_export(tensor, reading.dtype) for name, tensor in reading.draft.state_dict().items()}
        save_file(tensors, staged / WEIGHTS_FILE, metadata={"format": "pt"})
        findings = [finding for finding in conformance.check_header(staged, facts) if finding.level == "E"]
        if findings:
            broken = "; ".join(f"rule {finding.rule}: {finding.message}" for finding in findings)
            raise Failure(ExitCode.NOT_CONFORMANT, Reason.CONFORMANCE_FAILED, f"{source}: {broken}")
        read_files = tuple(sorted(path.name for pattern in EVERYTHING for path in folder.glob(pattern)))
        manifest = ConvertedManifest(
            product=draftyard_api.__version__,
            source=name_of(source),
            source_sha256=sha256_of(folder, read_files),
            layout=reading.layout,
            profile=profile,
            target=target.identity,
            aux_layers=config.aux_layers,
            vocabulary=config.draft_vocab_size,
            mapping=tuple(Mapping(what=line.what, found=line.found, mapped=line.mapped) for line in lines),
            files={name: FileRecord.of(staged / name) for name in (CONFIG_FILE, WEIGHTS_FILE)},
        )
        (staged / MANIFEST).write_text(manifest.model_dump_json(by_alias=True, exclude_none=True, indent=1))


def name_of(source: str) -> str:
    """A source without the path of a machine."""
    return source if "://" in source and not source.startswith("file:") else Path(source).name


def table(lines: list[Line]) -> Table:
    """What was found, for people."""
    made = Table()
    made.add_column("", no_wrap=True)
    made.add_column("found")
    made.add_column("mapped to")
    for line in lines:
        made.add_row(line.what, line.found, line.mapped)
    return made


def refused(message: str) -> Failure:
    """A draft that cannot become ours."""
    return Failure(ExitCode.UNSUPPORTED, Reason.TARGET_UNSUPPORTED, message)
