"""The stage `generate`: what it stores, what it refuses, and that it may die at any moment."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.names import ENV_SHARD, MANIFEST, Stage, hidden_states_path, shard_path
from draftyard_api.progress import StageResult, StoredStates
from draftyard_api.reasons import Reason
from draftyard_api.spec import Target
from draftyard_api.task import GenerateTask, StoredStatesRef
from draftyard_trainer import testing
from draftyard_trainer.capturing import groups
from draftyard_trainer.data.document import Document
from draftyard_trainer.data.prepared import PreparedDataset
from draftyard_trainer.generate import generate, generate_in, shard_number, states_key
from draftyard_trainer.hidden_states.key import KEY_FILE, PROBE_FILE, TARGET_FILE, StatesKey, read_key
from draftyard_trainer.hidden_states.opening import open_stored
from draftyard_trainer.hidden_states.shard import Shard, ShardManifest
from draftyard_trainer.hidden_states.testing import (
    PREPARED,
    FailingStore,
    PulledPlugError,
    prepare_documents,
    tiny_document,
)
from draftyard_trainer.reporting import Reporter
from draftyard_trainer.storage.local import LocalStore
from draftyard_trainer.storage.sealed import seal
from draftyard_trainer.target.location import locate

POISON = 5
"""A token whose embedding is not finite in a poisoned target."""
LENGTHS = (30, 12, 41, 9, 25, 18, 33, 50, 7, 22)
PART_BYTES = 24000
"""Cuts the ten documents into three parts."""

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return testing.write_target(tmp_path_factory.mktemp("target"))


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory, target: Path) -> Path:
    """The same target, whose states are not finite wherever POISON has been read."""
    folder = shutil.copytree(target, tmp_path_factory.mktemp("poisoned"), dirs_exist_ok=True)
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][POISON] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "workspace")


def clean(document: Document, *poisoned: int) -> Document:
    """A document with POISON in front if its id is among `poisoned`, and nowhere else."""
    tokens = np.where(document.tokens == POISON, POISON + 1, document.tokens)
    tokens[0] = POISON if document.doc_id in poisoned else POISON + 1
    return Document(document.doc_id, tokens, document.spans)


def prepare(store: LocalStore, *poisoned: int, lengths: tuple[int, ...] = LENGTHS) -> PreparedDataset:
    documents = [clean(tiny_document(number, length), *poisoned) for number, length in enumerate(lengths)]
    return prepare_documents(store, documents)


def task_of(store: LocalStore, folder: Path, **changes: Any) -> GenerateTask:
    fields = {
        "run": "tiny", "uid": "u", "workspace": store.uri, "target": Target(model=f"file://{folder}"),
        "prepared": PREPARED, "aux_layers": (2, 4, 5), "codec": "none", "num_shards": 1, "shard": 0, **changes,
    }  # fmt: skip
    return GenerateTask(**fields)


def run(store: LocalStore, task: GenerateTask, part_bytes: int = PART_BYTES) -> StageResult:
    return generate_in(store, task, Reporter(Stage.GENERATE), part_bytes)


def states_of(result: StageResult) -> StoredStates:
    assert result.hidden_states is not None
    return result.hidden_states


def manifest_of(store: LocalStore, result: StageResult) -> ShardManifest:
    states = states_of(result)
    manifest = Shard(store, shard_path(states.key, states.shards, states.shard)).manifest()
    assert manifest is not None
    return manifest


def without_attempts(store: LocalStore, result: StageResult) -> dict[str, Any]:
    """The manifest apart from attempt ids and times."""
    manifest = manifest_of(store, result).model_dump()
    manifest["parts"] = [{**part, "file": part["file"].split(".")[0]} for part in manifest["parts"]]
    return {name: value for name, value in manifest.items() if name not in ("seconds", "tokens_per_second")}


# -- What it stores ----------------------------------------------------------------------------------


def test_a_shard(store: LocalStore, target: Path) -> None:
    dataset = prepare(store)
    result = run(store, task_of(store, target))
    states, manifest = states_of(result), manifest_of(store, result)
    assert (states.documents, states.tokens) == (len(LENGTHS), sum(LENGTHS))
    assert len(manifest.parts) == 3
    assert states.bytes == result.bytes == sum(part.bytes for part in manifest.parts)
    assert manifest.label_rows == dataset.manifest.counts.label_rows
    folder = hidden_states_path(states.key, 1)
    for name in (KEY_FILE, TARGET_FILE, PROBE_FILE, "users/tiny"):
        assert store.exists(f"{folder}/{name}")
    assert len(json.loads(store.read(f"{folder}/{PROBE_FILE}"))["layers"]) == 3
    source = open_stored(store, StoredStatesRef(key=states.key, shards=(0,), num_shards=1), dataset)
    assert source.available(dataset.held_out_ids).tolist() == dataset.held_out_ids.tolist()


def test_the_whole_stage(store: LocalStore, target: Path) -> None:
    """As a process calls it: parts of the usual size."""
    prepare(store)
    reporter = Reporter(Stage.GENERATE)
    result = generate(task_of(store, target), reporter)
    assert len(manifest_of(store, result).parts) == 1
    assert reporter.progress.done == reporter.progress.total == sum(LENGTHS)
    assert reporter.progress.unit == "tokens"


def test_a_second_run_changes_nothing(store: LocalStore, target: Path) -> None:
    prepare(store)
    first = run(store, task_of(store, target))
    before = {name: store.fetch(name).stat().st_mtime_ns for name in store.list("")}
    assert run(store, task_of(store, target)) == first
    assert {name: store.fetch(name).stat().st_mtime_ns for name in store.list("")} == before


def test_shards_cover_all_documents(store: LocalStore, target: Path) -> None:
    dataset = prepare(store)
    results = [run(store, task_of(store, target, num_shards=3, shard=shard)) for shard in range(3)]
    assert sum(states_of(result).documents for result in results) == len(dataset)
    assert len({states_of(result).key for result in results}) == 1
    ref = StoredStatesRef(key=states_of(results[0]).key, shards=(0, 1, 2), num_shards=3)
    source = open_stored(store, ref, dataset)
    ids = list(range(len(dataset)))
    assert [sample.document.doc_id for sample in source.samples(ids)] == ids


def test_more_shards_than_documents(store: LocalStore, target: Path) -> None:
    dataset = prepare(store, lengths=(9,))
    result = run(store, task_of(store, target, num_shards=2, shard=1))
    assert states_of(result).documents == 0
    assert manifest_of(store, result).parts == ()
    source = open_stored(store, StoredStatesRef(key=states_of(result).key, shards=(1,), num_shards=2), dataset)
    assert source.available(np.array([0])).tolist() == []


def test_another_run_shares_the_cache(store: LocalStore, target: Path) -> None:
    prepare(store)
    first = run(store, task_of(store, target))
    second = run(store, task_of(store, target, run="other", uid="v"))
    assert second == first
    folder = hidden_states_path(states_of(first).key, 1)
    assert store.list(f"{folder}/users") == [f"{folder}/users/other", f"{folder}/users/tiny"]


# -- It may die at any moment ------------------------------------------------------------------------


def test_the_plug_is_pulled_after_every_operation(tmp_path: Path, target: Path) -> None:
    """Killed after k writing operations, for every k: nothing partial is seen, and a restart gives the same shard."""
    whole = LocalStore(tmp_path / "whole")
    prepare(whole)
    expected = without_attempts(whole, run(whole, task_of(whole, target)))
    survived = 0
    while True:
        root = tmp_path / f"k{survived}"
        prepare(LocalStore(root))
        failing = FailingStore(root, survived)
        try:
            run(failing, task_of(failing, target))
        except PulledPlugError:
            assert_nothing_partial(LocalStore(root))
        else:
            break
        again = LocalStore(root)
        assert without_attempts(again, run(again, task_of(again, target))) == expected
        survived += 1
    # key, head, user, probe, 3 parts with markers, index, manifest: two moments each
    assert survived == 2 * (4 + 6 + 2)


def assert_nothing_partial(store: LocalStore) -> None:
    """Every marker names a whole data file, and there is no manifest without all parts."""
    for name in store.list("hidden-states"):
        if "/part-" in name and name.endswith(".json"):
            part = json.loads(store.read(name))
            assert store.size(f"{name.rpartition('/')[0]}/{part['file']}") == part["bytes"]
        if name.endswith(MANIFEST):
            assert len(json.loads(store.read(name))["parts"]) == 3


def test_committed_parts_are_not_made_again(store: LocalStore, target: Path) -> None:
    prepare(store)
    files = [part.file for part in manifest_of(store, run(store, task_of(store, target))).parts]
    folder = shard_path(states_of(run(store, task_of(store, target))).key, 1, 0)
    store.delete(f"{folder}/{MANIFEST}")
    store.delete(f"{folder}/part-001.json")
    reporter = Reporter(Stage.GENERATE)
    result = generate_in(store, task_of(store, target), reporter, PART_BYTES)
    again = [part.file for part in manifest_of(store, result).parts]
    assert [again[0], again[2]] == [files[0], files[2]]
    assert again[1] != files[1]
    assert not store.exists(f"{folder}/{files[1]}")
    assert reporter.progress.done == reporter.progress.total == sum(LENGTHS)


def test_a_stop_keeps_finished_parts(store: LocalStore, target: Path) -> None:
    prepare(store)

    class Impatient(Reporter):
        def advance(self, amount: int = 1) -> None:
            self.stop_requested = self.progress.done > 60
            super().advance(amount)

    with pytest.raises(Failure) as caught:
        generate_in(store, task_of(store, target), Impatient(Stage.GENERATE), PART_BYTES)
    assert caught.value.code is ExitCode.INTERRUPTED
    assert_nothing_partial(store)
    markers = [name for name in store.list("hidden-states") if "/part-" in name and name.endswith(".json")]
    assert 1 <= len(markers) < 3
    kept = store.fetch(markers[0]).stat().st_mtime_ns
    run(store, task_of(store, target))
    assert store.fetch(markers[0]).stat().st_mtime_ns == kept


class Parts(LocalStore):
    """A store that tells when the data of a part begins to be written, and when it is whole."""

    begun = whole = 0

    def before(self) -> None:
        """Called on the thread that writes."""

    @contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        if not name.endswith(".bin") or "/part-" not in name:
            with super().create(name) as file:
                yield file
            return
        self.begun += 1
        self.before()
        with super().create(name) as file:
            yield file
        self.whole += 1


def test_a_part_is_committed_while_the_next_is_captured(tmp_path: Path, target: Path) -> None:
    """The disk waits for the second part's capture, which a capture that waited for the disk would never reach."""
    went_on = threading.Event()

    class Slow(Parts):
        def before(self) -> None:
            if self.begun == 1:
                assert went_on.wait(timeout=60)

    class Watching(Reporter):
        def advance(self, amount: int = 1) -> None:
            super().advance(amount)
            if store.begun == 1 and self.progress.done > sum(LENGTHS[:4]):
                went_on.set()

    store = Slow(tmp_path / "workspace")
    dataset = prepare(store)
    result = generate_in(store, task_of(store, target), Watching(Stage.GENERATE), PART_BYTES)
    assert went_on.is_set()
    assert store.whole == len(manifest_of(store, result).parts) == 3
    source = open_stored(store, StoredStatesRef(key=states_of(result).key, shards=(0,), num_shards=1), dataset)
    ids = list(range(len(dataset)))
    assert [sample.document.doc_id for sample in source.samples(ids)] == ids


