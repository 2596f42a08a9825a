"""One image as 8-bit RGB, or an error that names it; an image is never replaced by another."""

from __future__ import annotations

import os
from typing import IO

import numpy as np
from PIL import Image, UnidentifiedImageError

from growtas.errors import GrowtasError

DEEP_GREY = ("I;16", "I;16B", "I;16L", "I;16N")
DEEP_GREY_FORMATS = ("PNG", "PPM")  # whose mode "I" holds 16 bits
_REMEDY = "Repair or remove it, or leave such images out with bad_images='skip'."


class UnreadableImage(GrowtasError):
    """An image cannot be decoded; the sentence names it."""

    def __init__(self, sentence: str, reason: str = "") -> None:
        # A loading process of torch hands on the whole traceback as the message; its end is the sentence.
        super().__init__(sentence.rpartition(f"{type(self).__name__}: ")[2].strip())
        self.reason = reason


def read_rgb(image: str | os.PathLike | IO[bytes] | Image.Image, name: str) -> Image.Image:
    """Decode an image to 8-bit RGB.

    Grey of 16 bits is scaled to 8. Transparency is dropped, an animation gives its first picture, and an EXIF
    orientation is not applied: these as in timm's and torchvision's readers.

    Args:
        image: a path, an open file or a Pillow image.
        name: of the image, for the error sentence.

    Returns:
        An image of mode RGB, in memory.

    Raises:
        UnreadableImage: it is empty, truncated, of no known format, or of pixels without a known range.
    """
    opened = None
    try:
        opened = image if isinstance(image, Image.Image) else Image.open(image)
        return _rgb(opened)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever a torn file leads them to
        reason = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "it is of no format that Pillow knows"
        raise UnreadableImage(f"The image {name} cannot be read: {reason}. {_REMEDY}", reason) from error
    finally:
        if opened is not None and opened is not image:
            opened.close()


def _rgb(image: Image.Image) -> Image.Image:
    mode = image.mode
    if mode in DEEP_GREY or mode == "I" and image.format in DEEP_GREY_FORMATS:
        deep = np.asarray(image).astype(np.float32)
        return Image.fromarray((deep / 257).round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if mode in ("I", "F"):
        kind = "32-bit integers" if mode == "I" else "floating-point numbers"
        raise ValueError(
            f"its pixels are {kind}, whose value for white is unknown; store it with 8 or 16 bits"
        )
    if mode in ("P", "PA", "La", "RGBa"):  # Pillow goes through the colours and their transparency
        image = image.convert("LA" if mode == "La" else "RGBA")
    return image.convert("RGB")
