"""The exact set of vision transformers within limits. No torch.

Parameters and MACs are a base that depends on embed_dim and depth, plus one term per layer for its heads and
one for its MLP ratio. So all cost sums of ``depth`` layers, and how many ways lead to each, follow from two
small dynamic programs (a few hundred entries, even where a space has 10^15 subnets). That tells whether any
subnet meets the limits, how many do, and draws from them without rejection, with exactly the distribution
that drawing from the whole space and discarding the rest would have.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator
from itertools import accumulate
from typing import NamedTuple

from growtas.errors import UsageError
from growtas.searching.limits import Cost, FeasibleSet, Limits
from growtas.space import SearchSpace
from growtas.subnet import Subnet


class _Sums:
    """All cost sums of up to ``depth`` layers, each layer adding one of ``steps``, with their multiplicities.

    Args:
        steps: cost that each choice adds to a layer.
        depth: number of layers.
    """

    def __init__(self, steps: list[Cost], depth: int) -> None:
        self.steps = steps
        self.ways: list[dict[Cost, int]] = [{(0, 0): 1}]
        for _ in range(depth):
            longer: dict[Cost, int] = defaultdict(int)
            for (params, macs), ways in self.ways[-1].items():
                for step_params, step_macs in steps:
                    longer[params + step_params, macs + step_macs] += ways
            self.ways.append(dict(longer))

    def draw(self, total: Cost, rng: random.Random) -> list[int]:
        """One choice per layer, uniform among the sequences of choices with this sum."""
        chosen = []
        for layer in range(len(self.ways) - 1, 0, -1):
            before = [(total[0] - p, total[1] - m) for p, m in self.steps]
            weights = [self.ways[layer - 1].get(rest, 0) for rest in before]
            chosen.append(_weighted(rng, list(accumulate(weights))))
            total = before[chosen[-1]]
        return chosen

    def all(self, total: Cost, layer: int | None = None) -> Iterator[list[int]]:
        """Every sequence of choices with this sum."""
        layer = len(self.ways) - 1 if layer is None else layer
        if layer == 0:
            yield []
            return
        for choice, (params, macs) in enumerate(self.steps):
            rest = (total[0] - params, total[1] - macs)
            if rest in self.ways[layer - 1]:
                for tail in self.all(rest, layer - 1):
                    yield [choice, *tail]


class _Cell(NamedTuple):
    """The subnets of one embed_dim, depth, cost sum of the heads and cost sum of the ratios."""

    embed_dim: int
    depth: int
    heads: Cost
    ratios: Cost


def _weighted(rng: random.Random, cumulative: list[int]) -> int:
    """An index with integer weights, given their running sums: exact, whatever their size."""
    return bisect_right(cumulative, rng.randrange(cumulative[-1]))


class ViTFeasibleSet(FeasibleSet):
    """The vision transformers of a space that meet the limits, counted exactly.

    Args:
        space: the search space.
        num_classes: outputs of the head, which count as parameters.
        limits: what a subnet may cost.

    Raises:
        UsageError: no subnet meets the limits; the sentence states what the space offers.

    Example:
        >>> small = ViTFeasibleSet(load_space("digits"), 10, Limits(max_params=40_000))
        >>> small.sample(random.Random(0)) in small
        True
    """

    def __init__(self, space: SearchSpace, num_classes: int, limits: Limits) -> None:
        super().__init__(space, num_classes, limits)
        self._sums: dict[tuple[int, int], tuple[_Sums, _Sums]] = {}
        self._cells: list[_Cell] = []
        self.count = 0
        weights: list[int] = []
        per_layer = len(space.num_heads) * len(space.mlp_ratio)
        for cell, (params, macs) in self._all_cells():
            if not limits.meet(params, macs):
                continue
            heads, ratios = self._sums[cell.embed_dim, cell.depth]
            ways = heads.ways[-1][cell.heads] * ratios.ways[-1][cell.ratios]
            self.count += ways
            self._cells.append(cell)
            # space.sample gives every depth the same chance, so one subnet of a smaller depth is likelier
            weights.append(ways * per_layer ** (space.depth[-1] - cell.depth))
        if not self.count:
            raise UsageError(self._nothing_meets())
        self._cumulative = list(accumulate(weights))

    def __iter__(self) -> Iterator[Subnet]:
        """Every subnet within the limits, once; mind :attr:`count`."""
        for cell in self._cells:
            heads, ratios = self._sums[cell.embed_dim, cell.depth]
            for head_choices in heads.all(cell.heads):
                for ratio_choices in ratios.all(cell.ratios):
                    yield self._subnet(cell, head_choices, ratio_choices)

    def sample(self, rng: random.Random) -> Subnet:
        """Draw a subnet as ``space.sample`` would, given that it meets the limits.

        Args:
            rng: a private generator.
        """
        cell = self._cells[_weighted(rng, self._cumulative)]
        heads, ratios = self._sums[cell.embed_dim, cell.depth]
        return self._subnet(cell, heads.draw(cell.heads, rng), ratios.draw(cell.ratios, rng))

    def _subnet(self, cell: _Cell, heads: list[int], ratios: list[int]) -> Subnet:
        return Subnet(
            cell.embed_dim,
            cell.depth,
            tuple(self.space.num_heads[choice] for choice in heads),
            tuple(self.space.mlp_ratio[choice] for choice in ratios),
        )

    def _all_cells(self) -> Iterator[tuple[_Cell, Cost]]:
        """Every cell of the space with its cost, measured by asking growtas.cost about single changes."""
        for embed_dim in self.space.embed_dim:
            for depth in self.space.depth:
                first_head, first_ratio = self.space.num_heads[0], self.space.mlp_ratio[0]
                plain_heads, plain_ratios = (first_head,) * depth, (first_ratio,) * depth
                base = self.cost(Subnet(embed_dim, depth, plain_heads, plain_ratios))
                head_nets = [
                    Subnet(embed_dim, depth, (h, *plain_heads[1:]), plain_ratios)
                    for h in self.space.num_heads
                ]
                ratio_nets = [
                    Subnet(embed_dim, depth, plain_heads, (r, *plain_ratios[1:]))
                    for r in self.space.mlp_ratio
                ]
                heads, ratios = (
                    _Sums([(p - base[0], m - base[1]) for p, m in map(self.cost, nets)], depth)
                    for nets in (head_nets, ratio_nets)
                )
                self._sums[embed_dim, depth] = heads, ratios
                for head_sum in heads.ways[-1]:
                    for ratio_sum in ratios.ways[-1]:
                        total = (
                            base[0] + head_sum[0] + ratio_sum[0],
                            base[1] + head_sum[1] + ratio_sum[1],
                        )
                        yield _Cell(embed_dim, depth, head_sum, ratio_sum), total

    def _nothing_meets(self) -> str:
        """The sentence for limits that are possible one by one but not together."""
        outside = {total for _, total in self._all_cells()}
        macs = [macs for params, macs in outside if self.limits.params_meet(params)]
        sentence = f"No subnet of {self.space.name} meets {self.limits}"
        if macs:
            return f"{sentence}: its subnets within the parameter limits need {min(macs):,} MACs or more."
        low, high = self.limits.min_params or 0, self.limits.max_params or 0
        below = max((p for p, _ in outside if p < low), default=None)
        above = min((p for p, _ in outside if p > high), default=None)
        near = " and ".join(f"{p:,}" for p in (below, above) if p is not None)
        return f"{sentence}; its nearest subnets have {near} parameters. Widen the window."
