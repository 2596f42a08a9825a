"""Blocks whose launches are replayed: one node of autograd, and per block and pass one list of addresses.

The host bounds a training step of a narrow net on a GPU. Its blocks are the same twelve launches every time,
but for addresses. So the first time that blocks of some shapes come, their own operations run and check them;
the second time both passes run as they are and are recorded (``kernels.common.replay``); from then on their
launches are started one after the other. Sizes, strides, tiles and the variants of kernels are those of the
operations, and so are the bits.

Shapes: x (B, N, d), M = B * N rows; weights at the full size of the supernet.

Saved, of each block one after the other in one buffer: mean (M,), rstd (M,), qkv (3, B, h, N, e), attended
(B, N, h * e), lse (B, h, N), y (B, N, d) of attention; mean, rstd, hidden (M, m) or nothing, y of the MLP.

Replaying needs memory for what is neither saved nor returned: one buffer for all blocks of a pass. Where
several processes train together, every block is a node of its own, so that its gradients can be sent while
the next block computes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed

from growtas import shadow
from growtas.kernels.common import launch, workspace
from growtas.kernels.common.replay import Layout, Recorder, Replay, possible, tensor_at
from growtas.ops import checks, dispatch
from growtas.ops.attention_branch import branch_backward as attention_backward
from growtas.ops.attention_branch import branch_forward as attention_forward
from growtas.ops.block_stack import leaves
from growtas.ops.block_stack.layer import SPLIT, Layer
from growtas.ops.mlp import branch_backward as mlp_backward
from growtas.ops.mlp import branch_forward as mlp_forward
from growtas.ops.registry import eager, refuse_second_derivative

MOST_KNOWN = 4096
"""Blocks that are remembered; then all are forgotten."""

_MATRICES = (2, 8, SPLIT + 2, SPLIT + 4)  # of a block's tensors those that have shadows: qkv, proj, fc1, fc2


class _Known:
    """A block by its shapes: the launches of its passes, once they were recorded."""

    __slots__ = ("forward", "backward", "refused")

    def __init__(self) -> None:
        self.forward: Replay | None = None
        self.backward: Replay | None = None
        self.refused = False


class _Made(NamedTuple):
    """The tensors that a block's forward pass made: addresses, layouts, and the memory they are in."""

    addresses: list[int]
    layouts: Sequence[Layout]
    owners: list[Tensor]


_known: dict[tuple, _Known] = {}
launch.remembered.append(_known)


def run(
    x: Tensor,
    layers: Sequence[Layer],
    grid: tuple[int, int],
    dtype: torch.dtype,
    one_by_one: Callable[[], Tensor],
) -> Tensor:
    """Run blocks of which Triton runs every step. Args, Returns: as of :func:`.block_stack`."""
    if not (x.is_contiguous() and x.numel() and possible(x.device)):
        return one_by_one()
    weights = [(*layer.attention, *layer.mlp) for layer in layers]
    shadows = [_shadows(own, dtype) for own in weights]
    of_all = _of_all(x, grid, dtype)
    keys = [
        _key(x, layer, own, of_weights, of_all)
        for layer, own, of_weights in zip(layers, weights, shadows, strict=True)
    ]
    known = [None if key is None else _known.get(key) for key in keys]
    if None in known or any([each.refused for each in known]):
        result = one_by_one()
        if len(_known) > MOST_KNOWN:
            _known.clear()
        for key in keys:
            if key is not None:
                _known.setdefault(key, _Known())
        return result
    keeps = torch.is_grad_enabled()
    if distributed.is_available() and distributed.is_initialized():
        for layer, each, own, of_weights in zip(layers, known, weights, shadows, strict=True):
            x = _Stack.apply(x, [layer], [each], [of_weights], grid, dtype, keeps, *own)
        return x
    flat = [] if leaves.takes(x, layers) else [weight for own in weights for weight in own]
    return _Stack.apply(x, layers, known, shadows, grid, dtype, keeps, *flat)


