"""The second form of an export: the same draft as the library speculators writes it, for `vllm serve <folder>`.

Other names (`layers.0.*`), and a config that nests the architecture. Every key is written: one reader takes
`norm_before_residual` as true when it is absent, and fills what the nested config lacks with defaults of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from draftyard_trainer.draft.config import DraftConfig
from draftyard_trainer.draft.files import engine_config
from draftyard_trainer.draft.header import CONFIG_FILE, WEIGHTS_FILE, DraftFiles, read_files

FOLDER = "speculators"
"""Below an export: the portable form lies in the export itself."""
VERSION = "0.9.0"
"""Of the library whose form this is."""
ARCHITECTURE = "Eagle3Speculator"
MODEL_TYPE = "eagle3"
PROPOSED = 3
"""Tokens that vLLM drafts when nobody says otherwise."""
OUTER_FLAGS = ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output")
NO_LAYER_KEYS = (
    "architectures",
    "draft_vocab_size",
    "target_hidden_size",
    "num_aux_hidden_states",
    "eagle_aux_hidden_state_layer_ids",
    "eagle_config",
    *OUTER_FLAGS,
)
"""Keys of the portable config that are not about the layer: here they stand outside of the nested one, or nowhere."""
OUR_LAYER, THEIR_LAYER = "midlayer.", "layers.0."


def speculators_config(config: DraftConfig, dtype: str, target: str, target_architectures: Sequence[str]) -> Any:
    """`config.json` of this form. `target` is where vLLM finds the target that the draft is served beside."""
    portable = engine_config(config, dtype)
    layer = {name: value for name, value in portable.items() if name not in NO_LAYER_KEYS}
    return {
        "architectures": [ARCHITECTURE],
        "speculators_model_type": MODEL_TYPE,
        "speculators_version": VERSION,
        "draft_vocab_size": config.draft_vocab_size,
        "norm_before_residual": config.norm_before_residual,
        "norm_before_fc": config.norm_before_fc,
        "fc_norm": config.fc_norm,
        "norm_output": config.feed_normed_hidden,
        "target_hidden_size": config.target_hidden_size,
        "eagle_aux_hidden_state_layer_ids": list(config.aux_layers),
        "embed_requires_grad": False,
        "tie_word_embeddings": False,
        "torch_dtype": dtype,
        "transformer_layer_config": {"architectures": ["LlamaForCausalLM"], **layer},
        "speculators_config": {
            "algorithm": MODEL_TYPE,
            "default_proposal_method": "greedy",
            "proposal_methods": [
                {
                    "proposal_type": "greedy",
                    "speculative_tokens": PROPOSED,
                    "verifier_accept_k": 1,
                    "accept_tolerance": 0.0,
                }
            ],
            "verifier": {"name_or_path": target, "architectures": list(target_architectures)},
        },
    }


def their_name(name: str) -> str:
    """A tensor of the portable form, as this form names it."""
    return THEIR_LAYER + name.removeprefix(OUR_LAYER) if name.startswith(OUR_LAYER) else name


def our_name(name: str) -> str:
    """The reverse."""
    return OUR_LAYER + name.removeprefix(THEIR_LAYER) if name.startswith(THEIR_LAYER) else name


def check_form(folder: Path, portable: DraftFiles) -> list[str]:
    """What of the files in `folder` is not the draft in `portable` in this form; nothing when all is well.

    The portable form has passed every rule, so this one need only be equal to it, key by key and byte by byte.
    """
    files = read_files(folder)
    wrong = [*check_config(files.config, portable.config), *check_tensors(files, portable)]
    return [f"{FOLDER}/{what}" for what in wrong]


def check_config(config: Mapping[str, Any], portable: Mapping[str, Any]) -> list[str]:
    """What of the config says something else than the portable one, or leaves it to a reader's default."""
    wrong = [
        f"{CONFIG_FILE}: {name}: given {config.get(name)}; accepted: {wanted}"
        for name, wanted in (
            ("architectures", [ARCHITECTURE]),
            ("speculators_model_type", MODEL_TYPE),
            *((name, portable.get(name)) for name in ("draft_vocab_size", "eagle_aux_hidden_state_layer_ids")),
            ("target_hidden_size", portable.get("target_hidden_size")),
            ("tie_word_embeddings", False),
            *((name, bool(portable.get(name))) for name in OUTER_FLAGS),
        )
        # `0 == False`: a flag must be one
        if config.get(name) != wanted or type(config.get(name)) is not type(wanted)
    ]
    layer = config.get("transformer_layer_config")
    given = {name: value for name, value in (layer if isinstance(layer, dict) else {}).items() if name in portable}
    wanted = {name: value for name, value in portable.items() if name not in NO_LAYER_KEYS}
    differ = sorted(name for name in wanted if given.get(name) != wanted[name])
    if differ:
        wrong.append(f"{CONFIG_FILE}: transformer_layer_config: {', '.join(differ)}: not as in the portable form")
    method = config.get("speculators_config")
    if not isinstance(method, dict) or not method.get("proposal_methods") or not method.get("verifier"):
        wrong.append(f"{CONFIG_FILE}: speculators_config: accepted: one with proposal_methods and verifier")
    return wrong


def check_tensors(files: DraftFiles, portable: DraftFiles) -> list[str]:
    """Tensors that are missing, unknown, or have other bytes than in the portable form."""
    named = {our_name(name): header for name, header in files.tensors.items()}
    if set(named) != set(portable.tensors) or any(name.startswith(OUR_LAYER) for name in files.tensors):
        missing = sorted(set(portable.tensors) - set(named))
        unknown = sorted({*(set(named) - set(portable.tensors)), *filter(is_ours, files.tensors)})
        return [f"{WEIGHTS_FILE}: tensors: missing {missing}, unknown {unknown}"]
    differ = [
        name
        for name, header in sorted(named.items())
        if (header.dtype, header.shape) != (portable.tensors[name].dtype, portable.tensors[name].shape)
        or not files.same_bytes(header, portable, portable.tensors[name])
    ]
    return [f"{WEIGHTS_FILE}: {', '.join(differ)}: not as in the portable form"] if differ else []


def is_ours(name: str) -> bool:
    """Whether the library would not know this name."""
    return name.startswith(OUR_LAYER)
