"""Sliced QKV: queries, keys and values of the first h heads, from an interleaved shared weight."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from growtas.ops import checks, dispatch
from growtas.ops.dispatch import Lazy, Operation
from growtas.ops.qkv import cpu, cuda, reference
from growtas.ops.registry import matmul_flops, register


class Backend(Protocol):
    """The steps of one language. Shapes: x (B, N, d), qkv (3, B, h, N, e), weight (3 * e * H, D)."""

    def qkv_forward(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, num_heads: int, head_dim: int, bias_layout: str
    ) -> Tensor:
        """Queries, keys and values."""

    def qkv_backward_input(self, dqkv: Tensor, weight: Tensor, in_features: int) -> Tensor:
        """Gradient of x."""

    def qkv_backward_weight(
        self, dqkv: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, bias_layout: str
    ) -> tuple[Tensor, Tensor | None]:
        """Full-size gradients of the interleaved weight and of the bias."""


BACKENDS: dict[str, Backend | Lazy] = {
    "torch": reference,
    "cpu": cpu,
    "cublas": reference,  # torch's GEMMs, which read the shadows
    "triton": Lazy("growtas.kernels.qkv"),
    "cuda": cuda,
}
INTERLEAVED = ("torch", "cpu", "cublas")
"""Backends whose GEMM writes q, k and v of a channel, or of a head, side by side."""

QKV: Operation[Backend] = Operation("qkv", BACKENDS)


def qkv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    num_heads: int,
    head_dim: int,
    bias_layout: str = "interleaved",
) -> Tensor:
    """Project tokens to the queries, keys and values of the first heads, split by head.

    Row ``3 * u + i`` of the shared weight makes channel u of q (i = 0), k (1) or v (2), and head j owns the
    channels from ``j * head_dim`` on: a subnet with fewer heads uses a prefix of the rows.

    Args:
        x: (B, N, d) tokens.
        weight: (3 * head_dim * H, D) shared weight, d <= D; of x's dtype or a wider one, cast on load.
        bias: (3 * head_dim * H,) shared bias, or None.
        num_heads: h, at most H.
        head_dim: e, channels per head.
        bias_layout: ``interleaved`` (as the weight; subnets nest) or ``published`` (a contiguous prefix of
            3 * e * h entries, q then k then v, as AutoFormer's code reads its weights).

    Returns:
        (3, B, h, N, e): a view of (B, N, h, e, 3) from the torch and cpu backends, contiguous from the GPU's
        kernels. Gradients of weight and bias have the shared size, zero outside the slice.

    Raises:
        UsageError: the slice is larger than the shared weight, or the layout is unknown, or an argument has
            another shape, dtype or device.

    Source: AutoFormer's published code, setting ``change_qkv``; the bias layouts are in docs/supernet.md.
    """
    x = checks.activation("qkv", x, 3, "(B, N, d)")
    weight, bias = checks.qkv("qkv", x, weight, bias, num_heads, head_dim, bias_layout)
    return _qkv(x, weight, bias, num_heads, head_dim, bias_layout)


def empty_qkv(
    x: Tensor, width: int, num_heads: int, head_dim: int, dtype: torch.dtype | None = None
) -> Tensor:
    """A result for tokens x (B, N, d) of a (.., width) weight, with the strides its backend gives it."""
    x = x if dtype is None else x.to(dtype)
    if dispatch.choose("qkv", x.device, x.dtype, width) in INTERLEAVED:
        return reference.empty_qkv(x, num_heads, head_dim)
    return x.new_empty(3, x.shape[0], num_heads, x.shape[1], head_dim)


def readable_gradient(dqkv: Tensor, weight: Tensor) -> Tensor:
    """dqkv (3, B, h, N, e) in the memory layout that both gradients of the chosen backend read."""
    if dispatch.choose("qkv", dqkv.device, dqkv.dtype, weight.shape[1]) in INTERLEAVED:
        return reference.gradient_layout(dqkv, weight)
    return dqkv.contiguous()


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, num_heads: int, head_dim: int, bias_layout: str
) -> Tensor:
    """Saved: x. Nothing is recomputed."""
    run = QKV(x, weight.shape[1]).qkv_forward
    return run(x.contiguous(), weight, bias, num_heads, head_dim, bias_layout)


def _backward(
    dqkv: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, bias_layout: str
) -> tuple[Tensor, Tensor, Tensor | None]:
    backend, x, dqkv = QKV(x, weight.shape[1]), x.contiguous(), readable_gradient(dqkv, weight)
    dx = backend.qkv_backward_input(dqkv, weight, x.shape[-1])
    return dx, *backend.qkv_backward_weight(dqkv, x, weight, bias, bias_layout)


def _tokens(x) -> int:
    """M of a shape (B, N, d)."""
    return x[0] * x[1]


_qkv = register(
    "qkv",
    _forward,
    _backward,
    outputs=("qkv",),
    gradients=("x", "weight", "bias"),
    shapes=lambda x, weight, bias, num_heads, head_dim, bias_layout: empty_qkv(
        x, weight.shape[1], num_heads, head_dim
    ),
    flops=lambda x, num_heads, head_dim: matmul_flops(_tokens(x), x[2], 3 * num_heads * head_dim),
    backward_flops=lambda gradient, x: (
        2 * matmul_flops(_tokens(x), x[2], gradient[0] * gradient[2] * gradient[4])
    ),
)
