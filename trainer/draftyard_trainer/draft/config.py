"""The draft's architecture, derived from the target's text config and exported exactly as trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from draftyard_api.spec import Draft

MOE_WIDTHS = 6
"""MLP width of the draft of a mixture of experts, in widths of the model: its own experts are too narrow to copy."""
MLP_MULTIPLE = 256
PLAIN_HEAD_DIM = 128
EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_intermediate_size")
LATENT_KEYS = ("kv_lora_rank", "q_lora_rank", "linear_num_key_heads")
"""Targets whose attention has no plain heads to copy."""
EPSILONS = ("rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps", "norm_eps")
PLAIN_ROPES = (None, "default", "mrope")
"""Without images the sections of mrope all have the same position."""


@dataclass(frozen=True)
class DraftConfig:
    """One decoder layer. Flags are false in profile `eagle3`; see docs for what each one means to the engines."""

    hidden_size: int
    """H: width of the draft, the target's."""
    target_hidden_size: int
    """Ht: width of the captured states."""
    intermediate_size: int
    """I: width of the MLP."""
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    """V: the target's padded vocabulary."""
    draft_vocab_size: int
    """D."""
    aux_layers: tuple[int, ...]
    """Captured layers as indices into `hidden_states` (0 = embeddings)."""
    rms_norm_eps: float
    max_position_embeddings: int
    rope_theta: float
    rope_scaling: dict[str, Any] | None
    """As in a Llama config before transformers 5, with `rope_type`; None for plain RoPE."""
    bos_token_id: int | None = None
    eos_token_id: int | tuple[int, ...] | None = None
    fc_norm: bool = False
    feed_normed_hidden: bool = False
    norm_before_fc: bool = False
    norm_before_residual: bool = False

    @property
    def num_aux(self) -> int:
        """A: captured layers."""
        return len(self.aux_layers)


def derive(target: Mapping[str, Any], draft: Draft, draft_vocab_size: int, aux_layers: tuple[int, ...]) -> DraftConfig:
    """The draft's architecture for a target with the text config `target` (a `config.json`, text part).

    Reads the spellings of transformers 4 (`rope_theta`, `rope_scaling`) and 5 (`rope_parameters`). Raises ValueError
    naming a key that the target's config lacks.
    """
    missing = [key for key in ("hidden_size", "vocab_size", "num_attention_heads") if target.get(key) is None]
    if missing:
        raise ValueError(f"config.json of the target: {', '.join(missing)} missing; accepted: a causal LM's config")
    hidden_size = int(target["hidden_size"])
    heads = heads_of(target, hidden_size)
    rope = rope_of(target, heads.size)
    later = draft.profile == "eagle3.1"
    eos = target.get("eos_token_id")
    return DraftConfig(
        hidden_size=hidden_size,
        target_hidden_size=hidden_size,
        intermediate_size=draft.intermediate_size or intermediate_size_of(target, hidden_size),
        num_attention_heads=heads.query,
        num_key_value_heads=heads.key,
        head_dim=heads.size,
        vocab_size=int(target["vocab_size"]),
        draft_vocab_size=draft_vocab_size,
        aux_layers=aux_layers,
        rms_norm_eps=float(next((target[key] for key in EPSILONS if target.get(key)), 1e-6)),
        max_position_embeddings=int(target.get("max_position_embeddings") or 2048),
        rope_theta=rope.theta,
        rope_scaling=rope.scaling,
        bos_token_id=target.get("bos_token_id"),
        eos_token_id=tuple(eos) if isinstance(eos, list) else eos,
        fc_norm=later,
        feed_normed_hidden=later,
    )


@dataclass(frozen=True)
class Heads:
    """Query heads, key heads, head size."""

    query: int
    key: int
    size: int


@dataclass(frozen=True)
class Rope:
    """Base and scaling of the rotary embedding; no scaling for plain RoPE."""

    theta: float
    scaling: dict[str, Any] | None


def heads_of(target: Mapping[str, Any], hidden_size: int) -> Heads:
    """The target's heads; plain ones of size 128 where its attention is latent or linear."""
    if any(target.get(key) for key in LATENT_KEYS):
        query = max(1, hidden_size // PLAIN_HEAD_DIM)
        return Heads(query, max(1, query // 4), PLAIN_HEAD_DIM)
    query = int(target["num_attention_heads"])
    size = int(target.get("head_dim") or hidden_size // query)
    return Heads(query, int(target.get("num_key_value_heads") or query), size)


def intermediate_size_of(target: Mapping[str, Any], hidden_size: int) -> int:
    """The target's MLP width, or 6 widths, rounded up to 256, for a mixture of experts."""
    width = target.get("intermediate_size")
    if isinstance(width, list):
        # One width per layer: the widest, which the target itself found useful somewhere.
        width = max(width)
    if any(target.get(key) for key in EXPERT_KEYS) or width is None:
        return -(-MOE_WIDTHS * hidden_size // MLP_MULTIPLE) * MLP_MULTIPLE
    return int(width)


def rope_of(target: Mapping[str, Any], head_size: int) -> Rope:
    """Base and scaling, in the spelling before transformers 5: engines of all ages read that one."""
    parameters = dict(target.get("rope_parameters") or {})
    if parameters and all(isinstance(value, dict) for value in parameters.values()):
        # One entry per kind of layer: the draft's layer attends over everything.
        parameters = dict(parameters.get("full_attention") or next(iter(parameters.values())))
    theta = float(parameters.pop("rope_theta", None) or target.get("rope_theta") or 10000.0)
    scaling = dict(parameters or target.get("rope_scaling") or {})
    older_name = scaling.pop("type", None)
    kind = scaling.pop("rope_type", None) or older_name
    scaling.pop("partial_rotary_factor", None)
    if kind in PLAIN_ROPES:
        return Rope(theta, None)
    if kind in ("longrope", "su"):
        return Rope(theta, longrope_of(target, scaling, head_size))
    return Rope(theta, {"rope_type": kind, **scaling})


def longrope_of(target: Mapping[str, Any], scaling: Mapping[str, Any], head_size: int) -> dict[str, Any] | None:
    """LongRoPE with the length that Phi-3 keeps outside of it; None where its factors are not for whole heads."""
    if 2 * len(scaling["short_factor"]) != head_size:
        # Phi-4-mini turns three quarters of each head, MiniCPM3 a latent part: the draft turns all of its own.
        return None
    outside = {"original_max_position_embeddings": target.get("original_max_position_embeddings")}
    # vLLM takes the factor from the lengths, whatever else is written: with `factor` cos and sin are up to 0.2 apart.
    known = ("original_max_position_embeddings", "short_factor", "long_factor")
    kept = {key: value for key, value in {**outside, **scaling}.items() if key in known and value is not None}
    return {"rope_type": "longrope", **kept}
