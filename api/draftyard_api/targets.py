"""Shapes of targets: what the estimate needs of a config, and the configs of well-known targets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MOE_DRAFT_WIDTHS = 6
"""Width of the draft's MLP for a mixture of experts, in widths of the model."""
DRAFT_WIDTH_MULTIPLE = 256
PLAIN_HEAD_DIM = 128
"""Head size of the draft where the target's heads are no plain ones."""
NO_PLAIN_HEADS = ("kv_lora_rank", "q_lora_rank", "linear_num_key_heads")


@dataclass(frozen=True)
class Heads:
    """Query heads, key heads and their size."""

    query: int
    key: int
    size: int


@dataclass(frozen=True)
class TargetShape:
    """Sizes that decide bytes and FLOPs."""

    hidden_size: int
    num_layers: int
    vocab_size: int
    attention_parameters: int
    """Of the projections of one layer."""
    mlp_parameters: int
    """Of all layers together, as far as one token passes through them."""
    draft_heads: Heads
    """The draft's attention."""
    draft_mlp_width: int
    """Width of the draft's MLP."""
    is_sparse: bool
    """A mixture of experts: its GPUs are used less well."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> TargetShape:
        """The shape of a `config.json`; a nested text config is looked into. Raises ValueError naming a missing key."""
        config = config.get("text_config", config)
        missing = [key for key in ("hidden_size", "num_hidden_layers", "vocab_size") if not config.get(key)]
        if missing:
            raise ValueError(f"config.json: {', '.join(missing)} missing; accepted: a causal LM's config")
        hidden, is_sparse = int(config["hidden_size"]), number(config, "num_experts_per_tok") > 0
        heads = plain_heads(config)
        return cls(
            hidden_size=hidden,
            num_layers=int(config["num_hidden_layers"]),
            vocab_size=int(config["vocab_size"]),
            attention_parameters=attention_parameters(config, heads),
            mlp_parameters=3 * hidden * sum(mlp_widths(config)),
            draft_heads=draft_heads(hidden) if any(config.get(key) for key in NO_PLAIN_HEADS) else heads,
            draft_mlp_width=moe_draft_width(hidden) if is_sparse else max(mlp_widths(config)),
            is_sparse=is_sparse,
        )

    @property
    def active_parameters(self) -> int:
        """What one token passes through, the input embedding left out."""
        return self.num_layers * self.attention_parameters + self.mlp_parameters + self.vocab_size * self.hidden_size


def number(config: Mapping[str, Any], key: str, default: int = 0) -> int:
    """A whole number of a config; the default where it is absent, null or 0."""
    return int(config.get(key) or default)


def plain_heads(config: Mapping[str, Any]) -> Heads:
    """Heads as a config names them."""
    hidden = int(config["hidden_size"])
    query = number(config, "num_attention_heads", max(1, hidden // PLAIN_HEAD_DIM))
    key = number(config, "num_key_value_heads", query)
    return Heads(query, key, number(config, "head_dim", hidden // query))


def draft_heads(hidden: int) -> Heads:
    """Heads of a draft whose target has latent or linear attention."""
    query = max(1, hidden // PLAIN_HEAD_DIM)
    return Heads(query, max(1, query // 4), PLAIN_HEAD_DIM)


def moe_draft_width(hidden: int) -> int:
    """Width of the draft's MLP for a mixture of experts, rounded up."""
    return -(-MOE_DRAFT_WIDTHS * hidden // DRAFT_WIDTH_MULTIPLE) * DRAFT_WIDTH_MULTIPLE


def attention_parameters(config: Mapping[str, Any], heads: Heads) -> int:
    """Parameters of one layer's projections, latent attention (DeepSeek) included."""
    hidden, latent = int(config["hidden_size"]), number(config, "kv_lora_rank")
    if not latent:
        return 2 * hidden * heads.size * (heads.query + heads.key)
    content, rotary = number(config, "qk_nope_head_dim"), number(config, "qk_rope_head_dim")
    value = number(config, "v_head_dim", content)
    query_latent = number(config, "q_lora_rank")
    queries = heads.query * (content + rotary)
    query = query_latent * (hidden + queries) if query_latent else hidden * queries
    return query + hidden * (latent + rotary) + latent * heads.query * (content + value) + heads.query * value * hidden


def mlp_widths(config: Mapping[str, Any]) -> list[int]:
    """Width of the MLPs that one token passes through in each layer, together."""
    layers = int(config["num_hidden_layers"])
    dense = config.get("intermediate_size") or 4 * int(config["hidden_size"])
    if isinstance(dense, list):
        # One width per layer, as in Gemma 3n.
        return [int(width) for width in dense]
    experts = number(config, "num_experts_per_tok")
    if not experts:
        return [int(dense)] * layers
    each = number(config, "moe_intermediate_size", int(dense))
    width = each * (experts + number(config, "n_shared_experts")) + number(config, "shared_expert_intermediate_size")
    first = number(config, "first_k_dense_replace")
    return [int(dense)] * first + [width] * (layers - first)


def _config(
    hidden: int, layers: int, vocab: int, heads: tuple[int, int], head_dim: int, mlp: int, **more: int
) -> dict[str, int]:
    return {
        "hidden_size": hidden, "num_hidden_layers": layers, "vocab_size": vocab, "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1], "head_dim": head_dim, "intermediate_size": mlp, **more,
    }  # fmt: skip


def _experts(per_token: int, width: int, **more: int) -> dict[str, int]:
    return {"num_experts_per_tok": per_token, "moe_intermediate_size": width, **more}


_LATENT = {
    "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
}  # fmt: skip

_DEEPSEEK = _config(7168, 61, 129280, (128, 128), 56, 18432, **_LATENT) | _experts(
    8, 2048, n_shared_experts=1, first_k_dense_replace=3
)
_KIMI = _config(7168, 61, 163840, (64, 64), 112, 18432, **_LATENT) | _experts(
    8, 2048, n_shared_experts=1, first_k_dense_replace=1
)

WELL_KNOWN: Mapping[str, Mapping[str, int]] = {
    "meta-llama/Llama-3.2-1B-Instruct": _config(2048, 16, 128256, (32, 8), 64, 8192),
    "meta-llama/Llama-3.2-3B-Instruct": _config(3072, 28, 128256, (24, 8), 128, 8192),
    "meta-llama/Llama-3.1-8B-Instruct": _config(4096, 32, 128256, (32, 8), 128, 14336),
    "meta-llama/Llama-3.1-70B-Instruct": _config(8192, 80, 128256, (64, 8), 128, 28672),
    "meta-llama/Llama-3.3-70B-Instruct": _config(8192, 80, 128256, (64, 8), 128, 28672),
    "Qwen/Qwen2.5-7B-Instruct": _config(3584, 28, 152064, (28, 4), 128, 18944),
    "Qwen/Qwen3-8B": _config(4096, 36, 151936, (32, 8), 128, 12288),
    "Qwen/Qwen3-32B": _config(5120, 64, 151936, (64, 8), 128, 25600),
    "Qwen/Qwen3-30B-A3B": _config(2048, 48, 151936, (32, 4), 128, 6144, **_experts(8, 768)),
    "Qwen/Qwen3-235B-A22B": _config(4096, 94, 151936, (64, 4), 128, 12288, **_experts(8, 1536)),
    "openai/gpt-oss-20b": _config(2880, 24, 201088, (64, 8), 64, 2880, **_experts(4, 2880)),
    "openai/gpt-oss-120b": _config(2880, 36, 201088, (64, 8), 64, 2880, **_experts(4, 2880)),
    "deepseek-ai/DeepSeek-V3": _DEEPSEEK,
    "deepseek-ai/DeepSeek-R1": _DEEPSEEK,
    "moonshotai/Kimi-K2-Instruct": _KIMI,
    "google/gemma-3-12b-it": _config(3840, 48, 262208, (16, 8), 256, 15360),
    "google/gemma-3-27b-it": _config(5376, 62, 262208, (32, 16), 128, 21504),
    "mistralai/Mistral-7B-Instruct-v0.3": _config(4096, 32, 32768, (32, 8), 128, 14336),
    "mistralai/Mistral-Small-24B-Instruct-2501": _config(5120, 40, 131072, (32, 8), 128, 32768),
    "HuggingFaceTB/SmolLM2-135M-Instruct": _config(576, 30, 49152, (9, 3), 64, 1536),
}
"""Configs as published, for an estimate before anything is downloaded."""