@pytest.mark.parametrize("broken", [1, 2, 3])
def test_a_part_that_cannot_be_written_ends_the_attempt(tmp_path: Path, target: Path, broken: int) -> None:
    """Even the last one, whose capture nothing follows; parts before it stay, and none after it is begun."""

    class Broken(Parts):
        def before(self) -> None:
            if self.begun == broken:
                raise Failure(ExitCode.NO_SPACE, Reason.WORKSPACE_FULL, "workspace: no space left")

    store = Broken(tmp_path / "workspace")
    prepare(store)
    with pytest.raises(Failure, match="no space left"):
        run(store, task_of(store, target))
    assert (store.begun, store.whole) == (broken, broken - 1)
    markers = [name for name in store.list("hidden-states") if "/part-" in name and name.endswith(".json")]
    assert len(markers) == broken - 1
    assert not any(name.endswith(MANIFEST) for name in store.list("hidden-states"))


def test_an_attempt_that_is_beaten_takes_the_other_ones_work(store: LocalStore, target: Path) -> None:
    """A node that came back finds, before its next part, that another pod has finished the shard."""
    prepare(store)
    winner: list[StageResult] = []

    class Overtaken(Reporter):
        def begin(self, activity: str, unit: str, total: int | None = None, done: int = 0) -> None:
            super().begin(activity, unit, total, done)
            winner.append(run(store, task_of(store, target)))

    beaten = generate_in(store, task_of(store, target), Overtaken(Stage.GENERATE), PART_BYTES)
    assert beaten == winner[0]


