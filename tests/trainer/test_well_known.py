"""Configs of well-known targets: transformers makes of each one a model with as many parameters as are published."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from draftyard_api.targets import WELL_KNOWN, can_spread, weights

PUBLISHED = {
    "meta-llama/Llama-3.2-1B-Instruct": 1_235_814_400,
    "meta-llama/Llama-3.2-3B-Instruct": 3_212_749_824,
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "meta-llama/Llama-3.1-70B-Instruct": 70_553_706_496,
    "meta-llama/Llama-3.3-70B-Instruct": 70_553_706_496,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-32B": 32_762_123_264,
    "Qwen/Qwen3-30B-A3B": 30_532_122_624,
    "Qwen/Qwen3-235B-A22B": 235_093_634_560,
    "openai/gpt-oss-20b": 20_914_757_184,
    "openai/gpt-oss-120b": 116_829_156_672,
    "mistralai/Mistral-7B-Instruct-v0.3": 7_248_023_552,
    "mistralai/Mistral-Small-24B-Instruct-2501": 23_572_403_200,
    "microsoft/phi-4": 14_659_507_200,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
}
"""What the files of the hub hold. A wrong width, number of layers or of heads would show."""
BILLIONS = {
    "deepseek-ai/DeepSeek-V3": 671.0,
    "deepseek-ai/DeepSeek-R1": 671.0,
    "moonshotai/Kimi-K2-Instruct": 1026.4,
    "google/gemma-3-12b-it": 11.77,
    "google/gemma-3-27b-it": 27.01,
    "inclusionAI/Ling-3.0-Flash": 124.4,
}
"""The files of these hold more than the text model, or their count is published in billions only."""
KINDS = {"kimi_k2": "deepseek_v3"}
"""A model with a name of its own that is built as another one."""


def parameters(config: Any) -> int:
    """Of the model, with matrices that are one counted once; nothing is allocated."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return sum({id(weight): weight.numel() for weight in model.parameters()}.values())


@pytest.mark.parametrize("name", WELL_KNOWN)
def test_a_well_known_config_gives_the_published_model(name: str) -> None:
    config = dict(WELL_KNOWN[name])
    config["model_type"] = KINDS.get(config["model_type"], config["model_type"])
    if "rope_theta" not in config:
        config["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0}
    found = parameters(AutoConfig.for_model(**config))
    if name in PUBLISHED:
        assert found == PUBLISHED[name]
    else:
        assert found / 1e9 == pytest.approx(BILLIONS[name], rel=1e-3)
    # what is left out is less than a hundredth
    assert weights(config).total == pytest.approx(found, rel=0.01)


@pytest.mark.parametrize("name", WELL_KNOWN)
def test_targets_that_can_be_spread_are_those_with_a_plan(name: str) -> None:
    config = dict(WELL_KNOWN[name])
    config["model_type"] = KINDS.get(config["model_type"], config["model_type"])
    config.setdefault("rope_parameters", {"rope_type": "default", "rope_theta": 10000.0})
    plan = AutoConfig.for_model(**config).base_model_tp_plan or {}
    heads = config["num_key_value_heads"]
    assert can_spread(config, heads) == (bool(plan) or heads == 1)
    assert can_spread(config, 1)
    spread = weights(config).spreads_attention
    assert spread == (any("self_attn" in part for part in plan) or config["model_type"] == "gpt_oss")
