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
_TABLES = ("key_v", "key_h", "value_v", "value_h")
BIAS_LAYOUTS = ("interleaved", "published")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def activation(op: str, x: Tensor, axes: int, shape: str, name: str = "x") -> None:
    """Refuse activations of another number of axes, without channels, or that are not floating-point.

    Args:
        op: the public operation, for the message.
        x: activations.
        axes: how many; 0 for any number.
        shape: as the message has it, such as ``(B, N, d)``.
        name: of the argument.
    """
    if (axes or x.dim() or 1) != x.dim() or not x.shape[-1]:
        raise UsageError(
            f"{op} got {name} of shape {tuple(x.shape)}, and takes {shape} with a channel or more."
        )
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


def shared(op: str, name: str, parameter: Tensor, axes: int, x: Tensor) -> torch.Size:
    """The shape of a shared parameter; refused on another device, of another dtype or number of axes."""
    shape, dtype = parameter.shape, parameter.dtype
    if len(shape) != axes:
        raise UsageError(f"{op} got {name} of shape {tuple(shape)}, and takes {axes} axes.")
    if parameter.device != x.device:
        raise UsageError(f"{op} got {name} on {parameter.device}, and the activations on {x.device}.")
    if dtype is not torch.float32 and dtype is not x.dtype:
        check_dtype(op, name, dtype, x)
    return shape


def matrix(op: str, name: str, weight: Tensor, rows: int, columns: int, x: Tensor) -> None:
    """Refuse a slice that is empty or larger than its shared weight.

    Args:
        op, name: for the message.
        weight: (N_max, K_max) shared weight.
        rows, columns: of the slice.
        x: activations.
    """
    shape = shared(op, name, weight, 2, x)
    if not (0 < rows <= shape[0] and 0 < columns <= shape[1]):
        part = "" if name == "weight" else f" of {name}"
        raise UsageError(
            f"{op} needs a ({rows}, {columns}) slice{part}, but the shared weight is {tuple(shape)}; sample "
            "a smaller subnet or build a larger supernet."
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
    shape = shared(op, name, parameter, 1, x)
    if shape[0] != length:
        raise UsageError(
            f"{op} got {name} of length {shape[0]}, and the shared weight has {length}: pass the whole "
            "vector, not a slice of it."
        )
    return parameter if parameter.is_contiguous() else parameter.contiguous()


def images_scale(op: str, scale: Tensor | None, x: Tensor) -> Tensor | None:
    """The factors of each image's branch as backends read them: dense, one per image of x (B, N, d)."""
    if scale is None:
        return None
    if scale.shape != x.shape[:1] or scale.device != x.device or scale.dtype not in _DTYPES:
        raise UsageError(
            f"{op} got scale of shape {tuple(scale.shape)} in {_name(scale.dtype)} on {scale.device}, and "
            f"takes one floating-point factor for each of the {x.shape[0]} images, on {x.device}."
        )
    wide = torch.float64 if x.dtype is torch.float64 else torch.float32
    return (scale if scale.dtype is wide else scale.to(wide)).contiguous()


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
    shape, rows = shared(op, "the qkv weight", weight, 2, x), 3 * num_heads * head_dim
    if not (0 < rows <= shape[0] and x.shape[-1] <= shape[1] and num_heads > 0):
        raise UsageError(
            f"qkv needs a ({rows}, {x.shape[-1]}) slice for {num_heads} heads of {head_dim}, but the shared "
            f"weight is {tuple(shape)}; sample a smaller subnet or build a larger supernet."
        )
    if shape[0] % 3:
        raise UsageError(
            f"{op} got a qkv weight of {shape[0]} rows, and needs a multiple of 3: q, k and v of each "
            "channel."
        )
    if layout != "interleaved":
        bias_layout(layout)
    return vector(op, "the qkv bias", bias, shape[0], x)


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
    device, dtype, first = x.device, x.dtype, given[0].shape
    for name, table in zip(_TABLES, given, strict=True):
        if table.shape != first or table.device != device or table.dtype not in (torch.float32, dtype):
            shared(op, name, table, 2, x)
    if len({table.shape for table in given}) > 1 or first[1:] != (head_dim,) or first[0] % 2 or not first[0]:
        shapes = ", ".join(f"{n} {tuple(t.shape)}" for n, t in zip(_TABLES, given, strict=True))
        raise UsageError(f"{op} got {shapes}: all tables must be (2 * m + 2, {head_dim}) for one clamp m.")
    return tuple([table if table.is_contiguous() else table.contiguous() for table in given])
