"""Backward of attention with 2-D relative position in one pass; launched by ``relative_attention``.

Shapes: B images, h heads, N tokens, E channels per head; place space and table space are those of
``places``. A program takes a run of (image, head) pairs, one after the other; of each it
walks the queries in tiles of BLOCK_Q and, within these, the keys in tiles of BLOCK_K and a last one of TAIL:
    S = q k^T + terms onehot^T       dP = dout v^T + dterms onehot^T       P = exp(scale * S - lse)
    dS = scale * P * (dP - delta)                                          delta = rowsum(dout * out)
    dq += dS k   dsums += dS onehot   sums += P onehot                     (registers, over the keys)
    dk^T += q^T dS   dv^T += dout^T P                                      (workspace, over the query tiles)
    dq += to_tables(dsums) . key tables                                    (once per query tile)
    dkeys^T += q^T to_tables(dsums)   dvalues^T += dout^T to_tables(sums)  (over all pairs of the program)

S and dP are computed once, where ``two_pass`` computes them twice: for dq, and for dk and dv. dk and dv are
made transposed, so that P and dS are right operands of wgmma and go to shared memory as they come, without a
transposition through registers. A query tile leaves them to the next one in fp32, in a workspace that belongs
to the program and is small enough to stay in L2; the last one writes them out. Both tables are read once per
program and stay in shared memory. Their gradients leave as one partial sum per program, kept in registers
(IN_REGISTERS) or added up in memory, and a second launch, ``_add_tables``, adds these in order. So every sum
has one order, and nothing is atomic. (A last program that added them, as ``split_k`` has it, would read 4 MB
at the 100 GB/s of one multiprocessor: 40 us, and in two levels still more than the launch costs.)

Saved by the forward pass: qkv, out, lse. Recomputed: P. Of the keys only those of TAIL are masked. No mask is
needed on queries past the last one: their q, dout and place terms are zero, so they add nothing.

Both loops disable loop-invariant code motion (``disable_licm``): hoisted addresses and wgmma descriptors,
some 250 words a thread, would spill. 128 queries x 32 keys at 8 warps compile for sm_90 without any stack
(Triton 3.6 and 3.8, 255 registers); 64 keys, or IN_REGISTERS, spill about a dozen words outside of the loop
over keys.

Predicted per head of 197 tokens and 64 channels in 16 bits, from the sizes and from the code for sm_90; this
kernel at 32 keys and the two of ``two_pass``:

                                             one pass    two kernels
    MFLOP of wgmma                           58          84
    exponentials, thousands                  53          115
    warp instructions, thousands             89          103
    KB from and to HBM, L2 keeping nothing   202         353
    KB from and to L2, all counted           720         1050
    KB of shared memory read by wgmma        2000        2200
    warp accesses to shared memory besides   14000       9000
    barriers one after the other             300         170 (2 or 3 programs of a multiprocessor at a time)

The last two rows are the price: dk and dv pass through shared memory on their way to the workspace and back,
and as one program fills the registers of a multiprocessor, no other one works while it waits.
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
    store_rows,
)
from growtas.kernels.relative_attention.problem import Problem, backward_outputs
from growtas.kernels.relative_attention.tiles import pick, pick_programs, tail_of


@triton.jit
def _tile(
    q,  # (BLOCK_Q, BLOCK_E)
    terms,  # (BLOCK_Q, 2 * SIDE): place terms of q
    dout,  # (BLOCK_Q, BLOCK_E)
    dterms,  # (BLOCK_Q, 2 * SIDE): place terms of dout
    lse,  # (BLOCK_Q,) in base 2
    delta,  # (BLOCK_Q,) times scale
    dq,  # (BLOCK_Q, BLOCK_E) fp32
    sums,  # (BLOCK_Q, 2 * SIDE) fp32
    dsums,  # (BLOCK_Q, 2 * SIDE) fp32
    k_ptr,  # (N, E) of this head, row stride stride_n
    v_ptr,  # likewise
    hot_ptr,  # Places.hot
    dk_ptr,  # (N, E) of this head in dqkv, row stride stride_n
    dv_ptr,  # likewise
    work_ptr,  # of this program, (2, BLOCK_E, KEYS) fp32 per tile of keys: dk^T and dv^T so far
    start,
    has_before,  # earlier query tiles left their dk and dv in the workspace
    has_after,  # later ones add to the sums this one stores there
    N,
    stride_n,
    HEAD_DIM: tl.constexpr,
    BLOCK_E: tl.constexpr,
    SIDE: tl.constexpr,
    KEYS: tl.constexpr,
    MASKED: tl.constexpr,  # keys may be past the last one
    PRECISION: tl.constexpr,
):
    """One tile of keys: dq, sums and dsums with it added; dk and dv of it go to memory, or are complete."""
    DTYPE: tl.constexpr = q.dtype
    SCALE: tl.constexpr = HEAD_DIM**-0.5
    keys = start + tl.arange(0, KEYS)
    k = load_rows(k_ptr, keys, N, stride_n, HEAD_DIM, BLOCK_E, MASKED)
    v = load_rows(v_ptr, keys, N, stride_n, HEAD_DIM, BLOCK_E, MASKED)
    hot = load_padded(hot_ptr, keys, 2 * SIDE)
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    scores = tl.dot(terms, tl.trans(hot), scores, input_precision=PRECISION)
    dp = tl.dot(dout, tl.trans(v), input_precision=PRECISION)
    dp = tl.dot(dterms, tl.trans(hot), dp, input_precision=PRECISION)
    p = tl.exp2(scores * (SCALE * 1.4426950408889634) - lse[:, None])
    if MASKED:
        p = tl.where((keys < N)[None, :], p, 0.0)
    weights = p.to(DTYPE)
    sums = tl.dot(weights, hot, sums, input_precision=PRECISION)
    dv = tl.dot(tl.trans(dout), weights, input_precision=PRECISION)
    ds = (p * (dp * SCALE - delta[:, None])).to(DTYPE)
    dq = tl.dot(ds, k, dq, input_precision=PRECISION)
    dsums = tl.dot(ds, hot, dsums, input_precision=PRECISION)
    dk = tl.dot(tl.trans(q), ds, input_precision=PRECISION)

    work_ptrs = work_ptr + start * (2 * BLOCK_E)
    work_ptrs += tl.arange(0, BLOCK_E)[:, None] * KEYS + tl.arange(0, KEYS)[None, :]
    if has_before:
        dk += tl.load(work_ptrs)
        dv += tl.load(work_ptrs + KEYS * BLOCK_E)
    if has_after:
        tl.store(work_ptrs, dk)
        tl.store(work_ptrs + KEYS * BLOCK_E, dv)
    else:
        store_rows(dk_ptr, tl.trans(dk), keys, N, stride_n, HEAD_DIM, BLOCK_E, MASKED)
        store_rows(dv_ptr, tl.trans(dv), keys, N, stride_n, HEAD_DIM, BLOCK_E, MASKED)
    return dq, sums, dsums


@triton.jit
def _partials(ptr, SIDE: tl.constexpr, BLOCK_E: tl.constexpr):
    """Pointers to this program's table gradients of keys, transposed; those of values come after them."""
    ptr += tl.program_id(0).to(tl.int64) * (2 * 4 * SIDE * BLOCK_E)
    return ptr + tl.arange(0, BLOCK_E)[:, None] + tl.arange(0, 4 * SIDE)[None, :] * BLOCK_E


