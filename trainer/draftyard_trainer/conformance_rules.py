"""The checks behind the conformance rules: each returns what is wrong, or None.

Both engines accept many broken drafts in silence: missing tensors stay random, misread layer ids cost a few per cent,
a wrong rope shows only in long texts. So an export is checked against what it was trained as, not by trying it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from draftyard_trainer.data.document import Ids
from draftyard_trainer.draft.header import ARCHITECTURE, EMBEDDING, ENGINE_PREFIX, INTEGER_DTYPES, DraftFiles

# Acceptance lengths named in this file were measured with one draft of SmolLM2-135M-Instruct in vLLM 0.32.0 on a CPU,
# greedy, three proposals; unbroken it reaches 1.914.
LAYER_TENSORS = (
    "input_layernorm.weight",
    "hidden_norm.weight",
    "post_attention_layernorm.weight",
    "self_attn.q_proj.weight",
    "self_attn.k_proj.weight",
    "self_attn.v_proj.weight",
    "self_attn.o_proj.weight",
    "mlp.gate_proj.weight",
    "mlp.up_proj.weight",
    "mlp.down_proj.weight",
)
NEWER_FLAGS = ("fc_norm", "norm_output", "norm_before_fc")
SAFETENSORS_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


@dataclass(frozen=True)
class TextHashes:
    """What decides how text becomes tokens."""

    tokenizer_sha256: str
    template_sha256: str


@dataclass(frozen=True)
class TargetFacts:
    """What an export must agree with: the target, and how the draft was trained."""

    profile: str
    """`eagle3` or `eagle3.1`."""
    vocab_size: int
    """V: the target's padded `config.vocab_size`."""
    max_position_embeddings: int
    rope_theta: float
    """As trained."""
    rope_scaling: Mapping[str, Any] | None
    """As trained, with `rope_type`; None for plain RoPE."""
    aux_layers: tuple[int, ...]
    """Layers at capture, as indices into `hidden_states`."""
    marker_ids: tuple[int, ...]
    """Stop tokens, and markers of the template, that the draft should be able to propose."""
    dtype: str
    """What the target is served in: bfloat16, float16 or float32."""
    captured: TextHashes
    """Of the tokens that the draft was trained on."""
    served: TextHashes
    """Of the target as it is now."""
    engines: tuple[str, ...]
    """Versions of the engines that this profile needs."""


class WeightChecks(Protocol):
    """What the rules of the weights ask; `probe.Probe` answers. Rules themselves load no weights, and no torch."""

    def check_values(self, files: DraftFiles) -> str | None:
        """Whether values are finite and sane."""
        ...

    def check_logits(self, files: DraftFiles) -> str | None:
        """Whether the files compute what was trained."""
        ...


def check_architecture(files: DraftFiles, _facts: TargetFacts) -> str | None:
    """SGLang looks the class up by this very name."""
    # vLLM would load even LlamaForCausalLM when told the method, so a test there does not see this one.
    given = files.config.get("architectures")
    return None if given == [ARCHITECTURE] else f"architectures: given {given}; accepted: [{ARCHITECTURE!r}]"


def implied_names(config: Mapping[str, Any]) -> set[str]:
    """Tensors that a config asks for. The embedding is the target's, unless the widths differ."""
    names = {"fc.weight", "norm.weight", "lm_head.weight", "d2t", "t2d"}
    # midlayer, not layers.0: older SGLang knows only the former, everything newer renames it.
    names.update(f"midlayer.{name}" for name in LAYER_TENSORS)
    if config.get("fc_norm"):
        names.update(f"fc_norm.{index}.weight" for index in range(len(top_ids(config))))
    if config.get("norm_before_fc"):
        names.add("input_norm.weight")
    # Of equal width the engines share the target's embedding; SGLang replaces whatever the file has.
    if config.get("hidden_size") != config.get("target_hidden_size"):
        names.add(EMBEDDING)
    return names


def check_names(files: DraftFiles, _facts: TargetFacts) -> str | None:
    """An unknown tensor is ignored by SGLang and refused by vLLM; a missing one stays random in both, in silence."""
    # Silent in vLLM: without d2t 1.673, without lm_head 1.562.
    expected, given = implied_names(files.config), files.bare_names()
    missing, unknown = sorted(expected - given), sorted(given - expected - {EMBEDDING})
    if not missing and not unknown:
        return None
    return f"tensors: missing {missing}, unknown {unknown}"


def check_prefix(files: DraftFiles, _facts: TargetFacts) -> str | None:
    """VLLM puts `model.` before every name itself."""
    # SGLang tries both spellings, vLLM does not: "There is no module or parameter named".
    prefixed = sorted(name for name in files.tensors if name.startswith(ENGINE_PREFIX))
    return f"tensors: {prefixed[0]} and {len(prefixed) - 1} more start with model." if prefixed else None


