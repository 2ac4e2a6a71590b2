"""How states become bytes and back: four codecs, each a form for the captured layers and one for the final state.

none      values as they are
lossless  values taken apart into planes of bytes, the one with the exponents compressed
balanced  8 bits for a value over its channel's and its row's size, compressed
compact   the same, with 6 bits for the captured layers

Packing and unpacking are elementwise and happen where the states are; compressing happens on the host. Rows are
independent of each other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import zstandard
from torch import Tensor

from draftyard_api.estimate import CODEC_SHARE, LOSSLESS
from draftyard_api.schema import Codec
from draftyard_trainer.data.document import Document
from draftyard_trainer.draft.layers import compiled
from draftyard_trainer.hidden_states.sample import Sample

# N tokens or label rows, G layers side by side, H width of each, A captured layers

Bytes = npt.NDArray[np.uint8]

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
"""A record names its dtype by the place in this tuple."""
CODECS: tuple[Codec, ...] = ("none", "lossless", "balanced", "compact")
"""A record names its codec by the place in this tuple."""
CODEC_VERSION = 2
EIGHT_BITS, SIX_BITS = 127, 31
OUTLIER = 8.0
"""Rows whose largest value is this many times their rms get all 8 bits: 6 would leave nothing for the others."""
LEVEL = 1
"""Of zstd. Neither codes nor exponents repeat: higher levels look for that, are slower, and no smaller (exponents of
SmolLM2 come to 0.41 of their size at level 1, 0.45 at 3, 0.42 at 9; their entropy is 0.40)."""
BLOCK_VALUES = 32768
"""What a CPU unpacks at once: it stays in the cache of one core, and is too little to wake other threads for."""


@dataclass(frozen=True, eq=False)
class Channels:
    """What values are divided by before they are rounded: the usual size of each channel."""

    aux: Tensor
    """`[A, H]`, float32."""
    last: Tensor
    """`[H]`, float32."""

    def to(self, device: torch.device) -> Channels:
        """The same elsewhere."""
        return Channels(self.aux.to(device), self.last.to(device))


@dataclass(frozen=True, eq=False)
class Packed:
    """N rows of states as they are stored, before compression: uint8 `[N, X]` and `[N, Y]`, and `[N, G]` float32."""

    dense: Tensor
    """What is worth compressing."""
    plain: Tensor
    """What is not."""
    scales: Tensor
    """Size of each row of each layer; no columns where a codec has none."""

    def to(self, device: torch.device) -> Packed:
        """The same elsewhere."""
        return Packed(*(moved(each, device) for each in (self.dense, self.plain, self.scales)))


@dataclass(frozen=True, eq=False)
class PackedSample:
    """A document with its states as they are stored."""

    document: Document
    aux: Packed
    last: Packed
    tok: Tensor
    lse: Tensor
    copied: Event | None = None
    """What to wait for before the bytes are read; None where they have come."""

    def to(self, device: torch.device) -> PackedSample:
        """The same elsewhere. Nobody waits: what a GPU does later comes later, and the host calls `wait`."""
        tok, lse = moved(self.tok, device), moved(self.lse, device)
        packed = PackedSample(self.document, self.aux.to(device), self.last.to(device), tok, lse)
        if self.tok.is_cuda and device.type == "cpu":
            return replace(packed, copied=torch.cuda.current_stream(self.tok.device).record_event())
        return packed

    def wait(self) -> None:
        """Until all bytes are where they belong."""
        if self.copied is not None:
            self.copied.synchronize()


class Event(Protocol):
    """Something that a GPU gets to, such as the end of a copy."""

    def synchronize(self) -> object:
        """Wait for it."""
        ...


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """The same elsewhere, perhaps not yet: from a GPU into pinned memory, so that the GPU goes on meanwhile."""
    if tensor.is_cuda and device.type == "cpu":
        return torch.empty_like(tensor, device=device, pin_memory=True).copy_(tensor, non_blocking=True)
    return tensor.to(device, non_blocking=device.type == "cuda")


class Form(Protocol):
    """How the states of one kind are stored."""

    @property
    def dense_width(self) -> int:
        """X: bytes of a row that are compressed."""
        ...

    @property
    def plain_width(self) -> int:
        """Y: bytes of a row that are not."""
        ...

    @property
    def num_scales(self) -> int:
        """G: layers with a size of their own."""
        ...

    def pack(self, values_NX: Tensor) -> Packed:
        """Rows of values, `[N, G*H]`, as they are stored."""
        ...

    def unpack(self, packed: Packed) -> Tensor:
        """The values again, `[N, G*H]` in the target's dtype."""
        ...


