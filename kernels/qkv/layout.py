"""The layouts of q, k and v: in the shared weight, in its bias, and split by head; and their checks.

Row 3*u + i of the weight belongs to part i (0 q, 1 k, 2 v) and unit u = j*E + e of head j, as AutoFormer
publishes it (Chen et al., ICCV 2021; released code, "change_qkv"). So each part is a strided view, row step
3*D, and nothing is gathered: a program takes one part and a block of units. A smaller head count is a prefix
of a larger one. The bias of (i, u) is entry i*bias_step_i + u*bias_step_u: (1, 3) follows the weight
("interleaved"), (E*h, 1) is what the published code does. In both, the active entries are the first 3*E*h.

A 16-bit shadow of the weight (``growtas.shadow``) may have its rows sorted by head, part and channel. Kernels
that read weights take the two steps within a head: unit j*E + e of part i is row 3*E*j + part_step*i +
unit_step*e. (1, 3) is the weight itself, (E, 1) such a shadow. Gradients are always the weight's.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from growtas.errors import UsageError, nearest
from growtas.kernels.common import launch

BIAS_LAYOUTS = ("interleaved", "published")


@triton.jit
def weight_rows(part, first, BLOCK: tl.constexpr, part_step, unit_step, HEAD_DIM: tl.constexpr):
    """(BLOCK,) rows of the weight, or of its shadow, that make the units from ``first`` on of a part.

    ``first`` is a multiple of BLOCK. Where that divides HEAD_DIM, the units are of one head, and only
    a scalar changes from block to block.
    """
    units = tl.arange(0, BLOCK)
    if HEAD_DIM % BLOCK == 0:
        row = first // HEAD_DIM * (3 * HEAD_DIM) + part * part_step + first % HEAD_DIM * unit_step
        rows = row + units * unit_step
    else:
        units += first
        rows = units // HEAD_DIM * (3 * HEAD_DIM) + part * part_step + units % HEAD_DIM * unit_step
    return rows


@triton.jit
def store_heads(
    acc,  # (BLOCK_ROWS, BLOCK_COLS) fp32: rows of the batch by units of one part
    qkv_ptr,  # (3, B, h, N, E) contiguous
    bias_ptr,  # (3*E*H,), or None
    part,
    row,  # first row of the tile
    rows,  # (BLOCK_ROWS,) within the tile
    row_ok,
    cols,  # (BLOCK_COLS,) units
    units,  # E*h
    M,
    bias_step_i,
    bias_step_u,
    TOKENS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
):
    """Add the bias and write a tile to where attention reads it."""
    col_ok = cols < units
    if bias_ptr is not None:
        bias_ptrs = bias_ptr + part * bias_step_i + cols * bias_step_u
        acc += tl.load(bias_ptrs, mask=col_ok, other=0.0).to(tl.float32)[None, :]
    image = ((row + rows) // TOKENS).to(tl.int64)
    token = (row + rows) % TOKENS
    row_offsets = part.to(tl.int64) * M * units + image * (TOKENS * units) + token * HEAD_DIM
    col_offsets = (cols // HEAD_DIM) * (TOKENS * HEAD_DIM) + cols % HEAD_DIM
    qkv_ptrs = qkv_ptr + row_offsets[:, None] + col_offsets[None, :]
    tl.store(qkv_ptrs, acc.to(qkv_ptr.dtype.element_ty), mask=row_ok[:, None] & col_ok[None, :])


def rows_of(name: str, x: torch.Tensor) -> torch.Tensor:
    """(B, N, d) as (B*N, d): a view where one row stride serves, else a copy, made once here at the edge."""
    x = even_rows(name, x)
    return x.as_strided((x.shape[0] * x.shape[1], x.shape[2]), x.stride()[1:])


def even_rows(name: str, x: torch.Tensor) -> torch.Tensor:
    """(B, N, d) with one stride, ``x.stride(1)``, from every row to the next: x, or a copy made here."""
    if x.ndim != 3:
        raise UsageError(f"{name} has shape {tuple(x.shape)}, but (B, N, d) is needed.")
    if x.is_contiguous():
        return x
    x = launch.activation(x)
    return x if x.stride(0) == x.shape[1] * x.stride(1) or x.shape[0] == 1 else x.contiguous()


def check_heads(weight: torch.Tensor, head_dim: int) -> None:
    """Refuse a shared weight whose rows are no whole number of heads."""
    if weight.ndim != 2 or weight.shape[0] % (3 * head_dim):
        raise UsageError(
            f"The qkv weight has shape {tuple(weight.shape)}, but its rows must be a multiple of "
            f"3 * head_dim = {3 * head_dim}. Pass the shared weight of the supernet's own head_dim."
        )


def check_batch(dqkv: torch.Tensor, x: torch.Tensor) -> None:
    """Refuse a gradient that is not of the batch x."""
    _, b, _, n, _ = dqkv.shape
    if tuple(x.shape[:2]) != (b, n):
        raise UsageError(
            f"dqkv is for {b} images of {n} tokens but x has shape {tuple(x.shape)}. "
            "They must come from the same batch."
        )


def check_gradient(dqkv: torch.Tensor) -> None:
    """Refuse a tensor that is no gradient of q, k and v split by head."""
    if dqkv.ndim != 5 or dqkv.shape[0] != 3:
        raise UsageError(f"dqkv has shape {tuple(dqkv.shape)}, but (3, B, h, N, head_dim) is needed.")


def bias_steps(layout: str, num_heads: int, head_dim: int) -> tuple[int, int]:
    """Entries of the bias from one part, and from one unit, to the next."""
    if layout not in BIAS_LAYOUTS:
        raise UsageError(f"Unknown bias layout {layout!r}.{nearest(layout, BIAS_LAYOUTS)}")
    return (1, 3) if layout == "interleaved" else (head_dim * num_heads, 1)
