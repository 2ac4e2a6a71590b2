"""Records: what is written comes back, and no broken byte passes."""

from __future__ import annotations

from dataclasses import replace

import google_crc32c
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from draftyard_api.schema import Codec
from draftyard_trainer.data.document import Document
from draftyard_trainer.hidden_states import record as records
from draftyard_trainer.hidden_states.codec import CODECS, DTYPES, Channels, Layout, StateCodec
from draftyard_trainer.hidden_states.record import (
    CorruptRecordError,
    aligned,
    estimated_bytes,
    read_header,
)
from draftyard_trainer.hidden_states.sample import Sample
from draftyard_trainer.hidden_states.testing import assert_equal, tiny_document

TINY = Layout(num_aux=2, width=3, dtype=torch.bfloat16)


def make_sample(document: Document, layout: Layout = TINY) -> Sample:
    """Seeded states for a document."""
    generator = torch.Generator().manual_seed(document.doc_id % 2**31)
    rows = len(document.label_rows())
    return Sample(
        document,
        torch.randn(document.num_tokens, layout.num_aux * layout.width, generator=generator).to(layout.dtype),
        torch.randn(rows, layout.width, generator=generator).to(layout.dtype),
        torch.randint(0, 1000, (rows,), generator=generator, dtype=torch.int32),
        torch.randn(rows, generator=generator),
    )


def codec_of(layout: Layout = TINY) -> StateCodec:
    """Every channel of size 1."""
    channels = Channels(torch.ones(layout.num_aux, layout.width), torch.ones(layout.width))
    return StateCodec.of(layout, channels)


def encode(sample: Sample, layout: Layout = TINY) -> bytes:
    """The record of a sample."""
    codec = codec_of(layout)
    return records.encode(codec.pack(sample), codec)


def decode(record: bytes, layout: Layout = TINY) -> Sample:
    """The sample of a record."""
    codec = codec_of(layout)
    return codec.unpack(records.decode(record, codec))


@given(
    st.integers(1, 40),
    st.integers(0, 2**64 - 1),
    st.sampled_from(DTYPES),
    st.integers(1, 4),
    st.booleans(),
)
@settings(max_examples=50, deadline=None)
def test_what_is_written_comes_back(
    length: int, doc_id: int, dtype: torch.dtype, num_aux: int, has_labels: bool
) -> None:
    layout = Layout(num_aux, 3, dtype)
    document = tiny_document(7, length)
    spans = document.spans if has_labels else np.zeros((0, 2), dtype=np.int64)
    document = Document(doc_id, document.tokens, spans)
    sample = make_sample(document, layout)
    record = encode(sample, layout)
    assert_equal(decode(record, layout), sample)
    assert aligned(len(record)) == estimated_bytes(document, layout)


@pytest.mark.parametrize("codec", ["none", "lossless"])
def test_all_bfloat16_patterns_survive(codec: Codec) -> None:
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.bfloat16)
    document = tiny_document(1, 8192)
    layout = Layout(2, 4, torch.bfloat16, codec)
    sample = make_sample(document, layout)
    sample = Sample(document, patterns.reshape(8192, 8), sample.last, sample.tok, sample.lse)
    back = decode(encode(sample, layout), layout)
    assert torch.equal(back.aux.view(torch.int16), sample.aux.view(torch.int16))


def test_the_format_is_the_documented_one() -> None:
    """Byte by byte, so that another program can read it."""
    document = Document(5, np.array([1, 2, 3]), np.array([[1, 1]]))
    record = encode(make_sample(document))
    assert record[:8] == b"DYR1" + b"\x01\x00" + b"\x00\x00"
    numbers = np.frombuffer(record[8:16], "<u8").tolist() + np.frombuffer(record[16:28], "<u4").tolist()
    assert numbers == [5, 3, 3, 1]
    assert np.frombuffer(record[32:48], "<u8").tolist() == [3 * 2 * 3 * 2, 3 * 3 * 2]
    assert record[48:64] == bytes(16)
    assert np.frombuffer(record[64:84], "<u4").tolist() == [1, 2, 3, 1, 1]
    assert len(record) == 64 + 12 + 8 + 12 + 12 + 36 + 18


