"""Attention of the unroll: step-0 keys of the own document up to the own row, and the keys of the own chain.

Query (t, k) sees the step-0 keys of rows i <= t of its document, and the keys that row t itself made at steps 1..k.
One softmax over all of them: that is what a server has, real features for verified tokens and the draft's own states
for drafted ones. `attend_dense` is the reference with an [N, N] matrix; `attend` needs memory linear in N.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# N rows of a packed micro-batch, R queried rows, C = k chain steps, h query heads, g key heads, d head size

FEW = 3
"""A document with fewer queried rows than one in so many computes the scores of these alone, under a mask."""
QUERY_BLOCK = 128
"""Such rows of a document at a time: their mask and their scores are no matrix of all rows."""
UNQUERIED_LSE = 1e30
"""Log-sum-exp of a row that is not queried: exp(score - 1e30) is 0, so the row adds nothing to a gradient."""


@dataclass(frozen=True, eq=False)
class Chain:
    """Keys and values that rows made at one earlier step, `[R', g, d]`, and where the R queried rows are in them."""

    keys: Tensor
    values: Tensor
    index: Tensor


@dataclass(frozen=True)
class Documents:
    """Borders of the documents of a packed row: document i is rows `cu[i] .. cu[i+1]`."""

    cu: tuple[int, ...]
    cu_tensor: Tensor
    """The same as int32 on the device, for kernels that take it."""

    @property
    def longest(self) -> int:
        """Rows of the longest document."""
        return max(end - start for start, end in zip(self.cu, self.cu[1:], strict=False))


def attend(
    query_Rhd: Tensor, key_Ngd: Tensor, value_Ngd: Tensor, rows_R: Tensor, documents: Documents, chain: Sequence[Chain]
) -> Tensor:
    """Attention output `[R, h, d]` of the rows `rows_R`, exact, in memory linear in N."""
    flat = [tensor for link in chain for tensor in (link.keys, link.values)]
    indices = tuple(link.index for link in chain)
    output: Tensor = _ChainAttention.apply(query_Rhd, key_Ngd, value_Ngd, rows_R, documents, indices, *flat)
    return output


def attend_dense(
    query_Rhd: Tensor, key_Ngd: Tensor, value_Ngd: Tensor, rows_R: Tensor, documents: Documents, chain: Sequence[Chain]
) -> Tensor:
    """The same by the definition: an [R, N] matrix of scores and one softmax. For tests."""
    num_rows, groups = len(key_Ngd), query_Rhd.shape[1] // key_Ngd.shape[1]
    lengths = torch.tensor([end - start for start, end in zip(documents.cu, documents.cu[1:], strict=False)])
    document_N = torch.repeat_interleave(torch.arange(len(lengths)), lengths).to(rows_R.device)
    position_N = torch.arange(num_rows, device=rows_R.device)
    visible_RN = (document_N[rows_R, None] == document_N) & (position_N <= rows_R[:, None])
    scale = query_Rhd.shape[-1] ** -0.5
    keys_Nhd = key_Ngd.repeat_interleave(groups, dim=1)
    scores = [(torch.einsum("rhd,nhd->rhn", query_Rhd, keys_Nhd) * scale).masked_fill(~visible_RN[:, None], -torch.inf)]
    for link in chain:
        own_Rhd = link.keys[link.index].repeat_interleave(groups, dim=1)
        scores.append((query_Rhd * own_Rhd).sum(-1, keepdim=True) * scale)
    weights = torch.cat(scores, dim=-1).softmax(dim=-1)
    output_Rhd = torch.einsum("rhn,nhd->rhd", weights[..., :num_rows], value_Ngd.repeat_interleave(groups, dim=1))
    for step, link in enumerate(chain):
        own_Rhd = link.values[link.index].repeat_interleave(groups, dim=1)
        output_Rhd = output_Rhd + weights[..., num_rows + step, None] * own_Rhd
    return output_Rhd


class _ChainAttention(torch.autograd.Function):
    """Stock causal attention merged with the chain by log-sum-exp, and the stock backward fed with the merged values.

    Flash backward uses only exp(score - L) and delta = sum(do * o). With the merged o and L it returns the exact
    gradients of the step-0 block. Merging outside of one function would be silently wrong: the stock op's log-sum-exp
    has no gradient.
    """

    @staticmethod
    def forward(  # noqa: PLR0917  autograd passes tensors one by one
        ctx: torch.autograd.function.FunctionCtx,
        query_Rhd: Tensor,
        key_Ngd: Tensor,
        value_Ngd: Tensor,
        rows_R: Tensor,
        documents: Documents,
        indices: tuple[Tensor, ...],
        *chain: Tensor,
    ) -> Tensor:
        output_Rhd, lse_Rh = causal_forward(query_Rhd, rows_R, key_Ngd, value_Ngd, documents)
        if chain:
            keys, values = stacked(chain[0::2], indices), stacked(chain[1::2], indices)
            scores_RhC = own_scores(query_Rhd, keys)
            merged_Rh = torch.logsumexp(torch.cat([lse_Rh[..., None], scores_RhC], dim=-1), dim=-1)
            output_Rhd = output_Rhd * (lse_Rh - merged_Rh).exp()[..., None].to(output_Rhd.dtype)
            weight_RhC = (scores_RhC - merged_Rh[..., None]).exp().to(output_Rhd.dtype)
            output_Rhd += grouped_product(weight_RhC, values)
            lse_Rh = merged_Rh
        ctx.save_for_backward(query_Rhd, key_Ngd, value_Ngd, rows_R, output_Rhd, lse_Rh, *indices, *chain)
        ctx.documents = documents  # type: ignore[attr-defined]
        return output_Rhd

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad_Rhd,) = grad_outputs
        query_Rhd, key_Ngd, value_Ngd, rows_R, output_Rhd, lse_Rh, *rest = ctx.saved_tensors  # type: ignore[attr-defined]
        indices, chain = rest[: len(rest) // 3], rest[len(rest) // 3 :]
        seen = Seen(query_Rhd, rows_R, output_Rhd, lse_Rh)
        grad_query_Rhd, grad_key_Ngd, grad_value_Ngd = causal_backward(
            grad_Rhd,
            seen,
            key_Ngd,
            value_Ngd,
            ctx.documents,  # type: ignore[attr-defined]
        )
        if not chain:
            return grad_query_Rhd, grad_key_Ngd, grad_value_Ngd, None, None, None
        keys, values = stacked(chain[0::2], indices), stacked(chain[1::2], indices)
        delta_Rh1 = (grad_Rhd * output_Rhd).sum(-1, keepdim=True)
        weight_RhC = (own_scores(query_Rhd, keys) - lse_Rh[..., None]).exp().to(grad_Rhd.dtype)
        grad_weight_RhC = grouped_product(grad_Rhd, values.transpose(2, 3))
        grad_scores_RhC = (grad_weight_RhC - delta_Rh1).mul_(weight_RhC).mul_(query_Rhd.shape[-1] ** -0.5)
        grad_query_Rhd = grad_query_Rhd + grouped_product(grad_scores_RhC, keys)
        grad_keys = outer(grad_scores_RhC, query_Rhd, keys)
        grad_values = outer(weight_RhC, grad_Rhd, values)
        grads_chain = [
            torch.zeros_like(tensor).index_copy_(0, index, grad)
            for link, index in enumerate(indices)
            for tensor, grad in (
                (chain[2 * link], grad_keys[:, :, link]),
                (chain[2 * link + 1], grad_values[:, :, link]),
            )
        ]
        return grad_query_Rhd, grad_key_Ngd, grad_value_Ngd, None, None, None, *grads_chain


def stacked(links: Sequence[Tensor], indices: Sequence[Tensor]) -> Tensor:
    """The chain of every queried row side by side: `[R, g, C, d]`."""
    return torch.stack([link.index_select(0, index) for link, index in zip(links, indices, strict=True)], dim=2)


def own_scores(query_Rhd: Tensor, keys_RgCd: Tensor) -> Tensor:
    """Scores of each row with its own chain keys, fp32 or wider: `[R, h, C]`."""
    scores = grouped_product(query_Rhd, keys_RgCd.transpose(2, 3))
    wide: Tensor = scores.to(torch.promote_types(scores.dtype, torch.float32)) * query_Rhd.shape[-1] ** -0.5
    return wide


def grouped_product(left_Rhx: Tensor, right_Rgxy: Tensor) -> Tensor:
    """Each head of a row times the matrix of its group: `[R, h, y]`. Groups are not repeated for their heads."""
    product: Tensor = (left_Rhx.unflatten(1, (right_Rgxy.shape[1], -1)) @ right_Rgxy).flatten(1, 2)
    return product


def outer(left_RhC: Tensor, right_Rhd: Tensor, like_RgCd: Tensor) -> Tensor:
    """Sum over the heads of a group of their outer products: `[R, g, C, d]`."""
    groups = like_RgCd.shape[1]
    product: Tensor = left_RhC.unflatten(1, (groups, -1)).transpose(2, 3) @ right_Rhd.unflatten(1, (groups, -1))
    return product


# -- The step-0 block ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Seen:
    """Queried rows, and what they saw: merged output `[R, h, d]` and merged log-sum-exp `[R, h]`."""

    query: Tensor
    rows: Tensor
    output: Tensor
    lse: Tensor


def causal_forward(
    query_Rhd: Tensor, rows_R: Tensor, key_Ngd: Tensor, value_Ngd: Tensor, documents: Documents
) -> tuple[Tensor, Tensor]:
    """Causal attention inside each document: output `[R, h, d]`, log-sum-exp `[R, h]` in fp32 or wider."""
    if query_Rhd.is_cuda:
        output, lse_hN, *_ = torch.ops.aten._flash_attention_forward(  # noqa: SLF001  the stock kernel behind sdpa
            spread(query_Rhd, rows_R, len(key_Ngd)), key_Ngd, value_Ngd, documents.cu_tensor, documents.cu_tensor,
            documents.longest, documents.longest, 0.0, True, False,
        )  # fmt: skip
        return output[rows_R], lse_hN.transpose(0, 1)[rows_R]
    groups = key_Ngd.shape[1]
    output_Rhd = torch.empty_like(query_Rhd)
    lse_Rh = query_Rhd.new_empty(query_Rhd.shape[:2], dtype=torch.promote_types(query_Rhd.dtype, torch.float32))
    for block in blocks(rows_R, documents):
        output_gqTd, lse_gqT = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(  # noqa: SLF001
            heads_first(block.laid_out(query_Rhd), groups), shared(key_Ngd[block.keys], query_Rhd),
            shared(value_Ngd[block.keys], query_Rhd), 0.0, block.is_causal, attn_mask=block.mask(rows_R, query_Rhd),
        )  # fmt: skip
        output_Rhd[block.queries] = block.picked(rows_first(output_gqTd))
        lse_Rh[block.queries] = block.picked(lse_gqT.flatten(0, 1).transpose(0, 1))
    return output_Rhd, lse_Rh


def causal_backward(
    grad_Rhd: Tensor, seen: Seen, key_Ngd: Tensor, value_Ngd: Tensor, documents: Documents
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the step-0 query, key and value."""
    if grad_Rhd.is_cuda:
        return cuda_backward(grad_Rhd, seen, key_Ngd, value_Ngd, documents)
    groups = key_Ngd.shape[1]
    grad_query_Rhd = torch.empty_like(seen.query)
    grad_key_Ngd, grad_value_Ngd = torch.zeros_like(key_Ngd), torch.zeros_like(value_Ngd)
    for block in blocks(seen.rows, documents):
        lse_gqT1 = heads_first(block.laid_out(seen.lse, UNQUERIED_LSE)[..., None], groups)
        query_gqTd, key_gqTd, value_gqTd = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(  # noqa: SLF001
            heads_first(block.laid_out(grad_Rhd), groups), heads_first(block.laid_out(seen.query), groups),
            shared(key_Ngd[block.keys], grad_Rhd), shared(value_Ngd[block.keys], grad_Rhd),
            heads_first(block.laid_out(seen.output), groups), lse_gqT1[..., 0], 0.0, block.is_causal,
            attn_mask=block.mask(seen.rows, grad_Rhd),
        )  # fmt: skip
        grad_query_Rhd[block.queries] = block.picked(rows_first(query_gqTd))
        # A shared key head collects the gradients of all query heads that read it.
        grad_key_Ngd[block.keys] += key_gqTd.sum(1).transpose(0, 1)
        grad_value_Ngd[block.keys] += value_gqTd.sum(1).transpose(0, 1)
    return grad_query_Rhd, grad_key_Ngd, grad_value_Ngd


