"""Augmentation of whole batches of uint8 images, on any device, with Pillow's results.

Nothing is drawn here: a batch comes with its draws, made in the loading processes from the key of each image
(:mod:`growtas.training.data.draws`). The result for an image depends on its own draws, not on its batch.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

FILL = tuple(round(255 * value) for value in IMAGENET_DEFAULT_MEAN)  # of uncovered pixels, as timm's
NONE, TABLE, CONTRAST, AUTOCONTRAST, EQUALIZE, COLOR, SHARPNESS = range(7)
BILINEAR_X, BICUBIC_X, BILINEAR_Y, BICUBIC_Y, BILINEAR, BICUBIC = range(7, 13)
KINDS = 13


class Draws(NamedTuple):
    """Augmentation drawn for the images of a batch. All tensors are on the CPU: the host plans by them.

    Args:
        shapes: (B, 2) int64, height and width of each crop.
        cubic: (B,) bool, which crops are resized by the bicubic filter, and not the bilinear one.
        flips: (B,) bool, which images are mirrored.
        kinds: (B, L) int64, the kind of each operation, in the order in which they are applied.
        numbers: (B, L, 6) float64: the blend factor, or the matrix from output to input pixels.
        tables: (B, L, 256) uint8: the new value of each value, of kind TABLE.
        rectangles: (B, R, 4) int64: top, left, height and width of what is erased; height 0 for nothing.
        seeds: (B,) int64, of the noise in erased pixels.
    """

    shapes: Tensor
    cubic: Tensor
    flips: Tensor
    kinds: Tensor
    numbers: Tensor
    tables: Tensor
    rectangles: Tensor
    seeds: Tensor


def augment(images: Tensor, draws: Draws) -> Tensor:
    """Mirror images and apply to each the operations that were drawn for it, with Pillow's rounding.

    Args:
        images: (B, 3, S, S) uint8, on any device.
        draws: of the batch.

    Returns:
        (B, 3, S, S) uint8. No operation waits for the device.
    """
    device = images.device
    flips = draws.flips.to(device, non_blocking=True)
    images = torch.where(flips[:, None, None, None], images.flip(-1), images)
    if not draws.kinds.any():
        return images
    uncovered = torch.tensor(FILL, dtype=torch.uint8).to(device, non_blocking=True)[:, None, None]
    kinds, order = draws.kinds.t().sort(dim=1, stable=True)
    order = order.to(device, non_blocking=True)
    numbers = draws.numbers.to(device, non_blocking=True)
    tables = draws.tables.to(device, non_blocking=True)
    for layer in range(len(kinds)):
        sizes = torch.bincount(kinds[layer], minlength=KINDS).tolist()
        groups = order[layer].split(sizes)
        _apply_tables(images, groups, numbers[:, layer, 0], tables[:, layer])
        for kind in range(COLOR, KINDS):
            if sizes[kind]:
                group = groups[kind]
                images[group] = _changed(kind, images[group], numbers[group, layer], uncovered)
    return images


def _changed(kind: int, images: Tensor, numbers: Tensor, uncovered: Tensor) -> Tensor:
    if kind == COLOR:
        return blend(grey(images)[:, None], images, numbers[:, 0])
    if kind == SHARPNESS:
        return blend(smooth(images), images, numbers[:, 0])
    return affine(kind, images, numbers, uncovered)


# -- colour ----------------------------------------------------------------------------------------------


def grey(images: Tensor) -> Tensor:
    """(B, S, S) int32 luma of (B, 3, S, S) uint8 images, as Pillow's mode L. Source: Pillow, Convert.c."""
    red, green, blue = images.int().unbind(1)
    return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16


def blend(first: Tensor, second: Tensor, factor: Tensor) -> Tensor:
    """From the first image (factor 0) to the second (1) and beyond, cut off to uint8. Source: Blend.c.

    Args:
        first, second: (B, ...) integers of 0 to 255; they broadcast.
        factor: (B,) float64.
    """
    first, second = first.int(), second.int()
    factor = factor.float().view(-1, *[1] * (second.dim() - 1))
    return (first + factor * (second - first)).clamp_(0, 255).to(torch.uint8)


def smooth(images: Tensor) -> Tensor:
    """Pillow's filter SMOOTH of (B, 3, S, S) uint8 images, which leaves the border as it is; int16."""
    result = images.short()
    if min(images.shape[-2:]) < 3:
        return result
    rows = result[..., :-2, :] + result[..., 1:-1, :] + result[..., 2:, :]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * result[..., 1:-1, 1:-1]
    result[..., 1:-1, 1:-1] = (2 * total + 13) // 26
    return result


