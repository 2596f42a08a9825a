"""The part of an image that evaluation sees, as timm's transforms take it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from growtas.training.data.resize import resized

MODES = ("center", "squash", "border")


@dataclass(frozen=True)
class EvaluationCrop:
    """Resize and crop of an evaluation.

    Args:
        height, width: of the result, in pixels.
        share: of the resized image's side that is taken; timm's ``crop_pct``.
        mode: timm's ``crop_mode``: ``center`` makes the shorter side fit, ``squash`` both sides, whatever the
            aspect ratio, ``border`` the longer side, and fills what is missing.
        interpolation: ``bilinear``, ``bicubic`` or ``nearest``.
        fill: colour of the border, 0 to 255 per channel.
    """

    height: int
    width: int
    share: float
    mode: str = "center"
    interpolation: str = "bicubic"
    fill: Sequence[int] = (0, 0, 0)

    def __call__(self, pixels: Tensor) -> Tensor:
        """The part of an image. Args: pixels: (H, W, 3) uint8. Returns: (height, width, 3) uint8."""
        target = self.height, self.width
        pixels = resized(pixels, *self._resized(*pixels.shape[:2]), self.interpolation)
        if self.mode == "border":
            pixels = self._padded(pixels)
        top, left = (round((own - new) / 2) for own, new in zip(pixels.shape[:2], target, strict=True))
        return pixels[top : top + self.height, left : left + self.width]

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        sides = math.floor(self.height / self.share), math.floor(self.width / self.share)
        if self.mode == "squash":
            return sides
        if self.mode == "center" and sides[0] == sides[1]:
            longer = int(sides[0] * max(height, width) / min(height, width))
            return (longer, sides[0]) if height > width else (sides[0], longer)
        ratios = height / sides[0], width / sides[1]
        ratio = max(ratios) if self.mode == "border" else min(ratios)
        return round(height / ratio), round(width / ratio)

    def _padded(self, pixels: Tensor) -> Tensor:
        height, width = pixels.shape[:2]
        size = max(height, self.height), max(width, self.width)
        if size == (height, width):
            return pixels
        whole = pixels.new_tensor(list(self.fill)).expand(*size, 3).clone()
        top, left = (size[0] - height) // 2, (size[1] - width) // 2
        whole[top : top + height, left : left + width] = pixels
        return whole
