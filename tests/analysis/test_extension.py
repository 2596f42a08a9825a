"""Figures 1, C and E: their numbers on made-up data, and their direction on the digits."""

from __future__ import annotations

import dataclasses
import statistics
from types import SimpleNamespace

import pytest
import torch
from logged_runs import run_of

import growtas
from growtas.analysis import histograms, networks, parts
from growtas.analysis.base import Table
from growtas.analysis.charts import svg_text
from growtas.analysis.extend_and_crop import (
    AS_IT_IS,
    RECALIBRATED,
    ExtendAndCrop,
    ExtendAndCropConvolutional,
    _counts,
    extend_and_crop,
    extend_and_crop_convolutional,
)
from growtas.analysis.initialisation import Initialisation, initialisation
from growtas.analysis.trained import Trained, draw
from growtas.analysis.workspace import Workspace
from growtas.errors import UsageError
from growtas.methods.regions import used_by
from growtas.space import MobileNetSpace, SearchSpace, load_space
from growtas.training import TrainConfig

SPACE = SearchSpace(
    "small",
    embed_dim=(24, 36, 48),
    mlp_ratio=(2, 3),
    num_heads=(1, 2),
    depth=(1, 2),
    image_size=8,
    patch_size=2,
    in_channels=1,
    head_dim=12,
    max_relative_position=3,
)
CONVOLUTIONAL = MobileNetSpace(
    "small-convolutional",
    kernel=(3, 5),
    expand=(2, 3),
    depth=(1, 2),
    stem_width=8,
    first_width=8,
    widths=(16,),
    strides=(1,),
    activations=("relu",),
    squeeze_excite=(True,),
    final_width=32,
    feature_width=32,
    image_size=8,
    in_channels=1,
)
QUIET = {"eval_every": 0, "eval_subnets": 0, "tensorboard": False, "device": "cpu"}
TOP1 = "top1 (%)"


def trained(space, which, folder, **settings):
    """A finished run of one subnet of the digits."""
    settings = {"method": "single", "method_options": f"subnet={which}", **QUIET, **settings}
    return growtas.train(space, data="digits", out=folder / which, **settings)


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """The smallest and the largest subnet, each trained until it knows the digits."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("learned")
    settings = {"epochs": 14, "lr": 1.5e-2, "batch_size": 64}
    return [trained(SPACE, which, folder, **settings) for which in ("smallest", "largest")]


@pytest.fixture(scope="module")
def convolutional(tmp_path_factory):
    """Two short runs of convolutional networks."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("convolutional")
    settings = {"epochs": 1, "batch_size": 96}
    return [trained(CONVOLUTIONAL, which, folder, **settings) for which in ("smallest", "largest")]


# -- bins ----------------------------------------------------------------------------------------------------


def test_a_bin_holds_its_lower_edge_and_the_last_one_a_hundred():
    counts = histograms.bin_counts([0.0, 4.999, 5.0, 94.999, 95.0, 100.0])
    assert counts == [2, 1, *[0] * 15, 0, 1, 2]


def test_the_published_counts_are_of_a_hundred_subnets():
    for side, base in histograms.PUBLISHED_BASES.items():
        counts = histograms.PUBLISHED_COUNTS[side]
        assert len(counts) == histograms.BINS and sum(counts) == 100
        highest = max(at for at, count in enumerate(counts) if count) * histograms.BIN
        assert highest <= base
    assert sum(histograms.PUBLISHED_COUNTS["extended"][12:]) == 41  # as ExtendAndCrop.published says
    assert histograms.mean_of_counts([1, 0, 3]) == pytest.approx((2.5 + 3 * 12.5) / 4)


def test_counts_by_group_add_up_beside_the_published_ones():
    sample = [(24, 96.0), (24, 100.0), (36, 97.0), (48, 12.0)]
    table = histograms.count_table(
        ("side",), {("extended",): sample, ("cropped",): []}, "width", (24, 36, 48), {("cropped",): [7] * 20}
    )
    assert table.columns[:3] == ("side", "top1 from (%)", "top1 to (%)") and len(table.rows) == 40
    extended = table.where(side="extended")
    last = extended.where(**{"top1 from (%)": 95})
    assert last.rows == (("extended", 95, 100, 2, 1, 0, 3, None),)
    assert sum(extended.column("here")) == 4 and set(extended.column("published")) == {None}
    assert sum(table.where(side="cropped").column("here")) == 0
    assert table.column("published")[20:] == [7] * 20


