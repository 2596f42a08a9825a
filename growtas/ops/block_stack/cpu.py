"""The blocks of a small net on a CPU as one operation: one node of autograd, two calls of C++ per block.

Alone, the two branches of a block are a node each, with their checks and some twenty tensors; in a net of
36 channels that costs an eighth of both passes. Here the calls are the same, and so are the bits.

Shapes: x (B, N, d), M = B * N rows; weights at the full size of the supernet; all fp32.

Saved: x, and one buffer with the intermediate results of all branches, of each block one after the other

    mean (M,), rstd (M,), qkv (B, N, 3 * h * e), attended (M, h * e), lse (B, h, N), y (M, d)   attention
    mean (M,), rstd (M,), hidden (M, m), y (M, d)                                              MLP

where the y of the last branch is the result. Without gradients all blocks share the room of the largest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from growtas import native
from growtas.errors import GrowtasError
from growtas.ops import checks, dispatch
from growtas.ops.addresses import pointers
from growtas.ops.attention_branch.one_call import attention_sizes, takes_attention
from growtas.ops.block_stack import leaves
from growtas.ops.block_stack.layer import Layer
from growtas.ops.mlp.one_call import mlp_sizes, takes_mlp
from growtas.ops.one_call import dense, small
from growtas.ops.registry import eager, refuse_second_derivative

ALIGNMENT = 16
"""Floats: every intermediate result begins at a line of the cache, as a tensor of its own would."""

MOST_KNOWN = 4096
"""Blocks that are remembered; then all are forgotten."""

_BYTES = 4  # of a float


class _Sizes(NamedTuple):
    """Sizes of a block as C++ takes them, and the lengths of its intermediate results, in floats."""

    attention: tuple[int, ...]
    mlp: tuple[int, ...]
    lengths: tuple[int, ...]


_known: dict[tuple, _Sizes] = {}
"""Blocks that their own operations have taken, by all that those ask: they need not be asked again."""

_shapes: dict[tuple, tuple] = {}
"""The shapes in these keys, each kept once: blocks differ in what is active, hardly in their weights."""


def takes(x: Tensor, layers: Sequence[Layer], dtype: torch.dtype) -> bool:
    """Return whether blocks of these sizes are small enough, and their residual stream can be read."""
    columns = max([max(3 * each.num_heads * each.head_dim, each.hidden_dim) for each in layers])
    return dense(x) and small(x, columns, len(layers[0].attention.norm_weight), dtype)


def run(
    x: Tensor, layers: Sequence[Layer], grid: tuple[int, int], one_by_one: Callable[[], Tensor]
) -> Tensor:
    """Run blocks that :func:`takes` takes. Args, Returns: as of :func:`.block_stack`."""
    keys = [_key(x, layer, grid) for layer in layers]
    sizes = [_known.get(key) for key in keys]
    if None not in sizes:
        direct = leaves.takes(x, layers)
        weights = [] if direct else [w for layer in layers for w in (*layer.attention, *layer.mlp)]
        return _Stack.apply(x, layers, keys, sizes, torch.is_grad_enabled(), *weights)
    result = one_by_one()
    if len(_known) > MOST_KNOWN:
        _known.clear()
        _shapes.clear()
    for key, layer in zip(keys, layers, strict=True):
        if key is not None and _taken(x, layer):
            of_x, of_weights = (_shapes.setdefault(each, each) for each in key[:2])
            _known[of_x, of_weights, *key[2:]] = _sizes(x, layer, grid)
    return result


def _key(x: Tensor, layer: Layer, grid: tuple[int, int]) -> tuple | None:
    """All that decides whether one call takes a block; None where it does not."""
    attention, mlp = layer.attention, layer.mlp
    if not (dense(*attention) and dense(*mlp)):
        return None
    shapes = tuple([None if weight is None else weight.shape for weight in (*attention, *mlp)])
    return x.shape, shapes, *layer[2:6], grid, dispatch.epoch()


def _taken(x: Tensor, layer: Layer) -> bool:
    heads, e = layer.num_heads, layer.head_dim
    return takes_attention(x, layer.attention, heads, e, torch.float32) and takes_mlp(
        x, layer.mlp, layer.hidden_dim, torch.float32
    )


def _sizes(x: Tensor, layer: Layer, grid: tuple[int, int]) -> _Sizes:
    batch, tokens, d = x.shape
    rows, width = batch * tokens, layer.num_heads * layer.head_dim
    attention = rows, rows, 3 * width * rows, width * rows, layer.num_heads * rows, d * rows
    mlp = rows, rows, layer.hidden_dim * rows, d * rows
    return _Sizes(
        attention_sizes(x, layer.attention, layer.num_heads, grid, layer.bias_layout),
        mlp_sizes(x, layer.mlp, layer.hidden_dim),
        tuple([-(-length // ALIGNMENT) * ALIGNMENT for length in (*attention, *mlp)]),
    )


def _addresses(start: int, lengths: Sequence[int]) -> list[int]:
    """Where the intermediate results of a block lie. Args: start: of the block, in bytes."""
    found = []
    for length in lengths:
        found.append(start)
        start += _BYTES * length
    return found


class _Stack(torch.autograd.Function):
    """The blocks; see the top of this file."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        layers: Sequence[Layer],
        keys: Sequence[tuple],
        sizes: Sequence[_Sizes],
        keeps: bool,
        *weights: Tensor | None,
    ) -> Tensor:
        cpu, y = native.load("cpu"), torch.empty_like(x)
        rooms = [sum(each.lengths) for each in sizes]
        room = x.new_empty(sum(rooms) if keeps else 2 * max(rooms))
        inputs, start = x.data_ptr(), room.data_ptr()
        for number, (layer, each) in enumerate(zip(layers, sizes, strict=True), 1):
            *attention, middle, mean, rstd, hidden, end = _addresses(start, each.lengths)
            outputs = y.data_ptr() if number == len(layers) else end
            tensors = (inputs, middle, *attention)
            cpu.attention_forward(each.attention, pointers(*layer.attention), tensors, layer.attention_eps)
            tensors = (middle, outputs, mean, rstd, hidden)
            cpu.mlp_forward(each.mlp, pointers(*layer.mlp), tensors, layer.mlp_eps)
            inputs = outputs
            if keeps:
                start += _BYTES * rooms[number - 1]
            else:  # the next block reads this one's result, and writes to the other half
                start = room.data_ptr() + _BYTES * max(rooms) * (number % 2)
        if keeps:
            ctx.save_for_backward(x, room, *weights)
            ctx.kept, ctx.keys, ctx.sizes = leaves.Kept(layers, weights), keys, sizes
            ctx.set_materialize_grads(False)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None) -> tuple[Tensor | None, ...]:
        x, room, *weights = ctx.saved_tensors
        result: list[Tensor | None] = [None] * (5 + len(weights))
        if dy is None:
            return tuple(result)
        if eager():
            refuse_second_derivative("A stack of blocks")
        layers = ctx.kept.layers(weights)
        for layer, key in zip(layers, ctx.keys, strict=True):
            now = _key(x, layer, key[-2])
            if now is None or now[:-1] != key[:-1]:
                raise GrowtasError(
                    "A shared weight has another shape or dtype than in the forward pass; change weights "
                    "before the forward pass or after the backward pass."
                )
        result[0], *gradients = _gradients(checks.values(dy).contiguous(), x, room, layers, ctx.sizes)
        result[5:] = ctx.kept.returned(gradients)
        return tuple(result)