def check_attention_width(files: DraftFiles, _facts: TargetFacts) -> str | None:
    """The one layer reads embedding and hidden state side by side."""
    # Embedding first, then the hidden state: the other order has the same shape, and only the probe sees it.
    wanted = 2 * int(files.config.get("hidden_size") or 0)
    for name in ("q_proj", "k_proj", "v_proj"):
        tensor = files.find(f"midlayer.self_attn.{name}.weight")
        if tensor is not None and tensor.shape[1:] != (wanted,):
            return f"{name}: given {list(tensor.shape)}; accepted: [_, {wanted}], twice hidden_size"
    return None


def check_fusion_width(files: DraftFiles, _facts: TargetFacts) -> str | None:
    """Both engines size `fc` by the number of layers that the config names."""
    # Without the count vLLM takes the length of the nested list, never of the top-level one.
    ids, count = top_ids(files.config), files.config.get("num_aux_hidden_states")
    wanted = len(ids) * int(files.config.get("target_hidden_size") or 0)
    tensor = files.find("fc.weight")
    if count != len(ids):
        return f"num_aux_hidden_states: given {count}; accepted: {len(ids)}, the number of layer ids"
    if tensor is not None and tensor.shape[1:] != (wanted,):
        return f"fc.weight: given {list(tensor.shape)}; accepted: [_, {wanted}], layers x target_hidden_size"
    return None


def check_vocabulary_size(files: DraftFiles, _facts: TargetFacts) -> str | None:
    """Three places say D."""
    # Without the key vLLM takes the target's size, and SGLang the target's head.
    size = files.config.get("draft_vocab_size")
    for name in ("lm_head.weight", "d2t"):
        tensor = files.find(name)
        if tensor is not None and tensor.shape[:1] != (size,):
            return f"{name}: given {list(tensor.shape)}; accepted: draft_vocab_size ({size}) rows"
    return None


def check_offsets(files: DraftFiles, _facts: TargetFacts) -> str | None:
    """Engines add `d2t` to the draft id; absolute ids end in an index error, or in tokens that are never accepted."""
    tensor = files.find("d2t")
    if tensor is None:
        return None
    # Both engines add it to int64 ids.
    if tensor.dtype != "I64":
        return f"d2t: given {tensor.dtype}; accepted: I64"
    ids, size = target_ids(files), int(files.config.get("vocab_size") or 0)
    if ids is None or not len(ids) or ids[0] < 0 or ids[-1] >= size or not (np.diff(ids) > 0).all():
        return f"d2t: draft id + d2t is not strictly ascending inside 0..{size - 1}; accepted: offsets, not ids"
    return None


def check_membership(files: DraftFiles, facts: TargetFacts) -> str | None:
    """`t2d` and `d2t` are one mapping in two forms; a warm start reads both."""
    member, ids = files.read_integers("t2d"), target_ids(files)
    if ids is None or files.find("t2d") is None or check_offsets(files, facts) is not None:
        return None
    if member is None:
        return "t2d: accepted: BOOL"
    # Against the target and not the config, so that one mistake breaks one rule.
    if len(member) != facts.vocab_size:
        return f"t2d: given {len(member)} entries; accepted: {facts.vocab_size}, the target's vocabulary"
    if not np.array_equal(np.flatnonzero(member), ids):
        return f"t2d: names {int(member.sum())} tokens that are not the {len(ids)} of d2t"
    return None


def check_markers(files: DraftFiles, facts: TargetFacts) -> str | None:
    """Without its stop token a draft is wrong at every end of a turn."""
    ids = target_ids(files)
    if ids is None:
        return None
    # A warning: such a draft works, and loses one round at the end of every turn.
    missing = sorted(set(facts.marker_ids) - set(ids.tolist()))
    return (
        f"d2t: tokens {missing} of the chat template cannot be proposed; add them to draft.keepTokens"
        if missing
        else None
    )


def check_target_vocabulary(files: DraftFiles, facts: TargetFacts) -> str | None:
    """The embedding is shared, so its rows must be the target's."""
    # The padded size: a tokenizer often has fewer tokens than the matrix has rows.
    given = files.config.get("vocab_size")
    return (
        None if given == facts.vocab_size else f"vocab_size: given {given}; accepted: {facts.vocab_size}, the target's"
    )


def check_untied(files: DraftFiles, _facts: TargetFacts) -> str | None:
    """SGLang would put the embedding in place of the smaller head."""
    config = files.config
    # vLLM ignores the key. With D = V a tied head would at least have the right shape.
    if config.get("draft_vocab_size") == config.get("vocab_size") or config.get("tie_word_embeddings") is False:
        return None
    return f"tie_word_embeddings: given {config.get('tie_word_embeddings')}; accepted: false"


def check_layer_forms(files: DraftFiles, _facts: TargetFacts) -> str | None:
    """VLLM reads inputs of blocks (top level); SGLang outputs (nested), since May 2026 only if the first one is 1."""
    nested = (files.config.get("eagle_config") or {}).get("eagle_aux_hidden_state_layer_ids")
    # Nested ids alone: 1.826; ids one too high: 1.822. Both look healthy, on a real draft they cost most of the gain.
    wanted = [layer - 1 for layer in top_ids(files.config)]
    if nested == wanted and wanted[:1] == [1]:
        return None
    return f"eagle_config.eagle_aux_hidden_state_layer_ids: given {nested}; accepted: {wanted}, with 1 first"


