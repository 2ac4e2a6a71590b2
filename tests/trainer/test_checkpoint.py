"""Checkpoints are whole or not there, are of this very training, and go in an order that a crash cannot spoil."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.names import MANIFEST, checkpoint_path, train_path
from draftyard_api.reasons import Reason
from draftyard_api.spec import Evaluate, Export, Target, Train
from draftyard_api.task import EvaluateTask
from draftyard_trainer import checkpoint
from draftyard_trainer.checkpoint import ADAM, FORMAT, SUMS, WEIGHTS, CheckpointManifest, Found, Identity, Score
from draftyard_trainer.draft.model import DraftModel
from draftyard_trainer.draft.testing import tiny_config, tiny_draft
from draftyard_trainer.fence import Fence
from draftyard_trainer.optim import Optimizer
from draftyard_trainer.storage.local import LocalStore

RUN = "tiny"
IDENTITY = Identity(
    plan_hash="p" * 64, rows="epochs=2 seed=42", conventions="tttSteps=7", vocabulary_sha256="v" * 64, draft="d=64",
    source="online", fingerprint="f",
)  # fmt: skip
FILES = (WEIGHTS, ADAM, MANIFEST)


def take_fence(store: LocalStore) -> Fence:
    task = EvaluateTask(
        run=RUN, uid="u", workspace=store.uri, target=Target(model="a/b"), prepared="p", evaluate=Evaluate(),
        export=Export(), fingerprint="f",
    )  # fmt: skip
    return Fence.take(store, task)


def build_manifest(step: int, scores: Sequence[Score] = ()) -> CheckpointManifest:
    return CheckpointManifest(
        step=step, total_steps=100, epoch=1, next_row=3, tokens_seen=step * 64, identity=IDENTITY, skipped=2,
        clipped=3, skipped_in_a_row=1, last_loss="1.2500", scores=tuple(scores), files={},
    )  # fmt: skip


def build_optimizer(draft: DraftModel) -> Optimizer:
    return Optimizer(draft.trained_parameters(), Train(learning_rate=0.01), total_steps=100)


def take_step(draft: DraftModel, optimizer: Optimizer, index: int) -> None:
    """An update from gradients that depend on the step alone."""
    generator = torch.Generator().manual_seed(index)
    for parameter in draft.trained_parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    optimizer.collect()
    optimizer.step(index)


class Training:
    """A draft, its optimizer and its store: saves checkpoints at chosen steps."""

    def __init__(self, root: Path, dtype: torch.dtype = torch.float32) -> None:
        self.store = LocalStore(root)
        self.fence = take_fence(self.store)
        self.draft = tiny_draft().to(dtype)
        self.optimizer = build_optimizer(self.draft)
        self.step = 0

    def train(self, steps: int) -> None:
        for _ in range(steps):
            take_step(self.draft, self.optimizer, self.step)
            self.step += 1

    def save(self, scores: Sequence[Score] = ()) -> None:
        self.write(self.store, self.fence, scores)

    def write(self, store: LocalStore, fence: Fence, scores: Sequence[Score] = ()) -> None:
        manifest = build_manifest(self.step, scores)
        checkpoint.write(store, fence, RUN, checkpoint.take_snapshot(self.draft, self.optimizer, manifest))

    def save_at(self, *steps: int) -> None:
        for step in steps:
            self.train(step - self.step)
            self.save()

    def file(self, step: int, name: str) -> Path:
        return self.store.root / checkpoint_path(RUN, step) / name

    def newest(self) -> Found | None:
        return checkpoint.newest(self.store, RUN, IDENTITY)

    def newest_step(self) -> int | None:
        found = self.newest()
        return None if found is None else found.manifest.step


@pytest.fixture
def training(tmp_path) -> Training:
    return Training(tmp_path)


# -- Round trip -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_resumed_training_goes_on_bit_equal(tmp_path, dtype):
    training = Training(tmp_path, dtype)
    training.train(5)
    training.save()
    found = training.newest()
    training.train(4)
    assert found is not None
    assert found.manifest.model_copy(update={"files": {}}) == build_manifest(5)
    assert all(tensor.dtype == torch.float32 for name, tensor in found.weights.items() if name not in ("d2t", "t2d"))

    draft = tiny_draft(seed=9).to(dtype)
    optimizer = build_optimizer(draft)
    checkpoint.resume(found, draft, optimizer)
    assert (optimizer.skipped, optimizer.clipped, optimizer.skipped_in_a_row) == (2, 3, 1)
    for index in range(5, 9):
        take_step(draft, optimizer, index)
    state, wanted = draft.state_dict(), training.draft.state_dict()
    assert sorted(state) == sorted(wanted)
    assert [name for name in wanted if not torch.equal(state[name], wanted[name])] == []
    assert all(torch.equal(*pair) for pair in zip(optimizer.masters, training.optimizer.masters, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_snapshot_stands_still_while_the_training_goes_on(tmp_path, dtype):
    """And the next one is made in its memory, with the values of its own time."""
    training = Training(tmp_path, dtype)
    training.train(3)
    snapshot = checkpoint.take_snapshot(training.draft, training.optimizer, build_manifest(3))
    wanted = {name: tensor.clone() for name, tensor in (snapshot.weights | snapshot.moments).items()}
    training.train(2)
    held = snapshot.weights | snapshot.moments
    assert [name for name, tensor in wanted.items() if not torch.equal(held[name], tensor)] == []
    checkpoint.write(training.store, training.fence, RUN, snapshot)
    again = checkpoint.take_snapshot(training.draft, training.optimizer, build_manifest(5), snapshot)
    fresh = checkpoint.take_snapshot(training.draft, training.optimizer, build_manifest(5))
    assert again.manifest.step == 5
    for part in ("weights", "moments"):
        reused, new, old = (getattr(each, part) for each in (again, fresh, snapshot))
        assert [name for name in new if not torch.equal(reused[name], new[name])] == []
        assert [name for name in new if reused[name].data_ptr() != old[name].data_ptr()] == []
    found = training.newest()
    assert found is not None
    assert [name for name, tensor in wanted.items() if not torch.equal(found_tensors(found)[name], tensor)] == []


def found_tensors(found: Found) -> dict[str, torch.Tensor]:
    return found.weights | found.moments


def test_a_checkpoint_is_three_files_and_the_manifest_names_the_others(training):
    training.save_at(7)
    folder = checkpoint_path(RUN, 7)
    assert folder == f"{train_path(RUN)}/step-00000007"
    assert training.store.list(folder) == sorted(f"{folder}/{name}" for name in FILES)
    manifest = json.loads(training.store.read(f"{folder}/{MANIFEST}"))
    assert sorted(manifest["files"]) == sorted([WEIGHTS, ADAM])
    assert (manifest["step"], manifest["nextRow"], manifest["lastLoss"]) == (7, 3, "1.2500")


def test_without_checkpoints_there_is_none(training):
    assert training.newest() is None
    assert checkpoint.steps_of(training.store, RUN) == []


def test_the_newest_is_taken_by_number(training):
    training.save_at(2, 9, 10)
    # Neither by name nor by time.
    training.step = 3
    training.save()
    assert checkpoint.steps_of(training.store, RUN) == [2, 3, 9, 10]
    assert training.newest_step() == 10


def test_a_step_is_saved_again_in_place(training):
    training.save_at(4)
    scored = [Score(step=4, tau_sim=1.5, per_position=(0.5,), documents=3)]
    training.save(scored)
    found = training.newest()
    assert found is not None
    assert found.manifest.scores == tuple(scored)
    assert checkpoint.steps_of(training.store, RUN) == [4]


@pytest.mark.parametrize(
    ("lengths", "best"),
    [((1.2, 1.9, 1.5), 2), ((1.5, 1.5, 1.4), 1), ((1.0,), 1), ((), None)],
    ids=["the highest", "the earliest of equals", "the only one", "none"],
)
def test_the_best_is_the_highest_acceptance(lengths, best):
    scores = [
        Score(step=step, tau_sim=length, per_position=(), documents=1) for step, length in enumerate(lengths, start=1)
    ]
    found = build_manifest(9, scores).best
    assert (None if found is None else found.step) == best


# -- Damage -----------------------------------------------------------------------------------


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "cut by a byte": truncate, "emptied": empty, "a byte flipped": flip, "gone": Path.unlink,
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_checkpoint_is_passed_over_for_an_older_one(training, name, damage):
    training.save_at(2, 4)
    damage(training.file(4, name))
    assert training.newest_step() == 2
    damage(training.file(2, name))
    assert training.newest_step() is None


def test_a_manifest_that_names_too_few_files_is_none(training):
    training.save_at(2)
    path = training.file(2, MANIFEST)
    content = json.loads(path.read_text())
    del content["files"][ADAM]
    path.write_text(json.dumps(content))
    assert training.newest_step() is None


def test_a_missing_tensor_is_an_error_and_never_a_fresh_start(training):
    training.save_at(2)
    found = training.newest()
    assert found is not None
    del found.moments["exp_avg_sq.norm.weight"]
    with pytest.raises(Failure, match=r"step 2: tensor 'exp_avg_sq\.norm\.weight' is missing") as caught:
        checkpoint.resume(found, training.draft, training.optimizer)
    assert caught.value.code == ExitCode.STALE_INPUT


# -- Of another training ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields", [*([name] for name in Identity.model_fields), list(Identity.model_fields)], ids="+".join
)
def test_another_trainings_checkpoint_is_refused_naming_what_differs(training, fields):
    training.save_at(2)
    wanted = IDENTITY.model_copy(update=dict.fromkeys(fields, "other"))
    with pytest.raises(Failure, match="belongs to another training") as caught:
        checkpoint.newest(training.store, RUN, wanted)
    assert (caught.value.code, caught.value.reason) == (ExitCode.EXISTS, Reason.OUTPUT_EXISTS)
    named = [
        name for name in Identity.model_fields if f"{name}: given other; the checkpoint has" in caught.value.message
    ]
    assert named == ([name for name in fields if name not in SUMS] or fields)


def test_a_refusal_shows_what_differs_and_not_the_rest(training):
    training.save_at(2)
    wanted = IDENTITY.model_copy(update={"rows": "epochs=2 seed=7", "plan_hash": "q" * 64})
    with pytest.raises(Failure) as caught:
        checkpoint.newest(training.store, RUN, wanted)
    assert "(rows: given seed=7; the checkpoint has seed=42);" in caught.value.message


def test_a_checkpoint_of_another_version_is_neither_read_nor_lost(training):
    training.save_at(2, 4)
    path = training.file(4, MANIFEST)
    content = json.loads(path.read_text())
    path.write_text(json.dumps({"format": FORMAT + 1, "progress": content["step"]}))
    with pytest.raises(Failure, match=rf"given format {FORMAT + 1}; accepted: {FORMAT}") as caught:
        training.newest()
    assert (caught.value.code, caught.value.reason) == (ExitCode.EXISTS, Reason.OUTPUT_EXISTS)
    assert checkpoint.steps_of(training.store, RUN) == [2, 4]


@pytest.mark.parametrize("content", [b"[]", b"{}", b"7", b"{", b"\xff"], ids=repr)
def test_a_manifest_that_is_none_is_no_other_version(training, content):
    training.save_at(2, 4)
    training.file(4, MANIFEST).write_bytes(content)
    assert training.newest_step() == 2


def test_drafts_of_another_architecture_have_another_identity():
    configs = [tiny_config(), tiny_config(aux_layers=(1, 3, 5)), tiny_config(rms_norm_eps=1e-6)]
    identities = [checkpoint.draft_identity(tiny_draft(config)) for config in configs]
    assert len(set(identities)) == 3
    assert checkpoint.draft_identity(tiny_draft(seed=5)) == identities[0]


# -- Pruning ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keep_last", "keep", "left"),
    [
        pytest.param(3, [], [6, 8, 10], id="the last ones"),
        pytest.param(2, [4], [4, 8, 10], id="and the best"),
        pytest.param(2, [10], [8, 10], id="the best is among the last"),
        pytest.param(9, [], [2, 4, 6, 8, 10], id="fewer than allowed"),
        pytest.param(1, [2], [2, 10], id="one, and the best"),
    ],
)
def test_the_last_and_the_best_are_kept(training, keep_last, keep, left):
    training.save_at(2, 4, 6, 8, 10)
    checkpoint.prune(training.store, RUN, 10, keep_last, keep)
    assert checkpoint.steps_of(training.store, RUN) == left
    folders = sorted(path.name for path in (training.store.root / train_path(RUN)).glob("step-*"))
    assert folders == [f"step-{step:08d}" for step in left]


def test_broken_checkpoints_of_later_steps_do_not_push_out_whole_ones(training):
    training.save_at(2, 4, 8)
    truncate(training.file(8, WEIGHTS))
    training.step = 5
    training.save()
    checkpoint.prune(training.store, RUN, 5, 1, [])
    assert checkpoint.folders_of(training.store, RUN) == [5]
    assert training.newest_step() == 5


class RecordingStore(LocalStore):
    """Remembers what was removed."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.removed: list[str] = []

    def delete(self, name: str) -> None:
        self.removed.append(name)
        super().delete(name)

    def delete_folder(self, name: str) -> None:
        self.removed.append(name)
        super().delete_folder(name)


