"""The supernet of a space, whichever family the space is of."""

from __future__ import annotations

from growtas.errors import UsageError
from growtas.space import SearchSpace, load_space
from growtas.spaces.mobilenet import MobileNetSpace
from growtas.supernet.mobilenet import MobileNetDims, MobileNetV3
from growtas.supernet.vit import NORM_EPS, VisionTransformer, ViTDims

AnySupernet = VisionTransformer | MobileNetV3


def Supernet(  # noqa: N802 - it is used as a class: growtas.Supernet(space)
    space: SearchSpace | MobileNetSpace | str,
    num_classes: int = 1000,
    qkv_bias: str = "interleaved",
    drop_path_rate: float = 0.0,
    unused_blocks: str = "skip",
    global_pool: str = "avg",
    norm_eps: float = NORM_EPS,
) -> AnySupernet:
    """Build the supernet of a space.

    Args:
        space: a search space, the name of a preset or the path of a YAML file.
        num_classes: outputs of the head.
        qkv_bias: ``interleaved`` or ``published``, of a transformer; see :class:`VisionTransformer`.
        drop_path_rate: of the last block.
        unused_blocks: ``skip`` or ``zero``; see :class:`VisionTransformer`.
        global_pool, norm_eps: of a transformer; see :class:`VisionTransformer`.

    Returns:
        The network; call it as ``net(images, subnet)``.

    Raises:
        UsageError: an option is unknown, or the family has none such.

    Example:
        >>> net = Supernet("digits", num_classes=10)
        >>> net(torch.randn(2, 1, 8, 8), net.space.smallest()).shape
        torch.Size([2, 10])
    """
    space = load_space(space)
    if not isinstance(space, MobileNetSpace):
        return VisionTransformer(
            ViTDims.of_space(space),
            num_classes,
            space,
            qkv_bias,
            drop_path_rate,
            unused_blocks,
            global_pool,
            norm_eps,
        )
    given = {"qkv_bias": qkv_bias, "global_pool": global_pool, "norm_eps": norm_eps}
    for name, usual in (("qkv_bias", "interleaved"), ("global_pool", "avg"), ("norm_eps", NORM_EPS)):
        if given[name] != usual:
            raise UsageError(
                f"{name}={given[name]!r} is for vision transformers; space {space.name!r} holds MobileNetV3 "
                "networks, which have none."
            )
    return MobileNetV3(
        MobileNetDims.of_space(space), num_classes, space, drop_path_rate, space.dropout, unused_blocks
    )
