"""Arguments of relative attention: checks, sizes, and the tensors a backward pass allocates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from growtas.errors import UsageError
from growtas.kernels.common import launch
from growtas.kernels.common.plan import Output, Plan
from growtas.kernels.relative_attention.tiles import MAX_HEAD_DIM, SIDES, side_of


def unsupported(head_dim: int, grid: tuple[int, int], dtype: torch.dtype) -> str:
    """The reason why these kernels cannot run, as a clause; empty if they can.

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
class Problem:
    """The sizes and the device of a call, checked; forward and backward share them."""

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


def check(
    qkv: torch.Tensor, tables: tuple[torch.Tensor, ...], grid: tuple[int, int], **others: torch.Tensor
) -> Problem:
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
        raise UsageError(f"Relative attention cannot run in Triton: {why}. Use the 'torch' backend for it.")
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
    launch.check_matmul(qkv)
    return Problem(
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


class Planned(NamedTuple):
    """The launches of a pass in order, and the arguments of ``places`` for what they read."""

    plans: tuple[Plan, ...]
    places: tuple


def backward_outputs(
    at: Problem, qkv: torch.Tensor, table: torch.Tensor, programs: int, work: Output, terms: Output
) -> tuple[Output, ...]:
    """Outputs of the first launch of a backward pass: dqkv, in qkv's strides, dtables, partial sums.

    In one pass also its workspace; in two passes delta and terms, which the second launch reads.
    """
    partial = ((programs, 2, 4 * at.side, at.block_e), torch.float32)
    dtables = [(tuple(table.shape), table.dtype)] * 4
    return (tuple(qkv.shape), qkv.dtype, qkv.stride()), *dtables, partial, work, terms