# -- what is drawn -------------------------------------------------------------------------------------------


def test_the_drawn_subnets_are_distinct_and_neither_extreme():
    space = load_space("digits")
    drawn = draw(space, 100, seed=0)
    assert len(set(drawn)) == 100 and not {space.smallest(), space.largest()} & set(drawn)
    assert drawn == draw(space, 100, seed=0) and drawn[:60] == draw(space, 60, seed=0)
    assert drawn != draw(space, 100, seed=1)


def test_a_small_space_gives_all_its_others():
    space = dataclasses.replace(SPACE, embed_dim=(24, 36), mlp_ratio=(2,), depth=(1,))
    assert len(draw(space, 100, seed=0)) == space.count() - 2 == 2
    with pytest.raises(UsageError, match="'small' has no subnets but its smallest and its largest"):
        draw(dataclasses.replace(space, num_heads=(2,)), 100, seed=0)
    with pytest.raises(UsageError, match="subnets=0 is not possible"):
        draw(space, 0, seed=0)


# -- sentences and pictures of made-up numbers ---------------------------------------------------------------

FACTS = {
    "space": "toy",
    "subnets_in_space": 4032,
    "axis": "embed_dim",
    "groups": [24, 36],
    "data": "digits",
    "num_classes": 10,
    "test_images": 359,
    "seed": 0,
    "subnets": 4,
    "batchnorm": [None],
    "calibration_images": 1151,
    "epochs": {"smallest": 60, "largest": 60},
}
VALUES = {"extended": (90.0, 88.0, 70.0, 60.0), "cropped": (20.0, 30.0, 71.0, 50.0)}
GROUPS = (24, 24, 36, 36)


def made_up(kind=ExtendAndCrop, values=VALUES, ways=(None,)):
    columns = ("side", "batchnorm", "subnet", "group", "params", TOP1)
    rows = [
        (side, way, f"s{at}", GROUPS[at], 1000 + at, top1)
        for way in ways
        for side in values
        for at, top1 in enumerate(values[side])
    ]
    bases = [(side, way, "base", 24, 900, 96.0) for way in ways for side in values]
    facts = {**FACTS, "batchnorm": list(ways)}
    table = Table.of(columns, rows)
    tables = {
        "subnets": table,
        "bases": Table.of(columns, bases),
        "counts": _counts(kind, table, facts),
    }
    return kind(tables, facts)


def test_figure_1_says_what_its_numbers_are():
    verdict, extended, cropped, groups, apart = made_up().findings()
    assert "the asymmetry is seen here" in verdict.lower()
    assert "same 4 subnets are 34.2 points better" in verdict and "3 of them are better" in verdict
    assert "smallest subnet, trained alone, reaches 96.0 %; 4 subnets" in extended
    assert "77.0 % on average (median 79.0 %, from 60.0 % to 90.0 %), with 2 of them (50 %)" in extended
    assert "42.8 % on average" in cropped and "0 of them (0 %)" in cropped
    assert "extended 24: 89.0 % (n = 2), 36: 65.0 % (n = 2); cropped 24: 25.0 %" in groups
    assert "extensions differ by up to 10.0 points, crops by up to 21.0" in groups
    assert "359 test images of 10 classes, where chance is 10 %" in apart and "ImageNet" in apart
    assert "about 44 % extended and 4 % cropped" in apart


def test_figure_1_says_so_where_the_paper_is_not_confirmed():
    turned = {"extended": VALUES["cropped"], "cropped": VALUES["extended"]}
    verdict = made_up(values=turned).findings()[0]
    assert "is not seen here: the same 4 subnets are 34.2 points worse" in verdict


