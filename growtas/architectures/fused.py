"""growtas' kernels in an extracted model, over the Parameters of its plain layers.

A fused module has a ``forward`` of its own, an attribute that hides its class's; ``unfuse`` deletes it. No
parameter moves, so state dicts, optimizers and copies know nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from growtas import ops
from growtas.errors import UsageError
from growtas.nn.precision import compute_dtype
from growtas.ops.registry import eager
from growtas.ops.shadows import refresh
from growtas.shadow import SHADOW_DTYPES, Shadows

if TYPE_CHECKING:
    from timm.layers import PatchEmbed

    from growtas.architectures.growtas_mobilenet import GrowtasMobileNet
    from growtas.architectures.growtas_vit import Block, GrowtasViT


def fuse(model: GrowtasViT | GrowtasMobileNet) -> None:
    """Let a model run growtas' kernels.

    Args:
        model: a GrowtasViT or a GrowtasMobileNet.

    Raises:
        UsageError: the model has dropout inside of its blocks, which the kernels do not have, or a layer
            was replaced.
    """
    if model.architecture == "growtas_vit":
        for block in model.blocks:
            dropouts = (block.attn.attn_drop, block.attn.proj_drop, block.mlp.drop1, block.mlp.drop2)
            if any(dropout.p for dropout in dropouts):
                raise UsageError(
                    "growtas' kernels have no dropout inside of a block; build the model with "
                    "proj_drop_rate=0 and attn_drop_rate=0, or do not fuse it."
                )
            _block_layers(block)
    for module, run in _fused(model):
        module.forward = partial(run, module)  # a bound method could not be pickled


def _fused(model: GrowtasViT | GrowtasMobileNet) -> Iterator[tuple[nn.Module, Callable[..., Tensor]]]:
    """Each module that runs otherwise, and how."""
    if model.architecture == "growtas_vit":
        yield model, _vit
        yield model.patch_embed, _patch_embed
        for block in model.blocks:
            yield block, _block
        if isinstance(model.norm, nn.LayerNorm):
            yield model.norm, _layer_norm
        if isinstance(model.head, nn.Linear):
            yield model.head, _linear
        return
    yield model.stem, _stem
    for module in model.modules():
        if type(module) is nn.Conv2d and module.kernel_size == (1, 1):
            yield module, _pointwise


def _own(layer: nn.Module, kind: type[nn.Module]) -> Any:
    """A layer whose parameters a kernel reads: nothing that others added to it would run.

    Raises:
        UsageError: it is another layer by now, or has hooks.
    """
    if type(layer) is not kind or layer._forward_hooks or layer._forward_pre_hooks:
        added = "has hooks" if type(layer) is kind else f"was replaced by {type(layer).__name__}"
        raise UsageError(
            f"A {kind.__name__} of the fused model {added}, which growtas' kernels do not call; call the "
            "model's unfuse() first."
        )
    return layer


def _block_layers(block: Block) -> tuple[Any, ...]:
    return (
        _own(block.norm1, nn.LayerNorm),
        _own(block.attn.qkv, nn.Linear),
        _own(block.attn.proj, nn.Linear),
        _own(block.norm2, nn.LayerNorm),
        _own(block.mlp.fc1, nn.Linear),
        _own(block.mlp.fc2, nn.Linear),
    )


def _block(
    self: Block, x: Tensor, attn_mask: Tensor | None = None, grid_size: tuple[int, int] | None = None
) -> Tensor:
    if attn_mask is not None:
        raise UsageError("growtas' kernels take no attention mask; call the model's unfuse() first.")
    norm1, qkv, proj, norm2, fc1, fc2 = _block_layers(self)
    attn, dtype = self.attn, compute_dtype(x)
    x = ops.attention_branch(
        x,
        (norm1.weight, norm1.bias),
        (qkv.weight, qkv.bias),
        (attn.key_table_v, attn.key_table_h, attn.value_table_v, attn.value_table_h),
        (proj.weight, proj.bias),
        attn.num_heads,
        attn.head_dim,
        grid_size or attn.grid_size,
        scale=_drop_path_scale(self.drop_path1, x),
        eps=norm1.eps,
        dtype=dtype,
    )
    return ops.mlp(
        x,
        (norm2.weight, norm2.bias),
        (fc1.weight, fc1.bias),
        (fc2.weight, fc2.bias),
        fc1.out_features,
        scale=_drop_path_scale(self.drop_path2, x),
        eps=norm2.eps,
        dtype=dtype,
    )


def _drop_path_scale(layer: nn.Module, x: Tensor) -> Tensor | None:
    """(B,) factors of a branch: 0 where an image skips it, else 1 / (1 - rate)."""
    if not (isinstance(layer, DropPath) and layer.training and layer.drop_prob):
        return None
    kept = 1 - layer.drop_prob
    scale = x.new_empty(x.shape[0], dtype=torch.float32).bernoulli_(kept)
    return scale / kept if kept else scale


_shadows: WeakKeyDictionary[nn.Module, tuple[list[Tensor], Shadows]] = WeakKeyDictionary()
"""Of each model that ran in 16 bits the weights and their shadows."""


def _vit(self: GrowtasViT, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """The model's own forward pass, after its weights were cast once for all GEMMs in 16 bits."""
    dtype = compute_dtype(x)
    if dtype in SHADOW_DTYPES and eager():
        weights, head_dims = [self.patch_embed.proj.weight, self.patch_embed.proj.bias], {}
        for block in self.blocks:
            _, qkv, proj, _, fc1, fc2 = _block_layers(block)
            head_dims |= {len(weights): block.attn.head_dim, len(weights) + 1: block.attn.head_dim}
            for layer in (qkv, proj, fc1, fc2):
                weights += [layer.weight, layer.bias]
        if isinstance(self.head, nn.Linear):
            weights += [self.head.weight, self.head.bias]
        known = _shadows.get(self)
        if known is None or [id(weight) for weight in known[0]] != [id(weight) for weight in weights]:
            known = _shadows[self] = weights, Shadows(weights, head_dims)
        refresh(known[1], dtype, self.cls_token.device)
    return type(self).forward(self, x, attn_mask)


