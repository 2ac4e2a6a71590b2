"""draft.initFrom: a run goes on from another run's draft, keeps its vocabulary, and refuses what does not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from test_run import write_run
from workshops import TRAIN

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.names import MANIFEST, Stage, export_path, prepared_path, train_path
from draftyard_api.progress import Prepared
from draftyard_api.spec import Data, DataSource, Draft, Export, FileSource
from draftyard_api.task import PrepareTask, TrainTask
from draftyard_trainer import commands, prepare, testing, warm_start
from draftyard_trainer import run as local
from draftyard_trainer.data.prepared import PreparedDataset
from draftyard_trainer.draft.manifest import FileRecord, Manifest
from draftyard_trainer.reporting import Reporter
from draftyard_trainer.target.location import Hub


def prepare_from(workshop, init_from: str, run: str = "warm", **draft) -> Prepared:
    """Prepare the workshop's own conversations for a run that starts from a draft."""
    chat = workshop.store.root.parent / "chat.json"
    task = PrepareTask(
        run=run, uid="u", workspace=workshop.store.uri, target=workshop.target, mode="Offline",
        draft=Draft(**{"vocab_size": 300, "init_from": init_from, **draft}),
        data=Data(source=DataSource(file=FileSource(uri=f"file://{chat}")), max_length=96, eval_fraction=0.2),
        train=TRAIN, evaluates=True, export=Export(), frozen_sha256="0" * 64,
    )  # fmt: skip
    prepared = prepare.prepare(task, Reporter(Stage.PREPARE)).prepared
    assert prepared is not None
    return prepared


