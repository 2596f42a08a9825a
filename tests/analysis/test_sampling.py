"""Figures F and G: what is counted in logs, against counting by hand and against the methods."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from logged_runs import logged_run, run_of, write_step
from scipy import stats

from growtas import cost
from growtas.analysis import charts, parts, sampling_schedule, sampling_strategies
from growtas.analysis.sampling_schedule import SamplingSchedule, chi_square_tail, share_interval
from growtas.errors import UsageError
from growtas.space import load_space
from growtas.subnet import Subnet
from growtas.training.log import RunLog, read_log

DIGITS = load_space("digits")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of each kind of log: all groups, stages, chosen subnets, a sampler that learns."""
    folder = tmp_path_factory.mktemp("runs")
    made = {name: logged_run(folder / name, name, epochs=20, steps=30) for name in ("uniform", "growtas")}
    made["growtas, two"] = logged_run(folder / "two", "growtas", steps=30, subnets_per_step=2, sandwich=True)
    made["prenas"] = _chosen(folder / "prenas")
    made["focusformer"] = _learned(folder / "focusformer")
    return made


def _chosen(path):
    """Two subnets, one of them drawn in two of three steps; none of the smallest group."""
    run = run_of(path, "prenas")
    log, subnets = RunLog(path), [str(DIGITS.smallest((1,))), str(DIGITS.largest((2,)))]
    preferred = [{"subnet": text, "params": 0, "score": 0.0, "probability": 0.5} for text in subnets]
    log.write("stage", 0, 0, stage=0, groups=[0, 1, 2], preferred=preferred)
    for step in range(run.steps):
        write_step(log, run, step, 0, [subnets[step % 3 == 0]])
    log.close()
    return run


def _learned(path):
    run = run_of(path, "focusformer")
    log = RunLog(path)
    log.write("stage", 0, 0, stage=0, groups=[0, 1, 2], uniform_steps=6, sampler_updates=1)
    for step in range(run.steps):
        write_step(log, run, step, 0, [str(DIGITS.smallest() if step >= 6 else DIGITS.largest())])
    log.close()
    return run


# -- figure F --------------------------------------------------------------------------------------------


def test_every_draw_is_in_one_cell_of_the_map(runs):
    found = sampling_strategies(runs)
    for name, run in runs.items():
        rows = found.tables["draws"].where(method=name)
        records = list(read_log(run.path, "step"))
        assert sum(rows.column("draws")) == sum(len(record["subnets"]) for record in records)
        shares = Counter()
        for row in rows.rows:
            shares[row[1]] += row[-1]
        assert all(share == pytest.approx(100) for share in shares.values())
    rows = found.tables["draws"].where(method="uniform").rows
    first = [record["subnets"][0] for record in read_log(runs["uniform"].path, "step") if record["epoch"] < 2]
    sizes = [cost.parameters(Subnet.parse(text), DIGITS, 10) for text in first]
    for _, start, end, least, most, draws, _ in rows[:5]:
        assert (start, end) == (0, 2)
        assert draws == sum(least <= size < most for size in sizes)


def test_columns_part_where_a_stage_begins(runs):
    (_, stage) = [record["epoch"] for record in read_log(runs["growtas"].path, "stage")]
    rows = sampling_strategies(runs).tables["draws"].where(method="growtas")
    assert {row[2] for row in rows.rows if row[1] < stage} >= {stage}
    widest = cost.parameters(DIGITS.largest((1,)), DIGITS, 10)
    assert all(row[3] <= widest for row in rows.rows if row[1] < stage)
    assert any(row[3] > widest for row in rows.rows if row[1] >= stage)


def test_shares_of_groups_are_counted_per_stage(runs):
    found = sampling_strategies(runs).tables["groups"].where(method="growtas")
    records = list(read_log(runs["growtas"].path, "step"))
    for stage in (1, 2):
        own = [record["group"][0] for record in records if record["stage"] == stage - 1]
        assert found.where(stage=stage).column("draws") == [own.count(group) for group in range(3)]
    assert found.where(stage=1).column("share")[2] == 0


