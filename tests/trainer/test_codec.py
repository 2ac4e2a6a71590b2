"""Codecs: what is lossless comes back bit for bit, what is rounded stays within half a code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from draftyard_api.schema import Codec
from draftyard_trainer.hidden_states import codec as codecs
from draftyard_trainer.hidden_states.codec import (
    CODECS,
    DTYPES,
    Channels,
    Layout,
    Packed,
    StateCodec,
    compress,
    decompress,
    integer_of,
    join,
    join_on_host,
)

A, H = 3, 16
ONES = Channels(torch.ones(A, H), torch.ones(H))


def through_bytes(values: Tensor, codec: StateCodec) -> Tensor:
    """Captured layers as a reader finds them."""
    packed = codec.aux.pack(values)
    blob = compress(packed)
    return codec.aux.unpack(decompress(memoryview(blob), codec.aux, packed.scales, pinned=False))


def same_bits(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.view(integer_of(one.dtype)), other.view(integer_of(other.dtype)))


def outliers(rows: int, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Channels]:
    """States as targets have them: some channels a hundred times larger, the first token a thousand times."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.exp(2 * torch.randn(A, H, generator=generator))
    values = torch.randn(rows, A, H, generator=generator) * sizes
    values[0, 1, 3] *= 1000
    return values.flatten(1).to(dtype), Channels(sizes, sizes[0])


@pytest.mark.parametrize("codec", ["none", "lossless"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_bit_comes_back(codec: Codec, dtype: torch.dtype) -> None:
    values, _ = outliers(65, dtype)
    values[3, :4] = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0])
    assert same_bits(through_bytes(values, StateCodec.of(Layout(A, H, dtype, codec), None)), values)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_all_patterns_of_16_bits_survive_planes(dtype: torch.dtype) -> None:
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype).reshape(-1, A + 1)
    codec = StateCodec.of(Layout(A + 1, 1, dtype, "lossless"), None)
    assert same_bits(through_bytes(patterns, codec), patterns)


@pytest.mark.parametrize(
    ("dtype", "dense", "plain"),
    [
        pytest.param(torch.bfloat16, [127, 127], [0b0_0000000, 0b1_1000000], id="bfloat16"),
        # five bits of exponent, and three of the mantissa
        pytest.param(torch.float16, [0b01111_000, 0b01111_100], [0b0_0000000, 0b1_0000000], id="float16"),
        pytest.param(torch.float32, [127, 127], [0, 0b10000000, 0, 0, 0b0_0000000, 0b1_0000000], id="float32"),
    ],
)
def test_planes_hold_what_they_say(dtype: torch.dtype, dense: list[int], plain: list[int]) -> None:
    """1.0 is 0 01111111 0000000 in bfloat16, -1.5 is 1 01111111 1000000: exponents, and the rest below its sign."""
    packed = StateCodec.of(Layout(1, 2, dtype, "lossless"), None).aux.pack(torch.tensor([[1.0, -1.5]]).to(dtype))
    assert packed.dense.tolist() == [dense]
    assert packed.plain.tolist() == [plain]


