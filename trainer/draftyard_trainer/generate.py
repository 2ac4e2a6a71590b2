"""The stage `generate`: the target's hidden states of one shard of the documents, stored and verified.

Parts that an earlier attempt committed are not made again; a killed pod loses the part that it was working on.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from draftyard_api import __version__
from draftyard_api.estimate import LOSSLESS
from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.names import ENV_SHARD, MANIFEST, hidden_states_path, shard_path
from draftyard_api.progress import StageResult, StoredStates
from draftyard_api.reasons import Reason
from draftyard_api.task import GenerateTask
from draftyard_trainer import process
from draftyard_trainer.capturing import capture_part
from draftyard_trainer.data.prepared import PreparedDataset
from draftyard_trainer.hidden_states import calibration, fidelity
from draftyard_trainer.hidden_states.calibration import CALIBRATION_FILE, calibrate
from draftyard_trainer.hidden_states.codec import Layout
from draftyard_trainer.hidden_states.fidelity import Fidelity
from draftyard_trainer.hidden_states.key import PROBE_FILE, TARGET_FILE, USERS, StatesKey, require_key
from draftyard_trainer.hidden_states.part_writer import PartWriter
from draftyard_trainer.hidden_states.probe import probe_capture, read_probe
from draftyard_trainer.hidden_states.record import estimated_bytes
from draftyard_trainer.hidden_states.shard import (
    PART_BYTES,
    Shard,
    ShardManifest,
    Skipped,
    StoredPart,
    cut_parts,
    documents_of,
    index_bytes,
)
from draftyard_trainer.reporting import Reporter
from draftyard_trainer.storage.opening import open_store
from draftyard_trainer.storage.sealed import seal
from draftyard_trainer.storage.store import Store
from draftyard_trainer.target import tensor_parallel
from draftyard_trainer.target.capture import DTYPES, CapturedTarget, compute_dtype, default_device, follow
from draftyard_trainer.target.head import TargetHead
from draftyard_trainer.target.location import TargetFiles, locate
from draftyard_trainer.target.tensor_parallel import ALONE, Ranks

MAX_SKIPPED_SHARE = 0.001
"""Documents with values that are not finite; one is always allowed."""


@dataclass(frozen=True)
class Work:
    """One shard to make, and from what."""

    store: Store
    shard: Shard
    number: int
    key: StatesKey
    task: GenerateTask
    dataset: PreparedDataset
    files: TargetFiles

    @property
    def folder(self) -> str:
        """What all shards share."""
        return hidden_states_path(self.key.name(), self.task.num_shards)

    @property
    def layout(self) -> Layout:
        """What the records look like."""
        width = int(self.files.config["hidden_size"])
        return Layout(len(self.task.aux_layers), width, DTYPES[self.task.target.dtype], self.task.codec)


def generate(task: GenerateTask, reporter: Reporter) -> StageResult:
    """Store one shard, unless it is there.

    Raises Failure: UNSUPPORTED for a target that cannot be used or does not bear the codec, BAD_DATA when a whole batch
    is not finite, BAD_SHARD for too many such documents, STALE_INPUT for another cache in the way, NO_SPACE,
    INTERRUPTED.
    """
    store = open_store(task.workspace, task.workspace_s3)
    with tensor_parallel.join(task.target.tensor_parallel) as ranks:
        if not ranks.leads:
            follow(locate(task.target), task.target.dtype, ranks)
            return StageResult(stage=task.stage)
        return generate_in(store, task, reporter, ranks=ranks)


def generate_in(
    store: Store, task: GenerateTask, reporter: Reporter, part_bytes: int = PART_BYTES, ranks: Ranks = ALONE
) -> StageResult:
    """The same, in a store that is open."""
    work = plan_work(store, task)
    write_common_files(work)
    manifest = work.shard.manifest()
    if manifest is None or manifest.key != work.key.sha256():
        target = CapturedTarget.load(work.files, task.target.dtype, task.aux_layers, ranks=ranks)
        probe_once(work, target)
        manifest = make_shard(work, target, reporter, part_bytes)
    work.shard.tidy(manifest)
    return result(work, manifest)


def plan_work(store: Store, task: GenerateTask) -> Work:
    """Open what the task names. Raises Failure."""
    number = shard_number(task)
    dataset = PreparedDataset.open_checked(store, task.prepared)
    files = locate(task.target)
    key = states_key(task, files, dataset)
    shard = Shard(store, shard_path(key.name(), task.num_shards, number))
    return Work(store, shard, number, key, task, dataset, files)


def shard_number(task: GenerateTask) -> int:
    """The task's own number, else the pod's completion index. Raises Failure(BAD_TASK) without either."""
    given = os.environ.get(ENV_SHARD) if task.shard is None else str(task.shard)
    if given is None or not given.isdecimal() or int(given) >= task.num_shards:
        message = f"shard: given {given}; accepted: 0 to {task.num_shards - 1}, in {ENV_SHARD} or in the task"
        raise Failure(ExitCode.BAD_TASK, Reason.TASK_REJECTED, message)
    return int(given)


def states_key(task: GenerateTask, files: TargetFiles, dataset: PreparedDataset) -> StatesKey:
    """Everything that decides what is stored."""
    manifest = dataset.manifest
    nothing = torch.empty(0)
    head = TargetHead(nothing, nothing, nothing, files.config)
    quantisation = files.raw_config.get("quantization_config") or {}
    return StatesKey(
        target=files.identity,
        dtype=task.target.dtype,
        quantisation=str(quantisation.get("quant_method")) if quantisation else None,
        logit_scale=repr(head.logit_scale),
        soft_cap=None if head.soft_cap is None else repr(head.soft_cap),
        tokenizer_sha256=manifest.key.tokenizer_sha256,
        template_sha256=manifest.key.template_sha256,
        template_kwargs=manifest.key.template_kwargs,
        tokens_sha256=manifest.tokens_sha256,
        aux_layers=task.aux_layers,
        codec=task.codec,
        calibration=() if task.codec in LOSSLESS else calibration.choose(dataset),
        compute_dtype=str(compute_dtype(default_device(), task.target.dtype)).removeprefix("torch."),
    )


# -- What all shards share ----------------------------------------------------------------------


def write_common_files(work: Work) -> None:
    """The key, the target's head, the run's mark: whoever finds them absent writes them, all would write the same."""
    store, folder = work.store, work.folder
    require_key(store, folder, work.key)
    if not store.exists(f"{folder}/{TARGET_FILE}"):
        head = TargetHead.from_folder(work.files.path, work.files.config)
        with store.create(f"{folder}/{TARGET_FILE}") as sink:
            head.write(sink)
    if not store.exists(f"{folder}/{USERS}/{work.task.run}"):
        store.publish(f"{folder}/{USERS}/{work.task.run}", b"")


def probe_once(work: Work, target: CapturedTarget) -> None:
    """Check the captured states of one document, once per key. Raises Failure(UNSUPPORTED)."""
    name = f"{work.folder}/{PROBE_FILE}"
    if read_probe(work.store, name) is None:
        longest = int(np.argmax(work.dataset.lengths))
        probe = probe_capture(target, work.dataset.document(longest))
        work.store.publish(name, seal(probe.model_dump_json(by_alias=True, indent=1).encode()))


# -- The shard ------------------------------------------------------------------------------------


def make_shard(work: Work, target: CapturedTarget, reporter: Reporter, part_bytes: int) -> ShardManifest:
    """Make the parts that are not committed yet, then index and manifest; or take what another attempt completed."""
    started = time.monotonic()
    names = (f"{work.shard.folder}/{CALIBRATION_FILE}", f"{work.folder}/{CALIBRATION_FILE}")
    documents = [calibration.document_of(work.dataset, doc_id) for doc_id in work.key.calibration]
    calibrated = calibrate(work.store, names, target, work.layout, documents)
    doc_ids = documents_of(len(work.dataset), work.number, work.task.num_shards)
    planned = (estimated_bytes(work.dataset.document(int(doc_id)), work.layout) for doc_id in doc_ids)
    sizes = np.fromiter(planned, dtype=np.int64, count=len(doc_ids))
    cut = cut_parts(doc_ids, work.dataset.lengths[doc_ids], sizes, part_bytes)
    tally = Tally(work, len(doc_ids))
    parts = {
        number: StoredPart.of(marker)
        for number, ids in enumerate(cut)
        if (marker := work.shard.committed(number, ids.tolist(), calibrated.calibration_sha256))
    }
    for part in parts.values():
        tally.add(part.skipped, part.fidelity)
    found = total(parts.values(), "tokens")
    reporter.begin("capturing", "tokens", total=int(work.dataset.lengths[doc_ids].sum()), done=found)
    with PartWriter(work.shard, calibrated.codec, parts) as writer:
        for number, ids in enumerate(cut):
            if number in parts:
                continue
            beaten_by = work.shard.manifest()
            if beaten_by is not None and beaten_by.key == work.key.sha256():
                return beaten_by
            # one part on its way to the disk, one that is captured meanwhile
            require_space(work.store, 2 * int(sizes[np.isin(doc_ids, ids)].sum()))
            captured = capture_part(work.dataset, target, calibrated, ids.tolist(), reporter)
            tally.add(captured.skipped, captured.fidelity)
            writer.put(number, captured)
        writer.wait()
    made = [parts[number] for number in range(len(cut))]
    manifest = summarise(work, made, Effort(target.device, time.monotonic() - started, found))
    work.shard.complete(manifest, made)
    return manifest


@dataclass
class Tally:
    """What is judged over all parts of a shard, before the next one is published."""

    work: Work
    documents: int
    skipped: list[Skipped] = field(default_factory=list)
    fidelity: Fidelity = field(default_factory=Fidelity)

    def add(self, skipped: Sequence[Skipped], measured: Fidelity | None) -> None:
        """Count a part. Raises Failure: BAD_SHARD for too many skipped documents, UNSUPPORTED for too much error."""
        self.skipped += skipped
        refuse_many_skipped(self.skipped, self.documents, self.work.shard.folder)
        if measured is not None:
            self.fidelity += measured
            fidelity.require(self.fidelity, self.work.task.codec)


def require_space(store: Store, wanted: int) -> None:
    """Raises Failure(NO_SPACE) before a part that would not fit, with as much again to spare."""
    free = store.free_bytes()
    if free is not None and free < wanted:
        message = f"workspace: {store.uri} has {free} bytes free, less than {wanted}; free some, or enlarge it"
        raise Failure(ExitCode.NO_SPACE, Reason.WORKSPACE_FULL, message)


def refuse_many_skipped(skipped: Sequence[Skipped], documents: int, where: str) -> None:
    """Raises Failure(BAD_SHARD) when more documents are not finite than chance explains."""
    allowed = max(1, int(MAX_SKIPPED_SHARE * documents))
    if len(skipped) > allowed:
        message = (
            f"{where}: {len(skipped)} of {documents} documents have states that are not finite (document "
            f"{skipped[0].doc_id}, {skipped[0].layer}); accepted: {allowed}; check target.dtype"
        )
        raise Failure(ExitCode.BAD_SHARD, Reason.SHARDS_FAILED, message)


# -- What comes out -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Effort:
    """What an attempt took: seconds, and the tokens that it found done."""

    device: torch.device
    seconds: float
    found_tokens: int


def total(parts: Iterable[StoredPart], column: str) -> int:
    """Sum of a column of the index over all records of some parts."""
    return sum(int(part.index[column].sum(dtype=np.int64)) for part in parts)


def summarise(work: Work, parts: Sequence[StoredPart], effort: Effort) -> ShardManifest:
    """The manifest of a finished shard."""
    tokens = total(parts, "tokens")
    captured_tokens = tokens - effort.found_tokens
    return ShardManifest(
        key=work.key.sha256(),
        shard=work.number,
        shards=work.task.num_shards,
        codec=work.task.codec,
        documents=sum(part.summary.documents for part in parts),
        tokens=tokens,
        label_rows=total(parts, "labels"),
        bytes=sum(part.summary.bytes for part in parts),
        parts=tuple(part.summary for part in parts),
        skipped=tuple(skipped for part in parts for skipped in part.skipped),
        index_sha256=hashlib.sha256(index_bytes(parts)).hexdigest(),
        calibration_sha256=parts[0].calibration_sha256 if parts else None,
        fidelity=fidelity.total(part.fidelity for part in parts) if work.layout.is_rounded else None,
        product=__version__,
        device=torch.cuda.get_device_name(effort.device) if effort.device.type == "cuda" else "cpu",
        seconds=round(effort.seconds, 3),
        tokens_per_second=round(captured_tokens / max(effort.seconds, 1e-9), 1) if captured_tokens else None,
    )


def result(work: Work, manifest: ShardManifest) -> StageResult:
    """How the stage ended."""
    content = work.store.read(f"{work.shard.folder}/{MANIFEST}")
    return StageResult(
        stage=work.task.stage,
        message=f"{manifest.documents} documents, {manifest.tokens} tokens, {len(manifest.skipped)} skipped",
        manifest_sha256=hashlib.sha256(content).hexdigest(),
        bytes=manifest.bytes,
        hidden_states=StoredStates(
            key=work.key.name(),
            shard=work.number,
            shards=work.task.num_shards,
            documents=manifest.documents,
            tokens=manifest.tokens,
            label_rows=manifest.label_rows,
            bytes=manifest.bytes,
            tokens_per_second=manifest.tokens_per_second,
            argmax_agreement=f"{manifest.fidelity.agreement:.4f}" if manifest.fidelity else None,
        ),
    )


if __name__ == "__main__":
    sys.exit(process.main(GenerateTask, generate))
