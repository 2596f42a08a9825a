"""Pixels of JPEG files, faster than by Pillow and equal to it, and crops resized on bytes."""

from __future__ import annotations

from contextlib import suppress

import torch
import torch.nn.functional as F
from torch import Tensor

try:
    import simplejpeg
except ImportError:  # Pillow gives the same pixels
    simplejpeg = None

START = b"\xff\xd8\xff"


def jpeg_pixels(data: bytes) -> Tensor | None:
    """Decode a JPEG of colour or grey.

    simplejpeg decodes with the library that Pillow uses, to the same values, and spares Pillow's two copies
    of the image. Why not torchvision's decoder: it is deprecated, and slower.

    Args:
        data: the content of a file.

    Returns:
        (H, W, 3) uint8; None where it is of another format, has four channels or is damaged: it is then for
        Pillow to read, or to say what is wrong.
    """
    if simplejpeg is None or not data.startswith(START):
        return None
    with suppress(ValueError):
        if simplejpeg.decode_jpeg_header(data)[2] in ("YCbCr", "RGB", "Gray"):
            return torch.from_numpy(simplejpeg.decode_jpeg(data))
    return None


def resized(pixels: Tensor, height: int, width: int, interpolation: str) -> Tensor:
    """Resize an image with a filter as wide as it shrinks, as Pillow does.

    Args:
        pixels: (H, W, 3) uint8, of any strides.
        height, width: in pixels.
        interpolation: ``bilinear``, ``bicubic`` or ``nearest``.

    Returns:
        (height, width, 3) uint8, the same image where it has the size already.
    """
    if pixels.shape[:2] == (height, width):
        return pixels
    smooth = interpolation != "nearest"
    return F.interpolate(
        pixels.permute(2, 0, 1)[None].contiguous(memory_format=torch.channels_last),
        size=(height, width),
        mode=interpolation if smooth else "nearest-exact",
        antialias=smooth,
    )[0].permute(1, 2, 0)