@pytest.mark.parametrize("dtype", DTYPES)
@given(st.integers(0, 70), st.integers(1, 9), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_planes_are_joined_alike_everywhere(dtype: torch.dtype, rows: int, width: int, seed: int) -> None:
    """What a GPU computes, here in torch on the CPU, and the loop of the host, in blocks of a few rows."""
    noise = np.random.default_rng(seed).integers(0, 256, (rows, width * dtype.itemsize), dtype=np.uint8)
    dense, plain = np.split(noise, [width], axis=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codecs, "BLOCK_VALUES", 4)
        on_host = join_on_host(dense, plain, dtype)
    assert same_bits(join(torch.from_numpy(dense.copy()), torch.from_numpy(plain.copy()), dtype), on_host)


@given(st.integers(0, 2**32 - 1), st.sampled_from(["balanced", "compact"]), st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_rounding_is_off_by_half_a_code_at_most(seed: int, name: Codec, rows: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.exp(3 * torch.randn(A, H, generator=generator))
    values = (torch.randn(rows, A, H, generator=generator) * sizes).flatten(1)
    codec = StateCodec.of(Layout(A, H, torch.float32, name), Channels(sizes, sizes[0]))
    error = (through_bytes(values, codec) - values).unflatten(-1, (A, H)).abs()
    scales = codec.aux.pack(values).scales
    assert bool((error <= 0.5 * scales[..., None] * sizes * (1 + 1e-5) + 1e-30).all())


def test_six_bits_unless_a_row_has_an_outlier() -> None:
    values, channels = outliers(8)
    codes = StateCodec.of(Layout(A, H, torch.bfloat16, "compact"), channels).aux.pack(values).dense.view(torch.int8)
    largest = codes.unflatten(-1, (A, H)).abs().amax(-1)
    usual = torch.full((8, A), 31)
    # of 16 channels one that is 1000 times larger is at most 4 times their rms: no outlier yet
    assert largest.tolist() == usual.tolist()
    wide = torch.ones(1, 256)
    wide[0, 7] = 100.0
    codec = StateCodec.of(Layout(1, 256, torch.float32, "compact"), Channels(torch.ones(1, 256), torch.ones(256)))
    assert int(codec.aux.pack(wide).dense.view(torch.int8).max()) == 127


def test_the_final_state_has_eight_bits_in_both() -> None:
    values = torch.randn(5, H)
    for name in ("balanced", "compact"):
        codec = StateCodec.of(Layout(A, H, torch.float32, name), ONES)
        assert int(codec.last.pack(values).dense.view(torch.int8).abs().max()) == 127


@pytest.mark.parametrize("codec", CODECS)
def test_zeros_and_nothing(codec: Codec) -> None:
    forms = StateCodec.of(Layout(A, H, torch.bfloat16, codec), ONES)
    for rows in (0, 1, 3):
        zeros = torch.zeros(rows, A * H, dtype=torch.bfloat16)
        assert torch.equal(through_bytes(zeros, forms), zeros)


@pytest.mark.parametrize("codec", CODECS)
def test_rows_are_packed_apart_from_each_other(codec: Codec) -> None:
    values, channels = outliers(9)
    form = StateCodec.of(Layout(A, H, torch.bfloat16, codec), channels).aux
    whole, part = form.pack(values), form.pack(values[2::3])
    for name in ("dense", "plain", "scales"):
        assert torch.equal(getattr(whole, name)[2::3], getattr(part, name))


@pytest.mark.parametrize("codec", CODECS)
def test_planned_sizes(codec: Codec) -> None:
    """Exact without compression; random values compress less than states do, and still not by a fifth."""
    layout = Layout(A, H, torch.bfloat16, codec)
    values, channels = outliers(512)
    forms = StateCodec.of(layout, channels)
    packed = forms.aux.pack(values)
    size = len(compress(packed)) + 4 * packed.scales.numel()
    planned = layout.planned_bytes(512, 0)
    assert size == planned if codec == "none" else 0.8 < size / planned < 1.25


def test_rounding_without_channels_is_refused() -> None:
    with pytest.raises(ValueError, match="codec balanced needs the sizes of channels"):
        StateCodec.of(Layout(A, H, torch.bfloat16, "balanced"), None)


@pytest.mark.parametrize(
    "blob",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x28\xb5\x2f\xfd", id="a header alone"),
        pytest.param(b"noise", id="noise"),
    ],
)
def test_bytes_that_are_no_states(blob: bytes) -> None:
    form = StateCodec.of(Layout(A, H, torch.bfloat16, "balanced"), ONES).aux
    with pytest.raises(ValueError, match="states"):
        decompress(memoryview(blob), form, torch.ones(2, A), pinned=False)


def test_more_than_was_announced_is_refused() -> None:
    """Neither a longer text nor one that would fill the memory comes out."""
    form = StateCodec.of(Layout(A, H, torch.bfloat16, "balanced"), ONES).aux
    nothing = torch.empty(3, 0)
    blob = compress(Packed(torch.zeros(3, A * H, dtype=torch.uint8), nothing, nothing))
    with pytest.raises(ValueError, match="after decompression; expected 96"):
        decompress(memoryview(blob), form, torch.ones(2, A), pinned=False)
