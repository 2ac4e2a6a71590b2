"""A training on other numbers of processes, at the start or from attempt to attempt: the same rows, one draft."""

from __future__ import annotations

import itertools
import signal
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from attempts import (
    SUPERVISED,
    UNDISTURBED,
    assert_nearly_undisturbed,
    kill_tree,
    results_of_pair,
    start,
    wait_for_checkpoints,
    wait_for_step,
)
from test_order import scalar_mix

from draftyard_api.exit_codes import ExitCode
from draftyard_trainer.data.prepared import PreparedDataset

FOUR_ROWS = {"tokens_per_batch": 512, "epochs": 2}
"""A step has four rows of 128 tokens: one process takes four micro-batches, two take two, four take one."""
SECONDS = 240


def hash_of(doc_ids: Any) -> int:
    """The sum that the curve tells, made again on Python's integers."""
    return sum(scalar_mix(int(doc_id)) >> 32 for doc_id in doc_ids)


def row_log(workshop, run: str) -> list[list[Any]]:
    fields = ("step", "rows", "documents", "documentHash", "tokens")
    return [[line[field] for field in fields] for line in workshop.metrics(run)]


def assert_every_row_once(workshop, run: str) -> None:
    """The row log of all attempts together: in each epoch rows without a gap, and each document once."""
    train_ids = PreparedDataset.open(workshop.store, workshop.prepared.prepared).train_ids
    by_epoch = defaultdict(list)
    for line in workshop.metrics(run):
        by_epoch[line["rows"][0]].append(line)
    assert sorted(by_epoch) == [0, 1]
    for lines in by_epoch.values():
        cuts = [0, *(line["rows"][2] for line in lines)]
        assert [line["rows"][1:] for line in lines] == [list(pair) for pair in itertools.pairwise(cuts)]
        assert sum(line["documents"] for line in lines) == len(train_ids)
        assert sum(line["documentHash"] for line in lines) == hash_of(train_ids)


@pytest.fixture(scope="module")
def in_fours(workshop) -> str:
    """A training of one process with four micro-batches in a step."""
    workshop.train(workshop.task("fours", **FOUR_ROWS))
    return "fours"


def test_the_row_log_of_an_undisturbed_training_is_that_of_the_plan(workshop, in_fours):
    assert_every_row_once(workshop, in_fours)
    train_ids = np.asarray(PreparedDataset.open(workshop.store, workshop.prepared.prepared).train_ids)
    assert hash_of(train_ids[1:]) != hash_of(train_ids), "the log would not notice a lost document"


@pytest.mark.parametrize("processes", [2, 4], ids=["2 processes of 2 micro-batches", "4 processes of 1"])
def test_any_number_of_processes_makes_the_same_draft(workshop, in_fours, tmp_path, processes):
    run = f"fours-{processes}"
    started = start(workshop.task(run, gpus_per_node=processes, **FOUR_ROWS), tmp_path, SUPERVISED)
    assert started.wait(timeout=SECONDS) == ExitCode.OK, (tmp_path / "log.txt").read_text()
    assert_nearly_undisturbed(workshop, run, in_fours)
    assert_every_row_once(workshop, run)
    assert row_log(workshop, run) == row_log(workshop, in_fours)


def test_from_two_to_three_to_one_process_every_row_is_taken_once(workshop, undisturbed, tmp_path):
    """Two are stopped, three are killed, and one goes on to the end."""
    run = "shrinking"
    two = start(workshop.task(run, gpus_per_node=2), tmp_path / "two", SUPERVISED)
    wait_for_checkpoints(workshop, run, two, count=2)
    two.send_signal(signal.SIGTERM)
    assert two.wait(timeout=SECONDS) == ExitCode.INTERRUPTED, (tmp_path / "two" / "log.txt").read_text()
    assert [result.exit_code for result in results_of_pair(tmp_path / "two")] == [ExitCode.INTERRUPTED] * 2
    first = workshop.steps(run)[-1]
    three = start(workshop.task(run, gpus_per_node=3), tmp_path / "three", SUPERVISED)
    wait_for_step(workshop, run, three, first + 1)
    kill_tree(three)
    second = workshop.steps(run)[-1]
    assert 0 < first < second < undisturbed.trained.steps
    workshop.train(workshop.task(run))
    assert_every_row_once(workshop, run)
    assert_nearly_undisturbed(workshop, run)
    assert row_log(workshop, run) == row_log(workshop, UNDISTURBED)