def test_of_each_the_manifest_goes_first(training):
    training.save_at(2, 4, 6)
    store = RecordingStore(training.store.root)
    checkpoint.prune(store, RUN, 6, 1, [])
    assert store.removed == [
        name for step in (2, 4) for name in (f"{checkpoint_path(RUN, step)}/{MANIFEST}", checkpoint_path(RUN, step))
    ]


def test_what_a_cut_off_removal_left_is_removed(training):
    training.save_at(2, 4)
    training.file(2, MANIFEST).unlink()
    assert training.newest_step() == 4
    checkpoint.prune(training.store, RUN, 4, 3, [2])
    assert checkpoint.steps_of(training.store, RUN) == [4]


# -- Crashes ----------------------------------------------------------------------------------


class CrashError(Exception):
    """The process is gone."""


class FaultyStore(LocalStore):
    """Dies before operation number `fatal`; a folder counts when begun, when filled, and when it is there."""

    def __init__(self, root: Path, fatal: int) -> None:
        super().__init__(root)
        self.fatal = fatal
        self.done = 0

    def _operate(self) -> None:
        if self.done == self.fatal:
            raise CrashError
        self.done += 1

    def exists(self, name: str) -> bool:
        self._operate()
        return super().exists(name)

    def read(self, name: str) -> bytes:
        self._operate()
        return super().read(name)

    def list(self, prefix: str) -> list[str]:
        self._operate()
        return super().list(prefix)

    @contextmanager
    def create_folder(self, name: str) -> Iterator[Path]:
        self._operate()
        with super().create_folder(name) as folder:
            yield folder
            assert (folder / MANIFEST).exists(), "published without its manifest"
            self._operate()
        self._operate()

    def delete(self, name: str) -> None:
        self._operate()
        super().delete(name)
        self._operate()

    def delete_folder(self, name: str) -> None:
        self._operate()
        super().delete_folder(name)


