"""SIGKILL before every single file operation of a publish: a reader finds the old or the new, never what is between.

Run as a program, this file forks a child for each operation; the child publishes, and is killed before that operation.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from test_checkpoint import RUN, Training, save_and_prune
from test_export import NAME, export

from draftyard_trainer import checkpoint
from draftyard_trainer.checkpoint import Score
from draftyard_trainer.export import open_export
from draftyard_trainer.storage.local import ASIDE, LocalStore

OPERATIONS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")
"""What Python tells an audit hook of; names of files are in nothing else."""
MAX_OPERATIONS = 400
LONG_AGO = 1_000_000_000
SCORES = [Score(step=7, tau_sim=1.5, per_position=(0.5,), documents=3)]


@dataclass(frozen=True)
class Scene:
    """Something to publish over what is there, and what a reader makes of it."""

    publish: Callable[[], None]
    read: Callable[[], str]
    """`old` or `new`; raises AssertionError for anything else."""


# -- What is published ----------------------------------------------------------------------------


def new_checkpoint(root: Path) -> Scene:
    """Step 8 where there are 2, 4, 6 and 7, of which two and the best stay."""
    training = Training(root)
    training.save_at(2, 4, 6, 7)
    old = {name: tensor.clone() for name, tensor in training.draft.state_dict().items()}
    training.train(1)

    def read() -> str:
        found = training.newest()
        assert found is not None
        assert 2 in checkpoint.steps_of(training.store, RUN), "the best is gone"
        is_old = found.manifest.step == 7
        assert_equal(found.weights, old if is_old else training.draft.state_dict())
        return "old" if is_old else "new"

    return Scene(lambda: save_and_prune(training, training.store), read)


def checkpoint_again(root: Path) -> Scene:
    """Step 7 once more, with the score that a stop had left no time for; it is the only one."""
    training = Training(root)
    training.save_at(7)

    def read() -> str:
        found = training.newest()
        assert found is not None
        assert_equal(found.weights, training.draft.state_dict())
        return "new" if found.manifest.scores == tuple(SCORES) else "old"

    return Scene(lambda: training.save(SCORES), read)


def new_export(root: Path) -> Scene:
    """Another draft over one that is published."""
    store = LocalStore(root)
    digests = {name: export(LocalStore(root / name), seed=seed) for name, seed in (("old", 0), ("new", 1))}
    assert export(store, seed=0) == digests["old"]

    def read() -> str:
        found = open_export(store, RUN, "f1")
        (is_it,) = (name for name, digest in digests.items() if digest == found.manifest_sha256)
        return is_it

    return Scene(lambda: write_export(store, 1), read)


def first_export(root: Path) -> Scene:
    """Where there is none, the old is that there is none."""
    store = LocalStore(root)

    def read() -> str:
        if not store.list(NAME):
            return "old"
        open_export(store, RUN, "f1")
        return "new"

    return Scene(lambda: write_export(store, 1), read)


def write_export(store: LocalStore, seed: int) -> None:
    export(store, seed=seed)


def assert_equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert [name for name, tensor in wanted.items() if not torch.equal(found[name], tensor)] == []


SCENES: dict[str, Callable[[Path], Scene]] = {
    "a checkpoint, and the removal of old ones": new_checkpoint,
    "a checkpoint in the place of the only one": checkpoint_again,
    "an export over another one": new_export,
    "the first export": first_export,
}


# -- Where the writer dies ------------------------------------------------------------------------


def kill_before(operation: int, root: Path) -> None:
    """From now on: SIGKILL for this process before file operation number `operation` below a folder."""
    done = 0

    def watch(event: str, given: tuple[Any, ...]) -> None:
        nonlocal done
        if event not in OPERATIONS or isinstance(given[0], int):
            return
        # a tree is removed by names inside of its folders
        path = os.fsdecode(given[0])
        if not path.startswith("/") or path.startswith(str(root)):
            if done == operation:
                os.kill(os.getpid(), signal.SIGKILL)
            done += 1

    sys.addaudithook(watch)


def publish_and_die(scene: Scene, operation: int, root: Path) -> bool:
    """Publish in a child that is killed before an operation. Returns whether it was."""
    child = os.fork()
    if not child:
        kill_before(operation, root)
        scene.publish()
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code != 0


def play(name: str, folder: Path) -> list[str]:
    """What a reader finds after a death before each operation, in order."""
    seen = []
    for operation in range(MAX_OPERATIONS):
        root = folder / str(operation)
        scene = SCENES[name](root)
        assert scene.read() == "old"
        if not publish_and_die(scene, operation, root):
            assert scene.read() == "new"
            return seen
        seen.append(scene.read())
        # the next attempt ends as an undisturbed one, and nothing of the dead one stays
        for path in root.rglob("*"):
            os.utime(path, (LONG_AGO, LONG_AGO))
        scene.publish()
        assert scene.read() == "new"
        LocalStore(root).sweep("")
        assert [str(path) for path in root.rglob("*") if ASIDE.search(path.name)] == []
    raise AssertionError(f"more than {MAX_OPERATIONS} operations")


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> dict[str, list[str]]:
    """A program of its own: a test process has threads, and must not be forked."""
    folder = tmp_path_factory.mktemp("kill-points")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, __file__, str(folder)], env=environment, check=True, timeout=500)
    found: dict[str, list[str]] = json.loads((folder / "seen.json").read_text())
    return found


@pytest.mark.parametrize("scene", SCENES)
def test_a_reader_finds_the_old_or_the_new_wherever_the_writer_dies(seen, scene):
    outcomes = seen[scene]
    assert len(outcomes) > 10
    assert set(outcomes) == {"old", "new"}
    assert outcomes == sorted(outcomes, key=["old", "new"].index), "once it is the new one, it stays the new one"


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    seen = {}
    for number, name in enumerate(SCENES):
        seen[name] = play(name, folder / str(number))
    (folder / "seen.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