def _of_all(x: Tensor, grid: tuple[int, int], dtype: torch.dtype) -> tuple:
    """The part of a key that all blocks share."""
    precision = torch.get_float32_matmul_precision()
    return x.shape, x.dtype, x.device, grid, dtype, precision, dispatch.epoch()


def _key(
    x: Tensor,
    layer: Layer,
    weights: Sequence[Tensor | None],
    shadows: Sequence[Tensor | None],
    of_all: tuple,
) -> tuple | None:
    """All that decides about a block's launches but addresses; None for weights that are not all alike."""
    device, kind, shapes = x.get_device(), layer.attention.norm_weight.dtype, []
    for weight in weights:
        if weight is None:
            shapes.append(None)
        elif weight.is_contiguous() and weight.get_device() == device:
            shapes.append(weight.shape)
            if weight.dtype is not kind and weight.dtype is not torch.float32:  # scales are fp32
                return None
        else:
            return None
    return (of_all, kind, tuple(shapes), *[each is None for each in shadows], *layer[2:])


def _shadows(weights: Sequence[Tensor | None], dtype: torch.dtype) -> list[Tensor | None]:
    return shadow.of([weights[i] for i in _MATRICES], dtype)  # type: ignore[misc]


def _addresses(tensors: Sequence[Tensor | None]) -> list[int]:
    return [0 if tensor is None else tensor.data_ptr() for tensor in tensors]


def _forward_block(x: Tensor, layer: Layer, grid: tuple[int, int], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Everything that is saved of a block; its result is the last."""
    heads = layer.num_heads, layer.head_dim
    y, *first = attention_forward(
        x, layer.attention, *heads, *grid, layer.bias_layout, layer.attention_eps, dtype
    )
    z, *second = mlp_forward(y, layer.mlp, layer.hidden_dim, layer.mlp_eps, dtype)
    return *first, y, *second, z


def _backward_block(
    dy: Tensor, x: Tensor, saved: Sequence[Tensor], layer: Layer, grid: tuple[int, int], dtype: torch.dtype
) -> tuple[Tensor | None, ...]:
    """Gradients of x and of the weights, the scales left out."""
    *first, y, mean, rstd, hidden, _ = saved
    dmiddle, *of_mlp = mlp_backward(dy, y, layer.mlp, mean, rstd, hidden, layer.hidden_dim, dtype)
    dx, *of_attention = attention_backward(dmiddle, x, layer.attention, *first, *grid, layer.bias_layout)
    return dx, *of_attention, *of_mlp


class _Stack(torch.autograd.Function):
    """The blocks; see the top of this file."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        layers: Sequence[Layer],
        known: Sequence[_Known],
        shadows: Sequence[Sequence[Tensor | None]],
        grid: tuple[int, int],
        dtype: torch.dtype,
        keeps: bool,
        *weights: Tensor | None,
    ) -> Tensor:
        made = []
        empty = workspace.allocator(x.device)
        scratch = empty((1,), (1,), torch.uint8)
        address, owner = x.data_ptr(), x
        for number, (layer, each, of_weights) in enumerate(zip(layers, known, shadows, strict=True), 1):
            given = (*layer.attention, *layer.mlp, *of_weights)
            replay = each.forward
            if replay is None:
                below = tensor_at(owner, address, Layout.of(x))
                with Recorder((below, *given)) as recorder:
                    found = _forward_block(below, layer, grid, dtype)
                each.forward = recorder.replay(found)
                each.refused = bool(recorder.refusal)
                owners, addresses = list(found), _addresses(found)
                layouts = [Layout.of(t) for t in found]
            else:
                layouts = replay.results
                if len(scratch) < replay.scratch:
                    scratch = empty((replay.scratch,), (1,), torch.uint8)
                ends = number == len(layers)  # the result, the last of them, has memory of its own
                room = empty((replay.offsets[-1] if ends else replay.room,), (1,), torch.uint8)
                start = room.data_ptr()
                addresses = [start + offset for offset in replay.offsets]
                owners = [room] * len(layouts)
                if ends:
                    owners[-1] = empty(*layouts[-1])
                    addresses[-1] = owners[-1].data_ptr()
                replay.start(
                    [address, *_addresses(given), *addresses, scratch.data_ptr()],
                    lambda tensors=(owner, *given, *owners, scratch): tensors,
                )
            address, owner = addresses[-1], owners[-1]
            if keeps:
                made.append(_Made(addresses, layouts, owners))
        if keeps:
            made[-1].owners[-1] = x  # instead of the result, which the backward pass does not read
            rooms = {id(t): t for each in made for t in each.owners}
            places = {key: place for place, key in enumerate(rooms)}
            ctx.places = [[places[id(t)] for t in each.owners] for each in made]
            ctx.made = [each._replace(owners=[]) for each in made]
            ctx.save_for_backward(x, *rooms.values(), *weights)
            ctx.known, ctx.shadows, ctx.grid, ctx.dtype = known, shadows, grid, dtype
            ctx.kept, ctx.count = leaves.Kept(layers, weights), len(rooms)
            ctx.set_materialize_grads(False)
        return owner

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, ...]:
        x, *saved = ctx.saved_tensors
        rooms, weights = saved[: ctx.count], saved[ctx.count :]
        result: list[Tensor | None] = [None] * (7 + len(weights))
        if dy is None:
            return tuple(result)
        if eager():
            refuse_second_derivative("A stack of blocks")
        layers = ctx.kept.layers(weights)
        made = [
            each._replace(owners=[rooms[at] for at in places])
            for each, places in zip(ctx.made, ctx.places, strict=True)
        ]
        result[0], *gradients = _gradients(checks.values(dy).contiguous(), x, made, layers, ctx)
        result[7:] = ctx.kept.returned(gradients)
        return tuple(result)