def task_from(workshop, prepared: Prepared, init_from: str, run: str, mode: str = "Online", **changes) -> TrainTask:
    task = workshop.task(run, mode, **changes)
    draft = task.draft.model_copy(update={"init_from": init_from})
    return task.model_copy(
        update={
            "draft": draft, "prepared": prepared.prepared, "fingerprint": prepared.fingerprint,
            "aux_layers": prepared.aux_layers,
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def former(workshop, undisturbed) -> str:
    """Where the draft of a finished run lies."""
    return f"file://{workshop.path(export_path('undisturbed'))}"


@pytest.fixture(scope="module")
def prepared(workshop, former) -> Prepared:
    return prepare_from(workshop, former)


# -- Going on ---------------------------------------------------------------------------------


def test_the_vocabulary_of_the_draft_is_kept(workshop, former, prepared):
    """The spec asks for 300 tokens, the draft has 256."""
    mine = PreparedDataset.open(workshop.store, prepared.prepared)
    theirs = PreparedDataset.open(workshop.store, workshop.prepared.prepared)
    assert np.array_equal(mine.vocabulary.ids, theirs.vocabulary.ids)
    assert prepared.vocab_size == 256
    assert prepared.vocab_coverage == workshop.prepared.vocab_coverage


def test_stored_states_are_those_of_a_cold_run(workshop, prepared):
    assert prepared.tokens_sha256 == workshop.prepared.tokens_sha256
    assert prepared.prepared != workshop.prepared.prepared
    assert prepared.fingerprint != workshop.prepared.fingerprint


@pytest.mark.parametrize("mode", ["Online", "Offline"])
def test_a_warm_run_begins_at_the_loss_where_the_former_one_ended(workshop, former, prepared, undisturbed, mode):
    run = f"warm-{mode.lower()}"
    result = workshop.train(task_from(workshop, prepared, former, run, mode, epochs=1))
    before, after = workshop.metrics("undisturbed"), workshop.metrics(run)
    ended = sum(line["divergence"][0] for line in before[-4:]) / 4
    cold = sum(line["divergence"][0] for line in before[:4]) / 4
    warm = after[0]["divergence"][0]
    assert abs(warm - ended) < 0.2 * (cold - ended) + 0.02
    assert result.published
    draft = load_file(workshop.model(run))
    assert torch.equal(draft["d2t"], workshop.tensors("undisturbed")["d2t"])
    manifest = Manifest.model_validate_json(json.dumps(workshop.manifest(run)))
    assert manifest.initial_draft == warm_start.sha256_of(Path(former.removeprefix("file://")), warm_start.FILES)


def test_the_first_weights_are_the_drafts_to_the_bit(workshop, former, prepared):
    """At a learning rate of nearly nothing, what comes out is what went in."""
    task = task_from(workshop, prepared, former, "still", epochs=1, learning_rate=1e-30)
    workshop.train(task)
    before, after = workshop.tensors("undisturbed"), workshop.tensors("still")
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_warm_run_that_was_stopped_goes_on_at_its_checkpoint(workshop, former, prepared):
    whole = workshop.train(task_from(workshop, prepared, former, "warm-whole", epochs=1))
    task = task_from(workshop, prepared, former, "warm-stopped", epochs=1)
    with pytest.raises(Failure, match="stopped"):
        workshop.train(task, workshop.stopping_at(6))
    assert workshop.train(task).trained == whole.trained
    mine, theirs = workshop.tensors("warm-stopped"), workshop.tensors("warm-whole")
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())


def test_training_needs_the_draft_no_more_where_it_came_from(workshop, former, tmp_path):
    moved = tmp_path / "draft"
    shutil.copytree(Path(former.removeprefix("file://")), moved)
    prepared = prepare_from(workshop, f"file://{moved}")
    shutil.rmtree(moved)
    assert workshop.train(task_from(workshop, prepared, f"file://{moved}", "orphan", epochs=1)).published


def test_a_copy_of_the_draft_that_is_broken_sends_the_run_back_to_prepare(workshop, former, prepared):
    model = workshop.path(f"{prepared_path(prepared.prepared)}/{warm_start.FOLDER}/model.safetensors")
    content = model.read_bytes()
    model.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(Failure, match="prepare has to run again") as caught:
        workshop.train(task_from(workshop, prepared, former, "broken", epochs=1))
    assert caught.value.code == ExitCode.STALE_INPUT
    assert prepare_from(workshop, former).fingerprint == prepared.fingerprint
    assert model.read_bytes() == content


def test_prepared_data_of_a_cold_run_are_no_start_for_a_warm_one(workshop, former):
    task = task_from(workshop, workshop.prepared, former, "mixed", epochs=1)
    with pytest.raises(Failure, match="prepare has to run again"):
        workshop.train(task)
    assert not workshop.path(train_path("mixed")).exists()


# -- Where a draft lies -----------------------------------------------------------------------


def test_a_draft_of_the_hub_is_fetched_with_what_it_needs(tmp_path, former):
    asked = {}

    def download(repository: str, revision: str, allow_patterns: list[str]) -> str:
        asked.update(repository=repository, patterns=allow_patterns)
        return str(Path(former.removeprefix("file://")))

    folder = warm_start.locate(Draft(init_from="hf://org/draft"), Hub(download=download))
    assert (folder / "model.safetensors").is_file()
    assert asked["repository"] == "org/draft"
    assert "*.safetensors" in asked["patterns"]


def test_a_hub_that_is_out_of_reach_names_the_field():
    def download(*_args: object, **_more: object) -> str:
        raise ConnectionError("no route")

    with pytest.raises(Failure, match=r"^draft\.initFrom: given org/draft; the hub is out of reach") as caught:
        warm_start.locate(Draft(init_from="org/draft"), Hub(download=download, waits_seconds=()))
    assert caught.value.code == ExitCode.UNAVAILABLE


# -- Refusals ---------------------------------------------------------------------------------


@pytest.fixture
def copy(former, tmp_path) -> Path:
    """The former draft, to be spoilt."""
    folder = tmp_path / "draft"
    shutil.copytree(Path(former.removeprefix("file://")), folder)
    return folder


def tell_manifest(folder: Path) -> None:
    """Let the manifest agree with what lies there."""
    manifest = json.loads((folder / MANIFEST).read_text())
    for name in warm_start.FILES:
        manifest["files"][name] = FileRecord.of(folder / name).model_dump(by_alias=True)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def set_config(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    tell_manifest(folder)


def no_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()


def other_weights(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"norm.weight": 2 * tensors["norm.weight"]}, folder / "model.safetensors")


def absolute_ids(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"d2t": tensors["d2t"].flip(0)}, folder / "model.safetensors")
    tell_manifest(folder)


