"""Files with a checksum of themselves: what was sealed comes back, and nothing else does."""

from __future__ import annotations

import io
import json
from functools import partial

import google_crc32c
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from draftyard_trainer.storage.sealed import (
    CRC,
    PIECE_BYTES,
    ZEROS,
    check_tensors,
    checksum,
    seal,
    unseal,
    write_tensors,
)

DOCUMENT = b'{"name": "a \\u00e9", "values": [1, 2.5]}'


def tensors_file(values: int = 5, text: str = "") -> bytes:
    sink = io.BytesIO()
    tensors = {"a": torch.arange(values, dtype=torch.float32), "b": torch.ones(2, 3)}
    write_tensors(save(tensors, metadata={"text": text, CRC: ZEROS}), sink)
    return sink.getvalue()


def part_of(content: bytes, offset: int, length: int) -> bytes:
    return content[offset : offset + length]


def check(content: bytes) -> None:
    check_tensors(partial(part_of, content), len(content))


def test_a_document_comes_back_and_is_json_all_the_time() -> None:
    sealed = seal(DOCUMENT)
    assert unseal(sealed) == DOCUMENT
    assert {**json.loads(sealed), "sha256": None} == {**json.loads(DOCUMENT), "sha256": None}


@pytest.mark.parametrize("bit", range(8))
def test_every_bit_of_a_document_counts(bit: int) -> None:
    sealed = seal(DOCUMENT)
    for place in range(len(sealed)):
        broken = bytearray(sealed)
        broken[place] ^= 1 << bit
        with pytest.raises(ValueError, match="does not have the sha256"):
            unseal(bytes(broken))


@pytest.mark.parametrize("content", [b"", b"{", DOCUMENT, seal(DOCUMENT)[:-1], seal(DOCUMENT) + b" "])
def test_what_is_no_sealed_document(content: bytes) -> None:
    with pytest.raises(ValueError, match="does not have the sha256"):
        unseal(content)


@given(st.binary(max_size=200))
def test_any_bytes_are_sealed(rest: bytes) -> None:
    assert unseal(seal(b"{" + rest)) == b"{" + rest


def test_tensors_come_back() -> None:
    content = tensors_file()
    check(content)
    assert load(content)["a"].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_the_checksum_is_the_documented_one() -> None:
    content = tensors_file()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    found = header["__metadata__"]["crc32c"]
    # the place itself counts as zeros
    assert int(found, 16) == google_crc32c.value(content.replace(found.encode(), ZEROS.encode(), 1))


@pytest.mark.parametrize("bit", range(8))
def test_every_bit_of_tensors_counts(bit: int) -> None:
    content = tensors_file()
    for place in range(len(content)):
        broken = bytearray(content)
        broken[place] ^= 1 << bit
        with pytest.raises(ValueError, match=r"crc32c|header"):
            check(bytes(broken))


@pytest.mark.parametrize("length", [0, 7, 8, 9, 100, -1])
def test_tensors_that_are_cut_off(length: int) -> None:
    content = tensors_file()
    with pytest.raises(ValueError, match=r"crc32c|header"):
        check(content[:length])
    with pytest.raises(ValueError, match="crc32c"):
        check(content + b"\0")


def test_text_that_looks_like_a_checksum_is_text() -> None:
    check(tensors_file(text='{"crc32c":"12345678"}'))


@given(st.binary(max_size=400), st.integers(0, 2**64 - 1))
@settings(max_examples=200, deadline=None)
def test_noise_is_an_error_whatever_length_it_claims(noise: bytes, length: int) -> None:
    with pytest.raises(ValueError, match=r"crc32c|header"):
        check(length.to_bytes(8, "little") + noise)


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES - 1, PIECE_BYTES, 3 * PIECE_BYTES + 5])
def test_a_checksum_in_pieces_is_that_of_the_whole(size: int) -> None:
    content = bytes(number * 31 % 256 for number in range(size))
    assert checksum(memoryview(content)) == google_crc32c.value(content)
    assert checksum(memoryview(content)[7:], google_crc32c.value(content[:7])) == google_crc32c.value(content)


def test_a_file_of_many_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    content = tensors_file(values=3000)
    monkeypatch.setattr("draftyard_trainer.storage.sealed.PIECE_BYTES", 16)
    check(content)
    for place in (8, 700, 5000, len(content) - 1):
        with pytest.raises(ValueError, match=r"crc32c|header"):
            check(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
