"""Comparisons of a tiny space on the digits: what they write, and that it is right."""

from __future__ import annotations

import csv
import dataclasses
import fcntl
import json
import math
import os
import shutil
import signal
import time

import pytest
from comparisons import (
    SMALL,
    Fork,
    fingerprints,
    meanwhile,
    pending,
    results,
    runs,
    space_file,
    stopped_child,
    stopping_itself,
    wait_for,
)
from matplotlib.figure import Figure
from scipy import stats
from thinning import thinned

import growtas
from growtas import cli
from growtas.comparing import driver, figure
from growtas.comparing.plan import RATE_SEED, Plan, read_plan, write_plan
from growtas.comparing.specs import read_methods
from growtas.errors import UsageError
from growtas.jobs import Runner, job
from growtas.searching import read_result
from growtas.searching.evaluate import Evaluator
from growtas.training import Run


def read(path):
    """The values in a file, without their checksum."""
    data = json.loads(path.read_text())
    data.pop("crc", None)
    return data


def rows_of(made, method):
    return {row.measure.key: row for row in made.summary.rows if str(row.spec) == method}


def test_every_cell_is_a_run_with_its_results(made):
    assert not made.failed and not made.summary.missing
    specs = ("uniform", "growtas", "growtas+:epochs=1")
    cells = [made.path / "cells" / spec / f"seed-{s}" for spec in specs[:2] for s in (0, 1)]
    cells += list((made.path / "cells").glob("growtas+*/seed-[01]"))
    assert len(cells) == 6
    for path in cells:
        run, cell = Run.open(path), read(path / "cell.json")
        assert run.finished and cell["seed"] == run.config.seed
        assert cell["method"].partition(":")[0] == run.config.method
        assert [group["group"] for group in cell["groups"]] == [8, 12, 16]
        assert cell["time"]["cpu"] > 0 and cell["time"]["device"] == "cpu"


def test_the_accuracies_are_those_of_the_runs(made):
    path = made.path / "cells" / "growtas" / "seed-1"
    run, cell = Run.open(path), read(path / "cell.json")
    evaluator = Evaluator(run.load_net(), run.splits().test)
    for group in cell["groups"]:
        subnets = [*group["random"], group["smallest"], group["largest"]]
        for each in subnets:
            subnet = growtas.Subnet.parse(each["subnet"])
            assert (each["top1"], each["top5"]) == evaluator.accuracy(subnet)
            assert each["params"] == growtas.cost.parameters(subnet, run.space, 10)
        assert group["top1"] == pytest.approx(sum(each["top1"] for each in group["random"]) / 3)
    (found,) = cell["searched"]
    best = read_result(path / "search-params-2000.jsonl")
    assert len(best.history) == found["evaluated"] == 8
    assert (found["params"], found["top1"]) == (best.best.params, best.test_top1)
    assert (found["top1"], found["top5"]) == evaluator.accuracy(best.best.subnet)
    assert found["params"] <= 2000


def test_the_report_is_of_paired_differences(made):
    values = {}
    for method in ("uniform", "growtas"):
        cells = [read(made.path / "cells" / method / f"seed-{s}" / "cell.json") for s in (0, 1)]
        values[method] = [cell["groups"][2]["top1"] for cell in cells]
        row = rows_of(made, method)["group 16"]
        assert row.level.mean == pytest.approx(sum(values[method]) / 2)
    theirs = stats.ttest_rel(values["growtas"], values["uniform"]).confidence_interval(0.95)
    row = rows_of(made, "growtas")["group 16"]
    assert (row.difference.low, row.difference.high) == pytest.approx((theirs.low, theirs.high))
    assert rows_of(made, "uniform")["group 16"].difference is None
    cells = [read(made.path / "cells" / "growtas" / f"seed-{s}" / "cell.json") for s in (0, 1)]
    means = [math.fsum(group["top1"] for group in cell["groups"]) / 3 for cell in cells]
    assert rows_of(made, "growtas")["all groups"].level.mean == pytest.approx(sum(means) / 2)


