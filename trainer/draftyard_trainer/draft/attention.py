"""Attention of the unroll: step-0 keys of the own document up to the own row, and the keys of the own chain.

Query (t, k) sees the step-0 keys of rows i <= t of its document, and the keys that row t itself made at steps 1..k.
One softmax over all of them: that is what a server has, real features for verified tokens and the draft's own states
for drafted ones. `attend_dense` is the reference with an [N, N] matrix; `attend` needs memory linear in N.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# N rows of a packed micro-batch, R queried rows, C = k chain steps, h query heads, g key heads, d head size

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
        query_Nhd = spread(query_Rhd, rows_R, len(key_Ngd))
        output_Nhd, lse_Nh = causal_forward(query_Nhd, key_Ngd, value_Ngd, documents)
        output_Rhd, lse_Rh = output_Nhd[rows_R], lse_Nh[rows_R]
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
        num_rows = len(key_Ngd)
        lse_Nh = lse_Rh.new_full((num_rows, lse_Rh.shape[1]), UNQUERIED_LSE).index_copy(0, rows_R, lse_Rh)
        spread_NOut = [spread(tensor, rows_R, num_rows) for tensor in (grad_Rhd, query_Rhd, output_Rhd)]
        grad_query_Nhd, grad_key_Ngd, grad_value_Ngd = causal_backward(
            spread_NOut,
            key_Ngd,
            value_Ngd,
            lse_Nh,
            ctx.documents,  # type: ignore[attr-defined]
        )
        grad_query_Rhd = grad_query_Nhd[rows_R]
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


def spread(tensor_R: Tensor, rows_R: Tensor, num_rows: int) -> Tensor:
    """Rows at their places among all N, zero elsewhere."""
    if len(rows_R) == num_rows:
        return tensor_R
    return tensor_R.new_zeros((num_rows, *tensor_R.shape[1:])).index_copy(0, rows_R, tensor_R)


def causal_forward(
    query_Nhd: Tensor, key_Ngd: Tensor, value_Ngd: Tensor, documents: Documents
) -> tuple[Tensor, Tensor]:
    """Causal attention inside each document: output `[N, h, d]`, log-sum-exp `[N, h]` in fp32 or wider."""
    if query_Nhd.is_cuda:
        output, lse_hN, *_ = torch.ops.aten._flash_attention_forward(  # noqa: SLF001  the stock kernel behind sdpa
            query_Nhd, key_Ngd, value_Ngd, documents.cu_tensor, documents.cu_tensor,
            documents.longest, documents.longest, 0.0, True, False,
        )  # fmt: skip
        return output, lse_hN.transpose(0, 1)
    outputs, lses = [], []
    for part in slices(documents):
        groups = key_Ngd.shape[1]
        output_gqTd, lse_gqT = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(  # noqa: SLF001
            heads_first(query_Nhd[part], groups), shared(key_Ngd[part], query_Nhd), shared(value_Ngd[part], query_Nhd),
            0.0, True,
        )  # fmt: skip
        outputs.append(rows_first(output_gqTd))
        lses.append(lse_gqT.flatten(0, 1).transpose(0, 1))
    return torch.cat(outputs), torch.cat(lses)


def causal_backward(
    spread_NOut: Sequence[Tensor], key_Ngd: Tensor, value_Ngd: Tensor, lse_Nh: Tensor, documents: Documents
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the step-0 query, key and value; `spread_NOut` is grad, query and merged output, `[N, h, d]`."""
    grad_Nhd, query_Nhd, output_Nhd = spread_NOut
    if query_Nhd.is_cuda:
        state = torch.zeros(2, dtype=torch.int64, device=query_Nhd.device)
        grads: tuple[Tensor, Tensor, Tensor] = torch.ops.aten._flash_attention_backward(  # noqa: SLF001
            grad_Nhd, query_Nhd, key_Ngd, value_Ngd, output_Nhd, lse_Nh.transpose(0, 1).contiguous(),
            documents.cu_tensor, documents.cu_tensor, documents.longest, documents.longest, 0.0, True, state, state,
        )  # fmt: skip
        return grads
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for part in slices(documents):
        groups = key_Ngd.shape[1]
        query_gqTd, key_gqTd, value_gqTd = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(  # noqa: SLF001
            heads_first(grad_Nhd[part], groups), heads_first(query_Nhd[part], groups),
            shared(key_Ngd[part], query_Nhd), shared(value_Ngd[part], query_Nhd),
            heads_first(output_Nhd[part], groups), heads_first(lse_Nh[part][..., None], groups)[..., 0], 0.0, True,
        )  # fmt: skip
        # A shared key head collects the gradients of all query heads that read it.
        parts.append((rows_first(query_gqTd), key_gqTd.sum(1).transpose(0, 1), value_gqTd.sum(1).transpose(0, 1)))
    query_parts, key_parts, value_parts = zip(*parts, strict=True)
    return torch.cat(query_parts), torch.cat(key_parts), torch.cat(value_parts)


def slices(documents: Documents) -> list[slice]:
    """The rows of each document."""
    return [slice(start, end) for start, end in zip(documents.cu, documents.cu[1:], strict=False)]


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
