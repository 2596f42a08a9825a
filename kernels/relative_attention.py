"""Attention with AutoFormer's 2-D relative position for keys and values, flash style, never materialised.

Shapes: B images, h heads, N tokens on an R x C grid, row by row, with a cls token in front (N = R * C + 1) or
without one (N = R * C); E channels per head; tables (2m + 2, E), row 0 for pairs with cls, the others for
distances -m to m, to which farther ones are clamped.
    qkv (3, B, h, N, E), any strides     out (B, N, h * E)     lse (B, h, N) fp32
    S_ij  = E ** -0.5 * q_i.(k_j + key_v[r_j - r_i] + key_h[c_j - c_i])      P = softmax over j
    out_i = sum over j of P_ij (v_j + value_v[r_j - r_i] + value_h[c_j - c_i])

Algorithm: flash attention with a head that is a little wider. For one query the table terms of all keys are
u[r_j] + w[c_j], a sum over places of the grid; so [q, u, w] meets [k, onehot(r_j), onehot(c_j)], and the
value term is the same thing transposed. ``relative_attention_places`` says how u and w come from the tables,
the ``_forward`` and ``_backward`` modules what each kernel computes, saves and recomputes. Nothing of size
N x N or N x R exists outside of a tile, but for the place terms, (B, h, N, 2 * SIDE), between the kernels of
one backward pass. Saved for backward: qkv, out, lse. Launches: 1 forward, 3 backward. No atomics: the same
bits in every run.

Variants per kernel: dtype of qkv (x dtype of the tables, where it differs) x head width x class of the grid
(SIDE 16, 32 or 64) x class of alignment (1 in the AutoFormer spaces); one for all subnets of a space.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

import torch

from growtas.errors import UsageError
from growtas.kernels import launch, tiles
from growtas.kernels.plan import Output, Plan, planned
from growtas.kernels.relative_attention_backward import _add_tables, _backward_keys, _backward_queries
from growtas.kernels.relative_attention_forward import _forward
from growtas.kernels.relative_attention_one_pass import _backward
from growtas.kernels.relative_attention_places import places
from growtas.kernels.relative_attention_tiles import (
    MAX_HEAD_DIM,
    SIDES,
    constrained,
    one_pass,
    pick,
    pick_programs,
    side_of,
    tail_of,
)

__all__ = ["constrained", "relative_attention_backward", "relative_attention_forward", "unsupported"]


def unsupported(head_dim: int, grid: tuple[int, int], dtype: torch.dtype) -> str:
    """Why these kernels cannot run, as a clause; empty if they can.

    Args:
        head_dim: E.
        grid: R and C.
        dtype: of qkv.
    """
    if dtype not in launch.DTYPES:
        return f"the Triton kernels have no {str(dtype).removeprefix('torch.')}"
    if not 0 < head_dim <= MAX_HEAD_DIM:
        return f"a head of {head_dim} channels is over the {MAX_HEAD_DIM} that one program holds"
    if not side_of(grid, 1):
        return f"a {grid[0]} x {grid[1]} grid has a side over the {SIDES[-1] - 2} of the widest tiles"
    return ""


@dataclass(frozen=True)
class _Problem:
    """What forward and backward find out alike about their arguments."""

    device: torch.device
    batch: int
    heads: int
    tokens: int
    head_dim: int
    cls: int
    clamp: int
    block_e: int
    side: int

    def places(self, grid: tuple[int, int], dtype: torch.dtype) -> tuple:
        """The arguments of ``places``."""
        return grid, self.cls, self.clamp, self.side, dtype, self.device


def _check(
    qkv: torch.Tensor, tables: tuple[torch.Tensor, ...], grid: tuple[int, int], **others: torch.Tensor
) -> _Problem:
    names = ("key_v", "key_h", "value_v", "value_h")
    device = launch.check(qkv=qkv, **dict(zip(names, tables, strict=True)), **others)
    if qkv.ndim != 5 or qkv.shape[0] != 3:
        raise UsageError(f"qkv has shape {tuple(qkv.shape)}, but (3, B, h, N, head_dim) is needed.")
    _, batch, heads, tokens, head_dim = qkv.shape
    rows, columns = grid
    cls = tokens - rows * columns
    if cls not in (0, 1) or min(grid) < 1:
        raise UsageError(
            f"qkv has {tokens} tokens, but a {rows} x {columns} grid makes {rows * columns}, or one more "
            "with a cls token. Pass the grid the tokens were made of."
        )
    if why := unsupported(head_dim, grid, qkv.dtype):
        raise UsageError(f"Relative attention cannot run in Triton: {why}. Use the 'torch' back end for it.")
    for name, table in zip(names, tables, strict=True):
        if table.shape != tables[0].shape or table.dtype != tables[0].dtype:
            raise UsageError(
                f"{name} is {tuple(table.shape)} {table.dtype} but key_v {tuple(tables[0].shape)} "
                f"{tables[0].dtype}. The four tables must be of one shape and dtype."
            )
    entries = tables[0].shape[0] if tables[0].ndim == 2 else 0
    if entries < 2 or entries % 2 or tables[0].shape[1] != head_dim:
        raise UsageError(
            f"The tables have shape {tuple(tables[0].shape)}, but (2 * m + 2, {head_dim}) is needed: a row "
            "for cls and one for each distance from -m to m."
        )
    launch.check_products(qkv)
    return _Problem(
        device,
        batch,
        heads,
        tokens,
        head_dim,
        cls,
        entries // 2 - 1,
        max(16, 1 << (head_dim - 1).bit_length()),
        side_of(grid, cls),
    )


class _Planned(NamedTuple):
    """The launches of a pass in order, and what says which places they read."""

    plans: tuple[Plan, ...]
    places: tuple


@planned
def _plan_forward(
    qkv: torch.Tensor,
    key_v: torch.Tensor,
    key_h: torch.Tensor,
    value_v: torch.Tensor,
    value_h: torch.Tensor,
    grid: tuple[int, int],
    precision: str,
) -> _Planned:
    """Check and plan; writes out and lse."""
    tables = (key_v, key_h, value_v, value_h)
    at = _check(qkv, tables, grid)
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
            # two bodies of fp32 products spill on sm_80
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
    return _Planned((plan,), at.places(grid, qkv.dtype))


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


@functools.cache
def _dense(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether elements fill their memory without a gap, in whatever order of the axes."""
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
) -> _Planned:
    """Check and plan two or three launches; the first allocates everything, see :func:`_outputs`."""
    tables = (key_v, key_h, value_v, value_h)
    at = _check(qkv, tables, grid, dout=dout, out=out, lse=lse)
    shape = (at.batch, at.tokens, at.heads * at.head_dim)
    if not (tuple(dout.shape) == tuple(out.shape) == shape and tuple(lse.shape) == tuple(qkv.shape[1:4])):
        raise UsageError(
            f"qkv of shape {tuple(qkv.shape)} makes an output {shape}, but dout is {tuple(dout.shape)}, out "
            f"{tuple(out.shape)} and lse {tuple(lse.shape)}. All must come from the same forward pass."
        )
    strides = (*qkv.stride()[:4], *dout.stride()[:2])
    how = _one_pass if one_pass(qkv.dtype, at.block_e, at.side, at.device) else _two_passes
    plans, programs = how(at, qkv, tables, strides)
    add = Plan(
        _add_tables,
        (key_v.shape[0] if lse.numel() else 0, 4),
        at.device,
        (programs, *grid, at.clamp),
        {"HEAD_DIM": at.head_dim, "BLOCK_E": at.block_e, "SIDE": at.side, "BLOCK_P": 16, "num_warps": 4},
    )
    return _Planned((*plans, add), at.places(grid, qkv.dtype))


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
    (first, *second, add), of_grid = _plan_backward(dout, qkv, *tables, out, lse, tuple(grid), precision)
    where = places(*of_grid)
    dqkv, *dtables, partial, work, terms = first.outputs()
    if second:
        first.start(qkv, dout, out, lse, *tables, *where, dqkv, work, terms, partial)
        second[0].start(qkv, dout, lse, work, terms, where.hot, dqkv[1:])
    else:
        first.start(qkv, dout, out, lse, *tables, *where, dqkv, partial, work)
    add.start(partial, *dtables)
    return dqkv, *dtables