def test_the_files_agree_with_each_other(made):
    data = read(made.path / "report.json")
    assert data["baseline"] == "uniform" and data["seeds"] == 2 and data["lr"] == 3e-3
    with open(made.path / "report.csv", newline="") as file:
        table = {(row["method"], row["measure"]): row for row in csv.DictReader(file)}
    assert len(data["results"]) == 3 * (3 + 1 + 6 + 1)
    for result in data["results"]:
        row = table[result["method"], result["measure"]]
        assert float(row["mean"]) == pytest.approx(result["top1"]["mean"], rel=1e-5)
        excludes = result["excludes_zero"]
        assert row["excludes_zero"] == ("" if excludes is None else str(excludes).lower())
    with open(made.path / "cells.csv", newline="") as file:
        cells = list(csv.DictReader(file))
    assert {(row["method"], row["seed"]) for row in cells} == {
        (method, seed) for method in data["methods"] for seed in "01"
    }
    assert (made.path / "comparison.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert sorted(file.name for file in made.files) == sorted(
        ["report.md", "report.json", "report.csv", "cells.csv", "comparison.png"]
    )


def test_the_text_says_which_intervals_exclude_zero(made):
    assert (made.path / "report.md").read_text() == str(made)
    decided = [row for row in made.summary.rows if row.decided]
    compared = [row for row in made.summary.rows if row.difference is not None]
    assert f"{len(decided)} of {len(compared)} intervals exclude zero." in made.text
    for row in decided:
        better = "better" if row.difference.mean > 0 else "worse"
        (line,) = [
            line
            for line in made.text.splitlines()
            if line.startswith(f"- {row.spec} is {better} than uniform on {row.measure.label}:")
        ]
        assert line.endswith("†.") == row.strict.excludes(0.0)
    # two methods, eleven measures: 22 intervals are looked at together
    row = rows_of(made, "growtas")["group 16"]
    assert row.strict.mean == row.difference.mean
    half, strict = ((found.high - found.low) / 2 for found in (row.difference, row.strict))
    assert strict == pytest.approx(half * stats.t.ppf(1 - 0.025 / 22, 1) / stats.t.ppf(0.975, 1))
    assert "With 2 pairs the spread is hardly known" in made.text
    for method in ("growtas", "growtas+:epochs=1"):
        silent = f"- {method}: every interval includes zero; no difference is shown."
        assert (silent in made.text) == all(str(row.spec) != method for row in decided)
    for said in ("2 paired seeds (0 to 1)", "- torch: ", "- cores: ", "batch_size=192", "processor time"):
        assert said in made.text


def test_differences_that_dwarf_the_others_are_compressed():
    axes = Figure().subplots()
    figure._compress(axes, [0.5, 1.0, 1.5, 7.0])
    assert axes.get_yscale() == "linear"
    figure._compress(axes, [0.5, 1.0, 1.5, 40.0])
    assert axes.get_yscale() == "symlog"
    figure._compress(Figure().subplots(), [0.0, 0.0, 5.0])  # most methods alike: no scale to compress to


def test_a_second_phase_counts_the_first(made):
    for seed in (0, 1):
        first = read(made.path / "cells" / "growtas" / f"seed-{seed}" / "cell.json")["time"]
        (file,) = (made.path / "cells").glob(f"growtas+*/seed-{seed}/cell.json")
        both = read(file)["time"]
        assert both["phases"][:1] == first["phases"] and len(both["phases"]) == 2
        assert both["cpu"] == pytest.approx(first["cpu"] + both["phases"][1]["cpu"], abs=0.002)
    times = {str(row.spec): row for row in made.summary.times}
    assert times["uniform"].ratio is None and times["growtas+:epochs=1"].ratio.mean > 0


# -- again, more, otherwise ------------------------------------------------------------------------------


@pytest.fixture
def copied(made, tmp_path, fork_cells):
    """A finished comparison that may be changed."""
    return shutil.copytree(made.path, tmp_path / "out")


def test_nothing_is_trained_again(made, copied, monkeypatch):
    monkeypatch.setattr(job, "start_process", lambda *given: pytest.fail("a cell was started"))
    before = fingerprints(copied)
    again = growtas.compare(copied, device="cpu")
    assert fingerprints(copied) == before
    assert again.text == made.text
    assert growtas.compare(copied, report_only=True).text == made.text


