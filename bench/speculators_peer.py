"""speculators 0.9.0: its own model, loss and optimizer; documents packed into one row.

Its head is frozen by default; here it is trained, as everywhere else, so that all do the same work.
"""

from __future__ import annotations

import torch
from speculators.losses import resolve_loss_config
from speculators.models.eagle3 import Eagle3DraftModel, Eagle3SpeculatorConfig
from speculators.models.eagle3.data import shift_batch
from torch import Tensor
from transformers import LlamaConfig

from cases import DECAY, LEARNING_RATE, NUM_AUX, TTT_STEPS, Case, Shape

WEIGHT_DECAY = 0.0
CLIP = 1.0
NAMES = {"midlayer.": "layers.0."}


class Bench:
    """One packed row."""

    def __init__(self, case: Case, tensors: dict[str, Tensor]) -> None:
        self.model = Eagle3DraftModel(draft_config(case.shape))
        self.model.load_state_dict(renamed(tensors, self.model), strict=True)
        self.model.lm_head.weight.requires_grad_(True)
        self.model.embed_tokens.weight.requires_grad_(False)
        self.optimizer = torch.optim.AdamW(self.model.named_parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        self.batch = packed_row(tensors)
        self.loss = resolve_loss_config("kl_div", "eager")

    def step(self, _index: int) -> dict[str, list[float]]:
        """One optimizer step. Returns the mean KL divergence of each unroll step."""
        _, loss, metrics = self.model(
            **self.batch, ttt_steps=TTT_STEPS, ttt_step_loss_decay=DECAY, loss_config=self.loss
        )
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        return {"kl": [float(metrics[f"loss_{step}_sum"]) / DECAY**step for step in range(TTT_STEPS)]}


def draft_config(shape: Shape) -> Eagle3SpeculatorConfig:
    """The same draft in its words."""
    layer = LlamaConfig(
        hidden_size=shape.hidden_size, intermediate_size=shape.intermediate_size, num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads, head_dim=shape.head_dim, num_hidden_layers=1, vocab_size=shape.vocab_size,
        rms_norm_eps=shape.rms_norm_eps, max_position_embeddings=16384, rope_theta=shape.rope_theta,
    )  # fmt: skip
    layer._attn_implementation = "sdpa"
    return Eagle3SpeculatorConfig(
        transformer_layer_config=layer, draft_vocab_size=shape.draft_vocab_size,
        eagle_aux_hidden_state_layer_ids=list(range(NUM_AUX)),
    )  # fmt: skip


def renamed(tensors: dict[str, Tensor], model: Eagle3DraftModel) -> dict[str, Tensor]:
    """The draft's weights under its names, with the target's tables that it keeps inside."""
    weights = {}
    for name, tensor in tensors.items():
        if name.startswith("weight."):
            plain = name.removeprefix("weight.")
            for ours, theirs in NAMES.items():
                plain = plain.replace(ours, theirs)
            weights[plain] = tensor
    ids = weights["d2t"] + torch.arange(len(weights["d2t"]))
    weights |= {
        "embed_tokens.weight": tensors["embedding"],
        "verifier_lm_head.weight": tensors["head"][ids],
        "verifier_norm.weight": torch.ones(tensors["head"].shape[1]),
    }
    return {name: tensor for name, tensor in weights.items() if name in model.state_dict()}


def packed_row(tensors: dict[str, Tensor], mask_shift: int = 1) -> dict[str, Tensor]:
    """All documents one after another, each shifted as its own data code does.

    Its mask is of the token behind the teacher's row, the others' of the row's own: shifted by one it means the same.
    """
    count = sum(name.startswith("tokens.") for name in tensors)
    parts = []
    for number in range(count):
        tokens = tensors[f"tokens.{number}"]
        mask = torch.zeros(len(tokens), dtype=torch.bool)
        for start, length in tensors[f"spans.{number}"].tolist():
            mask[start + mask_shift : start + mask_shift + length] = True
        shifted = shift_batch(
            {
                "input_ids": tokens,
                "hidden_states": tensors[f"aux.{number}"],
                "verifier_last_hidden_states": tensors[f"last.{number}"],
                "loss_mask": mask,
                "lengths": torch.tensor([len(tokens)]),
                "position_ids": torch.arange(len(tokens)),
            }
        )
        del shifted["lengths"]
        parts.append({**shifted, "document_ids": torch.full((len(tokens) - 1,), number)})
    return {name: torch.cat([part[name] for part in parts])[None] for name in parts[0]}


def build(case: Case, tensors: dict[str, Tensor]) -> Bench:
    """A trainer of the case."""
    return Bench(case, tensors)
