"""Sizes of an extracted model: the arguments that build it, its subnet and its costs."""

from __future__ import annotations

from typing import Any

from growtas import cost
from growtas.architectures.growtas_mobilenet import GrowtasMobileNet
from growtas.architectures.growtas_vit import GrowtasViT
from growtas.errors import UsageError
from growtas.space import MobileNetSpace, SearchSpace, Space
from growtas.subnet import AnySubnet, MobileNetSubnet, Subnet
from growtas.supernet import AnySupernet, VisionTransformer
from growtas.supernet.vit import NORM_EPS

Model = GrowtasViT | GrowtasMobileNet

_FIXED = (
    "stem_width",
    "first_width",
    "widths",
    "final_width",
    "feature_width",
    "strides",
    "activations",
    "squeeze_excite",
    "stem_stride",
)
"""Fields of a space of MobileNetV3 networks that every subnet shares."""


def arguments(net: AnySupernet, subnet: AnySubnet) -> dict[str, Any]:
    """The arguments of the model that is a subnet of a supernet."""
    space = net.space
    if isinstance(net, VisionTransformer):
        return {
            "embed_dim": subnet.embed_dim,
            "num_heads": list(subnet.num_heads),
            "mlp_ratio": list(subnet.mlp_ratio),
            "img_size": space.image_size,
            "patch_size": space.patch_size,
            "in_chans": space.in_channels,
            "num_classes": net.num_classes,
            "head_dim": space.head_dim,
            "max_relative_position": space.max_relative_position,
            "global_pool": net.global_pool,
            **({"norm_eps": net.norm_eps} if net.norm_eps != NORM_EPS else {}),
        }
    fixed = {name: getattr(space, name) for name in _FIXED}
    return {
        **subnet.to_json(),
        **{name: list(value) if isinstance(value, tuple) else value for name, value in fixed.items()},
        "img_size": space.image_size,
        "in_chans": space.in_channels,
        "num_classes": net.num_classes,
        "drop_rate": space.dropout,
    }


def subnet_of(model: Model) -> AnySubnet:
    """The subnet that a model is."""
    args = model.model_args()
    if model.architecture == GrowtasViT.architecture:
        heads, ratios = tuple(args["num_heads"]), tuple(args["mlp_ratio"])
        return Subnet(args["embed_dim"], len(heads), heads, ratios)
    return MobileNetSubnet(*(tuple(args[name]) for name in ("kernel", "expand", "depth")))


def space_of(model: Model) -> Space:
    """The space whose subnet a model is: the form in which growtas.cost takes sizes.

    Where the images are not square, their height counts.

    Raises:
        UsageError: the patches are not square.
    """
    args, subnet = model.model_args(), subnet_of(model)
    args["img_size"] = sides_of(args)[0]
    if isinstance(subnet, MobileNetSubnet):
        return MobileNetSpace(
            model.architecture,
            tuple(sorted(set(subnet.kernel))),
            tuple(sorted(set(subnet.expand))),
            tuple(sorted({*subnet.depth, subnet.slots})),
            image_size=args["img_size"],
            in_channels=args["in_chans"],
            dropout=args["drop_rate"],
            **{name: tuple(args[name]) if isinstance(args[name], list) else args[name] for name in _FIXED},
        )
    if isinstance(args["patch_size"], list):
        raise UsageError(f"patch_size={args['patch_size']} is not square, and a search space's is.")
    return SearchSpace(
        model.architecture,
        (subnet.embed_dim,),
        tuple(sorted(set(subnet.mlp_ratio))),
        tuple(sorted(set(subnet.num_heads))),
        (subnet.depth,),
        image_size=args["img_size"],
        patch_size=args["patch_size"],
        in_channels=args["in_chans"],
        head_dim=args["head_dim"],
        max_relative_position=args["max_relative_position"],
    )


def sides_of(args: dict[str, Any]) -> tuple[int, int]:
    """Height and width of the images of a model. Args: args: that build it."""
    size = args["img_size"]
    return tuple(size) if isinstance(size, list | tuple) else (size, size)


def macs_of(model: Model) -> int | None:
    """Multiply-accumulates of one image's forward pass; None where the patches are not square."""
    try:
        space = space_of(model)
    except UsageError:
        return None
    return cost.macs(subnet_of(model), space, model.num_classes, sides_of(model.model_args()))