def test_a_mean_that_few_subnets_make_is_no_asymmetry():
    values = {"extended": (90.0, 19.0, 20.0, 21.0), "cropped": (20.0, 20.0, 21.0, 22.0)}
    verdict = made_up(values=values).findings()[0]
    assert "is not seen here: the same 4 subnets are 16.8 points better" in verdict


def test_extensions_that_lose_much_are_called_so():
    assert "But" not in made_up().findings()[0]  # two of four are within ten points
    values = {"extended": (90.0, 30.0, 31.0, 32.0), "cropped": (10.0, 10.0, 11.0, 12.0)}
    verdict = made_up(values=values).findings()[0]
    assert "is seen here" in verdict and "extensions lose much too: only 1 of " in verdict


def test_figure_e_says_it_for_both_statistics_and_has_no_published_counts():
    analysis = made_up(ExtendAndCropConvolutional, ways=(RECALIBRATED, AS_IT_IS))
    findings = analysis.findings()
    assert sum(line.startswith("With BatchNorm recalibrated for each subnet: ") for line in findings) == 4
    assert sum(line.startswith("With BatchNorm's statistics as training left") for line in findings) == 3
    assert set(analysis.tables["counts"].column("published")) == {None}
    (drawing,) = analysis.drawings().values()
    assert len(drawing.figure.axes) == 4 and "1151 training images" in drawing.caption


def test_figure_c_says_how_much_is_lost():
    rows = [(f"s{at}", GROUPS[at], 1000, *pair) for at, pair in enumerate(zip(*VALUES.values(), strict=True))]
    columns = ("subnet", "group", "params", "standard top1 (%)", "pretrained top1 (%)")
    samples = {
        (init,): list(zip(GROUPS, values, strict=True))
        for init, values in zip(("standard", "pretrained"), VALUES.values(), strict=True)
    }
    counts = histograms.count_table(("initialisation",), samples, "embed_dim", (24, 36), {})
    facts = {**FACTS, "base": 96.0, "epochs": {"smallest": 60}}
    analysis = Initialisation({"subnets": Table.of(columns, rows), "counts": counts}, facts)
    first, second, third, _ = analysis.findings()
    assert "77.0 % on average under the standard initialisation and 42.8 % under the pretrained" in first
    assert "a mean drop of 34.2 points; 3 of them are worse" in first
    assert "stay 2 of them under the standard and 0 under the pretrained" in second
    assert "standard 24: 89.0 % (n = 2), 36: 65.0 % (n = 2); pretrained 24: 25.0 % (n = 2)" in third
    assert len(analysis.drawings()[""].figure.axes) == 2


@pytest.mark.parametrize(
    ("kind", "ways", "rows"),
    [
        (ExtendAndCrop, (None,), 2),
        (ExtendAndCropConvolutional, (RECALIBRATED, AS_IT_IS), 2),
        (ExtendAndCrop, (RECALIBRATED, AS_IT_IS), 3),  # figure 1 of a report about convolutional networks
    ],
)
def test_a_kept_figure_is_drawn_again_alike(kind, ways, rows):
    analysis = made_up(kind, ways=ways)
    again = kind.from_json(analysis.to_json())
    assert again.findings() == analysis.findings()
    assert (again.tables, again.facts) == (analysis.tables, analysis.facts)  # all that is drawn
    drawing = again.drawings()[""]
    figure = drawing.figure
    if rows == 3:  # the largest
        assert len(svg_text(figure, kind.name, drawing.alt)) < 100_000
    assert len(figure.axes) == 2 * rows
    for axes, side in zip(figure.axes, VALUES, strict=False):  # the bars hold every subnet
        assert sum(bar.get_height() for bar in axes.patches) == len(VALUES[side])


# -- for real ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_on_digits_extensions_keep_far_more_than_crops(learned, tmp_path):
    log = tmp_path / "evaluations.jsonl"
    figure = extend_and_crop(*learned, subnets=16, device="cpu", log=log)
    evaluated = log.read_text().count("top1")
    extended, cropped = (figure.sample(side, None).column(TOP1) for side in VALUES)
    assert figure.base("extended", None) > 70 and figure.base("cropped", None) > 55
    assert statistics.mean(extended) >= statistics.mean(cropped) + 20  # 57 points
    assert evaluated == 34
    starts = initialisation(learned[0], subnets=16, device="cpu", log=log)
    standard, pretrained = starts.top1("standard"), starts.top1("pretrained")
    assert standard == extended  # the same subnets and weights
    assert log.read_text().count("top1") == evaluated + 17
    assert statistics.mean(standard) >= statistics.mean(pretrained) + 7  # 17 points
    assert starts.facts["base"] == figure.base("extended", None)


