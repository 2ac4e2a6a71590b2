"""Makes `golden_specforge.safetensors`: losses and gradients of SpecForge 0.2.0 for random weights and states.

In a virtual environment of its own, with torch and transformers 5:

    pip install --no-deps specforge==0.2.0
    pip install torch transformers accelerate datasets psutil pyyaml pydantic safetensors numpy tqdm triton
    TORCHDYNAMO_DISABLE=1 python tests/numerics/make_golden.py

It runs on a CPU: attention by sdpa, and SpecForge's own torch reference in place of its Triton loss.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from specforge.algorithms.eagle3 import model as eagle3
from specforge.core.loss import _compute_loss
from specforge.modeling.draft.llama3_eagle import LlamaForCausalLMEagle3
from specforge.utils import padding
from torch import Tensor
from transformers import LlamaConfig

STEPS, DECAY = 7, 0.8
ROWS, LENGTH, PADDED_LENGTH = 2, 24, 19
WIDTH, VOCABULARY, DRAFT_VOCABULARY = 64, 256, 64
FAVOURITES = 6
"""Tokens that both draft and target often choose: without them, two random heads would hardly ever agree."""
# (start, length) of the answers of each row. The last token of a document is no answer: there SpecForge would train on
# a teacher of zeros, which no real state stands behind.
TURNS = (((4, 7), (15, 8)), ((3, 15),))


class ReferenceLoss:
    """SpecForge's definition of its loss, in the place of the kernel."""

    apply = staticmethod(_compute_loss)


def make_draft(generator: torch.Generator) -> LlamaForCausalLMEagle3:
    """Weights large enough that the steps differ; norms near 1."""
    config = LlamaConfig(
        hidden_size=WIDTH, intermediate_size=128, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        num_hidden_layers=1, vocab_size=VOCABULARY, rms_norm_eps=1e-5, max_position_embeddings=64, rope_theta=10000.0,
        pad_token_id=0,
    )  # fmt: skip
    config.draft_vocab_size = DRAFT_VOCABULARY
    draft = LlamaForCausalLMEagle3(config, attention_backend="sdpa").float()
    with torch.no_grad():
        for parameter in draft.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.1 * noise if parameter.dim() > 1 else 1 + 0.1 * noise)
    ids = torch.randperm(VOCABULARY, generator=generator)[:DRAFT_VOCABULARY].sort().values
    draft.t2d.zero_()[ids] = True
    draft.d2t.copy_(ids - torch.arange(DRAFT_VOCABULARY))
    draft.lm_head.weight.data[:FAVOURITES] *= 3
    draft.embed_tokens.weight.requires_grad_(False)
    return draft


def make_inputs(generator: torch.Generator, ids: Tensor) -> dict[str, Tensor]:
    """Unshifted arrays, the second row padded on the right; `ids` are the target's of the draft vocabulary."""
    target_lm_head = 0.3 * torch.randn(VOCABULARY, WIDTH, generator=generator)
    target_lm_head[ids[:FAVOURITES]] *= 2
    loss_mask = torch.zeros(ROWS, LENGTH, dtype=torch.int64)
    for row, turns in enumerate(TURNS):
        for start, length in turns:
            loss_mask[row, start : start + length] = 1
    attention_mask = torch.ones(ROWS, LENGTH, dtype=torch.int64)
    attention_mask[1, PADDED_LENGTH:] = 0
    return {
        "input_ids": torch.randint(0, VOCABULARY, (ROWS, LENGTH), generator=generator) * attention_mask,
        "attention_mask": attention_mask,
        "loss_mask": loss_mask,
        "aux": torch.randn(ROWS, LENGTH, 3 * WIDTH, generator=generator),
        "last": torch.randn(ROWS, LENGTH, WIDTH, generator=generator),
        "target_lm_head": target_lm_head,
    }


def main() -> None:
    """Run SpecForge once and save everything that went in and came out."""
    eagle3.LogSoftmaxLoss = ReferenceLoss
    generator = torch.Generator().manual_seed(20)
    draft = make_draft(generator)
    inputs = make_inputs(generator, draft.d2t + torch.arange(DRAFT_VOCABULARY))
    model = eagle3.OnlineEagle3Model(draft, length=STEPS, attention_backend="sdpa")
    logits = inputs["last"] @ inputs["target_lm_head"].T
    losses, _, _, corrects, *_ = model(
        input_ids=padding(inputs["input_ids"], left=False),
        attention_mask=inputs["attention_mask"],
        target=padding(logits, left=False),
        loss_mask=inputs["loss_mask"][..., None],
        hidden_states=inputs["aux"],
    )
    sum(DECAY**step * loss for step, loss in enumerate(losses)).backward()
    trained = {name: weight for name, weight in draft.named_parameters() if weight.requires_grad}
    tensors = {
        **{f"input.{name}": tensor for name, tensor in inputs.items()},
        **{f"weight.{name}": weight.detach() for name, weight in draft.state_dict().items()},
        **{f"gradient.{name}": weight.grad for name, weight in trained.items()},
        "losses": torch.stack(losses).detach(),
        "corrects": torch.stack(corrects).to(torch.int64),
    }
    path = Path(__file__).with_name("golden_specforge.safetensors")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, {"decay": str(DECAY)})


if __name__ == "__main__":
    main()
