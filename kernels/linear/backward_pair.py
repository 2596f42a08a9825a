"""Gradients of weight and bias of two sliced linear layers over the same rows, in one launch.

Shapes: of either layer as in ``linear.backward``, M rows in common. For an MLP, dy of one layer is as wide as
x of the other.

The programs of the first layer come first. A program picks its layer's pointers and sizes, and goes on as in
a launch of one layer (``weight_tile``): one main loop, the same bits at the same tile and number of splits.
Both layers fill the GPU together, with half as many splits, and so partial sums, as in two launches, or with
larger tiles, which read their operands less often. Saved: nothing.

Layers that differ in dtypes or classes of alignment (756 hidden units beside 216 channels) are launched one
after the other: at the lower of both classes, the ptxas of Triton 3.8 would serialise the wgmmas of either.
"""

from __future__ import annotations

import torch
import triton.language as tl

from growtas.errors import UsageError
from growtas.kernels.common import launch, tiles
from growtas.kernels.common.plan import Plan, ceil, planned
from growtas.kernels.linear.backward import plan_weight
from growtas.kernels.linear.weight_tile import weight_tile

#: A layer's dy (M, N), x (M, K), weight (N_max, K_max), and bias (N_max,) or None.
Layer = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]


@launch.kernel
def _weights(
    dy1_ptr,  # (M, N1), row stride stride_dy1
    x1_ptr,  # (M, K1), row stride stride_x1
    grad1_ptr,  # (N1_max, K1_max) contiguous
    grad_bias1_ptr,  # (N1_max,); None: neither layer has a bias
    dy2_ptr,  # of the second layer, likewise
    x2_ptr,
    grad2_ptr,
    grad_bias2_ptr,
    partial_ptr,  # (splits, active tiles of both, BLOCK_ROWS * (BLOCK_COLS + 1)) fp32
    counter_ptr,  # (active tiles of both,) int32 zeros
    M,
    N1,
    K1,
    N1_max,
    K1_max,
    N2,
    K2,
    N2_max,
    K2_max,
    programs,  # of the first layer
    splits,
    rows_per_split,  # a multiple of BLOCK_DEPTH
    stride_dy1,
    stride_x1,
    stride_dy2,
    stride_x2,
    ALIGN_N: tl.constexpr,  # divides N and stride_dy of both
    ALIGN_K: tl.constexpr,  # divides K and stride_x of both
    ALIGN_OUT: tl.constexpr,  # divides K_max of both
    PRECISION: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
    BLOCK_DEPTH: tl.constexpr,
):
    """Grid: (programs of the first layer + those of the second,); of each as in a launch of its own."""
    first = tl.program_id(0) < programs
    tiles1 = tl.cdiv(N1, BLOCK_ROWS) * tl.cdiv(K1, BLOCK_COLS)
    tiles2 = tl.cdiv(N2, BLOCK_ROWS) * tl.cdiv(K2, BLOCK_COLS)
    grad_bias_ptr = None
    if grad_bias1_ptr is not None:
        grad_bias_ptr = tl.where(first, grad_bias1_ptr, grad_bias2_ptr)
    weight_tile(
        tl.where(first, dy1_ptr, dy2_ptr),
        tl.where(first, x1_ptr, x2_ptr),
        tl.where(first, grad1_ptr, grad2_ptr),
        grad_bias_ptr,
        None,
        partial_ptr,
        counter_ptr,
        tl.program_id(0) - tl.where(first, 0, programs),
        tl.where(first, 0, tiles1),
        tiles1 + tiles2,
        M,
        tl.where(first, N1, N2),
        tl.where(first, K1, K2),
        tl.where(first, N1_max, N2_max),
        tl.where(first, K1_max, K2_max),
        1,
        splits,
        rows_per_split,
        0,
        tl.where(first, stride_dy1, stride_dy2),
        tl.where(first, stride_x1, stride_x2),
        ALIGN_N,
        ALIGN_K,
        ALIGN_OUT,
        PRECISION,
        GROUP,
        BLOCK_ROWS,
        BLOCK_COLS,
        BLOCK_DEPTH,
    )


