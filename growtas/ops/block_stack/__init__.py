"""Several blocks as one operation: one node of autograd, where their launches or calls can be put together.

It has two forms, and elsewhere blocks run one by one: on a CPU, where the net is small, C++ runs a branch per
call (``cpu``); where Triton runs every step of a block, its launches are recorded and replayed (``triton``).
Both give the bits of the blocks' own operations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from growtas.ops import dispatch
from growtas.ops.block_stack import cpu
from growtas.ops.block_stack.layer import Layer
from growtas.ops.registry import eager

__all__ = ["Layer", "block_stack"]

STEPS = ("norm_qkv", "relative_attention", "linear", "mlp")
"""The operations that a block is made of."""


def block_stack(
    x: Tensor,
    layers: Sequence[Layer],
    grid: tuple[int, int],
    dtype: torch.dtype,
    one_by_one: Callable[[], Tensor],
) -> Tensor:
    """Run blocks one after the other.

    Args:
        x: (B, N, d) residual stream.
        layers: the blocks.
        grid: rows and columns of patches.
        dtype: of the GEMMs.
        one_by_one: gives what the blocks give, each by its own operations. It runs where neither form takes
            every block, where saved tensors are packed (activation checkpointing, offloading), and the first
            time that blocks of these shapes come: it checks them.

    Returns:
        (B, N, d).

    Raises:
        UsageError: as ``attention_branch`` and ``mlp``.
    """
    if not layers or not eager() or _packs_saved_tensors():
        return one_by_one()
    if x.is_cpu and cpu.takes(x, layers, dtype):
        return cpu.run(x, layers, grid, one_by_one)
    if _triton_runs_all(x, layers[0], dtype):
        from growtas.ops.block_stack import triton

        return triton.run(x, layers, grid, dtype, one_by_one)
    return one_by_one()


def _packs_saved_tensors() -> bool:
    """True if what is saved is put elsewhere, or computed again: a stack counts on its addresses, and what it
    saves depends on whether its blocks are known."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


def _triton_runs_all(x: Tensor, layer: Layer, dtype: torch.dtype) -> bool:
    """Return whether every step of a block is on the ``triton`` backend."""
    width = len(layer.attention.norm_weight)
    widths = width, layer.head_dim, layer.attention.proj_weight.shape[1], width
    for name, full in zip(STEPS, widths, strict=True):
        if dispatch.choose(name, x.device, dtype, full) != "triton":
            return False
    return True
