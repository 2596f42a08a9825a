"""Checks of the public operations' arguments, made once; backends read what arrives without asking again.

A shared vector (a bias, a LayerNorm's scale, drop-path factors) is read and its gradient written by its
length, so a short, strided or expanded one must not get through: lengths are errors, strides are made dense.
Matrices are read in place, by their strides.
"""

from __future__ import annotations

import torch
from torch import Tensor

from growtas.errors import UsageError, nearest

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
BIAS_LAYOUTS = ("interleaved", "published")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def activation(op: str, x: Tensor, shape: str, name: str = "x") -> None:
    """Refuse activations of another number of axes, without channels, or that are not floating-point.

    Args:
        op: the public operation, for the message.
        x: activations.
        shape: as the message has it, such as ``(B, N, d)``; ``(..., k)`` takes any number of leading axes.
        name: of the argument.
    """
    axes = shape.count(",") + 1
    if (x.dim() != axes and "..." not in shape) or not x.dim() or not x.shape[-1]:
        raise UsageError(f"{op} got {name} of shape {tuple(x.shape)}, and takes {shape}, not empty.")
    if x.dtype not in _DTYPES:
        raise UsageError(
            f"{op} got {name} in {_name(x.dtype)}, and computes in float32, bfloat16, float16 or float64; "
            f"convert it, for example with {name}.float()."
        )


def check_dtype(op: str, name: str, dtype: torch.dtype, x: Tensor) -> None:
    """Refuse a dtype that is not floating-point, and float64 beside narrower activations."""
    if dtype not in _DTYPES or (dtype is torch.float64 and x.dtype is not torch.float64):
        raise UsageError(
            f"{op} got {name} in {_name(dtype)}, and activations in {_name(x.dtype)}: it takes float32, "
            "bfloat16 and float16, and float64 beside float64 activations."
        )


def shared(op: str, name: str, parameter: Tensor, axes: int, x: Tensor) -> None:
    """Refuse a shared parameter on another device than the activations, or of a wrong number of axes."""
    if parameter.dim() != axes:
        raise UsageError(f"{op} got {name} of shape {tuple(parameter.shape)}, and takes {axes} axes.")
    if parameter.device != x.device:
        raise UsageError(f"{op} got {name} on {parameter.device}, and the activations on {x.device}.")
    check_dtype(op, name, parameter.dtype, x)


def matrix(op: str, name: str, weight: Tensor, rows: int, columns: int, x: Tensor, remedy: str = "") -> None:
    """Refuse a slice that is empty or larger than its shared weight.

    Args:
        op, name: for the message.
        weight: (N_max, K_max) shared weight.
        rows, columns: of the slice.
        x: activations.
        remedy: the end of the sentence; by default, to sample a smaller subnet.
    """
    shared(op, name, weight, 2, x)
    if rows > weight.shape[0] or columns > weight.shape[1] or rows < 1 or columns < 1:
        remedy = remedy or "sample a smaller subnet or build a larger supernet"
        part = f" of {name}" if name != "weight" else ""
        raise UsageError(
            f"{op} needs a ({rows}, {columns}) slice{part}, but the shared weight is {tuple(weight.shape)}; "
            f"{remedy if rows > 0 and columns > 0 else 'a slice has a row and a column or more'}."
        )


def vector(op: str, name: str, parameter: Tensor | None, length: int, x: Tensor) -> Tensor | None:
    """A shared vector as backends read it: dense, and as long as the shared weight.

    Args:
        op, name: for the message.
        parameter: (length,) or None.
        length: of the shared weight.
        x: activations.
    """
    if parameter is None:
        return None
    shared(op, name, parameter, 1, x)
    if parameter.shape[0] != length:
        raise UsageError(
            f"{op} got {name} of length {parameter.shape[0]}, and the shared weight has {length}: pass the "
            "whole vector, not a slice of it."
        )
    return parameter.contiguous()


def images_scale(op: str, scale: Tensor | None, x: Tensor) -> Tensor | None:
    """The factors of each image's branch as backends read them: dense, one per image of x (B, N, d)."""
    if scale is None:
        return None
    if scale.shape != x.shape[:1] or scale.device != x.device or scale.dtype not in _DTYPES:
        raise UsageError(
            f"{op} got scale of shape {tuple(scale.shape)} in {_name(scale.dtype)} on {scale.device}, and "
            f"takes one floating-point factor for each of the {x.shape[0]} images, on {x.device}."
        )
    return scale.to(torch.promote_types(x.dtype, torch.float32)).contiguous()


def bias_layout(layout: str) -> None:
    """Refuse an unknown layout of the qkv bias."""
    if layout not in BIAS_LAYOUTS:
        raise UsageError(f"There is no qkv bias layout {layout!r}.{nearest(layout, BIAS_LAYOUTS)}")


def qkv(
    op: str, x: Tensor, weight: Tensor, bias: Tensor | None, num_heads: int, head_dim: int, layout: str
) -> Tensor | None:
    """Refuse heads that are not inside the shared qkv weight.

    Args:
        op: for the message.
        x: (B, N, d).
        weight, bias: (3 * e * H, D) and (3 * e * H,) or None.
        num_heads, head_dim: h and e.
        layout: of the bias.

    Returns:
        The bias, dense.
    """
    shared(op, "the qkv weight", weight, 2, x)
    rows = 3 * num_heads * head_dim
    if rows > weight.shape[0] or x.shape[-1] > weight.shape[1] or num_heads < 1 or head_dim < 1:
        raise UsageError(
            f"qkv needs a ({rows}, {x.shape[-1]}) slice for {num_heads} heads of {head_dim}, but the shared "
            f"weight is {tuple(weight.shape)}; sample a smaller subnet or build a larger supernet."
        )
    if weight.shape[0] % 3:
        raise UsageError(
            f"{op} got a qkv weight of {weight.shape[0]} rows, and needs a multiple of 3: q, k and v of "
            "every channel."
        )
    bias_layout(layout)
    return vector(op, "the qkv bias", bias, weight.shape[0], x)


def grid(grid: tuple[int, int], tokens: int) -> tuple[int, int]:
    """Refuse a grid that does not make the tokens, with or without a cls token."""
    rows, columns = grid
    if tokens - rows * columns not in (0, 1) or rows < 1 or columns < 1:
        raise UsageError(
            f"relative_attention got {tokens} tokens, but a {rows} x {columns} grid makes {rows * columns}, "
            f"or {rows * columns + 1} with a cls token."
        )
    return grid


def tables(op: str, given: tuple[Tensor, ...], head_dim: int, x: Tensor) -> tuple[Tensor, ...]:
    """The four tables of relative positions, (2 * m + 2, e) each, in dense rows."""
    first = given[0].shape
    for name, table in zip(("key_v", "key_h", "value_v", "value_h"), given, strict=True):
        shared(op, name, table, 2, x)
        if table.shape != first or first[1] != head_dim or first[0] % 2 or first[0] < 2:
            raise UsageError(
                f"{op} got {name} of shape {tuple(table.shape)}: all tables must be (2 * m + 2, {head_dim}) "
                "for one clamp m."
            )
    return tuple([table if table.stride(1) == 1 else table.contiguous() for table in given])