def test_what_a_method_means_to_draw_is_read_off_its_log(runs):
    found = sampling_strategies(runs).tables["intended"]
    assert found.where(method="uniform").rows == tuple(
        ("uniform", 0, 20, value, "uniform") for value in (24, 36, 48)
    )
    assert [row[1:3] for row in found.where(method="growtas", group=48).rows] == [(10, 20)]
    assert {row[3:] for row in found.where(method="prenas").rows} == {(36, "chosen"), (48, "chosen")}
    assert [(row[1], row[2], row[4]) for row in found.where(method="focusformer", group=24).rows] == [
        (0, 2, "uniform"),
        (2, 6, "learned"),
    ]


def test_weights_of_groups_are_told(runs, tmp_path):
    weighted = logged_run(tmp_path / "run", "uniform", method_options="group_weights=5,5,0", steps=3)
    found = sampling_strategies({"plain": runs["uniform"], "weighted": weighted})
    assert found.facts["intended"]["plain"] == "every subnet alike, from first to last"
    assert found.facts["intended"]["weighted"] == "groups by their weights, every subnet of one alike"
    assert found.tables["intended"].where(method="weighted").column("group") == [24, 36]


def test_few_subnets_are_told_one_by_one(runs):
    found = sampling_strategies(runs)
    assert set(found.tables["candidates"].column("method")) == {"prenas", "focusformer"}
    rows = found.tables["candidates"].where(method="prenas").rows
    assert [(row[1], row[3]) for row in rows] == [
        (str(DIGITS.smallest((1,))), 12),
        (str(DIGITS.largest()), 6),
    ]
    text = next(sentence for sentence in found.findings() if sentence.startswith("prenas"))
    assert "drew 18 times, 2 different subnets" in text and "109,990 parameters" in text


def test_halves_of_a_run_are_told_apart(runs):
    found = sampling_strategies(runs)
    row = found.tables["methods"].where(method="focusformer")
    assert row.column("small_first_half") == [pytest.approx(100 / 3)]  # 3 of 9 draws
    assert row.column("small_second_half") == [100]
    assert "focusformer 33 % and 100 %" in found.findings()[0]


def test_figure_f_is_drawn_from_what_is_kept(runs):
    found = sampling_strategies(runs)
    again = type(found).from_json(found.to_json())
    assert (again.tables, again.facts) == (found.tables, found.facts)
    drawn = again.drawings()[""]
    text = charts.svg_text(drawn.figure, "figure-f", drawn.alt)
    for words in (*runs, "Meant: every subnet alike", "600 draws, ", "67 %"):
        assert words in text, words
    assert len(text) < 100_000
    assert again.findings() == found.findings()


def test_figure_f_of_one_run_and_of_a_convolutional_space(tmp_path):
    run = logged_run(tmp_path / "mobile", "shrinking", space="digits-mobilenet", epochs=7)
    found = sampling_strategies({"shrinking": run.path})
    assert found.facts["axis"] == "expand"
    assert len(found.tables["intended"].where(group=6).rows) == 6  # phases
    assert found.tables["intended"].where(group=3).rows == (("shrinking", 6, 7, 3, "uniform"),)
    assert "6 stages of which the first and the last are told" in found.findings()[1]
    assert "0.0 %, 0.0 %, 100.0 % from epoch 0 to 1; " in found.findings()[1]
    assert found.findings()[1].endswith(" % from epoch 6 to 6.")
    drawn = found.drawings()[""]
    assert "largest first" in charts.svg_text(drawn.figure, "figure-f", drawn.alt)


def test_a_thinned_log_is_told(tmp_path):
    run = logged_run(tmp_path / "thin", "uniform", log_every=2)
    found = sampling_strategies({"thin": run})
    assert found.tables["methods"].column("draws") == [9]
    assert found.findings()[-1] == "Not every step is in the log of thin (one in 2)."


def test_what_cannot_be_in_one_figure_is_a_sentence(runs, tmp_path):
    other = logged_run(tmp_path / "other", "uniform", space="glyphs", steps=1)
    with pytest.raises(UsageError, match="'other' is of another space"):
        sampling_strategies({"uniform": runs["uniform"], "other": other})
    with pytest.raises(UsageError, match="at least one run"):
        sampling_strategies({})
    empty = run_of(tmp_path / "empty", "uniform")
    RunLog(empty.path).close()
    with pytest.raises(UsageError, match="holds no step"):
        sampling_strategies({"empty": empty})


# -- figure G --------------------------------------------------------------------------------------------


