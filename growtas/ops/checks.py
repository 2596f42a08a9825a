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


def values(x: Tensor) -> Tensor:
    """The tensor, its sign applied: kernels read memory, where ``z.conj().imag`` still has the old one.

    Such a view has a gap between its elements, so dense tensors of two or more need not be asked. Compilers
    apply the sign before they look at strides.
    """
    return x if torch.compiler.is_compiling() or not x.is_neg() else x.resolve_neg()


def whole(op: str, name: str, size: int) -> None:
    """Refuse a size that is no whole number, True and False among them."""
    # int first: the compiler of torch 2.11 knows no hasattr of a dynamic size
    if isinstance(size, bool) or not (isinstance(size, int) or hasattr(size, "__index__")):
        raise UsageError(f"{op} got {name}={size!r}, and takes a whole number.")


def activation(op: str, x: Tensor, axes: int, shape: str, name: str = "x") -> Tensor:
    """Refuse activations of another number of axes, without channels, or that are not floating-point.

    Args:
        op: the public operation, for the message.
        x: activations.
        axes: how many; 0 for any number.
        shape: as the message has it, such as ``(B, N, d)``.
        name: of the argument.

    Returns:
        The activations, their sign applied.
    """
    sizes = x.shape
    if (axes or len(sizes) or 1) != len(sizes) or not sizes[-1]:
        raise UsageError(
            f"{op} got {name} of shape {tuple(x.shape)}, and takes {shape} with a channel or more."
        )
    if x.dtype not in _DTYPES:
        raise UsageError(
            f"{op} got {name} in {_name(x.dtype)}, and computes in float32, bfloat16, float16 or float64; "
            f"convert it, for example with {name}.float()."
        )
    return x if sizes[-1] > 1 and x.is_contiguous() else values(x)


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
    if not (parameter.is_cpu and x.is_cpu) and parameter.device != x.device:  # device: three times as slow
        raise UsageError(f"{op} got {name} on {parameter.device}, and the activations on {x.device}.")
    if dtype is not torch.float32 and dtype is not x.dtype:
        check_dtype(op, name, dtype, x)
    return shape


def matrix(op: str, name: str, weight: Tensor, rows: int, columns: int, x: Tensor) -> Tensor:
    """A shared weight as backends read it; refused where a slice is empty or larger than the weight.

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
    return weight if shape[1] > 1 and weight.is_contiguous() else values(weight)


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
    return parameter if length != 1 and parameter.is_contiguous() else values(parameter).contiguous()


def images_scale(op: str, scale: Tensor | None, x: Tensor) -> Tensor | None:
    """The factors of each image's branch as backends read them: dense, one per image of x (B, N, d)."""
    if scale is None:
        return None
    elsewhere = not (scale.is_cpu and x.is_cpu) and scale.device != x.device
    if scale.shape != x.shape[:1] or elsewhere or scale.dtype not in _DTYPES:
        raise UsageError(
            f"{op} got scale of shape {tuple(scale.shape)} in {_name(scale.dtype)} on {scale.device}, and "
            f"takes one floating-point factor for each of the {x.shape[0]} images, on {x.device}."
        )
    if scale.requires_grad:
        raise UsageError(
            f"{op} got a scale that requires a gradient, and gives it none: pass scale.detach(), or multiply "
            "the branch yourself."
        )
    wide = torch.float64 if x.dtype is torch.float64 else torch.float32
    scale = scale if scale.dtype is wide else scale.to(wide)
    return scale if x.shape[0] > 1 and scale.is_contiguous() else values(scale).contiguous()


def bias_layout(layout: str) -> None:
    """Refuse an unknown layout of the qkv bias."""
    if layout not in BIAS_LAYOUTS:
        raise UsageError(f"There is no qkv bias layout {layout!r}.{nearest(layout, BIAS_LAYOUTS)}")


def qkv(
    op: str, x: Tensor, weight: Tensor, bias: Tensor | None, num_heads: int, head_dim: int, layout: str
) -> tuple[Tensor, Tensor | None]:
    """The qkv weight and bias as backends read them; refused where the heads are not inside.

    Args:
        op: for the message.
        x: (B, N, d).
        weight, bias: (3 * e * H, D) and (3 * e * H,) or None.
        num_heads, head_dim: h and e.
        layout: of the bias.
    """
    for name, size in (("num_heads", num_heads), ("head_dim", head_dim)):
        if size.__class__ is not int:
            whole(op, name, size)
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
    weight = weight if shape[1] > 1 and weight.is_contiguous() else values(weight)
    return weight, vector(op, "the qkv bias", bias, shape[0], x)


def grid(grid: tuple[int, int], tokens: int) -> tuple[int, int]:
    """Refuse a grid that does not make the tokens, with or without a cls token."""
    if len(grid) != 2:
        raise UsageError(f"relative_attention got grid={grid}, and takes the rows and columns of patches.")
    rows, columns = grid
    whole("relative_attention", "rows of the grid", rows)
    whole("relative_attention", "columns of the grid", columns)
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
