"""The stage `train`, end to end on a tiny target: killed, stopped, started again, alone and in pairs."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from attempts import (
    IN_PAIRS,
    SUPERVISED,
    assert_ends_as_undisturbed,
    assert_nearly_undisturbed,
    results_of_pair,
    scores_of,
    start,
    wait_for_checkpoints,
)
from safetensors.torch import load_file

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.names import FENCE, METRICS, RESULT_FILE, Stage, export_path, train_path
from draftyard_api.progress import StageResult
from draftyard_api.reasons import Reason
from draftyard_api.spec import Checkpoint
from draftyard_trainer.checkpoint import ADAM, WEIGHTS
from draftyard_trainer.data.prepared import PreparedDataset
from draftyard_trainer.fence import Fence
from draftyard_trainer.hidden_states.opening import open_stored
from draftyard_trainer.hidden_states.source import OfflineSource
from draftyard_trainer.order import RowPlan
from draftyard_trainer.parallel import World
from draftyard_trainer.reporting import Reporter
from draftyard_trainer.train import Run, build_trainer


def files_of(workshop, name: str) -> dict[Path, tuple[int, bytes]]:
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes()) for path in workshop.path(name).rglob("*") if path.is_file()
    }


# -- A whole training -------------------------------------------------------------------------


def test_a_training_exports_and_publishes_and_says_so(workshop, undisturbed):
    assert undisturbed.exit_code == ExitCode.OK
    assert workshop.published("undisturbed").exists()
    assert undisturbed.published == f"file://{workshop.path(export_path('undisturbed'))}"
    trained = undisturbed.trained
    assert trained is not None
    assert trained.steps == workshop.prepared.counts.steps == len(workshop.metrics("undisturbed"))
    assert trained.acceptance is not None
    assert (trained.acceptance.source, trained.acceptance.draft_tokens) == ("Simulated", 3)
    assert trained.acceptance.prompts == workshop.prepared.counts.held_out_documents
    assert all(bool(torch.isfinite(tensor.float()).all()) for tensor in workshop.tensors("undisturbed").values())


def test_the_curve_tells_every_step(workshop, undisturbed):
    curve = workshop.metrics("undisturbed")
    first, last = curve[0], curve[-1]
    assert all(math.isfinite(line["loss"]) and line["gradNorm"] > 0 for line in curve)
    assert [len(first[name]) for name in ("accuracy", "prefixAccuracy", "divergence", "acceptance")] == [3] * 4
    assert sum(line["tokens"] for line in curve) == 2 * workshop.prepared.counts.train_tokens
    assert last["learningRate"] < 0.01 * first["learningRate"]
    # Cross-entropies of batches differ in their floor: the divergence shows that something was learned.
    start_divergence = sum(line["divergence"][0] for line in curve[:6])
    assert sum(line["divergence"][0] for line in curve[-6:]) < 0.97 * start_divergence
    assert {line["epoch"] for line in curve} == {0, 1, 2}


def test_checkpoints_that_stay_are_the_last_ones_and_the_best(workshop, undisturbed):
    total, best = undisturbed.trained.steps, undisturbed.trained.best_step
    last = json.loads(workshop.checkpoint("undisturbed", total).read_text())
    scored = [score["step"] for score in last["scores"]]
    epoch_end = next(line["step"] for line in workshop.metrics("undisturbed") if line["epoch"] == 1)
    assert scored == sorted({*range(4, total + 1, 4), epoch_end, total})
    assert workshop.steps("undisturbed") == sorted({*scored[-3:], best})
    assert (last["epoch"], last["nextRow"], last["totalSteps"]) == (2, 0, total)


def test_a_checkpoint_says_what_it_is_a_state_of(workshop, undisturbed):
    last = json.loads(workshop.checkpoint("undisturbed", undisturbed.trained.steps).read_text())
    assert last["identity"]["rows"] == "epochs=2 rowTokens=128 seed=42 tokensPerBatch=256"
    conventions = "decay=0.8 lossMaskAlignment=runtime objective=kl outOfVocab=mask tttSteps=3"
    assert last["identity"]["conventions"] == conventions


def test_the_curve_is_on_the_disk_before_the_checkpoint_that_it_leads_to(workshop, undisturbed):
    """A run that is killed in between drops lines that are too many; missing ones would be a hole for ever."""
    metrics = workshop.path(f"{train_path('undisturbed')}/{METRICS}")
    last = workshop.checkpoint("undisturbed", undisturbed.trained.steps)
    assert metrics.stat().st_mtime_ns <= last.stat().st_mtime_ns


def test_with_an_evaluate_stage_nothing_is_published(workshop):
    result = workshop.train(workshop.task("judged", publishes=False, epochs=1))
    assert result.published is None
    assert workshop.model("judged").exists()
    assert not workshop.published("judged").exists()


def test_a_finished_training_is_not_touched_again(workshop, undisturbed):
    before = {**files_of(workshop, train_path("undisturbed")), **files_of(workshop, export_path("undisturbed"))}
    again = workshop.train(workshop.task("undisturbed"))
    after = {**files_of(workshop, train_path("undisturbed")), **files_of(workshop, export_path("undisturbed"))}
    assert again == undisturbed
    assert after == before


def test_a_finished_training_whose_export_is_gone_exports_again(workshop):
    task = workshop.task("lost", epochs=1)
    first = workshop.train(task)
    model = workshop.model("lost").read_bytes()
    metrics = workshop.metrics("lost")
    workshop.store.delete_folder(export_path("lost"))
    again = workshop.train(task)
    assert workshop.model("lost").read_bytes() == model
    assert again.trained == first.trained
    assert workshop.metrics("lost") == metrics
    assert workshop.published("lost").exists()


def test_rows_are_not_packed_again_in_every_step(workshop, monkeypatch):
    """A quarter of a second per 100,000 documents: nothing once per epoch, and too much twice per step."""
    asked: list[int] = []
    rows = RowPlan.rows
    monkeypatch.setattr(RowPlan, "rows", lambda plan, epoch: asked.append(epoch) or rows(plan, epoch))
    task = workshop.task("packed", epochs=1)
    task = task.model_copy(update={"train": task.train.model_copy(update={"checkpoint": Checkpoint(every_steps=1000)})})
    assert workshop.train(task).trained.steps == 18
    assert len(asked) <= 4


# -- Online and offline -----------------------------------------------------------------------


def test_stored_states_train_like_fresh_ones(workshop, undisturbed):
    workshop.train(workshop.task("stored", mode="Offline"))
    pairs = list(zip(workshop.metrics("stored"), workshop.metrics("undisturbed"), strict=True))
    assert len(pairs) > 20
    for stored, fresh in pairs:
        assert stored["loss"] == pytest.approx(fresh["loss"], rel=1e-5)
        assert (stored["step"], stored["tokens"]) == (fresh["step"], fresh["tokens"])
    assert workshop.manifest("stored")["hiddenStatesKey"] == workshop.states.key
    assert "hiddenStatesKey" not in workshop.manifest("undisturbed")


# -- Killed, stopped, started again -----------------------------------------------------------


def test_a_killed_training_goes_on_and_ends_alike(workshop, undisturbed, tmp_path):
    task = workshop.task("killed")
    process = start(task, tmp_path)
    wait_for_checkpoints(workshop, "killed", process, count=2)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not workshop.model("killed").exists()
    at = workshop.steps("killed")[-1]
    assert 4 < at < undisturbed.trained.steps
    reporter = Reporter(Stage.TRAIN)
    resumed = workshop.train(task, reporter)
    assert resumed.resumed_from_step == reporter.progress.resumed_from_step == at
    assert undisturbed.resumed_from_step is None
    assert_ends_as_undisturbed(workshop, "killed", resumed, undisturbed)


def test_a_stopped_training_saves_goes_on_and_ends_alike(workshop, undisturbed, tmp_path):
    task = workshop.task("stopped")
    process = start(task, tmp_path)
    wait_for_checkpoints(workshop, "stopped", process, count=1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == ExitCode.INTERRUPTED == 75
    left = StageResult.model_validate_json((tmp_path / RESULT_FILE).read_bytes())
    assert (left.exit_code, left.reason) == (75, Reason.INTERRUPTED)
    # Everything up to the stop is kept: the curve ends where the checkpoint is.
    assert [line["step"] for line in workshop.metrics("stopped")][-1] == workshop.steps("stopped")[-1]
    assert_ends_as_undisturbed(workshop, "stopped", workshop.train(task), undisturbed)


@pytest.mark.parametrize("stops", [(4,), (18,), (1, 7, 8, 36)], ids=lambda steps: f"at {steps}")
def test_a_stop_at_any_step_changes_nothing(workshop, undisturbed, stops):
    """At a checkpoint; at the end of an epoch; several times, between checkpoints and behind the last step."""
    run = f"stops-{'-'.join(map(str, stops))}"
    assert undisturbed.trained.steps == 36, "the cases are made for 36 steps in two equal epochs"
    for step in stops:
        with pytest.raises(Failure) as caught:
            workshop.train(workshop.task(run), workshop.stopping_at(step))
        assert (caught.value.code, caught.value.reason) == (ExitCode.INTERRUPTED, Reason.INTERRUPTED)
        assert workshop.steps(run)[-1] == step
        assert not workshop.model(run).exists()
    assert_ends_as_undisturbed(workshop, run, workshop.train(workshop.task(run)), undisturbed)


def test_a_torn_checkpoint_costs_a_few_steps_and_nothing_else(workshop, undisturbed):
    run = "torn"
    with pytest.raises(Failure):
        workshop.train(workshop.task(run), workshop.stopping_at(10))
    assert workshop.steps(run) == [4, 8, 10]
    path = workshop.checkpoint(run, 10).with_name(ADAM)
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    assert_ends_as_undisturbed(workshop, run, workshop.train(workshop.task(run)), undisturbed)


def test_what_a_killed_save_left_is_removed(workshop):
    """A stop saves at a step that no later run saves at: nobody would write that name again."""
    run = "littered"
    with pytest.raises(Failure):
        workshop.train(workshop.task(run), workshop.stopping_at(2))
    litter = workshop.path(f"{train_path(run)}/step-00000003.tmp-0123abcd")
    litter.mkdir()
    (litter / WEIGHTS).write_bytes(b"half")
    an_hour_ago = time.time() - 3601
    os.utime(litter, (an_hour_ago, an_hour_ago))
    with pytest.raises(Failure):
        workshop.train(workshop.task(run), workshop.stopping_at(5))
    assert not litter.exists()
    assert workshop.steps(run) == [2, 4, 5]


class StoppedWhileScoring(Reporter):
    """Is asked to stop when the first score is there."""

    def __init__(self) -> None:
        super().__init__(Stage.TRAIN)

    def update(self, **fields: int | str | None) -> None:
        super().update(**fields)
        self.stop_requested = self.stop_requested or "acceptance" in fields


def test_a_stop_while_scoring_costs_no_further_step(workshop):
    with pytest.raises(Failure) as caught:
        workshop.train(workshop.task("scoring"), StoppedWhileScoring())
    assert caught.value.code == ExitCode.INTERRUPTED
    assert workshop.steps("scoring") == [4]
    assert [score["step"] for score in scores_of(workshop, "scoring")] == [4]


def test_the_best_checkpoint_is_exported_and_not_the_last(workshop):
    run, task = "best", workshop.task("best")
    with pytest.raises(Failure):
        workshop.train(task, workshop.stopping_at(10))
    newest = workshop.checkpoint(run, 10)
    manifest = json.loads(newest.read_text())
    assert [score["step"] for score in manifest["scores"]] == [4, 8]
    # No tiny draft comes near this acceptance length: step 8 stays the best to the end.
    manifest["scores"][1]["tauSim"] = 3.75
    newest.write_text(json.dumps(manifest))
    weights = load_file(workshop.checkpoint(run, 8).with_name(WEIGHTS))
    result = workshop.train(task)
    assert (result.trained.best_step, result.trained.acceptance.length) == (8, "3.75")
    assert 8 in workshop.steps(run), "the best was pruned"
    exported = workshop.manifest(run)
    assert exported["checkpoint"]["step"] == 8
    assert exported["metrics"]["tau_sim"] == "3.7500"
    tensors = workshop.tensors(run)
    assert sorted(tensors) == sorted(weights)
    different = [name for name, tensor in tensors.items() if not torch.equal(tensor, weights[name].to(tensor.dtype))]
    assert different == []


class StoresNoHeldOut(OfflineSource):
    """Stored states in which the held-out documents, a hundredth of all, happen to be those that were skipped."""

    def available(self, doc_ids):
        return np.setdiff1d(super().available(doc_ids), self.held_out)


def test_without_held_out_states_the_last_checkpoint_is_exported(workshop):
    """All scores would be 1.0, and the earliest of equals is the first."""
    task = workshop.task("blind", mode="Offline", epochs=1)
    dataset = PreparedDataset.open(workshop.store, task.prepared)
    stored = open_stored(workshop.store, task.hidden_states, dataset)
    source = StoresNoHeldOut(stored.head, stored.target_identity, stored.shards, stored.device)
    object.__setattr__(source, "held_out", dataset.held_out_ids)
    world = World(0, 1, torch.device("cpu"))
    trainer = build_trainer(task, dataset, source, world)
    run = Run(task, workshop.store, Fence.take(workshop.store, task), Reporter(Stage.TRAIN), dataset, trainer)
    run.resume()
    run.to_the_end()
    result = run.export()
    assert (result.trained.best_step, result.trained.steps) == (18, 18)
    assert (run.state.scores, result.trained.acceptance.prompts) == ((), 0)


# -- Two processes ----------------------------------------------------------------------------


def test_two_processes_end_with_the_same_draft(workshop, undisturbed, tmp_path):
    process = start(workshop.task("pair"), tmp_path, IN_PAIRS)
    assert process.wait(timeout=120) == 0, (tmp_path / "log.txt").read_text()
    results = results_of_pair(tmp_path)
    assert [result.exit_code for result in results] == [0, 0]
    assert results[0].trained.best_step == undisturbed.trained.best_step
    assert_nearly_undisturbed(workshop, "pair")
    for ours, alone in zip(workshop.metrics("pair"), workshop.metrics("undisturbed"), strict=True):
        assert ours["loss"] == pytest.approx(alone["loss"], rel=1e-5)
        assert (ours["step"], ours["tokens"], ours["onPolicy"]) == (alone["step"], alone["tokens"], alone["onPolicy"])


def test_two_processes_go_on_where_one_was_stopped(workshop, undisturbed, tmp_path):
    """A checkpoint knows nothing of how many there were; a SIGTERM to one of them stops both at one step."""
    task = workshop.task("reshaped")
    with pytest.raises(Failure):
        workshop.train(task, workshop.stopping_at(6))
    process = start(task, tmp_path, IN_PAIRS)
    wait_for_checkpoints(workshop, "reshaped", process, count=3)
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=100)
    codes = [result.exit_code for result in results_of_pair(tmp_path)]
    assert codes == [ExitCode.INTERRUPTED] * 2, (tmp_path / "log.txt").read_text()
    workshop.train(task)
    assert [line["step"] for line in workshop.metrics("reshaped")] == list(range(1, 37))
    assert_nearly_undisturbed(workshop, "reshaped")


SEES_LESS = """
import os, sys
from draftyard_api.task import TrainTask
from draftyard_trainer import checkpoint, process
from draftyard_trainer.train import train

