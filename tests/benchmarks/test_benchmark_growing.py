"""The map of when growing helps: its plan, its runs without training, its numbers and its tables."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

import growing
import pytest
from common import environment, growing_cells, growing_plan, growing_plot, growing_report, growing_runs
from common import growing_statistics as tests
from common.growing_plan import THREE, TWO, UNIFORM, Batch, Setting
from scipy.stats import t, ttest_1samp

from growtas.comparing.plan import Plan
from growtas.comparing.specs import MethodSpec, check_known
from growtas.comparing.statistics import Interval, mean_interval
from growtas.jobs.folder import check_method, write_json
from growtas.table import Table
from growtas.training.data.rendered import read_rendered
from growtas.training.log import RunLog

SMALL = Setting("small", 3e-3, 8, data="digits", space="digits")
SHORT = Setting("short", 3e-3, 4, data="digits", space="digits", widths=(32, 40, 48))

# -- statistics ------------------------------------------------------------------------------------------


def test_holm_by_hand():
    assert tests.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert tests.holm([0.01, None, 0.9]) == [pytest.approx(0.03), None, 1.0]  # what did not run counts


def test_p_says_what_the_interval_says():
    values = [0.9, 1.4, -0.2, 2.0]
    p = tests.p_value(values)
    assert p == pytest.approx(ttest_1samp(values, 0).pvalue)
    edge = mean_interval(values, 1 - p)
    assert edge.low == pytest.approx(0, abs=1e-9)
    assert tests.p_value([1.0]) is None and tests.p_value([1.0, 1.0]) == 0 and tests.p_value([0.0, 0.0]) == 1


def test_one_setting_by_itself_has_the_interval_of_its_pairs():
    gaps = [1.0, 2.5, 0.5, 3.0]
    one, pooled = tests.stratified([gaps, [7.0]]), mean_interval(gaps)
    assert (one.count, one.mean) == (4, pooled.mean)
    assert (one.low, one.high) == pytest.approx((pooled.low, pooled.high))
    assert tests.stratified([[7.0]]) is None


def test_settings_that_are_unlike_do_not_widen_the_interval_of_their_mean():
    apart = [[0.0, 1.0, 2.0], [30.0, 31.0, 32.0]]
    found, pooled = tests.stratified(apart), mean_interval([x for one in apart for x in one])
    assert found.mean == pooled.mean == 16 and pooled.low < 0
    half = 2.776 / 6**0.5  # t of four degrees of freedom, variance 1
    assert (found.low, found.high) == pytest.approx((16 - half, 16 + half), abs=1e-3)


def test_settings_count_the_same_however_many_pairs_they_have():
    many, few = [0.0, 1.0, 2.0, 0.0, 1.0, 2.0], [30.0, 31.0, 32.0]
    found = tests.stratified([many, few])
    assert (found.count, found.mean) == (9, 16)
    parts = [0.8 / 6, 1.0 / 3]  # squared standard errors of the two means
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / 5 + parts[1] ** 2 / 2)
    half = t.ppf(0.975, freedom) * sum(parts) ** 0.5 / 2
    assert (found.low, found.high) == pytest.approx((16 - half, 16 + half))


def test_power_is_that_of_the_tables():
    assert tests.pairs_needed(sigma=2.0, difference=1.0) == 34  # Cohen's d of a half, as G*Power has it
    assert tests.power(34, 2.0, 1.0) == pytest.approx(0.8078, abs=1e-4)
    assert tests.power(10, 1.0, 0.0) == pytest.approx(0.05)
    assert tests.pairs_for_interval(1.25, 0.5) == 27


# -- plan ------------------------------------------------------------------------------------------------


def test_every_planned_run_can_begin():
    keys = [each.key for each in growing_plan.SETTINGS]
    assert len(set(keys)) == len(keys) and {batch.setting for batch in growing_plan.BATCHES} == set(keys)
    for batch in growing_plan.BATCHES:
        each = growing_plan.setting(batch.setting)
        assert read_rendered(each.data)[0].name in batch.setting and f"-{each.epochs}" in batch.setting
        images = {"num_classes": 62, "train": 16000, "search": 1240, "test": 6200}
        given = each.arguments() | {"lr": f"{each.lr:g}", "limits": (), "images": images}
        plan = Plan(path=Path("none"), **given)
        specs = [MethodSpec.parse(method) for method in batch.methods]
        assert tuple(map(str, specs)) == batch.methods and batch.methods[0] == UNIFORM
        check_known(specs)
        for spec in specs:
            config = plan.cell_config(spec.first or spec, 0, each.lr)
            check_method(config, plan.space, images, plan.path)
            dataclasses.replace(config, method=spec.name, **spec.settings())


def test_what_is_compared_is_planned():
    planned = {method for batch in growing_plan.BATCHES for method in batch.methods}
    named = {method for _, *both in growing_plan.FAMILY for method in both}
    for method, baselines in growing_cells.BASELINES.items():
        named |= {method, *baselines}
    assert named - {growing_cells.AGAIN} <= planned
    pooled = [key for keys in growing_plan.POOLS.values() for key in keys]
    planned = {each.setting for each in growing_plan.BATCHES if each.stage != growing_plan.AMENDED}
    assert sorted(pooled) == sorted(planned) and planned >= set(growing_plan.ORDERED)
    assert "glyphs-lr1.2e-2-12" not in growing_plan.ORDERED  # its controls are an amendment
    wrong = {"glyphs-noise0.2-40", "glyphs-noise0.4-40"}
    assert set(growing_plan.POOLS["long"]) - set(growing_plan.POOLED[growing_plan.RIGHT_LABELS]) == wrong


# -- runs ------------------------------------------------------------------------------------------------


@pytest.fixture
def settings(monkeypatch):
    """Two small settings in place of the plan's."""
    both = (SMALL, SHORT)
    monkeypatch.setattr(growing_plan, "SETTINGS", both)
    for module in (growing_cells, growing_report, growing_plot):
        monkeypatch.setattr(module, "SETTINGS", both)
    pools = {"all": ("small", "short")}
    family = (("all", TWO, UNIFORM), ("all", THREE, UNIFORM), ("other", TWO, growing_plan.REVERSED))
    for module in (growing_cells, growing_report):
        monkeypatch.setattr(module, "FAMILY", family)
        monkeypatch.setattr(module, "UNPLANNED", (("one", TWO, UNIFORM),))
        monkeypatch.setattr(module, "POOLED", {**pools, "other": pools["all"], "one": ("short",)})
    monkeypatch.setattr(growing_plot, "POOLS", pools)


