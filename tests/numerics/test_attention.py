"""Linear-memory attention equals the definition with a full matrix, values and all gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from draftyard_trainer.draft import attention as attention_module
from draftyard_trainer.draft.attention import Chain, Documents, attend, attend_dense, blocks

HEAD_DIM = 8
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5}


@dataclass(frozen=True)
class Shape:
    """Lengths of the packed documents, query and key heads, earlier chain steps, share of the rows that query."""

    lengths: tuple[int, ...]
    heads: int = 4
    key_heads: int = 2
    steps: int = 3
    share: float = 0.6


SHAPES = {
    "two documents": Shape((9, 14)),
    "one document": Shape((20,)),
    "documents of one token": Shape((1, 1, 5, 1), share=1.0),
    "every row queries": Shape((6, 7), share=1.0),
    "the first step, without a chain": Shape((6, 7), steps=0),
    "a long chain": Shape((6, 7), steps=7),
    "few rows query": Shape((30, 12, 40), share=0.15),
    "few rows query, without a chain": Shape((30, 12, 40), steps=0, share=0.15),
    "a key head per query head": Shape((6, 7), key_heads=4),
    "one key head": Shape((6, 7), heads=6, key_heads=1),
    "no row queries": Shape((6, 7), share=0.0),
    "no row queries and no chain": Shape((6, 7), steps=0, share=0.0),
}


@dataclass(frozen=True, eq=False)
class Inputs:
    """Leaves of the graph, and what is no leaf."""

    leaves: list[Tensor]
    rows: Tensor
    documents: Documents
    index: list[Tensor]

    def run(self, attention: Any) -> list[Tensor]:
        """Output and the gradients of every leaf, zero where a leaf is not read."""
        query, key, value, *chain = self.leaves
        links = [Chain(chain[2 * step], chain[2 * step + 1], index) for step, index in enumerate(self.index)]
        output = attention(query, key, value, self.rows, self.documents, links)
        direction = torch.sin(torch.arange(output.numel(), dtype=output.dtype)).view(output.shape)
        grads = torch.autograd.grad(output, self.leaves, direction, allow_unused=True, materialize_grads=True)
        return [output.detach(), *grads]


def make_inputs(shape: Shape, dtype: torch.dtype, head_dim: int = HEAD_DIM) -> Inputs:
    """Rows drop out from step to step, as in an unroll: each link of the chain has more rows than query now."""
    generator = torch.Generator().manual_seed(5)
    cu = (0, *torch.tensor(shape.lengths).cumsum(0).tolist())
    num_rows = cu[-1]
    order = torch.randperm(num_rows, generator=generator)
    queried = round(shape.share * num_rows)
    rows = order[:queried].sort().values
    leaves = [(queried, shape.heads), (num_rows, shape.key_heads), (num_rows, shape.key_heads)]
    index = []
    for step in range(shape.steps):
        earlier = order[: min(num_rows, queried + shape.steps - 1 - step)].sort().values
        index.append(torch.searchsorted(earlier, rows))
        leaves += [(len(earlier), shape.key_heads)] * 2
    tensors = [
        torch.randn(count, heads, head_dim, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for count, heads in leaves
    ]
    return Inputs(tensors, rows, Documents(cu, torch.tensor(cu, dtype=torch.int32)), index)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=["fp64", "fp32"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_output_and_gradients_are_those_of_the_definition(shape: Shape, dtype: torch.dtype):
    inputs = make_inputs(shape, dtype)
    tolerance = TOLERANCES[dtype]
    for ours, dense in zip(inputs.run(attend), inputs.run(attend_dense), strict=True):
        torch.testing.assert_close(ours, dense, rtol=tolerance, atol=tolerance)


def test_gradients_are_those_of_finite_differences():
    """The definition could share a mistake with autograd; a difference quotient cannot."""
    inputs = make_inputs(Shape((3, 4), heads=2, key_heads=1, steps=2), torch.float64, head_dim=4)

    def run(*leaves: Tensor) -> Tensor:
        links = [Chain(leaves[3 + 2 * step], leaves[4 + 2 * step], index) for step, index in enumerate(inputs.index)]
        return attend(*leaves[:3], inputs.rows, inputs.documents, links)

    assert torch.autograd.gradcheck(run, tuple(inputs.leaves), fast_mode=True)


def test_a_query_sees_its_document_up_to_itself_and_its_own_chain():
    """Values are marks of their owners, scores are equal: the output is the plain mean of what is visible."""
    rows, marks = torch.tensor([1, 3, 4]), torch.arange(5.0).view(5, 1, 1)
    zeros = torch.zeros(5, 1, 1)
    chain = [Chain(torch.zeros(3, 1, 1), torch.tensor([10.0, 30.0, 40.0]).view(3, 1, 1), torch.arange(3))]
    documents = Documents((0, 2, 5), torch.tensor([0, 2, 5], dtype=torch.int32))
    for attention in (attend, attend_dense):
        output = attention(zeros[rows], zeros, marks, rows, documents, chain)
        means = [(0 + 1 + 10) / 3, (2 + 3 + 30) / 3, (2 + 3 + 4 + 40) / 4]
        torch.testing.assert_close(output.flatten(), torch.tensor(means))


def test_large_scores_do_not_overflow():
    inputs = make_inputs(Shape((6, 7)), torch.float64)
    with torch.no_grad():
        for leaf in inputs.leaves:
            leaf.mul_(30)
    for ours, dense in zip(inputs.run(attend), inputs.run(attend_dense), strict=True):
        assert bool(ours.isfinite().all())
        torch.testing.assert_close(ours, dense, rtol=1e-9, atol=1e-9)


class LargestTensor(TorchDispatchMode):
    """Remembers how many elements the largest result of any operation had."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


def test_few_rows_query_in_blocks(monkeypatch: pytest.MonkeyPatch):
    """Blocks of three rows under a mask: seams between blocks, and documents of every kind side by side."""
    monkeypatch.setattr(attention_module, "QUERY_BLOCK", 3)
    inputs = make_inputs(Shape((60, 3, 50), share=0.25), torch.float64)
    kinds = {(block.is_whole, block.places is None) for block in blocks(inputs.rows, inputs.documents)}
    assert (False, True) in kinds
    for ours, dense in zip(inputs.run(attend), inputs.run(attend_dense), strict=True):
        torch.testing.assert_close(ours, dense, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("attention", "is_linear"), [(attend, True), (attend_dense, False)], ids=["linear", "dense"])
def test_largest_tensor_is_linear_in_the_rows(attention: Any, is_linear: bool):
    """4096 rows in one document: 131 thousand elements per tensor of heads, 16.8 million in a matrix of rows."""
    length = 4096 if is_linear else 512
    inputs = make_inputs(Shape((length,), heads=4, key_heads=2, steps=3), torch.float32)
    with LargestTensor() as largest:
        inputs.run(attention)
    linear = length * 4 * HEAD_DIM
    # The dense one shows that the meter would have noticed: even its 512 rows are a matrix.
    assert largest.elements <= 2 * linear if is_linear else largest.elements > 4 * linear
