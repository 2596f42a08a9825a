"""PreNAS's choice of subnets by score: layers ranked, candidates listed, the best of each bin. No torch.

A subnet's score is a sum over its tensors, so at one embed_dim it is a constant plus a term of every layer's
attention and of every layer's MLP. The candidates of one embed_dim and depth are all pairs of a column of
heads and a column of ratios; score and parameters of each pair are sums of two numbers computed once.

Source: PreNAS (Wang et al., ICML 2023).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

from growtas import cost
from growtas.methods.prenas_bins import Bins
from growtas.space import SearchSpace, Subnet


@dataclass(frozen=True)
class Scores:
    """Zero-cost scores of one supernet's parts; lists have an entry for every layer.

    Args:
        base: embed_dim to the score of patch embedding, final norm and head.
        attention: (embed_dim, heads) to the scores of qkv, proj and the norm before them.
        mlp: (embed_dim, ratio) to the scores of fc1, fc2 and the norm before them.
        heads_rank: heads to the rank score of growing a layer to them from the next smaller choice.
        ratio_rank: ratio to the rank score of growing a layer to it from the next smaller choice.
    """

    base: Mapping[int, float]
    attention: Mapping[tuple[int, int], Sequence[float]]
    mlp: Mapping[tuple[int, float], Sequence[float]]
    heads_rank: Mapping[int, Sequence[float]]
    ratio_rank: Mapping[float, Sequence[float]]

    def of(self, subnet: Subnet) -> float:
        """The score of any subnet of the space: the sum of \\|weight * gradient\\| over its tensors."""
        d = subnet.embed_dim
        return (
            self.base[d]
            + sum(self.attention[d, heads][layer] for layer, heads in enumerate(subnet.num_heads))
            + sum(self.mlp[d, ratio][layer] for layer, ratio in enumerate(subnet.mlp_ratio))
        )


class Candidate(NamedTuple):
    """An enumerated subnet, its parameters and its score."""

    embed_dim: int
    num_heads: tuple[int, ...]
    mlp_ratio: tuple[float, ...]
    params: int
    score: float

    @property
    def subnet(self) -> Subnet:
        """As the value that the rest of growtas takes."""
        return Subnet(self.embed_dim, len(self.num_heads), self.num_heads, self.mlp_ratio)


class Preferred(NamedTuple):
    """The subnet that was chosen from a bin."""

    subnet: Subnet
    params: int
    score: float


def choice_counts(depth: int, choices: int) -> Iterator[tuple[int, ...]]:
    """In how many layers each choice is used, for every way that is tried.

    The counts are the distances of strictly ascending cut points among 0 to ``depth``, as published. So the
    first and the last choice may be used nowhere, but each one between them is used at least once.

    Args:
        depth: layers.
        choices: how many choices a layer has.

    Yields:
        Counts, the smallest choice's first, with ``depth`` as their sum.

    Example:
        >>> list(choice_counts(2, 3))
        [(0, 1, 1), (0, 2, 0), (1, 1, 0)]
    """
    for cuts in combinations(range(depth + 1), choices - 1):
        bounds = (0, *cuts, depth)
        yield tuple(after - before for before, after in zip(bounds, bounds[1:], strict=False))


def allocate(
    counts: Sequence[int], choices: Sequence[float], rank: Mapping[float, Sequence[float]]
) -> tuple[float, ...]:
    """Give every layer a choice: the largest to the best layers of its own ranking, then the next.

    Args:
        counts: layers of each choice, the smallest choice's first; their sum is the depth.
        choices: ascending.
        rank: choice to the rank score of each layer; of equal layers the deeper one is better, as published.

    Returns:
        The choice of each layer.
    """
    depth = sum(counts)
    chosen: list[float] = [choices[0]] * depth
    free = set(range(depth))
    for choice, count in reversed(list(zip(choices[1:], counts[1:], strict=True))):
        scores = rank[choice]
        for layer in sorted(free, key=lambda layer: (scores[layer], layer), reverse=True)[:count]:
            chosen[layer] = choice
            free.remove(layer)
    return tuple(chosen)


def candidate_params(space: SearchSpace, num_classes: int, depths: Sequence[int]) -> set[int]:
    """The parameters that candidates have: a matter of counts alone, so no score is needed.

    Args:
        space, num_classes, depths: as :func:`enumerate_candidates`.
    """

    def layers(depth: int, choices: Sequence[float]) -> list[tuple[float, ...]]:
        return [
            tuple(choice for choice, count in zip(choices, counts, strict=True) for _ in range(count))
            for counts in choice_counts(depth, len(choices))
        ]

    found: set[int] = set()
    for embed_dim in space.embed_dim:
        for depth in depths:
            fewest, narrowest = (space.num_heads[0],) * depth, (space.mlp_ratio[0],) * depth

            def params(heads: Sequence[int], ratios: Sequence[float], embed_dim=embed_dim) -> int:
                return cost.parameters(Subnet(embed_dim, len(heads), heads, ratios), space, num_classes)

            least = params(fewest, narrowest)
            by_heads = {params(heads, narrowest) - least for heads in layers(depth, space.num_heads)}
            by_ratio = {params(fewest, ratios) for ratios in layers(depth, space.mlp_ratio)}
            found |= {more + own for more in by_heads for own in by_ratio}
    return found


def enumerate_candidates(
    space: SearchSpace, scores: Scores, num_classes: int, depths: Sequence[int]
) -> Iterator[Candidate]:
    """Every embed_dim, depth and count of each ratio and of each number of heads, layers placed by rank.

    Args:
        space: gives the choices.
        scores: of a supernet of the space.
        num_classes: outputs of the head, counted in the parameters.
        depths: that are tried.

    Yields:
        Candidates in the published order: by embed_dim, depth, counts of ratios, counts of heads.
        AutoFormer-T has 1,770 of them, S with depths 13 and 14 57,918, B 17,421.
    """
    for embed_dim in space.embed_dim:
        for depth in depths:
            smallest = Subnet(embed_dim, depth, (space.num_heads[0],) * depth, (space.mlp_ratio[0],) * depth)
            least = cost.parameters(smallest, space, num_classes)
            heads_columns, ratio_columns = [], []
            for counts in choice_counts(depth, len(space.num_heads)):
                heads = allocate(counts, space.num_heads, scores.heads_rank)
                grown = Subnet(embed_dim, depth, heads, smallest.mlp_ratio)
                score = sum(scores.attention[embed_dim, h][layer] for layer, h in enumerate(heads))
                heads_columns.append((heads, cost.parameters(grown, space, num_classes) - least, score))
            for counts in choice_counts(depth, len(space.mlp_ratio)):
                ratios = allocate(counts, space.mlp_ratio, scores.ratio_rank)
                grown = Subnet(embed_dim, depth, smallest.num_heads, ratios)
                score = sum(scores.mlp[embed_dim, r][layer] for layer, r in enumerate(ratios))
                ratio_columns.append((ratios, cost.parameters(grown, space, num_classes), score))
            for ratios, ratio_params, ratio_score in ratio_columns:
                for heads, more_params, heads_score in heads_columns:
                    yield Candidate(
                        embed_dim,
                        heads,
                        ratios,
                        ratio_params + more_params,
                        scores.base[embed_dim] + heads_score + ratio_score,
                    )


def select(candidates: Iterator[Candidate], bins: Bins) -> list[Preferred]:
    """The candidate with the highest score of every bin; of equal ones the first.

    Returns:
        Ascending in parameters; a bin without candidates gives none.
    """
    best: dict[int, Candidate] = {}
    for candidate in candidates:
        number = bins.index(candidate.params)
        if number is not None and (number not in best or candidate.score > best[number].score):
            best[number] = candidate
    chosen = (best[number] for number in sorted(best))
    return [Preferred(candidate.subnet, candidate.params, candidate.score) for candidate in chosen]


def grouped(subnets: Sequence[Subnet]) -> list[list[int]]:
    """Numbers of the subnets of each group: those of one embed_dim and depth, in the order they appear."""
    groups: dict[tuple[int, int], list[int]] = {}
    for number, subnet in enumerate(subnets):
        groups.setdefault((subnet.embed_dim, subnet.depth), []).append(number)
    return list(groups.values())


def probabilities(groups: Sequence[Sequence[int]]) -> list[float]:
    """The probability of each subnet: a group uniformly, then a member uniformly.

    Example:
        >>> probabilities([[0], [1], [2, 3], [4, 5]])
        [0.25, 0.25, 0.125, 0.125, 0.125, 0.125]
    """
    shares = {number: 1 / len(groups) / len(group) for group in groups for number in group}
    return [shares[number] for number in sorted(shares)]