# -- What is not finite ------------------------------------------------------------------------------


def test_a_document_that_is_not_finite_is_skipped_and_named(store: LocalStore, poisoned: Path) -> None:
    dataset = prepare(store, 3)
    result = run(store, task_of(store, poisoned))
    manifest = manifest_of(store, result)
    assert [(skipped.doc_id, skipped.reason, skipped.layer) for skipped in manifest.skipped] == [(3, "NotFinite", "2")]
    assert manifest.documents == len(LENGTHS) - 1
    source = open_stored(store, StoredStatesRef(key=states_of(result).key, shards=(0,), num_shards=1), dataset)
    assert source.available(np.arange(10)).tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9]


def test_too_many_of_them_give_the_shard_up(store: LocalStore, poisoned: Path) -> None:
    prepare(store, 3, 6)
    with pytest.raises(Failure, match="2 of 10 documents") as caught:
        run(store, task_of(store, poisoned))
    assert (caught.value.code, caught.value.reason) == (ExitCode.BAD_SHARD, Reason.SHARDS_FAILED)
    assert not any(name.endswith(MANIFEST) for name in store.list("hidden-states"))


def test_a_whole_batch_of_them_ends_the_run(store: LocalStore, poisoned: Path) -> None:
    # the longest document is clean, or the probe would end it first
    prepare(store, 0, 1, 2, 3, 4)
    with pytest.raises(Failure, match=r"target\.dtype: given bfloat16; all states of \d documents") as caught:
        run(store, task_of(store, poisoned))
    assert (caught.value.code, caught.value.reason) == (ExitCode.BAD_DATA, Reason.DATA_REJECTED)


