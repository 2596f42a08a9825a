"""Cast shared weights to 16 bits, all of them in one launch; see ``growtas.shadow``.

Shapes: weight w is (N_w, K_w) fp32 and its shadow (N_w, K_w) in 16 bits, both contiguous. The shadow of a qkv
weight of head_dim E is sorted by head: its row 3 * E * j + E * i + e is row 3 * E * j + 3 * e + i of the
weight. Others keep their order.

Algorithm: a table on the device holds, for each weight, its two addresses and sizes, and for each program the
weight and the piece of its shadow, BLOCK consecutive elements. Reads and writes are coalesced, since only
whole rows change places. Moved: 6 bytes per element, once per optimizer step: 70 MB for AutoFormer-T.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import triton.language as tl

from growtas.kernels.common import launch
from growtas.shadow import Work

BLOCK = 4096
FIELDS = 5


@launch.kernel
def _cast(
    table_ptr,  # (weights, FIELDS) int64: address of weight and of shadow, N, K, E or 0
    program_ptr,  # (programs, 2) int32: weight, and piece of its shadow
    like_ptr,  # a shadow, for its dtype
    FIELDS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid: (programs,)."""
    dtype: tl.constexpr = like_ptr.dtype.element_ty
    weight = tl.load(program_ptr + 2 * tl.program_id(0))
    piece = tl.load(program_ptr + 2 * tl.program_id(0) + 1)
    table_ptr += weight * FIELDS
    source_ptr = tl.load(table_ptr).to(tl.pointer_type(tl.float32))
    shadow_ptr = tl.load(table_ptr + 1).to(tl.pointer_type(dtype))
    rows = tl.load(table_ptr + 2).to(tl.int32)
    columns = tl.load(table_ptr + 3).to(tl.int32)
    head_dim = tl.load(table_ptr + 4).to(tl.int32)
    at = piece * BLOCK + tl.arange(0, BLOCK)  # of the shadow; a weight has less than 2^31 elements
    ok = at < rows * columns
    source = at
    if head_dim > 0:
        row, column = at // columns, at % columns
        head, part, channel = row // (3 * head_dim), row // head_dim % 3, row % head_dim
        source = (3 * (head * head_dim + channel) + part) * columns + column
    value = tl.load(source_ptr + source, mask=ok, other=0.0)
    tl.store(shadow_ptr + at, value.to(dtype), mask=ok)


def cast(work: Sequence[Work]) -> None:
    """Cast the weights of ``work`` into their shadows, in one launch.

    Args:
        work: fp32 weights and 16-bit matrices of one dtype, contiguous, on one device.
    """
    sizes = tuple((w.weight.data_ptr(), w.matrix.data_ptr(), *w.matrix.shape, w.head_dim) for w in work)
    first = work[0].matrix
    device = launch.check(weight=work[0].weight, matrix=first)
    table, programs = _tables(sizes, device)
    launch.run(
        _cast, (len(programs),), device, table, programs, first, FIELDS=FIELDS, BLOCK=BLOCK, num_warps=4
    )


@functools.lru_cache(maxsize=16)
def _tables(sizes: tuple[tuple[int, ...], ...], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The kernel's tables, of weights and of programs; cached, as they seldom change."""
    pieces = [
        (weight, piece)
        for weight, (_, _, rows, columns, _) in enumerate(sizes)
        for piece in range(-(-rows * columns // BLOCK))
    ]
    table = torch.tensor(sizes, dtype=torch.int64, device=device)
    return table, torch.tensor(pieces, dtype=torch.int32, device=device)