SPOILT = {
    "a folder of others": (no_manifest, {}, ExitCode.UNSUPPORTED, "draftyard convert SOURCE OUT --target MODEL"),
    "weights that changed": (other_weights, {}, ExitCode.STALE_INPUT, "model.safetensors is not what its MANIFEST"),
    "a broken map": (absolute_ids, {}, ExitCode.UNSUPPORTED, "d2t is no ascending list"),
    "another target": (
        lambda folder: set_config(folder, vocab_size=500), {}, ExitCode.UNSUPPORTED, "its target has 500 tokens",
    ),
    "another profile": (lambda _: None, {"profile": "eagle3.1"}, ExitCode.UNSUPPORTED, "profile eagle3, and"),
    "other layers": (lambda _: None, {"aux_layers": (2, 3, 4)}, ExitCode.UNSUPPORTED, "leave draft.auxLayers out"),
    "another MLP": (lambda _: None, {"intermediate_size": 96}, ExitCode.UNSUPPORTED, "draft.intermediateSize is 96"),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "draft", "code", "words"), SPOILT.values(), ids=SPOILT.keys())
def test_a_draft_that_does_not_fit_is_refused_in_prepare(workshop, copy, spoil, draft, code, words):
    spoil(copy)
    before = workshop.store.list("prepare")
    with pytest.raises(Failure) as caught:
        prepare_from(workshop, f"file://{copy}", **draft)
    assert caught.value.code == code
    assert words in caught.value.message
    assert caught.value.message.startswith("draft.initFrom: given file://")
    assert workshop.store.list("prepare") == before


def test_a_token_to_keep_that_the_vocabulary_lacks_is_refused(workshop, former):
    tokens = PreparedDataset.open(workshop.store, workshop.prepared.prepared)
    outside = int(np.setdiff1d(np.arange(384), tokens.vocabulary.ids)[0])
    initial = warm_start.find(
        PrepareTask.model_construct(draft=Draft(init_from=former)), _Target(),  # type: ignore[arg-type]
    )  # fmt: skip
    assert initial is not None
    with pytest.raises(Failure, match=rf"draft\.keepTokens: given tokens \[{outside}\]"):
        warm_start.require_fit(initial, Draft(init_from=former), initial.config.aux_layers, (outside,))


class _Target:
    config = {"vocab_size": 384}  # noqa: RUF012


def test_a_draft_that_is_nowhere_is_not_found(workshop, tmp_path):
    with pytest.raises(Failure, match=r"^draft\.initFrom: given .*is no folder") as caught:
        prepare_from(workshop, f"file://{tmp_path / 'nowhere'}")
    assert caught.value.code == ExitCode.NOT_FOUND


# -- The whole way ----------------------------------------------------------------------------


@pytest.mark.slow
def test_draftyard_run_goes_on_from_a_converted_draft_on_a_claim(tmp_path, capsys):
    """A draft of SpecForge's form, converted, on a claim, through all stages of a second run."""
    testing.write_target(tmp_path / "target")
    testing.write_conversations(tmp_path / "chat.json")
    train = {"epochs": 1, "rowTokens": 256, "tokensPerBatch": 512, "tttSteps": 2, "learningRate": 0.001}
    changes = {"train": train, "evaluate": {"maxPrompts": 2, "maxNewTokens": 6}}
    first = write_run(tmp_path, "Offline", **changes)
    assert local.run(first, tmp_path / "one", {}) == ExitCode.OK
    theirs = tmp_path / "theirs"
    shutil.copytree(tmp_path / "one" / "export" / "tiny", theirs)
    (theirs / MANIFEST).unlink()
    claim = tmp_path / "claim"
    claim.mkdir()
    arguments = [str(theirs), str(claim / "converted"), "--target", str(tmp_path / "target")]
    assert commands.convert(arguments) == ExitCode.OK
    second = write_run(tmp_path, "Offline", draft={"vocabSize": 300, "initFrom": "pvc://drafts/converted"}, **changes)
    document = yaml.safe_load(second.read_text())
    document["metadata"]["name"] = "warm"
    second.write_text(yaml.safe_dump(document))
    capsys.readouterr()
    assert local.run(second, tmp_path / "one", {"drafts": claim}) == ExitCode.OK
    export = tmp_path / "one" / "export" / "warm"
    assert torch.equal(load_file(export / "model.safetensors")["d2t"], load_file(theirs / "model.safetensors")["d2t"])
    # the states of the first run were found, not made again
    assert len(list((tmp_path / "one" / "hidden-states").iterdir())) == 1
    assert json.loads((export / MANIFEST).read_text())["initialDraft"]
    assert commands.verify([str(tmp_path / "one")]) == ExitCode.OK
