"""Resize of uint8 images with Pillow's filters: of one image by a CPU, or of a batch of crops by any device.

Both give the same values. torch resizes bytes on a CPU alone, and images of one size; a batch of crops is
multiplied by a matrix of weights for each image and direction instead.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

LARGEST = 1.5  # times the new size: the longest side of a crop that is resized in a batch
TAPS = 7  # pixels that the bicubic filter reaches at that size
TOGETHER = 64  # images that are resized at once, with about 4 MB of memory each at 224 pixels


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


def in_batches(height: int, width: int, size: int, interpolation: str) -> bool:
    """Return whether :func:`resized_crops` takes a crop of this size; others are for :func:`resized`."""
    return interpolation != "nearest" and max(height, width) <= LARGEST * size


def resized_crops(pixels: Tensor, shapes: Tensor, cubic: Tensor, size: int) -> Tensor:
    """Resize crops of different shapes to squares, each as :func:`resized` does.

    Every sum is exact in float32, so the values depend neither on the batch nor on the device.

    Args:
        pixels: (N,) uint8, on any device: the crops, each (h, w, 3), one after the other.
        shapes: (B, 2) int64, on the CPU: their heights and widths.
        cubic: (B,) bool, on the CPU: bicubic or bilinear.
        size: new height and width in pixels.

    Returns:
        (B, 3, size, size) uint8. No operation waits for the device.
    """
    if (shapes == size).all():
        return pixels.view(-1, size, size, 3).permute(0, 3, 1, 2).contiguous()
    areas = shapes.prod(1)
    order = areas.argsort()  # crops of about one size share a group, and little is padding
    plan = torch.stack((order, (areas.cumsum(0) - areas)[order], *shapes[order].t(), cubic[order].long()))
    images = pixels.new_empty(len(shapes), 3, size, size)
    on_device = plan.to(pixels.device, non_blocking=True)
    for group, (numbers, firsts, heights, widths, kinds) in zip(
        plan.split(TOGETHER, 1), on_device.split(TOGETHER, 1), strict=True
    ):
        height, width = group[2:4].amax(1).tolist()
        crops = _padded(pixels.view(-1, 3), firsts, heights, widths, height, width)
        along = crops.transpose(2, 3).to(torch.float32, memory_format=torch.contiguous_format)
        along = _weighted(along.flatten(1, 2), _matrices(size, widths, kinds, width))
        both = _weighted(along.view(-1, height, 3 * size).mT, _matrices(size, heights, kinds, height))
        images[numbers] = both.view(-1, 3, size, size).mT.to(torch.uint8)
    return images


def _padded(
    pixels: Tensor, firsts: Tensor, heights: Tensor, widths: Tensor, height: int, width: int
) -> Tensor:
    """(B, height, width, 3) crops, whose last row and column are repeated to one height and width."""
    device = pixels.device
    rows = torch.minimum(torch.arange(height, device=device), heights[:, None] - 1)
    columns = torch.minimum(torch.arange(width, device=device), widths[:, None] - 1).int()
    rows = (firsts[:, None] + rows * widths[:, None]).int()
    places = rows[:, :, None] + columns[:, None]
    return pixels.index_select(0, places.flatten()).view(*places.shape, 3)


def _weighted(values: Tensor, matrices: tuple[Tensor, Tensor]) -> Tensor:
    """(B, n, size) sums of (B, n, length) values, as whole numbers of 0 to 255."""
    high, low = matrices
    sums = torch.baddbmm(values @ low.mT, values, high.mT)
    return sums.add_(0.5).floor_().clamp_(0, 255)


def _matrices(size: int, lengths: Tensor, kinds: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """Two (B, size, longest) float32, whose sum has the weight of each old pixel in each new one.

    TF32 has 11 bits for each factor and weights have 15; the first holds the upper 11 of them.
    """
    first, weights = (table[kinds, lengths - 1] for table in _tables(size, lengths.device))
    places = (first[..., None] + torch.arange(TAPS, device=lengths.device)).expand(2, *weights.shape)
    high = (weights * 2**10).round_().div_(2**10)
    matrices = weights.new_zeros(2, len(lengths), size, longest + TAPS)
    high, low = matrices.scatter_(3, places, torch.stack((high, weights - high)))[..., :longest]
    return high, low


@functools.lru_cache
def _tables(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The first old pixel of each new one, and the weights from there on, for every kind and old length.

    Returns:
        (2, n, size) int64 and (2, n, size, TAPS) float32: bilinear and bicubic, for lengths of 1 to n.
    """
    lengths = torch.arange(1, int(LARGEST * size) + 1)
    tables = [_filter(lengths, size, cubic) for cubic in (False, True)]
    return tuple(torch.stack(each).to(device) for each in zip(*tables, strict=True))


def _filter(lengths: Tensor, size: int, cubic: bool) -> tuple[Tensor, Tensor]:
    """One kind of :func:`_tables`, with the rounding of weights to 16 bits that torch's resize of bytes has.

    Source: PyTorch, aten/src/ATen/native/cpu/UpSampleKernel.cpp; the filters are Pillow's, Resample.c.
    """
    lengths = lengths[:, None]
    scale = lengths.double() / size
    wide = scale.clamp(min=1)
    center = scale * (torch.arange(size, dtype=torch.float64) + 0.5)
    reach = (2 if cubic else 1) * wide
    first = (center - reach + 0.5).long().clamp(min=0)
    end = torch.minimum((center + reach + 0.5).long(), lengths)
    places = first[..., None] + torch.arange(TAPS)
    away = ((places - center[..., None] + 0.5) / wide[..., None]).abs()
    if cubic:
        near, far = (1.5 * away - 2.5) * away * away + 1, ((away - 5) * away + 8) * away - 4
        weights = torch.where(away < 1, near, torch.where(away < 2, far * -0.5, 0.0))
    else:
        weights = (1 - away).clamp(min=0)
    weights = torch.where(places < end[..., None], weights, 0.0)
    weights = weights / weights.sum(-1, keepdim=True)
    largest = weights.amax((1, 2), keepdim=True)
    units = torch.full_like(largest, 2**15)
    units[(0.5 + largest * units).long() >= 2**15] = 2**14  # the largest weight must fit 16 bits
    rounded = (weights.abs() * units + 0.5).floor() * weights.sign()
    return first, (rounded / units).float()