def save_and_prune(training: Training, store: LocalStore) -> None:
    fence = Fence(store, training.fence.name, training.fence.token)
    training.write(store, fence)
    checkpoint.prune(store, RUN, training.step, 2, [2])


def count_operations(root: Path) -> int:
    training = Training(root)
    training.save_at(2, 4, 6, 7)
    training.train(1)
    store = FaultyStore(root, fatal=-1)
    save_and_prune(training, store)
    return store.done


def test_a_crash_leaves_the_old_checkpoint_or_the_new_one(tmp_path):
    total = count_operations(tmp_path / "whole")
    assert total > 12
    outcomes = []
    for fatal in range(total):
        training = Training(tmp_path / str(fatal))
        training.save_at(2, 4, 6, 7)
        old = {name: tensor.clone() for name, tensor in training.draft.state_dict().items()}
        training.train(1)
        with pytest.raises(CrashError):
            save_and_prune(training, FaultyStore(training.store.root, fatal))
        found = training.newest()
        assert found is not None
        wanted = old if found.manifest.step == 7 else training.draft.state_dict()
        assert [name for name in wanted if not torch.equal(found.weights[name], wanted[name])] == []
        assert 2 in checkpoint.steps_of(training.store, RUN), "the best is gone"
        outcomes.append(found.manifest.step)
        # The next start trains the step again, if need be, and ends where an undisturbed one ends.
        save_and_prune(training, training.store)
        assert checkpoint.folders_of(training.store, RUN) == [2, 7, 8]
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {7, 8}