def made_up(top1: float, seed: int = 0, **config) -> dict:
    """The result of a cell."""
    group = {"top1": top1, "params": 1.0, "smallest": {"top1": top1 - 1}, "largest": {"top1": top1 + 1}}
    return {
        "groups": [{**group, "group": size} for size in (24, 36, 48)],
        "searched": [
            {"limit": f"params={k}", "top1": top1 + k, "params": 1.0, "macs": 1.0} for k in (1, 2, 3)
        ],
        "time": {"cpu": 90.0 + seed, "wall": 100.0, "device": "cpu"},
        "run": {"data": "digits", "batch_size": 32, **config},
        "made_by": {},
    }


def test_cells_run_in_order_and_failures_are_named(settings, tmp_path, monkeypatch):
    def work(argv: list[str]) -> int:
        given = json.loads(argv[1])
        if given["method"] == TWO and given["seed"] == 0:
            print("no growing today")
            return 1
        recorded = growing_runs.driver.read_plan(Path(given["out"]))
        cell = recorded.plan.cell_path(MethodSpec.parse(given["method"]), given["seed"])
        growing_runs.atomic.make_folder(cell)
        write_json(cell / "cell.json", made_up(50.0))
        return 0

    monkeypatch.setattr(growing_runs.worker, "main", work)
    monkeypatch.setattr(growing_runs, "PAUSE", 0.01)
    batches = [
        Batch("small", "coarse", 2, (UNIFORM, "growtas+")),
        Batch("small", "coarse", 1, (UNIFORM, "uniform:nonsense=1")),
        Batch("short", "coarse", 1, (UNIFORM,)),
    ]
    said: list[str] = []
    failed = growing_runs.run(tmp_path, batches, 2, 0.0, said.append)
    assert list(failed) == ["small"] and "'nonsense'" in failed["small"]
    assert said[-1].startswith("The time is over: 7 cells are left")
    failed = growing_runs.run(tmp_path, batches, 1, time.time() + 600, said.append)
    first, second = "small growtas seed 0", "small growtas+ seed 0"
    assert failed.keys() == {"small", first, second}
    assert failed[first].startswith("no growing today (exit status 1") and first in failed[second]
    done = [line.split(": ")[1] for line in said if " of 7: " in line]
    assert done[:2] == ["small uniform seed 0", first] and done[-1] == "short uniform seed 0"
    assert "50.00 50.00 50.00 (mean 50.00), 90 CPU-s" in said[-1]
    growing_runs.run(tmp_path, batches, 1, time.time() + 600, said.append)
    assert "5 of 7 cells are finished" in said
    names = [path.read_text() for path in tmp_path.glob("*/cells/*/*.processor.txt")]
    assert names == [f"{environment.cpu_name()}\n"] * 5


