"""SpecForge 0.2.0, the trainer most drafts come from, gives the same numbers where it is asked the same question.

`make_golden.py` beside this file says how the fixture was made. Two conventions differ from ours and are switched here:
the gates (`specforge`), and losses that are divided by padded positions instead of supervised pairs. SpecForge also
supervises a teacher of zeros where the last token of a document is an answer; the fixture has no such token.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from draftyard_trainer.data.document import Document
from draftyard_trainer.draft.config import DraftConfig
from draftyard_trainer.draft.model import DraftModel
from draftyard_trainer.hidden_states.sample import Sample
from draftyard_trainer.loss import LossConfig, StepLoss, Teacher, ttt_loss
from draftyard_trainer.rows import build_row
from draftyard_trainer.target.head import TargetHead
from draftyard_trainer.ttt import unroll

STEPS, DECAY = 7, 0.8
DECAYS = DECAY ** torch.arange(STEPS, dtype=torch.float64)
CONFIG = DraftConfig(
    hidden_size=64,
    target_hidden_size=64,
    intermediate_size=128,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    vocab_size=256,
    draft_vocab_size=64,
    aux_layers=(2, 4, 5),
    rms_norm_eps=1e-5,
    max_position_embeddings=64,
    rope_theta=10000.0,
    rope_scaling=None,
)


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(Path(__file__).with_name("golden_specforge.safetensors"))


def make_draft(golden: dict[str, Tensor]) -> DraftModel:
    weights = {name.removeprefix("weight."): tensor for name, tensor in golden.items() if name.startswith("weight.")}
    draft = DraftModel(CONFIG)
    draft.attach_embedding(weights.pop("embed_tokens.weight"))
    draft.load_state_dict(weights)
    return draft


def make_samples(golden: dict[str, Tensor], head: TargetHead) -> list[Sample]:
    """The rows of the fixture without their padding."""
    samples = []
    for row, length in enumerate(golden["input.attention_mask"].sum(1).tolist()):
        mask = golden["input.loss_mask"][row, :length].numpy().astype(bool)
        assert not mask[-1]
        spans = np.array([[token, 1] for token in np.flatnonzero(mask)])
        document = Document(row, golden["input.input_ids"][row, :length].numpy(), spans)
        last = golden["input.last"][row, torch.from_numpy(document.label_rows())]
        chosen = head.tok_lse(last)
        samples.append(Sample(document, golden["input.aux"][row, :length], last, chosen.tok, chosen.lse))
    return samples


def run(golden: dict[str, Tensor], draft: DraftModel) -> StepLoss:
    head_weight = golden["input.target_lm_head"]
    head = TargetHead(head_weight, head_weight, torch.ones(64), {})
    row = build_row(make_samples(golden, head), STEPS, "specforge")
    # every padded position counts, supervised or not, and the weights of the steps keep their sum
    scales = DECAYS / golden["input.loss_mask"].numel()
    return ttt_loss(draft, unroll(draft, row), row, Teacher.of(head, draft.target_ids()), LossConfig(scales))


def test_losses_of_all_steps_are_specforges(golden: dict[str, Tensor]):
    loss = run(golden, make_draft(golden))
    torch.testing.assert_close((loss.sums.loss / DECAYS).float(), golden["losses"], rtol=1e-5, atol=0)
    assert golden["losses"].unique().numel() == STEPS


def test_hits_of_all_steps_are_specforges(golden: dict[str, Tensor]):
    loss = run(golden, make_draft(golden))
    assert loss.sums.hits.tolist() == golden["corrects"].tolist()
    assert golden["corrects"].count_nonzero() >= 5


def test_gradients_of_all_weights_are_specforges(golden: dict[str, Tensor]):
    draft = make_draft(golden)
    run(golden, draft).total.backward()
    gradients = {name: parameter.grad for name, parameter in draft.named_parameters()}
    assert {f"gradient.{name}" for name in gradients} == {name for name in golden if name.startswith("gradient.")}
    assert len(gradients) == 13
    for name, gradient in gradients.items():
        expected = golden[f"gradient.{name}"]
        difference = (gradient - expected).norm() / expected.norm()
        assert difference < 1e-4, f"{name}: relative difference {difference}"
        assert expected.norm() > 0
