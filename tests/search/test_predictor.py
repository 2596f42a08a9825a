"""The accuracy predictor: it ranks, it is used only while it does, and its searches stay repeatable."""

import json
import multiprocessing
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau
from test_pareto import CORRECT, EVERYTHING, TABLE, hypervolume
from test_racing import Answered, free_port
from test_search import DIGITS, FakeRun

import growtas
from growtas.searching import (
    Evaluation,
    Evolution,
    EvolutionConfig,
    Limits,
    Score,
    SearchLog,
    feasible_set,
    loop,
    racing,
    read_result,
)
from growtas.searching.objective import objective_of
from growtas.searching.pareto import RATES, ParetoEvolution
from growtas.searching.predictor import BAR, Predictor, effects, kendall, solved
from growtas.searching.racing import raced
from growtas.space import load_space

SIZE = objective_of("params", EVERYTHING)
SMALL = {"population": 12, "generations": 4, "parents": 4, "batch_size": 40, "workers": 0, "predictor": True}


def evaluated(subnets, top1, objective=None) -> list[Evaluation]:
    cost = objective.measure if objective else lambda subnet: None
    params = {subnet: SIZE.measure(subnet) if subnet in CORRECT else 1 for subnet in subnets}
    return [Evaluation(s, top1(s), params[s], 1, 0, objective=cost(s)) for s in subnets]


def additive(subnet) -> float:
    """A stand-in for accuracy: a fixed number of each choice, to one of 270 images."""
    return round(sum(random.Random(repr(each)).random() for each in effects(subnet)) * 2.7) / 2.7


def coin(subnet) -> float:
    """An accuracy that no choice explains."""
    return random.Random(str(subnet)).randrange(270) / 2.7


# -- the regression and its ranking --------------------------------------------------------------------------


def test_kendalls_tau_counts_ties_as_scipy_does():
    rng = np.random.default_rng(0)
    for high in (3, 10, 1000):
        pairs = rng.integers(high, size=(30, 2))
        assert kendall([pairs]) == pytest.approx(kendalltau(*pairs.T).statistic)
    assert kendall([[(1, 5), (2, 5), (3, 5)]]) is None
    assert kendall([]) is None
    # levels differ from generation to generation; only pairs within one count
    assert kendall([[(1, 5), (2, 6)], [(11, 1), (12, 2)]]) == 1


def test_predictions_are_a_ridge_regressions():
    subnets = random.Random(0).sample(list(CORRECT), 60)
    predictor = Predictor(SIZE)
    predictor.learn(evaluated(subnets[:40], additive), 0)
    names = sorted({effect for subnet in subnets[:40] for effect in effects(subnet)}, key=repr)
    x = np.array([[float(name in effects(subnet)) for name in names] for subnet in subnets])
    y = np.array([additive(subnet) for subnet in subnets[:40]])
    centred = x[:40] - x[:40].mean(0)
    sizes = np.linalg.solve(centred.T @ centred + 5 * np.eye(len(names)), centred.T @ (y - y.mean()))
    expected = y.mean() + (x - x[:40].mean(0)) @ sizes
    assert predictor.predict(subnets) == pytest.approx(expected.tolist(), abs=1e-3)


def test_a_system_is_solved():
    rng = np.random.default_rng(0)
    factor, right = rng.normal(size=(20, 20)), rng.normal(size=20)
    matrix = factor @ factor.T + np.eye(20)
    assert solved(matrix, right) == pytest.approx(np.linalg.solve(matrix, right))


def test_a_fit_is_the_same_to_the_bit_in_whatever_order_sums_are_made():
    subnets = random.Random(0).sample(list(CORRECT), 350)
    first, second = Predictor(SIZE), Predictor(SIZE)
    first.learn(evaluated(subnets, additive), 0)
    second.learn(evaluated(subnets[:300] + subnets[:299:-1], additive), 0)
    assert first.predict(subnets[:50]) == second.predict(subnets[:50])
    assert list(first._places) == list(second._places)  # all effects are among the first 300 subnets