def cuda_backward(
    grad_Rhd: Tensor, seen: Seen, key_Ngd: Tensor, value_Ngd: Tensor, documents: Documents
) -> tuple[Tensor, Tensor, Tensor]:
    """The same on a GPU: one kernel takes all documents, with every row in its place."""
    num_rows = len(key_Ngd)
    lse_Nh = seen.lse.new_full((num_rows, seen.lse.shape[1]), UNQUERIED_LSE).index_copy(0, seen.rows, seen.lse)
    grad_Nhd, query_Nhd, output_Nhd = (
        spread(tensor, seen.rows, num_rows) for tensor in (grad_Rhd, seen.query, seen.output)
    )
    state = torch.zeros(2, dtype=torch.int64, device=grad_Rhd.device)
    grad_query_Nhd, grad_key_Ngd, grad_value_Ngd = torch.ops.aten._flash_attention_backward(  # noqa: SLF001
        grad_Nhd, query_Nhd, key_Ngd, value_Ngd, output_Nhd, lse_Nh.transpose(0, 1).contiguous(),
        documents.cu_tensor, documents.cu_tensor, documents.longest, documents.longest, 0.0, True, state, state,
    )  # fmt: skip
    return grad_query_Nhd[seen.rows], grad_key_Ngd, grad_value_Ngd


