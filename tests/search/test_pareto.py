"""The Pareto search: the front it finds, its table and figure, its points by name."""

import csv
import json
import random
from pathlib import Path

import pytest
from PIL import Image
from test_search import DIGITS, SMALL, FakeRun
from thinning import thinned

import growtas
from growtas import cost, plotting
from growtas.errors import GrowtasError, UsageError
from growtas.searching import Evaluation, EvolutionConfig, Limits, Objective, feasible_set, read_result
from growtas.searching.named import named_subnet, reference_to
from growtas.searching.objective import objective_of
from growtas.searching.pareto import RATES, ParetoEvolution
from growtas.searching.result import front_of

FEW = {name: SMALL[name] for name in ("population", "generations", "batch_size", "workers")}
EVERYTHING = feasible_set(DIGITS, 10, Limits())
TABLE = json.loads(Path(__file__).with_name("digits_front.json").read_text())
CORRECT = dict(zip(EVERYTHING, TABLE["correct"], strict=True))  # of a trained run: see make_digits_front.py


def evaluation(subnet, objective: Objective) -> Evaluation:
    top1 = 100 * CORRECT[subnet] / TABLE["images"]
    return Evaluation(subnet, top1, *EVERYTHING.cost(subnet), 0, objective=objective.measure(subnet))


def searched(objective: Objective, feasible=EVERYTHING, population=20, generations=20, seed=0):
    """Every evaluation of a search in the table of a trained run."""
    evolution = ParetoEvolution(feasible, EvolutionConfig(population, generations, 1, 0, 0, **RATES), seed)
    history = []
    while candidates := evolution.ask():
        history += [evaluation(subnet, objective) for subnet in candidates]
        evolution.rank(history[-len(candidates) :])
    return history


def hypervolume(history, objective: Objective) -> float:
    """The hypervolume of a front; reference: the smallest subnet's accuracy at the largest one's cost."""
    front, floor = front_of(history), evaluation(DIGITS.smallest(), objective).top1
    ends = [*(point.objective for point in front[1:]), objective.measure(DIGITS.largest())]
    return sum((end - p.objective) * max(0, p.top1 - floor) for p, end in zip(front, ends, strict=True))


@pytest.mark.parametrize(("name", "seeds"), thinned([("params", 2), ("params", 5), ("macs", 5)], (0,), True))
def test_400_evaluations_reach_the_hypervolume_of_every_subnet(name, seeds):
    objective = objective_of(name, EVERYTHING)
    whole = hypervolume([evaluation(subnet, objective) for subnet in CORRECT], objective)
    reached = []
    for seed in range(seeds):
        history = searched(objective, seed=seed)
        assert len(history) == len({each.subnet for each in history}) == 400
        reached.append(hypervolume(history, objective) / whole)
    assert sum(reached) / len(reached) >= 0.99 and min(reached) > 0.97
    drawn = [evaluation(subnet, objective) for subnet in random.Random(0).sample(list(CORRECT), 400)]
    assert hypervolume(drawn, objective) < 0.95 * whole  # so that the bar says something


def test_the_front_is_what_nothing_dominates():
    rng = random.Random(1)
    points = [
        Evaluation(subnet, rng.randrange(20), 1, 1, 0, objective=rng.randrange(20))
        for subnet in rng.sample(list(CORRECT), 60)
    ]
    front = front_of(points)

    def dominates(a, b):
        return (
            a.objective <= b.objective and a.top1 >= b.top1 and (a.objective, a.top1) != (b.objective, b.top1)
        )

    values = {(e.objective, e.top1) for e in points if not any(dominates(other, e) for other in points)}
    assert [(e.objective, e.top1) for e in front] == sorted(values)
    assert all(
        points.index(e)
        == min(i for i, p in enumerate(points) if (p.objective, p.top1) == (e.objective, e.top1))
        for e in front
    )


def test_the_evolution_keeps_to_the_limits_and_ends_with_them():
    feasible = feasible_set(DIGITS, 10, Limits(max_params=20_000))
    history = searched(objective_of("macs", feasible), feasible, population=12, generations=50)
    assert {each.subnet for each in history} == set(feasible) and len(history) == feasible.count
    assert history[0].subnet == DIGITS.smallest()


def test_the_same_seed_gives_the_same_search_whatever_else_draws():
    import numpy as np

    objective = objective_of("params", EVERYTHING)
    first = searched(objective, population=10, generations=4, seed=5)
    np.random.seed(1), random.seed(1)
    assert searched(objective, population=10, generations=4, seed=5) == first
    assert searched(objective, population=10, generations=4, seed=6) != first


@pytest.fixture
def no_pictures(monkeypatch):
    """Fronts are not drawn, which takes longer than to find them; that of `made` is."""
    monkeypatch.setattr(plotting, "front", lambda path, *shown: path)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    run = FakeRun(tmp_path_factory.mktemp("run"))
    return run, growtas.search(run, pareto="params", **FEW)


