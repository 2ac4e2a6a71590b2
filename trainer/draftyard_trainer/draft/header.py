"""What an export says about itself: its JSON config and the header of its safetensors file, read without torch.

The header is a little-endian u64 length, that many bytes of JSON, then the tensors' bytes. Reading it takes
milliseconds for any size of draft, so most rules of an export can be checked wherever the files lie.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from draftyard_trainer.data.document import Ids

ARCHITECTURE = "LlamaForCausalLMEagle3"
"""The class name by which both engines know a draft."""

EMBEDDING = "embed_tokens.weight"
"""The one tensor that may be shipped or left out."""

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"

# A header of this size would hold a million tensors: whatever claims more is no safetensors file.
MAX_HEADER_BYTES = 100_000_000
INTEGER_DTYPES = {"I64": "<i8", "I32": "<i4", "BOOL": "?", "U8": "u1"}
"""Kinds that are no weights, and how numpy reads them."""
ENGINE_PREFIX = "model."
PIECE_BYTES = 1 << 24


@dataclass(frozen=True)
class TensorHeader:
    """One entry of the header; `start` and `end` are offsets in the file."""

    dtype: str
    """As safetensors names it: F32, BF16, F16, I64, BOOL."""
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class DraftFiles:
    """Config and tensor headers of one exported draft."""

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorHeader]
    """By the name in the file."""

    def find(self, name: str) -> TensorHeader | None:
        """The tensor of that name, also where the file says `model.<name>`."""
        # So that a wrong prefix breaks the rule about prefixes, and not every other one too.
        return self.tensors.get(name) or self.tensors.get(ENGINE_PREFIX + name)

    def bare_names(self) -> set[str]:
        """Names without a `model.` prefix."""
        return {name.removeprefix(ENGINE_PREFIX) for name in self.tensors}

    def read_integers(self, name: str) -> Ids | None:
        """Values of an integer or boolean tensor as int64; None when it is absent or of another kind."""
        header = self.find(name)
        if header is None or header.dtype not in INTEGER_DTYPES:
            return None
        with (self.folder / WEIGHTS_FILE).open("rb") as file:
            file.seek(header.start)
            content = file.read(header.end - header.start)
        values: Ids = np.frombuffer(content, dtype=INTEGER_DTYPES[header.dtype]).astype(np.int64)
        return values

    def same_bytes(self, header: TensorHeader, other: DraftFiles, other_header: TensorHeader) -> bool:
        """Whether a tensor has the bytes of another one, read in pieces."""
        with (self.folder / WEIGHTS_FILE).open("rb") as ours, (other.folder / WEIGHTS_FILE).open("rb") as theirs:
            ours.seek(header.start)
            theirs.seek(other_header.start)
            left = header.end - header.start
            if left != other_header.end - other_header.start:
                return False
            while left > 0:
                size = min(left, PIECE_BYTES)
                if ours.read(size) != theirs.read(size):
                    return False
                left -= size
        return True


def read_files(folder: Path) -> DraftFiles:
    """Read config and header of the draft in `folder`. Raises ValueError where one is no such file."""
    return DraftFiles(folder, read_object(folder / CONFIG_FILE), read_header(folder / WEIGHTS_FILE))


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ValueError for anything else."""
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: given {type(found).__name__}; accepted: an object")
    return found


def read_entries(read: Callable[[int, int], bytes], name: str) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file as it is, and where the tensors begin; `read` takes offset and length.

    Raises ValueError when there is none.
    """
    start = read(0, 8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if not 0 < length <= MAX_HEADER_BYTES:
        raise ValueError(f"{name}: no safetensors header")
    try:
        entries = json.loads(read(8, length))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: broken safetensors header") from error
    if not isinstance(entries, dict):
        raise ValueError(f"{name}: broken safetensors header")
    return entries, 8 + length


def read_header(path: Path) -> dict[str, TensorHeader]:
    """Headers of all tensors of a safetensors file. Raises ValueError when the file is cut off or no such file."""
    with path.open("rb") as file:

        def read(offset: int, length: int) -> bytes:
            file.seek(offset)
            return file.read(length)

        entries, base = read_entries(read, str(path))
    # Free text of the writer, no tensor.
    entries.pop("__metadata__", None)
    tensors = {}
    try:
        for name, entry in entries.items():
            first, last = entry["data_offsets"]
            tensors[name] = TensorHeader(entry["dtype"], tuple(entry["shape"]), base + first, base + last)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: broken safetensors header") from error
    # An interrupted copy has a whole header in front of missing bytes.
    needed = max((tensor.end for tensor in tensors.values()), default=base)
    if path.stat().st_size < needed:
        raise ValueError(f"{path}: {path.stat().st_size} bytes; its header needs {needed}")
    return tensors
