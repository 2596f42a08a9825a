"""Evaluations that a search needs with the accuracy predictor, without it, and with "larger is better".

    python benchmarks/predictor.py [--seeds 12] [--out FILE]
    python benchmarks/predictor.py --measure RUN

Searches are replayed in two tables, so that nothing is trained or evaluated. Of the digits' space, all 4,032
subnets of a trained supernet were evaluated (tests/search/make_digits_front.py), so that the best one and the
whole front are known. The second space, glyphs-deep, has 1.9e9 subnets, of which 500 random ones were
evaluated on a supernet trained for twelve epochs. A forest of randomised trees fitted to these stands in for
the others, as in Zela et al., "Surrogate NAS Benchmarks" (ICLR 2022); each subnet's accuracy is the forest's
prediction and a fixed residual of its own, drawn with the standard deviation of the forest's out-of-bag
error. So it is no measurement of the best subnets of that space.

``--measure`` evaluates the 500 subnets of a run in glyphs-deep (SPACE below) and writes MEASURED.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from common import environment, predictor_report, results
from common.predictor_report import FRONT, HELPED, LARGEST, PLAIN
from sklearn.ensemble import ExtraTreesRegressor

from growtas import cost
from growtas.progress import say, track
from growtas.searching import Evaluation, Evolution, EvolutionConfig, Limits, Objective, feasible_set
from growtas.searching.objective import objective_of
from growtas.searching.pareto import RATES, ParetoEvolution
from growtas.searching.predictor import Predictor
from growtas.searching.result import Ranking, front_of
from growtas.space import SearchSpace, load_space
from growtas.subnet import Subnet

DIGITS = environment.RESULTS.parents[1] / "tests" / "search" / "digits_front.json"
MEASURED = environment.RESULTS / "predictor" / "glyphs-deep.json"
SPACE = SearchSpace(
    name="glyphs-deep",
    embed_dim=(24, 32, 40, 48),
    mlp_ratio=(1, 2, 3, 4),
    num_heads=(1, 2, 3),
    depth=(4, 5, 6, 7, 8),
    image_size=28,
    patch_size=7,
    in_channels=1,
    head_dim=16,
    max_relative_position=3,
)
RANDOM_SUBNETS = 500
DEEP_LIMIT = 80_000  # parameters

Accuracy = Callable[[Sequence[Subnet]], list[float]]


class Largest(Predictor):
    """Chooses the largest proposals."""

    ranking = Ranking(1.0, 1.0, "parameters", 1, 0.0, 0)

    def predict(self, subnets: Sequence[Subnet]) -> list[float]:
        """The sizes of the subnets."""
        return list(map(self.size.measure, subnets))


WAYS = {PLAIN: None, HELPED: Predictor, LARGEST: Largest}


def table_of(values: dict[Subnet, float]) -> Accuracy:
    """The accuracies of a table."""
    return lambda subnets: [values[subnet] for subnet in subnets]


def digits() -> tuple[SearchSpace, dict[Subnet, float]]:
    """The space of the digits, and the accuracy of every subnet."""
    space, table = load_space("digits"), json.loads(DIGITS.read_text())
    subnets = feasible_set(space, 10, Limits())
    correct = zip(subnets, table["correct"], strict=True)
    return space, {subnet: 100 * count / table["images"] for subnet, count in correct}


def glyphs_deep() -> tuple[Accuracy, dict[str, float]]:
    """The surrogate's accuracy of subnets of glyphs-deep, and how good it is."""
    table = json.loads(MEASURED.read_text())
    subnets = [SPACE.parse(text) for text, _ in table["subnets"]]
    top1 = [100 * count / table["images"] for _, count in table["subnets"]]
    forest = ExtraTreesRegressor(100, min_samples_leaf=2, bootstrap=True, oob_score=True, random_state=0)
    forest.fit([_row(subnet) for subnet in subnets], top1)
    error = float(np.std(forest.oob_prediction_ - top1))

    def accuracy(subnets: Sequence[Subnet]) -> list[float]:
        residuals = (random.Random(str(subnet)).gauss(0, error) for subnet in subnets)
        return [a + b for a, b in zip(forest.predict(list(map(_row, subnets))), residuals, strict=True)]

    return accuracy, {"r2": float(forest.oob_score_), "error": error, "spread": float(np.std(top1))}