@pytest.mark.parametrize("init", ["standard", "pretrained"])
def test_what_the_small_subnet_does_not_use_is_initialised_anew(convolutional, init):
    run = convolutional[0]
    each = Trained.of(run, "smallest")
    before, net = dict(run.load_net().named_parameters()), each.extended(init, 0, "cpu")
    for name, mask in used_by(net, [each.subnet]).items():
        parameter = net.get_parameter(name)
        assert torch.equal(parameter[mask], before[name][mask]), name
        if parameter.ndim == 4 and not mask.all():
            assert (parameter[~mask] != before[name][~mask]).all(), name
    other = each.extended(init, 1, "cpu")
    assert any((p != other.get_parameter(name)).any() for name, p in net.named_parameters())


def test_batchnorm_is_evaluated_both_ways(convolutional, tmp_path):
    figure = extend_and_crop_convolutional(*convolutional, subnets=3, device="cpu", log=tmp_path / "log")
    assert figure.facts["batchnorm"] == [RECALIBRATED, AS_IT_IS] and figure.facts["groups"] == [2, 3]
    samples = {way: figure.sample("extended", way) for way in (RECALIBRATED, AS_IT_IS)}
    assert samples[RECALIBRATED].column("subnet") == samples[AS_IT_IS].column("subnet")
    assert samples[RECALIBRATED].column(TOP1) != samples[AS_IT_IS].column(TOP1)
    assert len(figure.tables["subnets"].rows) == 12 and len(figure.tables["bases"].rows) == 4
    assert all(sentence[0].isupper() for sentence in figure.findings())


# -- what it refuses, and the report -------------------------------------------------------------------------


def test_runs_that_do_not_fit_are_refused(convolutional, single):
    smallest, largest = convolutional
    with pytest.raises(UsageError, match="trained only the smallest subnet.*trained subnet k5,5-e3,3-d2; "):
        extend_and_crop(largest, smallest)
    transformer = single[0]
    with pytest.raises(UsageError, match="differ in their space"):
        extend_and_crop(transformer, largest)
    with pytest.raises(UsageError, match="about convolutional networks.*use extend_and_crop"):
        extend_and_crop_convolutional(transformer, largest)


def test_another_methods_run_is_refused(tmp_path):
    run = run_of(tmp_path / "run", "uniform")
    with pytest.raises(UsageError, match="trained by 'uniform'; train one with method='single'"):
        initialisation(run)


def test_figure_e_is_left_out_where_figure_1_is_the_same_figure():
    transformers, convolutional = (SimpleNamespace(convolutional=answer) for answer in (False, True))
    figure_1, figure_c, figure_e = (parts.part(f"figure-{name}") for name in "1ce")
    assert figure_e.networks(transformers) == ("ofa-smallest", "ofa-largest")
    assert figure_e.reason(transformers) is None
    assert "its figure 1 is that figure" in figure_e.reason(convolutional)
    assert figure_1.networks(convolutional) == ("smallest", "largest")
    assert figure_c.networks(convolutional) == ("smallest",)


def test_the_convolutional_networks_take_a_fifth_of_the_reports_epochs(tmp_path):
    config = TrainConfig(space="digits", data="digits", epochs=60).resolved()
    space = load_space("digits")
    workspace = Workspace(tmp_path, config, space, networks.ofa_space_for(space), 10)
    settings = networks.settings(workspace, "ofa-largest")
    assert (settings.epochs, settings.method_options) == (12, "subnet=largest")
    assert settings.warmup_epochs == pytest.approx(1.2)
    assert networks.settings(workspace, "largest").epochs == 60
    assert networks.space_of(workspace, "ofa-largest").groups == (3, 4, 6)