def test_the_probe_finds_a_target_that_is_not_finite(store: LocalStore, poisoned: Path) -> None:
    prepare(store, 7)
    with pytest.raises(Failure, match="not finite") as caught:
        run(store, task_of(store, poisoned))
    assert caught.value.code is ExitCode.UNSUPPORTED
    assert not any(PROBE_FILE in name or "/part-" in name for name in store.list("hidden-states"))


# -- What it refuses ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "code", "says"),
    [
        pytest.param({"prepared": "gone"}, ExitCode.STALE_INPUT, "prepare", id="no prepared documents"),
        pytest.param({"target": Target(model="file:///gone")}, ExitCode.NOT_FOUND, "target.model", id="no target"),
        pytest.param({"aux_layers": (2, 4, 8)}, ExitCode.UNSUPPORTED, "given 8; accepted: 1 to 7", id="no such layer"),
        pytest.param({"shard": 5}, ExitCode.BAD_TASK, "given 5; accepted: 0 to 0", id="no such shard"),
    ],
)
def test_refusals(store: LocalStore, target: Path, changes: dict[str, Any], code: ExitCode, says: str) -> None:
    prepare(store)
    with pytest.raises(Failure) as caught:
        run(store, task_of(store, target, **changes))
    assert caught.value.code is code
    assert says in caught.value.message
    assert not any("/part-" in name for name in store.list(""))


def test_a_workspace_that_the_next_part_does_not_fit_into(tmp_path: Path, target: Path) -> None:
    class Full(LocalStore):
        def free_bytes(self) -> int:
            return 30000

    store = Full(tmp_path)
    prepare(store)
    with pytest.raises(Failure, match=r"workspace: .*30000 bytes free") as caught:
        run(store, task_of(store, target))
    assert (caught.value.code, caught.value.reason) == (ExitCode.NO_SPACE, Reason.WORKSPACE_FULL)


