"""A dense timm ViT of a subnet's size, without relative position: what sharing is measured against.

Same embed_dim, depth, heads, head dim, MLP widths, classes and global average pooling; timm's own layers with
their fused defaults (scaled_dot_product_attention; the norm behind the pooling, as timm has it for average
pooling). What a subnet chooses per layer is set per layer.
"""

from __future__ import annotations

import inspect

import torch.nn.functional as F
from timm.layers import Mlp
from timm.models.vision_transformer import Attention, VisionTransformer
from torch import Tensor, nn

from growtas.space import Subnet
from growtas.supernet.vit import ViTDims


class WideAttention(Attention):
    """timm's attention where heads * head_dim is not dim, for versions of timm without ``attn_head_dim``."""

    def __init__(self, dim: int, num_heads: int, head_dim: int) -> None:
        super().__init__(dim, 1, qkv_bias=True)
        self.num_heads, self.head_dim, self.scale = num_heads, head_dim, head_dim**-0.5
        self.qkv = nn.Linear(dim, 3 * num_heads * head_dim)
        self.proj = nn.Linear(num_heads * head_dim, dim)

    def forward(self, x: Tensor, *_args, **_options) -> Tensor:
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, -1))


def attention(dim: int, num_heads: int, head_dim: int) -> Attention:
    """timm's attention with heads of a given size."""
    if "attn_head_dim" in inspect.signature(Attention.__init__).parameters:
        return Attention(dim, num_heads, attn_head_dim=head_dim, qkv_bias=True)
    return WideAttention(dim, num_heads, head_dim)


def dense_vit(subnet: Subnet, dims: ViTDims, num_classes: int) -> VisionTransformer:
    """Build the dense model.

    Args:
        subnet: whose widths it takes.
        dims: of the supernet: images, patches and the size of a head.
        num_classes: outputs.
    """
    net = VisionTransformer(
        img_size=dims.image_size,
        patch_size=dims.patch_size,
        in_chans=dims.in_channels,
        num_classes=num_classes,
        global_pool="avg",
        embed_dim=subnet.embed_dim,
        depth=subnet.depth,
        num_heads=1,  # every layer's attention and MLP are put in below
        mlp_ratio=1.0,
    )
    for block, heads, hidden in zip(net.blocks, subnet.num_heads, subnet.hidden_dims, strict=True):
        block.attn = attention(subnet.embed_dim, heads, dims.head_dim)
        block.mlp = Mlp(subnet.embed_dim, hidden)
    return net
