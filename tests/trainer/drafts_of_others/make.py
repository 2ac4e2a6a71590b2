"""Writes tiny drafts with the model classes and writers of their own trainers, for tests of reading them.

Run in the virtual environment of each trainer, as `bench/Makefile` makes them: `python make.py specforge` and
`python make.py speculators`. What is committed came from specforge 0.2.0 and speculators 0.9.0 with transformers 5.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import LlamaConfig

HERE = Path(__file__).parent
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_hidden_layers": 1,
    "vocab_size": 96,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
}
DRAFT_TOKENS = 40
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 500000.0,
}


def vocabulary() -> tuple[torch.Tensor, torch.Tensor]:
    """`d2t` as offsets, and `t2d`."""
    ids = torch.randperm(96, generator=torch.Generator().manual_seed(1))[:DRAFT_TOKENS].sort().values
    t2d = torch.zeros(96, dtype=torch.bool)
    t2d[ids] = True
    return ids - torch.arange(DRAFT_TOKENS), t2d


def seeded(model: torch.nn.Module) -> None:
    """Weights that a test can tell from untouched ones."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.2 * noise if parameter.dim() > 1 else 1 + 0.1 * noise)


def specforge() -> None:
    """As its exporter to SGLang writes them: without the embedding, with both spellings of rope."""
    from specforge.export.checkpoint_io import apply_legacy_rope_scaling  # noqa: PLC0415
    from specforge.export.to_sglang import _serving_state  # noqa: PLC0415
    from specforge.modeling.draft.llama3_eagle import LlamaForCausalLMEagle3  # noqa: PLC0415

    for name, extra in (("specforge", {}), ("specforge-normed", {"fc_norm": True, "norm_output": True})):
        config = LlamaConfig(**SHAPE, rope_parameters=LLAMA3_ROPE)
        config.architectures = ["LlamaForCausalLMEagle3"]
        config.draft_vocab_size = DRAFT_TOKENS
        config.eagle_config = {"eagle_aux_hidden_state_layer_ids": [1, 3, 4], "use_aux_hidden_state": True}
        for key, value in extra.items():
            setattr(config, key, value)
        model = LlamaForCausalLMEagle3(config, attention_backend="sdpa")
        seeded(model)
        model.d2t, model.t2d = vocabulary()
        model = model.to(torch.bfloat16)
        state = {key: value for key, value in model.state_dict().items() if "embed" not in key.lower()}
        model.save_pretrained(HERE / name, state_dict=_serving_state(state, {}))
        apply_legacy_rope_scaling(str(HERE / name))


def speculators() -> None:
    """As its trainer saves them: with the embedding, Llama and Qwen3 layers, the later norms."""
    from speculators import SpeculatorsConfig, VerifierConfig  # noqa: PLC0415
    from speculators.models.eagle3 import Eagle3DraftModel, Eagle3SpeculatorConfig  # noqa: PLC0415
    from speculators.proposals.greedy import GreedyTokenProposalConfig  # noqa: PLC0415
    from transformers import Qwen3Config  # noqa: PLC0415

    for name, kind, extra in (
        ("speculators", LlamaConfig, {}),
        ("speculators-normed", LlamaConfig, {"fc_norm": True, "norm_output": True}),
        ("speculators-qwen3", Qwen3Config, {}),
    ):
        layer = kind(**SHAPE, rope_parameters=LLAMA3_ROPE)
        layer._attn_implementation = "sdpa"
        config = Eagle3SpeculatorConfig(
            transformer_layer_config=layer,
            draft_vocab_size=DRAFT_TOKENS,
            eagle_aux_hidden_state_layer_ids=[2, 4, 5],
            speculators_config=SpeculatorsConfig(
                algorithm="eagle3",
                proposal_methods=[GreedyTokenProposalConfig(speculative_tokens=3)],
                default_proposal_method="greedy",
                verifier=VerifierConfig(name_or_path=None, architectures=["LlamaForCausalLM"]),
            ),
            **extra,
        )
        model = Eagle3DraftModel(config)
        seeded(model)
        d2t, t2d = vocabulary()
        model.d2t.copy_(d2t)
        model.t2d.copy_(t2d)
        model.to(torch.bfloat16).save_pretrained(HERE / name)
        # its own code, which nothing here runs
        (HERE / name / "config.py").unlink(missing_ok=True)


if __name__ == "__main__":
    {"specforge": specforge, "speculators": speculators}[sys.argv[1]]()
