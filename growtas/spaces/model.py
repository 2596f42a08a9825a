"""A model of timm's in the place of a space: its one subnet is the model itself. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from growtas.errors import UsageError
from growtas.spaces.base import PlainSpace


@dataclass(frozen=True)
class ModelSpace(PlainSpace):
    """A timm model as it is fine-tuned or evaluated on some data; its only subnet is its name.

    Args:
        name: as the user wrote it.
        architecture: timm's name of it.
        args: further arguments of ``timm.create_model``.
        image_size: pixels of the images that it takes; their height, where ``image_width`` is given.
        in_channels: of the images.
        mean, std: per channel, with which it expects pixels of 0 to 1 normalised.
        scale, shift: per channel; ``images * scale + shift`` is normalised as the model expects it, where the
            images are as the data normalises them.
        crop_pct: share of a resized image's side that evaluation takes.
        crop_mode: timm's: ``center``, ``squash`` or ``border``.
        image_width: where images are not square, which only evaluation takes.
    """

    name: str
    architecture: str
    args: dict[str, Any] = field(hash=False)
    image_size: int
    in_channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: tuple[float, ...]
    shift: tuple[float, ...]
    crop_pct: float
    crop_mode: str = "center"
    image_width: int | None = None

    family: ClassVar[str] = "model"
    required: ClassVar[tuple[str, ...]] = ("architecture", "image_size", "in_channels")
    title: ClassVar[str] = "A model"
    groups: ClassVar[tuple[int, ...]] = (0,)
    group_axis: ClassVar[str] = "model"

    def __post_init__(self) -> None:
        for name in ("mean", "std", "scale", "shift"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        return self.image_size, self.image_width or self.image_size

    def smallest(self, groups: Sequence[int] | None = None) -> str:
        """The only subnet."""
        return self.name

    largest = smallest

    def group_of(self, subnet: str) -> int:
        """The only group."""
        return 0

    def validate(self, subnet: object) -> None:
        """Raises: UsageError: a model has no subnets."""
        if subnet != self.name:
            raise UsageError(f"{self.name} is one model, not a supernet: it has no subnet {subnet}.")
