"""Put the weights of a plain vision transformer (timm's, DeiT's) into a supernet."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from growtas.errors import UsageError
from growtas.ops.qkv.reference import qkv_bias_rows, qkv_rows
from growtas.space import Subnet
from growtas.supernet import weights as foreign
from growtas.supernet.vit import VisionTransformer

PLAIN_NORM_EPS = 1e-6  # of every ViT and DeiT in timm and in DeiT's own code
_PLAIN = re.compile(
    r"cls_token|pos_embed|patch_embed\.proj\.(weight|bias)|norm\.(weight|bias)|head\.(weight|bias)"
    r"|blocks\.[0-9]{1,4}\.((norm[12]|attn\.qkv|attn\.proj|mlp\.fc[12])\.(weight|bias)|ls[12]\.gamma)"
)
_NEEDED = {
    "cls_token": 3,
    "pos_embed": 3,
    "patch_embed.proj.weight": 4,
    "norm.weight": 1,
    "blocks.0.attn.qkv.weight": 2,
    "blocks.0.mlp.fc1.weight": 2,
}
"""Tensors that tell the sizes of a ViT, with their dimensions."""
_OPTIONAL = ("attn.qkv.bias", "attn.proj.bias", "mlp.fc1.bias", "mlp.fc2.bias", "ls1.gamma", "ls2.gamma")
"""Tensors that a ViT may have in all of its blocks or in none."""


@dataclass(frozen=True)
class PlainViT:
    """A pretrained vision transformer.

    Args:
        name: as the user wrote it, for sentences.
        weights: under timm's names.
        head_dim: channels per head; the supernet's where None (weights alone do not tell it).
        global_pool: ``token`` or ``avg`` (the mean of the patch tokens behind the last norm).
        norm_eps: epsilon of its LayerNorms.
        mean, std: of its images' channels; as the supernet's images are normalised where None.
    """

    name: str
    weights: Mapping[str, Tensor]
    head_dim: int | None = None
    global_pool: str = "token"
    norm_eps: float = PLAIN_NORM_EPS
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __repr__(self) -> str:
        return f"PlainViT({self.name!r}: {len(self.weights)} tensors, {self.global_pool} pooling)"


def load_vit(
    net: VisionTransformer,
    source: PlainViT,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> tuple[Subnet, list[str]]:
    """Put a plain ViT into the leading box of a supernet: one subnet then computes its logits.

    Positions are resampled to the supernet's grid, relative tables set to zero, layer scales folded into the
    layers before them and the normalisation of the images into the patch embedding. The head stays as it is
    where the numbers of classes differ. Weights beyond the ViT's sizes stay as they are.

    Args:
        net: the supernet, with the ViT's ``global_pool`` and ``norm_eps``.
        source: the ViT.
        mean, std: how the supernet's images are normalised, per channel.

    Returns:
        The subnet of the ViT's sizes, and sentences on what could not be taken over as it was.

    Raises:
        UsageError: it is no plain ViT, or the space has no subnet of its sizes; the net is unchanged.
    """
    weights = foreign.unwrapped(source.weights, source.name)
    _check_names(source, weights)
    subnet = _subnet_of(net, source, weights)
    weights = _plain_weights(source, weights, subnet)
    remarks: list[str] = []
    dim, dims = subnet.embed_dim, net.dims
    patches, bias = _patches(net, source, weights, mean, std)
    new = {
        "cls_token": weights["cls_token"],
        "pos_embed": _positions(weights["pos_embed"], dims.grid, source, remarks),
        "patch_embed.proj.weight": patches,
        "patch_embed.proj.bias": bias,
        "norm.weight": weights["norm.weight"],
        "norm.bias": weights["norm.bias"],
    }
    for layer in range(subnet.depth):
        for name in ("norm1", "norm2", "attn.proj", "mlp.fc1", "mlp.fc2"):
            for kind in ("weight", "bias"):
                new[f"blocks.{layer}.{name}.{kind}"] = weights[f"blocks.{layer}.{name}.{kind}"]
    classes = len(weights["head.bias"]) if "head.bias" in weights else 0
    if classes == net.num_classes:
        new |= {name: weights[name] for name in ("head.weight", "head.bias")}
    else:
        remarks.append(
            f"The head begins with random weights: {source.name} has {classes:,} classes, this run "
            f"{net.num_classes:,}."
        )
    own = net.state_dict()
    with torch.no_grad():
        for name, value in new.items():
            own[name][tuple(slice(size) for size in value.shape)].copy_(value)
        for name, value in own.items():
            if "_table_" in name:
                value.zero_()
        for layer, heads in enumerate(subnet.num_heads):
            prefix = f"blocks.{layer}.attn.qkv"
            for part in range(3):
                rows = slice(part * heads * dims.head_dim, (part + 1) * heads * dims.head_dim)
                target = qkv_rows(own[f"{prefix}.weight"], heads, dims.head_dim, part)
                target[:, :dim].copy_(weights[f"{prefix}.weight"][rows])
                target = qkv_bias_rows(own[f"{prefix}.bias"], heads, dims.head_dim, part, net.qkv_bias)
                target.copy_(weights[f"{prefix}.bias"][rows])
    return subnet, remarks


def _check_names(source: PlainViT, weights: Mapping[str, Tensor]) -> None:
    """Raises: UsageError: it is no plain ViT, by its names and by the dimensions that tell its sizes."""
    unknown = sorted(name for name in weights if not _PLAIN.fullmatch(name))
    missing = sorted(set(_NEEDED) - set(weights))
    if unknown or missing:
        problem = f"has {foreign.some(unknown)}" if unknown else f"lacks {foreign.some(missing)}"
        raise UsageError(
            f"{source.name} is no plain vision transformer of timm or DeiT: it {problem}. One with a cls "
            "token, learned positions and a norm before the head is needed, such as "
            "timm:deit_tiny_patch16_224."
        )
    for name, dimensions in _NEEDED.items():
        if weights[name].ndim != dimensions or not weights[name].numel():
            raise UsageError(
                f"{name} of {source.name} is {tuple(weights[name].shape)}, and that of a plain vision "
                f"transformer has {dimensions} dimensions and is not empty."
            )


def _plain_weights(source: PlainViT, weights: Mapping[str, Tensor], subnet: Subnet) -> dict[str, Tensor]:
    """The weights in fp32, layer scales folded in, biases complete.

    Raises: UsageError: a tensor is missing, has another shape than the ViT's sizes say, or is not finite.
    """
    shapes = _shapes(weights, subnet)
    missing = sorted(set(shapes) - set(weights))
    unknown = sorted(set(weights) - set(shapes))
    if missing or unknown:
        problem = f"lacks {foreign.some(missing)}" if missing else f"has {foreign.some(unknown)} besides"
        raise UsageError(f"The weights of {source.name} are not complete: it {problem}.")
    for name, shape in shapes.items():
        if tuple(weights[name].shape) != shape:
            raise UsageError(
                f"{name} of {source.name} is {tuple(weights[name].shape)}, and {shape} by the sizes of its "
                "other weights."
            )
        foreign.check_numbers(name, weights[name], torch.float32, source.name)
    weights = {name: value.float() for name, value in weights.items()}
    for name in [name for name in weights if name.endswith(".gamma")]:
        gamma = weights.pop(name)
        before = name.replace(".ls1.gamma", ".attn.proj").replace(".ls2.gamma", ".mlp.fc2")
        weights[f"{before}.weight"] = weights[f"{before}.weight"] * gamma[:, None]
        if f"{before}.bias" in weights:
            weights[f"{before}.bias"] = weights[f"{before}.bias"] * gamma
    for name in [name for name in weights if name.endswith(".weight")]:
        weights.setdefault(name.replace(".weight", ".bias"), torch.zeros(len(weights[name])))
    return weights


def _shapes(weights: Mapping[str, Tensor], subnet: Subnet) -> dict[str, tuple[int, ...]]:
    """The name and shape of every tensor of a ViT, from those that tell its sizes."""
    dim, patches = subnet.embed_dim, tuple(weights["patch_embed.proj.weight"].shape)
    inner = len(weights["blocks.0.attn.qkv.weight"]) // 3
    hidden = len(weights["blocks.0.mlp.fc1.weight"])
    shapes = {
        "cls_token": (1, 1, dim),
        "pos_embed": (1, weights["pos_embed"].shape[1], dim),
        "patch_embed.proj.weight": (dim, patches[1], patches[3], patches[3]),
        "patch_embed.proj.bias": (dim,),
        "norm.weight": (dim,),
        "norm.bias": (dim,),
    }
    if any(name.startswith("head.") for name in weights):
        classes = len(weights["head.weight"]) if weights.get("head.weight", torch.empty(())).ndim else 0
        shapes |= {"head.weight": (classes, dim), "head.bias": (classes,)}
    of_block = {
        "norm1.weight": (dim,),
        "norm1.bias": (dim,),
        "attn.qkv.weight": (3 * inner, dim),
        "attn.qkv.bias": (3 * inner,),
        "attn.proj.weight": (dim, inner),
        "attn.proj.bias": (dim,),
        "norm2.weight": (dim,),
        "norm2.bias": (dim,),
        "mlp.fc1.weight": (hidden, dim),
        "mlp.fc1.bias": (hidden,),
        "mlp.fc2.weight": (dim, hidden),
        "mlp.fc2.bias": (dim,),
        "ls1.gamma": (dim,),
        "ls2.gamma": (dim,),
    }
    present = {name.split(".", 2)[2] for name in weights if name.startswith("blocks.")}
    for layer in range(subnet.depth):
        for name, shape in of_block.items():
            if name not in _OPTIONAL or name in present:
                shapes[f"blocks.{layer}.{name}"] = shape
    return shapes


def _subnet_of(net: VisionTransformer, source: PlainViT, weights: Mapping[str, Tensor]) -> Subnet:
    """The subnet of a ViT's sizes. Raises: UsageError: the space has none; every size that does not fit."""
    space = net.space
    dim, head_dim = weights["cls_token"].shape[-1], source.head_dim or net.dims.head_dim
    depth = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("blocks."))
    heads, rest = divmod(len(weights["blocks.0.attn.qkv.weight"]), 3 * head_dim)
    hidden, patch = len(weights["blocks.0.mlp.fc1.weight"]), weights["patch_embed.proj.weight"].shape
    ratio = next((r for r in space.mlp_ratio if int(dim * r) == hidden), None)
    wrong = []
    for name, value, allowed in (
        ("embed_dim", dim, space.embed_dim),
        ("depth", depth, space.depth),
        ("num_heads", heads, space.num_heads),
        ("head_dim", head_dim, (net.dims.head_dim,)),
        ("patch_size", patch[-1], (net.dims.patch_size,)),
    ):
        if value not in allowed or name == "num_heads" and rest:
            wrong.append(f"{name} is {value} and may be {_values(allowed)}")
    if ratio is None:
        wrong.append(f"mlp_ratio is {hidden / dim:g} and may be {_values(space.mlp_ratio)}")
    if net.dims.in_channels not in (1, patch[1]):
        wrong.append(f"in_channels is {patch[1]} and may be {net.dims.in_channels}")
    if wrong:
        raise UsageError(
            f"{source.name} does not fit into space {space.name!r}: {'; '.join(wrong)}. Choose a model of "
            "sizes that the space has, or a space that has the model's."
        )
    return Subnet(dim, depth, (heads,) * depth, (ratio,) * depth)