@pytest.mark.parametrize("is_there", [False, True], ids=["a new step", "a step that is there"])
def test_who_has_lost_the_run_writes_nothing(training, is_there):
    training.save_at(2, 4)
    if not is_there:
        training.train(1)
    before = {path: path.read_bytes() for path in training.store.root.rglob("*") if path.is_file()}
    successor = take_fence(training.store)
    with pytest.raises(Failure, match="another process") as caught:
        training.save([Score(step=1, tau_sim=2.0, per_position=(), documents=1)])
    assert caught.value.code == ExitCode.FENCED == 81
    before[training.store.root / successor.name] = successor.token
    assert {path: path.read_bytes() for path in training.store.root.rglob("*") if path.is_file()} == before


class RivalStore(LocalStore):
    """Another process takes the run over while a folder is being filled."""

    @contextmanager
    def create_folder(self, name: str) -> Iterator[Path]:
        with super().create_folder(name) as folder:
            take_fence(LocalStore(self.root))
            yield folder


def test_the_fence_is_looked_at_again_before_the_rename(training):
    training.save_at(2)
    training.train(1)
    store = RivalStore(training.store.root)
    fence = Fence(store, training.fence.name, training.fence.token)
    with pytest.raises(Failure) as caught:
        training.write(store, fence)
    assert caught.value.code == ExitCode.FENCED
    assert checkpoint.folders_of(training.store, RUN) == [2]