def test_cells_of_an_earlier_table_run_only_where_one_goes_on_from_them(settings, tmp_path):
    batches = [Batch("small", "coarse", 2, (UNIFORM, TWO, "growtas+"))]
    known = {("small", method, 0) for method in (UNIFORM, TWO)} | {("small", UNIFORM, 1)}
    said: list[str] = []
    growing_runs.run(tmp_path, batches, 1, 0.0, said.append, known | {("small", "growtas+", 0)})
    assert said[-1].startswith("The time is over: 2 cells are left")  # growtas and growtas+ of seed 1
    growing_runs.run(tmp_path, batches, 1, 0.0, said.append, known)
    assert said[-1].startswith("The time is over: 4 cells are left")  # growtas+ of seed 0 needs its weights


def test_the_clock_shows_a_time_once_a_day():
    now = time.mktime((2026, 5, 4, 23, 30, 0, 0, 0, -1))
    assert growing.seconds_until("23:45", now) == now + 15 * 60
    assert growing.seconds_until("00:15", now) == now + 45 * 60
    with pytest.raises(ValueError, match="does not match"):
        growing.seconds_until("quarter past", now)


def test_wrong_arguments_are_a_sentence(tmp_path, capsys):
    for wrong in (["--only", "nowhere"], ["--until", "25:00"], ["--jobs", "0"]):
        with pytest.raises(SystemExit):
            growing.main(["run", str(tmp_path), *wrong])
        assert wrong[1] in capsys.readouterr().err
    assert growing.main(["report", str(tmp_path)]) == 1
    assert "holds no finished cell" in capsys.readouterr().err
    assert growing.main(["power", "--sigma", "1.25", "--difference", "0.5"]) == 0
    assert "52 pairs find" in capsys.readouterr().out


# -- numbers ---------------------------------------------------------------------------------------------


@pytest.fixture
def finished(settings, tmp_path):
    """The folder of two settings with finished cells."""
    top1 = {UNIFORM: (50.0, 51.0, 52.0), TWO: (51.0, 52.5, 54.0), THREE: (50.0,)}
    for key in ("small", "short"):
        for cell in growing_runs.planned(tmp_path, Batch(key, "coarse", 3, tuple(top1))):
            own = top1[str(cell.spec)]
            if cell.seed < len(own):
                _write(cell, made_up(own[cell.seed], cell.seed))
    return tmp_path


def _write(cell: growing_runs.Cell, result: dict) -> None:
    growing_runs.atomic.make_folder(cell.path)
    write_json(cell.result, result)
    growing_cells.processor_file(cell.path).write_text("a processor\n")
    log = RunLog(cell.path)
    for step in range(400):
        log.write("step", step, 0, loss=2.0 if step < 250 else 1.0)
    for step, cosine in ((0, 0.9), (200, 0.4), (400, 0.2)):
        log.write("interference", step, 0, cosine=cosine, control={"cosine": cosine + 0.1})
    log.close()


