"""From documents to a part of a shard: captured in groups, judged, measured, packed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.reasons import Reason
from draftyard_trainer.data.document import Document
from draftyard_trainer.data.prepared import PreparedDataset
from draftyard_trainer.hidden_states import fidelity
from draftyard_trainer.hidden_states.calibration import Calibrated
from draftyard_trainer.hidden_states.codec import PackedSample
from draftyard_trainer.hidden_states.fidelity import Fidelity
from draftyard_trainer.hidden_states.sample import Sample
from draftyard_trainer.hidden_states.shard import CapturedPart, Skipped
from draftyard_trainer.reporting import Reporter
from draftyard_trainer.target.capture import CapturedTarget

GPU_GROUP_TOKENS = 32768
CPU_GROUP_TOKENS = 2048
"""Tokens captured between two looks at signals: a few seconds. A GPU sorts these many by length for its batches."""
HOST = torch.device("cpu")


def capture_part(
    dataset: PreparedDataset, target: CapturedTarget, calibrated: Calibrated, ids: Sequence[int], reporter: Reporter
) -> CapturedPart:
    """The states of some documents, in their order, packed and in host memory."""
    samples: list[PackedSample] = []
    skipped: list[Skipped] = []
    channels, total = calibrated.channels, Fidelity()
    for each in captured(dataset, target, ids, reporter):
        if isinstance(each, Skipped):
            skipped.append(each)
            continue
        if channels is not None:
            total += fidelity.measure(each, calibrated.codec, channels, target.head)
        # what leaves a GPU is half as large when it is packed there
        samples.append(calibrated.codec.pack(each).to(HOST))
    return CapturedPart(samples, skipped, calibrated.calibration_sha256, None if channels is None else total)


def captured(
    dataset: PreparedDataset, target: CapturedTarget, ids: Sequence[int], reporter: Reporter
) -> Iterator[Sample | Skipped]:
    """The samples of some documents, in their order, captured in groups; documents that are not finite are named."""
    for group in groups([dataset.document(doc_id) for doc_id in ids], target.device):
        samples = [judged(sample, target.aux_layers) for sample in target.capture(group)]
        if len(samples) > 1 and all(isinstance(sample, Skipped) for sample in samples):
            dtype = str(target.dtype).removeprefix("torch.")
            message = (
                f"target.dtype: given {dtype}; all states of {len(group)} documents in a row are not finite; accepted: "
                "the dtype that the target was made for, as in its config.json"
            )
            raise Failure(ExitCode.BAD_DATA, Reason.DATA_REJECTED, message)
        yield from samples
        reporter.advance(sum(document.num_tokens for document in group))


def groups(documents: Sequence[Document], device: torch.device) -> Iterator[list[Document]]:
    """Consecutive documents whose tokens are captured together; a longer one goes alone."""
    budget = GPU_GROUP_TOKENS if device.type == "cuda" else CPU_GROUP_TOKENS
    group: list[Document] = []
    for document in documents:
        if group and sum(each.num_tokens for each in group) + document.num_tokens > budget:
            yield group
            group = []
        group.append(document)
    if group:
        yield group


def judged(sample: Sample, aux_layers: Sequence[int]) -> Sample | Skipped:
    """The sample, or, when a value in it is not finite, its name and the first state that has one."""
    layers = zip(map(str, aux_layers), sample.aux.tensor_split(len(aux_layers), dim=-1), strict=True)
    for name, values in (*layers, ("last", sample.last), ("lse", sample.lse)):
        if not bool(torch.isfinite(values).all()):
            return Skipped(doc_id=sample.document.doc_id, reason="NotFinite", layer=name)
    return sample