def _gradients(
    dy: Tensor, x: Tensor, room: Tensor, layers: Sequence[Layer], sizes: Sequence[_Sizes]
) -> list[Tensor | None]:
    """Gradients of x and of all weights, from the last block to the first."""
    cpu, dx, halves = native.load("cpu"), torch.empty_like(x), x.new_empty(2, x.numel())
    middle_gradient, below = pointers(*halves)
    inputs, starts = [x.data_ptr()], [room.data_ptr()]
    for each in sizes:
        starts.append(starts[-1] + _BYTES * sum(each.lengths))
        inputs.append(starts[-1] - _BYTES * each.lengths[-1])
    found: list[Tensor | None] = []
    above = dy.data_ptr()
    for number in reversed(range(len(layers))):
        (attention, mlp, *_), each = layers[number], sizes[number]
        *saved, middle, mean, rstd, hidden, _ = _addresses(starts[number], each.lengths)
        mlp_gradients, attention_gradients = _room_for(mlp), _room_for(attention)
        tensors = (above, middle, mean, rstd, hidden)
        results = (middle_gradient, *pointers(*mlp_gradients[:-1]))
        cpu.mlp_backward(each.mlp, pointers(*mlp), tensors, results)
        above = below if number else dx.data_ptr()
        tensors = (middle_gradient, inputs[number], *saved)
        results = (above, *pointers(*attention_gradients[:-1]))
        cpu.attention_backward(each.attention, pointers(*attention), tensors, results)
        found[:0] = (*attention_gradients, *mlp_gradients)
    return [dx, *found]


def _room_for(weights: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Room for the gradients of a branch's weights; none for the images' scale, the last."""
    empty_like = torch.empty_like
    return [*[None if weight is None else empty_like(weight) for weight in weights[:-1]], None]
