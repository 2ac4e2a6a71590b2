"""What a finished training leaves for whoever asks again, and what its export says of where it comes from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.names import MANIFEST, PUBLISHED, RESULT_FILE, export_path, train_path
from draftyard_api.progress import StageResult
from draftyard_trainer.checkpoint import WEIGHTS, Score
from draftyard_trainer.data.prepared import PreparedDataset
from draftyard_trainer.draft.files import read_draft
from draftyard_trainer.draft.manifest import Manifest, Published
from draftyard_trainer.exporting import find_finished, metrics, optimizer_numbers, probe_document, result_name

RUN = "exported"


@pytest.fixture(scope="module")
def finished(workshop) -> StageResult:
    return workshop.train(workshop.task(RUN, epochs=1))


@pytest.fixture
def files(workshop, finished) -> Any:
    """The run's files, put back as they were when a test is done with spoiling them."""
    folders = [workshop.path(name) for name in (train_path(RUN), export_path(RUN))]
    before = {path: path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}
    yield before
    for path, content in before.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


# -- Asking again -----------------------------------------------------------------------------


def test_a_finished_run_is_found_with_all_its_numbers(workshop, finished):
    task = workshop.task(RUN, epochs=1)
    assert result_name(task) == f"{train_path(RUN)}/{RESULT_FILE}"
    assert find_finished(workshop.store, task) == finished


def test_a_run_that_never_was_is_not_found(workshop):
    assert find_finished(workshop.store, workshop.task("never")) is None


def flip_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


SPOILERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "no result": (f"{train_path(RUN)}/{RESULT_FILE}", Path.unlink),
    "a torn result": (f"{train_path(RUN)}/{RESULT_FILE}", lambda path: path.write_text('{"stage": "tr')),
    "no manifest": (f"{export_path(RUN)}/{MANIFEST}", Path.unlink),
    "a torn manifest": (f"{export_path(RUN)}/{MANIFEST}", lambda path: path.write_text("{")),
    "no weights": (f"{export_path(RUN)}/model.safetensors", Path.unlink),
    "changed weights": (f"{export_path(RUN)}/model.safetensors", flip_last_byte),
    "a changed config": (f"{export_path(RUN)}/config.json", lambda path: path.write_text("{}")),
    "another manifest": (f"{export_path(RUN)}/{MANIFEST}", lambda path: path.write_text(path.read_text() + "\n")),
    "not published": (f"{export_path(RUN)}/{PUBLISHED}", Path.unlink),
}


@pytest.mark.parametrize(("name", "spoil"), SPOILERS.values(), ids=SPOILERS.keys())
def test_what_is_not_whole_is_made_again_from_the_checkpoints(workshop, finished, files, name, spoil):
    task = workshop.task(RUN, epochs=1)
    model = files[workshop.model(RUN)]
    spoil(workshop.path(name))
    assert find_finished(workshop.store, task) is None
    again = workshop.train(task)
    assert again.trained == finished.trained
    assert workshop.model(RUN).read_bytes() == model
    assert workshop.published(RUN).exists()
    assert find_finished(workshop.store, task) == again


def test_an_unpublished_export_is_enough_where_an_evaluation_follows(workshop, finished, files):
    workshop.published(RUN).unlink()
    assert find_finished(workshop.store, workshop.task(RUN, publishes=False, epochs=1)) == finished


def test_another_fingerprint_is_another_training(workshop, finished):
    task = workshop.task(RUN, epochs=1).model_copy(update={"fingerprint": "sha256:other"})
    assert find_finished(workshop.store, task) is None
    with pytest.raises(Failure, match="belongs to another training") as caught:
        workshop.train(task)
    assert caught.value.code == ExitCode.EXISTS


def test_a_lost_best_checkpoint_is_said(workshop, finished, files):
    *_, best, last = workshop.steps(RUN)
    newest = workshop.checkpoint(RUN, last)
    manifest = json.loads(newest.read_text())
    next(score for score in manifest["scores"] if score["step"] == best)["tauSim"] = 3.75
    newest.write_text(json.dumps(manifest))
    flip_last_byte(workshop.checkpoint(RUN, best).with_name(WEIGHTS))
    workshop.store.delete_folder(export_path(RUN))
    with pytest.raises(Failure, match=rf"the best checkpoint, step {best}, is gone or broken") as caught:
        workshop.train(workshop.task(RUN, epochs=1))
    assert caught.value.code == ExitCode.STALE_INPUT
    assert not workshop.published(RUN).exists()


