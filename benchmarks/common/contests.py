"""Contests of operations that are raced launcher against launcher: fused ones, and relative attention.

Each is a job of common/fused_works.py or common/memory_works.py in both passes, done by all back ends. The
torch back end of ``norm_qkv`` and ``mlp`` is a composition; its parts run on torch as well.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from common import fused_works, memory_works, timing, ways, works
from common.product_works import timed
from common.race import Errors, Samples
from common.works import Layer, Work
from growtas import load_space
from growtas.ops.backend import IMPLEMENTATIONS
from growtas.space import SearchSpace, preset_names

FUSED = ("linear_gelu", "norm_qkv", "mlp")
#: Heads that no preset has: another head dim, of the same class of widths and of the next one.
OTHER_HEADS = (
    Layer("other", d=96, heads=3, hidden=384, D=128, H=4, M=512, e=32),
    Layer("other", d=256, heads=2, hidden=768, D=256, H=2, M=1024, e=128),
)


def preset_layers() -> Iterator[Layer]:
    """The smallest and the largest layer of every preset, each size once."""
    seen = set()
    for name in preset_names():
        space = load_space(name)
        if not isinstance(space, SearchSpace):
            continue  # convolutions run on the same products, at shapes of their own
        side = space.image_size // space.patch_size
        for subnet in (space.smallest(), space.largest()):
            layer = Layer(
                name, subnet.embed_dim, subnet.num_heads[0], subnet.hidden_dims[0], space.super_embed_dim,
                space.super_num_heads, space.super_hidden_dim, space.head_dim, (side, side),
                space.max_relative_position,
            )  # fmt: skip
            key = dataclasses.replace(layer, space="")
            if key not in seen:
                seen.add(key)
                yield layer


@dataclass(frozen=True)
class WorkRace:
    """A race of launchers, with the methods of :class:`common.race.Race`.

    Args:
        op: the operation.
        layer: its size.
        names: of the ways, ``growtas <back end>``.
        device, dtype: of products.
    """

    op: str
    layer: Layer
    names: tuple[str, ...]
    device: torch.device
    dtype: torch.dtype

    def work(self, direction: str) -> Work:
        """The job of one pass, done by the back ends."""
        if self.op == "relative_attention":
            work = memory_works.attention_work(self.layer, direction)
            make = memory_works.build(direction)
        else:
            op = self.op if direction == "forward" else f"{self.op} backward"
            work = fused_works.fused_work(self.layer, op)
            make = partial(fused_works.build, op=op)
        own = {name: partial(_call, make, self.layer, ways.short(name)) for name in self.names}
        return dataclasses.replace(work, ways=own, yardstick="growtas torch", unchecked=(), untimed=())

    @property
    def width(self) -> int:
        """What the operation's back end is chosen by: the shared width, or the head dim."""
        return self.layer.e if self.op == "relative_attention" else self.layer.D

    def inputs(self, batch: int, seed: int) -> Any:
        """Inputs of both passes."""
        return self.work("forward").inputs(batch, self.device, self.dtype, seed)

    def check(
        self, names: Sequence[str], inputs: Any, truth: Any, yardstick: str
    ) -> tuple[dict[str, Errors], dict[str, str]]:
        """As :meth:`common.race.Race.check`; the truth is the works' own."""
        passed: dict[str, dict] = {name: {} for name in names}
        refused: dict[str, str] = {}
        for direction in ("forward", "backward"):
            with ways.active("growtas torch", self.op, self.width, self.device, self.dtype):
                right, wrong = works.check(self.work(direction), inputs, self.dtype)
            refused |= wrong
            for name, error in right.items():
                passed[name][direction] = (error, error)
        return {name: found for name, found in passed.items() if name not in refused}, refused

    def run(
        self,
        names: Sequence[str],
        sets: Sequence[Any],
        direction: str,
        *,
        seconds: float,
        rounds: int,
        least: int = 3,
        sample_seconds: float = 2e-3,
    ) -> Samples:
        """As :meth:`common.race.Race.run`."""
        work, samplers, methods = self.work(direction), {}, {}
        # The composition takes torch's parts; the other launchers choose nothing.
        with ways.active("growtas torch", self.op, self.width, self.device, self.dtype):
            for name in names:
                makers = [lambda make=work.ways[name], one=one: timed(make(one)) for one in sets]
                samplers[name], methods[name] = timing.sampler(makers, self.device, sample_seconds)
            samples = timing.interleave(samplers, seconds=seconds, rounds=rounds, least=least)
        return Samples(samples, methods)


def _call(make: Callable, layer: Layer, backend: str, inputs: Any) -> Callable:
    return make(layer=layer, backend=backend, i=inputs)


def fits(op: str, name: str, layer: Layer, dtype: torch.dtype) -> bool:
    """Whether a back end takes a size at all; where it does not, the operation falls back by itself."""
    unsupported = works.step(op, name, "unsupported")
    if op != "relative_attention" or unsupported is None:
        return True
    return not unsupported(layer.e, layer.grid, dtype)


def races(
    device: torch.device, dtype: torch.dtype, backends: Callable[[str, torch.device], list[str]]
) -> Iterator[WorkRace]:
    """Every race of launchers on a device.

    Args:
        device: where.
        dtype: of products.
        backends: the back ends of an operation on a device.
    """
    found = list(preset_layers())
    for op in (*FUSED, "relative_attention"):
        if op not in IMPLEMENTATIONS:
            continue
        sizes = found + list(OTHER_HEADS) if op == "relative_attention" else found
        seen = set()
        for layer in sizes:
            key = (
                (layer.heads, layer.e, layer.grid) if op == "relative_attention" else (layer.d, layer.hidden)
            )
            names = [f"growtas {n}" for n in backends(op, device) if fits(op, n, layer, dtype)]
            if len(names) > 1 and key not in seen:
                seen.add(key)
                yield WorkRace(op, layer, tuple(names), device, dtype)
