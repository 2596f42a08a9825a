"""AutoFormer's evolutionary search as pure logic: ask for a generation, tell its scores. No torch.

After Chen et al., "AutoFormer" (ICCV 2021), section 3.4 and its published code, with the faults of the code
mended: the last generation is ranked like every other, crossover only pairs parents that fit each other
(vision transformers: of equal depth), and no attempt is unbounded. Ties are broken toward fewer parameters,
then toward the subnet evaluated first.
"""

from __future__ import annotations

import dataclasses
import math
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

from growtas.errors import UsageError
from growtas.searching.limits import FeasibleSet
from growtas.searching.predictor import Predictor
from growtas.searching.racing import Bar
from growtas.searching.result import Evaluation, best_of
from growtas.space import seeded_rng
from growtas.subnet import AnySubnet

# Sets of at most this many subnets are listed in full when drawing no longer finds new ones.
_LISTABLE = 20_000
_HELD_OUT = 5  # of so many candidates the predictor leaves one alone, on which its ranking is measured
_TRIES_PER_CANDIDATE = 10  # as published: ten attempts per wanted child, over all children


@dataclass(frozen=True)
class EvolutionConfig:
    """Sizes and rates of the evolution; the defaults are AutoFormer's.

    Args:
        population: subnets of one generation.
        generations: generations in all, the first, random one included; every one is ranked.
        parents: the best subnets so far, over all generations, from which children are made.
        mutations: mutated children of each generation.
        crossovers: crossed children of each generation; random subnets fill up the rest.
        p_depth, p_layer, p_embed: probabilities of :meth:`growtas.space.SearchSpace.mutate`.

    Raises:
        UsageError: a size is not a positive whole number, a rate lies outside 0 to 1, or the children
            exceed the population.
    """

    population: int = 50
    generations: int = 20
    parents: int = 10
    mutations: int = 25
    crossovers: int = 25
    p_depth: float = 0.4
    p_layer: float = 0.2
    p_embed: float = 0.4

    def __post_init__(self) -> None:
        least = {"population": 1, "generations": 1, "parents": 1, "mutations": 0, "crossovers": 0}
        for name, minimum in least.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
                raise UsageError(f"{name}={value!r} must be a whole number of {minimum} or more.")
        for name in ("p_depth", "p_layer", "p_embed"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name}={getattr(self, name)!r} is a probability; choose 0 to 1.")
        if self.mutations + self.crossovers > self.population:
            raise UsageError(
                f"{self.mutations} mutations and {self.crossovers} crossovers do not fit a population of "
                f"{self.population}; lower them or raise the population."
            )

    def to_dict(self) -> dict[str, int | float]:
        """The settings as plain values."""
        return dataclasses.asdict(self)


class Generations(ABC):
    """Asks for subnets, generation by generation; a search is one of these, a scorer and a log.

    The candidates depend on the seed, on the evaluations ranked and on what a predictor knew before, on
    nothing else, so that replaying recorded ones leads to the same search.

    Args:
        feasible: the subnets within the limits.
        config: sizes and rates.
        rng: a private generator.

    Attributes:
        predictor: chooses candidates from more proposals while it ranks well; None for a search without.
    """

    predictor: Predictor | None = None

    def __init__(self, feasible: FeasibleSet, config: EvolutionConfig, rng: random.Random) -> None:
        self.feasible, self.config = feasible, config
        self.generation = -1  # of the candidates last asked for
        self.exhausted = False
        self._rng = rng
        self._visited: set[AnySubnet] = set()
        self._candidates: tuple[AnySubnet, ...] = ()
        self._tries = _TRIES_PER_CANDIDATE
        self._chosen = 0  # of the candidates, at their end, by the predictor

    def ask(self) -> tuple[AnySubnet, ...]:
        """The next generation.

        Returns:
            Distinct subnets within the limits, never asked before: as many as the population, fewer where
            the limits leave no more, none when the search is over.

        Raises:
            RuntimeError: the last generation's scores have not been told.
        """
        if self._candidates:
            raise RuntimeError("tell() the scores of the last generation before asking for the next one.")
        if self.exhausted or self.generation + 1 == self.config.generations:
            return ()
        candidates = self._proposals()
        if self.predictor is not None and self.predictor.ranking.good:
            candidates = self._choose(candidates)
        self._candidates = tuple(candidates)
        self.exhausted = not candidates
        self.generation += bool(candidates)
        return self._candidates

    def rank(self, evaluations: Sequence[Evaluation]) -> None:
        """Take in the generation last asked for. Args: evaluations: one per candidate, in order."""
        if self.predictor is not None:
            self.predictor.learn(evaluations, self._chosen)
            self._chosen = 0
        self._rank(evaluations)

    @abstractmethod
    def status(self, history: Sequence[Evaluation]) -> tuple[str, ...]:
        """How far the search has come, the most important first."""

    @abstractmethod
    def _next(self) -> list[AnySubnet]:
        """Accepted subnets for the next generation; random ones fill it up."""

    @abstractmethod
    def _rank(self, evaluations: Sequence[Evaluation]) -> None:
        """As :meth:`rank`."""

    @abstractmethod
    def _best_predicted(self, wanted: int, pool: Sequence[AnySubnet]) -> list[AnySubnet]:
        """The subnets of a pool that are to be evaluated, by predictions."""

    def _proposals(self) -> list[AnySubnet]:
        """A generation as it is without a predictor."""
        found = self._next()
        return found + self._random(self.config.population - len(found))

    def _choose(self, candidates: list[AnySubnet]) -> list[AnySubnet]:
        """One in five of a generation as it is, then the best predicted of the others and of more."""
        held_out = candidates[::_HELD_OUT]
        pool = [subnet for number, subnet in enumerate(candidates) if number % _HELD_OUT]
        wanted = len(pool)
        self._tries = 1  # where new subnets are rare, fewer proposals will do
        for _ in range(self.feasible.proposals - 1):
            pool += self._proposals()
        self._tries = _TRIES_PER_CANDIDATE
        best = self._best_predicted(wanted, pool)
        self._visited -= set(pool) - set(best)
        self._chosen = len(best)
        return held_out + best

    def _accept(self, subnet: AnySubnet) -> bool:
        if subnet in self._visited or subnet not in self.feasible:
            return False
        self._visited.add(subnet)
        return True

    def _random(self, wanted: int) -> list[AnySubnet]:
        found: list[AnySubnet] = []
        for _ in range(self._tries * wanted):
            if len(found) == wanted:
                return found
            subnet = self.feasible.sample(self._rng)
            if self._accept(subnet):
                found.append(subnet)
        count = self.feasible.count
        listable = count is not None and count <= _LISTABLE and self._tries == _TRIES_PER_CANDIDATE
        if len(found) < wanted and listable:
            left = [subnet for subnet in self.feasible if subnet not in self._visited]
            more = self._rng.sample(left, min(wanted - len(found), len(left)))
            self._visited.update(more)
            found += more
        return found


