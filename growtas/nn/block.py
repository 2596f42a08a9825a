"""The transformer block of AutoFormer, at any number of heads and MLP width up to its own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from growtas import ops
from growtas.nn.linear import PartialLayerNorm, SlicedLinear
from growtas.nn.precision import compute_dtype


class RelativeAttention(nn.Module):
    """Multi-head self-attention with 2-D relative position for keys and values.

    Args:
        embed_dim: D, shared width.
        num_heads: H, shared heads.
        head_dim: e, channels per head.
        max_relative_position: clamp of row and column distances.
        qkv_bias: layout of the qkv bias, see :func:`growtas.ops.qkv`.
    """

    def __init__(
        self, embed_dim: int, num_heads: int, head_dim: int, max_relative_position: int, qkv_bias: str
    ) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.qkv_bias = qkv_bias
        self.qkv = SlicedLinear(embed_dim, 3 * num_heads * head_dim)
        self.proj = SlicedLinear(num_heads * head_dim, embed_dim)
        rows = 2 * max_relative_position + 2
        for name in ("key_table_v", "key_table_h", "value_table_v", "value_table_h"):
            self.register_parameter(name, nn.Parameter(torch.empty(rows, head_dim)))
            nn.init.trunc_normal_(getattr(self, name), std=0.02)

    def forward(self, x: Tensor, num_heads: int, grid: tuple[int, int]) -> Tensor:
        """(B, N, d) to (B, N, d), with the first ``num_heads`` heads."""
        x = x.to(compute_dtype(x))
        qkv = ops.qkv(x, self.qkv.weight, self.qkv.bias, num_heads, self.head_dim, self.qkv_bias)
        out = ops.relative_attention(
            qkv, self.key_table_v, self.key_table_h, self.value_table_v, self.value_table_h, grid
        )
        return self.proj(out, x.shape[-1])


class MLP(nn.Module):
    """fc1, exact GELU, fc2.

    Args:
        embed_dim: D, shared width.
        hidden_dim: shared hidden width.
    """

    def __init__(self, embed_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = SlicedLinear(embed_dim, hidden_dim)
        self.fc2 = SlicedLinear(hidden_dim, embed_dim)

    def forward(self, x: Tensor, hidden_dim: int) -> Tensor:
        """(B, N, d) to (B, N, d), with the first ``hidden_dim`` hidden channels."""
        return self.fc2(F.gelu(self.fc1(x, hidden_dim)), x.shape[-1])


class Block(nn.Module):
    """Pre-norm block: attention and MLP, each behind a partial LayerNorm and in a residual branch.

    Args:
        embed_dim: D, shared width.
        num_heads: H, shared heads.
        hidden_dim: shared MLP width.
        head_dim: e, channels per head.
        max_relative_position: clamp of row and column distances.
        qkv_bias: layout of the qkv bias.
        drop_path: probability of dropping a residual branch of a sample in training.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        hidden_dim: int,
        head_dim: int,
        max_relative_position: int,
        qkv_bias: str,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.norm1 = PartialLayerNorm(embed_dim)
        self.attn = RelativeAttention(embed_dim, num_heads, head_dim, max_relative_position, qkv_bias)
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = PartialLayerNorm(embed_dim)
        self.mlp = MLP(embed_dim, hidden_dim)
        self.drop_path2 = DropPath(drop_path)

    def forward(self, x: Tensor, num_heads: int, hidden_dim: int, grid: tuple[int, int]) -> Tensor:
        """(B, N, d) to (B, N, d): the residual stream after the block."""
        x = x + self.drop_path1(self.attn(self.norm1(x), num_heads, grid))
        return x + self.drop_path2(self.mlp(self.norm2(x), hidden_dim))
