"""Splits of images: embedded ones in memory, and files, which are read, cropped and augmented.

A split is a data set of (image (C, S, S) float32, label) for evaluation. For training it also makes batches
whose augmentation depends on the seed, the epoch and the number of the image alone.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset, default_collate, get_worker_info

from growtas.space import ModelSpace, SearchSpace, seeded_rng
from growtas.training.data import augment
from growtas.training.data.augment import Draws
from growtas.training.data.draws import Row, TrainingDraws
from growtas.training.data.evaluation_crop import EvaluationCrop
from growtas.training.data.resize import in_batches, resized, resized_crops

if TYPE_CHECKING:
    from growtas.training.config import TrainConfig
    from growtas.training.data.sources import Box, ImageSource

EVALUATION_CROP = 224 / 256


def stream_seed(*key: object, bits: int = 63) -> int:
    """A seed that depends on the key alone. Args: key: what the stream is for; bits: size of the seed."""
    return seeded_rng(*key).getrandbits(bits)


def seed_globally(*key: object) -> None:
    """Seed Python's, numpy's and torch's global generators, which timm and torchvision draw from.

    Every draw in training is preceded by this, so that none depends on what was drawn before.
    """
    seed = stream_seed(*key)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    if torch.cuda.is_initialized():
        torch.manual_seed(seed)
    else:  # the same for the CPU, without half a millisecond per step of noting the seed for devices to come
        torch.default_generator.manual_seed(seed)


class MemoryImages(Dataset):
    """Images held in memory, resized to the space's size when they are taken.

    Args:
        images: (n, c, s, s) float32, normalised.
        labels: (n,) int64.
        background: the normalised value of an empty pixel; it fills what a shift uncovers.
        space: gives the size and the channels; one stored channel is repeated to as many as it asks for.
    """

    def __init__(self, images: Tensor, labels: Tensor, background: float, space: SearchSpace) -> None:
        self.images = images
        self.labels = labels
        self.background = background
        self.size = space.image_size
        self.channels = space.in_channels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self._fit(self.images[index : index + 1])[0], int(self.labels[index])

    def _fit(self, images: Tensor) -> Tensor:
        if images.shape[-1] != self.size:
            images = F.interpolate(images, size=(self.size, self.size), mode="bilinear", antialias=True)
        return images.expand(-1, self.channels, -1, -1)

    def training_batch(
        self, config: TrainConfig, epoch: int, indices: Tensor, copies: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Images moved by up to ``config.shift`` pixels, and flipped with probability ``config.hflip``.

        Args:
            config: gives the seed and the augmentation.
            epoch: counted from 0.
            indices: (B,) numbers of the images.
            copies: (B,) which copy of the image this is, under repeated augmentation.

        Returns:
            (B, C, S, S) float32 and (B,) int64.
        """
        images = self.images[indices]
        if not (config.hflip or config.shift):
            return self._fit(images), self.labels[indices]
        draws = _augmentation_draws(config.seed, epoch, config.repeated_augmentation, len(self))
        draws = draws[copies, indices]
        if config.hflip:
            flipped = draws[:, 2] < config.hflip
            images = torch.where(flipped[:, None, None, None], images.flip(-1), images)
        if config.shift:
            offsets = (draws[:, :2] * (2 * config.shift + 1)).long()
            images = self._shifted(images, offsets, config.shift)
        return self._fit(images), self.labels[indices]

    def _shifted(self, images: Tensor, offsets: Tensor, most: int) -> Tensor:
        """(B, c, s, s) images cut out of their padded selves at (B, 2) offsets of 0 to 2 * most pixels."""
        padded = F.pad(images, [most] * 4, value=self.background)
        place = torch.arange(images.shape[-1])
        rows, columns = offsets[:, :1] + place, offsets[:, 1:] + place
        batch = torch.arange(len(images))[:, None, None]
        return padded.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@functools.lru_cache(maxsize=2)  # every batch of an epoch asks for the same
def _augmentation_draws(seed: int, epoch: int, copies: int, count: int) -> Tensor:
    """(copies, count, 3) random numbers of an epoch: two for the shift of each image, one for its flip."""
    generator = torch.Generator().manual_seed(stream_seed("augment", seed, epoch))
    return torch.rand(copies, count, 3, generator=generator)


