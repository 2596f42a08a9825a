"""How the CUDA C++ GEMMs are launched: tiles, split-K, workspace, and the operands they can read.

How a GEMM is cut depends on its sizes alone, so the same inputs give the same bits on every GPU.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from growtas import native
from growtas.errors import GrowtasError, UsageError
from growtas.ops.addresses import dense_rows

MULTIPROCESSORS = 132
"""Of the GPU that the sizes below are chosen for, whichever runs them: the bits must not depend on it."""

_MOST_TILES = 4 * MULTIPROCESSORS  # a GEMM with more tiles is not split: one counter per tile suffices


class Plan(NamedTuple):
    """Width of the tiles of a GEMM, and the parts of its split-K sum."""

    tile: int
    splits: int = 1


@functools.cache
def plan_activation(rows: int, cols: int, panels: int, fp32: bool) -> Plan:
    """Large tiles read less; small ones fill the GPU where large ones would leave multiprocessors idle."""
    large = -(-rows // 128) * -(-cols // 128) * panels
    return Plan(64 if fp32 or cols <= 64 or large < MULTIPROCESSORS else 128)


@functools.cache
def plan_gradient(rows: int, cols: int, depth: int, panels: int, fp32: bool) -> Plan:
    """Enough parts to fill the GPU, each of 256 rows or more.

    One block adds the parts of a tile, at 16 KiB (64 KiB where tiles are large) a part: few large tiles would
    leave that to few blocks.
    """
    large = -(-rows // 128) * -(-cols // 128) * panels
    tile, target = (64, 3 * MULTIPROCESSORS) if fp32 or large < 12 else (128, MULTIPROCESSORS)
    tiles = -(-rows // tile) * -(-cols // tile) * panels
    return Plan(tile, max(1, min(-(-target // tiles), depth // 256, 32)))


_counters: dict[tuple[int, int], Tensor] = {}


def _finished(like: Tensor, place: tuple[int, int]) -> Tensor:
    """Zeros that count the finished parts of each tile; a launch leaves them zero. One set per stream."""
    if like.is_cuda and torch.cuda.is_current_stream_capturing():
        return like.new_zeros(_MOST_TILES, dtype=torch.int32)  # a graph may not rely on what eager code keeps
    if place not in _counters:
        _counters[place] = like.new_zeros(_MOST_TILES, dtype=torch.int32)
    return _counters[place]


def _tf32(dtype: torch.dtype) -> bool:
    """Return whether fp32 GEMMs go to tensor cores: torch's own setting."""
    return dtype is torch.float32 and torch.get_float32_matmul_precision() != "highest"


@functools.cache
def _check_gpu(device: torch.device) -> None:
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        name = torch.cuda.get_device_name(device)
        raise GrowtasError(
            f"{name} is older than compute capability 8.0, which the CUDA C++ GEMMs need. Use the 'torch' "
            "backend."
        )


def activation(x: Tensor) -> Tensor:
    """Activations as the kernels read them: dense rows, on a GPU they run on."""
    _check_gpu(x.device)
    return dense_rows(x)


def check_weight(weight: Tensor, gemm: torch.dtype) -> None:
    """Refuse a shared weight that cannot be read in place by a GEMM of a dtype."""
    if weight.stride(1) != 1 and weight.shape[1] > 1:
        raise UsageError(
            f"The last stride of the weight is {weight.stride(1)}, and must be 1: it is read in place. Store "
            "it contiguously."
        )
    if weight.dtype not in (torch.float32, gemm):
        raise UsageError(
            f"The weight is {weight.dtype} and the GEMM in {gemm}: a weight is float32 or of the GEMM's "
            "dtype. Convert the activations."
        )


def launch(function: str, x: Tensor, plan: Plan, tiles: int, row_tiles: int, arguments: tuple) -> None:
    """Call the module, with workspace for partial sums where the plan asks for it.

    Args:
        function: of the module.
        x: gives the device and the GEMM's dtype.
        plan: as chosen.
        tiles, row_tiles: of the GEMM; 0 where its sum is never split.
        arguments: what comes before plan and place.
    """
    place = native.cuda_place(x)
    memory: tuple[int, ...] = (0, 0, 0)
    if plan.splits > 1:
        partial = x.new_empty(plan.splits * tiles * plan.tile**2, dtype=torch.float32)
        row_partial = x.new_empty(plan.splits * row_tiles * plan.tile, dtype=torch.float32)
        memory = (partial.data_ptr(), row_partial.data_ptr(), _finished(x, place).data_ptr())
    with torch.cuda.device(x.device), native.launching(function):
        getattr(native.load("cuda"), function)(*arguments, (*plan, _tf32(x.dtype), *memory), place)


def gradients(
    weight: Tensor, bias: Tensor | None, into: tuple[Tensor, Tensor | None] | None
) -> tuple[Tensor, Tensor | None]:
    """The full-size gradients to write, or to add to."""
    if into is None:
        return weight.new_empty(weight.shape), None if bias is None else bias.new_empty(bias.shape)
    return into