@launch.kernel
def _backward(
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
    dqkv_ptr,  # (3, B, h, N, E), strides as qkv
    partial_ptr,  # (programs, 2, 4 * SIDE, BLOCK_E) fp32: table gradients of keys, of values
    work_ptr,  # (programs, T, 2, BLOCK_E) fp32: dk^T and dv^T so far; T: N in whole tiles of keys
    pairs,  # B * h
    pairs_per_program,
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
    TAIL: tl.constexpr,  # keys of the last tile, where whole ones of BLOCK_K do not cover N; else 0
):
    """Grid: (programs,); a program takes ``pairs_per_program`` pairs, in order of image and head."""
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
    whole = N // BLOCK_K * BLOCK_K  # keys in tiles that need no mask
    first_pair = tl.program_id(0) * pairs_per_program
    last_pair = tl.minimum(first_pair + pairs_per_program, pairs)
    key_table = load_tables(
        key_v_ptr, key_h_ptr, stride_kv, stride_kh, table_rows_ptr, 0, 4 * SIDE,
        SIDE, HEAD_DIM, BLOCK_E, DTYPE,
    )  # fmt: skip
    value_table = load_tables(
        value_v_ptr, value_h_ptr, stride_vv, stride_vh, table_rows_ptr, 0, 4 * SIDE,
        SIDE, HEAD_DIM, BLOCK_E, DTYPE,
    )  # fmt: skip
    dkeys = tl.zeros((BLOCK_E, 4 * SIDE), tl.float32)
    dvalues = tl.zeros((BLOCK_E, 4 * SIDE), tl.float32)

    q_tiles = tl.cdiv(N, BLOCK_Q)
    for item in tl.range(first_pair * q_tiles, last_pair * q_tiles, disable_licm=True):
        pair = item // q_tiles
        first = item % q_tiles * BLOCK_Q
        own_work_ptr = work_ptr + tl.program_id(0).to(tl.int64) * (2 * BLOCK_E * (whole + TAIL))
        image = tl.cast(pair // heads, tl.int64)
        head = pair % heads
        q_ptr = qkv_ptr + image * stride_b + tl.cast(head, tl.int64) * stride_h
        k_ptr = q_ptr + stride_part.to(tl.int64)
        v_ptr = k_ptr + stride_part.to(tl.int64)
        token = tl.cast(pair, tl.int64) * N  # of (B, h, N)
        dq_ptr = dqkv_ptr + image * stride_b + tl.cast(head, tl.int64) * stride_h
        dk_ptr = dq_ptr + stride_part.to(tl.int64)
        dv_ptr = dk_ptr + stride_part.to(tl.int64)
        head_at = head * HEAD_DIM
        queries = first + tl.arange(0, BLOCK_Q)
        dout = load_rows(dout_ptr + image * stride_db + head_at, queries, N, stride_dn, HEAD_DIM, BLOCK_E)
        out = load_rows(out_ptr + image * N * width + head_at, queries, N, width, HEAD_DIM, BLOCK_E)
        delta = tl.sum(dout.to(tl.float32) * out.to(tl.float32), axis=1) * SCALE
        lse = tl.load(lse_ptr + token + queries, mask=queries < N, other=0.0) * LOG2_E
        dout = dout.to(DTYPE)
        q = load_rows(q_ptr, queries, N, stride_n, HEAD_DIM, BLOCK_E)
        window = load_padded(terms_index_ptr, queries, 2 * SIDE)
        terms = tl.dot(q, tl.trans(key_table), input_precision=PRECISION)
        terms = tl.gather(terms, window, 1).to(DTYPE)
        dterms = tl.dot(dout, tl.trans(value_table), input_precision=PRECISION)
        dterms = tl.gather(dterms, window, 1).to(DTYPE)
        dq = tl.zeros((BLOCK_Q, BLOCK_E), tl.float32)
        sums = tl.zeros((BLOCK_Q, 2 * SIDE), tl.float32)
        dsums = tl.zeros((BLOCK_Q, 2 * SIDE), tl.float32)
        for start in tl.range(0, whole, BLOCK_K, disable_licm=True):
            dq, sums, dsums = _tile(
                q, terms, dout, dterms, lse, delta, dq, sums, dsums,
                k_ptr, v_ptr, hot_ptr, dk_ptr, dv_ptr, own_work_ptr,
                start, first > 0, first + BLOCK_Q < N, N, stride_n,
                HEAD_DIM, BLOCK_E, SIDE, BLOCK_K, False, PRECISION,
            )  # fmt: skip
        if TAIL:
            dq, sums, dsums = _tile(
                q, terms, dout, dterms, lse, delta, dq, sums, dsums,
                k_ptr, v_ptr, hot_ptr, dk_ptr, dv_ptr, own_work_ptr,
                whole, first > 0, first + BLOCK_Q < N, N, stride_n,
                HEAD_DIM, BLOCK_E, SIDE, TAIL, True, PRECISION,
            )  # fmt: skip

        index = load_padded(tables_index_ptr, queries, 4 * SIDE)
        given = tl.gather(sums, index, 1).to(DTYPE)
        spread = tl.gather(dsums, index, 1).to(DTYPE)
        dq = tl.dot(spread, key_table, dq, input_precision=PRECISION)
        if not IN_REGISTERS:
            # A tile, since a mask of one value fails in the interpreter of Triton 3.9.
            again = tl.arange(0, BLOCK_E)[:, None] * 0 + item > first_pair * q_tiles  # not the first tile
            partial_ptrs = _partials(partial_ptr, SIDE, BLOCK_E)
            dkeys = tl.load(partial_ptrs, mask=again, other=0.0)
            dvalues = tl.load(partial_ptrs + 4 * SIDE * BLOCK_E, mask=again, other=0.0)
        dkeys = tl.dot(tl.trans(q), spread, dkeys, input_precision=PRECISION)
        dvalues = tl.dot(tl.trans(dout), given, dvalues, input_precision=PRECISION)
        if not IN_REGISTERS:
            tl.store(partial_ptrs, dkeys)
            tl.store(partial_ptrs + 4 * SIDE * BLOCK_E, dvalues)
        store_rows(dq_ptr, dq, queries, N, stride_n, HEAD_DIM, BLOCK_E)
        tl.debug_barrier()  # the next query tile reads with other threads than wrote it

    if IN_REGISTERS:
        partial_ptrs = _partials(partial_ptr, SIDE, BLOCK_E)
        tl.store(partial_ptrs, dkeys)
        tl.store(partial_ptrs + 4 * SIDE * BLOCK_E, dvalues)


@launch.kernel
def _add_tables(
    partial_ptr,  # (programs, 2, 4 * SIDE, BLOCK_E) fp32, as _backward left it
    dkey_v_ptr,  # (2m + 2, E) contiguous, as the other three
    dkey_h_ptr,
    dvalue_v_ptr,
    dvalue_h_ptr,
    programs,
    rows,
    columns,
    m,
    HEAD_DIM: tl.constexpr,
    BLOCK_E: tl.constexpr,
    SIDE: tl.constexpr,
):
    """Grid: (4 * (2m + 2),): one table row each."""
    add_table_row(
        partial_ptr, dkey_v_ptr, dkey_h_ptr, dvalue_v_ptr, dvalue_h_ptr, tl.program_id(0), programs,
        rows, columns, m, HEAD_DIM, BLOCK_E, SIDE,
    )  # fmt: skip


def plan_one_pass(
    at: Problem,
    qkv: torch.Tensor,
    tables: tuple[torch.Tensor, ...],
    strides: tuple[int, ...],
    grid: tuple[int, int],
) -> tuple[Plan, Plan]:
    """One program per run of heads; then the sum of the partial sums that each leaves of table gradients."""
    tile, precision, in_registers = pick("one_pass", qkv.dtype, at.block_e, at.side, at.device)
    pairs = at.batch * at.heads
    per_program = -(-pairs // max(1, pick_programs(pairs, at.device, 1)))
    programs = -(-pairs // max(1, per_program))
    tail = tail_of(at.tokens, tile.keys)
    kept = at.tokens // tile.keys * tile.keys + tail if at.tokens > tile.queries else 0
    work = ((programs, kept, 2, at.block_e), torch.float32)
    plan = Plan(
        _backward,
        (programs,),
        at.device,
        (pairs, per_program, at.heads, at.tokens, *strides, *(table.stride(0) for table in tables)),
        {
            "HEAD_DIM": at.head_dim,
            "BLOCK_E": at.block_e,
            "SIDE": at.side,
            "ALIGN": tiles.alignment(at.head_dim, *strides),
            "PRECISION": precision,
            "IN_REGISTERS": in_registers,
            "BLOCK_Q": tile.queries,
            "BLOCK_K": tile.keys,
            "TAIL": tail,
            "num_warps": tile.warps,
            "num_stages": tile.stages,
        },
        outputs=backward_outputs(at, qkv, tables[0], programs, work, None),
    )
    add = Plan(
        _add_tables,
        (4 * tables[0].shape[0] if programs else 0,),
        at.device,
        (programs, *grid, at.clamp),
        {"HEAD_DIM": at.head_dim, "BLOCK_E": at.block_e, "SIDE": at.side, "num_warps": 4},
    )
    return plan, add
