"""How states become bytes. Codec `none`: values in the target's dtype, little-endian, token after token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.reasons import Reason

# N tokens or label rows, X values of each

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
"""A record names its dtype by the place in this tuple."""
CODEC_VERSION = 1


@dataclass(frozen=True)
class Layout:
    """What the states of one cache look like."""

    num_aux: int
    """A: captured layers."""
    width: int
    """H of the target."""
    dtype: torch.dtype
    """Of the values."""

    def encoded_bytes(self, num_tokens: int, label_rows: int) -> int:
        """Size of both blobs of a document: of `aux` for every token, of `last` for label rows."""
        return (num_tokens * self.num_aux + label_rows) * self.width * self.dtype.itemsize


def require_codec(name: str) -> None:
    """Raises Failure(UNSUPPORTED) for a codec that this version does not have."""
    if name != "none":
        message = f"hiddenStates.codec: given {name}; accepted in this version: none"
        raise Failure(ExitCode.UNSUPPORTED, Reason.TARGET_UNSUPPORTED, message)


def encode_values(values_NX: Tensor) -> bytes:
    """The bytes of a tensor. Raises ValueError for a dtype that no record names."""
    if values_NX.dtype not in DTYPES:
        raise ValueError(f"given states in {values_NX.dtype}; accepted: bfloat16, float16, float32")
    return values_NX.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()


def decode_values(blob: memoryview, width: int, dtype: torch.dtype) -> Tensor:
    """The tensor in `blob`, `[N, width]`, in memory of its own: a tensor over read-only memory would warn."""
    if not blob:
        return torch.empty(0, width, dtype=dtype)
    return torch.frombuffer(bytearray(blob), dtype=dtype).reshape(-1, width)