def spread(tensor_R: Tensor, rows_R: Tensor, num_rows: int) -> Tensor:
    """Rows at their places among all N, zero elsewhere."""
    if len(rows_R) == num_rows:
        return tensor_R
    return tensor_R.new_zeros((num_rows, *tensor_R.shape[1:])).index_copy(0, rows_R, tensor_R)


@dataclass(frozen=True, eq=False)
class Block:
    """Queried rows of one document that go through the kernel together, and the keys that they may see."""

    queries: slice
    """Among the R queried rows."""
    keys: slice
    """Among all N rows, from the document's first."""
    places: Tensor | None
    """Where in the document the queried rows are, if the whole document is laid out; None: they are side by side."""
    is_whole: bool
    """Whether every row of the keys is queried."""

    @property
    def is_causal(self) -> bool:
        """Whether row i is query i and key i, so that the kernel needs no mask."""
        return self.is_whole or self.places is not None

    def laid_out(self, tensor_R: Tensor, elsewhere: float = 0.0) -> Tensor:
        """The queried rows as the kernel takes them."""
        own = tensor_R[self.queries]
        if self.places is None:
            return own
        length = self.keys.stop - self.keys.start
        return own.new_full((length, *own.shape[1:]), elsewhere).index_copy_(0, self.places, own)

    def picked(self, tensor_T: Tensor) -> Tensor:
        """The queried rows of what the kernel gives."""
        return tensor_T if self.places is None else tensor_T[self.places]

    def mask(self, rows_R: Tensor, like: Tensor) -> Tensor | None:
        """What is added to scores, `[queries, keys]`: -inf where a key is behind its query."""
        if self.is_causal:
            return None
        keys = torch.arange(self.keys.start, self.keys.stop, device=rows_R.device)
        later = keys > rows_R[self.queries][:, None]
        return like.new_zeros(later.shape).masked_fill_(later, -torch.inf)