def _positions(positions: Tensor, grid: tuple[int, int], source: PlainViT, remarks: list[str]) -> Tensor:
    count = positions.shape[1]
    if math.isqrt(count) ** 2 == count:  # patches alone have positions
        positions = torch.cat((torch.zeros_like(positions[:, :1]), positions), 1)
    elif math.isqrt(count - 1) ** 2 != count - 1:
        raise UsageError(
            f"{source.name} has {count} positions, which is not those of a square image and a cls token."
        )
    side = math.isqrt(positions.shape[1] - 1)
    if (side, side) != grid:
        remarks.append(
            f"The positions of {source.name} are resampled from {side} x {side} patches to "
            f"{grid[0]} x {grid[1]}."
        )
    return resample_abs_pos_embed(positions, new_size=list(grid), num_prefix_tokens=1)


def _patches(
    net: VisionTransformer,
    source: PlainViT,
    weights: Mapping[str, Tensor],
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> tuple[Tensor, Tensor]:
    """Weight and bias of the patch embedding, for the supernet's channels and normalisation."""
    weight, bias = weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"]
    if None not in (mean, std, source.mean, source.std):
        ours, theirs = (
            torch.tensor([m, s], dtype=torch.float64) for m, s in ((mean, std), (source.mean, source.std))
        )
        if not torch.equal(ours.expand_as(theirs), theirs):
            shift = (ours[0] - theirs[0]) / theirs[1]
            double = weight.double()
            bias = (bias.double() + (double * shift.view(-1, 1, 1)).sum((1, 2, 3))).float()
            weight = (double * (ours[1] / theirs[1]).view(-1, 1, 1)).float()
    if net.dims.in_channels == 1 != weight.shape[1]:
        weight = weight.sum(1, keepdim=True)  # what a grey image in every channel gives
    return weight, bias


def _values(values: Sequence[float]) -> str:
    return " or ".join(", ".join(f"{value:g}" for value in values).rsplit(", ", 1))
