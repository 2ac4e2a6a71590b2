"""SpecForge 0.2.0: its own model, teacher over the draft vocabulary, loss and optimizer; padded batches.

Its Triton loss kernel needs a GPU: here its own torch reference of the same loss stands in.
"""

from __future__ import annotations

import torch
from specforge.algorithms.eagle3 import model as eagle3
from specforge.core.loss import _compute_loss
from specforge.modeling.draft.llama3_eagle import LlamaForCausalLMEagle3
from specforge.optimizer import BF16Optimizer
from specforge.utils import padding
from torch import Tensor
from transformers import LlamaConfig

from cases import DECAY, LEARNING_RATE, TTT_STEPS, Case, Shape


class ReferenceLoss:
    """SpecForge's definition of its loss, in the place of the kernel."""

    apply = staticmethod(_compute_loss)


class Bench:
    """A padded batch."""

    def __init__(self, case: Case, tensors: dict[str, Tensor]) -> None:
        eagle3.LogSoftmaxLoss = ReferenceLoss
        weights = {name[7:]: tensor for name, tensor in tensors.items() if name.startswith("weight.")}
        draft = loaded(case.shape, weights, tensors["embedding"])
        self.model = eagle3.OnlineEagle3Model(draft, length=TTT_STEPS, attention_backend="sdpa")
        self.optimizer = BF16Optimizer(draft, lr=LEARNING_RATE, total_steps=1000)
        self.batch = padded_batch(tensors)
        self.head = tensors["head"]

    def step(self, _index: int) -> dict[str, list[float]]:
        """One optimizer step. Returns the mean cross-entropy of each unroll step."""
        batch = self.batch
        losses = step_losses(self.model, batch, self.head)
        sum(DECAY**step * loss for step, loss in enumerate(losses)).backward()
        self.optimizer.step()
        # Its mean is over all places; compared is the mean over those that count. Labels shift out on the right.
        counts = [int(batch["mask"][:, step:].sum()) for step in range(TTT_STEPS)]
        means = [float(loss) * batch["mask"].numel() / count for loss, count in zip(losses, counts, strict=True)]
        return {"ce": means}


def loaded(shape: Shape, weights: dict[str, Tensor], embedding: Tensor) -> LlamaForCausalLMEagle3:
    """Its draft in float32 with given weights, and an embedding that is not trained."""
    draft = LlamaForCausalLMEagle3(draft_config(shape), attention_backend="sdpa").float()
    missing, unexpected = draft.load_state_dict({**weights, "embed_tokens.weight": embedding}, False)
    assert not unexpected, unexpected
    assert all("rotary" in name for name in missing), missing
    draft.embed_tokens.weight.requires_grad_(False)
    return draft


def step_losses(model: eagle3.OnlineEagle3Model, batch: dict[str, Tensor], head: Tensor) -> list[Tensor]:
    """The loss of each unroll step."""
    losses, *_ = model(
        input_ids=padding(batch["tokens"], left=False),
        attention_mask=batch["present"],
        target=None,
        loss_mask=batch["mask"][..., None],
        hidden_states=batch["aux"],
        target_hidden_for_compact=padding(batch["last"], left=False),
        target_head_weight=head,
    )
    return list(losses)


def draft_config(shape: Shape) -> LlamaConfig:
    """The same draft in its words."""
    config = LlamaConfig(
        hidden_size=shape.hidden_size, intermediate_size=shape.intermediate_size, num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads, head_dim=shape.head_dim, num_hidden_layers=1, vocab_size=shape.vocab_size,
        rms_norm_eps=shape.rms_norm_eps, max_position_embeddings=16384, rope_theta=shape.rope_theta, pad_token_id=0,
    )  # fmt: skip
    config.draft_vocab_size = shape.draft_vocab_size
    return config


def padded_batch(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """All documents side by side, filled up to the longest."""
    count = sum(name.startswith("tokens.") for name in tensors)

    def padded(parts: list[Tensor]) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)

    masks = []
    for number in range(count):
        mask = torch.zeros(len(tensors[f"tokens.{number}"]), dtype=torch.int64)
        for start, length in tensors[f"spans.{number}"].tolist():
            mask[start : start + length] = 1
        masks.append(mask)
    return {
        "tokens": padded([tensors[f"tokens.{number}"] for number in range(count)]),
        "aux": padded([tensors[f"aux.{number}"] for number in range(count)]),
        "last": padded([tensors[f"last.{number}"] for number in range(count)]),
        "mask": padded(masks),
        "present": padded([torch.ones_like(mask) for mask in masks]),
    }


def build(case: Case, tensors: dict[str, Tensor]) -> Bench:
    """A trainer of the case."""
    return Bench(case, tensors)