def _patch_embed(self: PatchEmbed, x: Tensor) -> Tensor:
    proj, (height, width) = _own(self.proj, nn.Conv2d), self.patch_size
    batch, channels, *size = x.shape
    if self.strict_img_size and tuple(size) != self.img_size:
        raise UsageError(
            f"The images are {tuple(size)}, but this model takes {self.img_size}; resize them, or the model "
            "by its set_input_size."
        )
    rows, columns = size[0] // height, size[1] // width
    x = x[:, :, : rows * height, : columns * width]
    patches = x.reshape(batch, channels, rows, height, columns, width).permute(0, 2, 4, 1, 3, 5)
    patches = patches.to(compute_dtype(x), memory_format=torch.contiguous_format)
    patches = patches.reshape(batch, rows * columns, channels * height * width)
    tokens = ops.linear(patches, proj.weight.flatten(1), proj.bias, proj.out_channels)
    return tokens if self.flatten else tokens.unflatten(1, (rows, columns))


def _layer_norm(self: nn.LayerNorm, x: Tensor) -> Tensor:
    return ops.layer_norm(x, self.weight, self.bias, self.eps, out_dtype=compute_dtype(x))


def _linear(self: nn.Linear, x: Tensor) -> Tensor:
    return ops.linear(x.to(compute_dtype(x)), self.weight, self.bias, self.out_features)


def _stem(self: nn.Conv2d, x: Tensor) -> Tensor:
    """The stem's convolution, into and in the memory format of the kernels."""
    x = type(self).forward(self, x.contiguous(memory_format=torch.channels_last))
    return x.contiguous(memory_format=torch.channels_last)


def _pointwise(self: nn.Conv2d, x: Tensor) -> Tensor:
    """A 1x1 convolution as a GEMM over the pixels."""
    pixels = x.to(compute_dtype(x)).permute(0, 2, 3, 1)
    y = ops.linear(pixels, self.weight.flatten(1), self.bias, self.out_channels)
    return y.permute(0, 3, 1, 2)
