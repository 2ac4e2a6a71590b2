"""The two sources give the same samples, and broken stored states are found, taken back and made again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.names import MANIFEST, Stage, hidden_states_path, shard_path
from draftyard_api.reasons import Reason
from draftyard_api.schema import Codec
from draftyard_api.spec import Draft, Export, Target, Train
from draftyard_api.task import GenerateTask, StoredStatesRef, TrainTask
from draftyard_trainer import testing
from draftyard_trainer.data.prepared import PreparedDataset
from draftyard_trainer.generate import generate_in
from draftyard_trainer.hidden_states import calibration
from draftyard_trainer.hidden_states.calibration import CALIBRATION_FILE
from draftyard_trainer.hidden_states.codec import Channels, Rounded
from draftyard_trainer.hidden_states.key import KEY_FILE, TARGET_FILE
from draftyard_trainer.hidden_states.opening import open_source, open_stored
from draftyard_trainer.hidden_states.shard import INDEX, INDEX_DTYPE, Shard, ShardManifest
from draftyard_trainer.hidden_states.source import OfflineSource, OnlineSource, StoredShard
from draftyard_trainer.hidden_states.testing import PREPARED, assert_equal, prepare_documents, tiny_document
from draftyard_trainer.reporting import Reporter
from draftyard_trainer.storage.local import LocalStore
from draftyard_trainer.storage.sealed import seal
from draftyard_trainer.target.capture import CapturedTarget
from draftyard_trainer.target.location import locate

torch.set_num_threads(1)
LAYERS = (2, 4, 5)
SHARDS = 2
PART_BYTES = 24000
LENGTHS = (30, 12, 41, 9, 25, 18, 33, 50, 7, 22)


@dataclass(frozen=True)
class World:
    """Ten documents in two shards, and the target that they were captured from."""

    store: LocalStore
    target: Target
    dataset: PreparedDataset
    key: str

    @property
    def ref(self) -> StoredStatesRef:
        return StoredStatesRef(key=self.key, shards=tuple(range(SHARDS)), num_shards=SHARDS)

    @property
    def folder(self) -> str:
        return hidden_states_path(self.key, SHARDS)

    def shard(self, number: int) -> Shard:
        return Shard(self.store, shard_path(self.key, SHARDS, number))

    def manifest(self, number: int) -> ShardManifest:
        manifest = self.shard(number).manifest()
        assert manifest is not None
        return manifest

    def open(self) -> OfflineSource:
        return open_stored(self.store, self.ref, self.dataset)

    def online(self) -> OnlineSource:
        target = CapturedTarget.load(locate(self.target), self.target.dtype, LAYERS)
        return OnlineSource(target, self.dataset)


def generate_all(store: LocalStore, target: Target, codec: Codec = "none") -> str:
    """Run the stage for both shards. Returns the key."""
    keys = set()
    for shard in range(SHARDS):
        task = GenerateTask(
            run="tiny", uid="u", workspace=store.uri, target=target, prepared=PREPARED, aux_layers=LAYERS,
            codec=codec, num_shards=SHARDS, shard=shard,
        )  # fmt: skip
        states = generate_in(store, task, Reporter(Stage.GENERATE), PART_BYTES).hidden_states
        assert states is not None
        keys.add(states.key)
    (key,) = keys
    return key


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    return Target(model=f"file://{testing.write_target(tmp_path_factory.mktemp('target'))}", dtype="bfloat16")


@pytest.fixture
def world(tmp_path: Path, target: Target) -> World:
    store = LocalStore(tmp_path)
    dataset = prepare_documents(store, [tiny_document(number, length) for number, length in enumerate(LENGTHS)])
    return World(store, target, dataset, generate_all(store, target))


# -- One interface -----------------------------------------------------------------------------------


def test_online_and_offline_give_the_same_samples(world: World) -> None:
    online, offline = world.online(), world.open()
    ids = [7, 0, 9, 4, 1]
    for one, other in zip(online.samples(ids), offline.samples(ids), strict=True):
        assert_equal(one, other)
        assert one.aux.dtype == torch.bfloat16


def stored(world: World, codec: Codec) -> World:
    """The same documents under another codec."""
    return replace(world, key=generate_all(world.store, world.target, codec))


def test_a_lossless_codec_gives_the_same_samples(world: World) -> None:
    ids = range(len(LENGTHS))
    for one, other in zip(world.open().samples(ids), stored(world, "lossless").open().samples(ids), strict=True):
        assert_equal(one, other)


@pytest.mark.parametrize(("codec", "error"), [("balanced", 0.015), ("compact", 0.05)])
def test_rounded_states_are_near(world: World, codec: Codec, error: float) -> None:
    ids = range(len(LENGTHS))
    rounded = stored(world, codec)
    for one, other in zip(world.open().samples(ids), rounded.open().samples(ids), strict=True):
        assert torch.equal(one.tok, other.tok)
        assert torch.equal(one.lse, other.lse)
        assert (one.aux.dtype, one.last.dtype) == (other.aux.dtype, other.last.dtype)
        for name, limit in (("aux", error), ("last", 0.015)):
            true, kept = getattr(one, name).double(), getattr(other, name).double()
            assert 0 < float((true - kept).norm() / true.norm()) < limit
    report = rounded.manifest(0).fidelity
    assert report is not None
    assert report.rows > 0
    assert max(report.relative_errors) < error
    assert world.manifest(0).fidelity is None


def test_rounded_states_are_unpacked_where_training_is(world: World) -> None:
    """What they are multiplied by lies there too; a device of no memory stands for a GPU."""
    rounded = stored(world, "balanced")
    source = open_stored(rounded.store, rounded.ref, rounded.dataset, torch.device("meta"))
    for shard in source.shards:
        assert isinstance(shard.codec.aux, Rounded)
        assert isinstance(shard.codec.last, Rounded)
        assert shard.codec.aux.channels.is_meta
        assert shard.codec.last.channels.is_meta


def test_shards_share_their_calibration_and_keep_a_copy(world: World) -> None:
    rounded = stored(world, "balanced")
    common = rounded.store.read(f"{rounded.folder}/{CALIBRATION_FILE}")
    for number in range(SHARDS):
        assert rounded.store.read(f"{rounded.shard(number).folder}/{CALIBRATION_FILE}") == common
        assert rounded.manifest(number).calibration_sha256 == hashlib.sha256(common).hexdigest()
    rounded.store.delete(f"{rounded.folder}/{CALIBRATION_FILE}")
    assert len(rounded.open().samples([0, 1])) == 2


@pytest.mark.parametrize("has_common", [True, False])
def test_lost_calibration_is_found_and_mended(world: World, has_common: bool) -> None:
    rounded = stored(world, "balanced")
    expected = rounded.open().samples(range(len(LENGTHS)))
    before = [part.file for part in rounded.manifest(0).parts]
    name = f"{rounded.shard(0).folder}/{CALIBRATION_FILE}"
    rounded.store.publish(name, rounded.store.read(name)[:-8])
    if not has_common:
        rounded.store.delete(f"{rounded.folder}/{CALIBRATION_FILE}")
    with pytest.raises(Failure, match=r"calibration\.safetensors is missing, or not what the manifest names") as caught:
        rounded.open()
    assert caught.value.code is ExitCode.STALE_INPUT
    generate_all(rounded.store, rounded.target, "balanced")
    for one, other in zip(expected, rounded.open().samples(range(len(LENGTHS))), strict=True):
        assert_equal(one, other)
    # measured again they are the same here, and so no part was made again
    assert [part.file for part in rounded.manifest(0).parts] == before


def test_parts_of_another_calibration_are_made_again(world: World) -> None:
    rounded = stored(world, "balanced")
    before = {part.file for part in rounded.manifest(0).parts}
    name = f"{rounded.shard(0).folder}/{CALIBRATION_FILE}"
    channels = calibration.parse(rounded.store.read(name))
    rounded.store.publish(name, calibration.serialise(Channels(channels.aux * 2, channels.last)))
    with pytest.raises(Failure, match="not what the manifest names"):
        rounded.open()
    rounded.store.publish(name, calibration.serialise(Channels(channels.aux * 2, channels.last)))
    generate_all(rounded.store, rounded.target, "balanced")
    assert not before & {part.file for part in rounded.manifest(0).parts}
    assert len(rounded.open().samples([0, 1])) == 2


def test_records_are_read_ahead_within_bounds(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows fit: the third is asked for when the first has been taken; a row that is too large comes alone."""
    source = world.open()
    asked: list[int] = []

    class Watched(ThreadPoolExecutor):
        def submit(self, function: Any, stored_shard: StoredShard, row: np.void) -> Any:
            asked.append(int(row["doc_id"]))
            return super().submit(function, stored_shard, row)

    sizes = {int(row["doc_id"]): int(row["bytes"]) for shard in source.shards for row in shard.index}
    monkeypatch.setattr("draftyard_trainer.hidden_states.source.ThreadPoolExecutor", Watched)
    monkeypatch.setattr("draftyard_trainer.hidden_states.source.PREFETCH_BYTES", sizes[2] + 1)
    stream = source.stream([(0,), (2,), (4,), (7, 6, 9), (1,)])
    seen = []
    for wanted in ([0, 2], [0, 2, 4], [0, 2, 4, 7, 6, 9], [0, 2, 4, 7, 6, 9], [0, 2, 4, 7, 6, 9, 1]):
        seen.append([sample.document.doc_id for sample in next(stream)])
        assert asked == wanted
    assert seen == [[0], [2], [4], [7, 6, 9], [1]]
    assert next(stream, None) is None


