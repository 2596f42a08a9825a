"""Self-attention with AutoFormer's 2-D relative position, never materialised."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from growtas.errors import UsageError
from growtas.ops import reference
from growtas.ops.registration import call, product_flops


def relative_attention(
    qkv: Tensor, key_v: Tensor, key_h: Tensor, value_v: Tensor, value_h: Tensor, grid: tuple[int, int]
) -> Tensor:
    """Attention of a cls token and a grid of patches, with relative position for keys and values.

    The logits gain ``q . (key_v[row distance] + key_h[column distance])`` and the output gains the same of
    the value tables, weighted by the attention. Distances are clamped to the tables; pairs that involve the
    cls token use row 0. The scale is ``e ** -0.5``.

    Args:
        qkv: (3, B, h, N, e); token 0 is cls, the others the grid row by row.
        key_v, key_h, value_v, value_h: (2 * m + 2, e) tables for row and column distances from -m to m; row 0
            is for cls.
        grid: rows and columns of patches, rows * columns = N - 1.

    Returns:
        (B, N, h * e), heads side by side.

    Raises:
        UsageError: the grid does not fit the tokens.

    Source: AutoFormer (Chen et al., ICCV 2021), published code; decomposed as docs/supernet.md derives.
    """
    rows, columns = grid
    if rows * columns + 1 != qkv.shape[3]:
        raise UsageError(
            f"relative_attention got {qkv.shape[3]} tokens, but a {rows} x {columns} grid and one cls token "
            f"make {rows * columns + 1}."
        )
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
    return reference.relative_attention_forward(qkv, key_v, key_h, value_v, value_h, (rows, columns))


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
    return reference.relative_attention_backward(
        dout, qkv, key_v, key_h, value_v, value_h, out, lse, (rows, columns)
    )


class RelativeAttention(torch.autograd.Function):
    """Saved: qkv, out and the log-sum-exp of the logits. The attention matrix is recomputed."""

    forward = staticmethod(_forward)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        *tensors, ctx.rows, ctx.columns = inputs
        out, lse = output
        ctx.save_for_backward(*tensors, out, lse)
        ctx.mark_non_differentiable(lse)
        ctx.set_materialize_grads(False)

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


_relative_attention_op = torch.library.custom_op("growtas::relative_attention", _forward, mutates_args=())


@_relative_attention_op.register_fake
def _(qkv, key_v, key_h, value_v, value_h, rows, columns):
    _, batch, heads, tokens, head_dim = qkv.shape
    wide = torch.promote_types(qkv.dtype, torch.float32)
    return qkv.new_empty(batch, tokens, heads * head_dim), qkv.new_empty(batch, heads, tokens, dtype=wide)


_relative_attention_backward_op = torch.library.custom_op(
    "growtas::relative_attention_backward", _backward, mutates_args=()
)


@_relative_attention_backward_op.register_fake
def _(dout, qkv, key_v, key_h, value_v, value_h, out, lse, rows, columns):
    tables = (key_v, key_h, value_v, value_h)
    return qkv.new_empty(qkv.shape), *(table.new_empty(table.shape) for table in tables)


_relative_attention_op.register_autograd(
    RelativeAttention.backward, setup_context=RelativeAttention.setup_context
)


def _attention_flops(qkv_shape, rows: int, columns: int) -> int:
    """FLOPs of one pass over the logits: q.k and the two thin products with the tables."""
    _, batch, heads, tokens, head_dim = qkv_shape
    return product_flops(batch * heads * tokens, head_dim, tokens + rows + columns + 1)


@register_flop_formula(torch.ops.growtas.relative_attention)
def _flops(
    qkv_shape, key_v, key_h, value_v, value_h, rows, columns, *_args, out_shape=None, **_kwargs
) -> int:
    return 2 * _attention_flops(qkv_shape, rows, columns)


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
    return 5 * _attention_flops(qkv_shape, rows, columns)