# -- What the export says ---------------------------------------------------------------------


def test_the_export_holds_the_best_checkpoints_weights(workshop, finished):
    best = finished.trained.best_step
    weights = load_file(workshop.checkpoint(RUN, best).with_name(WEIGHTS))
    tensors = workshop.tensors(RUN)
    assert sorted(tensors) == sorted(weights)
    assert [name for name in tensors if not torch.equal(tensors[name], weights[name].to(tensors[name].dtype))] == []


def test_the_export_is_read_back_alone(workshop, finished):
    loaded = read_draft(workshop.path(export_path(RUN)))
    tensors = workshop.tensors(RUN)
    assert [name for name, tensor in loaded.model.state_dict().items() if not torch.equal(tensor, tensors[name])] == []
    assert loaded.config.aux_layers == workshop.prepared.aux_layers


def test_the_manifest_says_where_the_draft_comes_from(workshop, finished):
    manifest = Manifest.model_validate_json(workshop.path(f"{export_path(RUN)}/{MANIFEST}").read_bytes())
    prepared, task = workshop.prepared, workshop.task(RUN, epochs=1)
    last = json.loads(workshop.checkpoint(RUN, finished.trained.steps).read_text())
    assert (manifest.run, manifest.fingerprint) == (RUN, prepared.fingerprint)
    assert (manifest.target.model, manifest.target.commit) == (workshop.target.model, prepared.target_commit)
    assert manifest.data.tokens_sha256 == prepared.tokens_sha256
    assert (manifest.data.documents, manifest.data.tokens) == (
        prepared.counts.train_documents, prepared.counts.train_tokens,
    )  # fmt: skip
    assert manifest.vocabulary.size == 256 == prepared.vocab_size
    schedule = manifest.schedule
    assert (schedule.steps, schedule.epochs, schedule.seed) == (finished.trained.steps, 1, 42)
    assert schedule.plan_hash == last["identity"]["planHash"]
    assert schedule.optimizer == optimizer_numbers(task.train)
    assert manifest.conventions.ttt_steps == 3
    best = max(last["scores"], key=lambda score: score["tauSim"])
    assert manifest.checkpoint.step == best["step"]
    assert manifest.checkpoint.why == f"highest simulated acceptance length of {len(last['scores'])} evaluations"
    assert manifest.metrics["tau_sim"] == f"{best['tauSim']:.4f}"
    assert all(rule.result in ("pass", "warn") for rule in manifest.rules)


def test_what_is_published_is_simulated(workshop, finished):
    published = Published.model_validate_json(workshop.published(RUN).read_bytes())
    assert published.manifest_sha256 == finished.manifest_sha256
    assert published.acceptance == finished.trained.acceptance
    assert published.acceptance.source == "Simulated"
    assert published.settings is None
    assert str(workshop.path(export_path(RUN))) in published.serve.vllm


def test_without_held_out_documents_the_last_checkpoint_is_exported_unjudged(workshop_without_held_out):
    workshop = workshop_without_held_out
    assert workshop.prepared.counts.held_out_documents == 0
    with pytest.raises(Failure):
        # At a checkpoint: there is no score to make up for when it goes on.
        workshop.train(workshop.task(RUN, epochs=1), workshop.stopping_at(4))
    result = workshop.train(workshop.task(RUN, epochs=1))
    assert result.trained.best_step == result.trained.steps
    assert result.trained.acceptance.prompts == 0
    manifest = workshop.manifest(RUN)
    why = "the last one: no held-out documents have states"
    assert manifest["checkpoint"] == {"step": result.trained.steps, "why": why}
    assert manifest["metrics"] == {}


def test_numbers_are_texts():
    score = Score(step=3, tau_sim=1.23456, per_position=(0.2, 0.03456), documents=9)
    assert metrics(score) == {"tau_sim": "1.2346", "prefix_accuracy_0": "0.2000", "prefix_accuracy_1": "0.0346"}


def test_the_probe_is_a_training_document_of_median_length(workshop):
    dataset = PreparedDataset.open(workshop.store, workshop.prepared.prepared)
    chosen = probe_document(dataset)
    assert chosen in dataset.train_ids
    lengths = np.sort(dataset.lengths[dataset.train_ids])
    assert dataset.lengths[chosen] == lengths[len(lengths) // 2]
