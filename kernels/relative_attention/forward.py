"""Forward kernel of attention with 2-D relative position; launched by ``relative_attention``.

Shapes: one program owns BLOCK_Q queries of one head of one image and walks its keys in tiles of BLOCK_K, then
one narrower tile of TAIL, the only one with a mask: of 197 keys 192 need none, and 208 are worked on.
    S_ij = scale * (q_i.k_j + terms_i.onehot_j)              terms: ``places.place_terms``, once per program
    P    = exp(S - max) with the running maximum of online softmax, in base 2; scale * log2(e) is one factor
    acc  += P v,   sums += P onehot                          both rescaled when the maximum moves
    out_i = acc_i / l_i + to_tables(sums_i / l_i) . value tables
Matmuls are in qkv's dtype with fp32 sums. Saved: out and lse (natural logarithm of the sum of exponentials).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from growtas.kernels.common import launch, tiles
from growtas.kernels.common.launch import known_multiple
from growtas.kernels.common.plan import Plan, planned
from growtas.kernels.relative_attention.places import (
    load_padded,
    load_rows,
    load_tables,
    place_terms,
    places,
    store_rows,
)
from growtas.kernels.relative_attention.problem import Planned, check
from growtas.kernels.relative_attention.tiles import pick, tail_of


@triton.jit
def _tile(
    q,  # (BLOCK_Q, BLOCK_E)
    terms,  # (BLOCK_Q, 2 * SIDE)
    top,  # (BLOCK_Q,) fp32: maximum so far, in base 2
    total,  # (BLOCK_Q,) fp32: sum of exponentials so far
    acc,  # (BLOCK_Q, BLOCK_E) fp32
    sums,  # (BLOCK_Q, 2 * SIDE) fp32
    k_ptr,  # (N, E) of this head, row stride stride_n
    v_ptr,  # likewise
    hot_ptr,  # Places.hot
    start,
    N,
    stride_n,
    HEAD_DIM: tl.constexpr,
    BLOCK_E: tl.constexpr,
    SIDE: tl.constexpr,
    KEYS: tl.constexpr,
    MASKED: tl.constexpr,  # keys may be past the last one
    PRECISION: tl.constexpr,
):
    """One tile of keys, by online softmax: top, total, acc and sums with it."""
    SCALE: tl.constexpr = HEAD_DIM**-0.5 * 1.4426950408889634
    keys = start + tl.arange(0, KEYS)
    k = load_rows(k_ptr, keys, N, stride_n, HEAD_DIM, BLOCK_E, MASKED)
    v = load_rows(v_ptr, keys, N, stride_n, HEAD_DIM, BLOCK_E, MASKED)
    hot = load_padded(hot_ptr, keys, 2 * SIDE)
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    scores = tl.dot(terms, tl.trans(hot), scores, input_precision=PRECISION)
    if MASKED:
        scores = tl.where((keys < N)[None, :], scores, float("-inf"))
    higher = tl.maximum(top, tl.max(scores, axis=1) * SCALE)
    p = tl.exp2(scores * SCALE - higher[:, None])
    decay = tl.exp2(top - higher)
    total = total * decay + tl.sum(p, axis=1)
    p = p.to(q.dtype)
    acc = tl.dot(p, v, acc * decay[:, None], input_precision=PRECISION)
    sums = tl.dot(p, hot, sums * decay[:, None], input_precision=PRECISION)
    return higher, total, acc, sums


@launch.kernel
def _forward(
    qkv_ptr,  # (3, B, h, N, E), strides stride_part, stride_b, stride_h, stride_n, 1
    key_v_ptr,  # (2m + 2, E), row stride stride_kv
    key_h_ptr,  # (2m + 2, E), row stride stride_kh
    value_v_ptr,  # (2m + 2, E), row stride stride_vv
    value_h_ptr,  # (2m + 2, E), row stride stride_vh
    hot_ptr,  # the four of Places
    terms_index_ptr,
    tables_index_ptr,
    table_rows_ptr,
    out_ptr,  # (B, N, h * E) contiguous
    lse_ptr,  # (B, h, N) fp32
    heads,
    N,
    stride_part,
    stride_b,
    stride_h,
    stride_n,
    stride_kv,
    stride_kh,
    stride_vv,
    stride_vh,
    HEAD_DIM: tl.constexpr,
    BLOCK_E: tl.constexpr,  # HEAD_DIM padded to a power of two
    SIDE: tl.constexpr,
    ALIGN: tl.constexpr,  # divides HEAD_DIM and the strides of qkv
    PRECISION: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TAIL: tl.constexpr,  # keys of the last tile where whole ones leave any, or 0; -1: all tiles are masked
    CHUNK: tl.constexpr,  # columns of table space that are made at a time
):
    """Grid: (tiles over N * h * B,), the tiles of a head next to each other so that they share k and v."""
    DTYPE: tl.constexpr = qkv_ptr.dtype.element_ty
    stride_part = known_multiple(stride_part, ALIGN)
    stride_b = known_multiple(stride_b, ALIGN)
    stride_h = known_multiple(stride_h, ALIGN)
    stride_n = known_multiple(stride_n, ALIGN)
    q_tiles = tl.cdiv(N, BLOCK_Q)
    tile = tl.program_id(0) % q_tiles
    pair = tl.program_id(0) // q_tiles  # image * heads + head
    image = (pair // heads).to(tl.int64)
    head = pair % heads
    q_ptr = qkv_ptr + image * stride_b + head.to(tl.int64) * stride_h
    k_ptr = q_ptr + stride_part.to(tl.int64)
    v_ptr = k_ptr + stride_part.to(tl.int64)

    queries = tile * BLOCK_Q + tl.arange(0, BLOCK_Q)
    q = load_rows(q_ptr, queries, N, stride_n, HEAD_DIM, BLOCK_E)
    window = load_padded(terms_index_ptr, queries, 2 * SIDE)
    terms = place_terms(
        q,
        window,
        key_v_ptr,
        key_h_ptr,
        stride_kv,
        stride_kh,
        table_rows_ptr,
        SIDE,
        CHUNK,
        HEAD_DIM,
        PRECISION,
    )

    top = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_Q,), tl.float32)
    acc = tl.zeros((BLOCK_Q, BLOCK_E), tl.float32)
    sums = tl.zeros((BLOCK_Q, 2 * SIDE), tl.float32)
    whole = N if TAIL < 0 else N // BLOCK_K * BLOCK_K
    for start in range(0, whole, BLOCK_K):
        top, total, acc, sums = _tile(
            q, terms, top, total, acc, sums, k_ptr, v_ptr, hot_ptr, start, N, stride_n,
            HEAD_DIM, BLOCK_E, SIDE, BLOCK_K, TAIL < 0, PRECISION,
        )  # fmt: skip
    if TAIL > 0:
        top, total, acc, sums = _tile(
            q, terms, top, total, acc, sums, k_ptr, v_ptr, hot_ptr, whole, N, stride_n,
            HEAD_DIM, BLOCK_E, SIDE, TAIL, True, PRECISION,
        )  # fmt: skip

    share = 1.0 / total
    acc = acc * share[:, None]
    sums = sums * share[:, None]
    for first in tl.range(0, 4 * SIDE, CHUNK, num_stages=1):
        table = load_tables(
            value_v_ptr, value_h_ptr, stride_vv, stride_vh, table_rows_ptr, first, CHUNK,
            SIDE, HEAD_DIM, BLOCK_E, DTYPE,
        )  # fmt: skip
        index = load_padded(tables_index_ptr, queries, 4 * SIDE, first, CHUNK)
        acc = tl.dot(tl.gather(sums, index, 1).to(DTYPE), table, acc, input_precision=PRECISION)
    out_ptr += image * N * heads * HEAD_DIM + head * HEAD_DIM
    store_rows(out_ptr, acc, queries, N, known_multiple(heads * HEAD_DIM, ALIGN), HEAD_DIM, BLOCK_E)
    lse = (top + tl.log2(total)) * 0.6931471805599453
    tl.store(lse_ptr + pair.to(tl.int64) * N + queries, lse, mask=queries < N)


@planned
def _plan_forward(
    qkv: torch.Tensor,
    key_v: torch.Tensor,
    key_h: torch.Tensor,
    value_v: torch.Tensor,
    value_h: torch.Tensor,
    grid: tuple[int, int],
    precision: str,
) -> Planned:
    """Check and plan; writes out and lse."""
    tables = (key_v, key_h, value_v, value_h)
    at = check(qkv, tables, grid)
    tile, precision, _ = pick("forward", qkv.dtype, at.block_e, at.side, at.device)
    pairs = at.batch * at.heads
    strides = qkv.stride()[:4]
    plan = Plan(
        _forward,
        (-(-at.tokens // tile.queries) * pairs,),
        at.device,
        (at.heads, at.tokens, *strides, *(table.stride(0) for table in tables)),
        {
            "HEAD_DIM": at.head_dim,
            "BLOCK_E": at.block_e,
            "SIDE": at.side,
            "ALIGN": tiles.alignment(at.head_dim, *strides),
            "PRECISION": precision,
            "BLOCK_Q": tile.queries,
            "BLOCK_K": tile.keys,
            # two bodies of fp32 matmuls spill on sm_80
            "TAIL": -1 if qkv.dtype is torch.float32 else tail_of(at.tokens, tile.keys),
            "CHUNK": tile.chunk,
            "num_warps": tile.warps,
            "num_stages": tile.stages,
        },
        outputs=(
            ((at.batch, at.tokens, at.heads * at.head_dim), qkv.dtype),
            ((at.batch, at.heads, at.tokens), torch.float32),
        ),
    )
    return Planned((plan,), at.places(grid, qkv.dtype))


def relative_attention_forward(
    qkv: torch.Tensor,
    key_v: torch.Tensor,
    key_h: torch.Tensor,
    value_v: torch.Tensor,
    value_h: torch.Tensor,
    grid: tuple[int, int],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention with relative position.

    Args:
        qkv: (3, B, h, N, E), any strides; copied where the last one is not 1.
        key_v, key_h, value_v, value_h: (2m + 2, E) tables of one dtype, any row stride; converted on load.
        grid: rows R and columns C; N is R * C, or one more with a cls token in front.

    Returns:
        out (B, N, h * E) contiguous, heads side by side, in qkv's dtype; and the log-sum-exp of the logits,
        (B, h, N) fp32, for the backward pass.

    Raises:
        UsageError: the sizes do not fit each other or the kernels (see :func:`unsupported`), or a tensor
            cannot be read (see ``launch.check``).
    """
    qkv = launch.activation(qkv)
    tables = (key_v, key_h, value_v, value_h)
    (plan,), of_grid = _plan_forward(qkv, *tables, tuple(grid), launch.dot_precision(qkv.dtype))
    out, lse = plan.outputs()
    plan.start(qkv, *tables, *places(*of_grid), out, lse)
    return out, lse