class Evolution(Generations):
    """AutoFormer's evolution: call :meth:`ask` and :meth:`tell` in turn until ``ask`` gives nothing.

    Args:
        feasible: the subnets within the limits.
        config: sizes and rates.
        seed: of the private random generator.

    Example:
        >>> while candidates := evolution.ask():
        ...     evolution.tell([accuracy(subnet) for subnet in candidates])
        >>> evolution.best
    """

    def __init__(self, feasible: FeasibleSet, config: EvolutionConfig, seed: int = 0) -> None:
        super().__init__(feasible, config, seeded_rng("evolution", seed))
        self._ranked: list[tuple[float, int, int, AnySubnet]] = []
        self._correct: dict[AnySubnet, bytes | None] = {}

    def _next(self) -> list[AnySubnet]:
        if not self._ranked:
            return []
        mutated = self._children(self.config.mutations, self._mutation())
        return mutated + self._children(self.config.crossovers, self._crossover())

    def _best_predicted(self, wanted: int, pool: Sequence[AnySubnet]) -> list[AnySubnet]:
        """The subnets of the highest predicted top1."""
        guesses = dict(zip(pool, self.predictor.predict(pool), strict=True))
        return sorted(pool, key=lambda subnet: -guesses[subnet])[:wanted]

    def _rank(self, evaluations: Sequence[Evaluation]) -> None:
        self._correct.update((each.subnet, each.correct) for each in evaluations)
        self.tell([evaluation.top1 for evaluation in evaluations])

    def status(self, history: Sequence[Evaluation]) -> tuple[str, ...]:
        """How far the search has come, the most important first."""
        best = best_of(history)
        return f"best {best.top1:.2f} %", f"generation {self.generation}", f"{best.params:,} parameters"

    def tell(self, scores: Sequence[float]) -> None:
        """Rank the generation last asked for.

        Args:
            scores: one finite number per candidate, larger is better.

        Raises:
            ValueError: the number of scores differs from that of the candidates, or one is not finite.
        """
        if len(scores) != len(self._candidates) or not all(math.isfinite(score) for score in scores):
            raise ValueError(
                f"{len(self._candidates)} finite scores are needed, one per candidate; got {len(scores)}."
            )
        for subnet, score in zip(self._candidates, scores, strict=True):
            self._ranked.append((-score, self.feasible.cost(subnet)[0], len(self._ranked), subnet))
        self._ranked.sort(key=lambda entry: entry[:3])
        self._candidates = ()

    @property
    def parents(self) -> tuple[AnySubnet, ...]:
        """The best subnets of all generations so far, best first."""
        return tuple(subnet for *_, subnet in self._ranked[: self.config.parents])

    @property
    def best(self) -> AnySubnet:
        """The best subnet so far; needs one generation told."""
        return self._ranked[0][-1]

    @property
    def bar(self) -> Bar | None:
        """The worst parent: who is behind it has no children; None while there are too few parents.

        Needs what :meth:`rank` is told, not :meth:`tell`.
        """
        if len(self._ranked) < self.config.parents:
            return None
        top1, *_, subnet = self._ranked[self.config.parents - 1]
        return Bar(-top1, self._correct[subnet])

    def _children(self, wanted: int, make: Callable[[], AnySubnet] | None) -> list[AnySubnet]:
        children: list[AnySubnet] = []
        for _ in range(self._tries * wanted if make else 0):
            child = make()
            if self._accept(child):
                children.append(child)
                if len(children) == wanted:
                    break
        return children

    def _mutation(self) -> Callable[[], AnySubnet]:
        parents, config = self.parents, self.config

        def mutate() -> AnySubnet:
            rates = (config.p_depth, config.p_layer, config.p_embed)
            return self.feasible.space.mutate(self._rng.choice(parents), self._rng, *rates)

        return mutate

    def _crossover(self) -> Callable[[], AnySubnet] | None:
        can_cross = self.feasible.space.can_cross
        pairs = [(a, b) for a, b in combinations(self.parents, 2) if can_cross(a, b)]
        if not pairs:
            return None  # random subnets take the place
        return lambda: self.feasible.space.crossover(*self._rng.choice(pairs), self._rng)