def _apply_tables(images: Tensor, groups: Sequence[Tensor], factors: Tensor, fixed: Tensor) -> None:
    """Change in place every image whose operation replaces each value of a channel by another.

    Args:
        images: (B, 3, S, S) uint8.
        groups: for each kind the numbers of its images.
        factors: (B,) of contrast.
        fixed: (B, 256) tables that do not depend on the image.
    """
    group = torch.cat(groups[TABLE : EQUALIZE + 1])
    if not len(group):
        return
    table, contrast, auto, equal = groups[TABLE : EQUALIZE + 1]
    parts = [fixed[table, None].expand(-1, 3, -1)]
    if len(contrast):
        parts.append(contrast_table(images[contrast], factors[contrast]).expand(-1, 3, -1))
    counted = torch.cat((auto, equal))
    if len(counted):
        counts = histogram(images[counted])
        parts.append(autocontrast_table(counts[: len(auto)]))
        parts.append(equalize_table(counts[len(auto) :]))
    values = images[group].flatten(2).long()
    images[group] = torch.cat(parts).gather(2, values).view(len(group), *images.shape[1:])


def histogram(images: Tensor) -> Tensor:
    """(B, 3, 256) int64 counts of the values of (B, 3, S, S) uint8 images."""
    values = images.flatten(2).long()
    counts = torch.zeros(*values.shape[:2], 256, dtype=torch.int64, device=images.device)
    return counts.scatter_add_(2, values, counts.new_ones(()).expand_as(values))


def contrast_table(images: Tensor, factors: Tensor) -> Tensor:
    """(B, 1, 256) uint8: away from the mean grey of an image. Source: Pillow, ImageEnhance.Contrast."""
    luma = grey(images).flatten(1)
    mean = (luma.sum(1, dtype=torch.float64) / luma.shape[1] + 0.5).int()
    return blend(mean[:, None, None], _values(images), factors)


def autocontrast_table(counts: Tensor) -> Tensor:
    """(B, 3, 256) uint8: darkest to 0, lightest to 255. Source: Pillow, ImageOps.autocontrast."""
    values = _values(counts)
    present = counts > 0
    low = torch.where(present, values, 255).amin(-1, keepdim=True)
    high = torch.where(present, values, 0).amax(-1, keepdim=True)
    scale = torch.full_like(low, 255, dtype=torch.float64) / (high - low).clamp(min=1)
    stretched = (values * scale + -low * scale).clamp_(0, 255).to(torch.uint8)
    return torch.where(high > low, stretched, values.to(torch.uint8))


