"""Draws of arguments for every public operation, and the disturbances that they may suffer.

A draw is a pure function of operation and seed. Its tensors lie in larger buffers of NaN and 1e30, so a read
outside of one is seen in the result, and a write in the buffer.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from growtas import ops

GUARD = 32
TABLES = ("key_v", "key_h", "value_v", "value_h")
FP32, BF16, FP16, FP64 = torch.float32, torch.bfloat16, torch.float16, torch.float64


@dataclass
class Case:
    """Arguments of one call.

    Args:
        op: name in growtas.ops.
        tensors: arguments by name, None where absent.
        numbers: sizes and settings by name.
        aliases: arguments that are made from another one at the call: name -> (of which, how).
        done: the disturbances, for messages.
        refused: whether the call has to end in a sentence.
        buffers: the memory around the tensors, and what it held.
    """

    op: str
    tensors: dict[str, Tensor | None]
    numbers: dict[str, object]
    aliases: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)
    refused: bool = False
    buffers: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def names(self, *axes: int) -> list[str]:
        """The parameters that are there, of these numbers of axes where given."""
        here = [n for n, t in self.tensors.items() if t is not None and n not in ("x", "scale")]
        return [n for n in here if not axes or self.tensors[n].dim() in axes]

    def free(self, *axes: int) -> list[str]:
        """Those of :meth:`names` that no alias concerns."""
        bound = {*self.aliases, *(of for of, _ in self.aliases.values())}
        return [n for n in self.names(*axes) if n not in bound]

    def arguments(self, tensors: dict[str, Tensor | None]) -> dict[str, object]:
        """All arguments of the call, aliases made."""
        made = {n: how(tensors[of]) for n, (of, how) in self.aliases.items()}
        return {**tensors, **made, **self.numbers}

    def values(self, wide: torch.dtype | None = None) -> dict[str, Tensor | None]:
        """Dense copies of the tensors, in a wider dtype if one is given."""
        made = {}
        for name, t in self.tensors.items():
            made[name] = (
                None
                if t is None
                else t.detach().to(wide or t.dtype).clone(memory_format=torch.contiguous_format)
            )
        return made

    def __str__(self) -> str:
        shapes = {
            n: t if t is None else (tuple(t.shape), t.stride(), t.dtype) for n, t in self.tensors.items()
        }
        return f"{self.op} {self.done} {self.numbers} {shapes}"


def _norm(full: int) -> dict[str, tuple[int, ...]]:
    return {"norm_weight": (full,), "norm_bias": (full,)}


def _grid(rng: random.Random) -> tuple[tuple[int, int], int]:
    """A grid and its tokens, with or without cls."""
    grid = rng.choice([(1, 1), (2, 3), (3, 2), (1, 5), (4, 4), (3, 9)])
    return grid, grid[0] * grid[1] + rng.choice([0, 1, 1])


def _heads(rng: random.Random) -> tuple[int, int, int]:
    """h, H and e."""
    heads = rng.choice([1, 2, 3])
    return heads, heads + rng.choice([0, 0, 1]), rng.choice([1, 3, 8, 16, 20])


def layer_norm(rng, size, full):
    lead = [rng.choice([1, 2, 3, 7]) for _ in range(rng.choice([1, 2, 3]))]
    out = rng.choice([None, None, FP32, BF16, FP16])
    return {"x": (*lead, size()), **_norm(full())}, {"out_dtype": out}


def linear(rng, size, full):
    lead = [rng.choice([1, 2, 3, 7]) for _ in range(rng.choice([1, 1, 2, 3]))]
    k, n = size(), rng.choice([1, 4, 9, 17, 40])
    rows = n + rng.choice([0, 0, 3])
    return {"x": (*lead, k), "weight": (rows, full()), "bias": (rows,)}, {"out_features": n}


def qkv(rng, size, full):
    heads, most, e = _heads(rng)
    shapes = {"x": (rng.choice([1, 2, 3]), rng.choice([1, 5, 7]), size())}
    shapes |= {"qkv_weight": (3 * most * e, full()), "qkv_bias": (3 * most * e,)}
    layout = rng.choice(["interleaved", "published"])
    return shapes, {"num_heads": heads, "head_dim": e, "bias_layout": layout}


def relative_attention(rng, size, full):
    grid, tokens = _grid(rng)
    e, rows = rng.choice([1, 3, 8, 16, 20]), 2 * rng.choice([0, 1, 2, 5]) + 2
    shapes = {"x": (3, rng.choice([1, 2, 3]), rng.choice([1, 2, 3]), tokens, e)}
    return shapes | {name: (rows, e) for name in TABLES}, {"grid": grid}


def mlp(rng, size, full):
    images, hidden = rng.choice([1, 2, 3]), rng.choice([1, 4, 9, 24, 40])
    d, most, more = size(), full(), hidden + rng.choice([0, 0, 3])
    shapes = {"x": (images, rng.choice([1, 5, 7]), d), **_norm(most), "w1": (more, most), "b1": (more,)}
    shapes |= {"w2": (most, more), "b2": (most,), "scale": (images,)}
    return shapes, {"hidden_dim": hidden, "dtype": None}


def attention_branch(rng, size, full):
    grid, tokens = _grid(rng)
    heads, most, e = _heads(rng)
    images, d, full_d, rows = rng.choice([1, 2, 3]), size(), full(), 2 * rng.choice([0, 1, 3]) + 2
    shapes = {"x": (images, tokens, d), **_norm(full_d), "qkv_weight": (3 * most * e, full_d)}
    shapes |= {"qkv_bias": (3 * most * e,), **{name: (rows, e) for name in TABLES}}
    shapes |= {"proj_weight": (full_d, most * e), "proj_bias": (full_d,), "scale": (images,)}
    layout = rng.choice(["interleaved", "published"])
    return shapes, {"num_heads": heads, "head_dim": e, "grid": grid, "bias_layout": layout, "dtype": None}


def tokens(rng, size, full):
    patches, most = rng.choice([1, 4, 6]), full()
    shapes = {"x": (rng.choice([1, 2, 3]), patches, size()), "cls_token": (1, 1, most)}
    return shapes | {"pos_embed": (1, patches + 1, most)}, {}


def pooled_norm(rng, size, full):
    count = rng.choice([1, 4, 9])
    first, out = rng.choice([0, count - 1]), rng.choice([None, None, FP32, BF16, FP16])
    shapes = {"x": (rng.choice([1, 2, 3]), count, size()), **_norm(full())}
    return shapes, {"tokens": (first, count), "out_dtype": out}


_DRAWS = layer_norm, linear, qkv, relative_attention, mlp, attention_branch, tokens, pooled_norm
STRATEGIES = {f.__name__: f for f in _DRAWS}


def run(op: str, a: dict[str, object]) -> Tensor:
    """The public operation on arguments by name."""
    norm = a.get("norm_weight"), a.get("norm_bias")
    tables = tuple(a[name] for name in TABLES if name in a)
    if op == "layer_norm":
        return ops.layer_norm(a["x"], *norm, out_dtype=a["out_dtype"])
    if op == "pooled_norm":
        return ops.pooled_norm(a["x"], *norm, a["tokens"], out_dtype=a["out_dtype"])
    if op == "linear":
        return ops.linear(a["x"], a["weight"], a["bias"], a["out_features"])
    if op == "qkv":
        return ops.qkv(
            a["x"], a["qkv_weight"], a["qkv_bias"], a["num_heads"], a["head_dim"], a["bias_layout"]
        )
    if op == "relative_attention":
        return ops.relative_attention(a["x"], *tables, a["grid"])
    if op == "tokens":
        return ops.tokens(a["x"], a["cls_token"], a["pos_embed"])
    if op == "mlp":
        fc1, fc2 = (a["w1"], a["b1"]), (a["w2"], a["b2"])
        return ops.mlp(a["x"], norm, fc1, fc2, a["hidden_dim"], scale=a["scale"], dtype=a["dtype"])
    return ops.attention_branch(
        a["x"], norm, (a["qkv_weight"], a["qkv_bias"]), tables, (a["proj_weight"], a["proj_bias"]),
        a["num_heads"], a["head_dim"], a["grid"], scale=a["scale"], bias_layout=a["bias_layout"],
        dtype=a["dtype"],
    )  # fmt: skip


def draw(op: str, seed: int, dtypes: tuple[torch.dtype, ...] = (FP32, FP32, BF16, FP16)) -> Case:
    """Valid arguments; biases and scale may be absent."""
    rng = random.Random(f"{op} {seed}")
    d = rng.choice([2, 3, 8, 12, 17, 33, 40])
    most = d + rng.choice([0, 0, 4, 7])
    shapes, numbers = STRATEGIES[op](rng, lambda: d, lambda: most)
    dtype, generator = rng.choice(dtypes), torch.Generator().manual_seed(seed)
    if "dtype" in numbers and dtype is FP32:
        numbers["dtype"] = rng.choice([None, None, BF16, FP16])
    if BF16 not in dtypes:
        numbers = {n: FP16 if v is BF16 else v for n, v in numbers.items()}
    tensors: dict[str, Tensor | None] = {}
    for name, shape in shapes.items():
        optional = name in ("bias", "qkv_bias", "b1", "b2", "proj_bias", "scale")
        if optional and rng.random() < 0.25:
            tensors[name] = None
            continue
        value = torch.randn(shape, generator=generator) * (1.0 if name == "x" else 0.5)
        kept = name == "scale" or (name != "x" and rng.random() < 0.6)
        tensors[name] = value.to(FP32 if kept else dtype)
    return Case(op, tensors, numbers)


def memory(case: Case, value: Tensor, rng: random.Random, layout: str) -> Tensor:
    """The same values in the midst of a buffer of NaN and 1e30, which the case keeps in mind."""
    shape, step = list(value.shape), 2 if layout == "strided" else 1
    order = list(range(value.dim()))
    if layout == "transposed":
        rng.shuffle(order)
    strides, size = [0] * len(shape), step
    for axis in reversed(order):
        strides[axis] = size
        size *= max(shape[axis], 1) * step
    before = GUARD + rng.choice([0, 1, 3])
    buffer = torch.full((size + 2 * GUARD + 3,), float("nan"), dtype=value.dtype)
    buffer[::3] = 1e30 if value.dtype is not FP16 else 6e4
    view = buffer.as_strided(shape, strides, before).copy_(value)
    case.buffers.append((buffer, buffer.clone()))
    return view


def negated(value: Tensor) -> Tensor:
    """The same values as a strided view whose sign is yet to be applied."""
    return torch.complex(torch.zeros_like(value), -value).conj().imag


@contextlib.contextmanager
def guarded_results() -> Iterator[Callable[[], None]]:
    """New tensors are NaN in guarded memory; the function that is yielded checks what lies around them."""
    made: list[tuple[Tensor, int]] = []
    places = (
        (torch, "empty"),
        (torch, "empty_like"),
        (torch.Tensor, "new_empty"),
        (torch.Tensor, "new_empty_strided"),
    )
    own = [getattr(place, name) for place, name in places]
    empty = torch.empty

    def guarded(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def allocate(*arguments, **keywords):
            like = make(*arguments, **keywords)
            if like.device.type != "cpu" or not like.is_floating_point():
                return like
            extent = (
                1 + sum((n - 1) * s for n, s in zip(like.shape, like.stride(), strict=True))
                if like.numel()
                else 0
            )
            buffer = empty(extent + 2 * GUARD, dtype=like.dtype).fill_(float("nan"))
            buffer[:GUARD] = buffer[GUARD + extent :] = 7.0
            made.append((buffer, extent))
            return buffer.as_strided(like.shape, like.stride(), GUARD)

        return allocate

    def check() -> None:
        for buffer, extent in made:
            around = torch.cat((buffer[:GUARD], buffer[GUARD + extent :]))
            assert (around == 7.0).all(), "memory around a result was written"

    for (place, name), make in zip(places, own, strict=True):
        setattr(place, name, guarded(make))
    try:
        yield check
    finally:
        for (place, name), make in zip(places, own, strict=True):
            setattr(place, name, make)
