"""How certain an accuracy on a few images is. No torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from growtas.searching.result import Evaluation

CONFIDENCE = 0.95
_Z = 1.959964  # of a two-sided test at that confidence
_EXACT = 1000  # the normal approximation is good beyond


def standard_error(evaluation: Evaluation) -> float | None:
    """Binomial standard error of a top-1, in percentage points; None where the images were not counted."""
    if not evaluation.images:
        return None
    share = evaluation.top1 / 100
    return 100 * math.sqrt(share * (1 - share) / evaluation.images)


def differ(a: Evaluation, b: Evaluation) -> bool:
    """True where the images tell two subnets apart with 95 % confidence.

    Where it is known which images each classified correctly, McNemar's test on those images that both saw:
    only the images on which the two disagree count. Else the two accuracies are taken as independent.
    """
    if a.correct is not None and b.correct is not None and a.images and b.images:
        only_a, only_b = disagreements(a.correct, b.correct, min(a.images, b.images))
        return _sign_test(only_a, only_b) < 1 - CONFIDENCE
    errors = standard_error(a), standard_error(b)
    return None not in errors and abs(a.top1 - b.top1) > _Z * math.hypot(*errors)


def disagreements(a: bytes, b: bytes, images: int) -> tuple[int, int]:
    """How many of the first images only one of two classified correctly: the first one, the second one."""
    size = -(-images // 8)
    padding = 8 * size - images
    first, second = (int.from_bytes(bits[:size]) >> padding for bits in (a, b))
    return (first & ~second).bit_count(), (second & ~first).bit_count()


def _sign_test(wins: int, losses: int) -> float:
    """The chance of a difference as large or larger between two that are equal, on both sides."""
    count, most = wins + losses, max(wins, losses)
    if count > _EXACT:
        return math.erfc((abs(wins - losses) - 1) / math.sqrt(2 * count))
    tail, term = 0, math.comb(count, most)
    for number in range(most, count + 1):
        tail += term
        term = term * (count - number) // (number + 1)
    return min(1.0, 2 * (tail / 2**count))