def test_states_elsewhere_do_not_matter() -> None:
    """A sample may be a view into a batch, with gaps."""
    sample = make_sample(tiny_document(2, 10))
    wide = torch.zeros(10, 12, dtype=torch.bfloat16)
    wide[:, ::2] = sample.aux
    view = Sample(sample.document, wide[:, ::2], sample.last, sample.tok, sample.lse)
    assert encode(view) == encode(sample)


def test_a_record_waits_for_its_bytes() -> None:
    """As on a GPU, where a copy to the host has begun and not ended: here the end of it makes the bytes."""
    sample = make_sample(tiny_document(2, 10))
    packed = codec_of().pack(sample)
    late = replace(packed.last, plain=torch.zeros_like(packed.last.plain))

    class Copy:
        def synchronize(self) -> None:
            late.plain.copy_(packed.last.plain)

    assert records.encode(replace(packed, last=late, copied=Copy()), codec_of()) == encode(sample)


def test_on_the_host_there_is_nothing_to_wait_for() -> None:
    packed = codec_of().pack(make_sample(tiny_document(2, 10)))
    moved = packed.to(torch.device("cpu"))
    assert moved.copied is None
    assert moved.last.plain.data_ptr() == packed.last.plain.data_ptr()


# -- Broken bytes ------------------------------------------------------------------------------------

LAYOUTS = {codec: Layout(2, 3, torch.bfloat16, codec) for codec in CODECS}
WHOLE = {codec: encode(make_sample(tiny_document(3, 9)), layout) for codec, layout in LAYOUTS.items()}


@pytest.mark.parametrize("codec", CODECS)
def test_every_flipped_byte_is_found(codec: Codec) -> None:
    for place in range(len(WHOLE[codec])):
        broken = bytearray(WHOLE[codec])
        broken[place] ^= 0xFF
        with pytest.raises(CorruptRecordError):
            decode(bytes(broken), LAYOUTS[codec])


@pytest.mark.parametrize("codec", CODECS)
def test_every_length_but_the_right_one_is_found(codec: Codec) -> None:
    for length in range(len(WHOLE[codec])):
        with pytest.raises(CorruptRecordError):
            decode(WHOLE[codec][:length], LAYOUTS[codec])
    with pytest.raises(CorruptRecordError):
        decode(WHOLE[codec] + b"\0", LAYOUTS[codec])


@given(st.binary(max_size=300), st.booleans())
@settings(max_examples=200, deadline=None)
def test_noise_is_an_error_and_never_a_crash(noise: bytes, has_magic: bool) -> None:
    with pytest.raises(CorruptRecordError):
        decode((WHOLE["none"][:8] if has_magic else b"") + noise)


def rewritten(record: bytes, edits: dict[int, int]) -> bytes:
    """A record with other bytes and a checksum that fits: what a writer with a fault would leave."""
    changed = bytearray(record)
    for place, value in edits.items():
        changed[place % len(changed)] = value
    changed[28:32] = bytes(4)
    return bytes(changed[:28]) + google_crc32c.value(bytes(changed)).to_bytes(4, "little") + bytes(changed[32:])


@given(st.sampled_from(CODECS), st.dictionaries(st.integers(0, 400), st.integers(0, 255), max_size=4))
@settings(max_examples=300, deadline=None)
def test_a_record_that_was_written_wrong_is_an_error_or_a_whole_sample(codec: Codec, edits: dict[int, int]) -> None:
    try:
        sample = decode(rewritten(WHOLE[codec], edits), LAYOUTS[codec])
    except CorruptRecordError:
        return
    assert sample.aux.shape == (sample.document.num_tokens, 6)
    assert sample.last.shape == (len(sample.tok), 3)
    assert len(sample.lse) == len(sample.tok)


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param(Layout(2, 3, torch.float16), id="another dtype"),
        pytest.param(Layout(1, 3, torch.bfloat16), id="other layers"),
        pytest.param(Layout(2, 3, torch.bfloat16, "lossless"), id="another codec"),
        pytest.param(Layout(3, 2, torch.bfloat16), id="another width of the same size"),
    ],
)
def test_a_record_of_another_cache(layout: Layout) -> None:
    read_header(WHOLE["none"])
    with pytest.raises(CorruptRecordError, match="expected"):
        decode(WHOLE["none"], layout)
