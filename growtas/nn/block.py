"""The transformer block of AutoFormer, at any number of heads and MLP width up to its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.utils.checkpoint import checkpoint

from growtas import ops
from growtas.nn.linear import PartialLayerNorm, SlicedLinear
from growtas.nn.precision import compute_dtype
from growtas.ops.attention_branch.one_call import AttentionWeights
from growtas.ops.block_stack import Layer, block_stack
from growtas.ops.mlp.weights import MLPWeights

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def altered(module: nn.Module) -> bool:
    """True if calling a module does more than its class says: it has a hook, or a ``forward`` of its own."""
    values = module.__dict__
    return "forward" in values or any([values[name] for name in _HOOKS])


class RelativeAttention(nn.Module):
    """Multi-head self-attention with 2-D relative position for keys and values, in a residual branch.

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

    def forward(
        self, x: Tensor, norm: PartialLayerNorm, num_heads: int, grid: tuple[int, int], scale: Tensor | None
    ) -> Tensor:
        """(B, N, d) to (B, N, d): x plus its attention after the norm, with the first ``num_heads`` heads."""
        return ops.attention_branch(
            x,
            (norm.weight, norm.bias),
            (self.qkv.weight, self.qkv.bias),
            (self.key_table_v, self.key_table_h, self.value_table_v, self.value_table_h),
            (self.proj.weight, self.proj.bias),
            num_heads,
            self.head_dim,
            grid,
            scale=scale,
            bias_layout=self.qkv_bias,
            eps=norm.eps,
            dtype=compute_dtype(x),
        )


class MLP(nn.Module):
    """fc1, exact GELU and fc2, in a residual branch.

    Args:
        embed_dim: D, shared width.
        hidden_dim: shared hidden width.
    """

    def __init__(self, embed_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = SlicedLinear(embed_dim, hidden_dim)
        self.fc2 = SlicedLinear(hidden_dim, embed_dim)

    def forward(self, x: Tensor, norm: PartialLayerNorm, hidden_dim: int, scale: Tensor | None) -> Tensor:
        """(B, N, d) to (B, N, d): x plus its MLP after the norm, with ``hidden_dim`` hidden channels."""
        return ops.mlp(
            x,
            (norm.weight, norm.bias),
            (self.fc1.weight, self.fc1.bias),
            (self.fc2.weight, self.fc2.bias),
            hidden_dim,
            scale=scale,
            eps=norm.eps,
            dtype=compute_dtype(x),
        )


class Block(nn.Module):
    """Pre-norm block: attention and MLP, each behind a partial LayerNorm and in a residual branch.

    Args:
        embed_dim: D, shared width.
        num_heads: H, shared heads.
        hidden_dim: shared MLP width.
        head_dim: e, channels per head.
        max_relative_position: clamp of row and column distances.
        qkv_bias: layout of the qkv bias.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        hidden_dim: int,
        head_dim: int,
        max_relative_position: int,
        qkv_bias: str,
    ) -> None:
        super().__init__()
        self.norm1 = PartialLayerNorm(embed_dim)
        self.attn = RelativeAttention(embed_dim, num_heads, head_dim, max_relative_position, qkv_bias)
        self.norm2 = PartialLayerNorm(embed_dim)
        self.mlp = MLP(embed_dim, hidden_dim)

    def forward(
        self,
        x: Tensor,
        num_heads: int,
        hidden_dim: int,
        grid: tuple[int, int],
        scales: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """The residual stream after the block.

        Args:
            x: (B, N, d).
            num_heads: h, how many heads attend.
            hidden_dim: m, hidden channels of the MLP.
            grid: rows and columns of patches.
            scales: (B,) factors of the attention and of the MLP branch (drop path), or None.

        Returns:
            (B, N, d).
        """
        attention_scale, mlp_scale = scales or (None, None)
        x = self.attn(x, self.norm1, num_heads, grid, attention_scale)
        return self.mlp(x, self.norm2, hidden_dim, mlp_scale)

    def layer(
        self, num_heads: int, hidden_dim: int, scales: tuple[Tensor, Tensor] | None = None
    ) -> Layer | None:
        """The block as :func:`.block_stack` runs it; None where more would happen than its own operations do:
        a hook, another module in place of one of its branches, or a weight that is computed.

        Args: as of :meth:`forward`.
        """
        modules = self._modules  # looked up here: a module's own look-up takes a microsecond for every tensor
        attn, mlp, norm1, norm2 = modules["attn"], modules["mlp"], modules["norm1"], modules["norm2"]
        if type(attn) is not RelativeAttention or type(mlp) is not MLP:
            return None
        for module in (self, attn, mlp):
            if altered(module):
                return None
        attention, branch = attn._modules, mlp._modules
        of_norm1, of_norm2, tables = norm1._parameters, norm2._parameters, attn._parameters
        qkv, proj = attention["qkv"]._parameters, attention["proj"]._parameters
        fc1, fc2 = branch["fc1"]._parameters, branch["fc2"]._parameters
        attention_scale, mlp_scale = scales or (None, None)
        try:
            return Layer(
                AttentionWeights(
                    of_norm1["weight"],
                    of_norm1["bias"],
                    qkv["weight"],
                    qkv["bias"],
                    tables["key_table_v"],
                    tables["key_table_h"],
                    tables["value_table_v"],
                    tables["value_table_h"],
                    proj["weight"],
                    proj["bias"],
                    attention_scale,
                ),
                MLPWeights(
                    of_norm2["weight"],
                    of_norm2["bias"],
                    fc1["weight"],
                    fc1["bias"],
                    fc2["weight"],
                    fc2["bias"],
                    mlp_scale,
                ),
                num_heads,
                hidden_dim,
                attn.head_dim,
                attn.qkv_bias,
                norm1.eps,
                norm2.eps,
            )
        except KeyError:  # a weight that is computed, as torch's parametrizations do
            return None


def run_blocks(
    x: Tensor,
    blocks: Sequence[tuple[Block, int, int, tuple[Tensor, Tensor] | None]],
    grid: tuple[int, int],
    recompute: bool = False,
) -> Tensor:
    """Run blocks one after the other; all as one operation where :func:`.block_stack` can.

    Args:
        x: (B, N, d) residual stream.
        blocks: each with its num_heads, its hidden_dim, and its scales or None, as :meth:`Block.forward`
            takes them.
        grid: rows and columns of patches.
        recompute: keep only the input of each block for the backward pass.

    Returns:
        (B, N, d).
    """

    def one_by_one() -> Tensor:
        y = x
        for block, heads, hidden, pair in blocks:
            if recompute:  # nothing in a block draws numbers
                options = {"use_reentrant": False, "preserve_rng_state": False}
                y = checkpoint(block, y, heads, hidden, grid, pair, **options)
            else:
                y = block(y, heads, hidden, grid, pair)
        return y

    if recompute or _has_any_global_hook():
        return one_by_one()
    layers = [block.layer(*sizes) if type(block) is Block else None for block, *sizes in blocks]
    if None in layers:
        return one_by_one()
    return block_stack(x, layers, grid, compute_dtype(x), one_by_one)