def test_methods_and_seeds_can_be_added(copied):
    before = fingerprints(copied)
    found = growtas.compare(copied, methods=["growtas:new_region=standard"], seeds=1, device="cpu")
    found = growtas.compare(copied, methods=["uniform"], seeds=3, device="cpu")
    after = fingerprints(copied)
    assert {name: after[name] for name in before} == before
    assert len([name for name in after if name.endswith("cell.json")]) == 6 + 2
    methods = ["uniform", "growtas", "growtas+:epochs=1", "growtas:new_region=standard"]
    assert read(copied / "report.json")["methods"] == methods
    assert rows_of(found, "uniform")["group 8"].level.count == 3
    assert rows_of(found, methods[3])["group 8"].difference.count == 1
    assert {(str(spec), seed) for spec, seed in found.summary.missing} == {
        ("growtas", 2),
        ("growtas+:epochs=1", 2),
        (methods[3], 1),
        (methods[3], 2),
    }


def test_other_settings_are_refused(copied, tmp_path):
    before = fingerprints(copied)
    plan = (copied / "compare.json").read_text()
    for given, says in (
        ({"epochs": 3}, "compares methods with epochs=2, but epochs=3"),
        ({"lr": "auto"}, "lr=0.003, but lr=auto"),
        ({"limits": [2000, 3000]}, "limits=params=2000, but"),
        ({"subnets": 4}, "subnets=3, but subnets=4"),
        ({"settings": ["batch_size=192"]}, "settings="),
        ({"space": "digits"}, "on the space 'small', which is not the 'digits'"),
    ):
        with pytest.raises(UsageError, match=says):
            growtas.compare(copied, **given)
    assert fingerprints(copied) == before and (copied / "compare.json").read_text() == plan


def test_another_recipe_is_refused_but_reported(copied, made):
    data = read(copied / "compare.json")
    data["recipe"] |= {"smoothing": 0.25, "lr": 0.5, "setting_of_the_future": 1}  # the rate was given: 3e-3
    (copied / "compare.json").write_text(json.dumps(data))
    with pytest.raises(UsageError, match="smoothing was 0.25 and is 0.1"):
        growtas.compare(copied, device="cpu")
    assert growtas.compare(copied, report_only=True).text == made.text
    data["recipe"]["smoothing"] = 0.1
    (copied / "compare.json").write_text(json.dumps(data))
    assert growtas.compare(copied, device="cpu").text == made.text
    assert read(copied / "compare.json")["recipe"]["lr"] == 0.5


def test_the_files_of_a_comparison_are_checked(copied):
    checked = growtas.check(copied)
    assert checked.ok, checked
    assert {"compare.json", "cells/growtas/seed-0/cell.json"} <= {
        str(f.path) for f in checked.findings if f.ok
    }
    file = copied / "cells" / "growtas" / "seed-0" / "cell.json"
    file.write_text(file.read_text().replace('"top1": ', '"top1": 1', 1))
    assert [str(f.path) for f in growtas.check(copied).findings if f.ok is False] == [
        "cells/growtas/seed-0/cell.json"
    ]


def test_missing_cells_are_named(copied):
    (copied / "cells" / "growtas" / "seed-1" / "cell.json").unlink()
    found = growtas.compare(copied, report_only=True)
    assert [(str(spec), seed) for spec, seed in found.summary.missing] == [("growtas", 1)]
    assert "**Not finished: 1 of 6 cells**: growtas seed 1." in found.text
    row = rows_of(found, "growtas")["group 8"]
    assert row.difference.count == row.level.count == 1 and row.difference.low is None
    assert rows_of(found, "growtas+:epochs=1")["group 8"].difference.count == 2


def test_top_five_is_told_where_cells_have_it(copied, made):
    files = sorted((copied / "cells").rglob("seed-*/cell.json"))
    found = {file: read(file)["searched"][0]["top5"] for file in files}
    mean = sum(found[file] for file in files if file.parts[-3] == "uniform") / 2
    assert rows_of(made, "uniform")["params=2000"].top5.mean == pytest.approx(mean)
    assert rows_of(made, "uniform")["group 8"].top5 is None  # of many subnets
    assert f"{mean:.2f}" in made.text.partition("Top-5 of the subnets found")[2].partition("##")[0]
    cell = read(files[0])  # as it was before cells had it
    for subnet in (*cell["searched"], *(g[name] for g in cell["groups"] for name in ("smallest", "largest"))):
        del subnet["top5"]
    files[0].write_text(json.dumps(cell))
    again = growtas.compare(copied, report_only=True)
    assert "Top-5" not in again.text and "## Training time" in again.text
    without = {(str(row.spec), row.measure.key) for row in again.summary.rows if row.top5 is None}
    assert (cell["method"], "params=2000") in without and ("uniform", "params=2000") not in without


