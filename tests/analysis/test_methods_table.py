"""Table A: from the cells of a comparison to means, differences and sentences; a report's comparison."""

from __future__ import annotations

import json

import pytest
from comparisons import SPACE
from scipy import stats

import growtas
from growtas.analysis import charts, methods_comparison, methods_table, parts
from growtas.analysis.methods_comparison import common_settings, compare_for, unfit
from growtas.analysis.methods_table import MethodsTable
from growtas.analysis.networks import ofa_space_for
from growtas.analysis.workspace import Workspace
from growtas.comparing.limits import read_limits
from growtas.comparing.plan import Plan, Recorded, write_plan
from growtas.comparing.specs import read_methods
from growtas.errors import UsageError
from growtas.jobs import Placement
from growtas.jobs.folder import write_json
from growtas.space import load_space, space_from_dict
from growtas.training.config import TrainConfig

IMAGES = {"num_classes": 10, "train": 1151, "search": 287, "test": 359}
GAINS = {"uniform": (0, 0, 0), "growtas": (1.0, 3.0, 2.0), "prenas": (-1.0, 2.0, -3.0)}
SECONDS = {"uniform": 100.0, "growtas": 95.0, "prenas": 98.0}


def made_up(folder, gains=GAINS, top5=99.0, limits=("2000", "3000")):
    """The folder of a comparison whose cells were made up: ``gains`` over 80, 82 and 84 % per seed."""
    seeds = len(gains["uniform"])
    space = space_from_dict(SPACE)
    plan = Plan(folder, space, "digits", 4, "recipe", {}, read_limits(limits), 3, 4, 2, IMAGES)
    specs = read_methods(gains)
    write_plan(Recorded(plan, specs, seeds, plan.recipe()))
    for spec in specs:
        for seed, gain in enumerate(gains[str(spec)]):
            if gain is None:
                continue
            found = {"subnet": "d8-h1-r1", "top1": 80.0 + 2 * seed + gain, "params": 1000 + 100 * seed}
            found |= {} if top5 is None else {"top5": top5}
            searched = [found | {"limit": str(limit)} for limit in plan.limits]
            groups = [{"group": g, "top1": 70.0, "smallest": found, "largest": found} for g in (8, 12, 16)]
            seconds = SECONDS[str(spec)] + seed
            cell = {"searched": searched, "groups": groups}
            cell |= {"time": {"cpu": seconds, "wall": 2 * seconds, "device": "cpu"}, "made_by": {}}
            path = plan.cell_path(spec, seed)
            path.mkdir(parents=True)
            write_json(path / "cell.json", cell)
    return folder


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return methods_table(made_up(tmp_path_factory.mktemp("compared") / "out"))


def test_levels_and_differences_are_over_paired_seeds(found):
    (row,) = found.tables["searched"].where(method="growtas", limit="params=2000").rows
    values = dict(zip(found.tables["searched"].columns, row, strict=True))
    theirs = stats.ttest_rel([81, 85, 86], [80, 82, 84]).confidence_interval(0.95)
    assert (values["pairs"], values["difference"]) == (3, 2.0)
    assert (values["difference_low"], values["difference_high"]) == pytest.approx((theirs.low, theirs.high))
    assert values["top1"] == pytest.approx(84) and values["top5"] == 99
    assert (values["params"], values["params_least"], values["params_most"]) == (1100, 1000, 1200)
    assert found.tables["searched"].where(method="uniform").column("difference") == [None, None]
    assert found.tables["cells"].where(method="prenas", limit="params=3000").column("top1") == [79, 84, 81]


def test_times_are_ratios_to_the_baseline(found):
    (row,) = found.tables["time"].where(method="growtas").rows
    ratios = [95 / 100, 96 / 101, 97 / 102]
    assert row[1:5] == (3, 96, 192, pytest.approx(sum(ratios) / 3))
    assert found.tables["time"].where(method="uniform").column("ratio") == [None]


def test_findings_say_where_an_interval_includes_zero(found):
    first, growtas_, prenas, time, top5 = found.findings()
    assert first.startswith(
        "0 of 4 intervals of the difference to uniform (methods: 2, limits: 2) exclude zero"
    )
    assert "With 3 pairs the spread is hardly known." in first
    assert growtas_.startswith("growtas against uniform, points at ≤ 2,000 and ≤ 3,000 parameters: +2.00 [")
    assert growtas_.endswith("Every interval includes zero: 3 pairs show no difference.")
    assert prenas.startswith("prenas against uniform") and "-0.67 [" in prenas
    assert "growtas 0.95" in time and "processor time" in time
    assert top5 == "Top-5 lies between 99.00 and 99.00 %: among 10 classes it hardly tells the methods apart."


def test_findings_say_where_it_excludes_zero(tmp_path):
    sure = made_up(tmp_path / "out", {"uniform": (0,) * 5, "growtas": (2.0, 2.1, 1.9, 2.0, 2.0)})
    first, growtas_, *_ = methods_table(sure).findings()
    assert first.startswith("2 of 2 intervals") and "hardly known" not in first
    assert "The interval of 5 pairs excludes zero at ≤ 2,000 and ≤ 3,000 parameters." in growtas_