@pytest.mark.parametrize(
    ("given", "environment", "expected"),
    [
        pytest.param(None, "3", 3, id="the pod's completion index"),
        pytest.param(2, None, 2, id="the task"),
        pytest.param(2, "3", 2, id="the task, before the environment"),
        pytest.param(None, None, None, id="neither"),
        pytest.param(None, "x", None, id="no number"),
        pytest.param(None, "4", None, id="too large"),
    ],
)
def test_the_shards_number(
    monkeypatch: pytest.MonkeyPatch, given: int | None, environment: str | None, expected: int | None
) -> None:
    monkeypatch.delenv(ENV_SHARD, raising=False)
    if environment is not None:
        monkeypatch.setenv(ENV_SHARD, environment)
    task = task_of(LocalStore(Path("/tmp")), Path("/tmp"), shard=given, num_shards=4)  # noqa: S108  never touched
    if expected is None:
        with pytest.raises(Failure, match="accepted: 0 to 3") as caught:
            shard_number(task)
        assert caught.value.code is ExitCode.BAD_TASK
    else:
        assert shard_number(task) == expected


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [([], []), ([5000, 10], [1, 1]), ([1000, 1000, 48], [3]), ([1000, 1000, 49], [2, 1])],
)
def test_groups(lengths: list[int], expected: list[int]) -> None:
    documents = [tiny_document(number, length) for number, length in enumerate(lengths)]
    found = list(groups(documents, torch.device("cpu")))
    assert [len(group) for group in found] == expected
    assert [document for group in found for document in group] == documents


# -- The key -----------------------------------------------------------------------------------------


def key_of(store: LocalStore, folder: Path, **changes: Any) -> StatesKey:
    task = task_of(store, folder, **changes)
    return states_key(task, locate(task.target), PreparedDataset.open(store, task.prepared))


def test_the_key_is_named_by_its_content(store: LocalStore, target: Path) -> None:
    prepare(store)
    key = key_of(store, target)
    assert key == key_of(store, target, run="other", uid="v", num_shards=7)
    assert len(key.name()) == 16
    assert key.sha256().startswith(key.name())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("target", "0" * 40), ("dtype", "float16"), ("quantisation", "fp8"), ("logit_scale", "0.5"),
        ("soft_cap", "30.0"), ("tokenizer_sha256", "5" * 64), ("template_sha256", "5" * 64),
        ("template_kwargs", {"enable_thinking": False}), ("tokens_sha256", "5" * 64), ("aux_layers", (2, 3, 5)),
        ("last", "pre-norm"), ("codec", "lossless"), ("codec_version", 9), ("calibration", (1,)),
        ("record_version", 9), ("engine", "vllm 1"), ("attention", "eager"), ("compute_dtype", "bfloat16"),
    ],
)  # fmt: skip
def test_every_field_changes_the_key(store: LocalStore, target: Path, field: str, value: Any) -> None:
    prepare(store)
    key = key_of(store, target)
    assert key.model_copy(update={field: value}).name() != key.name()
    assert set(StatesKey.model_fields) == {
        "target", "dtype", "quantisation", "logit_scale", "soft_cap", "tokenizer_sha256", "template_sha256",
        "template_kwargs", "tokens_sha256", "aux_layers", "last", "codec", "codec_version", "calibration",
        "record_version", "engine", "attention", "compute_dtype",
    }  # fmt: skip


def other_data(store: LocalStore, target: Path) -> StatesKey:
    prepare(store, lengths=LENGTHS[:-1])
    return key_of(store, target)


def other_dtype(store: LocalStore, target: Path) -> StatesKey:
    return key_of(store, target, target=Target(model=f"file://{target}", dtype="float16"))


def other_layers(store: LocalStore, target: Path) -> StatesKey:
    return key_of(store, target, aux_layers=(2, 3, 5))


@pytest.mark.parametrize("change", [other_data, other_dtype, other_layers])
def test_what_the_user_changes_changes_the_key(
    store: LocalStore, target: Path, change: Callable[[LocalStore, Path], StatesKey]
) -> None:
    prepare(store)
    before = key_of(store, target)
    assert change(store, target).name() != before.name()


def test_fine_tuned_weights_change_the_key(store: LocalStore, target: Path, poisoned: Path) -> None:
    prepare(store)
    assert key_of(store, target).name() != key_of(store, poisoned).name()


def test_a_cache_of_another_content_is_refused(store: LocalStore, target: Path) -> None:
    prepare(store)
    states = states_of(run(store, task_of(store, target)))
    folder = hidden_states_path(states.key, 1)
    key = read_key(store, folder)
    assert key is not None
    changed = key.model_copy(update={"dtype": "float16", "aux_layers": (2, 3, 5)})
    store.publish(f"{folder}/{KEY_FILE}", seal(changed.model_dump_json(by_alias=True).encode()))
    with pytest.raises(Failure, match=r"dtype: given 'bfloat16'; the cache has 'float16'; aux_layers") as caught:
        run(store, task_of(store, target))
    assert caught.value.code is ExitCode.STALE_INPUT
