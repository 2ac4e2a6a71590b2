"""Every flipped byte of every stored file is found, and none gives a reader another row than was written.

Small files are flipped at every byte, large ones at every byte of their headers and at a seeded sample of the rest.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from draftyard_api.exit_codes import Failure
from draftyard_api.names import MANIFEST, Stage, hidden_states_path, prepared_path
from draftyard_api.spec import Target
from draftyard_api.task import GenerateTask, StoredStatesRef
from draftyard_trainer import inspection, inventory, testing, verify
from draftyard_trainer.data.prepared import PreparedDataset
from draftyard_trainer.generate import generate_in
from draftyard_trainer.hidden_states.key import KEY_FILE, PROBE_FILE, TARGET_FILE, USERS
from draftyard_trainer.hidden_states.opening import open_stored
from draftyard_trainer.hidden_states.sample import Sample
from draftyard_trainer.hidden_states.shard import INDEX_DTYPE, Shard, StoredPart
from draftyard_trainer.hidden_states.testing import PREPARED, assert_equal, prepare_documents, tiny_document
from draftyard_trainer.reporting import Reporter
from draftyard_trainer.storage.local import LocalStore
from draftyard_trainer.storage.sealed import ZEROS, seal, unseal, write_tensors

torch.set_num_threads(1)
SHARDS = 2
LENGTHS = (9, 7, 12, 6, 11, 8)
SMALL = 2048
"""Files up to this size are flipped at every byte."""
SAMPLED = 200
"""Bytes of a larger file that are flipped, apart from its header."""
READ_EVERY = 4
"""One flip in so many is also read through, which takes longer than looking for it."""
READ = {KEY_FILE, TARGET_FILE, *(f"shard-00000/{name}" for name in (MANIFEST, "index.bin", "calibration.safetensors"))}
"""Files that a reader reads whole; of parts it reads records, and the bytes between them are nobody's."""


@dataclass(frozen=True)
class Stored:
    """A finished cache, its bytes, and what a reader finds in it."""

    store: LocalStore
    dataset: PreparedDataset
    folder: str
    ref: StoredStatesRef
    content: dict[str, bytes]
    samples: list[Sample]

    def findings(self) -> list[str]:
        """Names of the files that `draftyard verify` calls broken."""
        store = self.store
        found = verify.check_all(store, inventory.prepared_folders(store), inventory.caches(store), [])
        return [each.name for each in found if isinstance(each, verify.Finding)]

    def restore(self) -> None:
        """As it was: readers take back what they find broken."""
        for name, content in self.content.items():
            path = self.store.root / name
            if not path.exists() or path.read_bytes() != content:
                path.write_bytes(content)

    @contextmanager
    def with_files(self, files: dict[str, bytes]) -> Iterator[None]:
        """With other content in some files."""
        try:
            for name, content in files.items():
                (self.store.root / name).write_bytes(content)
            yield
        finally:
            self.restore()

    def flipped(self, name: str, places: Iterator[int], seed: int = 0) -> Iterator[int]:
        """Flip some bits of one byte after another."""
        masks = np.random.default_rng(seed).integers(1, 256, len(self.content[name]))
        for place in places:
            broken = bytearray(self.content[name])
            broken[place] ^= int(masks[place])
            (self.store.root / name).write_bytes(broken)
            yield place
        self.restore()


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    """Two shards of `balanced` states, one with two parts: every kind of file there is."""
    folder = tmp_path_factory.mktemp("stored")
    target = Target(model=f"file://{testing.write_target(folder / 'target')}")
    store = LocalStore(folder / "workspace")
    dataset = prepare_documents(store, [tiny_document(number, length) for number, length in enumerate(LENGTHS)])
    for shard in range(SHARDS):
        task = GenerateTask(
            run="tiny", uid="u", workspace=store.uri, target=target, prepared=PREPARED, aux_layers=(2, 4, 5),
            codec="balanced", num_shards=SHARDS, shard=shard,
        )  # fmt: skip
        states = generate_in(store, task, Reporter(Stage.GENERATE), 4000).hidden_states
        assert states is not None
    ref = StoredStatesRef(key=states.key, shards=tuple(range(SHARDS)), num_shards=SHARDS)
    samples = open_stored(store, ref, dataset).samples(range(len(LENGTHS)))
    names = (*store.list("prepare"), *store.list("hidden-states"))
    content = {name: store.read(name) for name in names}
    return Stored(store, dataset, hidden_states_path(states.key, SHARDS), ref, content, samples)


