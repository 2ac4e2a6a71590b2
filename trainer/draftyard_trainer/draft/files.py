"""A draft on disk: the config that both engines read, and a loader that needs nothing but the folder.

The loader is the numeric check of an export: whatever it cannot rebuild from `config.json` and `model.safetensors`, an
engine cannot either. Embeddings are not in the files; the reader puts the target's into the loaded draft.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from draftyard_trainer.draft.config import DraftConfig
from draftyard_trainer.draft.header import ARCHITECTURE, EMBEDDING, WEIGHTS_FILE, read_files
from draftyard_trainer.draft.model import DraftModel

REQUIRED = (
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "draft_vocab_size",
    "rms_norm_eps",
    "max_position_embeddings",
    "rope_theta",
)
"""Keys that have one name on both sides and no default: a reader's default for any of them is another draft."""


@dataclass(frozen=True, eq=False)
class LoadedDraft:
    """A draft as its files describe it; the model still lacks the embedding."""

    model: DraftModel
    config: DraftConfig


def engine_config(config: DraftConfig, dtype: str) -> dict[str, Any]:
    """`config.json` of the portable profile; `dtype` as torch names it, such as bfloat16. Holds no null.

    Layer ids are written twice: vLLM reads the top level as inputs of blocks, SGLang the nested list as outputs.
    """
    # Keys that have no value for some targets: a null would stop an engine's reader.
    optional: dict[str, Any] = {"rope_scaling": config.rope_scaling, "bos_token_id": config.bos_token_id}
    eos = config.eos_token_id
    optional["eos_token_id"] = list(eos) if isinstance(eos, tuple) else eos
    flags = {
        "fc_norm": config.fc_norm,
        "norm_output": config.feed_normed_hidden,
        "norm_before_fc": config.norm_before_fc,
    }
    return {
        "architectures": [ARCHITECTURE],
        "model_type": "llama",
        **{name: getattr(config, name) for name in REQUIRED},
        "num_hidden_layers": 1,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": dtype,
        # vLLM demands a bool.
        "use_cache": True,
        "target_hidden_size": config.target_hidden_size,
        "num_aux_hidden_states": config.num_aux,
        # Written even when false: readers differ in their default.
        "norm_before_residual": config.norm_before_residual,
        "eagle_aux_hidden_state_layer_ids": list(config.aux_layers),
        "eagle_config": {
            "use_aux_hidden_state": True,
            "eagle_aux_hidden_state_layer_ids": [layer - 1 for layer in config.aux_layers],
        },
        **{name: value for name, value in optional.items() if value is not None},
        # Older engines warn about keys that they do not know, so a flag is written only where it is set.
        **{name: True for name, value in flags.items() if value},
    }


def draft_config(engine: Mapping[str, Any]) -> DraftConfig:
    """The inverse of `engine_config`. Raises ValueError naming the keys that are missing."""
    missing = [name for name in (*REQUIRED, "eagle_aux_hidden_state_layer_ids") if engine.get(name) is None]
    if missing:
        raise ValueError(f"config.json: {', '.join(missing)} missing; accepted: the config of an exported draft")
    eos = engine.get("eos_token_id")
    return DraftConfig(
        **{name: engine[name] for name in REQUIRED},
        # Drafts of other tools may leave it out when the widths are equal.
        target_hidden_size=engine.get("target_hidden_size", engine["hidden_size"]),
        aux_layers=tuple(engine["eagle_aux_hidden_state_layer_ids"]),
        rope_scaling=engine.get("rope_scaling"),
        bos_token_id=engine.get("bos_token_id"),
        eos_token_id=tuple(eos) if isinstance(eos, list) else eos,
        fc_norm=bool(engine.get("fc_norm")),
        feed_normed_hidden=bool(engine.get("norm_output")),
        norm_before_fc=bool(engine.get("norm_before_fc")),
        norm_before_residual=bool(engine.get("norm_before_residual")),
    )


def read_draft(folder: Path, dtype: torch.dtype = torch.float32) -> LoadedDraft:
    """Load the draft in `folder` from its config and weights alone, weights cast to `dtype`, without an embedding.

    Raises ValueError where the files do not fit each other: a missing, unknown or misshapen tensor.
    """
    config = draft_config(read_files(folder).config)
    try:
        tensors = load_file(folder / WEIGHTS_FILE)
    except SafetensorError as error:
        raise ValueError(f"{folder / WEIGHTS_FILE}: {error}") from error
    # The caller attaches the target's, as engines do.
    tensors.pop(EMBEDDING, None)
    return LoadedDraft(assemble_draft(config, tensors, dtype), config)


def assemble_draft(config: DraftConfig, tensors: Mapping[str, Tensor], dtype: torch.dtype) -> DraftModel:
    """A draft with these weights, cast to `dtype`. Raises ValueError naming the tensors that do not fit the config."""
    draft = DraftModel(config).to(dtype)
    try:
        draft.load_state_dict(dict(tensors))
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    return draft.eval()