def test_rows_of_the_cells(finished):
    table = growing_cells.cells(finished)
    assert len(table.rows) == 2 * 7
    row = table.where(setting="small", method=TWO, seed=1).records()[0]
    assert (row["small"], row["smallest"], row["largest"], row["found_3"]) == (52.5, 51.5, 53.5, 55.5)
    assert row["found"] == 54.5 and row["cpu_seconds"] == 91 and row["processor"] == "a processor"
    assert row["cosine"] == pytest.approx(0.3) and row["control_last"] == pytest.approx(0.3)
    # the level of ten classes is 1.674: 82 ones bring the mean of 250 losses below it
    assert row["left_at_epoch"] == pytest.approx((250 + 82) / (1150 // 32), rel=1e-4)
    assert growing_cells.plateau_level(62, 0.0) == pytest.approx(3.0)
    assert growing_cells.plateau_level(62, 0.4) == pytest.approx(0.6 * 3.0 + 0.4 * 4.12713, abs=1e-4)


def test_a_report_goes_on_from_an_earlier_table(finished, tmp_path, capsys):
    whole, earlier, both = tmp_path / "whole", tmp_path / "earlier.csv", tmp_path / "both"
    arguments = ["report", str(finished), "--to"]
    assert growing.main([*arguments, str(whole)]) == 0
    table = growing_cells.read_finished(whole / growing_report.CELLS)
    assert table.rows == growing_cells.cells(finished).rows
    for path in finished.glob("small/**/cell.json"):
        path.unlink()
    kept = [row for row in table.rows if row[0] == "small" or row[1] == TWO]
    changed = [(*row[:3], 99.0, *row[4:]) if row[0] == "short" else row for row in kept]
    earlier.write_text(Table.of(table.columns, reversed(changed)).csv())
    assert growing.main([*arguments, str(both), "--beyond", str(earlier)]) == 0
    joined = growing_cells.read_finished(both / growing_report.CELLS)
    again = [("short", growing_cells.AGAIN, seed) for seed in range(3)]
    assert [row[:3] for row in joined.rows] == [*(row[:3] for row in table.rows), *again]
    assert joined.where(setting="short", method=TWO).column("small") == [99.0] * 3  # the earlier ones
    assert joined.where(method=growing_cells.AGAIN).column("small") == table.where(
        setting="short", method=TWO
    ).column("small")
    gaps = growing_cells.differences(joined).where(
        setting="short", method=growing_cells.AGAIN, measure="small"
    )
    assert gaps.column("baseline") == [UNIFORM, TWO]
    assert joined.where(setting="small").rows == table.where(setting="small").rows
    earlier.write_text(table.csv())  # of the very same runs
    for path in finished.glob("short/**/*.processor.txt"):
        path.unlink()
    assert growing.main([*arguments, str(both), "--beyond", str(earlier)]) == 0
    assert growing_cells.read_finished(both / growing_report.CELLS).rows == table.rows
    earlier.write_text("setting,method\n")
    assert growing.main([*arguments, str(both), "--beyond", str(earlier)]) == 2
    assert "holds no table of cells" in capsys.readouterr().err
    earlier.write_text(Table.of(table.columns, [("elsewhere", *table.rows[0][1:])]).csv())
    assert growing.main([*arguments, str(both), "--beyond", str(earlier)]) == 2
    assert "not planned: elsewhere" in capsys.readouterr().err


def test_differences_of_settings_and_pools(finished):
    table = growing_cells.differences(growing_cells.cells(finished))
    one = table.where(setting="short", method=TWO, measure="small").records()[0]
    known = mean_interval([1.0, 1.5, 2.0])
    assert (one["pairs"], one["mean"]) == (3, 1.5) and one["low"] == pytest.approx(known.low, rel=1e-4)
    assert one["p"] == pytest.approx(tests.p_value([1.0, 1.5, 2.0]), rel=1e-4) and one["p_holm"] is None
    pool = table.where(setting="pool: all", method=TWO, measure="small").records()[0]
    assert pool["pairs"] == 6 and pool["p_holm"] == pytest.approx(3 * pool["p"], rel=1e-3)
    later = table.where(setting="pool: one", method=TWO, measure="small").records()[0]
    assert (later["pairs"], later["mean"], later["p_holm"]) == (3, 1.5, None)
    single = table.where(setting="small", method=THREE, measure="small").records()[0]
    assert (single["pairs"], single["mean"], single["low"], single["p"]) == (1, 0.0, None, None)


def test_tables_and_picture_of_the_committed_numbers(finished, tmp_path):
    root = tmp_path / "root"
    results, image = root / "benchmarks" / "results", root / "docs" / "images" / growing_report.PICTURE
    image.parent.mkdir(parents=True)
    parts = (growing_report.tests, growing_report.the_map, growing_report.mechanism)
    assert [part(results) for part in parts] == [""] * 3 and not growing_plot.plot(results, image)
    assert growing.main(["report", str(finished), "--to", str(results / growing_report.FOLDER)]) == 0
    assert growing_plot.plot(results, image) and image.stat().st_size < 100_000
    again = image.read_bytes()
    growing_plot.plot(results, image)
    assert image.read_bytes() == again
    verdicts = growing_report.tests(results)
    assert "all: `growtas` − `uniform`" in verdicts and " yes |" in verdicts
    assert "one: `growtas` − `uniform`" in growing_report.unplanned(results) and "one:" not in verdicts
    text = growing_report.the_map(results)
    assert f"(images/{growing_report.PICTURE})" in text and "**+1.50 [+0.26, +2.74]**" in text
    assert "| `short` " in text and "+0.00 (one pair)" in text
    assert growing_report.mechanism(results) == ""  # no control has run


def test_a_control_is_compared_with_what_it_controls(tmp_path):
    rows = [
        ("glyphs-lr6e-3-40", method, seed, *[value + seed] * len(growing_cells.MEASURES), "one")
        for seed in range(3)
        for method, value in ((UNIFORM, 50.0), (TWO, 52.0 + seed), (growing_plan.SHUFFLED_TWO, 51.0))
    ]
    table = Table.of(growing_cells.CELL_COLUMNS, rows)
    folder = tmp_path / growing_report.FOLDER
    folder.mkdir()
    (folder / growing_report.CELLS).write_text(table.csv())
    (folder / growing_report.DIFFERENCES).write_text(growing_cells.differences(table).csv())
    assert growing_cells.read_table(folder / growing_report.CELLS).where(seed=2).rows
    assert growing_report.rest(tmp_path).count("+3.00 [+0.52, +5.48]") == 3
    text = growing_report.mechanism(tmp_path)
    assert "| `growtas` − `uniform:group_weights=5,5,2` |     3 | +2.00 [-0.48, +4.48]" in text
    assert "order: `growtas` − `uniform:group_weights=5,5,2`" in growing_report.tests(tmp_path)


def test_pairs_across_processors_are_named(tmp_path):
    key, values = "glyphs-lr6e-3-40", [1.0] * len(growing_cells.MEASURES)
    where = {(UNIFORM, 0): "one", (UNIFORM, 1): "two", (TWO, 0): "one", (TWO, 1): "one", (THREE, 0): "one"}
    rows = [(key, *cell, *values, name) for cell, name in where.items()]
    folder = tmp_path / growing_report.FOLDER
    folder.mkdir()
    (folder / growing_report.CELLS).write_text(Table.of(growing_cells.CELL_COLUMNS, rows).csv())
    lines = growing_report.processors(tmp_path).splitlines()
    assert [line.split("|")[1:-1] for line in lines if "| one" in line or "| two" in line] == [
        [" one       ", "     4 "],
        [" two       ", "     1 "],
    ]
    assert lines[-1].split("|")[1:-1] == [f" `{key}` ", " `growtas` − `uniform` ", "     1 "]
    (folder / growing_report.CELLS).write_text(Table.of(growing_cells.CELL_COLUMNS, rows[::2]).csv())
    assert len(growing_report.processors(tmp_path).splitlines()) == 3  # one kind of pair, one processor


def test_a_second_phase_is_compared_with_the_run_that_it_went_on_from():
    values = {UNIFORM: 50.0, TWO: 60.0, growing_cells.AGAIN: 61.0, "growtas+": 63.0}
    key, measures = growing_plan.SETTINGS[0].key, len(growing_cells.MEASURES)
    rows = [(key, method, 0, *[value] * measures, "one") for method, value in values.items()]
    columns = growing_cells.CELL_COLUMNS
    for known, expected in (
        (rows, {UNIFORM: 13.0, growing_cells.AGAIN: 2.0}),
        (rows[:2] + rows[3:], {UNIFORM: 13.0, TWO: 3.0}),
    ):
        found = growing_cells.differences(Table.of(columns, known)).where(method="growtas+", measure="small")
        assert {row["baseline"]: row["mean"] for row in found.records()} == expected


def test_the_share_of_a_run_on_the_plateau(tmp_path):
    key, at = "glyphs-lr6e-3-12", growing_cells.CELL_COLUMNS.index("left_at_epoch")
    rows = []
    for seed in range(3):
        for method, left, value in (
            (UNIFORM, None if seed else 6.0, 50.0),
            (TWO, 3.0, 60.0),
            (THREE, 9.0, 55.0),
        ):
            row = [key, method, seed, *[value + seed] * len(growing_cells.MEASURES), "one"]
            row[at] = left
            rows.append(row)
    folder = tmp_path / growing_report.FOLDER
    folder.mkdir()
    (folder / growing_report.CELLS).write_text(Table.of(growing_cells.CELL_COLUMNS, rows).csv())
    assert growing_report.rest(tmp_path) == ""  # 12 epochs
    line = next(line for line in growing_report.shares(tmp_path).splitlines() if key in line)
    assert [cell.strip() for cell in line.split("|")[2:7]] == ["83 %", "+58 %", "+10.0", "+8 %", "+5.0"]


def test_verdicts_are_those_of_the_plan():
    say = growing_report.verdict
    assert (
        say(Interval(9, 2.0, 1.0, 3.0), 0.01) == "yes" and say(Interval(9, -2.0, -3.0, -1.0), 0.01) != "yes"
    )
    assert say(Interval(9, 0.1, -0.8, 1.0), 0.8) == "no"
    assert say(Interval(9, 0.3, -0.8, 1.4), 0.8) == say(Interval(1, 0.3, None, None), None) == "undecided"


def test_the_plan_is_shown(capsys):
    assert growing.main(["plan"]) == 0
    shown, rendered = capsys.readouterr().out, growing_report.plan(Path())
    for each in growing_plan.SETTINGS:
        assert each.key in shown and f"`{each.key}`" in rendered
