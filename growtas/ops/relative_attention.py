"""Self-attention with AutoFormer's 2-D relative position, never materialised."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from growtas.errors import UsageError
from growtas.ops import backend, reference
from growtas.ops.registration import call, classic, custom_op, product_flops


def check_grid(grid: tuple[int, int], tokens: int) -> tuple[int, int]:
    """Refuse a grid that does not make the tokens, with or without a cls token."""
    rows, columns = grid
    if tokens - rows * columns not in (0, 1):
        raise UsageError(
            f"relative_attention got {tokens} tokens, but a {rows} x {columns} grid makes {rows * columns}, "
            f"or {rows * columns + 1} with a cls token."
        )
    return grid


@functools.cache
def _notice(name: str, reason: str) -> None:
    warnings.warn(f"Relative attention runs on torch instead of {name!r}: {reason}.", stacklevel=4)


def attention_kernel(step: str, qkv: Tensor, grid: tuple[int, int]) -> Callable:
    """The function of a step; the reference, with one notice, where the chosen kernel does not fit."""
    name = backend.choose("relative_attention", qkv.device, qkv.dtype, qkv.shape[-1])
    if name != "torch":
        reason = backend.kernel("relative_attention", "unsupported", qkv, qkv.shape[-1])(
            qkv.shape[-1], grid, qkv.dtype
        )
        if reason:
            _notice(name, reason)
            return getattr(reference, step)
    return backend.kernel("relative_attention", step, qkv, qkv.shape[-1])


def relative_attention(
    qkv: Tensor, key_v: Tensor, key_h: Tensor, value_v: Tensor, value_h: Tensor, grid: tuple[int, int]
) -> Tensor:
    """Attention of a grid of patches, and a cls token or none, with relative position for keys and values.

    The logits gain ``q . (key_v[row distance] + key_h[column distance])`` and the output gains the same of
    the value tables, weighted by the attention. Distances are clamped to the tables; pairs that involve the
    cls token use row 0. The scale is ``e ** -0.5``.

    Args:
        qkv: (3, B, h, N, e), any strides; the grid row by row, after the cls token where there is one.
        key_v, key_h, value_v, value_h: (2 * m + 2, e) tables for row and column distances from -m to m; row 0
            is for cls.
        grid: rows and columns of patches; rows * columns is N - 1, or N where there is no cls token.

    Returns:
        (B, N, h * e), heads side by side.

    Raises:
        UsageError: the grid does not fit the tokens.

    Source: AutoFormer (Chen et al., ICCV 2021), published code; decomposed as docs/supernet.md derives.
    """
    rows, columns = check_grid(grid, qkv.shape[3])
    return call(
        RelativeAttention.apply,
        torch.ops.growtas.relative_attention,
        qkv,
        key_v,
        key_h,
        value_v,
        value_h,
        rows,
        columns,
    )[0]


def _forward(
    qkv: Tensor, key_v: Tensor, key_h: Tensor, value_v: Tensor, value_h: Tensor, rows: int, columns: int
) -> tuple[Tensor, Tensor]:
    run = attention_kernel("relative_attention_forward", qkv, (rows, columns))
    return run(qkv, key_v, key_h, value_v, value_h, (rows, columns))


def _backward(
    dout: Tensor,
    qkv: Tensor,
    key_v: Tensor,
    key_h: Tensor,
    value_v: Tensor,
    value_h: Tensor,
    out: Tensor,
    lse: Tensor,
    rows: int,
    columns: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    run = attention_kernel("relative_attention_backward", qkv, (rows, columns))
    return run(dout, qkv, key_v, key_h, value_v, value_h, out, lse, (rows, columns))


def empty_gradient(qkv: Tensor, grid: tuple[int, int]) -> Tensor:
    """dqkv with the strides that the chosen backend gives it: qkv's own from the C++ and Triton kernels."""
    run = attention_kernel("relative_attention_backward", qkv, grid)
    return qkv.new_empty(qkv.shape) if run is reference.relative_attention_backward else torch.empty_like(qkv)


def _keep(ctx, inputs, output) -> None:
    """Save the tensors and sizes of the backward pass."""
    *tensors, ctx.rows, ctx.columns = inputs
    out, lse = output
    ctx.save_for_backward(*tensors, out, lse)
    ctx.mark_non_differentiable(lse)
    ctx.set_materialize_grads(False)


class RelativeAttention(torch.autograd.Function):
    """Saved: qkv, out and the log-sum-exp of the logits. The attention matrix is recomputed."""

    forward = classic(_forward, _keep)

    @staticmethod
    def backward(ctx, dout, _dlse):
        if dout is None:  # nothing downstream used the result
            return (None,) * 7
        return (
            *call(
                _backward,
                torch.ops.growtas.relative_attention_backward,
                dout,
                *ctx.saved_tensors,
                ctx.rows,
                ctx.columns,
            ),
            None,
            None,
        )


_relative_attention_op = custom_op("growtas::relative_attention", _forward)


@_relative_attention_op.register_fake
def _(qkv, key_v, key_h, value_v, value_h, rows, columns):
    _, batch, heads, tokens, head_dim = qkv.shape
    wide = torch.promote_types(qkv.dtype, torch.float32)
    return qkv.new_empty(batch, tokens, heads * head_dim), qkv.new_empty(batch, heads, tokens, dtype=wide)


_relative_attention_backward_op = custom_op("growtas::relative_attention_backward", _backward)


@_relative_attention_backward_op.register_fake
def _(dout, qkv, key_v, key_h, value_v, value_h, out, lse, rows, columns):
    tables = (key_v, key_h, value_v, value_h)
    return empty_gradient(qkv, (rows, columns)), *(table.new_empty(table.shape) for table in tables)


_relative_attention_op.register_autograd(RelativeAttention.backward, setup_context=_keep)


def attention_flops(qkv_shape, rows: int, columns: int) -> int:
    """FLOPs of one pass over the logits: q.k and the two thin products with the tables."""
    _, batch, heads, tokens, head_dim = qkv_shape
    return product_flops(batch * heads * tokens, head_dim, tokens + rows + columns + 1)


@register_flop_formula(torch.ops.growtas.relative_attention)
def _flops(
    qkv_shape, key_v, key_h, value_v, value_h, rows, columns, *_args, out_shape=None, **_kwargs
) -> int:
    return 2 * attention_flops(qkv_shape, rows, columns)


@register_flop_formula(torch.ops.growtas.relative_attention_backward)
def _backward_flops(
    dout_shape,
    qkv_shape,
    key_v,
    key_h,
    value_v,
    value_h,
    out,
    lse,
    rows,
    columns,
    *_args,
    out_shape=None,
    **_kw,
) -> int:
    return 5 * attention_flops(qkv_shape, rows, columns)
