"""What the CUDA C++ products need before they start: checks, how the work is cut, memory for partial sums.

How a product is cut depends on its sizes alone, so the same inputs give the same bits on every GPU.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from growtas.errors import GrowtasError, UsageError
from growtas.ops import native

MULTIPROCESSORS = 132
"""Of the GPU that the sizes below are chosen for, whichever runs them: the bits must not depend on it."""

_MOST_TILES = 4 * MULTIPROCESSORS  # a product with more tiles is not split: one counter per tile suffices
_NONE = (0, 0, 0)  # a matrix or vector that is not there


class Plan(NamedTuple):
    """Width of the tiles of a product, and the parts of its sum."""

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
    """Whether fp32 products go to tensor cores: torch's own setting."""
    return dtype is torch.float32 and torch.get_float32_matmul_precision() != "highest"


@functools.cache
def _check_gpu(device: torch.device) -> None:
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        name = torch.cuda.get_device_name(device)
        raise GrowtasError(
            f"{name} is older than compute capability 8.0, which the CUDA C++ products need. Use the 'torch' "
            "back end."
        )


def activation(x: Tensor, name: str) -> Tensor:
    x = native._check(x, name, "cuda")
    _check_gpu(x.device)
    return x


def check_weight(weight: Tensor, rows: int, cols: int, x: Tensor, product: torch.dtype) -> None:
    native.dtype_code(weight, "weight")
    if weight.dim() != 2 or not (0 < rows <= weight.shape[0] and 0 < cols <= weight.shape[1]):
        raise UsageError(
            f"A slice of {rows} x {cols} is not inside a super weight of shape {tuple(weight.shape)}. Use a "
            "subnet of the space the supernet was built for."
        )
    if weight.device != x.device:
        raise UsageError(f"The weight is on {weight.device}, and the activations on {x.device}.")
    if weight.stride(1) != 1 and weight.shape[1] > 1:
        raise UsageError(
            f"The last stride of the weight is {weight.stride(1)}, and must be 1: it is read in place. Store "
            "it contiguously."
        )
    if weight.dtype not in (torch.float32, product):
        raise UsageError(
            f"The weight is {weight.dtype} and the products are in {product}: a weight is float32 or of the "
            "products' dtype. Convert the activations."
        )


def check_bias(bias: Tensor | None, weight: Tensor) -> None:
    if bias is None:
        return
    native.dtype_code(bias, "bias")
    if tuple(bias.shape) != (weight.shape[0],) or bias.device != weight.device:
        raise UsageError(
            f"The bias is {tuple(bias.shape)} on {bias.device}, and the super weight {weight.shape[0]} rows "
            f"on {weight.device}. Pass the whole bias, not a slice."
        )


def check_scale(scale: Tensor | None, tokens: int, x: Tensor) -> None:
    if tokens < 1 or x.shape[0] % tokens:
        raise UsageError(f"{x.shape[0]} rows are no images of {tokens} tokens. Pass the tokens of an image.")
    if scale is None:
        return
    wanted = (x.shape[0] // tokens,)
    if scale.dtype is not torch.float32 or tuple(scale.shape) != wanted or not scale.is_contiguous():
        raise UsageError(
            f"scale is {scale.dtype} of shape {tuple(scale.shape)}, and must be contiguous float32 of shape "
            f"{wanted}: one factor per image."
        )
    if scale.device != x.device:
        raise UsageError(f"scale is on {scale.device}, and the rows on {x.device}.")


def check_rows(other: Tensor, name: str, shape: tuple[int, int], x: Tensor) -> None:
    if tuple(other.shape) != shape or other.device != x.device:
        raise UsageError(
            f"{name} has shape {tuple(other.shape)} on {other.device}, and must have {shape} on {x.device}."
        )


def vector(v: Tensor | None) -> tuple[int, int, int]:
    return _NONE if v is None else native._vector(v)


def pointer(t: Tensor | None) -> int:
    return 0 if t is None else t.data_ptr()


def launch(function: str, x: Tensor, plan: Plan, tiles: int, row_tiles: int, arguments: tuple) -> None:
    """Call the module with memory for partial sums where the plan asks for it.

    Args:
        function: of the module.
        x: gives device and product dtype.
        plan: as chosen.
        tiles, row_tiles: of the product; 0 where its sum is never split.
        arguments: what comes before plan and place.
    """
    place = native._cuda_place(x)
    memory: tuple[int, ...] = (0, 0, 0)
    if plan.splits > 1:
        partial = x.new_empty(plan.splits * tiles * plan.tile**2, dtype=torch.float32)
        row_partial = x.new_empty(plan.splits * row_tiles * plan.tile, dtype=torch.float32)
        memory = (partial.data_ptr(), row_partial.data_ptr(), _finished(x, place).data_ptr())
    with torch.cuda.device(x.device), native._launching(function):
        getattr(native.load("cuda"), function)(*arguments, (*plan, _tf32(x.dtype), *memory), place)


def gradients(
    weight: Tensor, bias: Tensor | None, into: tuple[Tensor, Tensor | None] | None
) -> tuple[Tensor, Tensor | None]:
    """The full-size gradients to write, or to add to."""
    if into is None:
        return weight.new_empty(weight.shape), None if bias is None else bias.new_empty(bias.shape)
    for name, gradient, parameter in (("weight", into[0], weight), ("bias", into[1], bias)):
        if (gradient is None) != (parameter is None):
            raise UsageError(f"into must hold a gradient of the {name} exactly where there is a {name}.")
        if gradient is not None and (
            gradient.shape != parameter.shape
            or gradient.dtype is not parameter.dtype
            or gradient.device != parameter.device
            or not gradient.is_contiguous()
        ):
            raise UsageError(
                f"into's gradient of the {name} is {gradient.dtype} {tuple(gradient.shape)}, and must be "
                f"{parameter.dtype} {tuple(parameter.shape)}, contiguous, on {parameter.device}."
            )
    return into
