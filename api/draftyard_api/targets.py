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
EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")
"""Spellings of how many experts a layer has, of which a token passes through a few."""
NOT_SPREAD = ("gpt_oss",)
"""Kinds of which transformers has no plan for several GPUs."""


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


@dataclass(frozen=True)
class Weights:
    """Parameters of a target as GPUs hold them; norms, biases and routers are left out, less than a hundredth."""

    embeddings: int
    """The table of tokens and the head, which may be one."""
    attention: int
    mlp: int
    """All experts."""
    spreads_attention: bool
    """Whether several GPUs hold a part of it each: latent and linear attention stay whole."""

    @property
    def total(self) -> int:
        """All together."""
        return self.embeddings + self.attention + self.mlp

    def on_each(self, gpus: int) -> int:
        """What each of several GPUs holds."""
        spread = self.mlp + (self.attention if self.spreads_attention else 0)
        return self.total - spread + -(-spread // gpus)


def weights(config: Mapping[str, Any]) -> Weights:
    """What a target with this config weighs; a nested text config is looked into."""
    config = config.get("text_config", config)
    hidden, layers = int(config["hidden_size"]), int(config["num_hidden_layers"])
    all_experts = max(number(config, name) for name in EXPERT_COUNTS)
    through_all = {**config, "num_experts_per_tok": all_experts} if all_experts else config
    return Weights(
        embeddings=(1 if config.get("tie_word_embeddings") else 2) * int(config["vocab_size"]) * hidden,
        attention=layers * attention_parameters(config, plain_heads(config)),
        mlp=3 * hidden * sum(mlp_widths(through_all)),
        spreads_attention=not any(config.get(key) for key in NO_PLAIN_HEADS),
    )


def can_spread(config: Mapping[str, Any], gpus: int) -> bool:
    """Whether transformers can spread such a target: it needs a plan, and whole key heads on each GPU."""
    config = config.get("text_config", config)
    return gpus == 1 or (config.get("model_type") not in NOT_SPREAD and plain_heads(config).key % gpus == 0)


# -- Well-known targets -----------------------------------------------------------------------------


def _config(
    kind: str, hidden: int, layers: int, vocab: int, heads: tuple[int, int, int], mlp: int, *, positions: int,
    **more: Any,
) -> dict[str, Any]:  # fmt: skip
    return {
        "model_type": kind, "hidden_size": hidden, "num_hidden_layers": layers, "vocab_size": vocab,
        "num_attention_heads": heads[0], "num_key_value_heads": heads[1], "head_dim": heads[2],
        "intermediate_size": mlp, "max_position_embeddings": positions, **more,
    }  # fmt: skip


def _latent(
    kind: str, layers: int, vocab: int, heads: int, positions: int, experts: int, **more: Any
) -> dict[str, Any]:
    """DeepSeek-V3 and its kin: latent attention, one shared expert. `head_dim` is what is rotated."""
    return _config(
        kind, 7168, layers, vocab, (heads, heads, 64), 18432, positions=positions,
        q_lora_rank=1536, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128,
        n_routed_experts=experts, num_experts_per_tok=8, moe_intermediate_size=2048, n_shared_experts=1, **more,
    )  # fmt: skip


def _qwen3_moe(hidden: int, layers: int, heads: tuple[int, int], mlp: int, expert: int) -> dict[str, Any]:
    return _config(
        "qwen3_moe", hidden, layers, 151936, (*heads, 128), mlp, positions=40960,
        num_experts=128, num_experts_per_tok=8, moe_intermediate_size=expert,
    )  # fmt: skip


def _gpt_oss(layers: int, experts: int) -> dict[str, Any]:
    return _config(
        "gpt_oss", 2880, layers, 201088, (64, 8, 64), 2880, positions=131072,
        num_local_experts=experts, num_experts_per_tok=4,
    )  # fmt: skip


def _gemma3(hidden: int, layers: int, heads: tuple[int, int, int], mlp: int) -> dict[str, Any]:
    """The text part, which is nested in the published config."""
    return _config("gemma3_text", hidden, layers, 262208, heads, mlp, positions=131072, tie_word_embeddings=True)


_DEEPSEEK = _latent("deepseek_v3", 61, 129280, 128, 163840, 256, first_k_dense_replace=3)
_LLAMA_70B = _config("llama", 8192, 80, 128256, (64, 8, 128), 28672, positions=131072)
_LING_3 = _config(
    "bailing_hybrid", 2560, 42, 157184, (32, 32, 128), 6144, positions=262144,
    kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128, num_local_experts=512,
    num_experts_per_tok=8, moe_intermediate_size=768, n_shared_experts=1, first_k_dense_replace=2,
)  # fmt: skip

WELL_KNOWN: Mapping[str, Mapping[str, Any]] = {
    "meta-llama/Llama-3.2-1B-Instruct": _config(
        "llama", 2048, 16, 128256, (32, 8, 64), 8192, positions=131072, tie_word_embeddings=True
    ),
    "meta-llama/Llama-3.2-3B-Instruct": _config(
        "llama", 3072, 28, 128256, (24, 8, 128), 8192, positions=131072, tie_word_embeddings=True
    ),
    "meta-llama/Llama-3.1-8B-Instruct": _config("llama", 4096, 32, 128256, (32, 8, 128), 14336, positions=131072),
    "meta-llama/Llama-3.1-70B-Instruct": _LLAMA_70B,
    "meta-llama/Llama-3.3-70B-Instruct": _LLAMA_70B,
    "Qwen/Qwen2.5-7B-Instruct": _config("qwen2", 3584, 28, 152064, (28, 4, 128), 18944, positions=32768),
    "Qwen/Qwen3-8B": _config("qwen3", 4096, 36, 151936, (32, 8, 128), 12288, positions=40960),
    "Qwen/Qwen3-32B": _config("qwen3", 5120, 64, 151936, (64, 8, 128), 25600, positions=40960),
    "Qwen/Qwen3-30B-A3B": _qwen3_moe(2048, 48, (32, 4), 6144, 768),
    "Qwen/Qwen3-235B-A22B": _qwen3_moe(4096, 94, (64, 4), 12288, 1536),
    "openai/gpt-oss-20b": _gpt_oss(24, 32),
    "openai/gpt-oss-120b": _gpt_oss(36, 128),
    "deepseek-ai/DeepSeek-V3": _DEEPSEEK,
    "deepseek-ai/DeepSeek-R1": _DEEPSEEK,
    "moonshotai/Kimi-K2-Instruct": _latent("kimi_k2", 61, 163840, 64, 131072, 384, first_k_dense_replace=1),
    "google/gemma-3-12b-it": _gemma3(3840, 48, (16, 8, 256), 15360),
    "google/gemma-3-27b-it": _gemma3(5376, 62, (32, 16, 128), 21504),
    "mistralai/Mistral-7B-Instruct-v0.3": _config("mistral", 4096, 32, 32768, (32, 8, 128), 14336, positions=32768),
    "mistralai/Mistral-Small-24B-Instruct-2501": _config(
        "mistral", 5120, 40, 131072, (32, 8, 128), 32768, positions=32768
    ),
    "microsoft/phi-4": _config("phi3", 5120, 40, 100352, (40, 10, 128), 17920, positions=16384),
    "inclusionAI/Ling-3.0-Flash": _LING_3,
    "HuggingFaceTB/SmolLM2-135M-Instruct": _config(
        "llama", 576, 30, 49152, (9, 3, 64), 1536, positions=8192, tie_word_embeddings=True
    ),
}
"""Configs as published, for an estimate before anything is downloaded."""