def test_draws_are_counted_per_stage_and_group(runs):
    found = sampling_schedule(runs["growtas"])
    table = found.tables["schedules"].where(schedule="run")
    records = list(read_log(runs["growtas"].path, "step"))
    for stage in (0, 1):
        own = [record["group"][0] for record in records if record["stage"] == stage]
        rows = table.where(stage=stage + 1)
        assert rows.column("draws") == [own.count(group) for group in range(3)]
        assert rows.column("of") == [len(own)] * 3
    assert table.column("meant") == [1 / 2, 1 / 2, 0, 1 / 3, 1 / 3, 1 / 3]
    drawn = found.tables["schedules"].where(schedule="K = 2")
    assert [row[1:] for row in drawn.rows] == [row[1:] for row in table.rows]  # the same code, the same seed
    assert found.facts["differing"] == 0 and found.facts["same_as"] == "K = 2"
    meant = found.tables["schedules"].where(schedule="K = 3").column("meant")
    assert meant == [1, 0, 0, 1 / 2, 1 / 2, 0, 1 / 3, 1 / 3, 1 / 3]


def test_only_what_the_method_draws_is_counted(runs):
    table = sampling_schedule(runs["growtas, two"], stages=()).tables["schedules"]
    assert sum(table.column("draws")) == 6 * 30 * 2  # without the smallest and the largest of every step
    assert table.where(stage=1, group=48).column("draws") == [0]


def test_draws_that_are_no_longer_made_are_told(tmp_path):
    run = logged_run(tmp_path / "run", "growtas")
    records = [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]
    records[5] |= {"subnets": [str(DIGITS.largest())], "group": [2]}
    for record in records:
        del record["crc"]  # as an older version wrote them
    (run.path / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    found = sampling_schedule(run)
    assert found.facts["differing"] == 1
    assert found.tables["tests"].where(schedule="run").column("outside") == [1]
    assert "draws of a group that its stage leaves out: 1 of 18." in found.findings()[0]
    assert "not every step of the log has the same subnets (others: 1)" in found.findings()[1]


def test_intervals_and_the_test_are_those_of_scipy(runs):
    theirs = stats.binomtest(37, 90).proportion_ci(method="wilson")
    assert share_interval(37, 90) == pytest.approx((37 / 90, theirs.low, theirs.high))
    for total in (30, 50, 525):
        assert share_interval(0, total)[1] == 0 and share_interval(total, total)[2] == 1
    assert share_interval(0, 0) == (None, None, None)
    assert chi_square_tail(6.87, 2) == pytest.approx(stats.chi2.sf(6.87, 2))
    found = sampling_schedule(runs["growtas"])
    (row,) = found.tables["tests"].where(schedule="K = 1").rows
    counts = found.tables["schedules"].where(schedule="K = 1").column("draws")
    expected = stats.chisquare(counts)
    assert row[1:] == (600, pytest.approx(expected.statistic), 2, pytest.approx(expected.pvalue), 0)


def test_stages_that_do_not_fit_are_left_out_with_the_reason(tmp_path):
    run = logged_run(tmp_path / "short", "growtas", epochs=2)
    found = sampling_schedule(run)
    assert list(found.facts["left_out"]) == ["K = 3"]
    assert found.findings()[-1].startswith("K = 3 was left out: The transitions")
    with pytest.raises(UsageError, match="is of method 'uniform'"):
        sampling_schedule(logged_run(tmp_path / "uniform", "uniform"))


def test_figure_g_is_drawn_from_what_is_kept(runs, tmp_path):
    found = sampling_schedule(runs["growtas"])
    again = SamplingSchedule.from_json(found.to_json())
    assert (again.tables, again.facts) == (found.tables, found.facts)
    drawn = again.drawings()[""]
    text = charts.svg_text(drawn.figure, "figure-g", drawn.alt)
    for words in ("K = 2: the run", "K = 3", ">1/3<", "embed_dim 48", "from epoch 10"):
        assert words in text, words
    assert len(text) < 60_000 and "600 draws counted in its log" in drawn.caption
    own = sampling_schedule(logged_run(tmp_path / "own", "growtas", stages="0/0,2", transition="3"))
    assert own.facts["same_as"] is None
    text = charts.svg_text(own.drawings()[""].figure, "figure-g", "")
    for words in ("stages of its own: the run", "K = 1", "K = 2", "K = 3"):
        assert words in text, words


def test_the_parts_of_a_report_are_found():
    assert parts.part("figure-f").compares and not parts.part("figure-f").networks(None)
    assert parts.part("figure-g") is SamplingSchedule
