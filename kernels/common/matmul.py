"""The GEMM loops that the sliced linear and the sliced QKV share, as helpers that Triton inlines.

    C[r, c] = sum over t of A[r, t] * B[t, c]        A and B in memory by any strides, C in fp32 registers

Shapes: a program owns one (BLOCK_ROWS, BLOCK_COLS) tile of C and walks the depth in steps of BLOCK_DEPTH.
Edges: every load is masked on rows, columns and depth, because a slice ends in the middle of a shared weight
whose other entries are real numbers, or NaN. Masked lanes read as zero, so tiles past the edge come out as
zero. Alignment: a mask ``offset < width`` lets Triton use wide accesses only if it knows what divides
``width``; ``known_multiple`` says so, from the constexpr class the launcher has checked.

Weight gradients are long reductions over all rows of the batch, A is dy^T: ``accumulate_over_rows`` sums a
part of the rows, and ``split_k`` adds the parts in order. On the way, dy may be multiplied by the drop-path
factor of its image, and x may be normalised by the statistics of its row. Both are done in fp32, before the
operand is converted to the dtype of the matmul, so that neither the scaled dy nor the normalised x is ever
written to memory. The sum of dy, for the gradient of a bias, costs no extra read: it is taken of the tiles
that are loaded for the matmul, in those programs that ask for it (SUM).

The forward and input-gradient matmuls use ``accumulate``, whose operands advance by a constant step.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tile_of(program, row_tiles, col_tiles, GROUP: tl.constexpr):
    """Row and column tile of a program; GROUP row tiles pass over all column tiles together, sharing L2."""
    group = program // (GROUP * col_tiles)
    first = group * GROUP
    height = tl.minimum(row_tiles - first, GROUP)
    within = program - group * (GROUP * col_tiles)
    return first + within % height, within // height


@triton.jit
def load_tile(ptrs, row_ok, col_ok, DTYPE: tl.constexpr):
    """A masked tile, zero outside, converted to the dtype the matmul is made in."""
    return tl.load(ptrs, mask=row_ok[:, None] & col_ok[None, :], other=0.0).to(DTYPE)


@triton.jit
def load_normalised(ptrs, row_ok, col_ok, mean, rstd, gamma, beta, DTYPE: tl.constexpr):
    """A masked tile of LayerNorm(x): mean and rstd by row, gamma and beta by column, both zero outside.

    Rows outside read as beta, whose terms fall on rows that are zero or not stored.
    """
    x = tl.load(ptrs, mask=row_ok[:, None] & col_ok[None, :], other=0.0).to(tl.float32)
    return ((x - mean[:, None]) * rstd[:, None] * gamma[None, :] + beta[None, :]).to(DTYPE)


@triton.jit
def accumulate(
    acc,
    a_ptrs,  # (BLOCK_ROWS, BLOCK_DEPTH) pointers to the first step of A
    a_ok,  # (BLOCK_ROWS,) rows that exist
    a_step,  # elements from one step of A to the next
    b_ptrs,  # (BLOCK_DEPTH, BLOCK_COLS) pointers to the first step of B
    b_ok,  # (BLOCK_COLS,) columns that exist
    b_step,
    depth,  # length of the reduction
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
):
    """acc += A B, for operands whose pointers advance by a constant."""
    steps = tl.arange(0, BLOCK_DEPTH)
    for start in range(0, depth, BLOCK_DEPTH):
        ok = steps < depth - start
        a = load_tile(a_ptrs, a_ok, ok, DTYPE)
        b = load_tile(b_ptrs, ok, b_ok, DTYPE)
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
        a_ptrs += a_step
        b_ptrs += b_step
    return acc


@triton.jit
def accumulate_over_rows(
    acc,
    dy_ptrs,  # (BLOCK_ROWS,) pointers to batch row 0 of each output row
    dy_ok,  # (BLOCK_ROWS,) output rows that exist
    stride_image,  # dy: elements from one image to the next; not used where TOKENS is 0
    stride_dy,  # dy: elements from one row (TOKENS = 0) or one token to the next
    x_ptrs,  # (BLOCK_COLS,) pointers to batch row 0 of each output column
    x_ok,  # (BLOCK_COLS,) output columns that exist
    stride_x,
    start,  # int64: first batch row of this part
    depth,  # batch rows of this part
    TOKENS: tl.constexpr,  # rows are (image, token) pairs with this many tokens; 0: plain rows
    SUM: tl.constexpr,
    DTYPE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
    scale_ptr=None,  # (images,) fp32, or None: the factor of every row of dy
    scale_tokens=1,  # rows per image, for scale
    stride_scale=1,
    mean_ptr=None,  # (M,) fp32, or None: x is normalised while it is loaded
    rstd_ptr=None,  # (M,) fp32
    gamma=None,  # (BLOCK_COLS,) fp32: factor and shift of the normalised columns
    beta=None,
):
    """acc += dy^T x over ``depth`` rows of the batch, and where SUM is set the sum of those rows of dy."""
    total = tl.zeros((BLOCK_ROWS,), tl.float32)
    steps = tl.arange(0, BLOCK_DEPTH)
    for done in range(0, depth, BLOCK_DEPTH):
        ok = steps < depth - done
        row = start + done
        if TOKENS:
            rows = (row + steps).to(tl.int32)
            offsets = (rows // TOKENS).to(tl.int64) * stride_image + (rows % TOKENS) * stride_dy
        else:
            offsets = row * stride_dy + steps * stride_dy
        dy = tl.load(dy_ptrs[:, None] + offsets[None, :], mask=dy_ok[:, None] & ok[None, :], other=0.0)
        if scale_ptr is not None:
            images = (row + steps).to(tl.int32) // scale_tokens
            scale = tl.load(scale_ptr + images * stride_scale, mask=ok, other=0.0)
            dy = dy.to(tl.float32) * scale[None, :]
        x_tile_ptrs = x_ptrs[None, :] + row * stride_x + (steps * stride_x)[:, None]
        if mean_ptr is not None:
            mean = tl.load(mean_ptr + row + steps, mask=ok, other=0.0)
            rstd = tl.load(rstd_ptr + row + steps, mask=ok, other=0.0)
            x = load_normalised(x_tile_ptrs, ok, x_ok, mean, rstd, gamma, beta, DTYPE)
        else:
            x = load_tile(x_tile_ptrs, ok, x_ok, DTYPE)
        acc = tl.dot(dy.to(DTYPE), x, acc, input_precision=PRECISION)
        if SUM:
            summed = dy.to(tl.float32)
            if dy.dtype == tl.float32:
                summed += 0.0  # Triton 3.6 fails at sums of what was just loaded ("loopResult.hasOneUse()")
            total += tl.sum(summed, axis=1)
    return acc, total
