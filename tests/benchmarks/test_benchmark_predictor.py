"""The benchmark of the predictor: what it counts, and the tables of it."""

from __future__ import annotations

import importlib

from common import predictor_report, results


def test_it_counts_evaluations_and_tells_them_in_tables(tmp_path):
    benchmark = importlib.import_module("predictor")
    space, table = benchmark.digits()
    found = benchmark.searches(space, 10, 20_000, (6, 3, 2), benchmark.table_of(table), 2)
    assert {way: [len(history) for history in histories] for way, histories in found.items()} == {
        way: [18, 18] for way in benchmark.WAYS
    }
    history = found[predictor_report.PLAIN][0]
    best = max(each.top1 for each in history)
    number = benchmark.until(history, best)
    assert history[number - 1].top1 == best > max([e.top1 for e in history[: number - 1]], default=0)
    assert benchmark.until(history, 101) is None

    records = [{"space": "digits", "limit": None, "subnets": 9, "needed": [50, None, 150], "way": "without"}]
    shares = [[n / 20 for n in range(1, 21)]] * 2
    front = {"space": predictor_report.FRONT, "objective": "MACs", "shares": shares, "way": "predictor"}
    deep = {"space": "glyphs-deep", "goal": 50.0, "needed": [9, None], "best": [[1, 2, 3, 4]] * 2}
    ranked = {"space": predictor_report.RANKED, "fitted": 50, "tau": [0.5, 0.7], "by_size": [0.1, 0.2]}
    records += [front, ranked, {**deep, "way": "without"}]
    results.write(tmp_path / predictor_report.FILE, {"seeds": 2}, records)
    lines = [line.split("|") for line in predictor_report.predictor(tmp_path).splitlines() if "|" in line]
    cells = [[cell.strip() for cell in line[1:-1]] for line in lines]
    assert cells[2] == ["none (9 subnets)", "without", "150", "1 of 3", "2 of 3", "2 of 3"]
    assert cells[5] == ["MACs", "predictor", "25.0 %", "50.0 %", "75.0 %", "100.0 %", "2 of 2"]
    assert cells[8:10] == [["predictor", "0.60"], ["parameters alone", "0.15"]]
    assert cells[12] == ["without", "1.00 %", "2.00 %", "3.00 %", "4.00 %", "-", "1 of 2"]
    assert predictor_report.predictor(tmp_path / "none") == ""


def test_the_surrogate_is_fixed_and_near_to_what_was_measured():
    benchmark = importlib.import_module("predictor")
    accuracy, quality = benchmark.glyphs_deep()
    subnets = [benchmark.SPACE.smallest(), benchmark.SPACE.largest()]
    small, large = accuracy(subnets)
    assert (small, large) == tuple(accuracy(subnets)) == (accuracy(subnets[:1])[0], accuracy(subnets[1:])[0])
    assert small < large and quality["error"] < 0.4 * quality["spread"]
