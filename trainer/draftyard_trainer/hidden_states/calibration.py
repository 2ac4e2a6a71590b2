"""The usual size of each channel, by which values are divided before they are rounded.

A few channels are hundreds of times larger than the others, and a document's first token a thousand times larger than
its others in some layers: sizes are medians over documents, without first tokens.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.reasons import Reason
from draftyard_trainer.data.document import Document
from draftyard_trainer.data.prepared import PreparedDataset
from draftyard_trainer.hidden_states.codec import Channels, Layout, StateCodec
from draftyard_trainer.hidden_states.probe import FIRST_TOKENS
from draftyard_trainer.hidden_states.sample import Sample
from draftyard_trainer.order import splitmix64
from draftyard_trainer.storage.sealed import CRC, ZEROS, check_tensors, write_tensors
from draftyard_trainer.storage.store import Store
from draftyard_trainer.target.capture import CapturedTarget

# n tokens, A captured layers, H width

CALIBRATION_FILE = "calibration.safetensors"
DOCUMENTS, TOKENS = 32, 128
"""Documents, and tokens of each: with twice the documents, or four times the tokens, errors of SmolLM2's states are the
same (0.008 and 0.034), and it takes as much longer."""
AUX, LAST = "aux", "last"


def choose(dataset: PreparedDataset) -> tuple[int, ...]:
    """Training documents that channels are measured on, ascending: the same for all shards of a cache."""
    ids = dataset.train_ids[dataset.lengths[dataset.train_ids] > FIRST_TOKENS]
    hashes = splitmix64(ids.astype(np.uint64))
    return tuple(sorted(ids[np.argsort(hashes, kind="stable")[:DOCUMENTS]].tolist()))


def document_of(dataset: PreparedDataset, doc_id: int) -> Document:
    """The beginning of a document: the final state is measured on every token of it."""
    return dataset.document(doc_id).beginning(TOKENS)


def measure(samples: Iterable[Sample], num_aux: int) -> Channels:
    """Median over documents of the rms of each channel. Raises ValueError without a document, or for NaN."""
    aux, last = [], []
    for sample in samples:
        aux.append(rms(sample.aux.unflatten(-1, (num_aux, -1))))
        last.append(rms(sample.last))
    if not aux:
        raise ValueError(f"no training document has more than {FIRST_TOKENS} tokens")
    sizes = torch.stack(aux), torch.stack(last)
    if not all(bool(torch.isfinite(each).all()) for each in sizes):
        raise ValueError("the states of some training documents are not finite")
    return Channels(*map(usual, sizes))


def rms(states: Tensor) -> Tensor:
    """Over the tokens that count."""
    return states[FIRST_TOKENS:].float().square().mean(0).sqrt().cpu()


def usual(sizes: Tensor) -> Tensor:
    """The median over documents; a channel that is always 0 gets the layer's smallest other size."""
    median = sizes.median(dim=0).values
    smallest = torch.where(median > 0, median, torch.inf).amin(-1, keepdim=True)
    return torch.where(median > 0, median, torch.where(smallest.isinf(), 1.0, smallest)).contiguous()


def serialise(channels: Channels) -> bytes:
    """One safetensors file."""
    sink = io.BytesIO()
    tensors = {AUX: channels.aux.cpu(), LAST: channels.last.cpu()}
    write_tensors(save(tensors, metadata={CRC: ZEROS}), sink)
    return sink.getvalue()


def parse(content: bytes) -> Channels:
    """Read what `serialise` made. Raises ValueError for anything else."""
    try:
        check_tensors(lambda offset, length: content[offset : offset + length], len(content))
        tensors = load(content)
        channels = Channels(tensors[AUX], tensors[LAST])
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"no sizes of channels ({error})") from error
    if channels.aux.ndim != 2 or channels.last.shape != channels.aux.shape[1:]:
        raise ValueError(f"sizes of channels of shape {list(channels.aux.shape)} and {list(channels.last.shape)}")
    for sizes in (channels.aux, channels.last):
        if sizes.dtype != torch.float32 or not bool((torch.isfinite(sizes) & (sizes > 0)).all()):
            raise ValueError("sizes of channels that are no float32 above 0")
    return channels


# -- Of one shard -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Calibrated:
    """The codec of a shard, ready to use where the target is; without channels nothing is rounded."""

    codec: StateCodec
    channels: Channels | None = None
    calibration_sha256: str | None = None


def calibrate(
    store: Store, names: tuple[str, str], target: CapturedTarget, layout: Layout, documents: Sequence[Document]
) -> Calibrated:
    """The sizes of channels that this shard has, that another shard has left, or that are measured now.

    `names` are the shard's own file and the one that all share. A shard keeps a copy: whatever happens to the others,
    its parts can be read with what they were written with. Raises Failure(BAD_DATA) where nothing can be measured.
    """
    if not layout.is_rounded:
        return Calibrated(StateCodec.of(layout, None))
    found = (readable(store, name, layout) for name in names)
    content = next((each for each in found if each is not None), None)
    if content is None:
        samples = (sample for document in documents for sample in target.capture([document]))
        try:
            content = serialise(measure(samples, layout.num_aux))
        except ValueError as error:
            message = f"hiddenStates.codec: given {layout.codec}; {error}; accepted: lossless, or none"
            raise Failure(ExitCode.BAD_DATA, Reason.DATA_REJECTED, message) from error
    for name in names:
        if not store.exists(name):
            store.publish(name, content)
    channels = parse(content).to(target.device)
    return Calibrated(StateCodec.of(layout, channels), channels, hashlib.sha256(content).hexdigest())


def readable(store: Store, name: str, layout: Layout) -> bytes | None:
    """What lies there, if it fits; what does not is removed."""
    try:
        content = store.read(name)
    except FileNotFoundError:
        return None
    try:
        if parse(content).aux.shape == (layout.num_aux, layout.width):
            return content
    except ValueError:
        pass
    store.delete(name)
    return None