def test_a_run_is_searched_for_a_front(made):
    run, found = made
    assert found.path.name == "pareto-params-population-6-generations-3.jsonl"
    assert found.front == front_of(found.history) and len(found.history) == 18
    assert {DIGITS.smallest(), DIGITS.largest()} <= {each.subnet for each in found.history}
    assert all(
        each.objective == each.params == cost.parameters(each.subnet, DIGITS, 10) for each in found.history
    )
    for point, top1 in zip(found.front, found.test_top1, strict=True):
        assert (
            growtas.searching.evaluate.Evaluator(run.load_net(), run.data.test, workers=0).top1(point.subnet)
            == top1
        )
    assert read_result(run.path) == found
    for number, point in enumerate(found.front, start=1):
        assert f"\n{number:>5}  {point.params:>14,}  {point.top1:>7.2f}" in str(found)


def test_the_table_and_the_figure_lie_beside_the_log(made):
    run, found = made
    table, png, svg = found.files
    rows = list(csv.DictReader(table.open()))
    assert [row["point"] for row in rows] == [
        *map(str, range(1, len(found.front) + 1)),
        *[""] * (18 - len(found.front)),
    ]
    assert sorted(row["subnet"] for row in rows) == sorted(str(each.subnet) for each in found.history)
    assert [float(row["top1 (%)"]) for row in rows[: len(found.front)]] == [
        point.top1 for point in found.front
    ]
    assert Image.open(png).size[0] > 600
    before = [path.read_bytes() for path in found.files]
    for path in found.files:
        path.unlink()
    assert growtas.search(run, pareto="params", **FEW) == found
    assert [path.read_bytes() for path in found.files] == before  # made again from the log


def test_points_are_named_by_number_and_by_limit(made):
    run, found = made
    for number, point in enumerate(found.front, start=1):
        assert named_subnet(f"pareto:{number}", DIGITS, run) == point.subnet
        assert named_subnet(f"pareto:{point.params}", DIGITS, run) == point.subnet
        assert named_subnet(f"{found.path.name}:{point.params + 1}", DIGITS, run) == point.subnet
    assert reference_to(found) == "pareto"
    with pytest.raises(UsageError, match=f"the front has {len(found.front)} points, and the cheapest costs"):
        named_subnet("pareto:500", DIGITS, run)
    with pytest.raises(UsageError, match="No point of the front costs at most 1,000 parameters"):
        named_subnet("pareto:1e3", DIGITS, run)
    with pytest.raises(UsageError, match=f"the number of a point, 1 to {len(found.front)}, or a limit"):
        named_subnet("pareto", DIGITS, run)
    with pytest.raises(GrowtasError, match="no finished Pareto search; .* --pareto macs makes one"):
        named_subnet("pareto-macs:1", DIGITS, run)
    with pytest.raises(UsageError, match="give the run"):
        named_subnet("pareto:1", DIGITS)


def test_an_interrupted_search_for_a_front_resumes_to_the_same(tmp_path, made, no_pictures):
    whole = made[1]
    part = tmp_path / whole.path.name
    for lines in (9, 19):
        part.write_bytes(b"".join(whole.path.read_bytes().splitlines(keepends=True)[:lines]))
        resumed = growtas.search(FakeRun(tmp_path), pareto="params", **FEW)
        assert (resumed.front, resumed.history, resumed.test_top1) == (
            whole.front,
            whole.history,
            whole.test_top1,
        )
        assert part.read_bytes() == whole.path.read_bytes()


def test_any_cost_may_be_weighed_and_is_measured_once(tmp_path, no_pictures):
    measured = []

    def blocks(subnet) -> int:
        measured.append(subnet)
        return subnet.depth

    run, depth = FakeRun(tmp_path), Objective("depth", "blocks", blocks)
    found = growtas.search(run, pareto=depth, max_params=60_000, **FEW)
    assert measured == [each.subnet for each in found.history]
    assert growtas.search(run, pareto=depth, max_params=60_000, **FEW) == found
    assert len(measured) == 18
    assert {point.objective for point in found.front} <= {3, 4, 5}
    assert all(each.params <= 60_000 for each in found.history)
    growtas.search(run, pareto="macs", **FEW)
    with pytest.raises(GrowtasError, match="has 2 fronts that pareto may mean"):
        named_subnet("pareto:1", DIGITS, run)
    assert reference_to(found) == "pareto-depth"
    assert named_subnet("pareto-depth:5blocks", DIGITS, run) == found.within(5).subnet


def test_what_a_search_for_a_front_has_no_use_for_is_refused(tmp_path, monkeypatch):
    run = FakeRun(tmp_path)
    with pytest.raises(UsageError, match="pareto='param' is no known cost. Did you mean 'params'"):
        growtas.search(run, pareto="param")
    with pytest.raises(UsageError, match="parents=4 is for a search for one subnet"):
        growtas.search(run, pareto="params", parents=4)
    with pytest.raises(UsageError, match="under every limit at once"):
        growtas.search(run, pareto="params", max_params=(1e5, 2e5))
    monkeypatch.setitem(__import__("sys").modules, "pymoo.algorithms.moo.nsga2", None)
    with pytest.raises(UsageError, match=r"needs pymoo .* pip install 'growtas\[pymoo\]'"):
        growtas.search(run, pareto="params", **FEW)
    assert run.loaded == 0
    assert list(tmp_path.iterdir()) == []
