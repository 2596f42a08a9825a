"""A model of timm's in the place of a space: its one subnet is the model itself. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from growtas.bounds import PIXELS, Bound
from growtas.errors import UsageError, quoted
from growtas.spaces.base import PlainSpace
from growtas.spaces.choices import check_name, check_size


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
        for name in ("name", "architecture", "crop_mode"):
            check_name("a model", getattr(self, name), name)
        if not isinstance(self.args, dict):
            raise UsageError(
                f"args of model {self.name!r} must be names and values, not {quoted(self.args)}."
            )
        for name in ("image_size", "in_channels"):
            check_size(self.name, name, getattr(self, name), PIXELS.most)
        if self.image_width is not None:
            check_size(self.name, "image_width", self.image_width, PIXELS.most)
        Bound(0, 10, whole=False, above=True)("crop_pct", self.crop_pct)
        for name in ("mean", "std", "scale", "shift"):
            values = getattr(self, name)
            if not isinstance(values, list | tuple) or len(values) != self.in_channels:
                raise UsageError(
                    f"{name} of model {self.name!r} must hold a number per channel, {self.in_channels} of "
                    f"them, not {quoted(values)}."
                )
            Bound(-(10**9), 10**9, whole=False)(name, values)
            object.__setattr__(self, name, tuple(values))

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
