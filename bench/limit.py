"""The arithmetic limit: the bare matrix products that an exact step cannot do without, and nothing else.

Forward and backward of the rows that carry loss or feed one that does, the teacher of their labels, and attention
over causal pairs alone. No norms, no softmax, no optimizer, no recomputation, no memory made in between.
"""

from __future__ import annotations

from collections import Counter
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from cases import NUM_AUX, TTT_STEPS, Case, Shape
from draftyard import read
from draftyard_trainer.rows import PackedRow, build_row
from draftyard_trainer.target.head import TargetHead

TILE = 256
"""Rows and keys of one attention tile: as kernels take them, so that scores stay in cache."""
TILE_PRODUCTS = (2, 4)
"""Per tile, forward and backward: products that sum over the head's size, and over keys or rows."""


class Product(NamedTuple):
    """m x k times k x n, with its factors as they lie in memory when a linear layer does it."""

    m: int
    k: int
    n: int
    of: Literal["output", "input", "weight"]
    """output: rows times the transposed weight; input: gradients times the weight; weight: transposed gradients times
    rows."""

    def operands(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Two factors and the place of their product."""
        left = random(like, self.k, self.m).T if self.of == "weight" else random(like, self.m, self.k)
        right = random(like, self.n, self.k).T if self.of == "output" else random(like, self.k, self.n)
        return left, right, random(like, self.m, self.n)


class Bench:
    """All products of a step, in buffers that are there."""

    def __init__(self, case: Case, tensors: dict[str, Tensor]) -> None:
        row = build_row(read(tensors, TargetHead(tensors["head"], tensors["embedding"], torch.ones(1), {})), TTT_STEPS,
                        "specforge")  # fmt: skip
        self.products = Counter(products(case.shape, row))
        self.tiles = round(attention_pairs(row) / TILE**2)
        heads, size, like = case.shape.heads, case.shape.head_dim, tensors["head"]
        self.query, self.scores = random(like, heads, TILE, size), random(like, heads, TILE, TILE)
        self.seen = random(like, heads, TILE, size)
        self.buffers = {product: product.operands(like) for product in self.products}

    @property
    def dense_flops(self) -> float:
        """Floating-point operations of a step outside of attention."""
        return sum(2.0 * p.m * p.k * p.n * count for p, count in self.products.items())

    @property
    def attention_flops(self) -> float:
        """Floating-point operations of the attention of a step."""
        return self.tiles * sum(TILE_PRODUCTS) * 2.0 * TILE**2 * self.query.shape[0] * self.query.shape[2]

    def step(self, _index: int) -> dict[str, list[float]]:
        """Run them. Returns the number of operations, in 1e9."""
        self.dense()
        self.attention()
        return {"gflop": [(self.dense_flops + self.attention_flops) / 1e9]}

    def dense(self) -> None:
        """All products but those of attention."""
        for product, count in self.products.items():
            left, right, out = self.buffers[product]
            for _ in range(count):
                torch.mm(left, right, out=out)

    def attention(self) -> None:
        """The products of attention, tile by tile."""
        by_size, by_keys = TILE_PRODUCTS
        for _ in range(self.tiles):
            for _ in range(by_size):
                torch.bmm(self.query, self.seen.transpose(1, 2), out=self.scores)
            for _ in range(by_keys):
                torch.bmm(self.scores, self.query, out=self.seen)


def random(like: Tensor, *shape: int) -> Tensor:
    """A factor, or the place of a product."""
    return torch.randn(shape, device=like.device, dtype=like.dtype)


def products(shape: Shape, row: PackedRow) -> list[Product]:
    """Every dense product of a step."""
    width, size = shape.hidden_size, shape.head_dim
    query, keys = shape.heads * size, 2 * shape.kv_heads * size
    needed = row.needed_TN()
    ran = [int(count) for count in needed.sum(1)]
    asked = [int(count) for count in row.gates_TN.sum(1)]
    embedded = int(torch.stack([torch.roll(rows, step) for step, rows in enumerate(needed)]).any(0).sum())
    found: list[Product] = []
    # Nothing below is trained: forward, and the gradient of the weight.
    found += without_input(row.num_rows, NUM_AUX * width, width)
    found += without_input(row.num_rows, width, keys) + without_input(embedded, width, query)
    found += whole(row.num_rows, width, keys) + whole(ran[0], width, query)
    for rows in ran[1:]:
        found += whole(rows, width, query + keys)
    for rows in ran:
        found += whole(rows, query, width) + 2 * whole(rows, width, shape.intermediate_size)
        found += whole(rows, shape.intermediate_size, width)
    for rows in asked:
        found += whole(rows, width, shape.draft_vocab_size)
    labels = row.label_TN[row.label_TN >= 0].unique()
    return [*found, Product(len(labels), width, shape.draft_vocab_size, "output")]


def without_input(rows: int, width: int, out: int) -> list[Product]:
    """A linear layer whose input needs no gradient."""
    return [Product(rows, width, out, "output"), Product(out, rows, width, "weight")]


def whole(rows: int, width: int, out: int) -> list[Product]:
    """A linear layer, forward and backward."""
    return [*without_input(rows, width, out), Product(rows, out, width, "input")]


def attention_pairs(row: PackedRow) -> int:
    """Pairs of a queried row and a key of its own document at or before it, over all steps."""
    return int((row.needed_TN() * (row.positions_N + 1)).sum())


def build(case: Case, tensors: dict[str, Tensor]) -> Bench:
    """The limit of the case."""
    return Bench(case, tensors)