if os.environ["RANK"] == "1":
    whole = checkpoint.steps_of
    checkpoint.steps_of = lambda store, run: whole(store, run)[:-1]
sys.exit(process.main(TrainTask, train))
"""


def test_two_processes_go_on_at_the_same_checkpoint(workshop, undisturbed, tmp_path):
    """Also when one of them does not see the newest: apart, they would add up gradients of different steps."""
    task = workshop.task("apart")
    with pytest.raises(Failure):
        workshop.train(task, workshop.stopping_at(6))
    program = tmp_path / "sees_less.py"
    program.write_text(SEES_LESS)
    process = start(task, tmp_path, (*IN_PAIRS[:-2], str(program)))
    assert process.wait(timeout=120) == 0, (tmp_path / "log.txt").read_text()
    assert [line["step"] for line in workshop.metrics("apart")] == list(range(1, 37))
    assert_nearly_undisturbed(workshop, "apart")


# -- Refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "given", "changes"),
    [
        ("rows", "seed=7", {"train": {"seed": 7}}),
        ("rows", "tokensPerBatch=384", {"train": {"tokens_per_batch": 384}}),
        ("conventions", "tttSteps=2", {"train": {"ttt_steps": 2}}),
        ("conventions", "unroll=onPath", {"train": {"unroll": "onPath"}}),
        ("rows", "epochs=3", {"train": {"epochs": 3}}),
        ("conventions", "objective=lk_alpha", {"train": {"objective": "lk_alpha"}}),
        ("draft", "intermediate_size=96", {"draft": {"intermediate_size": 96}}),
        ("fingerprint", "sha256:other", {"fingerprint": "sha256:other"}),
        ("source", "", {"mode": "Offline"}),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else value,
)
def test_another_trainings_checkpoints_are_refused_and_kept(workshop, field, given, changes):
    run = "taken"
    if not workshop.steps(run):
        with pytest.raises(Failure, match="stopped"):
            workshop.train(workshop.task(run), workshop.stopping_at(2))
    before = files_of(workshop, f"{train_path(run)}/step-00000002")
    task = workshop.task(run, mode=changes.get("mode", "Online"), **changes.get("train", {}))
    draft = task.draft.model_copy(update=changes.get("draft", {}))
    task = task.model_copy(update={"draft": draft, "fingerprint": changes.get("fingerprint", task.fingerprint)})
    with pytest.raises(Failure, match="belongs to another training") as caught:
        workshop.train(task)
    assert (caught.value.code, caught.value.reason) == (ExitCode.EXISTS, Reason.OUTPUT_EXISTS)
    assert f"({field}: given {given}" in caught.value.message
    assert caught.value.message.count(": given") == 1
    assert files_of(workshop, f"{train_path(run)}/step-00000002") == before
    assert len(before) == 3


def test_a_run_that_was_taken_over_writes_nothing_more(workshop):
    run = "fenced"

    class Rival(type(workshop.stopping_at(0))):
        """Another process takes the run over while step 6 is reported."""

        def update(self, **fields: int | str | None) -> None:
            super().update(**fields)
            if fields.get("step") == 6:
                workshop.store.publish(f"{train_path(run)}/{FENCE}", b"another")

    with pytest.raises(Failure) as caught:
        workshop.train(workshop.task(run), Rival(step=0))
    assert (caught.value.code, caught.value.reason) == (ExitCode.FENCED, Reason.FENCED)
    assert workshop.steps(run) == [4]
    assert [line["step"] for line in workshop.metrics(run)] == [1, 2, 3, 4]
    assert not workshop.path(export_path(run)).exists()


def test_a_pair_that_was_taken_over_ends_with_the_code_of_the_one_that_knows(workshop, tmp_path):
    """Process 0 says 81; its survivor only sees a broken group, and torchrun says 1 for both."""
    task = workshop.task("pair-fenced", gpus_per_node=2)
    process = start(task, tmp_path, SUPERVISED)
    wait_for_checkpoints(workshop, "pair-fenced", process, count=2)
    workshop.store.publish(f"{train_path('pair-fenced')}/{FENCE}", b"another")
    assert process.wait(timeout=60) == ExitCode.FENCED, (tmp_path / "log.txt").read_text()
    left = StageResult.model_validate_json((tmp_path / RESULT_FILE).read_bytes())
    assert left.reason == Reason.FENCED
    assert workshop.steps("pair-fenced")[-1] < 36
    assert not workshop.path(export_path("pair-fenced")).exists()


def test_gone_inputs_are_stale(workshop):
    task = workshop.task("stale", mode="Offline")
    gone = task.model_copy(update={"prepared": "0" * 16})
    with pytest.raises(Failure, match="prepare has to run again") as caught:
        workshop.train(gone)
    assert caught.value.code == ExitCode.STALE_INPUT == 83
    states = task.hidden_states.model_copy(update={"key": "0" * 16})
    with pytest.raises(Failure) as caught:
        workshop.train(task.model_copy(update={"hidden_states": states}))
    assert caught.value.code == ExitCode.STALE_INPUT
    assert not workshop.path(f"{train_path('stale')}/{METRICS}").exists()
