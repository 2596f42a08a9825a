"""Gradients of attention with 2-D relative position: the launcher of ``one_pass`` and ``two_pass``.

Two launches each; ``tiles.one_pass`` picks.
"""

from __future__ import annotations

import functools

import torch

from growtas.errors import UsageError
from growtas.kernels.common import launch
from growtas.kernels.common.plan import planned
from growtas.kernels.relative_attention.one_pass import plan_one_pass
from growtas.kernels.relative_attention.places import places
from growtas.kernels.relative_attention.problem import Planned, check
from growtas.kernels.relative_attention.tiles import one_pass
from growtas.kernels.relative_attention.two_pass import plan_two_passes


@functools.cache
def _dense(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """True if elements fill their memory without a gap, in whatever order of the axes."""
    expected = 1
    for stride, size in sorted(zip(strides, shape, strict=True)):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return True


@planned
def _plan_backward(
    dout: torch.Tensor,
    qkv: torch.Tensor,
    key_v: torch.Tensor,
    key_h: torch.Tensor,
    value_v: torch.Tensor,
    value_h: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    grid: tuple[int, int],
    precision: str,
) -> Planned:
    """Check and plan two launches; the first allocates all (``problem.backward_outputs``)."""
    tables = (key_v, key_h, value_v, value_h)
    at = check(qkv, tables, grid, dout=dout, out=out, lse=lse)
    shape = (at.batch, at.tokens, at.heads * at.head_dim)
    if not (tuple(dout.shape) == tuple(out.shape) == shape and tuple(lse.shape) == tuple(qkv.shape[1:4])):
        raise UsageError(
            f"qkv of shape {tuple(qkv.shape)} makes an output {shape}, but dout is {tuple(dout.shape)}, out "
            f"{tuple(out.shape)} and lse {tuple(lse.shape)}. All must come from the same forward pass."
        )
    strides = (*qkv.stride()[:4], *dout.stride()[:2])
    how = plan_one_pass if one_pass(qkv.dtype, at.block_e, at.side, at.device) else plan_two_passes
    return Planned(how(at, qkv, tables, strides, grid), at.places(grid, qkv.dtype))


def relative_attention_backward(
    dout: torch.Tensor,
    qkv: torch.Tensor,
    key_v: torch.Tensor,
    key_h: torch.Tensor,
    value_v: torch.Tensor,
    value_h: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    grid: tuple[int, int],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of qkv and of the four tables.

    Args:
        dout: (B, N, h * E), any strides; copied where the last one is not 1.
        qkv, key_v, key_h, value_v, value_h, grid: as :func:`relative_attention_forward` took them.
        out, lse: as it returned them.

    Returns:
        dqkv (3, B, h, N, E) in qkv's dtype and order of memory, so that a GEMM reads it as it wrote qkv, and
        the gradients of key_v, key_h, value_v and value_h, each contiguous in the tables' dtype.

    Raises:
        UsageError: as :func:`relative_attention_forward`, or dout, out and lse do not fit qkv.
    """
    qkv, dout, out = launch.activation(qkv), launch.activation(dout), out.contiguous()
    if not qkv.is_contiguous() and not _dense(tuple(qkv.shape), qkv.stride()):
        qkv = qkv.clone()  # dense, in the same order
    tables = (key_v, key_h, value_v, value_h)
    precision = launch.dot_precision(qkv.dtype)
    (first, second), of_grid = _plan_backward(dout, qkv, *tables, out, lse, tuple(grid), precision)
    where = places(*of_grid)
    dqkv, *dtables, partial, work, terms = first.outputs()
    if terms is None:  # one pass
        first.start(qkv, dout, out, lse, *tables, *where, dqkv, partial, work)
        second.start(partial, *dtables)
    else:
        first.start(qkv, dout, out, lse, *tables, *where, dqkv, work, terms, partial)
        second.start(qkv, dout, lse, work, terms, where.hot, partial, dqkv[1:], *dtables)
    return dqkv, *dtables