def test_online_and_offline_have_the_same_head(world: World) -> None:
    online, offline = world.online(), world.open()
    assert online.target_identity == offline.target_identity
    assert online.head.config == offline.head.config
    for name in ("lm_head", "embed", "norm"):
        assert torch.equal(getattr(online.head, name), getattr(offline.head, name))


def test_what_is_available(world: World) -> None:
    asked = np.array([3, 8, 2], dtype=np.int64)
    assert world.online().available(asked).tolist() == [3, 8, 2]
    assert world.open().available(asked).tolist() == [3, 8, 2]
    # shard 1 has failed for good, and training goes on without it
    ref = StoredStatesRef(key=world.key, shards=(0,), num_shards=SHARDS)
    half = open_stored(world.store, ref, world.dataset)
    assert half.available(asked).tolist() == [8, 2]
    with pytest.raises(KeyError):
        half.samples([3])


@pytest.mark.parametrize("mode", ["Online", "Offline"])
def test_a_task_names_its_source(world: World, mode: str) -> None:
    task = TrainTask(
        run="tiny", uid="u", workspace=world.store.uri, mode=mode, target=world.target, draft=Draft(),
        aux_layers=LAYERS, prepared=PREPARED, hidden_states=world.ref if mode == "Offline" else None, train=Train(),
        publishes=True, export=Export(), fingerprint="f",
    )  # fmt: skip
    source = open_source(world.store, task, world.dataset, torch.device("cpu"))
    assert isinstance(source, OfflineSource if mode == "Offline" else OnlineSource)
    assert len(source.samples([0, 1])) == 2


