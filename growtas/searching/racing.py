"""When a subnet need not be evaluated on more images, as pure logic. No torch.

The images stand in one fixed order of which every beginning is a random, stratified sample, and a subnet is
evaluated on an eighth, a quarter, a half and all of them. It leaves once it is behind the worst parent, which
was evaluated on all: no child descends from it then, and it is not the best. As in Jamieson and Talwalkar,
"Non-stochastic best arm identification" (successive halving, AISTATS 2016), the images double from rung to
rung; who leaves is decided by a test, as in Maron and Moore, "Hoeffding races" (NIPS 1993), not by rank. So
it depends on the subnet and the parent alone: not on who else is evaluated, how many processes do it, or
whether the search was interrupted.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

from growtas.searching.noise import disagreements
from growtas.searching.result import Score
from growtas.space import seeded_rng

CONFIDENCE = 0.99
SHARES = 8, 4, 2, 1  # of the images, as divisors
LEAST = 500  # images of the first rung: on fewer only hopeless subnets would be seen to be behind


class Bar(NamedTuple):
    """The parent that others are tested against. Args: top1: in per cent; correct: as in Score."""

    top1: float
    correct: bytes


def rungs(images: int) -> list[int]:
    """How many images a subnet was evaluated on at the end of each rung; the last one is all of them."""
    return [images // share for share in SHARES if share == 1 or images // share >= LEAST]


def stratified_order(labels: Sequence[int]) -> list[int]:
    """The numbers of all images, of which every beginning has each class in proportion, to one image.

    Within a class the order is random, and the same for every search of that data.
    """
    by_class: dict[int, list[int]] = {}
    for index, label in enumerate(labels):
        by_class.setdefault(int(label), []).append(index)
    places: list[tuple[float, int]] = []
    for label, members in sorted(by_class.items()):
        rng = seeded_rng("order of search images", label)
        rng.shuffle(members)
        shift = rng.random()
        places += [((place + shift) / len(members), index) for place, index in enumerate(members)]
    return [index for _, index in sorted(places)]


def behind(lost: int, won: int, seen: int, images: int) -> bool:
    """Return whether a subnet has fewer correct answers on all images than the bar, with 99 % confidence.

    Two subnets of one supernet agree on most images; only those on which one of them is right tell them
    apart. So the test is McNemar's, with his variance under equality and Edwards' correction for continuity,
    times what is left of the images (they are finite, and drawn without replacement). The 1 % is divided
    among the looks.

    Args:
        lost: images that the bar has right and the subnet wrong.
        won: images that the subnet has right and the bar wrong.
        seen: images so far.
        images: all of them.

    Source: McNemar, "Note on the sampling error of the difference between correlated proportions"
    (Psychometrika 1947); Cochran, "Sampling Techniques", section 2.6, for the finite population.
    """
    looks = len(rungs(images)) - 1
    deviation = math.sqrt((lost + won) * (1 - seen / images))
    return lost - won - 1 > _quantile(looks) * deviation


def raced(score: Score, bar: Bar, images: int) -> Score:
    """The score that a subnet would have, had it raced.

    Args:
        score: of the subnet; one that left a race did so already, and stays as it is.
        bar: of the race.
        images: all of them.
    """
    if score.images < images:
        return score
    for seen in rungs(score.images)[:-1]:
        lost, won = disagreements(bar.correct, score.correct, seen)
        if behind(lost, won, seen, score.images):
            size = -(-seen // 8)
            padding = 8 * size - seen
            first = int.from_bytes(score.correct[:size]) >> padding << padding
            return Score(estimate(bar, lost, won, seen), seen, first.to_bytes(size))
    return score


def estimate(bar: Bar, lost: int, won: int, seen: int) -> float:
    """Top-1 of a subnet that left: the bar's less the difference on the images that both saw, in per cent.

    The difference varies far less from sample to sample than the accuracy; and one that left stays behind.
    """
    return bar.top1 - 100 * (lost - won) / seen


@functools.cache
def _quantile(looks: int) -> float:
    return NormalDist().inv_cdf(1 - (1 - CONFIDENCE) / looks)
