"""Split-K: long sums in one launch. Programs store fp32 partial sums, and the last program adds all of them.

    tile sums:    partials (splits, tiles, BLOCK_ROWS * BLOCK_COLS + BLOCK_ROWS), one counter per tile
    column sums:  partials (programs + groups, 2, BLOCK_COLS), one counter, and one per group

Which program comes last changes from run to run, but whichever it is adds the same partial sums in the same
order: the bits do not change. Only an integer counter is atomic. A partial sum is visible to the last program
because every program passes a barrier between its stores and its acquire-release increment, and because the
partial sums are read from L2 (``.cg``), past the L1 cache of one multiprocessor. The last program sets the
counter back to zero, so one zeroed buffer (``workspace``) serves every launch of a stream.

One multiprocessor reads about 100 GB/s, so the last program must not add much: tile sums are split only
about twenty-fold (``tiles.pick_splits``), and column sums, which have hundreds of partial sums, are added in
groups, whose sums the last group adds.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def arrive(counter_ptr, expected):
    """True in the last of ``expected`` programs, to which all of their stores are then visible.

    Leaves the counter at zero, as it was found.
    """
    tl.debug_barrier()
    last = tl.atomic_add(counter_ptr, 1, sem="acq_rel") == expected - 1
    if last:
        tl.store(counter_ptr, 0)
    return last


@triton.jit
def outside_tile(index, row_tiles, col_tiles, all_row_tiles, all_col_tiles):
    """Row and column of the tile ``index`` among those outside of the first row_tiles x col_tiles tiles."""
    beside = row_tiles * (all_col_tiles - col_tiles)
    width = tl.maximum(all_col_tiles - col_tiles, 1)
    below = index >= beside
    row = tl.where(below, row_tiles + (index - beside) // all_col_tiles, index // width)
    col = tl.where(below, (index - beside) % all_col_tiles, col_tiles + index % width)
    return row, col


@triton.jit
def add_tiles(
    acc,  # (BLOCK_ROWS, BLOCK_COLS) fp32: the partial sum of the tile
    total,  # (BLOCK_ROWS,) fp32: the partial sum that goes with each row
    partial_ptr,  # (splits, tiles, BLOCK_ROWS * BLOCK_COLS + BLOCK_ROWS) fp32; not used where splits is 1
    counter_ptr,  # (tiles,) int32, zero; likewise
    tile,
    tiles,
    split,
    splits,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
):
    """The whole sums and true in the last program of a tile; in the others their own sums and false."""
    last = splits == 1
    if splits > 1:
        SIZE: tl.constexpr = BLOCK_ROWS * BLOCK_COLS + BLOCK_ROWS
        rows = tl.arange(0, BLOCK_ROWS)
        within = (rows * BLOCK_COLS)[:, None] + tl.arange(0, BLOCK_COLS)[None, :]
        tile_ptr = partial_ptr + tile.to(tl.int64) * SIZE
        step = tiles.to(tl.int64) * SIZE
        own_ptr = tile_ptr + split * step
        tl.store(own_ptr + within, acc)
        tl.store(own_ptr + BLOCK_ROWS * BLOCK_COLS + rows, total)
        last = arrive(counter_ptr + tile, splits)
        if last:
            acc = tl.zeros((BLOCK_ROWS, BLOCK_COLS), tl.float32)
            total = tl.zeros((BLOCK_ROWS,), tl.float32)
            for _ in range(0, splits):
                acc += tl.load(tile_ptr + within, cache_modifier=".cg")
                total += tl.load(tile_ptr + BLOCK_ROWS * BLOCK_COLS + rows, cache_modifier=".cg")
                tile_ptr += step
    return acc, total, last


@triton.jit
def leave_gradient(
    acc,  # (BLOCK_ROWS, BLOCK_COLS) fp32: the partial sum of one tile
    total,  # (BLOCK_ROWS,) fp32: the partial sum of the bias
    grad_ptr,  # (N_max, K_max) contiguous
    grad_bias_ptr,  # (N_max,); None: this program writes no gradient of a bias
    partial_ptr,  # and the next: as add_tiles takes them
    counter_ptr,
    tile,
    active,
    split,
    splits,  # of this tile
    rows,
    cols,
    N,
    K,
    N_max,
    K_max,
    add,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
):
    """Add the partial sums of a tile in its last program, and write or add the tile of the gradient."""
    acc, total, last = add_tiles(
        acc, total, partial_ptr, counter_ptr, tile, active, split, splits, BLOCK_ROWS, BLOCK_COLS
    )
    if last:
        written_rows = tl.where(add != 0, N, N_max)
        written_cols = tl.where(add != 0, K, K_max)
        written = (rows < written_rows)[:, None] & (cols < written_cols)[None, :]
        added_rows = N * add  # nothing is read where nothing is added to
        grad_ptrs = grad_ptr + rows.to(tl.int64)[:, None] * K_max + cols[None, :]
        added = (rows < added_rows)[:, None] & (cols < K)[None, :]
        acc += tl.load(grad_ptrs, mask=added, other=0.0).to(tl.float32)
        tl.store(grad_ptrs, acc.to(grad_ptr.dtype.element_ty), mask=written)
        if grad_bias_ptr is not None:
            bias_ptrs = grad_bias_ptr + rows
            total += tl.load(bias_ptrs, mask=rows < added_rows, other=0.0).to(tl.float32)
            tl.store(bias_ptrs, total.to(grad_bias_ptr.dtype.element_ty), mask=rows < written_rows)


@triton.jit
def _add_range(partial_ptr, first, count, BLOCK_COLS: tl.constexpr, STEP: tl.constexpr):
    """Sums over rows first .. first + count - 1 of the partial sums: two vectors (BLOCK_COLS,)."""
    rows = tl.arange(0, STEP)
    cols = tl.arange(0, BLOCK_COLS)
    one = tl.zeros((STEP, BLOCK_COLS), tl.float32)
    two = tl.zeros((STEP, BLOCK_COLS), tl.float32)
    for row in range(0, count, STEP):
        ok = (row + rows < count)[:, None] & (cols >= 0)[None, :]
        ptrs = partial_ptr + (first + row + rows).to(tl.int64)[:, None] * (2 * BLOCK_COLS) + cols[None, :]
        one += tl.load(ptrs, mask=ok, other=0.0, cache_modifier=".cg")
        two += tl.load(ptrs + BLOCK_COLS, mask=ok, other=0.0, cache_modifier=".cg")
    return tl.sum(one, axis=0), tl.sum(two, axis=0)


@triton.jit
def leave_columns(one, two, partial_ptr, program, BLOCK_COLS: tl.constexpr):
    """Store the column sums of a program, two vectors (BLOCK_COLS,), where :func:`add_columns` finds them."""
    cols = tl.arange(0, BLOCK_COLS)
    own_ptr = partial_ptr + program.to(tl.int64) * (2 * BLOCK_COLS)
    tl.store(own_ptr + cols, one)
    tl.store(own_ptr + BLOCK_COLS + cols, two)


@triton.jit
def add_columns(
    partial_ptr,  # (programs + groups, 2, BLOCK_COLS) fp32, of which this program has written its own
    counter_ptr,  # (1 + groups,) int32, zero
    program,
    programs,
    BLOCK_COLS: tl.constexpr,
    GROUP: tl.constexpr,  # programs per group
):
    """The sums over all programs, two vectors, and true in the last program; in the others, false."""
    STEP: tl.constexpr = 4096 // BLOCK_COLS if 4096 // BLOCK_COLS < GROUP else GROUP
    one = tl.zeros((BLOCK_COLS,), tl.float32)
    two = tl.zeros((BLOCK_COLS,), tl.float32)
    group = program // GROUP
    groups = (programs + GROUP - 1) // GROUP
    members = tl.minimum(programs - group * GROUP, GROUP)
    last = arrive(counter_ptr + 1 + group, members)
    if last:
        one, two = _add_range(partial_ptr, group * GROUP, members, BLOCK_COLS, STEP)
        leave_columns(one, two, partial_ptr, programs + group, BLOCK_COLS)
        last = arrive(counter_ptr, groups)
        if last:
            one, two = _add_range(partial_ptr, programs, groups, BLOCK_COLS, STEP)
    return one, two, last


@triton.jit
def write_columns(one, two, one_ptr, two_ptr, full_width, BLOCK_COLS: tl.constexpr):
    """Two gradients (full_width,) from sums that are zero past the active columns; zeros past BLOCK_COLS."""
    cols = tl.arange(0, BLOCK_COLS)
    tl.store(one_ptr + cols, one.to(one_ptr.dtype.element_ty), mask=cols < full_width)
    tl.store(two_ptr + cols, two.to(two_ptr.dtype.element_ty), mask=cols < full_width)
    zeros = tl.zeros((BLOCK_COLS,), tl.float32)
    for start in range(BLOCK_COLS, full_width, BLOCK_COLS):
        tl.store(one_ptr + start + cols, zeros.to(one_ptr.dtype.element_ty), mask=start + cols < full_width)
        tl.store(two_ptr + start + cols, zeros.to(two_ptr.dtype.element_ty), mask=start + cols < full_width)