# -- What is broken ----------------------------------------------------------------------------------


def part_file(world: World, number: int = 1) -> str:
    return f"{world.shard(0).folder}/{world.manifest(0).parts[number].file}"


def delete_manifest(world: World) -> None:
    world.store.delete(f"{world.shard(0).folder}/{MANIFEST}")


def garble_manifest(world: World) -> None:
    world.store.publish(f"{world.shard(0).folder}/{MANIFEST}", b"{")


def change_manifest(world: World, **changes: object) -> None:
    manifest = world.manifest(0).model_copy(update=changes)
    content = seal(manifest.model_dump_json(by_alias=True).encode())
    world.store.publish(f"{world.shard(0).folder}/{MANIFEST}", content)


def other_key(world: World) -> None:
    change_manifest(world, key="0" * 64)


def other_count(world: World) -> None:
    change_manifest(world, documents=4)


def delete_index(world: World) -> None:
    world.store.delete(f"{world.shard(0).folder}/{INDEX}")


def change_index(world: World) -> None:
    name = f"{world.shard(0).folder}/{INDEX}"
    world.store.publish(name, world.store.read(name)[::-1])


def cut_index(world: World) -> None:
    name = f"{world.shard(0).folder}/{INDEX}"
    world.store.publish(name, world.store.read(name)[:-1])


def delete_part(world: World) -> None:
    world.store.delete(part_file(world))


def cut_part(world: World) -> None:
    world.store.publish(part_file(world), world.store.read(part_file(world))[:-64])


def flip_all_records(world: World) -> None:
    for number in range(len(world.manifest(0).parts)):
        flip(world, number)


def flip(world: World, number: int) -> None:
    """Break every record of a part, so that the random one that is looked at is among them."""
    content = np.frombuffer(world.store.read(part_file(world, number)), dtype=np.uint8).copy()
    content[96::128] ^= 255
    world.store.publish(part_file(world, number), content.tobytes())