def check_layers(files: DraftFiles, facts: TargetFacts) -> str | None:
    """Off by one layer costs a few per cent on a weak draft: no smoke test sees it."""
    # Reported elsewhere for a real draft: 10 % of first tokens accepted in place of 45 %.
    ids = top_ids(files.config)
    if ids == list(facts.aux_layers):
        return None
    return f"eagle_aux_hidden_state_layer_ids: given {ids}; accepted: {list(facts.aux_layers)}, the captured layers"


def check_rope(files: DraftFiles, facts: TargetFacts) -> str | None:
    """A wrong rope grows with the position: theta 10000 for 100000 cost 0.004 within 200 tokens."""
    theta, scaling = files.config.get("rope_theta"), files.config.get("rope_scaling")
    # An absent key and a null one mean the same here; the null itself breaks another rule.
    wanted = dict(facts.rope_scaling) if facts.rope_scaling else None
    if theta == facts.rope_theta and scaling == wanted:
        return None
    return f"rope_theta, rope_scaling: given {theta}, {scaling}; accepted: {facts.rope_theta}, {wanted}, as trained"


def check_positions(files: DraftFiles, facts: TargetFacts) -> str | None:
    """VLLM cuts the draft's positions in silence."""
    given = files.config.get("max_position_embeddings")
    # Positions cut at 64: 1.164.
    if isinstance(given, int) and given >= facts.max_position_embeddings:
        return None
    return f"max_position_embeddings: given {given}; accepted: at least {facts.max_position_embeddings}, the target's"


def check_full_attention(files: DraftFiles, _facts: TargetFacts) -> str | None:
    """SGLang ignores the key, vLLM obeys it."""
    return "sliding_window: accepted: no such key" if "sliding_window" in files.config else None


def check_no_bias(files: DraftFiles, _facts: TargetFacts) -> str | None:
    """SGLang drops biases in silence."""
    given = files.config.get("attention_bias")
    return None if given is False else f"attention_bias: given {given}; accepted: false"


def check_types(files: DraftFiles, _facts: TargetFacts) -> str | None:
    """VLLM's reader ends with a TypeError on a null."""
    # "TypeError: expected bool", for use_cache null.
    nulls = null_paths(files.config, "")
    if nulls:
        return f"{', '.join(nulls)}: given null; accepted: a value, or no such key"
    given = files.config.get("use_cache")
    return None if isinstance(given, bool) else f"use_cache: given {given}; accepted: true or false"


def check_dtype(files: DraftFiles, facts: TargetFacts) -> str | None:
    """An engine casts the draft to the target's dtype, and float16 overflows on some residual streams."""
    wanted = SAFETENSORS_DTYPES[facts.dtype]
    other = {tensor.dtype for tensor in files.tensors.values()} - {wanted, *INTEGER_DTYPES}
    # A warning: engines cast, and only float16 can go wrong by it.
    written = files.config.get("torch_dtype")
    if not other and written == facts.dtype:
        return None
    return f"torch_dtype: given {written}, tensors {sorted(other)}; accepted: {facts.dtype}, as the target"


def check_profile(files: DraftFiles, facts: TargetFacts) -> str | None:
    """Older engines ignore the newer keys and compute something else."""
    config = files.config
    # True in vLLM: 1.150. It must be written, since one reader's default is true.
    if config.get("norm_before_residual") is not False:
        return (
            f"norm_before_residual: given {config.get('norm_before_residual')}; accepted: false (SGLang has no other)"
        )
    flags = [name for name in NEWER_FLAGS if config.get(name)]
    if flags and facts.profile != "eagle3.1":
        return f"{', '.join(flags)}: given true in profile {facts.profile}; accepted: only in eagle3.1"
    # There is no error in an engine that is too old, so the manifest must say which ones are not.
    if flags and not facts.engines:
        return f"{', '.join(flags)}: no engine versions are recorded; accepted: those that read the keys"
    return None


def check_text(_files: DraftFiles, facts: TargetFacts) -> str | None:
    """Another template gives other text than the draft was trained on."""
    # A warning: a new template may differ in a case that never occurs.
    if facts.captured == facts.served:
        return None
    return f"tokenizer, template: trained with {facts.captured}; the target now has {facts.served}"


def top_ids(config: Mapping[str, Any]) -> list[int]:
    """Captured layers as vLLM reads them."""
    return list(config.get("eagle_aux_hidden_state_layer_ids") or ())


def target_ids(files: DraftFiles) -> Ids | None:
    """Target id of each draft id; None without offsets."""
    offsets = files.read_integers("d2t")
    return None if offsets is None else offsets + np.arange(len(offsets))


def null_paths(value: Any, path: str) -> list[str]:
    """Where a JSON value holds null."""
    if isinstance(value, Mapping):
        children = [(f"{path}.{key}" if path else str(key), child) for key, child in value.items()]
        return [found for name, child in children for found in null_paths(child, name)]
    return [path] if value is None else []
