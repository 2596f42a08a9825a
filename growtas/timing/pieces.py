"""The pieces of which the plain models of a space are made: by name, by example and as modules."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import timm
import torch
from torch import Tensor, nn

from growtas.architectures import GrowtasViT
from growtas.export.sizes import Model, arguments
from growtas.space import MobileNetSpace, Space
from growtas.subnet import AnySubnet, MobileNetSubnet, Subnet
from growtas.supernet import Supernet


def pieces_of(space: Space, subnet: AnySubnet) -> list[str]:
    """The pieces of a subnet in order, each by all the sizes that its latency depends on."""
    if isinstance(subnet, Subnet):
        dim = subnet.embed_dim
        layers = zip(subnet.num_heads, subnet.mlp_ratio, strict=True)
        blocks = [f"block d{dim} h{heads} m{int(dim * ratio)}" for heads, ratio in layers]
        return [f"embedding d{dim}", *blocks, f"head d{dim}"]
    size = -(-space.image_size // space.stem_stride)
    names = ["stem"]
    for block in space.blocks(subnet):
        widths = f"{block.in_width}-{block.mid_width}-{block.out_width}"
        names.append(
            f"block {widths} k{block.kernel} s{block.stride} {block.activation} se{block.squeeze_width} "
            f"at {size}"
        )
        size = -(-size // block.stride)
    return [*names, "tail"]


def covering(space: Space) -> Iterator[AnySubnet]:
    """Networks among whose pieces is every piece of the space; of one block each, where blocks are alike."""
    if isinstance(space, MobileNetSpace):
        largest = space.largest()
        for kernel, expand in product(space.kernel, space.expand):
            places = len(largest.kernel)
            yield MobileNetSubnet((kernel,) * places, (expand,) * places, largest.depth)
    else:
        for dim, heads, ratio in product(space.embed_dim, space.num_heads, space.mlp_ratio):
            yield Subnet(dim, 1, (heads,), (ratio,))


def plain_model(space: Space, num_classes: int, subnet: AnySubnet) -> Model:
    """The plain model of a subnet, with random weights."""
    with torch.device("meta"):
        net = Supernet(space, num_classes)
    return timm.create_model(f"growtas_{_family(space)}", **arguments(net, subnet)).eval()


def modules_of(model: Model) -> list[nn.Module]:
    """The pieces of a model as modules, in the order of :func:`pieces_of`: in turn, they are the model."""
    if isinstance(model, GrowtasViT):
        return [_Embedding(model), *model.blocks, _Head(model)]
    return [_Stem(model), *(block for blocks in model.stages for block in blocks), _Tail(model)]


def images(space: Space, batch: int) -> Tensor:
    """Random images."""
    draw = torch.Generator().manual_seed(0)
    return torch.randn(batch, space.in_channels, space.image_size, space.image_size, generator=draw)


def _family(space: Space) -> str:
    return "mobilenet" if isinstance(space, MobileNetSpace) else "vit"


class _Part(nn.Module):
    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model


class _Embedding(_Part):
    def forward(self, x: Tensor) -> Tensor:
        return self.model._embed(x)[0]


class _Head(_Part):
    def forward(self, x: Tensor) -> Tensor:
        return self.model.forward_head(self.model.norm(x))


class _Stem(_Part):
    def forward(self, x: Tensor) -> Tensor:
        return self.model.forward_stem(x)


class _Tail(_Part):
    def forward(self, x: Tensor) -> Tensor:
        return self.model.forward_head(self.model.forward_final(x))