def equalize_table(counts: Tensor) -> Tensor:
    """(B, 3, 256) uint8: values as evenly used as can be. Source: Pillow, ImageOps.equalize."""
    values = _values(counts)
    last = torch.where(counts > 0, values, 0).amax(-1, keepdim=True)
    step = (counts.sum(-1, keepdim=True) - counts.gather(2, last)) // 255
    below = counts.cumsum(-1) - counts
    spread = ((step // 2 + below) // step.clamp(min=1)).clamp_(0, 255)
    return torch.where(step > 0, spread, values).to(torch.uint8)


def _values(like: Tensor) -> Tensor:
    return torch.arange(256, device=like.device).expand(len(like), 1, 256)


# -- geometry --------------------------------------------------------------------------------------------


def affine(kind: int, images: Tensor, matrix: Tensor, uncovered: Tensor) -> Tensor:
    """Images resampled at an affine function of their pixels' places. Source: Pillow, Geometry.c.

    Args:
        kind: bilinear or bicubic; ``_X`` and ``_Y`` where the other coordinate stays as it is.
        images: (B, 3, S, S) uint8.
        matrix: (B, 6) float64, to input from output pixels: x' = ax + by + c, y' = dx + ey + f.
        uncovered: (3, 1, 1) uint8, the colour of pixels from outside.
    """
    size = images.shape[-1]
    a, b, c, d, e, f = matrix.t()[:, :, None, None]
    place = torch.arange(size, dtype=torch.float64, device=images.device) + 0.5
    x = a * place + b * place[:, None] + c
    y = d * place + e * place[:, None] + f
    inside = (x >= 0) & (x < size) & (y >= 0) & (y < size)
    cubic = kind in (BICUBIC_X, BICUBIC_Y, BICUBIC)
    mix = _cubic if cubic else _linear
    if kind in (BILINEAR_X, BICUBIC_X):
        columns, away = _neighbours(x, cubic)
        columns = columns.transpose(1, 2).flatten(2)[:, None]  # of each row, one neighbour after the other
        pixels = mix(_taken(images, 3, columns).unflatten(3, (-1, size)).unbind(3), away)
    elif kind in (BILINEAR_Y, BICUBIC_Y):
        rows, away = _neighbours(y, cubic)
        pixels = mix(_taken(images, 2, rows.flatten(1, 2)[:, None]).unflatten(2, (-1, size)).unbind(2), away)
    else:
        (columns, along), (rows, away) = _neighbours(x, cubic), _neighbours(y, cubic)
        lines = []
        for row in rows.split(1, dim=1):
            places = (row * size + columns).flatten(1)[:, None]
            taken = _taken(images.flatten(2), 2, places).view(len(images), 3, -1, size, size)
            lines.append(mix(taken.unbind(2), along))
        pixels = mix(lines, away)
    return torch.where(inside[:, None], pixels.clamp_(0, 255).to(torch.uint8), uncovered)


def _neighbours(place: Tensor, cubic: bool) -> tuple[Tensor, Tensor]:
    """(B, 2 or 4, S, S) pixels around (B, S, S) places, and how far past the middle one each place lies."""
    middle = (place - 0.5).floor()
    steps = torch.arange(-1, 3, device=place.device) if cubic else torch.arange(2, device=place.device)
    pixels = (middle.long()[:, None] + steps[:, None, None]).clamp_(0, place.shape[-1] - 1)
    return pixels, (place - 0.5 - middle).float()[:, None]


def _taken(images: Tensor, dim: int, index: Tensor) -> Tensor:
    return images.gather(dim, index.expand(-1, 3, *index.shape[2:])).float()


def _linear(values: Sequence[Tensor], away: Tensor) -> Tensor:
    first, second = values
    return torch.addcmul(first, second - first, away)


def _cubic(values: Sequence[Tensor], away: Tensor) -> Tensor:
    """Cubic convolution with a = -1, as Pillow transforms (and unlike how it resizes)."""
    before, first, second, after = values
    slope, rest, step = second - before, second - after, first - before
    square = rest.sub(step, alpha=2)
    return torch.addcmul(first, away, slope.addcmul_(away, square.addcmul_(away, step - rest)))


# -- normalisation and erasing ---------------------------------------------------------------------------


def normalise(images: Tensor) -> Tensor:
    """(B, 3, S, S) float32 of uint8 images, normalised by ImageNet's moments, to the same bits everywhere."""
    mean, std = (
        torch.tensor(values).to(images.device, non_blocking=True)[:, None, None]
        for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    )
    white = torch.full((), 255.0, device=images.device)  # a GPU multiplies by the inverse of a plain number
    return images.float().div_(white).sub_(mean).div_(std)


def erase(images: Tensor, draws: Draws, mode: str) -> Tensor:
    """Replace the drawn rectangles of normalised images, in place.

    Args:
        images: (B, 3, S, S) float32.
        draws: of the batch.
        mode: ``const`` for 0, ``rand`` for a normal colour, ``pixel`` for normal noise.
    """
    device = images.device
    for number, rectangles in enumerate(draws.rectangles.unbind(1)):
        hit = rectangles[:, 2].nonzero()[:, 0]
        if not len(hit):
            continue
        largest = int((rectangles[hit, 2] * rectangles[hit, 3]).max())
        group = hit.to(device, non_blocking=True)
        seeds = draws.seeds[hit].to(device, non_blocking=True) + number
        top, left, height, width = rectangles[hit].to(device, non_blocking=True).t()[:, :, None, None]
        place = torch.arange(images.shape[-1], device=device)
        y, x = place[:, None] - top, place - left
        within = ((y >= 0) & (y < height) & (x >= 0) & (x < width))[:, None]
        new = 0.0
        if mode == "rand":
            new = keyed_normal(seeds, 3)[:, :, None, None]
        elif mode == "pixel":
            noise = keyed_normal(seeds, 3 * largest).view(-1, largest, 3)
            which = (y * width + x).clamp_(0, largest - 1).flatten(1)[..., None].expand(-1, -1, 3)
            new = noise.gather(1, which).mT.reshape(len(hit), *images.shape[1:])
        images[group] = torch.where(within, new, images[group])
    return images


def keyed_normal(seeds: Tensor, count: int) -> Tensor:
    """(n, count) float32 normal numbers that depend on their row's seed and their place alone.

    Args:
        seeds: (n,) int64.
        count: numbers of each; the first of them are the same for any count.

    They are the same on every device: a hash of seed and place chooses from 65536 quantiles, so nothing is
    computed in floating point.

    Source: the hash is lowbias32 of Chris Wellons' hash-prospector.
    """
    places = torch.arange((count + 1) // 2, dtype=torch.int32, device=seeds.device)
    low, high = seeds.int()[:, None], (seeds >> 32).int()[:, None]
    bits = _hash(_hash(places ^ low) + high)
    halves = torch.stack((bits & 0xFFFF, bits >> 16 & 0xFFFF), -1).flatten(1)[:, :count]
    return _normal_quantiles(seeds.device)[halves]


@functools.lru_cache
def _normal_quantiles(device: torch.device) -> Tensor:
    shares = (torch.arange(2**16, dtype=torch.float64) + 0.5) / 2**16
    return torch.special.ndtri(shares).float().to(device)


def _hash(bits: Tensor) -> Tensor:
    """int32 with every bit dependent on all; products wrap, and the mask makes the shift a logical one."""
    bits = bits ^ (bits >> 16 & 0xFFFF)
    bits = bits * 0x21F0AAAD
    bits = bits ^ (bits >> 15 & 0x1FFFF)
    bits = bits * 0x735A2D97
    return bits ^ (bits >> 15 & 0x1FFFF)