def _row(subnet: Subnet) -> list[float]:
    """The sizes from which the forest predicts."""
    none = (0,) * (SPACE.depth[-1] - subnet.depth)
    sizes = [count(subnet, SPACE, 62) for count in (cost.parameters, cost.macs)]
    return [subnet.embed_dim, subnet.depth, *subnet.num_heads, *none, *subnet.mlp_ratio, *none, *sizes]


def history_of(evolution: Any, accuracy: Accuracy, objective: Objective | None = None) -> list[Evaluation]:
    """Every evaluation of a search, in order."""
    history: list[Evaluation] = []
    while candidates := evolution.ask():
        for subnet, top1 in zip(candidates, accuracy(candidates), strict=True):
            value = objective and objective.measure(subnet)
            costs = evolution.feasible.cost(subnet)
            history.append(Evaluation(subnet, float(top1), *costs, 0, objective=value))
        evolution.rank(history[-len(candidates) :])
    return history


def searches(
    space: SearchSpace, classes: int, limit: int | None, sizes: Sequence[int], accuracy: Accuracy, seeds: int
) -> dict[str, list[list[Evaluation]]]:
    """The searches for the best subnet under a limit, of every way and seed.

    Args:
        sizes: population, generations and parents.
    """
    feasible = feasible_set(space, classes, Limits(max_params=limit))
    feasible.cost = functools.cache(feasible.cost)
    population, generations, parents = sizes
    config = EvolutionConfig(population, generations, parents, population // 2, population // 2)
    found: dict[str, list[list[Evaluation]]] = {way: [] for way in WAYS}
    for seed in track(range(seeds), f"{space.name} {limit}", "seed"):
        for way, kind in WAYS.items():
            evolution = Evolution(feasible, config, seed)
            evolution.predictor = kind and kind(objective_of("params", feasible))
            found[way].append(history_of(evolution, accuracy))
            if way == HELPED:
                say(f"{space.name} {limit} seed {seed}: {evolution.predictor.ranking}")
    return found


def until(history: Sequence[Evaluation], top1: float) -> int | None:
    """Evaluations until a subnet is as accurate as that; None where none is."""
    return next((number for number, each in enumerate(history, start=1) if each.top1 >= top1), None)


def digits_records(seeds: int) -> list[dict[str, Any]]:
    """Evaluations until the best subnet is found."""
    space, table = digits()
    records = []
    for limit in (40_000, 60_000, None):
        feasible = feasible_set(space, 10, Limits(max_params=limit))
        best = max(table[subnet] for subnet in feasible)
        found = searches(space, 10, limit, (20, 20, 10), table_of(table), seeds)
        for way, histories in found.items():
            needed = [until(history, best) for history in histories]
            records.append({"space": "digits", "limit": limit, "subnets": feasible.count, "way": way})
            records[-1]["needed"] = needed
    return records


def front_records(seeds: int) -> list[dict[str, Any]]:
    """Shares of the hypervolume of the whole front, by evaluations."""
    space, table = digits()
    everything = feasible_set(space, 10, Limits())
    records = []
    for name in ("params", "macs"):
        objective = objective_of(name, everything)
        floor, end = table[space.smallest()], objective.measure(space.largest())

        def volume(history: Sequence[Evaluation], floor: float = floor, end: float = end) -> float:
            front = front_of(history)
            ends = [*(point.objective for point in front[1:]), end]
            return sum((e - p.objective) * max(0, p.top1 - floor) for p, e in zip(front, ends, strict=True))

        whole = [Evaluation(s, table[s], 0, 0, 0, objective=objective.measure(s)) for s in everything]
        for way in (PLAIN, HELPED):
            shares = []
            for seed in track(range(seeds), f"front {name}", "seed"):
                config = EvolutionConfig(20, 20, 1, 0, 0, **RATES)
                evolution = ParetoEvolution(everything, config, seed)
                evolution.predictor = WAYS[way] and Predictor(objective)
                history = history_of(evolution, table_of(table), objective)
                shares.append([volume(history[:n]) / volume(whole) for n in range(20, 401, 20)])
            records.append({"space": FRONT, "objective": objective.unit, "way": way, "shares": shares})
    return records


def ranking_records(seeds: int) -> list[dict[str, Any]]:
    """Kendall's tau on 100 measured subnets of glyphs-deep, by the number of others that were fitted."""
    table = json.loads(MEASURED.read_text())
    size = Objective("params", "parameters", lambda subnet: cost.parameters(subnet, SPACE, 62))
    evaluations = [
        Evaluation(subnet, 100 * count / table["images"], size.measure(subnet), 0, 0)
        for subnet, count in ((SPACE.parse(text), count) for text, count in table["subnets"])
    ]
    records = []
    for fitted in predictor_report.FITTED:
        rankings = []
        for seed in range(seeds):
            drawn = random.Random(seed).sample(evaluations, fitted + 100)
            predictor = Predictor(size)
            predictor.learn(drawn[100:], 0)
            predictor.learn(drawn[:100], 0)
            rankings.append(predictor.ranking)
        taus = {"tau": [each.tau for each in rankings], "by_size": [each.by_size for each in rankings]}
        records.append({"space": predictor_report.RANKED, "fitted": fitted, **taus})
    return records


def deep_records(seeds: int) -> list[dict[str, Any]]:
    """The best accuracy so far, by evaluations, with the sizes of a search without arguments."""
    accuracy, quality = glyphs_deep()
    found = searches(SPACE, 62, DEEP_LIMIT, (50, 20, 10), accuracy, seeds)
    goal = mean(max(each.top1 for each in history) for history in found[PLAIN])
    return [
        {
            "space": "glyphs-deep",
            "limit": DEEP_LIMIT,
            "way": way,
            **quality,
            "goal": goal,
            "needed": [until(history, goal) for history in histories],
            "best": [[max(e.top1 for e in h[:n]) for n in predictor_report.AFTER] for h in histories],
        }
        for way, histories in found.items()
    ]


def measure(run: str) -> None:
    """Evaluate random subnets of a run and write MEASURED."""
    from growtas.searching.evaluate import Evaluator
    from growtas.training.run import Run

    opened, rng = Run.open(run), random.Random(0)
    subnets = list(dict.fromkeys(SPACE.sample(rng) for _ in range(RANDOM_SUBNETS)))
    evaluator = Evaluator(opened.load_net("cpu"), opened.splits().search, workers=0)
    scores = evaluator.score(subnets)
    counted = [(str(s), round(x.top1 * x.images / 100)) for s, x in zip(subnets, scores, strict=True)]
    write_measured(evaluator.images, counted)


def write_measured(images: int, counted: Sequence[tuple[str, int]]) -> None:
    """Write MEASURED. Args: counted: subnets and how many images each has right."""
    lines = ",\n".join(f"  {json.dumps(list(each))}" for each in counted)
    MEASURED.parent.mkdir(parents=True, exist_ok=True)
    MEASURED.write_text(f'{{"images": {images}, "subnets": [\n{lines}\n]}}\n')


def main(arguments: list[str] | None = None) -> int:
    """Replay, print, and write the result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--measure", metavar="RUN", help="evaluate the subnets of the second table")
    parser.add_argument("--out", help="the JSON file (benchmarks/results/predictor/searches.json)")
    given = parser.parse_args(arguments)
    if given.measure:
        measure(given.measure)
        return 0
    parts = (digits_records, front_records, ranking_records, deep_records)
    records = [record for part in parts for record in part(given.seeds)]
    out = Path(given.out) if given.out else environment.RESULTS / predictor_report.FILE
    head = {"benchmark": "predictor", "date": datetime.date.today().isoformat(), "seeds": given.seeds}
    results.write(out, head, records)
    print(predictor_report.tables(results.read(out)))
    print(f"wrote {out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
