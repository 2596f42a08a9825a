"""Checks of shapes: matrices, slices of shared weights and norms, factors per image, gradients to add to."""

from __future__ import annotations

import torch

from growtas.errors import UsageError


def check_matrix(name: str, tensor: torch.Tensor, shape: str) -> None:
    """Refuse a tensor that is not a matrix of ``shape``."""
    if tensor.ndim != 2:
        raise UsageError(
            f"{name} has shape {tuple(tensor.shape)}, but {shape} is needed. Flatten the rows first."
        )


def check_same_shape(name: str, tensor: torch.Tensor, shape: tuple[int, ...], of: str) -> None:
    """Refuse a tensor whose shape is not the one that ``of`` needs."""
    if tuple(tensor.shape) != tuple(shape):
        raise UsageError(
            f"{name} has shape {tuple(tensor.shape)}, but {of} needs {tuple(shape)}. "
            "They must come from the same batch and the same subnet."
        )


def check_slice(weight: torch.Tensor, rows: int, cols: int) -> None:
    """Refuse a slice that is not inside its shared weight.

    Raises:
        UsageError: with the slice, the weight's size and what to do.
    """
    if not (0 < rows <= weight.shape[0] and 0 < cols <= weight.shape[1]):
        raise UsageError(
            f"A slice of {rows} x {cols} is not inside a shared weight of shape {tuple(weight.shape)}. "
            "Use a subnet of the space the supernet was built for."
        )


def check_bias(bias: torch.Tensor | None, weight: torch.Tensor) -> None:
    """Refuse a bias that does not have one entry per row of the shared weight."""
    if bias is not None and tuple(bias.shape) != (weight.shape[0],):
        raise UsageError(
            f"The bias has shape {tuple(bias.shape)}, but the shared weight has {weight.shape[0]} rows. "
            "Pass the whole bias, not a slice."
        )


def check_scale(scale: torch.Tensor | None, rows: int, tokens: int) -> None:
    """Refuse factors that are not one fp32 number per image of ``tokens`` rows."""
    if tokens < 1 or rows % tokens:
        raise UsageError(
            f"{rows} rows are no whole number of images of {tokens} tokens. Pass the batch's own."
        )
    if scale is None:
        return
    if scale.dtype is not torch.float32 or tuple(scale.shape) != (rows // tokens,):
        raise UsageError(
            f"scale has shape {tuple(scale.shape)} and dtype {str(scale.dtype).removeprefix('torch.')}, but "
            f"{rows // tokens} images need ({rows // tokens},) float32. Pass one factor per image."
        )


def check_gradients(into: tuple[torch.Tensor, torch.Tensor | None], weight: torch.Tensor, bias: bool) -> None:
    """Refuse tensors to add to that are not contiguous gradients of a shared weight and its bias."""
    dweight, dbias = into
    check_same_shape("into[0]", dweight, tuple(weight.shape), "the weight")
    if (dbias is not None) != bias:
        raise UsageError("into has a bias gradient where there is no bias, or none where there is one.")
    if dbias is not None:
        check_same_shape("into[1]", dbias, (weight.shape[0],), "the bias")
    if not dweight.is_contiguous() or (dbias is not None and not dbias.is_contiguous()):
        raise UsageError("Gradients are added to in place and must be contiguous. Pass contiguous tensors.")


def check_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> None:
    """Refuse rows that are no matrix, and parameters that are not of one length, at least theirs."""
    if x.ndim != 2:
        raise UsageError(f"x has shape {tuple(x.shape)}, but (M, d) is needed. Flatten the rows first.")
    check_norm_parameters(x.shape[1], weight, bias)


def check_norm_parameters(channels: int, weight: torch.Tensor, bias: torch.Tensor) -> None:
    """Refuse parameters that are not of one length, at least ``channels``."""
    width = weight.shape[0] if weight.ndim == 1 else 0
    if weight.ndim != 1 or bias.shape != weight.shape or not 0 < channels <= width:
        raise UsageError(
            f"LayerNorm over {channels} channels needs weight and bias of one length, at least that, "
            f"but theirs are {tuple(weight.shape)} and {tuple(bias.shape)}. Pass the shared parameters whole."
        )
