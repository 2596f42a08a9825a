"""Sliced linear and sliced QKV in CUDA C++ (csrc/cuda/products.cu).

Shapes: M rows of activations, k and n widths of a slice, N_max and K_max of the shared weight; B images of N
tokens, h heads of e channels. Weights are read in place, fp32 or in the dtype of the products; sums are fp32.
A weight gradient is split over the rows of the batch and added up in a fixed order, in one launch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from growtas.errors import UsageError, nearest
from growtas.ops import native
from growtas.ops.product_launch import (
    activation,
    check_bias,
    check_rows,
    check_scale,
    check_weight,
    gradients,
    launch,
    plan_activation,
    plan_gradient,
    pointer,
    vector,
)

_NONE = (0, 0, 0)  # a matrix that is not there


def _narrow(dy: Tensor, weight: Tensor, product: torch.dtype) -> Tensor:
    """dy as the kernels take it: of the products' dtype, or fp32 beside an fp32 weight."""
    if dy.dtype is product or (dy.dtype is torch.float32 and weight.dtype is torch.float32):
        return dy
    return dy.to(product)


def _rows(x: Tensor) -> Tensor:
    """(B, N, d) as (B * N, d): a view where one row stride serves, else a copy."""
    if x.dim() != 3:
        raise UsageError(f"x has shape {tuple(x.shape)}, but (B, N, d) is needed.")
    return activation(x.reshape(-1, x.shape[2]), "x")


def _split(dqkv: Tensor) -> Tensor:
    if dqkv.dim() != 5 or dqkv.shape[0] != 3:
        raise UsageError(f"dqkv has shape {tuple(dqkv.shape)}, but (3, B, h, N, head_dim) is needed.")
    dqkv = dqkv.contiguous()
    activation(dqkv.view(-1, dqkv.shape[-1]), "dqkv")
    return dqkv


def _published(layout: str) -> bool:
    layouts = ("interleaved", "published")
    if layout not in layouts:
        raise UsageError(f"There is no qkv bias layout {layout!r}.{nearest(layout, layouts)}")
    return layout == "published"


# ---------------------------------------------------------------------------------------------- sliced linear


def _forward(epilogue: int, x, weight, bias, n, out, other, scale, tokens) -> None:
    m, k = x.shape
    launch(
        "linear_forward", x, plan_activation(m, n, 1, x.dtype is torch.float32), 0, 0,
        (epilogue, native._matrix(x), native._matrix(weight), vector(bias), native._matrix(out),
         _NONE if other is None else native._matrix(other), pointer(scale), (m, n, k, tokens)),
    )  # fmt: skip


def cuda_linear_forward(x: Tensor, weight: Tensor, bias: Tensor | None, out_features: int) -> Tensor:
    """y = x weight[:n, :k]^T + bias[:n].

    Args:
        x: (M, k), any row stride.
        weight: (N_max, K_max) shared weight, any row stride; float32 or x's dtype.
        bias: (N_max,) or None.
        out_features: n.

    Returns:
        (M, n) contiguous, in x's dtype.

    Raises:
        ValueError: a slice outside the weight, a wrong device, dtype or shape. GrowtasError: the module was
            not built, or the launch failed.
    """
    x = activation(x, "x")
    check_weight(weight, out_features, x.shape[1], x, x.dtype)
    check_bias(bias, weight)
    y = x.new_empty((x.shape[0], out_features))
    _forward(0, x, weight, bias, out_features, y, None, None, 1)
    return y


def cuda_linear_gelu_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, out_features: int
) -> tuple[Tensor, Tensor]:
    """gelu(h) and h = x weight[:n, :k]^T + bias[:n]; the exact GELU, of the fp32 sum.

    Args:
        x, weight, bias, out_features: as :func:`cuda_linear_forward`.

    Returns:
        gelu(h) and h, (M, n) contiguous, in x's dtype.

    Raises:
        ValueError, GrowtasError: as :func:`cuda_linear_forward`.
    """
    x = activation(x, "x")
    check_weight(weight, out_features, x.shape[1], x, x.dtype)
    check_bias(bias, weight)
    a = x.new_empty((x.shape[0], out_features))
    h = x.new_empty((x.shape[0], out_features))
    _forward(1, x, weight, bias, out_features, a, h, None, 1)
    return a, h


def cuda_linear_residual_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor, scale: Tensor | None, tokens: int
) -> Tensor:
    """residual + scale * (x weight[:n, :k]^T + bias[:n]).

    Args:
        x, weight, bias: as :func:`cuda_linear_forward`.
        residual: (M, n), of any of the three dtypes.
        scale: (B,) float32, of image row // tokens, or None for 1.
        tokens: rows of an image.

    Returns:
        (M, n) contiguous, in residual's dtype.

    Raises:
        ValueError, GrowtasError: as :func:`cuda_linear_forward`.
    """
    x, residual = activation(x, "x"), activation(residual, "residual")
    n = residual.shape[1]
    check_weight(weight, n, x.shape[1], x, x.dtype)
    check_bias(bias, weight)
    check_rows(residual, "residual", (x.shape[0], n), x)
    check_scale(scale, tokens, x)
    y = residual.new_empty(residual.shape)
    _forward(2, x, weight, bias, n, y, residual, scale, tokens)
    return y