# -- Nothing is lost ------------------------------------------------------------------------------


@dataclass(frozen=True)
class AsTheyAre:
    """Codec `none`: little-endian values, row after row."""

    num_values: int
    dtype: torch.dtype
    dense_width = 0
    num_scales = 0

    @property
    def plain_width(self) -> int:
        """All bytes of a row."""
        return self.num_values * self.dtype.itemsize

    def pack(self, values_NX: Tensor) -> Packed:
        """The same bytes under another name."""
        plain = values_NX.detach().contiguous().view(torch.uint8)
        return Packed(plain.new_empty(len(plain), 0), plain, no_scales(plain))

    def unpack(self, packed: Packed) -> Tensor:
        """The same bytes under another name."""
        return packed.plain.view(self.dtype)


@dataclass(frozen=True)
class Planes:
    """Codec `lossless`: the eight bits behind a value's sign are a byte of their own, which is worth compressing.

    Of bfloat16 and float32 they are the exponent. The other bits look like noise, and are stored as they are: bytes
    from high to low, the lowest of seven bits with the sign above them.
    """

    num_values: int
    dtype: torch.dtype
    num_scales = 0

    @property
    def dense_width(self) -> int:
        """The exponent of each value."""
        return self.num_values

    @property
    def plain_width(self) -> int:
        """Its other bytes."""
        return self.num_values * (self.dtype.itemsize - 1)

    def pack(self, values_NX: Tensor) -> Packed:
        """Planes of bytes, the exponents' first."""
        bits_NX = values_NX.detach().contiguous().view(integer_of(self.dtype))
        top = 8 * self.dtype.itemsize - 1
        # what does not fit into a byte is cut off
        exponents, *middle = ((bits_NX >> shift).to(torch.uint8) for shift in range(top - 8, 0, -8))
        lowest = ((bits_NX >> (top - 7)).bitwise_and_(128).bitwise_or_(bits_NX & 127)).to(torch.uint8)
        plain = torch.cat((*middle, lowest), dim=-1) if middle else lowest
        return Packed(exponents, plain, no_scales(plain))

    def unpack(self, packed: Packed) -> Tensor:
        """Every bit where it was."""
        if packed.dense.is_cuda:
            return join(packed.dense, packed.plain, self.dtype)
        return join_on_host(packed.dense.numpy(), packed.plain.numpy(), self.dtype)


@compiled
def join(dense_NX: Tensor, plain_NY: Tensor, dtype: torch.dtype) -> Tensor:
    """Values from their planes; one pass over memory where it is compiled."""
    *middle, lowest_NX = plain_NY.chunk(dtype.itemsize - 1, dim=-1)
    bits_NX = dense_NX.to(integer_of(dtype))
    for plane_NX in middle:
        bits_NX = bits_NX << 8 | plane_NX
    # a signed byte spreads its sign over all bits above it
    lowest_bits_NX = lowest_NX.view(torch.int8).to(bits_NX.dtype) & sign_and_lowest(dtype)
    return (bits_NX << 7 | lowest_bits_NX).view(dtype)


