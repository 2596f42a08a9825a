"""timm's augmentation policies, made so that no operation ends a run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from PIL import Image
from timm.data.auto_augment import AugmentOp, AutoAugment


def policy_operations(transform: Any) -> Iterator[AugmentOp]:
    """Every operation of a policy.

    Args:
        transform: timm's RandAugment, AutoAugment or AugMix, or a Compose that holds one; other transforms
            have no operations.
    """
    for part in getattr(transform, "transforms", [transform]):
        if isinstance(part, AutoAugment):
            yield from (operation for together in part.policy for operation in together)
        else:
            yield from getattr(part, "ops", ())


def with_safe_operations(transform: Any) -> Any:
    """The same transform, whose posterize takes every number of bits that timm's levels ask for.

    timm's levels go down to 0 bits ("keep 4 down to 0 MSB"), and below it where ``mmax`` is above 10. Pillow
    before 13 gave a black image for 0 bits, which is what timm's policies and the published runs mean by it;
    Pillow 13 raises.

    Args:
        transform: as in :func:`policy_operations`; changed in place.
    """
    for operation in policy_operations(transform):
        if operation.name.startswith("Posterize"):
            operation.aug_fn = posterize
    return transform


def posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """The image with the highest bits of every value; black without any.

    Args:
        image: RGB or grey, 8 bits.
        bits: to keep; 8 or more keep the image, 0 or fewer leave it black.
    """
    mask = 0xFF & ~(0xFF >> min(max(bits, 0), 8))
    return image.point([value & mask for value in range(256)] * len(image.getbands()))
