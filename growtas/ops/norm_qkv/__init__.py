"""LayerNorm followed by QKV, the first half of the attention branch: fused where a kernel exists."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from growtas.ops.dispatch import Lazy, Operation
from growtas.ops.norm_qkv import unfused


class Backend(Protocol):
    """The steps of one implementation. Shapes: x (B, N, d), qkv (3, B, h, N, e), mean and rstd (B * N,)."""

    def norm_qkv_forward(
        self,
        x: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        eps: float,
        weight: Tensor,
        bias: Tensor | None,
        num_heads: int,
        head_dim: int,
        bias_layout: str,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """qkv of the normalised tokens, mean and rstd."""

    def norm_qkv_backward(
        self,
        dqkv: Tensor,
        x: Tensor,
        mean: Tensor,
        rstd: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        bias_layout: str,
        dresidual: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        """dx, with dresidual added, and the full-size gradients of the norm, the weight and the bias."""


BACKENDS: dict[str, Backend | Lazy] = {
    "torch": unfused,
    "cublas": Lazy("growtas.ops.norm_qkv.cublas"),
    "triton": Lazy("growtas.kernels.norm_qkv"),
}

NORM_QKV: Operation[Backend] = Operation("norm_qkv", BACKENDS)
