"""GELU on the CPU in C++ (csrc/cpu/gelu.cpp), for products that torch's BLAS makes."""

from __future__ import annotations

import torch
from torch import Tensor

from growtas.ops import native
from growtas.ops.reference import products


def gelu(h: Tensor) -> Tensor:
    """Exact GELU of a contiguous CPU tensor.

    Raises:
        ValueError: a dtype the kernel does not have. GrowtasError: the module was not built.
    """
    code = native.dtype_code(h, "h")
    a = torch.empty_like(h)
    native.load("cpu").gelu_forward(h.data_ptr(), a.data_ptr(), code, h.numel())
    return a


def gelu_backward_(gradient: Tensor, h: Tensor) -> Tensor:
    """Turn the gradient of ``gelu(h)``, in place, into that of h; contiguous CPU tensors of one dtype.

    Returns:
        gelu(h), which the same pass makes.

    Raises:
        ValueError: tensors that differ, or a dtype the kernel does not have. GrowtasError: not built.
    """
    code = native.dtype_code(h, "h")
    if (gradient.shape, gradient.dtype) != (h.shape, h.dtype) or not (
        gradient.is_contiguous() and h.is_contiguous()
    ):
        raise ValueError(
            f"the gradient is {tuple(gradient.shape)} {gradient.dtype}, and h {tuple(h.shape)} {h.dtype}: "
            "they must agree and be contiguous"
        )
    a = torch.empty_like(h)
    native.load("cpu").gelu_backward(gradient.data_ptr(), h.data_ptr(), a.data_ptr(), code, h.numel())
    return a


def linear_gelu_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, out_features: int
) -> tuple[Tensor, Tensor]:
    """``gelu(h)`` and ``h = x (M, k) @ weight[:n, :k].T + bias[:n]``."""
    h = products.linear_forward(x, weight, bias, out_features)
    return gelu(h), h


def linear_gelu_backward_input(
    dy: Tensor, weight: Tensor, h: Tensor, scale: Tensor | None = None, tokens: int = 1
) -> tuple[Tensor, Tensor]:
    """The gradient of ``h`` through ``scale * linear(gelu(h))``, and ``gelu(h)`` again."""
    gradient = products.linear_backward_input(dy, weight, h.shape[1], scale, tokens, h.dtype)
    a = gelu_backward_(gradient, h.contiguous())
    return gradient, a