def join_on_host(dense_NX: Bytes, plain_NY: Bytes, dtype: torch.dtype) -> Tensor:
    """The same in blocks that stay in a core's cache; numpy's calls cost a third of torch's."""
    rows, width = dense_NX.shape
    bits_NX: npt.NDArray[Any] = np.empty((rows, width), dtype=f"i{dtype.itemsize}")
    step = max(1, 4 * BLOCK_VALUES // max(width, 1))
    spare_NX = np.empty_like(bits_NX[:step])
    for start in range(0, rows, step):
        part = slice(start, start + step)
        bits = bits_NX[part]
        bits[:] = dense_NX[part]
        *middle, lowest = np.split(plain_NY[part], dtype.itemsize - 1, axis=1)
        for plane in middle:
            bits <<= 8
            bits |= plane
        bits <<= 7
        lowest_bits = spare_NX[: len(bits)]
        lowest_bits[:] = lowest.view(np.int8)
        lowest_bits &= sign_and_lowest(dtype)
        bits |= lowest_bits
    return torch.from_numpy(bits_NX).view(dtype)


def sign_and_lowest(dtype: torch.dtype) -> int:
    """The bits that the lowest plane of a value holds, as a signed integer: its sign and the last seven."""
    return 127 - (1 << 8 * dtype.itemsize - 1)


# -- Rounded --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Rounded:
    """Codecs `balanced` and `compact`: `code = round(value / (channel * row))`, one byte each.

    Six bits are codes of at most 31: their bytes compress to less.
    """

    channels: Tensor
    """`[G, H]`, float32."""
    largest: int
    """Largest code of a usual row."""
    dtype: torch.dtype
    plain_width = 0

    @property
    def dense_width(self) -> int:
        """One byte a value."""
        return self.channels.numel()

    @property
    def num_scales(self) -> int:
        """One for each layer."""
        return len(self.channels)

    def pack(self, values_NX: Tensor) -> Packed:
        """Codes, and the size of each row. The values must be finite."""
        whitened_NGH = values_NX.float().unflatten(-1, self.channels.shape) / self.channels
        top_NG = whitened_NGH.abs().amax(-1)
        rms_NG = whitened_NGH.square().mean(-1).sqrt()
        largest_NG = torch.where(top_NG > OUTLIER * rms_NG, float(EIGHT_BITS), float(self.largest))
        scales_NG = top_NG / largest_NG
        # a row of zeros has size 0, and codes 0
        codes = whitened_NGH / torch.where(scales_NG > 0, scales_NG, 1.0)[..., None]
        bytes_NX = codes.round_().to(torch.int8).flatten(1).view(torch.uint8)
        return Packed(bytes_NX, bytes_NX.new_empty(len(bytes_NX), 0), scales_NG)

    def unpack(self, packed: Packed) -> Tensor:
        """`code * row * channel` in float32, then the target's dtype."""
        codes_NGH = packed.dense.view(torch.int8).unflatten(-1, self.channels.shape)
        if codes_NGH.is_cuda:
            return unround(codes_NGH, packed.scales, self.channels, self.dtype).flatten(1)
        values_NGH = torch.empty(codes_NGH.shape, dtype=self.dtype)
        rows = max(1, BLOCK_VALUES // max(self.channels.numel(), 1))
        for codes, scales, values in zip(
            codes_NGH.split(rows), packed.scales.split(rows), values_NGH.split(rows), strict=True
        ):
            values.copy_(codes.float().mul_(scales[..., None]).mul_(self.channels))
        return values_NGH.flatten(1)


@compiled
def unround(codes_NGH: Tensor, scales_NG: Tensor, channels_GH: Tensor, dtype: torch.dtype) -> Tensor:
    """One pass over memory where it is compiled."""
    return (codes_NGH.float() * scales_NG[..., None] * channels_GH).to(dtype)


# -- Of one cache ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """What the states of one cache look like."""

    num_aux: int
    """A: captured layers."""
    width: int
    """H of the target."""
    dtype: torch.dtype
    """Of the values."""
    codec: Codec = "none"
    """How they are stored."""

    @property
    def is_rounded(self) -> bool:
        """Whether channels have to be measured before anything can be stored."""
        return self.codec not in LOSSLESS

    def planned_bytes(self, num_tokens: int, label_rows: int) -> int:
        """Size of the states of a document before they exist; exact for `none`."""
        aux, last = CODEC_SHARE[self.codec]
        wide = 2 if self.is_rounded else self.dtype.itemsize
        scales = 4 * (num_tokens * self.num_aux + label_rows) if self.is_rounded else 0
        return int((num_tokens * self.num_aux * aux + label_rows * last) * self.width * wide) + scales


@dataclass(frozen=True, eq=False)
class StateCodec:
    """The forms of a cache, or of a shard of it: shards have channels of their own."""

    layout: Layout
    aux: Form
    last: Form

    @classmethod
    def of(cls, layout: Layout, channels: Channels | None) -> StateCodec:
        """The codec of a layout. Raises ValueError without channels where values are rounded."""
        if layout.is_rounded:
            if channels is None:
                raise ValueError(f"codec {layout.codec} needs the sizes of channels")
            largest = SIX_BITS if layout.codec == "compact" else EIGHT_BITS
            return cls(
                layout,
                Rounded(channels.aux, largest, layout.dtype),
                Rounded(channels.last[None], EIGHT_BITS, layout.dtype),
            )
        form = Planes if layout.codec == "lossless" else AsTheyAre
        return cls(layout, form(layout.num_aux * layout.width, layout.dtype), form(layout.width, layout.dtype))

    def pack(self, sample: Sample) -> PackedSample:
        """Where the states are. Raises ValueError for another dtype: nothing is rounded by accident."""
        if sample.aux.dtype != self.layout.dtype:
            raise ValueError(f"given states in {sample.aux.dtype}; the cache has {self.layout.dtype}")
        return PackedSample(
            sample.document, self.aux.pack(sample.aux), self.last.pack(sample.last), sample.tok, sample.lse
        )

    def unpack(self, packed: PackedSample) -> Sample:
        """Where the bytes are."""
        aux, last = self.aux.unpack(packed.aux), self.last.unpack(packed.last)
        return Sample(packed.document, aux, last, packed.tok, packed.lse)


# -- Bytes ----------------------------------------------------------------------------------------


def compress(packed: Packed) -> bytes:
    """The compressed bytes, then the plain ones; the scales go elsewhere."""
    dense, plain = (each.numpy().tobytes() for each in (packed.dense, packed.plain))
    # a context for each call: they cannot be shared by threads, and cost microseconds
    return (zstandard.ZstdCompressor(level=LEVEL).compress(dense) if dense else b"") + plain


def decompress(blob: memoryview, form: Form, scales: Tensor, pinned: bool) -> Packed:
    """What `compress` was given, for as many rows as there are scales. Raises ValueError for anything else."""
    rows = len(scales)
    dense = torch.empty(rows, form.dense_width, dtype=torch.uint8, pin_memory=pinned)
    plain = torch.empty(rows, form.plain_width, dtype=torch.uint8, pin_memory=pinned)
    border = len(blob) - plain.numel()
    if border < 0 or (border == 0) != (dense.numel() == 0):
        raise ValueError(f"{len(blob)} bytes of states; expected {plain.numel()} and a compressed part")
    if dense.numel():
        inflate(blob[:border], dense.numpy().reshape(-1).data)
    plain.view(-1).numpy()[:] = np.frombuffer(blob[border:], dtype=np.uint8)
    return Packed(dense, plain, scales)


def inflate(blob: memoryview, target: memoryview) -> None:
    """Decompress into memory that is there already. Raises ValueError unless exactly that much comes out."""
    try:
        with zstandard.ZstdDecompressor().stream_reader(blob) as reader:
            size = reader.readinto(target)
            rest = reader.read(1)
    except zstandard.ZstdError as error:
        raise ValueError(f"states that cannot be decompressed ({error})") from error
    if size != len(target) or rest:
        raise ValueError(f"{size} bytes of states after decompression; expected {len(target)}")


def no_scales(rows: Tensor) -> Tensor:
    """`[N, 0]`."""
    return rows.new_empty(len(rows), 0, dtype=torch.float32)


def integer_of(dtype: torch.dtype) -> torch.dtype:
    """The integer of the same width."""
    return torch.int16 if dtype.itemsize == 2 else torch.int32
