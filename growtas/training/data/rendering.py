"""Rendered characters: 28x28 grey pixels, as many as are asked for, whose class is the character or its font.

Every image is a function of a seed, its part and its number alone, so that a larger set begins with the
smaller one. Randomness is a hash of counters in integers, and what follows uses sums, products and quotients
of IEEE numbers only, one element at a time (no sine, no BLAS, no reduction), so that the pixels are the same
everywhere, whatever the version of numpy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from growtas.errors import UsageError
from growtas.progress import track
from growtas.space import seeded_rng
from growtas.training.data.fonts import CELL, CHARACTERS, PIXELS_PER_EM, coverage_maps

SIZE = 28
CHUNK = 512  # images drawn at once: what they need stays in the cache

_DRAWS = 32  # random words of an image before those of its pixels' noise
_WORDS = _DRAWS + SIZE * SIZE
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Rendering:
    """A data set of rendered characters; values in pairs are the ends of what is drawn uniformly.

    Args:
        name: of the set; no two sets share their randomness.
        fonts: of each part, ``train`` and ``test``.
        characters: of each part.
        labels: ``character`` or ``font``: what an image's class is; the other is drawn at random.
        search_per_class: images held out for the search, rendered beside the training images.
        test_per_class: images to test on.
        em: in pixels.
        half_turn: largest tangent of half the angle of rotation.
        shear: largest.
        scale: of width and height apart.
        shift: largest, in pixels.
        paper: grey of the background.
        ink: grey of the character.
        clutter: how often there is a neighbour, on each side.
        clutter_em: distance of its middle.
        clutter_ink: its contrast, as a share of the character's.
        noise: standard deviation of the noise, drawn for each image.
    """

    name: str
    fonts: Mapping[str, Sequence[str]]
    characters: Mapping[str, str]
    labels: str
    search_per_class: int
    test_per_class: int
    em: float
    half_turn: float
    shear: float
    scale: tuple[float, float]
    shift: float
    paper: tuple[float, float]
    ink: tuple[float, float]
    clutter: float
    clutter_em: tuple[float, float]
    clutter_ink: tuple[float, float]
    noise: tuple[float, float]

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the labels: the same in both parts."""
        return tuple(self.characters["train"] if self.labels == "character" else self.fonts["train"])

    def images(
        self, count: int, seed: int = 0, part: str = "train", first: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Render characters.

        Args:
            count: number of images.
            seed: determines every one of them.
            part: ``train`` or ``test``; what the label does not tell is disjoint, and so is the randomness.
            first: number of the first image.

        Returns:
            (count, 28, 28) uint8, ink bright on dark, and (count,) int64 labels, places in :attr:`classes`:
            image i is of class i % classes, so that they are balanced as well as ``count`` allows.

        Raises:
            UsageError: ``count`` or ``first`` is negative, or there is no such part.
            GrowtasError: a font is missing.
        """
        if part not in self.fonts:
            raise UsageError(
                f"part={part!r} is unknown; the {self.name} have {' and '.join(map(repr, self.fonts))}."
            )
        if count < 0 or first < 0:
            raise UsageError(f"count={count} and first={first} must be 0 or more.")
        places = [CHARACTERS.index(character) for character in self.characters[part]]
        maps = np.stack([coverage_maps(font)[places] for font in self.fonts[part]])
        key = np.uint64(seeded_rng(self.name, seed, part).getrandbits(64))
        images = np.empty((count, SIZE, SIZE), np.uint8)
        for start in track(range(0, count, CHUNK), "render", "chunk"):
            stop = min(start + CHUNK, count)
            images[start:stop] = _chunk(self, np.arange(first + start, first + stop), maps, key)
        return images, np.arange(first, first + count) % len(self.classes)

    def contact_sheet(
        self, part: str = "train", columns: int = 31, rows: int = 2, seed: int = 0
    ) -> np.ndarray:
        """The first images of a part side by side, to look at.

        Args:
            part: ``train`` or ``test``.
            columns: images in a row.
            rows: of images.
            seed: as in :meth:`images`.

        Returns:
            (rows * 28, columns * 28) uint8.
        """
        images, _ = self.images(rows * columns, seed, part)
        return images.reshape(rows, columns, SIZE, SIZE).swapaxes(1, 2).reshape(rows * SIZE, columns * SIZE)


@dataclass
class _Draws:
    """The random words of some images, taken one after another. Args: words: (n, k) uint64."""

    words: np.ndarray
    taken: int = 0

    def word(self) -> np.ndarray:
        """(n, 1, 1) uint64."""
        self.taken += 1
        return self.words[:, self.taken - 1, None, None]

    def uniform(self, low: float, high: float) -> np.ndarray:
        """(n, 1, 1) float64 in [low, high)."""
        return low + (high - low) * ((self.word() >> np.uint64(11)) * 2.0**-53)

    def below(self, count: int) -> np.ndarray:
        """(n, 1, 1) int64 in 0 to count - 1."""
        return (self.uniform(0, 1) * count).astype(np.int64)


def _hashed(counters: np.ndarray) -> np.ndarray:
    """SplitMix64's output at uint64 counters (Steele, Lea and Flood 2014); products wrap around."""
    z = counters * _GOLDEN
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _chunk(how: Rendering, numbers: np.ndarray, maps: np.ndarray, key: np.uint64) -> np.ndarray:
    """Images of (n,) numbers from (fonts, characters, CELL + 2, CELL + 2) maps: (n, 28, 28) uint8."""
    fonts, characters = maps.shape[:2]
    counters = numbers.astype(np.uint64)[:, None] * np.uint64(_WORDS) + np.arange(_WORDS, dtype=np.uint64)
    words = _hashed(counters + key)
    draws = _Draws(words[:, :_DRAWS])
    x, y = _text_coordinates(how, draws)
    if how.labels == "character":
        font, character = draws.below(fonts), (numbers % characters)[:, None, None]
    else:
        font, character = (numbers % fonts)[:, None, None], draws.below(characters)
    ink = _sampled(maps, font, character, x, y)
    for side in (-1, 1):
        there = np.nonzero(draws.uniform(0, 1)[:, 0, 0] < how.clutter)[0]
        strength = draws.uniform(*how.clutter_ink)[there]
        offset = (side * PIXELS_PER_EM * draws.uniform(*how.clutter_em))[there]
        font, character = draws.below(fonts)[there], draws.below(characters)[there]
        beside = strength * _sampled(maps, font, character, x[there] - offset, y[there])
        ink[there] = np.maximum(ink[there], beside)
    paper = draws.uniform(*how.paper)
    grey = paper + (draws.uniform(*how.ink) - paper) * ink
    grey += draws.uniform(*how.noise) * _noise(words[:, _DRAWS:]).reshape(-1, SIZE, SIZE)
    return np.floor(np.clip(grey, 0, 1) * 255 + 0.5).astype(np.uint8)


def _text_coordinates(how: Rendering, draws: _Draws) -> tuple[np.ndarray, np.ndarray]:
    """Where each pixel lies on the line of text: (n, 28, 28) x and y, in pixels of the maps from the middle.

    The rotation is written with the tangent of half its angle, which needs no sine.
    """
    place = np.arange(SIZE) - (SIZE - 1) / 2
    x = place[None, None, :] - draws.uniform(-how.shift, how.shift)
    y = place[None, :, None] - draws.uniform(-how.shift, how.shift)
    half = draws.uniform(-how.half_turn, how.half_turn)
    cosine, sine = (1 - half * half) / (1 + half * half), 2 * half / (1 + half * half)
    x, y = cosine * x + sine * y, cosine * y - sine * x
    x = x + draws.uniform(-how.shear, how.shear) * y
    return (
        x * (PIXELS_PER_EM / how.em / draws.uniform(*how.scale)),
        y * (PIXELS_PER_EM / how.em / draws.uniform(*how.scale)),
    )


def _sampled(
    maps: np.ndarray, font: np.ndarray, character: np.ndarray, x: np.ndarray, y: np.ndarray
) -> np.ndarray:
    """Bilinear values of the chosen maps.

    Args:
        maps: (fonts, characters, CELL + 2, CELL + 2).
        font: (n, 1, 1).
        character: (n, 1, 1).
        x: (n, 28, 28) pixels from the middle of the map.
        y: the same, downwards.

    Returns:
        (n, 28, 28) float64; 0 outside the map.
    """
    side = CELL + 2
    x, y = (np.clip(place + (side - 1) / 2, 0, side - 1.001) for place in (x, y))  # the border is empty
    column, row = x.astype(np.int64), y.astype(np.int64)
    x, y = x - column, y - row
    flat = maps.reshape(-1)
    corner = ((font * maps.shape[1] + character) * side + row) * side + column
    above = flat[corner] * (1 - x) + flat[corner + 1] * x
    below = flat[corner + side] * (1 - x) + flat[corner + side + 1] * x
    return above * (1 - y) + below * y


def _noise(words: np.ndarray) -> np.ndarray:
    """Nearly normal numbers: the sum of a word's four quarters, of mean 0 and variance 1."""
    quarters = sum(((words >> np.uint64(16 * i)) & np.uint64(0xFFFF)).astype(np.int64) for i in range(4))
    return (quarters - 2 * 0xFFFF) * (1 / (65536 * 0.5773502691896258))