def test_one_pair_claims_nothing(tmp_path):
    alone = methods_table(made_up(tmp_path / "out", {"uniform": (0,), "growtas": (5.0,)}, top5=None))
    first, growtas_, *_, top5 = alone.findings()
    assert first == "One pair of runs has no interval: no difference between methods is shown."
    assert growtas_.endswith("+5.00; +5.00. One pair has no interval.") and "not told" in top5
    drawn = alone.drawings()[""]
    assert "interval" not in drawn.caption and "mean over seeds (1 of them)," in drawn.caption


def test_what_is_missing_is_named(tmp_path):
    folder = made_up(tmp_path / "out", {"uniform": (0, 0, 0), "growtas": (1, None, 2)})
    table = methods_table(folder, left_out={"prenas": "it does not fit."})
    assert table.tables["searched"].where(method="growtas").column("pairs") == [2, 2]
    *_, missing, left_out = table.findings()
    assert missing == "Not finished, and left out: growtas seed 1."
    assert left_out == "prenas was not compared: it does not fit."
    for file in folder.rglob("cell.json"):
        file.unlink()
    with pytest.raises(UsageError, match="No cell of the comparison"):
        methods_table(folder)
    with pytest.raises(UsageError, match="holds no comparison"):
        methods_table(tmp_path / "nothing")
    with pytest.raises(UsageError, match="searched under no limit"):
        methods_table(made_up(tmp_path / "unlimited", limits=()))


def test_both_tables_are_shown(found):
    here, times, published = found.shown().values()
    assert [row[:2] for row in here.rows[:3]] == [("≤ 2,000 parameters", m) for m in GAINS]
    assert here.where(method="uniform").column("difference to uniform") == ["", ""]
    assert here.rows[1][2].startswith("84.00 [") and here.rows[1][4:] == (99, 1100)
    assert times.rows[0] == ("uniform", 101, 202, "1")
    assert ("GrowTAS-B+", 82.7, 96.1, 53.3, 6.69) in published.rows and len(published.rows) == 8


def test_it_is_drawn_from_what_is_kept(found):
    again = MethodsTable.from_json(found.to_json())
    assert (again.tables, again.facts) == (found.tables, found.facts)
    assert again.findings() == found.findings()
    drawn = again.drawings()[""]
    text = charts.svg_text(drawn.figure, "table-a", drawn.alt)
    for words in (*GAINS, "difference to uniform (points)", ">3,000<"):
        assert words in text, words
    assert "mean over seeds (3 of them)" in drawn.caption and len(text) < 60_000


# -- the comparison of a report --------------------------------------------------------------------------


def workspace(folder, space="digits", **settings):
    space = space_from_dict(SPACE) if space == "small" else load_space(space)
    values = {"space": space.name, "data": "digits", "method": "growtas", **settings}
    config = TrainConfig.from_dict(values).resolved(convolutional=space.name == "digits-mobilenet")
    return Workspace(folder, config, space, ofa_space_for(load_space("digits")), 10, IMAGES, seeds=1)


def test_what_a_report_differs_in_is_common_to_all_methods(tmp_path):
    own = workspace(tmp_path, epochs=8, batch_size=64, seed=3, stages=3, log_every=2, interference_every=4)
    assert common_settings(own) == {"batch_size": 64, "stages": 3}
    assert common_settings(workspace(tmp_path, epochs=7)) == {}


def test_methods_that_do_not_fit_are_left_out(tmp_path):
    assert unfit(workspace(tmp_path)) == {}
    short = unfit(workspace(tmp_path, epochs=1))
    assert list(short) == ["growtas", "growtas+"] and "goes on from growtas" in short["growtas+"]
    assert unfit(workspace(tmp_path, "digits-mobilenet")) == {}
    assert list(unfit(workspace(tmp_path, "digits-mobilenet", epochs=4))) == ["shrinking"]


@pytest.mark.slow
def test_a_report_compares_every_method(tmp_path, fork_work, monkeypatch):
    for name, value in {"SUBNETS": 1, "POPULATION": 3, "GENERATIONS": 2}.items():
        monkeypatch.setattr(methods_comparison, name, value)
    own = workspace(tmp_path, "small", epochs=2, batch_size=384, lr=2e-3)
    compared = compare_for(own, Placement.of(2, "cpu"))
    assert not compared.failed and not compared.summary.missing
    plan = json.loads((own.comparison / "compare.json").read_text())
    assert plan["methods"] == ["uniform", "growtas", "growtas+", "prenas", "focusformer"]
    assert plan["seeds"] == 1 and plan["settings"]["epochs"] == 2
    assert plan["settings"]["lr"] == "0.002" and plan["settings"]["settings"] == {"batch_size": 384}
    table = parts.part("table-a").make(own)
    assert len(table.tables["searched"].rows) == 5 * 3
    assert all(value is not None for value in table.tables["searched"].column("top5"))
    figure = parts.part("figure-f").make(own)
    assert list(figure.facts["methods"]) == plan["methods"]
    steps = 2 * (IMAGES["train"] // 384)
    assert figure.tables["methods"].where(method="uniform").column("draws") == [steps]
    (chosen,) = (r for r in figure.tables["intended"].rows if r[0] == "prenas" and r[3] == 16)
    assert chosen[4] == "chosen"
    assert growtas.compare(own.comparison, report_only=True).summary == compared.summary
