"""A GPU in bf16 against a CPU in fp32, from the same bf16 weights and states."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from draftyard_api.spec import Train
from draftyard_trainer.draft import layers
from draftyard_trainer.draft.attention import Chain, Documents, attend, attend_dense
from draftyard_trainer.draft.model import DraftModel
from draftyard_trainer.draft.testing import supervised_sample, tiny_config, tiny_draft, tiny_embedding, tiny_head
from draftyard_trainer.loss import LossConfig, StepLoss, Teacher, step_scales, ttt_loss
from draftyard_trainer.optim import Optimizer
from draftyard_trainer.rows import PackedRow, build_row
from draftyard_trainer.ttt import unroll

GPU = torch.device("cuda")
STEPS = 5
CONFIG = tiny_config(hidden_size=256, target_hidden_size=256, intermediate_size=512, num_attention_heads=8,
                     num_key_value_heads=2, head_dim=64, vocab_size=1024, draft_vocab_size=512)  # fmt: skip
ERROR = 0.02
"""Norm of a difference over the norm of what it should be: bf16 has 8 bits."""


def error(given: Tensor, expected: Tensor) -> float:
    return float((given.cpu().double() - expected.double()).norm() / expected.double().norm())


def make_row() -> PackedRow:
    head = tiny_head(CONFIG)
    shapes = ((70, [(9, 20), (40, 30)]), (33, [(5, 28)]), (9, []), (128, [(60, 60)]))
    samples = [supervised_sample(head, CONFIG.num_aux, n, spans, seed) for seed, (n, spans) in enumerate(shapes)]
    narrow = [replace(s, aux=s.aux.bfloat16(), last=s.last.bfloat16()) for s in samples]
    return build_row(narrow, STEPS)


def loss_of(draft: DraftModel, device: torch.device, dtype: torch.dtype) -> StepLoss:
    row = make_row().to(device)
    head = tiny_head(CONFIG).to(torch.device("cpu"), torch.bfloat16).to(device, dtype)
    draft.attach_embedding(tiny_embedding(CONFIG).bfloat16().to(device, dtype))
    config = LossConfig(step_scales(row.gates_TN.sum(1)))
    loss = ttt_loss(draft, unroll(draft, row), row, Teacher.of(head, draft.target_ids()), config)
    loss.total.backward()
    return loss


def make_draft(device: torch.device, dtype: torch.dtype) -> DraftModel:
    return tiny_draft(CONFIG, scale=0.05).bfloat16().to(device, dtype)


def test_loss_and_gradients_are_those_of_a_cpu():
    gpu, cpu = make_draft(GPU, torch.bfloat16), make_draft(torch.device("cpu"), torch.float32)
    given, expected = loss_of(gpu, GPU, torch.bfloat16), loss_of(cpu, torch.device("cpu"), torch.float32)
    assert float(given.total) == pytest.approx(float(expected.total), rel=5e-3)
    torch.testing.assert_close(given.sums.gated.cpu(), expected.sums.gated)
    for (name, on_gpu), on_cpu in zip(gpu.named_parameters(), cpu.parameters(), strict=True):
        assert error(on_gpu.grad, on_cpu.grad) < 3 * ERROR, name


def test_the_masters_of_an_update_are_fp32():
    draft = make_draft(GPU, torch.bfloat16)
    before = draft.lm_head.weight.detach().clone()
    optimizer = Optimizer(draft.trained_parameters(), Train(learning_rate=0.01), 10)
    loss_of(draft, GPU, torch.bfloat16)
    optimizer.collect()
    update = optimizer.step(3)
    assert not update.skipped
    assert all(master.dtype == torch.float32 for master in optimizer.masters)
    assert not torch.equal(draft.lm_head.weight, before)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_attention_is_that_of_the_definition(share):
    generator = torch.Generator().manual_seed(0)
    lengths, heads, groups, size = (150, 7, 300), 8, 2, 64
    total = sum(lengths)
    borders = torch.tensor([0, *lengths]).cumsum(0)
    rows = (torch.rand(total, generator=generator) < share).nonzero().squeeze(1)
    shapes = [(len(rows), heads, size), *[(total, groups, size)] * 2, *[(len(rows), groups, size)] * 4]
    tensors = [torch.randn(shape, generator=generator).bfloat16() for shape in shapes]
    weights = torch.randn(len(rows), heads, size, generator=generator).bfloat16()

    def run(attention: object, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
        leaves = [tensor.to(device, dtype).requires_grad_() for tensor in tensors]
        query, key, value, *chain = leaves
        own = torch.arange(len(rows), device=device)
        links = [Chain(chain[2 * step], chain[2 * step + 1], own) for step in range(2)]
        documents = Documents(tuple(borders.tolist()), borders.to(device, torch.int32))
        seen = attention(query, key, value, rows.to(device), documents, links)  # type: ignore[operator]
        (seen * weights.to(device, dtype)).sum().backward()
        return [seen.detach(), *[leaf.grad for leaf in leaves]]  # type: ignore[list-item]

    given, expected = run(attend, GPU, torch.bfloat16), run(attend_dense, torch.device("cpu"), torch.float32)
    for place, (ours, theirs) in enumerate(zip(given, expected, strict=True)):
        assert error(ours, theirs) < ERROR, place


def test_labels_are_made_in_fp32_and_ties_go_to_the_lowest_id():
    head = tiny_head(CONFIG).to(torch.device("cpu"), torch.bfloat16)
    head.lm_head[700] = head.lm_head[3]
    last = torch.cat([torch.randn(300, 256), head.lm_head[3:4].float() * 5]).bfloat16()
    given = head.to(GPU, torch.bfloat16).tok_lse(last.to(GPU))
    logits = last.double() @ head.lm_head.double().T
    torch.testing.assert_close(given.lse.cpu().double(), torch.logsumexp(logits, -1), rtol=1e-5, atol=1e-4)
    assert int(given.tok[-1]) == 3
    assert float((given.tok.cpu() == logits.argmax(-1)).double().mean()) > 0.99


def test_steps_of_other_lengths_and_scales_are_not_compiled_again():
    draft = make_draft(GPU, torch.bfloat16)
    optimizer = Optimizer(draft.trained_parameters(), Train(), 10)
    head = tiny_head(CONFIG).to(torch.device("cpu"), torch.bfloat16).to(GPU, torch.bfloat16)
    draft.attach_embedding(tiny_embedding(CONFIG).bfloat16().to(GPU))
    compiled = []
    for length in (60, 75, 90, 111, 130, 155, 170, 200):
        sample = supervised_sample(tiny_head(CONFIG), CONFIG.num_aux, length, [(9, length - 9)], seed=length)
        row = build_row([replace(sample, aux=sample.aux.bfloat16(), last=sample.last.bfloat16())], STEPS).to(GPU)
        config = LossConfig(step_scales(row.gates_TN.sum(1)))
        loss = ttt_loss(draft, unroll(draft, row), row, Teacher.of(head, draft.target_ids()), config)
        loss.total.backward()
        optimizer.collect()
        optimizer.step(0)
        compiled.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert compiled[-1] == compiled[2], compiled
    assert not torch._dynamo.utils.counters["graph_break"], torch._dynamo.utils.counters["graph_break"]


def test_what_runs_compiled_equals_what_is_written(monkeypatch):
    draft = make_draft(GPU, torch.bfloat16)
    assert layers.has_compiler(), "these tests need a C compiler and Triton"
    quick = float(loss_of(draft, GPU, torch.bfloat16).total)
    given = [parameter.grad.clone() for parameter in draft.parameters()]
    draft.zero_grad()
    monkeypatch.setattr(layers, "has_compiler", lambda: False)
    assert float(loss_of(draft, GPU, torch.bfloat16).total) == pytest.approx(quick, rel=1e-3)
    for (name, parameter), ours in zip(draft.named_parameters(), given, strict=True):
        assert error(ours, parameter.grad.cpu()) < ERROR, name
