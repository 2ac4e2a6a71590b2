"""Parts are cut alike by every attempt, committed one by one, and never mixed between attempts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from draftyard_trainer.hidden_states.codec import Layout, StateCodec
from draftyard_trainer.hidden_states.record import decode
from draftyard_trainer.hidden_states.sample import Sample
from draftyard_trainer.hidden_states.shard import (
    INDEX_DTYPE,
    PART_TOKENS,
    CapturedPart,
    Part,
    Shard,
    ShardManifest,
    Skipped,
    StoredPart,
    cut_parts,
    documents_of,
    index_bytes,
)
from draftyard_trainer.hidden_states.testing import tiny_document
from draftyard_trainer.storage.local import LocalStore

LAYOUT = Layout(num_aux=2, width=3, dtype=torch.float32)
CODEC = StateCodec.of(LAYOUT, None)


@pytest.fixture
def shard(tmp_path: Path) -> Shard:
    return Shard(LocalStore(tmp_path), "hidden-states/key/s1/shard-00000")


def sample(doc_id: int, seed: int = 0) -> Sample:
    document = tiny_document(doc_id, 6 + doc_id)
    rows = len(document.label_rows())
    generator = torch.Generator().manual_seed(seed)
    return Sample(
        document,
        torch.randn(document.num_tokens, 6, generator=generator),
        torch.randn(rows, 3, generator=generator),
        torch.arange(rows, dtype=torch.int32),
        torch.zeros(rows),
    )


def commit(shard: Shard, number: int, samples: Iterable[Sample], *skipped: Skipped) -> Part:
    return shard.commit(number, CapturedPart(map(CODEC.pack, samples), skipped), CODEC)


def committed(shard: Shard, number: int, doc_ids: list[int]) -> Part | None:
    return shard.committed(number, doc_ids, None)


def decoded(record: bytes) -> Sample:
    return CODEC.unpack(decode(record, CODEC))


def manifest_of(*parts: Part) -> ShardManifest:
    return ShardManifest(
        key="0" * 64, shard=0, shards=1, codec="none", documents=0, tokens=0, label_rows=0, bytes=0, skipped=(),
        parts=tuple({"file": part.file, "bytes": part.bytes, "sha256": part.sha256, "documents": 0} for part in parts),
        index_sha256="", product="0", device="cpu", seconds=0.0, tokens_per_second=None,
    )  # fmt: skip


# -- Who makes what ----------------------------------------------------------------------------------


@given(st.integers(0, 200), st.integers(1, 20))
def test_every_document_belongs_to_one_shard(documents: int, shards: int) -> None:
    found = [doc_id for shard in range(shards) for doc_id in documents_of(documents, shard, shards).tolist()]
    assert sorted(found) == list(range(documents))
    assert all(doc_id % shards == shard for shard in range(shards) for doc_id in documents_of(documents, shard, shards))


@pytest.mark.parametrize(
    ("lengths", "sizes", "expected"),
    [
        pytest.param([], [], [], id="no documents"),
        pytest.param([1, 1, 1], [40, 60, 1], [[0, 1], [2]], id="up to the limit of bytes"),
        pytest.param([1, 1, 1], [500, 1, 1], [[0], [1, 2]], id="a larger document goes alone"),
        pytest.param([1, 1, 1], [1, 500, 1], [[0], [1], [2]], id="also in the middle"),
        pytest.param([PART_TOKENS, 1, PART_TOKENS - 1], [1, 1, 1], [[0], [1, 2]], id="up to the limit of tokens"),
    ],
)
def test_parts(lengths: list[int], sizes: list[int], expected: list[list[int]]) -> None:
    ids = np.arange(len(lengths))
    found = cut_parts(ids, np.array(lengths), np.array(sizes), part_bytes=100)
    assert [part.tolist() for part in found] == expected


@given(st.lists(st.integers(1, 150), max_size=40))
def test_parts_cover_all_documents_in_order(sizes: list[int]) -> None:
    ids = np.arange(len(sizes)) * 3
    parts = cut_parts(ids, np.ones(len(sizes), dtype=np.int64), np.array(sizes, dtype=np.int64), part_bytes=100)
    assert [doc_id for part in parts for doc_id in part] == ids.tolist()
    assert all(len(part) == 1 or sum(sizes[doc_id // 3] for doc_id in part) <= 100 for part in parts)


# -- Committing --------------------------------------------------------------------------------------


def test_a_part_comes_back(shard: Shard) -> None:
    samples = [sample(0), sample(1), sample(3)]
    skipped = Skipped(doc_id=2, reason="NotFinite", layer="last")
    part = commit(shard, 7, samples, skipped)
    assert committed(shard, 7, [0, 1, 2, 3]) == part
    assert part.skipped == (skipped,)
    assert part.bytes == shard.store.size(f"{shard.folder}/{part.file}")
    for place, written in zip(part.records, samples, strict=True):
        assert place.offset % 64 == 0
        record = shard.store.read_range(f"{shard.folder}/{part.file}", place.offset, place.bytes)
        back = decoded(record)
        assert torch.equal(back.aux, written.aux)
        assert (place.doc_id, place.tokens, place.labels) == (
            back.document.doc_id, back.document.num_tokens, len(back.tok),
        )  # fmt: skip


def test_the_index_has_36_bytes_per_record(shard: Shard) -> None:
    part = commit(shard, 2, [sample(0), sample(4)])
    rows = np.frombuffer(index_bytes([StoredPart.of(part)]), dtype=INDEX_DTYPE)
    assert INDEX_DTYPE.itemsize == 36
    assert rows["doc_id"].tolist() == [0, 4]
    assert rows["part"].tolist() == [2, 2]
    assert rows["offset"].tolist() == [place.offset for place in part.records]
    assert index_bytes([]) == b""


def test_a_part_that_fails_half_way_is_invisible(shard: Shard) -> None:
    def broken() -> Iterator[Sample]:
        yield sample(0)
        raise KeyError

    with pytest.raises(KeyError):
        commit(shard, 0, broken())
    assert shard.store.list("") == []
    assert committed(shard, 0, [0]) is None


def damage_marker(shard: Shard, part: Part) -> None:
    shard.store.publish(f"{shard.folder}/part-000.json", b"{}")


def delete_marker(shard: Shard, part: Part) -> None:
    shard.store.delete(f"{shard.folder}/part-000.json")


def delete_data(shard: Shard, part: Part) -> None:
    shard.store.delete(f"{shard.folder}/{part.file}")


def cut_data(shard: Shard, part: Part) -> None:
    name = f"{shard.folder}/{part.file}"
    shard.store.publish(name, shard.store.read(name)[:-1])


def flip_data(shard: Shard, part: Part) -> None:
    name = f"{shard.folder}/{part.file}"
    content = bytearray(shard.store.read(name))
    content[70] ^= 1
    shard.store.publish(name, bytes(content))


@pytest.mark.parametrize("damage", [damage_marker, delete_marker, delete_data, cut_data, flip_data])
def test_a_damaged_part_is_not_committed(shard: Shard, damage) -> None:
    part = commit(shard, 0, [sample(0)])
    assert committed(shard, 0, [0]) == part
    damage(shard, part)
    assert committed(shard, 0, [0]) is None


def test_a_part_of_other_documents_is_not_ours(shard: Shard) -> None:
    """Another cut of the same shard, such as by another version."""
    commit(shard, 0, [sample(0), sample(1)])
    assert committed(shard, 0, [0]) is None
    assert committed(shard, 1, [0, 1]) is None


def test_two_attempts_of_one_shard_never_mix(shard: Shard) -> None:
    """A node that came back: both write part 0; whichever marker is last, it names its own bytes."""

    def interleaved() -> Iterator[Sample]:
        yield sample(0, seed=1)
        commit(shard, 0, [sample(0, seed=2), sample(1, seed=2)])
        yield sample(1, seed=1)

    first = commit(shard, 0, interleaved())
    found = committed(shard, 0, [0, 1])
    assert found == first
    record = shard.store.read_range(f"{shard.folder}/{first.file}", first.records[0].offset, first.records[0].bytes)
    assert torch.equal(decoded(record).aux, sample(0, seed=1).aux)
    assert len([name for name in shard.store.list("") if name.endswith(".bin")]) == 2


def test_tidying_removes_what_no_manifest_names(shard: Shard) -> None:
    beaten = commit(shard, 0, [sample(0, seed=1)])
    part = commit(shard, 0, [sample(0)])
    shard.complete(manifest_of(part), [StoredPart.of(part)])
    shard.tidy(manifest_of(part))
    names = [name.rpartition("/")[2] for name in shard.store.list(shard.folder)]
    assert names == ["MANIFEST.json", "index.bin", part.file, "part-000.json"]
    assert beaten.file not in names
    assert committed(shard, 0, [0]) == part


def test_distrust(shard: Shard) -> None:
    part = commit(shard, 0, [sample(0)])
    shard.complete(manifest_of(part), [StoredPart.of(part)])
    assert shard.manifest() == manifest_of(part)
    shard.distrust()
    assert shard.manifest() is None
    assert committed(shard, 0, [0]) == part
    shard.distrust(0)
    assert committed(shard, 0, [0]) is None


def test_a_manifest_of_another_version_is_none(shard: Shard) -> None:
    shard.store.publish(f"{shard.folder}/MANIFEST.json", b'{"format": 99}')
    assert shard.manifest() is None
