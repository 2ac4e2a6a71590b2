"""One writer per run: whoever comes last has it, and the one before notices before it publishes anything."""

from __future__ import annotations

import json

import pytest

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.names import FENCE, train_path
from draftyard_api.reasons import Reason
from draftyard_api.spec import Evaluate, Export, Target
from draftyard_api.task import EvaluateTask
from draftyard_trainer.fence import Fence
from draftyard_trainer.storage.local import LocalStore

RUN = "tiny"
NAME = f"{train_path(RUN)}/{FENCE}"


def build_task(run: str = RUN, attempt: int = 1) -> EvaluateTask:
    return EvaluateTask(
        run=run, uid="u1", attempt=attempt, workspace="file:///w", target=Target(model="a/b"), prepared="p",
        evaluate=Evaluate(), export=Export(), fingerprint="f",
    )  # fmt: skip


@pytest.fixture
def store(tmp_path) -> LocalStore:
    return LocalStore(tmp_path)


def test_who_takes_a_run_may_write(store):
    fence = Fence.take(store, build_task(attempt=3))
    fence.check()
    fence.check()
    said = json.loads(store.read(NAME))
    assert (said["uid"], said["attempt"]) == ("u1", 3)


@pytest.mark.parametrize("attempt", [1, 2], ids=["the same attempt, as when a pod is replaced", "the next attempt"])
def test_the_last_one_has_it(store, attempt):
    former = Fence.take(store, build_task())
    latter = Fence.take(store, build_task(attempt=attempt))
    latter.check()
    with pytest.raises(Failure, match="another process has taken this run over") as caught:
        former.check()
    assert (caught.value.code, caught.value.reason) == (ExitCode.FENCED, Reason.FENCED)
    assert caught.value.code == 81
    assert NAME in caught.value.message


def test_a_removed_workspace_is_nobodys(store):
    fence = Fence.take(store, build_task())
    store.delete(NAME)
    with pytest.raises(Failure) as caught:
        fence.check()
    assert caught.value.code == ExitCode.FENCED


def test_runs_do_not_fence_one_another(store):
    one, other = Fence.take(store, build_task()), Fence.take(store, build_task(run="other"))
    one.check()
    other.check()
    assert one.token != other.token
