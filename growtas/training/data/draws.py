"""Draws of timm's training transforms, apart from the work on pixels.

timm's own transforms are asked, in their order, so that an image gets exactly the crop, flip, operations and
rectangles that ``timm.data.create_transform`` would draw from the same seed. Where every operation of the
policy has a batched form (RandAugment and colour jitter), only its arguments are noted, for
:func:`growtas.training.data.augment.augment`; other policies are applied here, image by image, through
Pillow.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from timm.data.auto_augment import AugmentOp, RandAugment
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torchvision.transforms import ColorJitter

from growtas.training.data import augment
from growtas.training.data.policies import policy_operations, with_safe_operations

if TYPE_CHECKING:
    from growtas.training.config import TrainConfig

_DOT = torch.empty(())  # expanded, it is as much of an image as timm's crop looks at
_VALUES = np.arange(256)
_BLENDS = {"Color": augment.COLOR, "Contrast": augment.CONTRAST, "Sharpness": augment.SHARPNESS}


class Step(NamedTuple):
    """One operation. Args: kind, numbers, table: as in :class:`growtas.training.data.augment.Draws`."""

    kind: int
    numbers: tuple[float, ...] = ()
    table: np.ndarray | None = None


class Row(NamedTuple):
    """The draws of one image. Args: as in :class:`growtas.training.data.augment.Draws`."""

    shape: tuple[int, int]
    cubic: bool
    flip: bool
    steps: Sequence[Step]
    rectangles: Sequence[tuple[int, int, int, int]]
    seed: int


class TrainingDraws:
    """The draws of timm's training transforms, for one image after another, from the global generators.

    Args:
        size: of the images that training takes, in pixels.
        config: gives timm's augmentation settings.

    Raises:
        AssertionError, ValueError, KeyError, IndexError: timm does not know the policy.
    """

    def __init__(self, size: int, config: TrainConfig) -> None:
        self.size = size
        geometry, policy, finish = create_transform(
            size,
            is_training=True,
            separate=True,
            hflip=config.hflip,
            color_jitter=config.color_jitter or None,
            auto_augment=None if config.auto_augment == "none" else config.auto_augment,
            interpolation=config.interpolation,
            re_prob=config.reprob,
            re_mode="const",  # only its rectangles are looked at
            re_count=config.recount,
        )
        self._crop = geometry.transforms[0]
        self._hflip = config.hflip
        self._policy = with_safe_operations(policy).transforms
        self._eraser = next((part for part in finish.transforms if isinstance(part, RandomErasing)), None)
        self._most_rectangles = self._eraser.max_count if self._eraser else 0
        self._layers = 0
        self.batched = all(map(_has_batched_form, self._policy))
        if self.batched:
            self._layers = sum(getattr(part, "num_layers", 3) for part in self._policy)
            for operation in policy_operations(policy):
                operation.aug_fn = functools.partial(_note, operation.name, size)
            for part in self._policy:
                if isinstance(part, RandAugment):
                    part.ops = np.array(part.ops, object)  # or numpy makes one for each choice

    def crop(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Top, left, height and width of a crop of an image of this size; one pixel where timm draws none."""
        box = self._crop.get_params(_DOT.expand(height, width), self._crop.scale, self._crop.ratio)
        rows, columns = max(1, box[2]), max(1, box[3])
        return min(box[0], height - rows), min(box[1], width - columns), rows, columns

    def interpolation(self) -> str:
        """How the crop is resized: ``bilinear``, ``bicubic`` or ``nearest``."""
        mode = self._crop.interpolation
        return (random.choice(mode) if isinstance(mode, tuple | list) else mode).value

    def rest(self, image: Tensor, interpolation: str) -> tuple[Tensor, Row]:
        """All draws after the crop.

        Args:
            image: (H, W, 3) uint8, (S, S, 3) for a policy that has no batched form.
            interpolation: of its resize.

        Returns:
            The image, changed only by a policy that has no batched form, and the draws.
        """
        flip = self._hflip > 0 and torch.rand(1).item() < self._hflip
        steps: list[Step] = []
        if self.batched:
            for part in self._policy:
                if isinstance(part, RandAugment):
                    for operation in _chosen(part):
                        steps = operation(steps)
                else:
                    steps = _jitter(part)
        else:
            pixels = Image.fromarray((image.flip(1) if flip else image).numpy())
            for part in self._policy:
                pixels = part(pixels)
            image, flip = torch.from_numpy(np.array(pixels)), False
        canvas = _Canvas(self.size)
        if self._eraser is not None:
            self._eraser(canvas)
        shape, cubic = tuple(image.shape[:2]), interpolation == "bicubic"
        return image, Row(shape, cubic, flip, steps, canvas.rectangles, random.getrandbits(62))

    def collate(self, rows: Sequence[Row]) -> augment.Draws:
        """The draws of a batch. Args: rows: of its images."""
        kinds = np.zeros((len(rows), self._layers), np.int64)
        numbers = np.zeros((len(rows), self._layers, 6))
        tables = np.zeros((len(rows), self._layers, 256), np.uint8)
        rectangles = np.zeros((len(rows), self._most_rectangles, 4), np.int64)
        for i, row in enumerate(rows):
            for layer, step in enumerate(row.steps):
                kinds[i, layer] = step.kind
                numbers[i, layer, : len(step.numbers)] = step.numbers
                if step.table is not None:
                    tables[i, layer] = step.table
            if row.rectangles:
                rectangles[i, : len(row.rectangles)] = row.rectangles
        single = ([getattr(row, name) for row in rows] for name in ("shape", "cubic", "flip", "seed"))
        shapes, cubic, flips, seeds = map(np.array, single)
        drawn = shapes, cubic, flips, kinds, numbers, tables, rectangles, seeds
        return augment.Draws(*map(torch.from_numpy, drawn))


