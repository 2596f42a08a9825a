"""One image as 8-bit RGB, or an error that names it; an image is never replaced by another."""

from __future__ import annotations

import io
import os
import stat
from typing import IO

import numpy as np
from PIL import Image, UnidentifiedImageError

from growtas.errors import GrowtasError

DEEP_GREY = ("I;16", "I;16B", "I;16L", "I;16N")
DEEP_GREY_FORMATS = ("PNG", "PPM")  # whose mode "I" holds 16 bits
MOST_PIXELS = 2 * 89_478_485  # 512 MB as RGB; where Pillow refuses, too: a small file may claim any number
MOST_BYTES = 2**31  # of a file
_REMEDY = "Repair or remove it, or leave such images out with bad_images='skip'."


class ImageError(GrowtasError):
    """Something about one image; the sentence names it."""

    def __init__(self, sentence: str, reason: str = "") -> None:
        # A loading process of torch hands on the whole traceback as the message; its end is the sentence.
        super().__init__(sentence.rpartition(f"{type(self).__name__}: ")[2].strip())
        self.reason = reason


class UnreadableImage(ImageError):
    """An image cannot be decoded."""


class NoMemory(ImageError):
    """There is too little memory to decode an image, which may be whole: it is not to be left out."""

    @classmethod
    def of(cls, name: str) -> NoMemory:
        return cls(f"There is no memory left to decode the image {name}: use fewer workers, or shrink it.")


def unreadable(name: str, reason: str) -> UnreadableImage:
    """The error about an image that cannot be decoded. Args: name: of the image; reason: a clause."""
    return UnreadableImage(f"The image {name} cannot be read: {reason}. {_REMEDY}", reason)


def check_pixels(width: int, height: int) -> None:
    """Raises: ValueError: an image has too many pixels to be decoded."""
    if width * height > MOST_PIXELS:
        raise ValueError(
            f"it has {width:,} x {height:,} pixels, and at most {MOST_PIXELS:,} are decoded; shrink it"
        )


def content(image: str | os.PathLike | IO[bytes], name: str) -> bytes:
    """The bytes of an image's file.

    Args:
        image: its path, or the open file.
        name: of the image, for the error sentence.

    Raises:
        UnreadableImage: there is no such file, it is empty or huge, or it is a pipe or a device, on which
            reading would wait.
    """
    try:
        if not isinstance(image, str | os.PathLike):
            return image.read()
        descriptor = os.open(image, os.O_RDONLY | os.O_NONBLOCK)  # a pipe without a writer does not wait
        with open(descriptor, "rb") as file:
            state = os.fstat(descriptor)
            if not stat.S_ISREG(state.st_mode):
                raise ValueError("it is no file, but a folder, a pipe or a device")
            if not 0 < state.st_size <= MOST_BYTES:
                raise ValueError("it is empty" if not state.st_size else f"it has {state.st_size:,} bytes")
            return file.read()
    except (OSError, ValueError) as error:
        raise unreadable(name, getattr(error, "strerror", None) or str(error)) from error
    except MemoryError as error:
        raise NoMemory.of(name) from error


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
        UnreadableImage: it is empty, truncated, of no known format, too large, or of pixels without a known
            range.
        NoMemory: it does not fit into memory now.
    """
    opened = None
    try:
        opened = image if isinstance(image, Image.Image) else Image.open(io.BytesIO(content(image, name)))
        check_pixels(*opened.size)
        return _rgb(opened)
    except (UnreadableImage, NoMemory):
        raise
    except MemoryError as error:
        raise NoMemory.of(name) from error
    except Exception as error:  # Pillow's decoders raise whatever a torn file leads them to
        reason = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "it is of no format that Pillow knows"
        if isinstance(error, Image.DecompressionBombError):
            reason = f"it claims more pixels than the {MOST_PIXELS:,} that are decoded; shrink it"
        raise unreadable(name, reason) from error
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
