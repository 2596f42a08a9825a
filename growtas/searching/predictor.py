"""An accuracy predictor that proposes candidates, used only while it ranks well. No torch.

Ridge regression on a subnet's choices and pairs of them, fitted on the evaluations that the search has. Each
generation is predicted before it is evaluated; Kendall's tau-b of those predictions that did not choose the
subnets themselves says how well it ranks. A fit is the same to the bit on every machine: sums are of whole
numbers, and the equations are solved by elementwise arithmetic, without BLAS.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import product

import numpy as np

from growtas.searching.objective import Objective
from growtas.searching.result import Evaluation, Ranking
from growtas.subnet import AnySubnet, Subnet

BAR = 0.4  #: the predictor is used while Kendall's tau is at least this
HELD_OUT = 40  # subnets that tau is measured on, of the latest generations
PENALTY = 5.0
_UNIT = 2.0**-20  # of the accuracies and the fitted effects, so that their sums are exact


class Predictor:
    """Predicts top1 of subnets, and measures how well it ranks them.

    Args:
        size: of a subnet, for the comparison with "larger is better".
        prior: top1 of subnets in earlier searches of the same weights.
    """

    def __init__(self, size: Objective, prior: Mapping[AnySubnet, float] | None = None) -> None:
        self.size = size
        self._top1 = dict(prior or {})
        self._places: dict[Hashable, int] | None = None  # of the effects, in the order of their sizes
        self._held_out: list[list[tuple[float, float, float]]] = []  # per generation: predicted, size, top1
        self._used = 0

    @property
    def ranking(self) -> Ranking:
        """How well it ranked the latest held-out subnets."""
        latest, count = [], 0
        for generation in reversed(self._held_out):
            if count < HELD_OUT:
                latest.append(generation)
                count += len(generation)
        tau, by_size = (kendall([[(row[i], row[2]) for row in rows] for rows in latest]) for i in (0, 1))
        return Ranking(tau, by_size, self.size.unit, count, BAR, self._used)

    def predict(self, subnets: Sequence[AnySubnet]) -> list[float]:
        """Predicted top1 of each subnet; needs evaluations."""
        if self._places is None:
            self._fit()
        return [self._mean + value for value in (self._features(subnets) @ self._sizes * _UNIT).tolist()]

    def learn(self, evaluations: Sequence[Evaluation], chosen: int) -> None:
        """Take in a generation.

        Args:
            evaluations: of the whole generation.
            chosen: how many of them, at the end, it chose itself; the others are held out.
        """
        others = [each for each in evaluations[: len(evaluations) - chosen] if each.subnet not in self._top1]
        if self._top1 and others:
            predicted = self.predict([each.subnet for each in others])
            sizes = [each.params if each.objective is None else each.objective for each in others]
            self._held_out.append(list(zip(predicted, sizes, [each.top1 for each in others], strict=True)))
        self._used += chosen > 0
        for each in evaluations:  # a prior one was not raced
            self._top1.setdefault(each.subnet, each.top1)
        self._places = None

    def _features(self, subnets: Sequence[AnySubnet]) -> np.ndarray:
        features = np.zeros((len(subnets), len(self._places)))
        for row, subnet in enumerate(subnets):
            features[row, [self._places[each] for each in effects(subnet) if each in self._places]] = 1
        return features

    def _fit(self) -> None:
        subnets = list(self._top1)
        self._places = {}
        for subnet in subnets:
            for effect in effects(subnet):
                self._places.setdefault(effect, len(self._places))
        features, values = self._features(subnets), self._top1.values()
        top1 = np.round(np.array(list(values)) / _UNIT)
        count, seen, total = len(subnets), features.sum(0), top1.sum()  # whole numbers: exact in any order
        gram = features.T @ features - np.multiply.outer(seen, seen) / count
        gram[np.diag_indices_from(gram)] += PENALTY
        sizes = solved(gram, features.T @ top1 - seen * (total / count))
        self._sizes = np.round(sizes)
        self._mean = (total - (seen * self._sizes).sum()) / count * _UNIT


def effects(subnet: AnySubnet) -> list[Hashable]:
    """The choices of a subnet, and the pairs of them whose joint effect is fitted."""
    if isinstance(subnet, Subnet):
        whole = [("embed_dim", subnet.embed_dim), ("depth", subnet.depth)]
        lists = ("num_heads", "mlp_ratio")
        layers = [(name, i, size) for name in lists for i, size in enumerate(getattr(subnet, name))]
        return [*whole, *layers, tuple(whole), *product(whole, layers)]
    found: list[Hashable] = []
    for place in subnet.active:
        depth = ("depth", place // subnet.slots, subnet.depth[place // subnet.slots])
        block = [("kernel", place, subnet.kernel[place]), ("expand", place, subnet.expand[place])]
        found += [*([] if place % subnet.slots else [depth]), *block, *product([depth], block)]
    return found


def solved(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The solution of a symmetric positive definite system, the same to the bit on every machine."""
    rows = np.column_stack([matrix, right])
    for i in range(len(rows)):
        rows[i + 1 :, i:] -= np.multiply.outer(rows[i + 1 :, i] / rows[i, i], rows[i, i:])
    solution = rows[:, -1]
    for i in reversed(range(len(rows))):
        solution[i] /= rows[i, i]
        solution[:i] -= rows[:i, i] * solution[i]
    return solution


def kendall(groups: Iterable[Sequence[tuple[float, float]]]) -> float | None:
    """Kendall's tau-b between two values, over the pairs within each group.

    Args:
        groups: pairs of values.

    Returns:
        From -1 to 1; None where no two values differ.

    Source: Kendall, "The treatment of ties in ranking problems" (Biometrika 1945).
    """
    agree = first = second = 0
    for group in groups:
        a, b = (np.sign(np.subtract.outer(values, values)) for values in np.array(group, float).T)
        agree, first, second = agree + (a * b).sum(), first + (a != 0).sum(), second + (b != 0).sum()
    return float(agree) / math.sqrt(first * second) if first and second else None
