"""Hidden states go when their run has published its draft, and stay while another run uses them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.names import Stage, hidden_states_path
from draftyard_api.progress import StageResult
from draftyard_api.task import CacheRef, TrainTask
from draftyard_trainer.hidden_states.key import USERS
from draftyard_trainer.hidden_states.reclaiming import reclaim
from draftyard_trainer.storage.local import LocalStore

RUN, OTHER = "reclaiming", "another"
PUBLISHED = StageResult(stage=Stage.TRAIN, message="exported step 8 of 8", published="file:///data/export/reclaiming")


@pytest.fixture
def shop(workshop, tmp_path):
    """What was prepared, and the states, in a workspace of this test."""
    store = LocalStore(tmp_path / "workspace")
    workshop.upload(store)
    for name in store.list(f"{folder_of(workshop)}/{USERS}"):
        store.delete(name)
    store.publish(f"{folder_of(workshop)}/{USERS}/{RUN}", b"")
    return replace(workshop, store=store)


def folder_of(shop) -> str:
    return hidden_states_path(shop.states.key, shop.states.num_shards)


def asking(shop, **changes) -> TrainTask:
    """A short training from stored states that removes them at its end."""
    ref = CacheRef(key=shop.states.key, num_shards=shop.states.num_shards)
    return shop.task(RUN, "Offline", epochs=1, **changes).model_copy(update={"reclaims": ref})


def test_a_training_that_publishes_removes_its_states_and_nothing_else(shop):
    result = shop.train(asking(shop))
    assert result.states_reclaimed is True
    assert shop.store.list("hidden-states") == []
    assert shop.store.list("prepare")
    assert shop.published(RUN).exists()
    assert shop.train(asking(shop)).states_reclaimed is True, "its work is found again without them"


def test_a_training_that_was_cut_short_after_it_published_removes_them_the_next_time(shop):
    task = asking(shop)
    assert shop.train(task.model_copy(update={"reclaims": None})).states_reclaimed is None
    assert shop.store.list(folder_of(shop))
    assert shop.train(task).states_reclaimed is True
    assert shop.store.list("hidden-states") == []


def test_states_that_another_run_uses_stay_until_that_one_has_done_with_them(shop):
    shop.store.publish(f"{folder_of(shop)}/{USERS}/{OTHER}", b"")
    before = shop.store.list(folder_of(shop))
    task = asking(shop)
    told = reclaim(shop.store, task, PUBLISHED)
    assert told.states_reclaimed is False
    assert told.message == "exported step 8 of 8; hidden states are kept: used by another"
    assert shop.store.list(folder_of(shop)) == [name for name in before if name != f"{folder_of(shop)}/{USERS}/{RUN}"]
    other = reclaim(shop.store, task.model_copy(update={"run": OTHER}), PUBLISHED)
    assert (other.states_reclaimed, shop.store.list("hidden-states")) == (True, [])


def test_a_draft_that_is_not_published_keeps_its_states(shop):
    unpublished = PUBLISHED.model_copy(update={"published": None})
    assert reclaim(shop.store, asking(shop), unpublished) == unpublished
    assert shop.store.exists(f"{folder_of(shop)}/{USERS}/{RUN}")


def test_another_cut_of_the_same_states_stays(shop):
    other = f"{hidden_states_path(shop.states.key, 5)}/key.json"
    shop.store.publish(other, b"{}")
    assert reclaim(shop.store, asking(shop), PUBLISHED).states_reclaimed is True
    assert shop.store.list("hidden-states") == [other]


def test_a_run_that_takes_them_while_they_go_makes_them_again(shop):
    """It has looked at complete shards, and says so only when they are gone: its training asks for generate."""
    reclaim(shop.store, asking(shop), PUBLISHED)
    shop.store.publish(f"{folder_of(shop)}/{USERS}/{OTHER}", b"")
    with pytest.raises(Failure, match="generate has to run again") as caught:
        shop.train(shop.task(OTHER, "Offline"))
    assert caught.value.code == ExitCode.STALE_INPUT


def test_only_the_leading_process_removes_what_a_finished_training_no_longer_needs(shop, monkeypatch):
    shop.train(asking(shop).model_copy(update={"reclaims": None}))
    monkeypatch.setenv("RANK", "1")
    assert shop.train(asking(shop)).states_reclaimed is None
    assert isinstance(shop.path(folder_of(shop)), Path)
    assert shop.store.list(folder_of(shop))