def _outputs(
    at: _Problem, qkv: torch.Tensor, table: torch.Tensor, programs: int, work: Output, terms: Output
) -> tuple[Output, ...]:
    """What the first launch of a backward pass allocates: dqkv, which lies as qkv, dtables, partial sums.

    Besides, in one pass, room to work in; in two passes, what the second reads: delta and terms.
    """
    partial = ((programs, 2, 4 * at.side, at.block_e), torch.float32)
    dtables = [(tuple(table.shape), table.dtype)] * 4
    return (tuple(qkv.shape), qkv.dtype, qkv.stride()), *dtables, partial, work, terms


def _one_pass(
    at: _Problem, qkv: torch.Tensor, tables: tuple[torch.Tensor, ...], strides: tuple[int, ...]
) -> tuple[list[Plan], int]:
    """One program per run of heads; and how many partial sums of the table gradients it leaves."""
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
        outputs=_outputs(at, qkv, tables[0], programs, work, None),
    )
    return [plan], programs


def _two_passes(
    at: _Problem, qkv: torch.Tensor, tables: tuple[torch.Tensor, ...], strides: tuple[int, ...]
) -> tuple[list[Plan], int]:
    """Queries first, then keys and values; returns what :func:`_one_pass` does."""
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
        outputs=_outputs(at, qkv, tables[0], programs, delta, terms),
    )
    tile, precision, _ = pick("backward_keys", qkv.dtype, at.block_e, at.side, at.device)
    keys = Plan(
        _backward_keys,
        (-(-at.tokens // tile.keys) * pairs,),
        at.device,
        (pairs, at.heads, at.tokens, *strides),
        {
            **common,
            "PRECISION": precision,
            "BLOCK_Q": tile.queries,
            "BLOCK_K": tile.keys,
            "num_warps": tile.warps,
            "num_stages": tile.stages,
        },
    )
    return [queries, keys], programs