def _alike(layers: tuple[Layer, ...]) -> bool:
    """True if one launch can take the layers: one dtype and one class of alignment for each tensor."""
    kinds = {
        (
            *(None if tensor is None else tensor.dtype for tensor in (dy, x, weight, bias)),
            tiles.alignment(dy.shape[1], dy.stride(0)),
            tiles.alignment(x.shape[1], x.stride(0)),
            tiles.alignment(weight.shape[1]),
        )
        for dy, x, weight, bias in layers
    }
    return len(kinds) == 1


@planned
def _plan_weights(
    dy1: torch.Tensor,
    x1: torch.Tensor,
    weight1: torch.Tensor,
    bias1: torch.Tensor | None,
    dy2: torch.Tensor,
    x2: torch.Tensor,
    weight2: torch.Tensor,
    bias2: torch.Tensor | None,
    precision: str,
) -> tuple[Plan, ...]:
    """Check and plan: a launch for both layers, or one for each; they write the gradients of each in turn."""
    layers = ((dy1, x1, weight1, bias1), (dy2, x2, weight2, bias2))
    each = tuple(plan_weight(*layer, None, 1, None, None, precision) for layer in layers)
    if not _alike(layers):
        return each
    m = dy1.shape[0]
    if dy2.shape[0] != m:
        raise UsageError(
            f"dy has {m} rows but that of the second layer {dy2.shape[0]}. Pass layers of one batch."
        )
    multiprocessors = launch.multiprocessors(each[0].device)
    slices = [(dy.shape[1], x.shape[1]) for dy, x, *_ in layers]
    kind = tiles.operand_kind(x1.dtype, dy1.dtype, precision)
    tile = tiles.pick(kind, *slices[0], multiprocessors, depth=max(m, 1), others=slices[1:])
    active = [ceil(n, tile.rows) * ceil(k, tile.cols) for n, k in slices]
    every = [ceil(n, tile.rows) * ceil(k, tile.cols) for n, k in (weight1.shape, weight2.shape)]
    splits, rows_per_split = tiles.split(tile, sum(active), max(m, 1), multiprocessors)
    programs = [own * splits + whole - own for own, whole in zip(active, every, strict=True)]
    strides = (dy1.stride(0), x1.stride(0), dy2.stride(0), x2.stride(0))
    both = Plan(
        _weights,
        (sum(programs) if m else 0,),
        each[0].device,
        (
            m, *slices[0], *weight1.shape, *slices[1], *weight2.shape, programs[0], splits, rows_per_split,
            *strides,
        ),
        {
            "ALIGN_N": tiles.alignment(slices[0][0], strides[0]),
            "ALIGN_K": tiles.alignment(slices[0][1], strides[1]),
            "ALIGN_OUT": tiles.alignment(weight1.shape[1]),
            "PRECISION": precision,
            **tile.constants(),
        },
        outputs=[
            None if parameter is None else (tuple(parameter.shape), parameter.dtype)
            for parameter in (weight1, bias1, weight2, bias2)
        ],
        counters=sum(active),
        partials=splits * sum(active) * tile.rows * (tile.cols + 1) if splits > 1 else 1,
    )  # fmt: skip
    return (both,)


def linear_backward_weights(
    first: Layer, second: Layer
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor | None]:
    """Full-size gradients of weight and bias of two layers, zero outside the slices, in one launch or two.

    Args:
        first, second: dy (M, N), x (M, K), weight and bias of a layer, as
            :func:`.linear_backward_weight` takes them.

    Returns:
        The gradients of weight and bias of the first layer, then of the second, as
        :func:`.linear_backward_weight` returns them.

    Raises:
        UsageError: as :func:`.linear_backward_weight`, or the layers differ in rows.
    """
    (dy1, x1, *parameters1), (dy2, x2, *parameters2) = first, second
    dy1, x1, dy2, x2 = [launch.activation(rows) for rows in (dy1, x1, dy2, x2)]
    precision = launch.dot_precision(x1.dtype)
    both, *other = _plan_weights(dy1, x1, *parameters1, dy2, x2, *parameters2, precision)
    if other:
        grad1, grad_bias1 = both.outputs()
        both.start(dy1, x1, grad1, grad_bias1, None)
        grad2, grad_bias2 = other[0].outputs()
        other[0].start(dy2, x2, grad2, grad_bias2, None)
    else:
        grad1, grad_bias1, grad2, grad_bias2 = both.outputs()
        both.start(dy1, x1, grad1, grad_bias1, dy2, x2, grad2, grad_bias2)
    return grad1, grad_bias1, grad2, grad_bias2