def blocks(rows_R: Tensor, documents: Documents) -> Iterator[Block]:
    """All queried rows. Few rows of a document are not worth the scores of all others: they go side by side."""
    bounds = torch.searchsorted(rows_R, documents.cu_tensor.to(rows_R.dtype)).tolist()
    for (start, end), (first, last) in zip(itertools.pairwise(documents.cu), itertools.pairwise(bounds), strict=True):
        count, length = last - first, end - start
        if count == length:
            yield Block(slice(first, last), slice(start, end), None, is_whole=True)
        elif count * FEW > length:
            yield Block(slice(first, last), slice(start, end), rows_R[first:last] - start, is_whole=False)
        else:
            for low in range(first, last, QUERY_BLOCK):
                high = min(low + QUERY_BLOCK, last)
                yield Block(slice(low, high), slice(start, int(rows_R[high - 1]) + 1), None, is_whole=False)


def heads_first(tensor_Thd: Tensor, groups: int) -> Tensor:
    """One document as `[g, h/g, T, d]`: key heads are the batch, so that they are shared without a copy."""
    split: Tensor = tensor_Thd.unflatten(1, (groups, -1)).permute(1, 2, 0, 3)
    return split


def rows_first(tensor_gqTd: Tensor) -> Tensor:
    """The inverse of `heads_first`: `[T, h, d]`."""
    return tensor_gqTd.permute(2, 0, 1, 3).flatten(1, 2)


def shared(tensor_Tgd: Tensor, query_Nhd: Tensor) -> Tensor:
    """A key head for each query head that reads it, `[g, h/g, T, d]`: a view with stride 0, not a copy."""
    readers = query_Nhd.shape[1] // tensor_Tgd.shape[1]
    return tensor_Tgd.transpose(0, 1)[:, None].expand(-1, readers, -1, -1)
