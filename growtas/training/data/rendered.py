"""Data sets of rendered characters by name, such as ``glyphs:8000,label_noise=0.2``."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from growtas.errors import UsageError, quoted
from growtas.space import seeded_rng
from growtas.training.data.glyphs import GLYPHS
from growtas.training.data.rendering import Rendering
from growtas.training.data.typefaces import TYPEFACES

RENDERED = {how.name: how for how in (GLYPHS, TYPEFACES)}
COUNT = 16_000  # training images, unless the name says how many
SEED = 0  # of the pixels and of noisy labels; not the run's seed, so that all runs see the same images
MOMENTS = 2048  # training images whose mean and deviation normalise, however many there are
_NOISE = "label_noise="


def read_rendered(data: str) -> tuple[Rendering, int, float]:
    """The set, the number of training images and the share of noisy labels that a name gives.

    Raises:
        UsageError: one of them is not possible.
    """
    name, colon, rest = data.partition(":")
    how, count, noise = RENDERED[name], COUNT, 0.0
    parts = rest.split(",") if colon else []
    if parts and not parts[0].startswith(_NOISE):
        text = parts.pop(0)
        if not (text.isascii() and text.isdigit() and len(text) <= 6 and int(text)):
            raise UsageError(
                f"{quoted(data)} names no number of training images from 1 to 999,999; write "
                f"'{name}:{COUNT}', or '{name}'."
            )
        count = int(text)
    if parts and parts[0].startswith(_NOISE):
        text = parts.pop(0).removeprefix(_NOISE)
        try:
            noise = float(text)
        except ValueError:
            noise = math.nan
        if not 0 <= noise < 1:
            raise UsageError(
                f"label_noise={quoted(text)} of {quoted(data)} is not possible; it must be at least 0 and "
                f"below 1, such as '{name}:label_noise=0.2'."
            )
    if parts:
        raise UsageError(
            f"{quoted(data)} ends in {quoted(','.join(parts))}, which means nothing; write "
            f"'{name}:{COUNT},label_noise=0.2', or a part of it."
        )
    return how, count, noise


@functools.lru_cache(maxsize=4)  # training, search and test of one process ask for the same images
def _rendered(name: str, count: int, part: str) -> tuple[Tensor, Tensor, str]:
    images, labels = RENDERED[name].images(count, SEED, part)
    digest = short_hash(images, labels)
    return torch.from_numpy(images).float().div_(255)[:, None], torch.from_numpy(labels), digest


def rendered(how: Rendering, count: int, part: str) -> tuple[Tensor, Tensor, str]:
    """(n, 1, 28, 28) images in 0 to 1, their labels, and a hash of both; not to be written to."""
    return _rendered(how.name, count, part)


def moments(how: Rendering) -> tuple[float, float]:
    """Mean and standard deviation of a set's pixels, the same for any number of images."""
    images, _, _ = rendered(how, MOMENTS, "train")
    return images.mean(dtype=torch.float64).item(), images.std().item()


def with_noise(labels: Tensor, numbers: Sequence[int], share: float, how: Rendering) -> Tensor:
    """Labels of which some are replaced by another class, drawn uniformly.

    Args:
        labels: (n,) int64.
        numbers: of their images; with the seed of the data they alone determine what becomes of a label. A
            larger share replaces what a smaller one does, and more.
        share: of labels that are replaced, in the mean.
        how: gives the classes.

    Returns:
        (n,) int64; ``labels`` itself where the share is 0.
    """
    if not share:
        return labels
    noisy, count = labels.tolist(), len(how.classes)
    for place, number in enumerate(numbers):
        rng = seeded_rng("label noise", how.name, SEED, number)
        if rng.random() < share:
            noisy[place] = (noisy[place] + rng.randrange(1, count)) % count
    return torch.tensor(noisy)


def short_hash(*parts: object) -> str:
    """A short hash. Args: parts: arrays of pixels or labels by their bytes, others by their text."""
    found = hashlib.blake2b(digest_size=8)
    for part in parts:
        found.update(part.tobytes() if hasattr(part, "tobytes") else repr(part).encode())
    return found.hexdigest()
