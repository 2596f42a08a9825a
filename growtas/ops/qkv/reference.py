"""Sliced QKV: one GEMM over the rows of the shared weight.

Row ``3 * u + i`` of the weight makes channel u of q (i = 0), k (1) or v (2), so a prefix of its rows is one
dense matrix for BLAS, and the result lies in memory as (B, N, h, e, 3): no GEMM is split in three, no head is
moved. The C++ attention reads and writes that layout as it is; torch's own GEMMs copy it.

A 16-bit shadow on a GPU has its rows sorted by head (``growtas.shadow``): again a prefix is one dense matrix,
and the result lies in memory as (B, N, h, 3, e), whose rows of e channels the GPU's attention reads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from growtas.ops.linear.reference import bias_gradient, matmul_into
from growtas.ops.slices import full_size
from growtas.shadow import read_qkv


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


def by_head(rows: Tensor, batch: int, num_heads: int, head_dim: int) -> Tensor:
    """Rows (B * N, 3 * h * e) sorted by head, as (3, B, h, N, e)."""
    return rows.view(batch, -1, num_heads, 3, head_dim).permute(3, 0, 2, 1, 4)


def as_rows(dqkv: Tensor, sorted_by_head: bool = False) -> Tensor:
    """(3, B, h, N, e) as the rows of one GEMM (B * N, 3 * h * e); copied where memory has another order."""
    _, batch, num_heads, tokens, head_dim = dqkv.shape
    order = (1, 3, 2, 0, 4) if sorted_by_head else (1, 3, 2, 4, 0)
    return dqkv.permute(order).reshape(batch * tokens, num_heads * head_dim * 3)


def gradient_layout(dqkv: Tensor, weight: Tensor) -> Tensor:
    """dqkv (3, B, h, N, e) in the order of memory that both gradients read without another copy."""
    if read_qkv(weight, dqkv.dtype, dqkv.shape[-1])[1] == 1:
        return interleaved(dqkv)
    return by_head(as_rows(dqkv, True), dqkv.shape[1], dqkv.shape[2], dqkv.shape[4])


def qkv_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, num_heads: int, head_dim: int, bias_layout: str
) -> Tensor:
    """Queries, keys and values (3, B, h, N, e) of tokens x (B, N, d)."""
    active = 3 * num_heads * head_dim
    matrix, part_step, _ = read_qkv(weight, x.dtype, head_dim)
    matrix = matrix[:active, : x.shape[-1]].to(x.dtype).t()
    rows = x.reshape(-1, x.shape[-1])
    if part_step != 1:
        out = rows.new_empty(len(rows), active)
        if bias is not None:
            bias = sorted_bias(bias, active, head_dim, bias_layout, x.dtype)
        multiply(rows, matrix, bias, out)
        return by_head(out, len(x), num_heads, head_dim)
    out = empty_qkv(x, num_heads, head_dim)
    multiply(
        rows, matrix, None if bias is None else interleaved_bias(bias, active, bias_layout), as_rows(out)
    )
    return out


def multiply(rows: Tensor, matrix: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """``out = rows @ matrix + bias``."""
    if bias is None:
        torch.mm(rows, matrix, out=out)
    else:
        torch.addmm(bias.to(rows.dtype), rows, matrix, out=out)


def qkv_backward_input(dqkv: Tensor, weight: Tensor, in_features: int) -> Tensor:
    """Gradient of x (B, N, d)."""
    _, batch, _, tokens, head_dim = dqkv.shape
    matrix, part_step, _ = read_qkv(weight, dqkv.dtype, head_dim)
    rows = as_rows(dqkv, part_step != 1)
    dx = torch.mm(rows, matrix[: rows.shape[1], :in_features].to(rows.dtype))
    return dx.view(batch, tokens, in_features)


def qkv_backward_weight(
    dqkv: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, bias_layout: str
) -> tuple[Tensor, Tensor | None]:
    """Full-size gradients of the interleaved weight and of the bias."""
    head_dim, d = dqkv.shape[-1], x.shape[-1]
    if read_qkv(weight, dqkv.dtype, head_dim)[1] != 1:
        return _sorted_gradients(dqkv, x.reshape(-1, d), weight, bias, bias_layout)
    rows = as_rows(dqkv)
    active = rows.shape[1]
    dweight, weight_slice = full_size(weight, active, d)
    matmul_into(rows.t(), x.reshape(-1, d), weight_slice)
    return dweight, None if bias is None else qkv_bias_gradient(rows, bias, bias_layout)


def _sorted_gradients(
    dqkv: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, bias_layout: str
) -> tuple[Tensor, Tensor | None]:
    """The gradients from rows sorted by head: one small fp32 matrix is put back in the weight's order."""
    heads, head_dim, d = dqkv.shape[2], dqkv.shape[4], x.shape[1]
    rows = as_rows(dqkv, True)
    active = rows.shape[1]
    own = torch.empty((active, d), dtype=weight.dtype, device=weight.device)
    matmul_into(rows.t(), x, own)
    dweight, weight_slice = full_size(weight, active, d)
    weight_slice.view(heads, head_dim, 3, d).copy_(own.view(heads, 3, head_dim, d).transpose(1, 2))
    if bias is None:
        return dweight, None
    dbias, bias_slice = full_size(bias, active)
    sums = torch.sum(rows, 0, dtype=bias.dtype).view(heads, 3, head_dim)
    if bias_layout == "published":
        bias_slice.view(3, heads, head_dim).copy_(sums.transpose(0, 1))
    else:
        bias_slice.view(heads, head_dim, 3).copy_(sums.transpose(1, 2))
    return dweight, dbias


def sorted_bias(bias: Tensor, active: int, head_dim: int, layout: str, dtype: torch.dtype) -> Tensor:
    """The first ``active`` entries sorted by head, part and channel; as they are in a shadow."""
    if layout == "published":
        return bias[:active].view(3, -1, head_dim).transpose(0, 1).reshape(-1)
    entries, part_step, _ = read_qkv(bias, dtype, head_dim)
    if part_step != 1:
        return entries[:active]
    return bias[:active].view(-1, head_dim, 3).transpose(1, 2).reshape(-1)


def interleaved_bias(bias: Tensor, active: int, layout: str) -> Tensor:
    """The first ``active`` entries in the order of the weight's rows."""
    return bias[:active].view(3, -1).t().reshape(-1) if layout == "published" else bias[:active]


def qkv_bias_gradient(rows: Tensor, bias: Tensor, layout: str) -> Tensor:
    """The sum over the rows of dqkv, interleaved, at the full size of the bias and in its layout."""
    dbias, active = bias_gradient(rows, bias), rows.shape[1]
    if layout == "published":
        dbias[:active] = dbias[:active].view(-1, 3).t().reshape(-1)
    return dbias
