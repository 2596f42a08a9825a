"""Relative-position terms in table space and in place space, and the way from one to the other.

A query at grid row r_i meets the key at row r through the table row of their distance r - r_i, clamped to
[-m, m]. For one query the terms of all keys are therefore a *window* of its dot products with the table, and
the window slides with the query's own place. Two spaces, one program's tile of each:

    table space (queries, 4 * SIDE): columns [0, 2 * SIDE) are row distances -(R-1)..R-1 in order, columns
        [2 * SIDE, 4 * SIDE) column distances -(C-1)..C-1. Distances over m repeat the table's outermost rows.
        The last column of each half stands for pairs with the cls token, the one before it is zero.
    place space (queries, 2 * SIDE): columns [0, SIDE) are the rows of the grid, columns [SIDE, 2 * SIDE) its
        columns. SIDE - 2 and 2 * SIDE - 2 are the cls key, SIDE - 1 is zero, 2 * SIDE - 1 is every key.

From table to place space and back is a ``tl.gather`` along the columns, once per query tile, with an index
that depends on the query's place. From place space to keys is a matmul with ``hot (keys, 2 * SIDE)``, which
is zero but for a key's row, its column and the column of every key: on tensor cores, inside the loop over
keys. So the loop is that of plain attention with a head that is 2 * SIDE wider, and nothing in it depends on
the grid. (A gather of every element of the bias would cost two reads of shared memory and the arithmetic of
two indices per element of every tile.)

``hot`` and the indices depend on the grid alone. They are made once per grid and kept (:class:`Places`): made
in the kernel, their arithmetic costs more instructions than the softmax of a whole image.

A query that is cls has the cls terms at every key. Its share of the cls row of the value tables is the
sum over every key.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from growtas.kernels.common.workspace import lasting

#: Everything per token is padded to a multiple of this many tokens, the largest tile.
PADDED_TO = 128


class Places(NamedTuple):
    """A grid as the kernels read it; T = tokens, padded to a multiple of :data:`PADDED_TO`."""

    hot: torch.Tensor  # (T, 2 * SIDE) in the dtype of the matmuls
    terms_index: torch.Tensor  # (T, 2 * SIDE) int32: the column of table space of each column of place space
    tables_index: torch.Tensor  # (T, 4 * SIDE) int32: the other way round
    table_rows: torch.Tensor  # (4 * SIDE,) int32: the row of the table, or -1 for zeros


def places(
    grid: tuple[int, int], cls: int, clamp: int, side: int, dtype: torch.dtype, device: torch.device
) -> Places:
    """The places of a grid, made once and kept.

    A stream that is being captured uses the places that are kept. If there are none, the graph makes its own
    at every replay, some 100 small kernels: run the kernels once before the capture, as for compiling them.

    Args:
        grid: R and C; with cls and one free column they fit ``side``.
        cls: 1 where token 0 is cls.
        clamp: m of the tables.
        side: class of the grid.
        dtype: of the matmuls.
        device: of the tensors.
    """
    key = (grid, cls, clamp, side, dtype, device)
    found = _kept.get(key)
    if found is None:
        found = _make(*key)
        if device.type == "cuda":
            if torch.cuda.is_current_stream_capturing():
                return found  # its memory is the graph's, and nothing in it is computed before a replay
            torch.cuda.current_stream(device).synchronize()  # whichever stream reads it next
        _kept[key] = found
        for tensor in found:
            lasting(tensor)
    return found


#: Never evicted: a graph that was captured with an entry reads its memory at every replay. 0.1 MB a grid.
_kept: dict[tuple, Places] = {}


def _make(
    grid: tuple[int, int], cls: int, clamp: int, side: int, dtype: torch.dtype, device: torch.device
) -> Places:
    """Nothing here is copied from the host, so that it can be captured."""
    rows, columns = grid
    tokens = triton.cdiv(rows * columns + cls, PADDED_TO) * PADDED_TO
    token = torch.arange(tokens, device=device)[:, None]
    real = token < rows * columns + cls
    is_cls = (token < cls) & real
    place = (token - cls).clamp(0, rows * columns - 1)
    cls_slot, none_slot, every_slot = side - 2, side - 1, 2 * side - 1  # of a half; of a half; of all
    slot = torch.arange(side, device=device)
    step = torch.arange(2 * side, device=device)
    hot, terms, tables, table_rows = [], [], [], []
    for half, (size, own) in enumerate(((rows, place // columns), (columns, place % columns))):
        hot.append((slot == torch.where(is_cls, cls_slot, own)) & real)
        column = torch.where(is_cls | (slot == cls_slot), 2 * side - 1, slot - own + size - 1)
        used = (slot < size) | (slot == cls_slot)
        terms.append(torch.where(used, column, 2 * side - 2) + half * 2 * side)
        other = own + step - (size - 1)
        inside = (other >= 0) & (other < size) & ~is_cls
        of_cls = torch.where(is_cls, every_slot, cls_slot + half * side)
        tables.append(
            torch.where(step == 2 * side - 1, of_cls, torch.where(inside, other + half * side, none_slot))
        )
        row = (step - (size - 1)).clamp(-clamp, clamp) + clamp + 1
        table_rows.append(torch.where(step < 2 * size - 1, row, torch.where(step == 2 * side - 1, 0, -1)))
    hot[1][:, -1:] = real
    return Places(
        torch.cat(hot, 1).to(dtype),
        torch.cat(terms, 1).int(),
        torch.cat(tables, 1).int(),
        torch.cat(table_rows).int(),
    )


@triton.jit
def load_padded(ptr, tokens, WIDTH: tl.constexpr, start=0, COUNT: tl.constexpr = 0):
    """(tokens, WIDTH) of a tensor of :class:`Places`, or COUNT columns of it; padded: nothing to mask."""
    cols = start + tl.arange(0, COUNT if COUNT else WIDTH)
    return tl.load(ptr + tokens[:, None] * WIDTH + cols[None, :])


@triton.jit
def load_rows(
    ptr,  # (N, HEAD_DIM) of one head, row stride ``stride``
    tokens,
    N,
    stride,
    HEAD_DIM: tl.constexpr,
    BLOCK_E: tl.constexpr,
    MASKED: tl.constexpr = True,  # tokens may be past the last one
):
    """(tokens, BLOCK_E) of one head, zero past the last token and past the head's width."""
    cols = tl.arange(0, BLOCK_E)
    ptrs = ptr + tokens[:, None] * stride + cols[None, :]
    if not MASKED and BLOCK_E == HEAD_DIM:
        return tl.load(ptrs)
    ok = (cols < HEAD_DIM)[None, :]
    if MASKED:
        ok = (tokens < N)[:, None]
        if BLOCK_E != HEAD_DIM:
            ok = ok & (cols < HEAD_DIM)[None, :]
    return tl.load(ptrs, mask=ok, other=0.0)