def all_files() -> list[str]:
    """Below the cache, of one shard of two; the name of a data file without its attempt, which is random."""
    shared = [KEY_FILE, TARGET_FILE, PROBE_FILE, "calibration.safetensors"]
    own = [MANIFEST, "index.bin", "calibration.safetensors", "part-000.json", "part-000.bin"]
    return [*shared, *(f"shard-00000/{name}" for name in own)]


def resolve(stored: Stored, file: str) -> str:
    """The object behind a name of `all_files`."""
    folder, _, name = f"{stored.folder}/{file}".rpartition("/")
    if name != "part-000.bin":
        return f"{folder}/{name}"
    return next(each for each in stored.content if each.startswith(f"{folder}/part-000.") and each.endswith(".bin"))


def places(content: bytes, seed: int = 0) -> list[int]:
    """All of a small file; of a larger one its header, as safetensors has it, and a sample."""
    if len(content) <= SMALL:
        return list(range(len(content)))
    header = min(8 + int.from_bytes(content[:8], "little"), SMALL)
    rest = np.random.default_rng(seed).choice(len(content), SAMPLED, replace=False)
    return sorted({*range(header), *rest.tolist()})


def test_nothing_is_left_out(stored: Stored) -> None:
    """Every file of the cache is in the list, apart from further parts and shards, which are like the first."""
    assert not stored.findings()
    names = {name for name in stored.content if name.startswith(f"{stored.folder}/")}
    others = names - {resolve(stored, file) for file in all_files()}
    mark = f"{stored.folder}/{USERS}/tiny"
    # a mark is empty: there is no byte to flip
    assert stored.content[mark] == b""
    further = {name for name in others if "/shard-00001/" in name or "/shard-00000/part-001." in name}
    assert further
    assert others == further | {mark}


@pytest.mark.parametrize("file", all_files())
def test_every_flipped_byte_of_a_cache_is_found(stored: Stored, file: str) -> None:
    name = resolve(stored, file)
    chosen = places(stored.content[name])
    for place in stored.flipped(name, iter(chosen)):
        assert name in stored.findings(), f"byte {place} of {len(stored.content[name])}"


@pytest.mark.parametrize("file", all_files())
def test_no_flipped_byte_gives_another_row(stored: Stored, file: str) -> None:
    """A reader refuses, or what was flipped is nothing that it reads: then every bit of every sample is as it was."""
    name = resolve(stored, file)
    chosen = places(stored.content[name], seed=1)[::READ_EVERY]
    refused = []
    for _ in stored.flipped(name, iter(chosen), seed=1):
        try:
            source = open_stored(stored.store, stored.ref, stored.dataset)
            samples = source.samples(range(len(LENGTHS)))
        except Failure as failure:
            refused.append(failure.message)
            stored.restore()
            continue
        for one, other in zip(samples, stored.samples, strict=True):
            assert_equal(one, other)
    assert all(stored.ref.key in message for message in refused)
    if file in READ:
        assert len(refused) == len(chosen)
    elif not file.endswith(".bin"):
        assert not refused


@pytest.mark.parametrize("file", ["tokens.bin", "spans.bin", "vocabulary.bin", "index.bin", MANIFEST])
def test_every_flipped_byte_of_prepared_documents_is_found(stored: Stored, file: str) -> None:
    name = f"{prepared_path(PREPARED)}/{file}"
    for place in stored.flipped(name, iter(places(stored.content[name]))):
        assert {prepared_path(PREPARED), name} & set(stored.findings()), f"byte {place}"


# -- What a writer with a fault would leave: checksums fit, values do not ------------------------------

ODD = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 20), st.sampled_from([2**31, 2**32, 2**63, 2**64, 10**30, -(2**63)]),
    st.floats(), st.text(max_size=8), st.sampled_from(["../../x", "part-000.00000000.bin", "float16", "\0"]),
    st.lists(st.integers(0, 3), max_size=3), st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)  # fmt: skip


def changed(document: Any, draw: Callable[[st.SearchStrategy[Any]], Any]) -> Any:
    """The same with another value, or without it, somewhere."""
    if isinstance(document, dict) and document:
        field = draw(st.sampled_from(sorted(document)))
        if draw(st.integers(0, 9)) == 0:
            return {name: value for name, value in document.items() if name != field}
        return {**document, field: changed(document[field], draw)}
    if isinstance(document, list) and document and draw(st.booleans()):
        place = draw(st.integers(0, len(document) - 1))
        return [*document[:place], changed(document[place], draw), *document[place + 1 :]]
    return draw(ODD)


