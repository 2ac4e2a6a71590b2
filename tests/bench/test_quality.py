"""The comparison of drafts on this side: the same rows for all, a peer's tensors as an export, what is kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import quality
import quality_draft
from draftyard_api.exit_codes import Failure
from draftyard_trainer.chain import unroll_logits
from draftyard_trainer.draft.config import DraftConfig
from draftyard_trainer.draft.testing import supervised_sample, tiny_draft, tiny_head, tiny_vocabulary
from draftyard_trainer.hidden_states.sample import Sample
from draftyard_trainer.target.head import TargetHead
from on_policy import OnPolicy
from quality import Work
from recipe import TARGET_FILE, Plan, Recipe, plan_file, start_file

RECIPE = Recipe(steps=5, row_tokens=60, trained=6, held_out=2, reply=20)
TARGET_CONFIG = {
    "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "vocab_size": 96, "rms_norm_eps": 1e-5, "max_position_embeddings": 512, "rope_theta": 10000.0, "bos_token_id": 0,
    "eos_token_id": 2,
}  # fmt: skip


def on_policy_data() -> OnPolicy:
    made = tiny_head()
    head = TargetHead(made.lm_head.float(), made.embed.float(), made.norm.float(), TARGET_CONFIG)
    samples = [supervised_sample(head, 3, 24 + seed, [(6, 18 + seed)], seed=seed) for seed in range(8)]
    plain = [Sample(each.document, each.aux.float(), each.last.float(), each.tok, each.lse) for each in samples]
    return OnPolicy(tuple(plain), tiny_vocabulary(), head, num_held_out=2)


@pytest.fixture
def data() -> OnPolicy:
    return on_policy_data()


def config(data: OnPolicy) -> DraftConfig:
    return quality_draft.config_of(data)


def test_a_recipe_names_its_folder_by_all_of_its_settings():
    assert len({recipe.key() for recipe in (RECIPE, replace(RECIPE, steps=6), replace(RECIPE, reply=21))}) == 3
    assert RECIPE.key() == replace(RECIPE).key()


def test_steps_are_as_many_as_wanted_over_as_many_epochs_as_it_takes():
    lengths = np.array([30, 30, 30, 30, 50, 50])
    steps = quality_draft.plan_steps(lengths, replace(RECIPE, steps=7), seed=1)
    assert [step.index for step in steps] == list(range(7))
    # Two rows of two documents and two of one make an epoch.
    assert [step.epoch for step in steps] == [0, 0, 0, 0, 1, 1, 1]
    assert sorted(doc for step in steps[:4] for doc in step.rows[0]) == list(range(6))
    assert quality_draft.plan_steps(lengths, RECIPE, seed=2)[:4] != steps[:4]


def test_peers_get_the_first_weights_the_rows_and_the_targets_tables(tmp_path, data):
    quality_draft.write_inputs(tmp_path, data, tmp_path / "states.safetensors", RECIPE, (3,))
    plan = Plan.read(plan_file(tmp_path, 3))
    lengths = np.array([sample.document.num_tokens for sample in data.trained])
    assert plan.steps == tuple(step.rows[0] for step in quality_draft.plan_steps(lengths, RECIPE, 3))
    assert (plan.recipe, plan.probe, plan.shape.rope_theta) == (RECIPE, 6, 10000.0)
    ours = quality_draft.first_draft(data, config(data), 3).state_dict()
    given = load_file(start_file(tmp_path, 3))
    assert given.keys() == ours.keys()
    assert all(torch.equal(given[name], ours[name]) for name in ours)
    tables = load_file(tmp_path / TARGET_FILE)
    assert torch.equal(tables["head"], data.head.lm_head)
    assert torch.equal(tables["norm"], data.head.norm)


def test_our_own_training_is_the_same_for_the_same_seed_and_another_for_another_objective(data):
    drafts = [quality_draft.train(data, RECIPE, 1, objective)[0] for objective in ("kl", "kl", "lk_alpha")]
    one, again, other = (draft.fc.weight for draft in drafts)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert not torch.equal(one, quality_draft.first_draft(data, config(data), 1).fc.weight)


def test_a_peers_list_of_layers_becomes_the_one_layer_of_an_export(data):
    draft = tiny_draft(config(data))
    theirs = {name.replace("midlayer.", "layers.0."): tensor for name, tensor in draft.state_dict().items()}
    assert "layers.0.self_attn.q_proj.weight" in theirs
    ours = quality_draft.assemble(theirs, data, config(data)).state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in draft.state_dict().items())


@pytest.mark.parametrize("wrong", ["missing", "unknown", "vocabulary"])
def test_tensors_that_do_not_fit_are_refused(data, wrong):
    state = dict(tiny_draft(config(data)).state_dict())
    if wrong == "missing":
        del state["fc.weight"]
    elif wrong == "unknown":
        state["input_norm.weight"] = torch.ones(96)
    else:
        state["d2t"] = state["d2t"] + 1
    with pytest.raises(ValueError, match={"missing": "fc", "unknown": "input_norm", "vocabulary": "d2t"}[wrong]):
        quality_draft.assemble(state, data, config(data))


def test_agreement_is_with_what_the_trained_weights_choose(data):
    draft, sample = tiny_draft(config(data)), data.held_out[0]
    rows = np.arange(sample.document.num_tokens - 1)
    choices = torch.stack([logits.argmax(-1) for logits in unroll_logits(draft, sample, rows, 3, forced=True)])
    assert quality_draft.agreement(draft, sample, choices) == 1.0
    assert quality_draft.agreement(tiny_draft(config(data), seed=1), sample, choices) < 0.5


def test_an_export_is_conformant_and_its_prediction_is_that_of_its_files(tmp_path, data):
    draft = tiny_draft(config(data))
    assert quality_draft.export(tmp_path / "export", draft, data, 3) == []
    found = quality_draft.predict(tmp_path / "export", data, RECIPE)
    assert found["length"] == 1 + found["accepted"] / found["rounds"]
    assert len(found["per_position"]) == len(found["sampled"]) == RECIPE.draft_tokens
    assert all(0 < share < 1 for share in found["sampled"])


def test_an_export_that_breaks_a_rule_is_refused(tmp_path, data):
    draft = tiny_draft(config(data))
    with torch.no_grad():
        draft.fc.weight.fill_(float("nan"))
    with pytest.raises(Failure, match=r"rule 12: fc\.weight"):
        quality_draft.export(tmp_path / "export", draft, data, 3)


def work(folder: Path, seeds: tuple[int, ...] = (1, 2)) -> Work:
    return Work(RECIPE, seeds, folder / "model", folder / "conversations", folder)


def test_what_is_kept_is_not_trained_again(tmp_path):
    mine = work(tmp_path)
    mine.draft("draftyard", 1).mkdir(parents=True)
    names = ("draftyard", "specforge")
    # An export alone may be half of one.
    assert len(quality.untrained(mine, names)) == 4
    quality_draft.keep(mine.draft("draftyard", 1), {"seconds": 1.0})
    assert quality.untrained(mine, names) == [("specforge", 1), ("draftyard", 2), ("specforge", 2)]
    others = Work(replace(RECIPE, steps=9), (1, 2), mine.model, mine.conversations, tmp_path)
    assert len(quality.untrained(others, names)) == 4


def test_an_engine_that_is_not_there_is_missed_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["quality.py", "--engine", str(tmp_path / "python"), "--root", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"python: not there; `make -C tests/serve venv` makes it"):
        quality.main()
    assert list(tmp_path.iterdir()) == []


def test_the_usual_scale_shares_its_documents_with_the_other_benchmark(tmp_path):
    usual = Work(Recipe(), (1,), tmp_path, tmp_path, tmp_path)
    assert usual.data == tmp_path / "on-path"
    assert work(tmp_path).data == tmp_path / "on-policy-6-2-20"


def test_another_process_gets_the_same_settings(tmp_path, monkeypatch):
    mine = work(tmp_path)
    monkeypatch.setattr("sys.argv", ["quality.py", *mine.arguments()])
    arguments = quality.read_arguments()
    again = {name: getattr(arguments, name) for name in ("steps", "learning_rate", "ttt_steps", "reply", "root")}
    assert again == {"steps": 5, "learning_rate": 0.001, "ttt_steps": 3, "reply": 20, "root": tmp_path}


def test_served_ids_are_compared_with_those_of_the_target_alone(tmp_path):
    mine = work(tmp_path, seeds=(1,))
    folder = mine.draft("specforge", 1)
    folder.mkdir(parents=True)
    quality_draft.keep(folder, {"seconds": 2.0, "predicted": {"length": 1.5}})
    plain = quality.Served([[1, 2], [3, 4]], 0, 0, [], 1.0)
    served = quality.Served([[1, 2], [3, 5]], 8, 4, [3, 1, 0], 1.0)
    quality.keep_served(folder / quality.SERVED, served)
    told = quality.tell_draft(mine, "specforge", 1, plain)
    assert told["served"]["ids_equal"] == 0.5
    assert (told["served"]["length"], told["served"]["per_position"]) == (1.5, [0.375, 0.125, 0.0])
    assert "served" not in quality.tell_draft(mine, "specforge", 1, None)
    assert json.loads((folder / quality.SERVED).read_text())["rounds"] == 8