@triton.jit
def store_rows(
    ptr,  # (N, HEAD_DIM) of one head, row stride ``stride``
    value,
    tokens,
    N,
    stride,
    HEAD_DIM: tl.constexpr,
    BLOCK_E: tl.constexpr,
    MASKED: tl.constexpr = True,  # tokens may be past the last one
):
    """The counterpart of :func:`load_rows`, in the dtype of the pointer."""
    cols = tl.arange(0, BLOCK_E)
    ptrs = ptr + tokens[:, None] * stride + cols[None, :]
    value = value.to(ptr.dtype.element_ty)
    if not MASKED and BLOCK_E == HEAD_DIM:
        tl.store(ptrs, value)
    else:
        ok = (cols < HEAD_DIM)[None, :]
        if MASKED:
            ok = (tokens < N)[:, None]
            if BLOCK_E != HEAD_DIM:
                ok = ok & (cols < HEAD_DIM)[None, :]
        tl.store(ptrs, value, mask=ok)


@triton.jit
def load_tables(
    v_ptr,  # (2m + 2, E): the table of row distances, row stride stride_v
    h_ptr,  # (2m + 2, E): the table of column distances, row stride stride_h
    stride_v,
    stride_h,
    rows_ptr,  # (4 * SIDE,) int32, Places.table_rows
    start,
    CHUNK: tl.constexpr,
    SIDE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_E: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """(CHUNK, BLOCK_E): the table rows of columns ``start`` onward of table space."""
    at = start + tl.arange(0, CHUNK)
    row = tl.load(rows_ptr + at)
    ptrs = tl.where(at < 2 * SIDE, v_ptr + row * stride_v, h_ptr + row * stride_h)[:, None]
    cols = tl.arange(0, BLOCK_E)
    ok = (row >= 0)[:, None]
    if BLOCK_E != HEAD_DIM:
        ok = ok & (cols < HEAD_DIM)[None, :]
    return tl.load(ptrs + cols[None, :], mask=ok, other=0.0).to(DTYPE)


@triton.jit
def place_terms(
    x,  # (BLOCK_Q, BLOCK_E) queries, or gradients of the output
    index,  # (BLOCK_Q, 2 * SIDE) of Places.terms_index
    v_ptr,
    h_ptr,
    stride_v,
    stride_h,
    rows_ptr,
    SIDE: tl.constexpr,
    CHUNK: tl.constexpr,  # columns of table space that are made at a time
    HEAD_DIM: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """(BLOCK_Q, 2 * SIDE), in the dtype of x: each query dot the table rows of all places."""
    if CHUNK == 4 * SIDE:
        table = load_tables(
            v_ptr, h_ptr, stride_v, stride_h, rows_ptr, 0, CHUNK, SIDE, HEAD_DIM, x.shape[1], x.dtype
        )
        terms = tl.gather(tl.dot(x, tl.trans(table), input_precision=PRECISION), index, 1)
    else:
        terms = tl.zeros(index.shape, tl.float32)
        for start in tl.range(0, 4 * SIDE, CHUNK, num_stages=1):
            table = load_tables(
                v_ptr, h_ptr, stride_v, stride_h, rows_ptr, start, CHUNK, SIDE, HEAD_DIM, x.shape[1], x.dtype
            )
            chunk = tl.dot(x, tl.trans(table), input_precision=PRECISION)
            here = (index >= start) & (index < start + CHUNK)
            terms = tl.where(here, tl.gather(chunk, index & (CHUNK - 1), 1), terms)
    return terms.to(x.dtype)


@triton.jit
def add_table_row(
    partial_ptr,  # (programs, 2, 4 * SIDE, BLOCK_E) fp32: table gradients of keys, of values
    dkey_v_ptr,  # (2m + 2, E) contiguous, as the other three
    dkey_h_ptr,
    dvalue_v_ptr,
    dvalue_h_ptr,
    item,  # a row of one of the tables, of 4 * (2m + 2)
    programs,
    rows,  # of the grid
    columns,
    m,
    HEAD_DIM: tl.constexpr,
    BLOCK_E: tl.constexpr,
    SIDE: tl.constexpr,
):
    """One row of the gradient of a table: partial sums in order. Distances that no two places have get 0."""
    BLOCK_P: tl.constexpr = 16  # partial sums that are read at a time
    table = item // (2 * m + 2)
    row = item % (2 * m + 2)
    horizontal = table % 2
    size = tl.where(horizontal == 1, columns, rows)
    distance = row - m - 1
    # the steps of table space that are clamped to this row: one, or at the ends of the table all beyond
    low = tl.where(distance == -m, -(size - 1), distance)
    high = tl.where(distance == m, size - 1, distance)
    low = tl.maximum(low, -(size - 1)) + size - 1 + horizontal * (2 * SIDE)
    high = tl.minimum(high, size - 1) + size - 1 + horizontal * (2 * SIDE)
    cls_at = (horizontal + 1) * (2 * SIDE) - 1
    low = tl.where(row == 0, cls_at, low)
    high = tl.where(row == 0, cls_at, high)
    cols = tl.arange(0, BLOCK_E)
    parts = tl.arange(0, BLOCK_P)
    total = tl.zeros((BLOCK_P, BLOCK_E), tl.float32)
    stride: tl.constexpr = 2 * 4 * SIDE * BLOCK_E  # elements of one program's sums
    partial_ptr += (table // 2) * (4 * SIDE * BLOCK_E) + cols[None, :]
    for at in range(low, high + 1):
        for start in range(0, programs, BLOCK_P):
            part = start + parts
            ptrs = partial_ptr + at * BLOCK_E + part[:, None] * stride
            total += tl.load(ptrs, mask=(part < programs)[:, None], other=0.0)
    result = tl.sum(total, axis=0).to(dkey_v_ptr.dtype.element_ty)
    offsets = row * HEAD_DIM + cols
    ok = cols < HEAD_DIM
    if table == 0:
        tl.store(dkey_v_ptr + offsets, result, mask=ok)
    elif table == 1:
        tl.store(dkey_h_ptr + offsets, result, mask=ok)
    elif table == 2:
        tl.store(dvalue_v_ptr + offsets, result, mask=ok)
    else:
        tl.store(dvalue_h_ptr + offsets, result, mask=ok)