def require_refusal_or_the_same(stored: Stored) -> None:
    """A reader, a person who looks, and one who checks: an error in words, or all as it was written."""
    try:
        samples = open_stored(stored.store, stored.ref, stored.dataset).samples(range(len(LENGTHS)))
    except Failure:
        stored_findings(stored)
        return
    for one, other in zip(samples, stored.samples, strict=True):
        assert_equal(one, other)
    stored_findings(stored)


def stored_findings(stored: Stored) -> None:
    """Nothing that lies there makes `inspect` or `verify` fall over."""
    stored.findings()
    inspection.inspect(stored.store, Console(file=io.StringIO()))


@pytest.mark.parametrize("file", [KEY_FILE, PROBE_FILE, f"shard-00000/{MANIFEST}", "shard-00000/part-000.json"])
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_documents_that_say_something_else(stored: Stored, file: str, data: st.DataObject) -> None:
    name = resolve(stored, file)
    document = json.loads(unseal(stored.content[name]))
    with stored.with_files({name: seal(json.dumps(changed(document, data.draw)).encode())}):
        part = Shard(stored.store, f"{stored.folder}/shard-00000").part(0)
        assert part is None or StoredPart.of(part).index.dtype == INDEX_DTYPE
        require_refusal_or_the_same(stored)


@pytest.mark.parametrize("deep", [b'{"a":' * 100_000, b"[" * 100_000, b'{"key": 1e999}', b'{"key": "\xff"}'])
def test_documents_that_are_hard_to_read(stored: Stored, deep: bytes) -> None:
    for file in (KEY_FILE, PROBE_FILE, f"shard-00000/{MANIFEST}", "shard-00000/part-000.json"):
        for content in (deep, seal(deep)):
            with stored.with_files({resolve(stored, file): content}):
                require_refusal_or_the_same(stored)


@given(st.dictionaries(st.integers(0, 3 * INDEX_DTYPE.itemsize - 1), st.integers(0, 255), min_size=1, max_size=8))
@settings(max_examples=150, deadline=None)
def test_an_index_that_says_something_else(stored: Stored, edits: dict[int, int]) -> None:
    """Its hash is in the manifest, as if it had been written so."""
    folder = f"{stored.folder}/shard-00000"
    index = bytearray(stored.content[f"{folder}/index.bin"])
    for place, value in edits.items():
        index[place] = value
    manifest = json.loads(unseal(stored.content[f"{folder}/{MANIFEST}"]))
    manifest["indexSha256"] = hashlib.sha256(index).hexdigest()
    said = seal(json.dumps(manifest).encode())
    with stored.with_files({f"{folder}/index.bin": bytes(index), f"{folder}/{MANIFEST}": said}):
        require_refusal_or_the_same(stored)


@pytest.mark.parametrize("file", [TARGET_FILE, "shard-00000/calibration.safetensors"])
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_tensors_that_say_something_else(stored: Stored, file: str, data: st.DataObject) -> None:
    """Another header over the same values, with a checksum and a hash that fit."""
    name = resolve(stored, file)
    content = stored.content[name]
    end = 8 + int.from_bytes(content[:8], "little")
    header = changed(json.loads(content[8:end]), data.draw)
    if isinstance(header, dict) and isinstance(header.get("__metadata__"), dict):
        header["__metadata__"]["crc32c"] = ZEROS
    text = json.dumps(header, separators=(",", ":")).encode()
    sink = io.BytesIO(len(text).to_bytes(8, "little") + text + content[end:])
    with suppress(ValueError):
        whole, sink = sink.getvalue(), io.BytesIO()
        write_tensors(whole, sink)
    folder = f"{stored.folder}/shard-00000"
    manifest = json.loads(unseal(stored.content[f"{folder}/{MANIFEST}"]))
    if file != TARGET_FILE:
        manifest["calibrationSha256"] = hashlib.sha256(sink.getvalue()).hexdigest()
    said = seal(json.dumps(manifest).encode())
    with stored.with_files({name: sink.getvalue(), f"{folder}/{MANIFEST}": said}):
        require_refusal_or_the_same(stored)
