"""The second form of an export: equal to the portable one, key by key and byte by byte, and refused where it is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_export import NAME, RUN, export

from draftyard_api.exit_codes import ExitCode, Failure
from draftyard_api.names import MANIFEST, export_path
from draftyard_trainer import export as exports
from draftyard_trainer.draft import speculators
from draftyard_trainer.draft.header import CONFIG_FILE, WEIGHTS_FILE, read_files
from draftyard_trainer.draft.manifest import Manifest
from draftyard_trainer.draft.testing import TINY, tiny_config
from draftyard_trainer.storage.local import LocalStore

LATER = tiny_config(fc_norm=True, feed_normed_hidden=True)
SCALED = tiny_config(rope_scaling={"rope_type": "linear", "factor": 2.0})


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path)


def folders(store: LocalStore) -> tuple[Path, Path]:
    export = store.root / NAME
    return export, export / speculators.FOLDER


@pytest.mark.parametrize("config", [TINY, LATER, SCALED], ids=["eagle3", "eagle3.1", "rope scaling"])
def test_both_forms_are_one_draft(store, config):
    export(store, config)
    portable, below = folders(store)
    assert speculators.check_form(below, read_files(portable)) == []
    ours, theirs = load_file(portable / WEIGHTS_FILE), load_file(below / WEIGHTS_FILE)
    assert {speculators.their_name(name) for name in ours} == set(theirs)
    assert all(torch.equal(tensor, theirs[speculators.their_name(name)]) for name, tensor in ours.items())
    assert not any(name.startswith("midlayer") for name in theirs)


def test_the_manifest_names_the_files_of_both_forms(store):
    export(store)
    manifest = Manifest.model_validate_json(store.read(f"{NAME}/{MANIFEST}"))
    files = ["config.json", "model.safetensors"]
    assert sorted(manifest.files) == sorted([*files, *(f"speculators/{name}" for name in files)])
    assert exports.open_export(store, RUN, "f1").manifest == manifest


def test_the_config_leaves_nothing_to_a_reader(store):
    """One reader takes norm_before_residual as true when it is absent; acceptance fell from 1.914 to 1.150."""
    export(store, LATER)
    config = json.loads((folders(store)[1] / CONFIG_FILE).read_text())
    assert {name: config[name] for name in speculators.OUTER_FLAGS} == {
        "norm_before_residual": False, "norm_before_fc": False, "fc_norm": True, "norm_output": True,
    }  # fmt: skip
    layer = config["transformer_layer_config"]
    portable = json.loads((folders(store)[0] / CONFIG_FILE).read_text())
    assert layer["model_type"] == "llama"
    assert {name for name in portable if name not in speculators.NO_LAYER_KEYS} <= set(layer)
    assert config["eagle_aux_hidden_state_layer_ids"] == list(LATER.aux_layers)
    assert config["speculators_config"]["verifier"] == {
        "name_or_path": "org/target", "architectures": ["LlamaForCausalLM"],
    }  # fmt: skip


def without(*path: str) -> Callable[[dict[str, Any]], None]:
    def spoil(config: dict[str, Any]) -> None:
        for part in path[:-1]:
            config = config[part]
        del config[path[-1]]

    return spoil


def with_value(value: Any, *path: str) -> Callable[[dict[str, Any]], None]:
    def spoil(config: dict[str, Any]) -> None:
        for part in path[:-1]:
            config = config[part]
        config[path[-1]] = value

    return spoil


SPOILT: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "another class": (with_value(["LlamaForCausalLMEagle3"], "architectures"), "architectures"),
    "no model type": (without("speculators_model_type"), "speculators_model_type"),
    "a residual flag left out": (without("norm_before_residual"), "norm_before_residual"),
    "a residual flag set": (with_value(True, "norm_before_residual"), "norm_before_residual"),
    "a flag that is a number": (with_value(0, "fc_norm"), "fc_norm"),
    "a norm that is not there": (with_value(True, "norm_output"), "norm_output"),
    "ids of outputs": (with_value([1, 3, 4], "eagle_aux_hidden_state_layer_ids"), "eagle_aux_hidden_state_layer_ids"),
    "another vocabulary": (with_value(41, "draft_vocab_size"), "draft_vocab_size"),
    "a tied head": (with_value(True, "tie_word_embeddings"), "tie_word_embeddings"),
    "another rope": (with_value(5e5, "transformer_layer_config", "rope_theta"), "rope_theta"),
    "positions left out": (without("transformer_layer_config", "max_position_embeddings"), "max_position_embeddings"),
    "a nested type left out": (without("transformer_layer_config", "model_type"), "model_type"),
    "no nested config": (without("transformer_layer_config"), "transformer_layer_config"),
    "no method": (without("speculators_config"), "speculators_config"),
    "no verifier": (without("speculators_config", "verifier"), "speculators_config"),
}


@pytest.mark.parametrize(("spoil", "words"), SPOILT.values(), ids=SPOILT.keys())
def test_a_config_that_says_something_else_is_found(store, spoil, words):
    export(store)
    portable, below = folders(store)
    config = json.loads((below / CONFIG_FILE).read_text())
    spoil(config)
    (below / CONFIG_FILE).write_text(json.dumps(config))
    (found,) = speculators.check_form(below, read_files(portable))
    assert words in found


TENSORS: dict[str, tuple[Callable[[dict[str, torch.Tensor]], Any], str]] = {
    "one is missing": (lambda tensors: tensors.pop("layers.0.hidden_norm.weight"), "missing ['midlayer.hidden_norm"),
    "one is unknown": (lambda tensors: tensors.update(bias=torch.zeros(3)), "unknown ['bias']"),
    "one has our name": (
        lambda tensors: tensors.update({"midlayer.hidden_norm.weight": tensors.pop("layers.0.hidden_norm.weight")}),
        "unknown ['midlayer.hidden_norm.weight']",
    ),
    "one has other values": (lambda tensors: tensors["fc.weight"].mul_(2), "fc.weight: not as"),
    "one has another dtype": (lambda tensors: tensors.update(d2t=tensors["d2t"].int()), "d2t: not as"),
}


@pytest.mark.parametrize(("spoil", "words"), TENSORS.values(), ids=TENSORS.keys())
def test_tensors_that_are_others_are_found(store, spoil, words):
    export(store)
    portable, below = folders(store)
    tensors = load_file(below / WEIGHTS_FILE)
    spoil(tensors)
    save_file(tensors, below / WEIGHTS_FILE)
    (found,) = speculators.check_form(below, read_files(portable))
    assert words in found


def test_an_export_whose_second_form_is_not_equal_is_never_seen(store, monkeypatch):
    monkeypatch.setattr(speculators, "their_name", lambda name: name)
    with pytest.raises(Failure, match=r"export: speculators/model\.safetensors: tensors") as caught:
        export(store)
    assert caught.value.code == ExitCode.NOT_CONFORMANT
    assert store.list("export") == []


# -- EAGLE-3.1, from the spec to the engines ---------------------------------------------------


def test_a_training_in_the_later_profile_exports_its_norms_and_the_engines_that_it_needs(workshop):
    task = workshop.task("later", epochs=1)
    task = task.model_copy(update={"draft": task.draft.model_copy(update={"profile": "eagle3.1"})})
    assert workshop.train(task).published
    export = workshop.path(export_path("later"))
    config, tensors = json.loads((export / CONFIG_FILE).read_text()), workshop.tensors("later")
    assert (config["fc_norm"], config["norm_output"]) == (True, True)
    assert {name for name in tensors if name.startswith("fc_norm")} == {f"fc_norm.{index}.weight" for index in range(3)}
    assert not torch.equal(tensors["fc_norm.0.weight"], torch.ones(32))
    manifest = workshop.manifest("later")
    assert manifest["profile"] == "eagle3.1"
    assert manifest["flags"]["fcNorm"]
    assert manifest["flags"]["feedNormedHidden"]
    assert manifest["engines"] == list(exports.ENGINES["eagle3.1"])
    assert all("mid 2026" in engine for engine in manifest["engines"])
    assert {rule["rule"]: rule["result"] for rule in manifest["rules"]}[22] == "pass"
    assert speculators.check_form(export / speculators.FOLDER, read_files(export)) == []


def test_the_default_profile_has_no_newer_key(workshop, undisturbed):
    export = workshop.path(export_path("undisturbed"))
    config = json.loads((export / CONFIG_FILE).read_text())
    assert not {"fc_norm", "norm_output", "norm_before_fc"} & set(config)
    assert workshop.manifest("undisturbed")["engines"] == list(exports.ENGINES["eagle3"])
