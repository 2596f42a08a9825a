"""Sliced QKV in CUDA C++ (csrc/cuda).

Shapes: B images of N tokens, h heads of e channels; the shared weight (3 * e * H, D) has rows 3 * u + part
and is read in place, fp32 or in the dtype of the GEMM. Results are contiguous. Raises: as
growtas.ops.linear.cuda.
"""

from __future__ import annotations

import torch
from torch import Tensor

from growtas.ops.addresses import matrix, vector
from growtas.ops.cuda_gemm import activation, check_weight, gradients, launch, plan_activation, plan_gradient


def _rows(x: Tensor) -> Tensor:
    """(B, N, d) as (B * N, d): a view where one row stride serves, else a copy."""
    return activation(x.reshape(-1, x.shape[2]))


def qkv_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, num_heads: int, head_dim: int, bias_layout: str
) -> Tensor:
    """Queries, keys and values (3, B, h, N, e) of tokens x (B, N, d)."""
    check_weight(weight, x.dtype)
    rows, (b, n, d), units = _rows(x), x.shape, num_heads * head_dim
    sizes = (b, n, d, num_heads, head_dim, bias_layout == "published")
    qkv = rows.new_empty((3, b, num_heads, n, head_dim))
    if qkv.numel():
        launch(
            "qkv_forward", rows, plan_activation(b * n, units, 3, x.dtype is torch.float32), 0, 0,
            (matrix(rows), matrix(weight), vector(bias), qkv.data_ptr(), sizes),
        )  # fmt: skip
    return qkv


def qkv_backward_input(dqkv: Tensor, weight: Tensor, in_features: int) -> Tensor:
    """Gradient of x (B, N, d), in the dtype of dqkv (3, B, h, N, e)."""
    check_weight(weight, dqkv.dtype)
    dqkv = activation(dqkv.contiguous().view(-1, dqkv.shape[-1])).view(dqkv.shape)
    _, b, heads, n, head_dim = dqkv.shape
    dx = dqkv.new_empty((b * n, in_features))
    if dx.numel():
        launch(
            "qkv_backward_input", dx, plan_activation(b * n, in_features, 1, dx.dtype is torch.float32), 0, 0,
            (dqkv.data_ptr(), matrix(weight), matrix(dx), (b, n, in_features, heads, head_dim, False)),
        )  # fmt: skip
    return dx.view(b, n, in_features)


def qkv_backward_weight(
    dqkv: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, bias_layout: str
) -> tuple[Tensor, Tensor | None]:
    """Full-size gradients of the shared weight (rows interleaved) and of the bias."""
    dqkv, rows = dqkv.contiguous(), _rows(x)
    _, b, heads, n, head_dim = dqkv.shape
    m, d = rows.shape
    # Images without tokens are no images: the kernel takes a token or more of each.
    sizes = (b if n else 0, max(n, 1), d, heads, head_dim, bias_layout == "published")
    dweight, dbias = gradients(weight, bias, None)
    # As in the kernel: a panel is a part, or a part of a head where packs would reach into the next one.
    panels, units = (3, heads * head_dim) if head_dim % 8 == 0 else (3 * heads, head_dim)
    plan = plan_gradient(units, d, m, panels, x.dtype is torch.float32)
    row_tiles = panels * -(-units // plan.tile)
    launch(
        "qkv_backward_weight", rows, plan, row_tiles * -(-d // plan.tile), row_tiles,
        (dqkv.data_ptr(), matrix(rows), matrix(dweight), vector(dbias), *weight.shape, False, sizes),
    )  # fmt: skip
    return dweight, dbias
