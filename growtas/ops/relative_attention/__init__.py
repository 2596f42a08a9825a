"""Self-attention with AutoFormer's 2-D relative position, never materialised."""

from __future__ import annotations

import functools
import warnings
from typing import Protocol

import torch
from torch import Tensor

from growtas.errors import UsageError
from growtas.ops import checks, dispatch
from growtas.ops.dispatch import Lazy, Operation
from growtas.ops.registry import matmul_flops, register
from growtas.ops.relative_attention import cpu, reference


class Backend(Protocol):
    """The steps of one language. Shapes: qkv (3, B, h, N, e), out (B, N, h * e), lse (B, h, N)."""

    def unsupported(self, head_dim: int, grid: tuple[int, int], dtype: torch.dtype) -> str:
        """Why the kernel cannot take such tensors, as a clause; empty where it can."""

    def relative_attention_forward(
        self,
        qkv: Tensor,
        key_v: Tensor,
        key_h: Tensor,
        value_v: Tensor,
        value_h: Tensor,
        grid: tuple[int, int],
    ) -> tuple[Tensor, Tensor]:
        """out and the log-sum-exp of the logits."""

    def relative_attention_backward(
        self,
        dout: Tensor,
        qkv: Tensor,
        key_v: Tensor,
        key_h: Tensor,
        value_v: Tensor,
        value_h: Tensor,
        out: Tensor,
        lse: Tensor,
        grid: tuple[int, int],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Gradients of qkv and of the four tables."""


BACKENDS: dict[str, Backend | Lazy] = {
    "torch": reference,
    "cpu": cpu,
    "triton": Lazy("growtas.kernels.relative_attention"),
}

RELATIVE_ATTENTION: Operation[Backend] = Operation("relative_attention", BACKENDS)


@functools.cache
def _notice(name: str, reason: str) -> None:
    warnings.warn(f"Relative attention runs on torch instead of {name!r}: {reason}.", stacklevel=4)


def attention_backend(qkv: Tensor, grid: tuple[int, int]) -> Backend:
    """The chosen backend; the reference, with one notice, where its kernel does not fit."""
    backend, head_dim = RELATIVE_ATTENTION(qkv, qkv.shape[-1]), qkv.shape[-1]
    reason = backend.unsupported(head_dim, grid, qkv.dtype)
    if not reason:
        return backend
    _notice(dispatch.choose("relative_attention", qkv.device, qkv.dtype, head_dim), reason)
    return reference


def relative_attention(
    qkv: Tensor, key_v: Tensor, key_h: Tensor, value_v: Tensor, value_h: Tensor, grid: tuple[int, int]
) -> Tensor:
    """Attention of a grid of patches, and a cls token or none, with relative position for keys and values.

    The logits gain ``q . (key_v[row distance] + key_h[column distance])`` and the output gains the same of
    the value tables, weighted by the attention. Distances are clamped to the tables; pairs that involve the
    cls token use row 0. The scale is ``e ** -0.5``.

    Args:
        qkv: (3, B, h, N, e), any strides; the grid row by row, after the cls token where there is one.
        key_v, key_h, value_v, value_h: (2 * m + 2, e) tables for row and column distances from -m to m; row 0
            is for cls.
        grid: rows and columns of patches; rows * columns is N - 1, or N where there is no cls token.

    Returns:
        (B, N, h * e), heads side by side.

    Raises:
        UsageError: the grid does not fit the tokens, or an argument has another shape, dtype or device.

    Source: AutoFormer (Chen et al., ICCV 2021), published code; decomposed as docs/supernet.md derives.
    """
    qkv = checks.activation("relative_attention", qkv, 5, "(3, B, h, N, e)", "qkv")
    if qkv.shape[0] != 3 or not qkv.shape[2]:
        raise UsageError(
            f"relative_attention got qkv of shape {tuple(qkv.shape)}, and takes (3, B, h, N, e) with a head "
            "or more."
        )
    rows, columns = checks.grid(grid, qkv.shape[3])
    tables = checks.tables("relative_attention", (key_v, key_h, value_v, value_h), qkv.shape[4], qkv)
    return _relative_attention(qkv, *tables, rows, columns)


def _forward(
    qkv: Tensor, key_v: Tensor, key_h: Tensor, value_v: Tensor, value_h: Tensor, rows: int, columns: int
) -> tuple[Tensor, Tensor]:
    """Saved: qkv, out and the log-sum-exp of the logits. The attention matrix is recomputed."""
    run = attention_backend(qkv, (rows, columns)).relative_attention_forward
    return run(qkv, key_v, key_h, value_v, value_h, (rows, columns))


def _backward(
    dout: Tensor,
    qkv: Tensor,
    key_v: Tensor,
    key_h: Tensor,
    value_v: Tensor,
    value_h: Tensor,
    out: Tensor,
    lse: Tensor,
    rows: int,
    columns: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    run = attention_backend(qkv, (rows, columns)).relative_attention_backward
    return run(dout, qkv, key_v, key_h, value_v, value_h, out, lse, (rows, columns))


def empty_gradient(qkv: Tensor, rows: int, columns: int) -> Tensor:
    """dqkv with the strides that the chosen backend gives it: qkv's own from the C++ and Triton kernels."""
    contiguous = attention_backend(qkv, (rows, columns)) is reference
    return qkv.new_empty(qkv.shape) if contiguous else torch.empty_like(qkv)


def _shapes(qkv, key_v, key_h, value_v, value_h, rows, columns):
    _, batch, heads, tokens, head_dim = qkv.shape
    wide = torch.promote_types(qkv.dtype, torch.float32)
    return qkv.new_empty(batch, tokens, heads * head_dim), qkv.new_empty(batch, heads, tokens, dtype=wide)


def attention_flops(qkv, rows: int, columns: int) -> int:
    """FLOPs of one pass over the logits of qkv's shape: q.k and two thin GEMMs with the tables."""
    _, batch, heads, tokens, head_dim = qkv
    return matmul_flops(batch * heads * tokens, head_dim, tokens + rows + columns + 1)


_relative_attention = register(
    "relative_attention",
    _forward,
    _backward,
    outputs=("out", "lse"),
    gradients=("qkv", "key_v", "key_h", "value_v", "value_h"),
    shapes=_shapes,
    gradient_shapes={"qkv": empty_gradient},
    flops=lambda qkv, rows, columns: 2 * attention_flops(qkv, rows, columns),
    backward_flops=lambda qkv, rows, columns: 5 * attention_flops(qkv, rows, columns),
)