@pytest.mark.parametrize("name", ["autoformer-tiny", "ofa-mobilenetv3"])
def test_both_families_are_ranked_by_what_their_choices_are_worth(name):
    space, rng = load_space(name), random.Random(0)
    predictor = Predictor(SIZE)
    assert str(predictor.ranking) == "no subnet has been predicted before its evaluation yet: not used"
    for _ in range(3):
        predictor.learn(evaluated([space.sample(rng) for _ in range(50)], additive), 0)
    ranking = predictor.ranking
    assert ranking.tau > 0.6 and ranking.good and ranking.subnets == 50
    subnets = [space.sample(rng) for _ in range(50)]
    truth = kendalltau(predictor.predict(subnets), list(map(additive, subnets))).statistic
    assert abs(truth - ranking.tau) < 0.2


def test_what_was_known_or_chosen_is_not_held_out():
    subnets = random.Random(0).sample(list(CORRECT), 100)
    predictor = Predictor(SIZE, {subnet: additive(subnet) for subnet in subnets[:50]})
    predictor.learn(evaluated(subnets[40:60], additive), 0)  # ten of these are known
    assert predictor.ranking.subnets == 10
    predictor.learn(evaluated(subnets[60:80], additive), 15)
    assert (predictor.ranking.subnets, predictor.ranking.generations) == (15, 1)
    (first, second) = predictor._held_out
    assert [row[2] for row in first + second] == [additive(subnet) for subnet in subnets[50:65]]


# -- what it does to a search --------------------------------------------------------------------------------


def evolve(evolution, top1, objective=None) -> list[Evaluation]:
    history = []
    while candidates := evolution.ask():
        history += evaluated(candidates, top1, objective)
        evolution.rank(history[-len(candidates) :])
    return history


@pytest.mark.parametrize("kind", [Evolution, ParetoEvolution])
def test_below_the_bar_a_search_proposes_as_it_does_without(kind):
    objective = None if kind is Evolution else SIZE
    histories = []
    for helped in (False, True):
        evolution = kind(EVERYTHING, EvolutionConfig(20, 5, 5, 10, 10), 1)
        evolution.predictor = Predictor(SIZE) if helped else None
        histories.append(evolve(evolution, coin, objective))
    ranking = evolution.predictor.ranking
    assert ranking.tau < BAR and not ranking.good and ranking.generations == 0
    assert histories[0] == histories[1]


def correct(subnet) -> float:
    return 100 * CORRECT[subnet] / TABLE["images"]


def test_a_predictor_finds_the_best_subnet_of_a_trained_run_sooner():
    feasible = feasible_set(DIGITS, 10, Limits(max_params=40_000))
    best = max(correct(subnet) for subnet in feasible)
    needed = {False: [], True: []}
    for seed in range(3):
        for helped, numbers in needed.items():
            evolution = Evolution(feasible, EvolutionConfig(20, 8, 10, 10, 10), seed)
            evolution.predictor = Predictor(SIZE) if helped else None
            history = evolve(evolution, correct)
            assert len(history) == len({each.subnet for each in history}) == 160
            assert all(each.subnet in feasible for each in history)
            numbers.append(next((i for i, each in enumerate(history) if each.top1 == best), 160))
    assert sum(needed[True]) < 0.75 * sum(needed[False])
    ranking = evolution.predictor.ranking
    assert ranking.generations >= 5 and ranking.tau > max(BAR, ranking.by_size)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["params", "macs"])
def test_a_predictor_reaches_the_hypervolume_of_every_subnet_sooner(name):
    objective = objective_of(name, EVERYTHING)
    reached = {False: [], True: []}
    for seed in range(8):
        for helped, volumes in reached.items():
            evolution = ParetoEvolution(EVERYTHING, EvolutionConfig(20, 15, 1, 0, 0, **RATES), seed)
            evolution.predictor = Predictor(objective) if helped else None
            volumes.append(hypervolume(evolve(evolution, correct, objective), objective))
    assert sum(reached[True]) > sum(reached[False])