def _gradients(
    dy: Tensor, x: Tensor, made: Sequence[_Made], layers: Sequence[Layer], ctx: Any
) -> list[Tensor | None]:
    """Gradients of x and of all tensors of the blocks, from the last block to the first."""
    empty = workspace.allocator(x.device)
    scratch = empty((1,), (1,), torch.uint8)
    stream, found = Layout.of(x), []  # found: of each block, the last one first
    for number in reversed(range(len(layers))):
        layer, known, each = layers[number], ctx.known[number], made[number]
        below = made[number - 1] if number else None
        address, owner = (below.addresses[-1], below.owners[-1]) if below else (x.data_ptr(), x)
        own = (*layer.attention, *layer.mlp)
        shadows = ctx.shadows[number]
        replay = known.backward
        if replay is None:
            below_x = tensor_at(owner, address, stream)
            saved = [
                tensor_at(*place)
                for place in zip(each.owners[:-1], each.addresses[:-1], each.layouts[:-1], strict=True)
            ]
            with Recorder((dy, below_x, *saved, *own, *shadows)) as recorder:
                gradients = _backward_block(dy, below_x, (*saved, dy), layer, ctx.grid, ctx.dtype)
            if all([a is b for a, b in zip(shadows, _shadows(own, ctx.dtype), strict=True)]):
                known.backward = recorder.replay(gradients)
                known.refused = bool(recorder.refusal)
        else:
            gradients = [None if layout is None else empty(*layout) for layout in replay.results]
            if len(scratch) < replay.scratch:
                scratch = empty((replay.scratch,), (1,), torch.uint8)
            replay.start(
                [
                    dy.data_ptr(), address, *each.addresses[:-1],
                    *_addresses((*own, *shadows, *gradients, scratch)),
                ],
                lambda given=(dy, owner, *each.owners[:-1], *own, *shadows, *gradients, scratch): given,
            )  # fmt: skip
        dy, *of_weights = gradients  # type: ignore[assignment]
        of_attention, of_mlp = of_weights[: SPLIT - 1], of_weights[SPLIT - 1 :]
        found.append((*of_attention, None, *of_mlp, None))
    return [dy, *[gradient for of_block in reversed(found) for gradient in of_block]]