def test_an_unknown_time_is_left_out(copied):
    file = copied / "cells" / "growtas" / "seed-0" / "cell.json"
    cell = read(file)
    cell["time"]["cpu"] = cell["time"]["wall"] = None
    file.write_text(json.dumps(cell))
    found = growtas.compare(copied, report_only=True)
    (row,) = [row for row in found.summary.times if str(row.spec) == "growtas"]
    assert (row.cpu.count, row.ratio.count, row.unknown) == (1, 1, 1)
    assert "killed and nobody knows its time: 1." in found.text


# -- failures and interruptions --------------------------------------------------------------------------

TWO = SMALL | {"methods": ["uniform", "growtas"], "seeds": 1, "jobs": 1}


def test_a_cell_that_fails_does_not_stop_the_others(tmp_path, fork_cells, capsys):
    given = TWO | {"methods": ["uniform", "uniform:opt=nonsense", "growtas"]}
    found = growtas.compare(tmp_path / "out", space_file(tmp_path), **given)
    assert list(found.failed) == ["uniform:opt=nonsense seed 0"]
    assert "nonsense" in found.failed["uniform:opt=nonsense seed 0"]
    assert "**Not finished: 1 of 3 cells**: uniform:opt=nonsense seed 0." in found.text
    assert rows_of(found, "growtas")["group 8"].difference.count == 1
    assert "2 of 3: uniform:opt=nonsense seed 0 failed" in capsys.readouterr().err


def test_the_learning_rate_is_chosen_on_the_search_split(tmp_path, fork_cells, monkeypatch):
    monkeypatch.setattr(driver, "MOST_FURTHER_RATES", 1)  # the next test has all of them
    given = TWO | {"methods": ["uniform"], "lr": "auto", "epochs": 1}
    found = growtas.compare(tmp_path / "out", space_file(tmp_path), **given)
    chosen = read(tmp_path / "out" / "rate.json")
    rates = [each["lr"] for each in chosen["tried"]]
    assert {1.5e-3, 3e-3, 6e-3} <= set(rates)
    assert all(high == 2 * low for low, high in zip(rates, rates[1:], strict=False))
    assert chosen["lr"] not in (rates[0], rates[-1]) or len(rates) == 3 + 1
    assert chosen["top1"] == max(each["top1"] for each in chosen["tried"])
    plan = read_plan(tmp_path / "out").plan
    for each in chosen["tried"]:
        run = Run.open(plan.rate_path(each["lr"]))
        assert (run.config.method, run.config.seed, run.config.lr) == ("uniform", RATE_SEED, each["lr"])
    run = Run.open(plan.rate_path(chosen["lr"]))
    evaluator = Evaluator(run.load_net(), run.splits().search)
    groups = [[evaluator.top1(s) for s in plan.group_subnets(g)["random"]] for g in range(3)]
    assert chosen["top1"] == pytest.approx(sum(sum(group) / len(group) for group in groups) / 3)
    cell = read(tmp_path / "out" / "cells" / "uniform" / "seed-0" / "cell.json")
    assert cell["run"]["lr"] == chosen["lr"] == plan.rate()
    assert f"Learning rate {chosen['lr']:g} for every method, chosen with uniform sampling" in found.text


@pytest.mark.parametrize(
    ("peak", "tried"),
    [
        (3e-3, [1.5e-3, 3e-3, 6e-3]),
        (12e-3, [1.5e-3, 3e-3, 6e-3, 12e-3, 24e-3]),
        (0.75e-3, [0.375e-3, 0.75e-3, 1.5e-3, 3e-3, 6e-3]),
        (1.0, [1.5e-3 * 2**k for k in range(7)]),
    ],
)
def test_learning_rates_beyond_the_best_at_an_end(tmp_path, monkeypatch, peak, tried):
    plan = Plan(tmp_path, growtas.load_space("digits"), "digits", 1, "auto", {}, (), 1, 1, 1, {})
    reached = lambda plan, rates, *rest: {rate: -abs(math.log(rate / peak)) for rate in rates}  # noqa: E731
    monkeypatch.setattr(driver, "_try_rates", reached)
    driver._choose_rate(plan, Runner(None, ""), {})
    chosen = read(tmp_path / "rate.json")
    assert [each["lr"] for each in chosen["tried"]] == pytest.approx(tried)
    assert plan.rate() == pytest.approx(min(peak, tried[-1]))


