"""Sliced linear and sliced QKV, as compositions of torch calls."""

from __future__ import annotations

import torch
from torch import Tensor

from growtas.ops.reference.slices import full_size


def product_into(a: Tensor, b: Tensor, out: Tensor) -> None:
    """``out = a @ b`` straight into a strided view; through a temporary where the dtypes differ."""
    if a.dtype == out.dtype:
        torch.mm(a, b, out=out)
    else:
        out.copy_(torch.mm(a, b))


def linear_forward(x: Tensor, weight: Tensor, bias: Tensor | None, out_features: int) -> Tensor:
    """``x (M, k) @ weight[:n, :k].T + bias[:n]``."""
    matrix = weight[:out_features, : x.shape[1]].to(x.dtype).t()
    if bias is None:
        return torch.mm(x, matrix)
    return torch.addmm(bias[:out_features].to(x.dtype), x, matrix)


def linear_gelu_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, out_features: int
) -> tuple[Tensor, Tensor]:
    """``gelu(h)`` and ``h``, the sliced linear layer of x."""
    h = linear_forward(x, weight, bias, out_features)
    return torch.nn.functional.gelu(h), h


def linear_residual_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor, scale: Tensor | None, tokens: int
) -> Tensor:
    """``residual + scale * linear(x)``, in residual's dtype; row r has the scale of image r // tokens."""
    width = residual.shape[1]
    if scale is not None:
        branch = linear_forward(x, weight, bias, width).view(-1, tokens, width)
        out = torch.addcmul(residual.view(-1, tokens, width), branch, scale.view(-1, 1, 1))
        return out.to(residual.dtype).view(residual.shape)
    if x.dtype != residual.dtype:
        return residual + linear_forward(x, weight, bias, width)
    out = residual.clone() if bias is None else residual + bias[:width].to(x.dtype)
    return out.addmm_(x, weight[:width, : x.shape[1]].to(x.dtype).t())


def scaled_rows(dy: Tensor, scale: Tensor | None, tokens: int, dtype: torch.dtype) -> Tensor:
    """Rows times the scale of their image, in the dtype that products are made in."""
    if scale is not None:
        dy = (dy.view(len(scale), tokens, -1) * scale.view(-1, 1, 1)).view(dy.shape)
    return dy.to(dtype)


def linear_backward_input(
    dy: Tensor,
    weight: Tensor,
    in_features: int,
    scale: Tensor | None = None,
    tokens: int = 1,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """``(scale * dy) (M, n) @ weight[:n, :k]`` in ``dtype``, dy's where None."""
    dy = scaled_rows(dy, scale, tokens, dtype or dy.dtype)
    return torch.mm(dy, weight[: dy.shape[1], :in_features].to(dy.dtype))


def linear_gelu_backward_input(
    dy: Tensor, weight: Tensor, h: Tensor, scale: Tensor | None = None, tokens: int = 1
) -> tuple[Tensor, Tensor]:
    """The gradient of ``h`` through ``scale * linear(gelu(h))``, and ``gelu(h)`` again."""
    da = linear_backward_input(dy, weight, h.shape[1], scale, tokens, h.dtype)
    return torch.ops.aten.gelu_backward(da, h), torch.nn.functional.gelu(h)


def linear_backward_weight(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None = None,
    tokens: int = 1,
    into: tuple[Tensor, Tensor | None] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Full-size gradients of weight, ``(scale * dy).T @ x`` in its slice, and of bias, the sum of dy.

    Args:
        dy, x: (M, n) and (M, k).
        weight, bias: for their sizes and dtypes.
        scale, tokens: as :func:`linear_residual_forward`.
        into: gradients to add to, in place, instead of new ones.
    """
    n, k = dy.shape[1], x.shape[1]
    if into is not None:
        dweight, dbias = linear_backward_weight(dy, x, weight, bias, scale, tokens)
        into[0][:n, :k] += dweight[:n, :k]
        if bias is not None:
            into[1][:n] += dbias[:n]
        return into
    dy = scaled_rows(dy, scale, tokens, x.dtype)
    dweight, weight_slice = full_size(weight, n, k)
    product_into(dy.t(), x, weight_slice)
    return dweight, None if bias is None else bias_gradient(dy, bias)


def bias_gradient(dy: Tensor, bias: Tensor) -> Tensor:
    """The sum over the rows of dy, at the full size of the bias."""
    dbias, bias_slice = full_size(bias, dy.shape[1])
    torch.sum(dy, 0, dtype=bias.dtype, out=bias_slice)
    return dbias


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


def qkv_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, num_heads: int, head_dim: int, bias_layout: str
) -> Tensor:
    """Queries, keys and values (3, B, h, N, e) of tokens x (B, N, d)."""
    batch, tokens, d = x.shape
    rows = x.reshape(-1, d)
    out = x.new_empty(3, batch * tokens, num_heads * head_dim)
    for part in range(3):
        matrix = qkv_rows(weight, num_heads, head_dim, part)[:, :d].to(x.dtype).t()
        if bias is None:
            torch.mm(rows, matrix, out=out[part])
        else:
            shift = qkv_bias_rows(bias, num_heads, head_dim, part, bias_layout).to(x.dtype)
            torch.addmm(shift, rows, matrix, out=out[part])
    return out.view(3, batch, tokens, num_heads, head_dim).transpose(2, 3).contiguous()


def token_major(qkv: Tensor) -> Tensor:
    """The same (3, B, h, N, e) values, token by token in memory: both gradients below read it as it is."""
    return qkv.transpose(2, 3).contiguous().transpose(2, 3)


def _merge_heads(qkv: Tensor) -> Tensor:
    """(3, B, h, N, e) to (3, B * N, h * e): a view of a token-major tensor, a copy of any other."""
    parts, batch, num_heads, tokens, head_dim = qkv.shape
    return qkv.transpose(2, 3).reshape(parts, batch * tokens, num_heads * head_dim)


def qkv_backward_input(dqkv: Tensor, weight: Tensor, in_features: int) -> Tensor:
    """Gradient of x (B, N, d)."""
    _, batch, num_heads, tokens, head_dim = dqkv.shape
    merged = _merge_heads(dqkv)
    dx = dqkv.new_empty(batch * tokens, in_features)
    for part in range(3):
        matrix = qkv_rows(weight, num_heads, head_dim, part)[:, :in_features].to(dqkv.dtype)
        torch.addmm(dx, merged[part], matrix, beta=1 if part else 0, out=dx)
    return dx.view(batch, tokens, in_features)


def qkv_backward_weight(
    dqkv: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, bias_layout: str
) -> tuple[Tensor, Tensor | None]:
    """Full-size gradients of the interleaved weight and of the bias."""
    num_heads, head_dim = dqkv.shape[2], dqkv.shape[4]
    d = x.shape[-1]
    merged, rows = _merge_heads(dqkv), x.reshape(-1, d)
    active = 3 * num_heads * head_dim
    dweight, _ = full_size(weight, active, d)
    dbias = None if bias is None else full_size(bias, active)[0]
    for part in range(3):
        product_into(merged[part].t(), rows, qkv_rows(dweight, num_heads, head_dim, part)[:, :d])
        if dbias is not None:
            target = qkv_bias_rows(dbias, num_heads, head_dim, part, bias_layout)
            target.copy_(merged[part].sum(0, dtype=dbias.dtype))
    return dweight, dbias
