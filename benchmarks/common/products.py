"""The products of a transformer block, at the widths that a space samples: shapes, FLOPs, bytes, inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from growtas import SearchSpace, load_space

SPACES = {"T": "autoformer-tiny", "S": "autoformer-small", "B": "autoformer-base"}


@dataclass(frozen=True)
class Product:
    """One sliced product ``y (B, N, n) = x (B, N, k) @ W[:n, :k].T + b[:n]``.

    Args:
        space: T, S or B.
        op: qkv, fc1 or fc2. The rows of W that qkv uses are interleaved: q, k, v, q, k, v, ...
        tokens: N, per image.
        inner: k.
        columns: n; for qkv 3 * num_heads * head_dim.
        shared: (N_max, K_max), the shape of the shared weight W.
        num_heads: h of qkv, else 0.
        head_dim: e of qkv, else 0.
    """

    space: str
    op: str
    tokens: int
    inner: int
    columns: int
    shared: tuple[int, int]
    num_heads: int = 0
    head_dim: int = 0

    @property
    def kernel(self) -> str:
        """The operation of growtas.ops that computes it."""
        return "qkv" if self.op == "qkv" else "linear"

    def __str__(self) -> str:
        return f"{self.space} {self.op} {self.inner}→{self.columns}"

    def flops(self, direction: str, batch: int) -> int:
        """Of one pass, a multiply-add counted as two; backward is the products for dx and for dW."""
        return 2 * batch * self.tokens * self.inner * self.columns * (1 if direction == "forward" else 2)

    def moved(self, direction: str, batch: int, activation: int, weight: int) -> int:
        """The least bytes a pass moves, the same for all rivals: each operand of each product once.

        Forward reads x, W and b and writes y. Backward reads dy and W and writes dx; then reads dy and x and
        writes dW and db. Only the slice of W counts: what a rival moves beyond it is its own loss.

        Args:
            direction: forward or backward.
            batch: images.
            activation: bytes of one element of x and y.
            weight: bytes of one element of W.
        """
        rows = batch * self.tokens
        matrix, bias = weight * self.columns * self.inner, weight * self.columns
        x, y = activation * rows * self.inner, activation * rows * self.columns
        if direction == "forward":
            return x + matrix + bias + y
        return (y + matrix + x) + (y + x + matrix + bias)


def products(spaces: list[str], selection: str = "some") -> list[Product]:
    """The QKV and MLP products of spaces, by space and operation, narrow to wide.

    Args:
        spaces: of T, S and B.
        selection: ``all`` signatures; ``some``, the smallest choice at every embed_dim and the largest of
            all; or ``few``, the smallest choice at the middle embed_dim.
    """
    found = []
    for name in spaces:
        space = load_space(SPACES[name])
        for op in ("qkv", "fc1", "fc2"):
            choices = space.num_heads if op == "qkv" else space.mlp_ratio
            pairs = [(dim, choice) for dim in space.embed_dim for choice in choices]
            if selection == "some":
                pairs = [pair for pair in pairs if pair[1] == choices[0]] + [pairs[-1]]
            elif selection == "few":
                pairs = [(space.embed_dim[len(space.embed_dim) // 2], choices[0])]
            found += [_product(space, name, op, dim, choice) for dim, choice in pairs]
    return found


def _product(space: SearchSpace, name: str, op: str, dim: int, choice: float) -> Product:
    wide, hidden = space.super_embed_dim, int(dim * choice)
    if op == "qkv":
        heads, e = int(choice), space.head_dim
        shared = (3 * space.super_num_heads * e, wide)
        return Product(name, op, space.num_tokens, dim, 3 * heads * e, shared, heads, e)
    if op == "fc1":
        return Product(name, op, space.num_tokens, dim, hidden, (space.super_hidden_dim, wide))
    return Product(name, op, space.num_tokens, hidden, dim, (wide, space.super_hidden_dim))


class Inputs(NamedTuple):
    """Random inputs of one product.

    Args:
        x: (B, N, k) in the compute dtype.
        weight: (N_max, K_max), shared.
        bias: (N_max,), shared.
        dy: gradient of the result: (3, B, h, N, e) for qkv, as attention's backward pass gives it, else
            (B, N, n).
    """

    x: Tensor
    weight: Tensor
    bias: Tensor
    dy: Tensor


def make_inputs(
    product: Product,
    batch: int,
    device: torch.device,
    dtype: torch.dtype,
    weight_dtype: torch.dtype,
    seed: int,
) -> Inputs:
    """Normal random inputs of the sizes that training sees.

    Args:
        product: its shapes.
        batch: images.
        device: where.
        dtype: of activations.
        weight_dtype: of the shared weight and bias.
        seed: of the numbers.
    """
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, device=device, generator=generator) * scale

    shape = (batch, product.tokens, product.columns)
    if product.op == "qkv":
        shape = (3, batch, product.num_heads, product.tokens, product.head_dim)
    return Inputs(
        x=normal(batch, product.tokens, product.inner).to(dtype),
        weight=normal(*product.shared, scale=0.02).to(weight_dtype),  # 0.02: as supernets are initialised
        bias=normal(product.shared[0], scale=0.02).to(weight_dtype),
        dy=normal(*shape).to(dtype),
    )
