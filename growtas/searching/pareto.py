"""A Pareto search by pymoo's NSGA-II, with growtas' own mutation and crossover. Imports pymoo when used.

After Deb et al., "A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II" (2002). The two objectives
are the cost, which is to be low, and top-1, which is to be high. No subnet is asked for twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from growtas.errors import UsageError
from growtas.searching.evolution import EvolutionConfig, Generations
from growtas.searching.limits import FeasibleSet
from growtas.searching.result import Evaluation, front_of
from growtas.space import seeded_rng
from growtas.subnet import AnySubnet

CROSSED = 0.5  # share of the children
#: Smaller steps than AutoFormer's: of five settings, this one reached the largest hypervolume on average over
#: 24 searches of 400 evaluations (20 generations of 20) of a digits supernet trained for ten epochs.
RATES = {"p_depth": 0.1, "p_layer": 0.1, "p_embed": 0.1}


class ParetoEvolution(Generations):
    """NSGA-II: call :meth:`ask` and :meth:`rank` in turn until ``ask`` gives nothing.

    The first generation holds the smallest and the largest subnet, where the limits admit them. A child is
    one of two parents that won a tournament each or, in half of the cases and where these can be crossed,
    crossed of both; then it is mutated.

    Args:
        feasible: the subnets within the limits.
        config: population, generations and the rates of the mutation.
        seed: of the private random generators.

    Raises:
        UsageError: pymoo is not installed.
    """

    def __init__(self, feasible: FeasibleSet, config: EvolutionConfig, seed: int = 0) -> None:
        super().__init__(feasible, config, seeded_rng("pareto", seed))
        _check_pymoo()
        self._nsga2, self._seed = None, seed
        self._evaluations: list[Evaluation] = []

    def _next(self) -> list[AnySubnet]:
        if self._nsga2 is not None:
            return [subnet for subnet in self._children() if self._accept(subnet)]
        ends = (self.feasible.space.smallest(), self.feasible.space.largest())
        return [subnet for subnet in ends[: self.config.population] if self._accept(subnet)]

    def _rank(self, evaluations: Sequence[Evaluation]) -> None:
        import numpy as np
        from pymoo.core.population import Population
        from pymoo.problems.static import StaticProblem

        if self._nsga2 is None:
            self._nsga2 = self._start(self._candidates)
            self._nsga2.ask()  # the candidates
        individuals = Population.new("X", _column(self._candidates))
        costs = [[evaluation.objective, -evaluation.top1] for evaluation in evaluations]
        problem = StaticProblem(self._nsga2.problem, F=np.array(costs, float))
        self._nsga2.evaluator.eval(problem, individuals)
        self._nsga2.tell(infills=individuals)
        self._evaluations += evaluations
        self._candidates = ()

    def _best_predicted(self, wanted: int, pool: Sequence[AnySubnet]) -> list[AnySubnet]:
        """One after the other, the subnet that is predicted to rise highest above the front; then it counts
        as a point of the front, with its prediction."""
        import numpy as np

        costs = np.array([self.predictor.size.measure(subnet) for subnet in pool], float)
        guesses = np.array(self.predictor.predict(pool))
        front = front_of(self._evaluations)
        heights = np.array([-np.inf, *(point.top1 for point in front)])
        below = heights[np.searchsorted([point.objective for point in front], costs, side="right")]
        below = np.maximum(below, min(heights[1:]))
        found: list[AnySubnet] = []
        for _ in range(min(wanted, len(pool))):
            best = int(np.argmax(guesses - below))
            found.append(pool[best])
            below = np.where(costs >= costs[best], np.maximum(below, guesses[best]), below)
            guesses[best] = -np.inf
        return found

    def status(self, history: Sequence[Evaluation]) -> tuple[str, ...]:
        """How far the search has come, the most important first."""
        return f"front of {len(front_of(history))}", f"generation {self.generation}"

    def _children(self) -> list[AnySubnet]:
        self._nsga2.mating.n_max_iterations = 10 * self._tries
        children = self._nsga2.ask()
        self._nsga2.termination.force_termination = False  # set where there was no new child
        return [] if children is None else [child.X[0] for child in children]

    def _start(self, first: Sequence[AnySubnet]) -> Any:
        """pymoo's algorithm, whose first generation is given."""
        from pymoo.algorithms.moo.nsga2 import NSGA2
        from pymoo.core import crossover, duplicate, mutation
        from pymoo.core.problem import Problem
        from pymoo.core.termination import NoTermination

        rng, feasible, config = self._rng, self.feasible, self.config
        space, visited = feasible.space, self._visited

        class Crossover(crossover.Crossover):
            def _do(self, _problem, parents, **_kwargs):  # (2, matings, 1) -> (1, matings, 1)
                pairs = zip(parents[0, :, 0], parents[1, :, 0], strict=True)
                return _column([_crossed(a, b) for a, b in pairs])[None]

        class Mutation(mutation.Mutation):
            def _do(self, _problem, subnets, **_kwargs):
                rates = (config.p_depth, config.p_layer, config.p_embed)
                return _column([space.mutate(subnet, rng, *rates) for subnet in subnets[:, 0]])

        class New(duplicate.DuplicateElimination):
            def do(self, children, *others, **_kwargs):
                seen, new = {each.X[0] for other in others for each in other}, []
                for number, child in enumerate(children):
                    subnet = child.X[0]
                    if subnet not in seen and subnet not in visited and subnet in feasible:
                        new.append(number)
                        seen.add(subnet)
                return children[new]

        def _crossed(a: AnySubnet, b: AnySubnet) -> AnySubnet:
            return space.crossover(a, b, rng) if space.can_cross(a, b) else rng.choice((a, b))

        algorithm = NSGA2(
            pop_size=config.population,
            sampling=_column(first),
            crossover=Crossover(2, 1, prob=CROSSED),
            mutation=Mutation(),
            eliminate_duplicates=New(),
        )
        algorithm.initialization.eliminate_duplicates = duplicate.NoDuplicateElimination()
        problem = Problem(n_var=1, n_obj=2, vtype=object)
        return algorithm.setup(problem, seed=self._seed, termination=NoTermination())


def _column(subnets: Sequence[AnySubnet]) -> Any:
    """The subnets as pymoo holds them: an array (subnets, 1) of objects."""
    import numpy as np

    column = np.empty((len(subnets), 1), dtype=object)
    column[:, 0] = subnets
    return column


def _check_pymoo() -> None:
    """Raises: UsageError: pymoo is not installed."""
    try:
        import pymoo.algorithms.moo.nsga2  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"A Pareto search needs pymoo 0.6.2 or later ({error}): pip install 'growtas[pymoo]'."
        ) from error
