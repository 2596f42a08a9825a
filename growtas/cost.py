"""Exact parameters and multiply-accumulates of a subnet, and AutoFormer's published figure. No torch.

The functions take subnets and spaces of either family; :mod:`growtas.spaces.mobilenet_cost` says what is
counted in a MobileNetV3 network.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from growtas.errors import UsageError
from growtas.space import MobileNetSpace, SearchSpace, Space
from growtas.spaces import mobilenet_cost
from growtas.subnet import AnySubnet, Subnet


def parameters(subnet: AnySubnet, space: Space, num_classes: int = 1000) -> int:
    """The exact number of parameters of a subnet, relative-position tables and head included.

    Args:
        subnet: the architecture.
        space: gives the sizes that the subnet does not choose.
        num_classes: outputs of the head.

    Returns:
        Parameters of the extracted model; equals the published counts of AutoFormer, PreNAS and OFA.
    """
    if isinstance(space, MobileNetSpace):
        return mobilenet_cost.parameters(subnet, space, num_classes)
    d, head_dim = subnet.embed_dim, space.head_dim
    patch_inputs = space.in_channels * space.patch_size**2
    total = (patch_inputs + 1) * d + (space.num_tokens + 1) * d + 2 * d + num_classes * (d + 1)
    tables = 4 * (2 * space.max_relative_position + 2) * head_dim
    for heads, hidden in zip(subnet.num_heads, subnet.hidden_dims, strict=True):
        q = heads * head_dim
        total += 3 * q * (d + 1) + d * (q + 1) + 4 * d + hidden * (d + 1) + d * (hidden + 1) + tables
    return total


def macs(
    subnet: AnySubnet,
    space: Space,
    num_classes: int = 1000,
    image_size: int | tuple[int, int] | None = None,
) -> int:
    """Multiply-accumulates of one image's forward pass, matmuls and convolutions only.

    In a vision transformer the two relative-position matmuls are counted dense, (N, N, head_dim) each per
    head, as the published architecture defines them; growtas computes them with far fewer.

    Args:
        subnet: the architecture.
        space: gives the sizes that the subnet does not choose.
        num_classes: outputs of the head.
        image_size: pixels of the square image, or its height and width; the space's where None.

    Raises:
        UsageError: the image size is no multiple of a vision transformer's patch size.
    """
    if isinstance(space, MobileNetSpace):
        return mobilenet_cost.macs(subnet, space, num_classes, image_size)
    sides = image_size if isinstance(image_size, tuple) else (image_size or space.image_size,) * 2
    for side in sides if image_size is not None else ():
        dataclasses.replace(space, image_size=side)  # which checks it
    patches, d = sides[0] * sides[1] // space.patch_size**2, subnet.embed_dim
    n = patches + 1
    total = patches * space.in_channels * space.patch_size**2 * d + d * num_classes
    for heads, hidden in zip(subnet.num_heads, subnet.hidden_dims, strict=True):
        q = heads * space.head_dim
        total += 4 * n * d * q + 4 * n * n * q + 2 * n * d * hidden
    return total


def published_flops(subnet: Subnet, space: SearchSpace, num_classes: int = 1000) -> float:
    """The complexity figure of the published AutoFormer code, its errors included.

    It counts multiply-accumulates with one token too many, half-weighted biases and a head applied to every
    token. Use it to compare with published tables; :func:`macs` is the exact count.

    Args:
        subnet: the architecture.
        space: gives token, patch and head sizes.
        num_classes: outputs of the head.

    Raises:
        UsageError: the space is not one of vision transformers.
    """
    if not isinstance(space, SearchSpace):
        raise UsageError(
            f"Space {space.name!r} is not one of AutoFormer's; growtas.cost.macs is the exact count."
        )
    d, tokens = subnet.embed_dim, space.num_tokens
    n, clamp = tokens + 1, space.max_relative_position
    patch_inputs = space.in_channels * space.patch_size**2
    total = d + space.num_patches * patch_inputs * d + tokens * d / 2 + tokens * num_classes * d
    for heads, hidden in zip(subnet.num_heads, subnet.hidden_dims, strict=True):
        q = heads * space.head_dim
        total += 2 * n * d + 3 * n * q * d + 2 * n * n * q + n * q * d
        total += 2 * clamp * n * n + n * n / 2 + n * q / 2 + 2 * n * d * hidden
    return total


def _range(
    space: Space, groups: Sequence[int] | None, measure: Callable[[AnySubnet], int]
) -> tuple[int, int]:
    if isinstance(space, MobileNetSpace):
        smallest = mobilenet_cost.cheapest(space, groups, measure)
    else:
        smallest = space.smallest(groups)
    return measure(smallest), measure(space.largest(groups))


def parameter_range(
    space: Space, num_classes: int = 1000, groups: Sequence[int] | None = None
) -> tuple[int, int]:
    """Parameters of the smallest and of the largest subnet of a space or of some of its groups."""
    return _range(space, groups, lambda subnet: parameters(subnet, space, num_classes))


def macs_range(space: Space, num_classes: int = 1000, groups: Sequence[int] | None = None) -> tuple[int, int]:
    """Multiply-accumulates of the smallest and of the largest subnet of a space or of some of its groups."""
    return _range(space, groups, lambda subnet: macs(subnet, space, num_classes))
