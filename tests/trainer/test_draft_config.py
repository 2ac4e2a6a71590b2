"""The draft's architecture follows the target's: a draft of another rope or context serves badly and trains well."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig

from draftyard_api.spec import Draft
from draftyard_trainer.draft.config import DraftConfig, derive
from draftyard_trainer.draft.model import DraftModel

LLAMA3_SCALING = {
    "factor": 8.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
LLAMA: dict[str, Any] = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "rope_scaling": LLAMA3_SCALING,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
}


def without(config: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in keys}


def plain(**changes: Any) -> DraftConfig:
    """Derived from Llama 3.1 8B with some keys of its config changed; None removes a key."""
    config = {key: value for key, value in {**LLAMA, **changes}.items() if value is not None}
    return derive(config, Draft(), 32000, (2, 16, 29))


def test_llama_is_copied_whole():
    assert plain() == DraftConfig(
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
        rope_scaling=LLAMA3_SCALING,
        bos_token_id=128000,
        eos_token_id=(128001, 128008, 128009),
    )
    assert plain().num_aux == 3


ROPES: dict[str, tuple[dict[str, Any], float, dict[str, Any] | None]] = {
    "llama3 before transformers 5": ({}, 500000.0, LLAMA3_SCALING),
    "llama3 since transformers 5": (
        {"rope_theta": None, "rope_scaling": None, "rope_parameters": {**LLAMA3_SCALING, "rope_theta": 500000.0}},
        500000.0,
        LLAMA3_SCALING,
    ),
    "plain before transformers 5": ({"rope_scaling": None}, 500000.0, None),
    "plain since transformers 5": (
        {"rope_theta": None, "rope_scaling": None, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
        1e6,
        None,
    ),
    "no base at all": ({"rope_theta": None, "rope_scaling": None}, 10000.0, None),
    "the oldest spelling of a type": (
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        500000.0,
        {"rope_type": "linear", "factor": 2.0},
    ),
    "both spellings of a type": (
        {"rope_scaling": {"type": "yarn", "rope_type": "yarn", "factor": 4.0, "beta_fast": 32.0, "truncate": False}},
        500000.0,
        {"rope_type": "yarn", "factor": 4.0, "beta_fast": 32.0, "truncate": False},
    ),
    "a part of each head, which the draft does not follow": (
        {
            "rope_scaling": None,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.5},
        },
        1e6,
        None,
    ),
    "one rope per kind of layer, like Gemma's": (
        {
            "rope_theta": None,
            "rope_scaling": None,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            },
        },
        1e6,
        {"rope_type": "linear", "factor": 8.0},
    ),
    "kinds of layers without a full one": (
        {"rope_scaling": None, "rope_parameters": {"chunked": {"rope_type": "default", "rope_theta": 3e5}}},
        3e5,
        None,
    ),
    "sections for images, like Qwen2-VL's": (
        {"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}},
        500000.0,
        None,
    ),
    "longrope with its length outside, like Phi-3's": (
        {
            "original_max_position_embeddings": 4096,
            "rope_scaling": {"type": "su", "short_factor": [1.0] * 64, "long_factor": [2.0] * 64},
        },
        500000.0,
        {
            "rope_type": "longrope",
            "original_max_position_embeddings": 4096,
            "short_factor": [1.0] * 64,
            "long_factor": [2.0] * 64,
        },
    ),
    "longrope with a factor, which vLLM takes from the lengths": (
        {
            "rope_scaling": {
                "rope_type": "longrope",
                "factor": 32.0,
                "attention_factor": 1.19,
                "original_max_position_embeddings": 4096,
                "short_factor": [1.0] * 64,
                "long_factor": [2.0] * 64,
            }
        },
        500000.0,
        {
            "rope_type": "longrope",
            "original_max_position_embeddings": 4096,
            "short_factor": [1.0] * 64,
            "long_factor": [2.0] * 64,
        },
    ),
    "longrope of a part of each head, like Phi-4-mini's": (
        {"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48}},
        500000.0,
        None,
    ),
}


@pytest.mark.parametrize(("changes", "theta", "scaling"), ROPES.values(), ids=ROPES.keys())
def test_rope_is_the_targets(changes: dict[str, Any], theta: float, scaling: dict[str, Any] | None):
    config = plain(**changes)
    assert (config.rope_theta, config.rope_scaling) == (theta, scaling)
    cos, _ = tiny_copy(config)._rope(torch.arange(4))
    assert cos.shape == (4, 1, config.head_dim)


def tiny_copy(config: DraftConfig) -> DraftModel:
    """A model on the `meta` device would not compute a rope: keep the heads, make all else small."""
    small = {"hidden_size": 8, "target_hidden_size": 8, "intermediate_size": 8, "vocab_size": 16, "draft_vocab_size": 8}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1}
    return DraftModel(DraftConfig(**{**vars(config), **small, **heads}))


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "gemma3_text", "gpt_oss", "phi3", "granite"])
def test_rope_of_the_draft_is_that_of_the_library_for_the_target(family: str):
    """Both spellings of real configs: as this version of transformers writes them, and as version 4 did."""
    written = AutoConfig.for_model(family).to_dict()
    config = derive(written, Draft(), 1000, (2, 4, 5))
    parameters = written["rope_parameters"]
    parameters = parameters.get("full_attention", parameters)
    assert config.rope_theta == parameters["rope_theta"]
    kind = parameters["rope_type"]
    assert (config.rope_scaling or {"rope_type": "default"})["rope_type"] == kind
    older = without(written, "rope_parameters")
    older["rope_theta"] = parameters["rope_theta"]
    older["rope_scaling"] = None if kind == "default" else without(parameters, "rope_theta")
    assert derive(older, Draft(), 1000, (2, 4, 5)) == config


HEADS: dict[str, tuple[dict[str, Any], tuple[int, int, int]]] = {
    "as written": ({"head_dim": 64}, (32, 8, 64)),
    "size from the width": ({}, (32, 8, 128)),
    "a key head per query head where none is named": ({"num_key_value_heads": None}, (32, 32, 128)),
    "latent attention, like DeepSeek's": (
        {"hidden_size": 7168, "num_attention_heads": 128, "kv_lora_rank": 512, "q_lora_rank": 1536},
        (56, 14, 128),
    ),
    "linear attention, like Qwen3-Next's": (
        {"hidden_size": 2048, "linear_num_key_heads": 16, "head_dim": 256},
        (16, 4, 128),
    ),
    "latent attention of a narrow model": ({"hidden_size": 256, "kv_lora_rank": 16}, (2, 1, 128)),
}


@pytest.mark.parametrize(("changes", "heads"), HEADS.values(), ids=HEADS.keys())
def test_heads_are_the_targets_or_plain_ones(changes: dict[str, Any], heads: tuple[int, int, int]):
    config = plain(**changes)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == heads


WIDTHS: dict[str, tuple[dict[str, Any], Draft, int]] = {
    "a dense target": ({}, Draft(), 14336),
    "a mixture of experts, in steps of 256": ({"hidden_size": 2880, "num_local_experts": 32}, Draft(), 17408),
    "experts of another name": ({"num_experts": 128}, Draft(), 24576),
    "routed experts": ({"n_routed_experts": 256}, Draft(), 24576),
    "no width in the config": ({"intermediate_size": None}, Draft(), 24576),
    "one width per layer": ({"intermediate_size": [4096, 8192]}, Draft(), 8192),
    "a width that the user chose": ({"num_experts": 128}, Draft(intermediate_size=6144), 6144),
}


@pytest.mark.parametrize(("changes", "draft", "width"), WIDTHS.values(), ids=WIDTHS.keys())
def test_mlp_is_as_wide_as_the_targets_or_six_times_its_states(changes: dict[str, Any], draft: Draft, width: int):
    config = {key: value for key, value in {**LLAMA, **changes}.items() if value is not None}
    assert derive(config, draft, 32000, (2, 16, 29)).intermediate_size == width


@pytest.mark.parametrize("key", ["rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps", "norm_eps"])
def test_epsilon_is_found_under_any_name(key: str):
    assert plain(**{"rms_norm_eps": None, key: 3e-5}).rms_norm_eps == 3e-5


def test_epsilon_of_a_config_without_one():
    assert plain(rms_norm_eps=None).rms_norm_eps == 1e-6


@pytest.mark.parametrize(
    ("given", "expected"), [(2, 2), ([1, 2], (1, 2)), (None, None)], ids=["one", "several", "none"]
)
def test_stop_tokens_are_copied(given: Any, expected: Any):
    assert plain(eos_token_id=given).eos_token_id == expected


def test_profiles_are_flags():
    later = derive(LLAMA, Draft(profile="eagle3.1"), 32000, (2, 16, 29))
    assert (later.fc_norm, later.feed_normed_hidden) == (True, True)
    assert (later.norm_before_fc, later.norm_before_residual) == (False, False)
    config = plain()
    assert {config.fc_norm, config.feed_normed_hidden, config.norm_before_fc, config.norm_before_residual} == {False}


def test_missing_keys_are_named_all_at_once():
    with pytest.raises(ValueError, match=r"hidden_size, num_attention_heads missing; accepted: a causal LM's config"):
        derive(without(LLAMA, "hidden_size", "num_attention_heads"), Draft(), 32000, (2, 16, 29))