def compare_when_free(out, patience=120.0):
    """Go on; on a busy machine the killed processes may hold the folder's lock a moment longer."""
    end = time.monotonic() + patience
    while True:
        try:
            return growtas.compare(out, device="cpu", jobs=1)
        except UsageError as error:
            if "Another process" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(0.1)


@pytest.mark.parametrize(
    "how", thinned(["everything killed", "the parent killed", "interrupted"], fast=["interrupted"])
)
def test_stopped_in_the_middle(made, tmp_path, fork_cells, how):
    """While the second cell trains: it ends as if nothing had been, and what was finished is left alone."""
    out, space = tmp_path / "out", space_file(tmp_path)
    arguments = SMALL | {"jobs": 1, "seeds": 1, "methods": ["uniform", "growtas"]}
    with stopping_itself("cells/growtas/seed-0"):
        process = Fork(lambda: growtas.compare(out, space, **arguments) and 0, tmp_path / "output")
    cell = stopped_child(process)
    process.send_signal(signal.SIGINT if how == "interrupted" else signal.SIGKILL)
    if how == "interrupted":
        wait_for(lambda: pending(cell, signal.SIGINT))
    os.kill(cell, signal.SIGKILL if how == "everything killed" else signal.SIGCONT)
    status = process.wait()
    wait_for(lambda: not runs(cell))  # by itself, where only its parent was killed
    if how == "interrupted":
        assert status == 130
        assert f"Continue with: growtas compare {out}" in (tmp_path / "output").read_text()
    before = fingerprints(out)
    assert len([name for name in before if name.endswith("cell.json")]) == 1
    found = compare_when_free(out)
    assert not found.failed and not found.summary.missing
    after = fingerprints(out)
    assert {name: after[name] for name in before} == before
    wanted = {name: data for name, data in results(made.path).items() if data["seed"] == 0}
    assert results(out) == {name: data for name, data in wanted.items() if "growtas+" not in name}
    (row,) = [row for row in found.summary.times if str(row.spec) == "growtas"]
    assert row.unknown == (how == "everything killed")  # nobody knows how long the killed attempt took


def test_a_method_alone_is_compared_with_nothing(made, tmp_path, fork_cells):
    assert cli.main(["compare", str(tmp_path / "none"), "--report-only"]) == 2
    found = growtas.compare(tmp_path / "out", space_file(tmp_path), **TWO | {"methods": ["uniform"]})
    assert not found.failed
    wanted = results(made.path)["cells/uniform/seed-0/cell.json"]
    assert results(tmp_path / "out") == {"cells/uniform/seed-0/cell.json": wanted}
    assert "No other method has a seed in common with uniform yet." in found.text


def test_two_at_a_time_in_one_folder_are_refused(copied):
    with open(copied / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="Another process is comparing methods"):
            growtas.compare(copied, device="cpu")


def test_what_another_process_added_meanwhile_is_kept(copied, monkeypatch):
    other = lambda: growtas.compare(copied, methods=["growtas"], seeds=1, device="cpu")  # noqa: E731
    recorded = dataclasses.replace(read_plan(copied), methods=read_methods(["uniform"]), seeds=1)
    write_plan(recorded)
    meanwhile(monkeypatch, driver, other)
    growtas.compare(copied, methods=["uniform"], seeds=2, device="cpu")
    assert [str(spec) for spec in read_plan(copied).methods] == ["uniform", "growtas"]
    assert read_plan(copied).seeds == 2


def test_other_settings_of_another_process_meanwhile_stay(copied, tmp_path, monkeypatch):
    """Both found an empty folder; the first one's plan is not written over."""
    out = tmp_path / "new"
    meanwhile(monkeypatch, driver, lambda: shutil.copytree(copied, out))
    with pytest.raises(UsageError, match="epochs=2, but epochs=3 was given"):
        growtas.compare(out, space_file(tmp_path), **SMALL | {"epochs": 3})
    assert (out / "compare.json").read_bytes() == (copied / "compare.json").read_bytes()
