"""Sliced QKV: one product over the interleaved rows of the shared weight.

Row ``3 * u + i`` of the weight makes channel u of q (i = 0), k (1) or v (2), so a prefix of its rows is one
dense matrix for BLAS, and the result lies in memory as (B, N, h, e, 3): no product is split in three, no head
is moved. The C++ attention reads and writes that layout as it is; torch's own products copy it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from growtas.ops.reference.products import bias_gradient, product_into
from growtas.ops.reference.slices import full_size


def qkv_rows(weight: Tensor, num_heads: int, head_dim: int, part: int) -> Tensor:
    """The rows of q (part 0), k (1) or v (2) in an interleaved weight or bias, as a strided view.

    Row ``3 * u + part`` belongs to channel u of that part, so the heads of a small subnet come first.
    """
    return weight.view(-1, 3, *weight.shape[1:])[: num_heads * head_dim, part]


def qkv_bias_rows(bias: Tensor, num_heads: int, head_dim: int, part: int, layout: str) -> Tensor:
    """The bias of q, k or v: interleaved like the weight, or as the published code slices it."""
    if layout == "interleaved":
        return qkv_rows(bias, num_heads, head_dim, part)
    width = num_heads * head_dim
    return bias[part * width : (part + 1) * width]


def empty_qkv(x: Tensor, num_heads: int, head_dim: int) -> Tensor:
    """A (3, B, h, N, e) tensor for tokens x (B, N, d), interleaved in memory."""
    return x.new_empty(*x.shape[:2], num_heads, head_dim, 3).permute(4, 0, 2, 1, 3)


def interleaved(qkv: Tensor) -> Tensor:
    """The same (3, B, h, N, e) values, interleaved in memory; copied only where they are not."""
    return qkv.permute(1, 3, 2, 4, 0).contiguous().permute(4, 0, 2, 1, 3)


def as_rows(dqkv: Tensor) -> Tensor:
    """(3, B, h, N, e) as the rows of one product (B * N, 3 * h * e)."""
    _, batch, num_heads, tokens, head_dim = dqkv.shape
    return dqkv.permute(1, 3, 2, 4, 0).reshape(batch * tokens, num_heads * head_dim * 3)


def qkv_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, num_heads: int, head_dim: int, bias_layout: str
) -> Tensor:
    """Queries, keys and values (3, B, h, N, e) of tokens x (B, N, d)."""
    active = 3 * num_heads * head_dim
    matrix = weight[:active, : x.shape[-1]].to(x.dtype).t()
    rows, out = x.reshape(-1, x.shape[-1]), empty_qkv(x, num_heads, head_dim)
    target = as_rows(out)
    if bias is None:
        torch.mm(rows, matrix, out=target)
    else:
        torch.addmm(interleaved_bias(bias, active, bias_layout).to(x.dtype), rows, matrix, out=target)
    return out


def qkv_backward_input(dqkv: Tensor, weight: Tensor, in_features: int) -> Tensor:
    """Gradient of x (B, N, d)."""
    _, batch, _, tokens, _ = dqkv.shape
    rows = as_rows(dqkv)
    dx = torch.mm(rows, weight[: rows.shape[1], :in_features].to(rows.dtype))
    return dx.view(batch, tokens, in_features)


def qkv_backward_weight(
    dqkv: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, bias_layout: str
) -> tuple[Tensor, Tensor | None]:
    """Full-size gradients of the interleaved weight and of the bias."""
    rows, d = as_rows(dqkv), x.shape[-1]
    active = rows.shape[1]
    dweight, weight_slice = full_size(weight, active, d)
    product_into(rows.t(), x.reshape(-1, d), weight_slice)
    return dweight, None if bias is None else qkv_bias_gradient(rows, bias, bias_layout)


def interleaved_bias(bias: Tensor, active: int, layout: str) -> Tensor:
    """The first ``active`` entries in the order of the weight's rows."""
    return bias[:active].view(3, -1).t().reshape(-1) if layout == "published" else bias[:active]


def qkv_bias_gradient(rows: Tensor, bias: Tensor, layout: str) -> Tensor:
    """The sum over the rows of dqkv, interleaved, at the full size of the bias and in its layout."""
    dbias, active = bias_gradient(rows, bias), rows.shape[1]
    if layout == "published":
        dbias[:active] = dbias[:active].view(-1, 3).t().reshape(-1)
    return dbias
