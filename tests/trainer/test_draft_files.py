"""The config that engines read, and the loader that needs nothing but the folder."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from draftyard_trainer.chain import propose
from draftyard_trainer.conformance_rules import null_paths
from draftyard_trainer.draft.config import DraftConfig
from draftyard_trainer.draft.files import draft_config, engine_config, read_draft
from draftyard_trainer.draft.header import CONFIG_FILE, WEIGHTS_FILE
from draftyard_trainer.draft.testing import tiny_config, tiny_draft, tiny_embedding, tiny_sample
from draftyard_trainer.export import write_files

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
}
LLAMA_8B = DraftConfig(
    hidden_size=4096,
    target_hidden_size=4096,
    intermediate_size=14336,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    vocab_size=128256,
    draft_vocab_size=32000,
    aux_layers=(2, 16, 29),
    rms_norm_eps=1e-5,
    max_position_embeddings=131072,
    rope_theta=500000.0,
    rope_scaling=LLAMA3_ROPE,
    bos_token_id=128000,
    eos_token_id=128009,
)


def test_config_of_an_8b_draft_is_what_both_engines_read():
    assert engine_config(LLAMA_8B, "bfloat16") == {
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 1,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "vocab_size": 128256,
        "draft_vocab_size": 32000,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "rope_theta": 500000.0,
        "rope_scaling": LLAMA3_ROPE,
        "max_position_embeddings": 131072,
        "bos_token_id": 128000,
        "eos_token_id": 128009,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "target_hidden_size": 4096,
        "num_aux_hidden_states": 3,
        "norm_before_residual": False,
        "eagle_aux_hidden_state_layer_ids": [2, 16, 29],
        "eagle_config": {"use_aux_hidden_state": True, "eagle_aux_hidden_state_layer_ids": [1, 15, 28]},
    }


CONFIGS = {
    "as it is": tiny_config(),
    "rope scaling": tiny_config(rope_scaling={"rope_type": "linear", "factor": 2.0}),
    "no special tokens": tiny_config(bos_token_id=None, eos_token_id=None),
    "several stop tokens": tiny_config(eos_token_id=(2, 7)),
    "norms of the newer profile": tiny_config(fc_norm=True, feed_normed_hidden=True),
    "norm before fc": tiny_config(norm_before_fc=True),
    "normed residual": tiny_config(norm_before_residual=True),
    "one layer": tiny_config(aux_layers=(2,)),
    "narrower than the target": tiny_config(target_hidden_size=48),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_config_survives_the_way_through_json_without_a_null(config):
    written = json.loads(json.dumps(engine_config(config, "float32")))
    assert null_paths(written, "") == []
    assert draft_config(written) == config


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_a_draft_loaded_from_its_files_proposes_the_same(config, tmp_path):
    draft = tiny_draft(config)
    write_files(tmp_path, draft, "float32")
    loaded = read_draft(tmp_path)
    loaded.model.attach_embedding(tiny_embedding(config))
    assert loaded.config == config
    sample = tiny_sample(config)
    for forced in (False, True):
        again = propose(loaded.model, sample, 3, forced)
        assert (again >= 0).any()
        assert (again == propose(draft, sample, 3, forced)).all()


def test_newer_keys_are_written_only_where_they_are_set():
    assert not {"fc_norm", "norm_output", "norm_before_fc"} & engine_config(tiny_config(), "float32").keys()
    newer = engine_config(tiny_config(fc_norm=True, feed_normed_hidden=True), "float32")
    assert (newer["fc_norm"], newer["norm_output"]) == (True, True)


def test_weights_are_cast_to_the_wanted_dtype(tmp_path):
    write_files(tmp_path, tiny_draft(), "bfloat16")
    assert read_draft(tmp_path).model.fc.weight.dtype == torch.float32
    assert read_draft(tmp_path, torch.bfloat16).model.fc.weight.dtype == torch.bfloat16
    stored = load_file(tmp_path / WEIGHTS_FILE)
    assert stored["d2t"].dtype == torch.int64
    assert stored["t2d"].dtype == torch.bool
    assert "embed_tokens.weight" not in stored


def test_a_missing_key_is_named(tmp_path):
    write_files(tmp_path, tiny_draft(), "float32")
    config = json.loads((tmp_path / CONFIG_FILE).read_text())
    del config["rope_theta"], config["head_dim"]
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config))
    with pytest.raises(ValueError, match="head_dim, rope_theta missing"):
        read_draft(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("fc.weight"), "fc.weight"),
        (lambda tensors: tensors.update(other=torch.zeros(2)), "other"),
        (lambda tensors: tensors.update({"norm.weight": torch.zeros(3)}), "size mismatch"),
    ],
    ids=["missing", "unknown", "misshapen"],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, change, message):
    write_files(tmp_path, tiny_draft(), "float32")
    tensors = load_file(tmp_path / WEIGHTS_FILE)
    change(tensors)
    save_file(tensors, tmp_path / WEIGHTS_FILE)
    with pytest.raises(ValueError, match=message):
        read_draft(tmp_path)
