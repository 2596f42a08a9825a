"""A supernet at full width with masks, for torch.compile: what elastic networks do who want a fixed graph.

Every layer computes its largest width; channels, heads, hidden units and whole blocks that a subnet lacks are
multiplied by zero (Flextron and others do so). The architecture comes as tensors of ones and zeros, so that
nothing recompiles, at the price of the largest subnet's arithmetic in every step. LayerNorm takes mean and
variance over the active channels. Attention is torch's fused one, *without* relative position, as the dense
rival in common/dense_vit.py has none either; the norm stands behind the pooling as there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from growtas.space import Subnet
from growtas.supernet.vit import ViTDims

EPS = 1e-6  # as in timm
Masks = tuple[Tensor, Tensor, Tensor, Tensor]


def masks_of(subnet: Subnet, dims: ViTDims, device: torch.device) -> Masks:
    """The part that a subnet uses of the largest network, as ones among zeros.

    Args:
        subnet: the architecture.
        dims: of the supernet.
        device: where.

    Returns:
        (D,) channels; (L, H * e) columns of the heads; (L, M) hidden units; (L,) blocks.
    """

    def ones(used: Sequence[int], size: int) -> Tensor:
        used = torch.tensor([*used, *[0] * (dims.depth - len(used))])
        return (torch.arange(size) < used[:, None]).float().to(device)

    channels = (torch.arange(dims.embed_dim) < subnet.embed_dim).float().to(device)
    heads = ones([heads * dims.head_dim for heads in subnet.num_heads], dims.num_heads[0] * dims.head_dim)
    hidden = ones(subnet.hidden_dims, dims.hidden_dims[0])
    return channels, heads, hidden, (torch.arange(dims.depth) < subnet.depth).float().to(device)


class MaskedLayerNorm(nn.LayerNorm):
    """LayerNorm over the active channels; the others are zero before it and after it."""

    def forward(self, x: Tensor, channels: Tensor) -> Tensor:
        x, count = x.float(), channels.sum()
        mean = (x * channels).sum(-1, keepdim=True) / count
        centred = (x - mean) * channels
        variance = centred.square().sum(-1, keepdim=True) / count
        return (centred * torch.rsqrt(variance + self.eps) * self.weight + self.bias) * channels


class MaskedBlock(nn.Module):
    """Pre-norm block of the largest size."""

    def __init__(self, dims: ViTDims) -> None:
        super().__init__()
        d, width = dims.embed_dim, dims.num_heads[0] * dims.head_dim
        self.heads, self.head_dim = dims.num_heads[0], dims.head_dim
        self.norm1, self.norm2 = MaskedLayerNorm(d, EPS), MaskedLayerNorm(d, EPS)
        self.qkv, self.proj = nn.Linear(d, 3 * width), nn.Linear(width, d)
        self.fc1, self.fc2 = nn.Linear(d, dims.hidden_dims[0]), nn.Linear(dims.hidden_dims[0], d)

    def forward(self, x: Tensor, channels: Tensor, heads: Tensor, hidden: Tensor, used: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        qkv = self.qkv(self.norm1(x, channels)).view(batch, tokens, 3, self.heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2) * heads
        x = x + self.proj(attended) * (channels * used)
        units = F.gelu(self.fc1(self.norm2(x, channels))) * hidden
        return x + self.fc2(units) * (channels * used)


class MaskedViT(nn.Module):
    """The largest network of a space; a subnet is chosen by masks.

    Args:
        dims: of the supernet.
        num_classes: outputs.
    """

    def __init__(self, dims: ViTDims, num_classes: int) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(dims.in_channels, dims.embed_dim, dims.patch_size, dims.patch_size)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, dims.embed_dim))
        tokens = dims.grid[0] * dims.grid[1] + 1
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, tokens, dims.embed_dim))
        self.blocks = nn.ModuleList(MaskedBlock(dims) for _ in range(dims.depth))
        self.norm = MaskedLayerNorm(dims.embed_dim, EPS)
        self.head = nn.Linear(dims.embed_dim, num_classes)

    def forward(self, images: Tensor, masks: Masks) -> Tensor:
        """(B, C, S, S) images to (B, classes) logits of the subnet that the masks say."""
        channels, heads, hidden, used = masks
        patches = self.patch_embed(images).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(len(images), -1, -1).to(patches.dtype), patches), 1)
        x = (x + self.pos_embed) * channels
        for index, block in enumerate(self.blocks):
            x = block(x, channels, heads[index], hidden[index], used[index])
        return self.head(self.norm(x[:, 1:].mean(1), channels))