class FileImages(Dataset):
    """Images of files or of a timm data set, decoded when they are taken.

    Args:
        source: gives each by number, as 8-bit RGB.
        indices: which of its images belong to the split.
        labels: of those images.
        space: gives the size and the channels (3, or 1 for the mean of the three); one model's, its crop and
            what else evaluation needs.
        interpolation: of the evaluation's resize.
    """

    def __init__(
        self,
        source: ImageSource,
        indices: Sequence[int],
        labels: Sequence[int],
        space: SearchSpace,
        interpolation: str = "bicubic",
    ) -> None:
        self.source = source
        self.indices = list(indices)
        self.labels = list(labels)
        self.size = space.image_size
        self.channels = space.in_channels
        interpolation = "bilinear" if interpolation == "random" else interpolation
        self.crop = EvaluationCrop(self.size, self.size, EVALUATION_CROP, interpolation=interpolation)
        if isinstance(space, ModelSpace):
            fill = tuple(round(255 * mean) for mean in space.mean)
            self.crop = EvaluationCrop(
                *space.input_size, space.crop_pct, space.crop_mode, interpolation, fill
            )

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        images, labels = evaluation_batch(self.__getitems__([index]))
        return images[0], int(labels)

    def __getitems__(self, indices: Sequence[int]) -> list[Cropped]:
        """Images still to be normalised, by :func:`evaluation_batch`."""
        return [
            Cropped(self.crop(self.pixels(index)), int(self.labels[index]), self.channels)
            for index in indices
        ]

    def pixels(self, index: int, box: Box | None = None) -> Tensor:
        """One image.

        Args:
            index: its number in the split.
            box: given the image's height and width, the top, left, height and width of the part to read.

        Returns:
            (H, W, 3) uint8.

        Raises:
            growtas.training.data.decode.UnreadableImage: it cannot be decoded.
        """
        return self.source.pixels(self.indices[index], box)


class Cropped(NamedTuple):
    """An image of an evaluation. Args: pixels: (H, W, 3) uint8; label; channels: that the space takes."""

    pixels: Tensor
    label: int
    channels: int


def evaluation_batch(items: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """A batch of items of an evaluation: those of files are normalised, others stacked as they are.

    Args:
        items: :class:`Cropped`, or (image (C, H, W), label).

    Returns:
        (B, C, H, W) float32 and (B,) int64.
    """
    images, labels = stored(items)
    return from_stored(images, items[0].channels) if isinstance(items[0], Cropped) else images, labels


def stored(items: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """A batch of items of an evaluation as it is kept: (B, 3, H, W) uint8 of files, else as they are."""
    if not isinstance(items[0], Cropped):
        return default_collate(items)
    pixels, labels, _ = zip(*items, strict=True)
    return torch.stack(pixels).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels)


def from_stored(images: Tensor, channels: int) -> Tensor:
    """(B, C, H, W) float32 of what :func:`stored` gave, on any device; float32 is left as it is."""
    return as_input(augment.normalise(images), channels) if images.dtype == torch.uint8 else images


def as_input(images: Tensor, channels: int) -> Tensor:
    """(B, C, H, W) of normalised (B, 3, H, W) images: for one channel the mean of the three."""
    return images.mean(1, keepdim=True) if channels == 1 else images


class AugmentedImages(Dataset):
    """A file split as training sees it, indexed by (epoch, image, copy).

    An item is a crop (H, W, 3) uint8, the label, and the draws of what is still to be done to it, all of them
    determined by the seed and the key; :meth:`finished` does it to a batch.

    Args:
        split: the images.
        config: gives the seed and timm's augmentation settings.

    Attributes:
        resizes: whether crops are resized when they are taken. Where not, :meth:`finished` resizes them, to
            the same values, unless a crop is too large for it or the policy needs its pixels first.
    """

    def __init__(self, split: FileImages, config: TrainConfig) -> None:
        self.split = split
        self.seed, self.mode = config.seed, config.remode
        self.draws = TrainingDraws(split.size, config)
        self.resizes = True

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: tuple[int, int, int]) -> tuple[Tensor, int, Row]:
        seed_globally("augment", self.seed, *key)
        pixels = self.split.pixels(key[1], self.draws.crop)
        size, interpolation = self.split.size, self.draws.interpolation()
        later = not self.resizes and self.draws.batched and in_batches(*pixels.shape[:2], size, interpolation)
        if not later:
            pixels = resized(pixels, size, size, interpolation)
        pixels, row = self.draws.rest(pixels, interpolation)
        return pixels, self.split.labels[key[1]], row

    def collate(self, items: Sequence[tuple[Tensor, int, Row]]) -> tuple[Tensor, Tensor, Draws]:
        """The crops one after the other, (N,) uint8, (B,) labels and the draws of a batch."""
        crops, labels, rows = zip(*items, strict=True)
        sizes = [crop.numel() for crop in crops]
        pixels = torch.empty(0, dtype=torch.uint8)
        if get_worker_info():  # into shared memory at once, as torch's own collate does
            pixels = pixels.set_(pixels.untyped_storage()._new_shared(sum(sizes)))
        for crop, place in zip(crops, pixels.resize_(sum(sizes)).split(sizes), strict=True):
            np.copyto(place.numpy().reshape(crop.shape), crop.numpy())  # in half of torch's time
        return pixels, torch.tensor(labels), self.draws.collate(rows)

    def finished(self, pixels: Tensor, draws: Draws) -> Tensor:
        """The images that a batch of items becomes, on the device of the pixels.

        Args:
            pixels: (N,) uint8, the crops.
            draws: of the batch, on the CPU.

        Returns:
            (B, C, S, S) float32.
        """
        images = augment.augment(resized_crops(pixels, draws.shapes, draws.cubic, self.split.size), draws)
        return as_input(augment.erase(augment.normalise(images), draws, self.mode), self.split.channels)
