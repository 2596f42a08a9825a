"""Backward kernels of attention with 2-D relative position; launched by ``relative_attention``.

Saved by the forward pass: qkv, out, lse. Recomputed: P, and its sums over the keys of a row and of a column.
Two launches, each element of each result written once and every sum in a fixed order:

1. ``_backward_queries``: per query tile delta = rowsum(dout * out), dq, and the share of these queries in the
   gradients of the tables. It stores the place terms of q and of dout and delta for (2), which then needs no
   tables.
       S = q k^T + terms onehot^T       dP = dout v^T + dterms onehot^T       P = exp(scale * S - lse)
       dS = scale * P * (dP - delta)
       dq += dS k   dsums += dS onehot   sums += P onehot
       dq += to_tables(dsums) . key tables
       dkeys += to_tables(dsums)^T q    dvalues += to_tables(sums)^T dout      (table space, over all queries)
   A program takes a run of query tiles and adds what they give to the tables to its own partial sums, in
   memory, or where they fit keeps those in registers over all its tiles (IN_REGISTERS).
2. ``_backward_keys``: per key tile dk = sum over queries of dS^T q, dv = sum of P^T dout, with the transposed
   tile of S so that P^T and dS^T are left operands as they come. Its first programs, one per row of a table,
   make no tile: they add the partial sums of (1) in order, with distances over m folded into the outermost
   rows. (1) has ended by then, so nothing is waited for, and the other programs hide what these read.

No mask is needed on queries past the last one: their q, dout and place terms are zero, so they add nothing.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from growtas.kernels.common import launch, tiles
from growtas.kernels.common.launch import known_multiple
from growtas.kernels.common.plan import Plan
from growtas.kernels.relative_attention.places import (
    add_table_row,
    load_padded,
    load_rows,
    load_tables,
    place_terms,
    store_rows,
)
from growtas.kernels.relative_attention.problem import Problem, backward_outputs
from growtas.kernels.relative_attention.tiles import pick, pick_programs


@launch.kernel
def _backward_queries(
    qkv_ptr,  # (3, B, h, N, E), strides stride_part, stride_b, stride_h, stride_n, 1
    dout_ptr,  # (B, N, h * E), strides stride_db, stride_dn, 1
    out_ptr,  # (B, N, h * E) contiguous
    lse_ptr,  # (B, h, N) fp32
    key_v_ptr,  # (2m + 2, E), row stride stride_kv
    key_h_ptr,  # (2m + 2, E), row stride stride_kh
    value_v_ptr,  # (2m + 2, E), row stride stride_vv
    value_h_ptr,  # (2m + 2, E), row stride stride_vh
    hot_ptr,  # the four of Places
    terms_index_ptr,
    tables_index_ptr,
    table_rows_ptr,
    dq_ptr,  # (B, h, N, E), strides as q: the first part of dqkv
    delta_ptr,  # (B, h, N) fp32, written for _backward_keys
    terms_ptr,  # (2, B, h, N, 2 * SIDE) in qkv's dtype, likewise: of q, of dout
    partial_ptr,  # (programs, 2, 4 * SIDE, BLOCK_E) fp32: table gradients of keys, of values
    pairs,  # B * h
    tiles_per_program,
    heads,
    N,
    stride_part,
    stride_b,
    stride_h,
    stride_n,
    stride_db,
    stride_dn,
    stride_kv,
    stride_kh,
    stride_vv,
    stride_vh,
    HEAD_DIM: tl.constexpr,
    BLOCK_E: tl.constexpr,
    SIDE: tl.constexpr,
    ALIGN: tl.constexpr,  # divides HEAD_DIM and the strides of qkv and dout
    PRECISION: tl.constexpr,
    IN_REGISTERS: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Grid: (programs,); a program takes ``tiles_per_program`` query tiles, in order of image, head, tile."""
    DTYPE: tl.constexpr = qkv_ptr.dtype.element_ty
    SCALE: tl.constexpr = HEAD_DIM**-0.5
    LOG2_E: tl.constexpr = 1.4426950408889634
    stride_part = known_multiple(stride_part, ALIGN)
    stride_b = known_multiple(stride_b, ALIGN)
    stride_h = known_multiple(stride_h, ALIGN)
    stride_n = known_multiple(stride_n, ALIGN)
    stride_db = known_multiple(stride_db, ALIGN)
    stride_dn = known_multiple(stride_dn, ALIGN)
    width = known_multiple(heads * HEAD_DIM, ALIGN)
    q_tiles = tl.cdiv(N, BLOCK_Q)
    first_tile = tl.program_id(0) * tiles_per_program
    last_tile = tl.minimum(first_tile + tiles_per_program, pairs * q_tiles)
    slots = tl.arange(0, 2 * SIDE)
    cols = tl.arange(0, BLOCK_E)
    partial_ptr += tl.program_id(0).to(tl.int64) * (2 * 4 * SIDE * BLOCK_E)
    dkeys = tl.zeros((CHUNK, BLOCK_E), tl.float32)
    dvalues = tl.zeros((CHUNK, BLOCK_E), tl.float32)

    for item in range(first_tile, last_tile):
        pair = item // q_tiles
        image = (pair // heads).to(tl.int64)
        head = pair % heads
        q_ptr = qkv_ptr + image * stride_b + head.to(tl.int64) * stride_h
        k_ptr = q_ptr + stride_part.to(tl.int64)
        v_ptr = k_ptr + stride_part.to(tl.int64)
        token = pair.to(tl.int64) * N  # of (B, h, N)
        queries = (item % q_tiles) * BLOCK_Q + tl.arange(0, BLOCK_Q)
        exists = queries < N

        head_at = head * HEAD_DIM
        dout = load_rows(dout_ptr + image * stride_db + head_at, queries, N, stride_dn, HEAD_DIM, BLOCK_E)
        out = load_rows(out_ptr + image * N * width + head_at, queries, N, width, HEAD_DIM, BLOCK_E)
        delta = tl.sum(dout.to(tl.float32) * out.to(tl.float32), axis=1)
        tl.store(delta_ptr + token + queries, delta, mask=exists)
        delta = delta * SCALE
        lse = tl.load(lse_ptr + token + queries, mask=exists, other=0.0) * LOG2_E
        dout = dout.to(DTYPE)
        q = load_rows(q_ptr, queries, N, stride_n, HEAD_DIM, BLOCK_E)
        window = load_padded(terms_index_ptr, queries, 2 * SIDE)
        terms = place_terms(
            q, window, key_v_ptr, key_h_ptr, stride_kv, stride_kh, table_rows_ptr,
            SIDE, CHUNK, HEAD_DIM, PRECISION,
        )  # fmt: skip
        dterms = place_terms(
            dout, window, value_v_ptr, value_h_ptr, stride_vv, stride_vh, table_rows_ptr,
            SIDE, CHUNK, HEAD_DIM, PRECISION,
        )  # fmt: skip
        terms_ptrs = terms_ptr + token * (2 * SIDE) + queries[:, None] * (2 * SIDE) + slots[None, :]
        tl.store(terms_ptrs, terms, mask=exists[:, None])
        tl.store(terms_ptrs + pairs.to(tl.int64) * N * (2 * SIDE), dterms, mask=exists[:, None])

        dq = tl.zeros((BLOCK_Q, BLOCK_E), tl.float32)
        sums = tl.zeros((BLOCK_Q, 2 * SIDE), tl.float32)
        dsums = tl.zeros((BLOCK_Q, 2 * SIDE), tl.float32)
        for start in range(0, N, BLOCK_K):
            keys = start + tl.arange(0, BLOCK_K)
            k = load_rows(k_ptr, keys, N, stride_n, HEAD_DIM, BLOCK_E)
            v = load_rows(v_ptr, keys, N, stride_n, HEAD_DIM, BLOCK_E)
            hot = load_padded(hot_ptr, keys, 2 * SIDE)
            scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
            scores = tl.dot(terms, tl.trans(hot), scores, input_precision=PRECISION)
            p = tl.exp2(scores * (SCALE * LOG2_E) - lse[:, None])
            p = tl.where((keys < N)[None, :], p, 0.0)
            sums = tl.dot(p.to(DTYPE), hot, sums, input_precision=PRECISION)
            dp = tl.dot(dout, tl.trans(v), input_precision=PRECISION)
            dp = tl.dot(dterms, tl.trans(hot), dp, input_precision=PRECISION)
            ds = (p * (dp * SCALE - delta[:, None])).to(DTYPE)
            dq = tl.dot(ds, k, dq, input_precision=PRECISION)
            dsums = tl.dot(ds, hot, dsums, input_precision=PRECISION)

        if IN_REGISTERS:  # all of table space at once
            table = load_tables(
                key_v_ptr, key_h_ptr, stride_kv, stride_kh, table_rows_ptr, 0, CHUNK,
                SIDE, HEAD_DIM, BLOCK_E, DTYPE,
            )  # fmt: skip
            index = load_padded(tables_index_ptr, queries, CHUNK)
            spread = tl.gather(dsums, index, 1).to(DTYPE)
            dq = tl.dot(spread, table, dq, input_precision=PRECISION)
            given = tl.gather(sums, index, 1).to(DTYPE)
            dkeys = tl.dot(tl.trans(spread), q, dkeys, input_precision=PRECISION)
            dvalues = tl.dot(tl.trans(given), dout, dvalues, input_precision=PRECISION)
        else:
            for start in tl.range(0, 4 * SIDE, CHUNK, num_stages=1):
                table = load_tables(
                    key_v_ptr, key_h_ptr, stride_kv, stride_kh, table_rows_ptr, start, CHUNK,
                    SIDE, HEAD_DIM, BLOCK_E, DTYPE,
                )  # fmt: skip
                index = load_padded(tables_index_ptr, queries, 4 * SIDE, start, CHUNK)
                spread = tl.gather(dsums, index, 1).to(DTYPE)
                dq = tl.dot(spread, table, dq, input_precision=PRECISION)
                given = tl.gather(sums, index, 1).to(DTYPE)
                at = start + tl.arange(0, CHUNK)
                partial_ptrs = partial_ptr + at[:, None] * BLOCK_E + cols[None, :]
                again = (at[:, None] * 0 + (item - first_tile)) > 0  # not the first tile
                added = tl.load(partial_ptrs, mask=again, other=0.0)
                tl.store(partial_ptrs, tl.dot(tl.trans(spread), q, added, input_precision=PRECISION))
                partial_ptrs += 4 * SIDE * BLOCK_E
                added = tl.load(partial_ptrs, mask=again, other=0.0)
                tl.store(partial_ptrs, tl.dot(tl.trans(given), dout, added, input_precision=PRECISION))
            tl.debug_barrier()  # the next tile may read its partial sums with other threads than wrote them
        head_ptr = dq_ptr + image * stride_b + head.to(tl.int64) * stride_h
        store_rows(head_ptr, dq, queries, N, stride_n, HEAD_DIM, BLOCK_E)

    if IN_REGISTERS:
        partial_ptrs = partial_ptr + tl.arange(0, CHUNK)[:, None] * BLOCK_E + cols[None, :]
        tl.store(partial_ptrs, dkeys)
        tl.store(partial_ptrs + 4 * SIDE * BLOCK_E, dvalues)


@triton.jit
def _key_tile(
    qkv_ptr,  # this and the others as of _backward_keys
    dout_ptr,
    lse_ptr,
    delta_ptr,
    terms_ptr,
    hot_ptr,
    dk_ptr,
    tile,  # of the key tiles of all heads of all images
    pairs,
    heads,
    N,
    stride_part,
    stride_b,
    stride_h,
    stride_n,
    stride_db,
    stride_dn,
    HEAD_DIM: tl.constexpr,
    BLOCK_E: tl.constexpr,
    SIDE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """dk and dv of one tile of keys."""
    DTYPE: tl.constexpr = qkv_ptr.dtype.element_ty
    SCALE: tl.constexpr = HEAD_DIM**-0.5
    LOG2_E: tl.constexpr = 1.4426950408889634
    k_tiles = tl.cdiv(N, BLOCK_K)
    pair = tile // k_tiles
    image = (pair // heads).to(tl.int64)
    head = pair % heads
    q_ptr = qkv_ptr + image * stride_b + head.to(tl.int64) * stride_h
    k_ptr = q_ptr + stride_part.to(tl.int64)
    v_ptr = k_ptr + stride_part.to(tl.int64)
    dout_ptr += image * stride_db + head * HEAD_DIM
    token = pair.to(tl.int64) * N
    size = pairs.to(tl.int64) * N  # tokens of all heads of all images

    keys = (tile % k_tiles) * BLOCK_K + tl.arange(0, BLOCK_K)
    k = load_rows(k_ptr, keys, N, stride_n, HEAD_DIM, BLOCK_E)
    v = load_rows(v_ptr, keys, N, stride_n, HEAD_DIM, BLOCK_E)
    hot = load_padded(hot_ptr, keys, 2 * SIDE)
    slots = tl.arange(0, 2 * SIDE)
    dk = tl.zeros((BLOCK_K, BLOCK_E), tl.float32)
    dv = tl.zeros((BLOCK_K, BLOCK_E), tl.float32)
    for start in range(0, N, BLOCK_Q):
        queries = start + tl.arange(0, BLOCK_Q)
        exists = queries < N
        q = load_rows(q_ptr, queries, N, stride_n, HEAD_DIM, BLOCK_E)
        dout = load_rows(dout_ptr, queries, N, stride_dn, HEAD_DIM, BLOCK_E).to(DTYPE)
        terms_ptrs = terms_ptr + (token + queries)[:, None] * (2 * SIDE) + slots[None, :]
        terms = tl.load(terms_ptrs, mask=exists[:, None], other=0.0)
        dterms = tl.load(terms_ptrs + size * (2 * SIDE), mask=exists[:, None], other=0.0)
        lse = tl.load(lse_ptr + token + queries, mask=exists, other=0.0) * LOG2_E
        delta = tl.load(delta_ptr + token + queries, mask=exists, other=0.0) * SCALE
        scores = tl.dot(k, tl.trans(q), input_precision=PRECISION)
        scores = tl.dot(hot, tl.trans(terms), scores, input_precision=PRECISION)
        p = tl.exp2(scores * (SCALE * LOG2_E) - lse[None, :])
        dv = tl.dot(p.to(DTYPE), dout, dv, input_precision=PRECISION)
        dp = tl.dot(v, tl.trans(dout), input_precision=PRECISION)
        dp = tl.dot(hot, tl.trans(dterms), dp, input_precision=PRECISION)
        ds = (p * (dp * SCALE - delta[None, :])).to(DTYPE)
        dk = tl.dot(ds, q, dk, input_precision=PRECISION)
    dk_ptr += image * stride_b + head.to(tl.int64) * stride_h
    store_rows(dk_ptr, dk, keys, N, stride_n, HEAD_DIM, BLOCK_E)
    store_rows(dk_ptr + stride_part.to(tl.int64), dv, keys, N, stride_n, HEAD_DIM, BLOCK_E)


@launch.kernel
def _backward_keys(
    qkv_ptr,  # (3, B, h, N, E), strides stride_part, stride_b, stride_h, stride_n, 1
    dout_ptr,  # (B, N, h * E), strides stride_db, stride_dn, 1
    lse_ptr,  # (B, h, N) fp32
    delta_ptr,  # (B, h, N) fp32
    terms_ptr,  # (2, B, h, N, 2 * SIDE) in qkv's dtype
    hot_ptr,  # Places.hot
    partial_ptr,  # (programs, 2, 4 * SIDE, BLOCK_E) fp32: table gradients of keys, of values
    dk_ptr,  # (2, B, h, N, E), strides as k and v: the last two parts of dqkv
    dkey_v_ptr,  # (2m + 2, E) contiguous, as the other three
    dkey_h_ptr,
    dvalue_v_ptr,
    dvalue_h_ptr,
    programs,  # that left partial sums
    rows,  # of the grid
    columns,
    m,
    pairs,  # B * h
    heads,
    N,
    stride_part,
    stride_b,
    stride_h,
    stride_n,
    stride_db,
    stride_dn,
    HEAD_DIM: tl.constexpr,
    BLOCK_E: tl.constexpr,
    SIDE: tl.constexpr,
    ALIGN: tl.constexpr,  # divides HEAD_DIM and the strides of qkv and dout
    PRECISION: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Grid: (4 * (2m + 2) + tiles over N * h * B,): table rows, then the key tiles of a head side by side."""
    table_rows = 4 * (2 * m + 2)
    if tl.program_id(0) < table_rows:
        add_table_row(
            partial_ptr, dkey_v_ptr, dkey_h_ptr, dvalue_v_ptr, dvalue_h_ptr, tl.program_id(0), programs,
            rows, columns, m, HEAD_DIM, BLOCK_E, SIDE,
        )  # fmt: skip
    else:
        _key_tile(
            qkv_ptr, dout_ptr, lse_ptr, delta_ptr, terms_ptr, hot_ptr, dk_ptr, tl.program_id(0) - table_rows,
            pairs, heads, N, known_multiple(stride_part, ALIGN), known_multiple(stride_b, ALIGN),
            known_multiple(stride_h, ALIGN), known_multiple(stride_n, ALIGN),
            known_multiple(stride_db, ALIGN), known_multiple(stride_dn, ALIGN),
            HEAD_DIM, BLOCK_E, SIDE, PRECISION, BLOCK_Q, BLOCK_K,
        )  # fmt: skip


def plan_two_passes(
    at: Problem,
    qkv: torch.Tensor,
    tables: tuple[torch.Tensor, ...],
    strides: tuple[int, ...],
    grid: tuple[int, int],
) -> tuple[Plan, Plan]:
    """Queries first, then keys and values and the sum of the table gradients."""
    pairs = at.batch * at.heads
    common = {
        "HEAD_DIM": at.head_dim,
        "BLOCK_E": at.block_e,
        "SIDE": at.side,
        "ALIGN": tiles.alignment(at.head_dim, *strides),
    }
    tile, precision, in_registers = pick("backward_queries", qkv.dtype, at.block_e, at.side, at.device)
    work = pairs * -(-at.tokens // tile.queries)
    per_program = -(-work // max(1, pick_programs(work, at.device, 2)))
    programs = -(-work // max(1, per_program))
    delta = ((at.batch, at.heads, at.tokens), torch.float32)
    terms = ((2, pairs, at.tokens, 2 * at.side), qkv.dtype)
    queries = Plan(
        _backward_queries,
        (programs,),
        at.device,
        (pairs, per_program, at.heads, at.tokens, *strides, *(table.stride(0) for table in tables)),
        {
            **common,
            "PRECISION": precision,
            "IN_REGISTERS": in_registers,
            "BLOCK_Q": tile.queries,
            "BLOCK_K": tile.keys,
            "CHUNK": tile.chunk,
            "num_warps": tile.warps,
            "num_stages": tile.stages,
        },
        outputs=backward_outputs(at, qkv, tables[0], programs, delta, terms),
    )
    tile, precision, _ = pick("backward_keys", qkv.dtype, at.block_e, at.side, at.device)
    keys = Plan(
        _backward_keys,
        (4 * tables[0].shape[0] + -(-at.tokens // tile.keys) * pairs if pairs else 0,),
        at.device,
        (programs, *grid, at.clamp, pairs, at.heads, at.tokens, *strides),
        {
            **common,
            "PRECISION": precision,
            "BLOCK_Q": tile.queries,
            "BLOCK_K": tile.keys,
            "num_warps": tile.warps,
            "num_stages": tile.stages,
        },
    )
    return queries, keys