def test_a_predictor_works_beside_racing(tmp_path, monkeypatch):
    """Subnets that leave early are learnt from with the accuracy that their races tell."""
    monkeypatch.setattr(racing, "LEAST", 30)

    def search(path: Path) -> list[Evaluation]:
        evolution = Evolution(EVERYTHING, EvolutionConfig(20, 6, 4, 10, 10), 0)
        evolution.predictor = Predictor(SIZE)

        def score(subnets, seen):
            for subnet in subnets:
                right = random.Random(repr(subnet)[:9]).sample(range(TABLE["images"]), CORRECT[subnet])
                bits = np.packbits(np.isin(np.arange(TABLE["images"]), right)).tobytes()
                full = Score(correct(subnet), TABLE["images"], bits)
                yield raced(full, evolution.bar, TABLE["images"]) if evolution.bar else full

        with SearchLog(path, {"seed": 0}, {}) as log:
            history = loop.evolve(evolution, log, score)
        assert evolution.predictor.ranking.generations > 0
        return history

    history = search(tmp_path / "log.jsonl")
    content = (tmp_path / "log.jsonl").read_bytes()
    assert len({each.images for each in history}) > 1
    (tmp_path / "log.jsonl").write_bytes(content[: len(content) * 3 // 4])
    assert search(tmp_path / "log.jsonl") == history
    assert (tmp_path / "log.jsonl").read_bytes() == content


# -- whole searches ------------------------------------------------------------------------------------------


class RankedRun(FakeRun):
    """A run whose images tell subnets apart."""

    def __init__(self, path):
        super().__init__(path)
        self.data.search = Answered(self.load_net(), DIGITS.smallest(), 40)


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """Two searches of a run, of which the second knows the first."""
    run = RankedRun(tmp_path_factory.mktemp("run"))
    return [growtas.search(run, max_params=limit, **SMALL) for limit in (60_000, 50_000)]


def test_every_result_is_evaluated_and_the_ranking_stands_in_the_log(searched):
    for found in searched:
        assert found.ranking.generations > 0 and found.ranking.subnets >= 12
        assert read_result(found.path) == found
        assert "-predictor-True" in found.path.name
        assert {round(each.top1 * 0.4, 9) % 1 for each in found.history} == {0}  # whole numbers of 40 images
    records = [json.loads(line) for line in searched[1].path.read_text().splitlines()]
    prior = [subnet for subnet, _ in records[1]["evaluations"]]
    assert prior == [each.subnet.to_json() for each in searched[0].history]
    assert records[0]["predictor"] is True


def test_an_interrupted_search_resumes_to_the_same_bits(searched, tmp_path):
    first, second = (found.path for found in searched)
    content = second.read_bytes()
    for number, lines in enumerate((1, 30)):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / first.name).write_bytes(first.read_bytes())
        part = folder / second.name
        part.write_bytes(b"".join(content.splitlines(keepends=True)[:lines]) + b'{"record": "pri')
        if lines > 1:  # what is searched in between changes nothing
            growtas.search(RankedRun(folder), population=4, generations=1, batch_size=40, workers=0)
        growtas.search(RankedRun(folder), max_params=50_000, **SMALL)
        assert part.read_bytes() == content, lines


def search_on(rank: int, port: str, folder: Path) -> None:
    os.environ.update(
        WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port, RANK=str(rank), LOCAL_RANK=str(rank)
    )
    torch.set_num_threads(1)
    found = growtas.search(RankedRun(folder), max_params=(60_000, 50_000), **SMALL)
    (folder / f"found-{rank}").write_text(repr([(each.history, each.ranking) for each in found]))


def test_two_ranks_and_several_limits_give_the_same_bits(searched, tmp_path):
    port, fork = free_port(), multiprocessing.get_context("fork")
    ranks = [fork.Process(target=search_on, args=(rank, port, tmp_path)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(300)
    assert [process.exitcode for process in ranks] == [0, 0]
    for found in searched:
        assert (tmp_path / found.path.name).read_bytes() == found.path.read_bytes()
    expected = repr([(each.history, each.ranking) for each in searched])
    assert [(tmp_path / f"found-{rank}").read_text() for rank in range(2)] == [expected] * 2


def test_a_search_tells_how_it_ranks_and_what_it_shares(tmp_path, capsys):
    run, size = RankedRun(tmp_path), {**SMALL, "generations": 2}
    growtas.search(run, **size)
    said = capsys.readouterr().err
    assert "24 subnets evaluated now, 0 from earlier searches\n" in said
    assert "predictor: no subnet has been predicted before its evaluation yet: not used" in said
    assert "predictor: Kendall's tau " in said and " on 12 held-out subnets (" in said
    second = growtas.search(run, **{**size, "predictor": False})
    said = capsys.readouterr().err
    assert "24 evaluations of earlier searches of these weights are shared\n" in said
    assert "subnets evaluated now, " in said and "predictor" not in said and second.ranking is None
    growtas.search(run, **size)
    said = capsys.readouterr().err
    assert "0 subnets evaluated now, 0 from earlier searches, 24 from the log of this search\n" in said
    assert "predictor: Kendall" not in said