def cuda_linear_backward_input(
    dy: Tensor,
    weight: Tensor,
    in_features: int,
    scale: Tensor | None = None,
    tokens: int = 1,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """dx = (scale * dy) weight[:n, :k]; the scale is applied to the fp32 sum.

    Args:
        dy: (M, n), any row stride; of ``dtype``, or float32.
        weight: (N_max, K_max) shared weight; float32 or ``dtype``.
        in_features: k.
        scale: (B,) float32, of image row // tokens, or None for 1.
        tokens: rows of an image.
        dtype: of the products and the result; default dy's.

    Returns:
        (M, k) contiguous, in ``dtype``.

    Raises:
        ValueError, GrowtasError: as :func:`cuda_linear_forward`.
    """
    dy, product = activation(dy, "dy"), dtype or dy.dtype
    (m, n), k = dy.shape, in_features
    check_weight(weight, n, k, dy, product)
    check_scale(scale, tokens, dy)
    dy = _narrow(dy, weight, product)
    dx = dy.new_empty((m, k), dtype=product)
    native.dtype_code(dx, "dtype")
    launch(
        "linear_backward_input", dx, plan_activation(m, k, 1, product is torch.float32), 0, 0,
        (native._matrix(dy), native._matrix(weight), native._matrix(dx), pointer(scale), (m, n, k, tokens)),
    )  # fmt: skip
    return dx


def cuda_linear_gelu_backward_input(
    dy: Tensor, weight: Tensor, h: Tensor, scale: Tensor | None = None, tokens: int = 1
) -> tuple[Tensor, Tensor]:
    """The gradient of h through scale * linear(gelu(h)), and gelu(h) again, in one pass.

    Args:
        dy: (M, n); of h's dtype, or float32.
        weight: (N_max, K_max) shared weight; float32 or h's dtype.
        h: (M, k) as :func:`cuda_linear_gelu_forward` returned it.
        scale, tokens: as :func:`cuda_linear_backward_input`.

    Returns:
        dh = (scale * dy) weight[:n, :k] * gelu'(h), and gelu(h): (M, k) contiguous, in h's dtype.

    Raises:
        ValueError, GrowtasError: as :func:`cuda_linear_forward`.
    """
    dy, h = activation(dy, "dy"), activation(h, "h")
    (m, n), k = dy.shape, h.shape[1]
    check_weight(weight, n, k, dy, h.dtype)
    check_rows(h, "h", (m, k), dy)
    check_scale(scale, tokens, dy)
    dy = _narrow(dy, weight, h.dtype)
    dh, a = h.new_empty((m, k)), h.new_empty((m, k))
    launch(
        "linear_gelu_backward_input", h, plan_activation(m, k, 1, h.dtype is torch.float32), 0, 0,
        (native._matrix(dy), native._matrix(weight), native._matrix(h), native._matrix(dh), native._matrix(a),
         pointer(scale), (m, n, k, tokens)),
    )  # fmt: skip
    return dh, a


def cuda_linear_backward_weight(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None = None,
    tokens: int = 1,
    into: tuple[Tensor, Tensor | None] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Full-size gradients of weight, (scale * dy)^T x in its slice, and of bias, the sums of scale * dy.

    Args:
        dy: (M, n), any row stride; of x's dtype, or float32 and then converted, scaled, on load.
        x: (M, k), any row stride; the products are in its dtype.
        weight: (N_max, K_max); only its shape, dtype and device are used.
        bias: (N_max,) likewise, or None.
        scale, tokens: as :func:`cuda_linear_backward_input`.
        into: gradients of both to add to inside the slice, in place, instead of new ones.

    Returns:
        (N_max, K_max) contiguous in the weight's dtype, zero outside the slice, and (N_max,) or None.

    Raises:
        ValueError, GrowtasError: as :func:`cuda_linear_forward`.
    """
    dy, x = activation(dy, "dy"), activation(x, "x")
    (m, n), k = dy.shape, x.shape[1]
    check_rows(x, "x", (m, k), dy)
    check_weight(weight, n, k, x, weight.dtype)
    check_bias(bias, weight)
    check_scale(scale, tokens, x)
    if dy.dtype not in (x.dtype, torch.float32):
        dy = dy.to(x.dtype)
    dweight, dbias = gradients(weight, bias, into)
    plan = plan_gradient(n, k, m, 1, x.dtype is torch.float32)
    row_tiles = -(-n // plan.tile)
    launch(
        "linear_backward_weight", x, plan, row_tiles * -(-k // plan.tile), row_tiles,
        (native._matrix(dy), native._matrix(x), native._matrix(dweight), vector(dbias), *weight.shape,
         into is not None, pointer(scale), (m, n, k, tokens)),
    )  # fmt: skip
    return dweight, dbias


# ------------------------------------------------------------------------------------------------- sliced QKV


def cuda_qkv_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    num_heads: int,
    head_dim: int,
    bias_layout: str = "interleaved",
) -> Tensor:
    """Queries, keys and values of the first heads, split by head.

    Args:
        x: (B, N, d); copied where its rows have no common stride.
        weight: (3 * e * H, D) shared weight, rows 3 * u + part; float32 or x's dtype.
        bias: (3 * e * H,) or None.
        num_heads, head_dim: h and e.
        bias_layout: "interleaved" (as the weight) or "published" (q, k, v one after the other).

    Returns:
        (3, B, h, N, e) contiguous, in x's dtype.

    Raises:
        ValueError, GrowtasError: as :func:`cuda_linear_forward`.
    """
    rows = _rows(x)
    (b, n, d), units = x.shape, num_heads * head_dim
    check_weight(weight, 3 * units, d, rows, x.dtype)
    check_bias(bias, weight)
    sizes = (b, n, d, num_heads, head_dim, _published(bias_layout))
    qkv = rows.new_empty((3, b, num_heads, n, head_dim))
    if not qkv.numel():
        return qkv
    launch(
        "qkv_forward", rows, plan_activation(b * n, units, 3, x.dtype is torch.float32), 0, 0,
        (native._matrix(rows), native._matrix(weight), vector(bias), qkv.data_ptr(), sizes),
    )  # fmt: skip
    return qkv


def cuda_qkv_backward_input(dqkv: Tensor, weight: Tensor, in_features: int) -> Tensor:
    """Gradient of x.

    Args:
        dqkv: (3, B, h, N, e); copied where not contiguous.
        weight: (3 * e * H, D) shared weight; float32 or dqkv's dtype.
        in_features: d.

    Returns:
        (B, N, d) contiguous, in dqkv's dtype.

    Raises:
        ValueError, GrowtasError: as :func:`cuda_linear_forward`.
    """
    dqkv = _split(dqkv)
    _, b, heads, n, head_dim = dqkv.shape
    check_weight(weight, 3 * heads * head_dim, in_features, dqkv, dqkv.dtype)
    dx = dqkv.new_empty((b * n, in_features))
    if dx.numel():
        launch(
            "qkv_backward_input", dx, plan_activation(b * n, in_features, 1, dx.dtype is torch.float32),
            0, 0,
            (dqkv.data_ptr(), native._matrix(weight), native._matrix(dx),
             (b, n, in_features, heads, head_dim, False)),
        )  # fmt: skip
    return dx.view(b, n, in_features)


def cuda_qkv_backward_weight(
    dqkv: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, bias_layout: str = "interleaved"
) -> tuple[Tensor, Tensor | None]:
    """Full-size gradients of the shared weight (rows interleaved) and of the bias.

    Args:
        dqkv: (3, B, h, N, e); copied where not contiguous.
        x: (B, N, d), in dqkv's dtype; copied where its rows have no common stride.
        weight: (3 * e * H, D); only its shape, dtype and device are used.
        bias: (3 * e * H,) likewise, or None.
        bias_layout: as :func:`cuda_qkv_forward`.

    Returns:
        (3 * e * H, D) contiguous in the weight's dtype, zero outside the slice, and (3 * e * H,) or None.

    Raises:
        ValueError, GrowtasError: as :func:`cuda_linear_forward`.
    """
    dqkv, rows = _split(dqkv), _rows(x)
    _, b, heads, n, head_dim = dqkv.shape
    m, d = rows.shape
    if tuple(x.shape[:2]) != (b, n) or x.device != dqkv.device or x.dtype is not dqkv.dtype:
        raise UsageError(
            f"dqkv is {dqkv.dtype} for {b} images of {n} tokens on {dqkv.device}, and x {x.dtype} of shape "
            f"{tuple(x.shape)} on {x.device}: they must come from the same batch."
        )
    check_weight(weight, 3 * heads * head_dim, d, rows, weight.dtype)
    check_bias(bias, weight)
    sizes = (b, max(n, 1), d, heads, head_dim, _published(bias_layout))
    dweight, dbias = gradients(weight, bias, None)
    # As in products.cu: a panel is a part, or a part of a head where packs would reach into the next one.
    panels, units = (3, heads * head_dim) if head_dim % 8 == 0 else (3 * heads, head_dim)
    plan = plan_gradient(units, d, m, panels, x.dtype is torch.float32)
    row_tiles = panels * -(-units // plan.tile)
    launch(
        "qkv_backward_weight", rows, plan, row_tiles * -(-d // plan.tile), row_tiles,
        (dqkv.data_ptr(), native._matrix(rows), native._matrix(dweight), vector(dbias), *weight.shape, False,
         sizes),
    )  # fmt: skip
    return dweight, dbias
