"""The published AutoFormer as a network, in our own words: the baseline of train_step.py.

It computes what a Supernet with ``qkv_bias="published"`` computes and takes the same state dict. It does so
as the released code does (microsoft/Cream, AutoFormer, settings ``change_qkv``, ``gp``, relative position):

- Every step cuts each sampled weight out of the shared one by indexing, columns first, then rows; qkv takes
  every third row three times and concatenates. Autograd runs each cut backwards into a tensor of full size.
- The result of every linear layer is multiplied by its ``scale``, which is 1: a pass over the activations.
- Both relative positions build their index matrices and a (N, N, e) tensor in every layer of every forward
  pass; the key term is multiplied with it query by query, the value term likewise.
- Attention is products and a softmax, and keeps its (B, h, N, N) matrices for the backward pass.
- GELU runs on an fp32 copy, LayerNorm and residual additions on their own.

Left out, since they do nothing at the published rates of 0: dropout. Drop-path is left out of every rival.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import published
from growtas.space import Subnet
from growtas.supernet.vit import VisionTransformer


class SlicedLinear(nn.Linear):
    """A shared linear layer; qkv gathers its rows, the others take a prefix."""

    def forward(self, x: Tensor, out_features: int) -> Tensor:
        scale = 1  # the factor of setting ``scale``, which is always off; the product is still made
        return published.linear(x, self.weight, self.bias, out_features) * scale


class SlicedQKV(nn.Linear):
    """Queries, keys and values in one product with a concatenated copy of the weight."""

    def forward(self, x: Tensor, num_heads: int, head_dim: int) -> Tensor:
        scale = 1
        rows = 3 * num_heads * head_dim
        weight = published.gather_qkv(self.weight, x.shape[-1], rows)
        return F.linear(x, weight, self.bias[:rows]) * scale


class SlicedLayerNorm(nn.LayerNorm):
    """LayerNorm with prefixes of the shared scale and shift."""

    def forward(self, x: Tensor) -> Tensor:
        width = x.shape[-1]
        return F.layer_norm(x, (width,), self.weight[:width], self.bias[:width], self.eps)


def relative_embedding(table_v: Tensor, table_h: Tensor, tokens: int) -> Tensor:
    """(N, N, e): the row table's entry plus the column table's, for every pair of tokens.

    Args:
        table_v, table_h: (2 * m + 2, e).
        tokens: N, a square of patches and one cls token, whose pairs take entry 0.
    """
    patches, clamp = tokens - 1, table_v.shape[0] // 2 - 1
    side = int(patches**0.5)
    place = torch.arange(patches, device=table_v.device)
    found = []
    for coordinate in (place // side, place % side):
        distance = coordinate[None, :] - coordinate[:, None]
        entry = torch.clamp(distance, -clamp, clamp) + clamp + 1
        found.append(F.pad(entry, (1, 0, 1, 0), "constant", 0).long())
    return table_v[found[0]] + table_h[found[1]]


class Attention(nn.Module):
    """Attention with relative position for keys and values, everything materialised."""

    def __init__(self, embed_dim: int, num_heads: int, head_dim: int, max_relative_position: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.qkv = SlicedQKV(embed_dim, 3 * num_heads * head_dim)
        self.proj = SlicedLinear(num_heads * head_dim, embed_dim)
        rows = 2 * max_relative_position + 2
        for name in ("key_table_v", "key_table_h", "value_table_v", "value_table_h"):
            self.register_parameter(name, nn.Parameter(torch.zeros(rows, head_dim)))

    def forward(self, x: Tensor, num_heads: int) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x, num_heads, self.head_dim)
        qkv = qkv.reshape(batch, tokens, 3, num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        scale = self.head_dim**-0.5

        logits = (q @ k.transpose(-2, -1)) * scale
        keys = relative_embedding(self.key_table_v, self.key_table_h, tokens)
        by_query = q.permute(2, 0, 1, 3).reshape(tokens, num_heads * batch, -1)
        term = (by_query @ keys.transpose(2, 1)).transpose(1, 0)
        logits = logits + term.reshape(batch, num_heads, tokens, tokens) * scale
        attention = logits.softmax(dim=-1)

        out = (attention @ v).transpose(1, 2).reshape(batch, tokens, -1)
        values = relative_embedding(self.value_table_v, self.value_table_h, tokens)
        by_query = attention.permute(2, 0, 1, 3).reshape(tokens, batch * num_heads, -1)
        term = (by_query @ values).transpose(1, 0).reshape(batch, num_heads, tokens, -1)
        out = out + term.transpose(2, 1).reshape(batch, tokens, -1)
        return self.proj(out, width)


class MLP(nn.Module):
    """fc1, exact GELU on an fp32 copy, fc2."""

    def __init__(self, embed_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = SlicedLinear(embed_dim, hidden_dim)
        self.fc2 = SlicedLinear(hidden_dim, embed_dim)

    def forward(self, x: Tensor, hidden_dim: int) -> Tensor:
        hidden = self.fc1(x, hidden_dim)
        return self.fc2(F.gelu(hidden.float()).type_as(hidden), x.shape[-1])


class Block(nn.Module):
    """Pre-norm block."""

    def __init__(
        self, embed_dim: int, num_heads: int, hidden_dim: int, head_dim: int, max_relative_position: int
    ) -> None:
        super().__init__()
        self.norm1 = SlicedLayerNorm(embed_dim)
        self.attn = Attention(embed_dim, num_heads, head_dim, max_relative_position)
        self.norm2 = SlicedLayerNorm(embed_dim)
        self.mlp = MLP(embed_dim, hidden_dim)

    def forward(self, x: Tensor, num_heads: int, hidden_dim: int) -> Tensor:
        x = x + self.attn(self.norm1(x), num_heads)
        return x + self.mlp(self.norm2(x), hidden_dim)


class PublishedViT(nn.Module):
    """A supernet as published; load the state dict of a growtas Supernet into it.

    Args:
        like: the Supernet whose sizes it has. Where that has ``qkv_bias="published"``, the logits are equal.
    """

    def __init__(self, like: VisionTransformer) -> None:
        super().__init__()
        dims = like.dims
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(dims.in_channels, dims.embed_dim, dims.patch_size, dims.patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dims.embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros_like(like.pos_embed))
        self.blocks = nn.ModuleList(
            Block(dims.embed_dim, heads, hidden, dims.head_dim, dims.max_relative_position)
            for heads, hidden in zip(dims.num_heads, dims.hidden_dims, strict=True)
        )
        self.norm = SlicedLayerNorm(dims.embed_dim)
        self.head = SlicedLinear(dims.embed_dim, like.num_classes)
        self.num_classes = like.num_classes

    def forward(self, images: Tensor, subnet: Subnet) -> Tensor:
        """(B, C, S, S) images to (B, classes) logits of a subnet."""
        width = subnet.embed_dim
        stem = self.patch_embed.proj
        x = F.conv2d(images, stem.weight[:width], stem.bias[:width], stride=stem.stride)
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token[..., :width].expand(len(images), -1, -1), x), dim=1)
        x = x + self.pos_embed[..., :width]
        for block, heads, hidden in zip(self.blocks, subnet.num_heads, subnet.hidden_dims, strict=False):
            x = block(x, heads, hidden)
        x = torch.mean(self.norm(x)[:, 1:], dim=1)
        return self.head(x, self.num_classes)