def delete_key(world: World) -> None:
    world.store.delete(f"{world.folder}/{KEY_FILE}")


def delete_head(world: World) -> None:
    world.store.delete(f"{world.folder}/{TARGET_FILE}")


def cut_head(world: World) -> None:
    name = f"{world.folder}/{TARGET_FILE}"
    world.store.publish(name, world.store.read(name)[:1000])


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        pytest.param(delete_manifest, "MANIFEST.json is missing", id="no manifest"),
        pytest.param(garble_manifest, "MANIFEST.json is missing, broken", id="a broken manifest"),
        pytest.param(other_key, "key: given", id="a manifest of another key"),
        pytest.param(other_count, "it has 4 documents", id="a manifest of other documents"),
        pytest.param(delete_index, "index.bin is missing", id="no index"),
        pytest.param(change_index, "index.bin is missing, or not", id="another index"),
        pytest.param(cut_index, "index.bin is missing, or not", id="a cut off index"),
        pytest.param(delete_part, "has None bytes, not", id="no data"),
        pytest.param(cut_part, "bytes, not", id="cut off data"),
        pytest.param(flip_all_records, "does not read back", id="rotten data"),
        pytest.param(delete_key, "key.json is missing", id="no key"),
        pytest.param(delete_head, "target.safetensors: it is missing", id="no head"),
        pytest.param(cut_head, "target.safetensors: it is broken", id="a cut off head"),
    ],
)
def test_damage_is_found_and_mended(world: World, damage: Callable[[World], None], says: str) -> None:
    expected = world.open().samples(range(len(LENGTHS)))
    damage(world)
    with pytest.raises(Failure) as caught:
        world.open()
    assert (caught.value.code, caught.value.reason) == (ExitCode.STALE_INPUT, Reason.STALE_INPUT)
    assert says in caught.value.message
    assert world.key in caught.value.message
    assert generate_all(world.store, world.target) == world.key
    for one, other in zip(expected, world.open().samples(range(len(LENGTHS))), strict=True):
        assert_equal(one, other)


def test_only_the_damaged_part_is_made_again(world: World) -> None:
    before = [part.file for part in world.manifest(0).parts]
    untouched = world.store.fetch(f"{world.shard(1).folder}/{MANIFEST}").stat().st_mtime_ns
    delete_part(world)
    with pytest.raises(Failure, match="has None bytes"):
        world.open()
    generate_all(world.store, world.target)
    after = [part.file for part in world.manifest(0).parts]
    assert [one == other for one, other in zip(before, after, strict=True)] == [
        number != 1 for number in range(len(before))
    ]
    assert world.store.fetch(f"{world.shard(1).folder}/{MANIFEST}").stat().st_mtime_ns == untouched


def test_a_record_that_rots_later_is_found_when_it_is_read(world: World) -> None:
    source = world.open()
    rows = np.frombuffer(world.store.read(f"{world.shard(0).folder}/{INDEX}"), dtype=INDEX_DTYPE)
    row = rows[rows["part"] == 1][0]
    name = part_file(world)
    content = bytearray(world.store.read(name))
    content[int(row["offset"]) + int(row["bytes"]) - 1] ^= 1
    world.store.publish(name, bytes(content))
    with pytest.raises(
        Failure, match=rf"document {row['doc_id']} at byte {row['offset']} is broken \(crc32c"
    ) as caught:
        source.samples([0, int(row["doc_id"])])
    assert caught.value.code is ExitCode.STALE_INPUT
    assert name in caught.value.message
    assert world.shard(0).manifest() is None
    assert not world.store.exists(f"{world.shard(0).folder}/part-001.json")
    assert world.store.exists(f"{world.shard(0).folder}/part-000.json")


def test_states_of_other_documents_are_refused(world: World) -> None:
    other = prepare_documents(world.store, [tiny_document(90 + number, 20) for number in range(10)], folder="other")
    with pytest.raises(Failure, match="tokensSha256: given") as caught:
        open_stored(world.store, world.ref, other)
    assert caught.value.code is ExitCode.STALE_INPUT
    assert world.shard(0).manifest() is not None


def test_a_document_that_is_stored_twice(world: World) -> None:
    """As when a shard's folder was copied by hand."""
    ref = StoredStatesRef(key=world.key, shards=(0, 0), num_shards=SHARDS)
    with pytest.raises(Failure, match="document 0 is stored twice"):
        open_stored(world.store, ref, world.dataset)
