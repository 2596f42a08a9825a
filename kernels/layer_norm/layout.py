"""Tiles of whole rows, laid out so that one warp holds a row and no sum along a row leaves the warp."""

from __future__ import annotations

import triton
import triton.language as tl

#: True if the rows are the first axis of a tile (rows, pieces of a row, 128 columns), else the second. A warp
#: should have whole rows, so that no sum along a row leaves it. Triton gives warps to the axes in the order
#: of how contiguous their addresses are; rows and pieces are alike, and versions break the tie differently.
ROWS_FIRST = tl.constexpr(tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 7))


@triton.jit
def columns(BLOCK_COLS: tl.constexpr):
    """Column numbers, the pieces of a row and the columns of a piece, to lie beside :func:`along_rows`."""
    PIECE: tl.constexpr = BLOCK_COLS if BLOCK_COLS < 128 else 128
    pieces = tl.arange(0, BLOCK_COLS // PIECE) * PIECE
    if ROWS_FIRST:
        at = pieces[None, :, None]
    else:
        at = pieces[:, None, None]
    return at + tl.arange(0, PIECE)[None, None, :]


@triton.jit
def along_rows(x):
    """A vector with one entry per row as a tile with one column."""
    if ROWS_FIRST:
        x = x[:, None, None]
    else:
        x = x[None, :, None]
    return x


@triton.jit
def row_sums(x):
    """Sums along the rows of a tile, one column: first over what a thread holds, then over its warp."""
    return tl.sum(tl.sum(x, axis=1 if ROWS_FIRST else 0, keep_dims=True), axis=2, keep_dims=True)


@triton.jit
def column_sums(x, BLOCK_COLS: tl.constexpr):
    """(BLOCK_COLS,) sums over the rows of a tile."""
    return tl.reshape(tl.sum(x, axis=0 if ROWS_FIRST else 1), (BLOCK_COLS,))
