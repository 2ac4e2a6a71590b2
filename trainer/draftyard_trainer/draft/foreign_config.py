"""What the config of a foreign draft means in ours: layer ids, norm flags, rope, sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from draftyard_trainer.draft.config import DraftConfig, rope_of

FLAGS = ("fc_norm", "norm_output", "norm_before_fc", "norm_before_residual")
IDS = "eagle_aux_hidden_state_layer_ids"
FIRST_LAYER = 2
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class ReadConfig:
    """Our config, and how it came about: what, found, mapped."""

    config: DraftConfig
    notes: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class Sizes:
    """What the shapes of the tensors say, whatever the config does."""

    hidden: int
    intermediate: int
    query_width: int
    key_width: int
    aux: int


def read(layout: str, config: Mapping[str, Any], shapes: Shapes, target: Mapping[str, Any]) -> ReadConfig:
    """The draft's architecture. `target` is the target's text config. Raises ValueError naming what cannot be ours."""
    layer = dict(config.get("transformer_layer_config") or {}) if layout == "speculators" else dict(config)
    sizes = sizes_of(shapes, int(target["hidden_size"]))
    for message in refusals(layer, sizes, target):
        raise ValueError(message)
    head_dim = int(layer.get("head_dim") or sizes.hidden // int(layer["num_attention_heads"]))
    heads, keys = (width // head_dim for width in (sizes.query_width, sizes.key_width))
    if (heads, heads * head_dim) != (int(layer["num_attention_heads"]), sizes.query_width):
        raise ValueError(
            f"num_attention_heads: given {layer['num_attention_heads']} of size {head_dim}; accepted: what q_proj has, "
            f"{sizes.query_width} rows"
        )
    rope, layers, flags = rope_of(layer, head_dim), layers_of(config, sizes.aux, target), flags_of(layout, config)
    eps = float(layer.get("rms_norm_eps") or 1e-6)
    eos = target.get("eos_token_id")
    positions = int(target.get("max_position_embeddings") or layer.get("max_position_embeddings") or 2048)
    made = DraftConfig(
        hidden_size=sizes.hidden,
        target_hidden_size=sizes.hidden,
        intermediate_size=sizes.intermediate,
        num_attention_heads=heads,
        num_key_value_heads=keys,
        head_dim=head_dim,
        vocab_size=int(target["vocab_size"]),
        draft_vocab_size=shapes["lm_head.weight"][0] if "lm_head.weight" in shapes else 0,
        aux_layers=layers.ids,
        rms_norm_eps=eps,
        max_position_embeddings=positions,
        rope_theta=rope.theta,
        rope_scaling=rope.scaling,
        bos_token_id=target.get("bos_token_id"),
        eos_token_id=tuple(eos) if isinstance(eos, list) else eos,
        fc_norm=flags["fc_norm"],
        feed_normed_hidden=flags["norm_output"],
    )
    spelling = "rope_parameters" if layer.get("rope_parameters") else "rope_theta, rope_scaling"
    given_eps = layer.get("rms_norm_eps", "absent")
    notes = (
        ("layer", f"{heads} heads, {keys} keys of {head_dim}, MLP {sizes.intermediate}", "as it is"),
        ("layer ids", layers.found, f"{list(layers.ids)}: {layers.why}"),
        ("norm flags", flag_text(config), flag_meaning(layout, config, made)),
        ("rope", f"{spelling}: {rope.theta:g}, {rope.scaling or 'plain'}", rope_meaning(rope.theta, target)),
        ("rms_norm_eps", str(given_eps), f"{eps:g}"),
        ("max_position_embeddings", str(layer.get("max_position_embeddings", "absent")), f"{positions}: the target's"),
    )
    return ReadConfig(made, notes)


def sizes_of(shapes: Shapes, target_width: int) -> Sizes:
    """Sizes as the tensors have them. Raises ValueError for a missing one, and for a fusion of other widths."""
    names = {
        "fc": "fc.weight",
        "gate": "midlayer.mlp.gate_proj.weight",
        "query": "midlayer.self_attn.q_proj.weight",
        "key": "midlayer.self_attn.k_proj.weight",
    }
    missing = sorted(name for name in names.values() if len(shapes.get(name, ())) != 2)
    if missing:
        raise ValueError(f"tensors: {', '.join(missing)}: missing, or no matrix; accepted: an EAGLE-3 draft")
    (hidden, fused), query, key = shapes[names["fc"]], shapes[names["query"]], shapes[names["key"]]
    if hidden != target_width:
        raise ValueError(f"hidden_size: given {hidden}; accepted: {target_width}, the target's")
    if query[1] != 2 * hidden:
        raise ValueError(f"q_proj: given {list(query)}; accepted: [_, {2 * hidden}], embedding and state side by side")
    if fused % target_width or fused == 0:
        raise ValueError(f"fc.weight: given {[hidden, fused]}; accepted: [_, layers x {target_width}]")
    return Sizes(hidden, shapes[names["gate"]][0], query[0], key[0], fused // target_width)


def refusals(layer: Mapping[str, Any], sizes: Sizes, target: Mapping[str, Any]) -> Iterator[str]:
    """What no mapping could make ours."""
    if layer.get("num_attention_heads") is None:
        yield "num_attention_heads: missing; accepted: the config that the draft was trained with"
    if int(layer.get("num_hidden_layers") or 1) != 1:
        yield f"num_hidden_layers: given {layer['num_hidden_layers']}; accepted: 1"
    if (size := layer.get("vocab_size")) is not None and int(size) != int(target["vocab_size"]):
        yield f"vocab_size: given {size}; accepted: {target['vocab_size']}, the target's"
    for name in ("hidden_size", "target_hidden_size"):
        if (size := layer.get(name)) is not None and int(size) != sizes.hidden:
            yield f"{name}: given {size}; accepted: {sizes.hidden}, the width of the target and of fc.weight"
    for name in ("attention_bias", "mlp_bias"):
        if layer.get(name):
            yield f"{name}: given true; accepted: false (SGLang drops biases in silence)"
    if layer.get("hidden_act", "silu") != "silu":
        yield f"hidden_act: given {layer['hidden_act']}; accepted: silu"
    if layer.get("sliding_window") and layer.get("use_sliding_window", True):
        yield f"sliding_window: given {layer['sliding_window']}; accepted: none (SGLang attends over everything)"


# -- Layer ids -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layers:
    """Captured layers as indices into `hidden_states`, and how they were told."""

    ids: tuple[int, ...]
    found: str
    why: str


def layers_of(config: Mapping[str, Any], count: int, target: Mapping[str, Any]) -> Layers:
    """Captured layers. Raises ValueError where they do not fit `fc`, or cannot be served by both engines.

    At the top level they are inputs of blocks, indices into `hidden_states`; nested they are outputs, one less, if the
    first one is 1, and else inputs too: so both engines read them today.
    """
    top, nested = config.get(IDS), (config.get("eagle_config") or {}).get(IDS)
    num_layers = int(target["num_hidden_layers"])
    if top is not None:
        ids, found, why = tuple(top), f"top level {list(top)}", "inputs of blocks"
    elif nested is not None and list(nested)[:1] == [FIRST_LAYER - 1]:
        ids, found, why = tuple(one + 1 for one in nested), f"nested {list(nested)}", "outputs of blocks, plus 1"
    elif nested is not None:
        ids, found, why = tuple(nested), f"nested {list(nested)}", "inputs of blocks, as the first is not 1"
    else:
        ids = (FIRST_LAYER, num_layers // 2, num_layers - 3)
        found, why = "absent", f"the default of both engines for {num_layers} layers"
    if len(ids) != count:
        raise ValueError(f"{IDS}: given {found}; accepted: {count} ids, since fc.weight fuses {count} states")
    if list(ids) != sorted(set(ids)) or ids[0] != FIRST_LAYER or ids[-1] >= num_layers:
        raise ValueError(
            f"{IDS}: given {found}, which are {list(ids)} as indices into hidden_states; accepted: ascending, "
            f"{FIRST_LAYER} first, below {num_layers}: no other first layer is read alike by both engines"
        )
    return Layers(ids, found, why)


# -- Flags ---------------------------------------------------------------------------------------


def flags_of(layout: str, config: Mapping[str, Any]) -> dict[str, bool]:
    """`fc_norm` and `norm_output` as both engines read them. Raises ValueError for what no profile of ours has."""
    given = {name: bool(config.get(name)) for name in FLAGS}
    given["norm_before_fc"] |= bool((config.get("eagle_config") or {}).get("norm_before_fc"))
    if layout == "speculators" and "norm_before_residual" not in config:
        raise ValueError(
            "norm_before_residual: absent, which speculators reads as false and vLLM as true; accepted: a config that "
            "says which, as the draft was trained"
        )
    if given["norm_before_residual"] or given["norm_before_fc"]:
        name = "norm_before_residual" if given["norm_before_residual"] else "norm_before_fc"
        raise ValueError(f"{name}: given true; accepted: false (profiles eagle3 and eagle3.1 have no such norm)")
    if layout != "speculators" and not given["fc_norm"]:
        # SpecForge's key means the norm before the head, which every EAGLE-3 draft has
        given["norm_output"] = False
    if given["fc_norm"] != given["norm_output"]:
        raise ValueError(
            f"fc_norm, norm_output: given {given['fc_norm']}, {given['norm_output']}; accepted: both false (profile "
            "eagle3), or both true (profile eagle3.1)"
        )
    return given


def flag_text(config: Mapping[str, Any]) -> str:
    """The flags that a config names."""
    return ", ".join(f"{name} {str(config[name]).lower()}" for name in FLAGS if name in config) or "none"


def flag_meaning(layout: str, config: Mapping[str, Any], made: DraftConfig) -> str:
    """What they became."""
    profile = "eagle3.1" if made.fc_norm else "eagle3"
    if layout != "speculators" and config.get("norm_output") and not made.feed_normed_hidden:
        return f"profile {profile}: without fc_norm, norm_output is the norm before the head"
    if layout != "speculators" and made.feed_normed_hidden:
        return f"profile {profile}, as engines read both keys; SpecForge itself hands on the state un-normed"
    return f"profile {profile}"


def rope_meaning(theta: float, target: Mapping[str, Any]) -> str:
    """Whether it is the target's."""
    wanted = rope_of(target, int(target.get("head_dim") or 0)).theta if not is_long(target) else theta
    return "as it is" if theta == wanted else f"as it is; the target's is {wanted:g}"


def is_long(target: Mapping[str, Any]) -> bool:
    """Whether the target's factors depend on the size of its heads."""
    scaling = target.get("rope_parameters") or target.get("rope_scaling") or {}
    return scaling.get("rope_type", scaling.get("type")) in ("longrope", "su")