def _has_batched_form(part: Any) -> bool:
    if isinstance(part, ColorJitter):
        return part.hue is None
    return isinstance(part, RandAugment) and all(
        operation.name.removesuffix("Increasing") in _BATCHED
        and Image.Resampling.NEAREST not in np.atleast_1d(operation.kwargs["resample"])
        for operation in part.ops
    )


class _Canvas:
    """Notes the rectangles that timm's RandomErasing writes to an image."""

    dtype = torch.float32

    def __init__(self, size: int) -> None:
        self._size = size
        self.rectangles: list[tuple[int, int, int, int]] = []

    def size(self) -> tuple[int, int, int]:
        return 3, self._size, self._size

    def __setitem__(self, place: tuple[slice, slice, slice], value: Any) -> None:
        _, y, x = place
        self.rectangles.append((y.start, x.start, y.stop - y.start, x.stop - x.start))


def _chosen(policy: RandAugment) -> Sequence[AugmentOp]:
    """The operations of an image; without weights np.random.choice's own draw, in a third of its time."""
    if policy.choice_weights is None:
        return policy.ops[np.random.randint(0, len(policy.ops), policy.num_layers)]
    return np.random.choice(policy.ops, policy.num_layers, replace=False, p=policy.choice_weights)


def _jitter(jitter: ColorJitter) -> list[Step]:
    order, *factors, _ = jitter.get_params(jitter.brightness, jitter.contrast, jitter.saturation, None)
    names = ("Brightness", "Contrast", "Color")
    return [_step(names[i], factors[i]) for i in order.tolist() if i < 3]


def _note(name: str, size: int, steps: list[Step], *level: float, resample: Any, **_: Any) -> list[Step]:
    """Stands in for the function of an operation, which timm calls like this with an image."""
    name = name.removesuffix("Increasing")
    if name not in _MATRICES:
        return [*steps, _step(name, *level)]
    resample = random.choice(resample) if isinstance(resample, tuple | list) else resample
    kind, matrix = _MATRICES[name]
    return [*steps, Step(kind + (resample == Image.Resampling.BICUBIC), matrix(*level, size))]


def _rotation(degrees: float, size: int) -> tuple[float, ...]:
    angle = -math.radians(degrees % 360)
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)  # Image.rotate rounds them
    center = size / 2
    return (
        *(cos, sin, cos * -center + sin * -center + center),
        *(-sin, cos, -sin * -center + cos * -center + center),
    )


_MATRICES = {
    "ShearX": (augment.BILINEAR_X, lambda factor, size: (1, factor, 0, 0, 1, 0)),
    "ShearY": (augment.BILINEAR_Y, lambda factor, size: (1, 0, 0, factor, 1, 0)),
    "TranslateX": (augment.BILINEAR_X, lambda pixels, size: (1, 0, pixels, 0, 1, 0)),
    "TranslateY": (augment.BILINEAR_Y, lambda pixels, size: (1, 0, 0, 0, 1, pixels)),
    "TranslateXRel": (augment.BILINEAR_X, lambda share, size: (1, 0, share * size, 0, 1, 0)),
    "TranslateYRel": (augment.BILINEAR_Y, lambda share, size: (1, 0, 0, 0, 1, share * size)),
    "Rotate": (augment.BILINEAR, _rotation),
}


def _step(name: str, level: float = 0) -> Step:
    """An operation other than a geometric one. Args: level: factor, threshold, addend or bits."""
    if name in _BLENDS:
        return Step(_BLENDS[name], (level,))
    if name in _OF_COUNTS:
        return Step(_OF_COUNTS[name])
    return Step(augment.TABLE, (), _TABLES[name](level).astype(np.uint8))


_OF_COUNTS = {"AutoContrast": augment.AUTOCONTRAST, "Equalize": augment.EQUALIZE}
_TABLES = {
    "Invert": lambda _: 255 - _VALUES,
    "Posterize": lambda bits: _VALUES & ~(255 >> min(max(bits, 0), 8)),
    "Solarize": lambda threshold: np.where(_VALUES < threshold, _VALUES, 255 - _VALUES),
    "SolarizeAdd": lambda add: np.where(_VALUES < 128, (_VALUES + add).clip(max=255), _VALUES),
    "Brightness": lambda factor: (np.float32(factor) * _VALUES.astype(np.float32)).clip(0, 255),
}
_BATCHED = {*_MATRICES, *_BLENDS, *_OF_COUNTS, *_TABLES}
