"""Partial LayerNorm as rival ways: growtas' backends, and torch's own layer of the sliced width."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from common.products import Inputs
from common.ways import Way, leaf
from growtas import ops
from growtas.ops import dispatch

LAYER = "dense"


@dataclass(frozen=True)
class Norm:
    """LayerNorm over the first channels of a shared scale and shift.

    Args:
        rows: M, tokens of all images.
        width: d.
        shared: D, of scale and shift.
    """

    rows: int
    width: int
    shared: int

    def __str__(self) -> str:
        return f"layer_norm {self.rows}×{self.width}"

    def moved(self, direction: str, activation: int) -> int:
        """The least bytes of a pass: forward reads x and writes y; backward reads dy and x and writes dx.

        Args:
            direction: forward or backward.
            activation: bytes of one element.
        """
        return (2 if direction == "forward" else 3) * self.rows * self.width * activation

    def make_inputs(self, device: torch.device, dtype: torch.dtype, seed: int) -> Inputs:
        """x and dy (M, d) in ``dtype``, scale and shift (D,) in fp32, random."""
        generator = torch.Generator(device).manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, device=device, generator=generator)

        return Inputs(
            x=(3 * normal(self.rows, self.width) + 0.5).to(dtype),
            weight=1 + 0.1 * normal(self.shared),
            bias=0.1 * normal(self.shared),
            dy=normal(self.rows, self.width).to(dtype),
        )


def names(device: torch.device) -> list[str]:
    """torch's layer, and growtas with each backend that runs on the device."""
    kinds = {"cpu": ("torch", "cpu"), "cuda": ("torch", "triton", "cuda")}[device.type]
    return [LAYER, *(f"growtas {name}" for name in kinds if dispatch.available(name).ok)]


def build(name: str, norm: Norm, inputs: Inputs) -> Way:
    """One way by name, on these inputs."""
    d = norm.width
    if name == LAYER:
        x, weight, bias = leaf(inputs.x), leaf(inputs.weight[:d].clone()), leaf(inputs.bias[:d].clone())

        def layer() -> Tensor:
            # In low precision torch takes scale and shift in x's dtype.
            return F.layer_norm(x, (d,), weight.to(x.dtype), bias.to(x.dtype))

        return Way(layer, (x, weight, bias), (inputs.dy,), lambda y: y, lambda g: (*g, ()))
    x, weight, bias = map(leaf, inputs[:3])

    def plain_gradients(gradients):
        dx, dweight, dbias = gradients
        return dx, dweight[:d], dbias[:d], (dweight[d:], dbias[d:])

    leaves = (x, weight, bias)
    return Way(lambda: ops.layer_norm(x, weight, bias), leaves, (inputs.dy,), lambda y: y, plain_gradients)


def truth(norm: Norm, inputs: Inputs) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """The result and the gradients in fp64, from the same inputs."""
    way = build(LAYER, norm, Inputs(*(tensor.double() for tensor in inputs)))
    y = way.run()
    return y.detach(), tuple(torch.autograd.grad(y, way.leaves, way.dys))
