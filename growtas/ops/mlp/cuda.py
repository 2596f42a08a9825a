"""The MLP branch of a block in one launch, in CUDA C++ for Hopper (csrc/cuda/mlp_forward_sm90a.cu).

The hidden layer never leaves the chip. The backward pass computes it again: that of the cublas backend where
Triton runs, else :mod:`growtas.ops.mlp.unfused`. Where the kernel does not take a branch, the
forward pass is unfused as well.

Shapes: x (B, N, d) residual stream, M = B * N rows; weights at the full size of the supernet.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from growtas import native
from growtas.ops import dispatch
from growtas.ops.addresses import matrix, pointer, vector
from growtas.ops.mlp import unfused
from growtas.ops.mlp.weights import MLPWeights
from growtas.shadow import read

MAX_WIDTH, MAX_HIDDEN = 256, 4096  # csrc/cuda/mlp_forward.h
_GEMM_DTYPES = (torch.bfloat16, torch.float16)


def mlp_backward(
    dy: Tensor,
    x: Tensor,
    weights: MLPWeights,
    mean: Tensor,
    rstd: Tensor,
    hidden: Tensor,
    hidden_dim: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor, Tensor | None]:
    """As :mod:`growtas.ops.mlp.unfused`."""
    run = unfused.mlp_backward
    if x.is_cuda and dtype in _GEMM_DTYPES and dispatch.available("cublas").ok:
        from growtas.ops.mlp import cublas

        run = cublas.mlp_backward
    return run(dy, x, weights, mean, rstd, hidden, hidden_dim, dtype)


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
    if dtype not in _GEMM_DTYPES:
        return f"the GEMMs are in {dtype}, not in bfloat16 or float16"
    if width > MAX_WIDTH or width % 8:
        return f"the width is {width}, not a multiple of 8 up to {MAX_WIDTH}"
    return ""


def _unreadable(name: str, x: Tensor) -> str:
    """Why TMA and packs of 16 bytes cannot read a matrix in place; empty where they can."""
    step = 16 // x.element_size()
    if x.stride(1) != 1 or x.stride(0) % step or x.stride(0) < x.shape[1]:
        return f"{name} has strides {x.stride()}, not rows of a multiple of {step} elements"
    return f"{name} is not aligned to 16 bytes" if x.data_ptr() % 16 else ""


def unsupported(x: Tensor, w1: Tensor, w2: Tensor, hidden_dim: int, dtype: torch.dtype) -> str:
    """Why the kernel does not take a branch; empty where it does.

    Args:
        x: (M, d) residual stream.
        w1, w2: shared weights (m_max, D) and (D, m_max).
        hidden_dim: m.
        dtype: of the GEMMs.
    """
    if problem := _unsupported_size(x.shape[1], dtype):
        return problem
    if w1.dtype is not dtype or w2.dtype is not dtype:
        return f"the weights are {w1.dtype} and {w2.dtype}, and the GEMMs {dtype}"
    if x.dtype not in (torch.float32, dtype):
        return f"the residual stream is {x.dtype}, not float32 or {dtype}"
    if hidden_dim > MAX_HIDDEN:
        return f"the hidden layer has {hidden_dim} units, more than {MAX_HIDDEN}"
    for name, one in (("x", x), ("w1", w1), ("w2", w2)):
        if problem := _unreadable(name, one):
            return problem
    return _unsupported_here(x.device)


def mlp_keeps_hidden(width: int, dtype: torch.dtype) -> bool:
    """Return whether :func:`mlp_forward` returns the hidden layer: at sizes the kernel cannot take."""
    return bool(_unsupported_size(width, dtype) or _unsupported_here(None))


def mlp_forward(
    x: Tensor, weights: MLPWeights, hidden_dim: int, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x + scale * fc2(gelu(fc1(LayerNorm(x)))) in one launch.

    Args:
        x: (B, N, d) residual stream, float32 or ``dtype``.
        weights: at full size; the images' scale in float32.
        hidden_dim: m.
        eps: of the LayerNorm.
        dtype: of the GEMMs.

    Returns:
        y in x's shape and dtype, mean and rstd (M,), and an empty tensor: the hidden layer is not kept. It is
        returned where the kernel does not take any branch of this width and dtype.

    Raises:
        GrowtasError: the launch failed.
    """
    norm_weight, norm_bias, w1, b1, w2, b2, scale = weights
    w1, w2, (_, tokens, width) = read(w1, dtype), read(w2, dtype), x.shape
    rows = x.view(-1, width)
    if unsupported(rows, w1, w2, hidden_dim, dtype):
        y, mean, rstd, hidden = unfused.mlp_forward(x, weights, hidden_dim, eps, dtype)
        return y, mean, rstd, hidden if mlp_keeps_hidden(width, dtype) else hidden.new_empty(0)
    y, mean = torch.empty_like(x), x.new_empty(len(rows), dtype=torch.float32)
    rstd = mean.new_empty(len(rows))
    with torch.cuda.device(x.device), native.launching("mlp_forward"):
        native.load("cuda").mlp_forward(
            matrix(rows), vector(norm_weight), vector(norm_bias), eps, matrix(w1), vector(b1), matrix(w2),
            vector(b2), matrix(y.view(rows.shape)), mean.data_ptr(), rstd.data_ptr(), pointer(scale),
            (*rows.shape, hidden_dim, max(tokens, 1)), native.cuda_place(x),
        )  # fmt: skip
    return y, mean, rstd, w1.new_empty(0)
