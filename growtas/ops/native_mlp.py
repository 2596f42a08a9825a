"""The MLP branch of a block in one launch, in CUDA C++ for Hopper (csrc/cuda/mlp_forward_sm90a.cu).

The hidden layer never leaves the chip. The backward pass computes it again: that of the cublas backend where
Triton runs, else :func:`growtas.ops.composed.mlp_backward`. Where the kernel does not take a branch, the
forward pass is composed as well.

Shapes: x (M, d) residual stream, M = B * N; weights, biases and norms at the full size of the supernet.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from growtas.ops import backend, composed, native
from growtas.ops.product_launch import check_bias, check_scale, check_weight, pointer, vector
from growtas.shadow import read

MAX_WIDTH, MAX_HIDDEN = 256, 4096  # csrc/cuda/mlp_forward.h
_PRODUCTS = (torch.bfloat16, torch.float16)


def cuda_mlp_backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    hidden: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    hidden_dim: int,
    scale: Tensor | None,
    tokens: int,
    dtype: torch.dtype,
) -> tuple[Tensor | None, ...]:
    """As :func:`growtas.ops.composed.mlp_backward`."""
    run = composed.mlp_backward
    if x.is_cuda and dtype in _PRODUCTS and backend.available("cublas").ok:
        from growtas.ops import cublas

        run = cublas.mlp_backward
    return run(
        dy, x, mean, rstd, hidden, norm_weight, norm_bias, w1, b1, w2, b2, hidden_dim, scale, tokens, dtype
    )


@functools.cache
def _unsupported_here(device: torch.device | None) -> str:
    """Why the kernel does not run on a device (None: the current one); empty where it does."""
    status = native.status("cuda")
    if not status.ok:
        return status.reason
    if not getattr(native.load("cuda"), "sm90a", False):
        return "growtas._cuda holds no code for sm_90a: build with GROWTAS_CUDA_ARCHS='80;90a'"
    if not torch.cuda.is_available():
        return "no CUDA device is visible"
    if torch.cuda.get_device_capability(device) != (9, 0):
        return f"{torch.cuda.get_device_name(device)} is not of compute capability 9.0"
    return ""


def _unsupported_size(width: int, dtype: torch.dtype) -> str:
    if dtype not in _PRODUCTS:
        return f"the products are in {dtype}, not in bfloat16 or float16"
    if width > MAX_WIDTH or width % 8:
        return f"the width is {width}, not a multiple of 8 up to {MAX_WIDTH}"
    return ""


def _unreadable(name: str, matrix: Tensor) -> str:
    """Why TMA and packs of 16 bytes cannot read a matrix in place; empty where they can."""
    step = 16 // matrix.element_size()
    if matrix.stride(1) != 1 or matrix.stride(0) % step or matrix.stride(0) < matrix.shape[1]:
        return f"{name} has strides {matrix.stride()}, not rows of a multiple of {step} elements"
    return f"{name} is not aligned to 16 bytes" if matrix.data_ptr() % 16 else ""


def unsupported(x: Tensor, w1: Tensor, w2: Tensor, hidden_dim: int, dtype: torch.dtype) -> str:
    """Why the kernel does not take a branch; empty where it does.

    Args:
        x: (M, d) residual stream.
        w1, w2: shared weights (m_max, D) and (D, m_max).
        hidden_dim: m.
        dtype: of the products.
    """
    if problem := _unsupported_size(x.shape[1], dtype):
        return problem
    if w1.dtype is not dtype or w2.dtype is not dtype:
        return f"the weights are {w1.dtype} and {w2.dtype}, and the products {dtype}"
    if x.dtype not in (torch.float32, dtype):
        return f"the residual stream is {x.dtype}, not float32 or {dtype}"
    if hidden_dim > MAX_HIDDEN:
        return f"the hidden layer has {hidden_dim} units, more than {MAX_HIDDEN}"
    for name, matrix in (("x", x), ("w1", w1), ("w2", w2)):
        if problem := _unreadable(name, matrix):
            return problem
    return _unsupported_here(x.device)


def cuda_mlp_keeps_hidden(width: int, dtype: torch.dtype) -> bool:
    """Whether :func:`cuda_mlp_forward` returns the hidden layer: where the kernel cannot run for its size."""
    return bool(_unsupported_size(width, dtype) or _unsupported_here(None))


def cuda_mlp_forward(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    hidden_dim: int,
    scale: Tensor | None,
    tokens: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x + scale * fc2(gelu(fc1(LayerNorm(x)))) for rows x (M, d).

    Args:
        x: (M, d) residual stream, float32 or ``dtype``.
        norm_weight, norm_bias: (D,) of the LayerNorm.
        eps: of the LayerNorm.
        w1, b1: (m_max, D) and (m_max,) or None.
        w2, b2: (D, m_max) and (D,) or None.
        hidden_dim: m.
        scale: (B,) float32, of image row // tokens, or None for 1.
        tokens: rows of an image.
        dtype: of the products.

    Returns:
        y (M, d) in x's dtype, mean and rstd (M,), and an empty tensor: the hidden layer is not kept. It is
        returned where the kernel does not take any branch of this width and dtype.

    Raises:
        UsageError: a slice outside its weight, a wrong shape. GrowtasError: the launch failed.
    """
    w1, w2 = read(w1, dtype), read(w2, dtype)
    if unsupported(x, w1, w2, hidden_dim, dtype):
        y, mean, rstd, hidden = composed.mlp_forward(
            x, norm_weight, norm_bias, eps, w1, b1, w2, b2, hidden_dim, scale, tokens, dtype
        )
        keeps = cuda_mlp_keeps_hidden(x.shape[1], dtype)
        return y, mean, rstd, hidden if keeps else hidden.new_empty(0)
    _check(x, norm_weight, norm_bias, w1, b1, w2, b2, hidden_dim, scale, tokens)
    rows, width = x.shape
    y = x.new_empty((rows, width))
    mean = x.new_empty(rows, dtype=torch.float32)
    rstd = mean.new_empty(rows)
    with torch.cuda.device(x.device), native._launching("mlp_forward"):
        native.load("cuda").mlp_forward(
            native._matrix(x), vector(norm_weight), vector(norm_bias), eps, native._matrix(w1), vector(b1),
            native._matrix(w2), vector(b2), native._matrix(y), mean.data_ptr(), rstd.data_ptr(),
            pointer(scale), (rows, width, hidden_dim, tokens), native._cuda_place(x),
        )  # fmt: skip
    return y, mean, rstd, w1.new_empty(0)


def _check(x, norm_weight, norm_bias, w1, b1, w2, b2, hidden_dim, scale, tokens) -> None:
    width = x.shape[1]
    for name, p in (("norm_weight", norm_weight), ("norm_bias", norm_bias)):
        native._check_parameter(p, name, width, x.device)
    for weight, bias, slice_ in ((w1, b1, (hidden_dim, width)), (w2, b2, (width, hidden_dim))):
        check_weight(weight, *slice_, x, weight.dtype)
        check_bias(bias, weight)
    check_scale(scale, tokens, x)
