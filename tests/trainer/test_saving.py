"""The training goes on while it is saved: one write at a time, in the right order, and a failure is found out."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from test_checkpoint import RUN, Training, build_manifest, take_fence
from test_journal import line

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.names import FENCE, METRICS, train_path
from draftyard_api.reasons import Reason
from draftyard_api.spec import Checkpoint, Draft, Export, Target, Train
from draftyard_api.task import TrainTask
from draftyard_trainer import checkpoint
from draftyard_trainer.fence import Fence
from draftyard_trainer.journal import Journal
from draftyard_trainer.saving import Saver
from draftyard_trainer.storage.local import LocalStore

SECONDS = 20


class SlowStore(LocalStore):
    """Waits inside every write until it is let go, and remembers what was done, in order."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.go = threading.Event()
        self.go.set()
        self.begun = threading.Event()
        self.done: list[str] = []
        self.threads: set[int] = set()

    def _wait(self) -> None:
        self.threads.add(threading.get_ident())
        self.begun.set()
        assert self.go.wait(SECONDS)

    def publish(self, name: str, data: bytes) -> None:
        self._wait()
        super().publish(name, data)
        self.done.append(Path(name).name)

    @contextmanager
    def create_folder(self, name: str) -> Iterator[Path]:
        self._wait()
        with super().create_folder(name) as folder:
            yield folder
        self.done.append(Path(name).name)

    def delete_folder(self, name: str) -> None:
        super().delete_folder(name)
        self.done.append(f"removed {Path(name).name}")


class Saving:
    """A training with a saver on a slow store."""

    def __init__(self, root: Path, keep_last: int = 3) -> None:
        self.training = Training(root)
        self.store = SlowStore(root)
        self.fence = Fence(self.store, self.training.fence.name, self.training.fence.token)
        task = TrainTask(
            run=RUN, uid="u", workspace=self.store.uri, mode="Online", target=Target(model="a/b"), draft=Draft(),
            aux_layers=(1, 2, 3), prepared="p", train=Train(checkpoint=Checkpoint(keep_last=keep_last)),
            publishes=True, export=Export(), fingerprint="f",
        )  # fmt: skip
        self.saver = Saver(self.fence, task, Journal.open(self.fence, RUN, 0))

    def save(self) -> None:
        self.saver.save(self.training.draft, self.training.optimizer, build_manifest(self.training.step))

    def step(self) -> None:
        self.training.train(1)
        self.saver.add(line(self.training.step))


@pytest.fixture
def saving(tmp_path) -> Iterator[Saving]:
    made = Saving(tmp_path)
    yield made
    made.store.go.set()
    made.saver.wait()


def lines_of(saving: Saving) -> int:
    return len(saving.store.read(f"{train_path(RUN)}/{METRICS}").splitlines())


def test_steps_are_taken_while_a_checkpoint_is_written(saving):
    saving.training.train(2)
    wanted = {name: tensor.clone() for name, tensor in saving.training.draft.state_dict().items()}
    saving.store.go.clear()
    saving.save()
    assert saving.store.begun.wait(SECONDS)
    for _ in range(3):
        saving.step()
    assert saving.training.newest() is None
    assert saving.saver.failure is None, "it goes on: nothing is known yet"
    saving.store.go.set()
    saving.saver.wait()
    assert saving.saver.failure is None
    found = saving.training.newest()
    assert found is not None
    assert found.manifest.step == 2
    assert [name for name, tensor in wanted.items() if not torch.equal(found.weights[name], tensor)] == []
    assert threading.get_ident() not in saving.store.threads


def test_the_curve_comes_first_then_the_checkpoint_then_what_goes(tmp_path):
    saving = Saving(tmp_path, keep_last=1)
    for _ in range(2):
        for _ in range(2):
            saving.training.train(1)
            saving.saver.journal.add(line(saving.training.step))
        saving.saver.wait()
        saving.save()
    saving.saver.wait()
    assert saving.store.done == [METRICS, "step-00000002", METRICS, "step-00000004", "removed step-00000002"]
    assert lines_of(saving) == 4


def test_the_curve_of_a_save_ends_at_its_step(saving):
    """Also when steps are taken before the thread comes to it."""
    saving.saver.journal.add(line(1))
    saving.training.train(1)
    saving.store.go.clear()
    saving.save()
    saving.step()
    saving.store.go.set()
    saving.saver.wait()
    assert lines_of(saving) == 1


def test_lines_begin_no_second_write(saving):
    """The curve is due at once; while something is written it waits."""
    saving.store.go.clear()
    saving.step()
    assert saving.store.begun.wait(SECONDS)
    for _ in range(5):
        saving.step()
    saving.store.go.set()
    saving.saver.wait()
    assert saving.store.done == [METRICS]
    assert lines_of(saving) == 1


def disk_is_full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "no space left on device")


FAILURES = {
    "a full disk": (disk_is_full, ExitCode.NO_SPACE, Reason.WORKSPACE_FULL),
    "storage that is gone": (
        lambda *_, **__: (_ for _ in ()).throw(
            Failure(ExitCode.UNAVAILABLE, Reason.STORAGE_UNAVAILABLE, "out of reach")
        ),
        ExitCode.UNAVAILABLE,
        Reason.STORAGE_UNAVAILABLE,
    ),
    "a bug": (lambda *_, **__: {}["lm_head"], ExitCode.ERROR, Reason.POD_FAILED),
}


@pytest.mark.parametrize(("fail", "code", "reason"), FAILURES.values(), ids=FAILURES.keys())
def test_a_failed_write_is_told_and_the_older_checkpoint_stays(saving, monkeypatch, fail, code, reason):
    saving.training.train(2)
    saving.save()
    saving.saver.wait()
    saving.training.train(2)
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save_file", fail)
        saving.save()
        saving.saver.wait()
    assert saving.saver.failure is not None
    assert (saving.saver.failure.code, saving.saver.failure.reason) == (code, reason)
    assert saving.training.newest_step() == 2
    assert not list(saving.store.root.rglob("*.tmp-*"))


def test_after_a_failure_no_line_begins_a_write(saving, monkeypatch):
    """It would be forgotten: only the last write is asked how it went."""
    monkeypatch.setattr(checkpoint, "save_file", disk_is_full)
    saving.training.train(2)
    saving.save()
    saving.saver.wait()
    saving.saver.journal._written = float("-inf")
    saving.step()
    assert saving.saver.failure is not None
    assert saving.saver.failure.code == ExitCode.NO_SPACE


def test_a_run_that_was_taken_over_is_not_written_to(saving):
    take_fence(LocalStore(saving.store.root))
    saving.training.train(1)
    saving.save()
    saving.saver.wait()
    assert saving.saver.failure is not None
    assert saving.saver.failure.code == ExitCode.FENCED
    assert saving.store.list(train_path(RUN)) == [f"{train_path(RUN)}/{FENCE}"]
