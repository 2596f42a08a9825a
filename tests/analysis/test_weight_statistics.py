"""Figure B: statistics of the right entries, against numpy on slices taken by hand."""

from __future__ import annotations

import copy
import math
import shutil

import numpy as np
import pytest
import torch

from growtas import analysis
from growtas.analysis.charts import svg_text
from growtas.analysis.weight_statistics import WeightStatistics, statistics_of
from growtas.errors import GrowtasError, UsageError
from growtas.methods.regions import initialise, used_by
from growtas.space import MobileNetSpace, SearchSpace
from growtas.supernet import Supernet
from growtas.training import Run

SPACE = SearchSpace(
    "small",
    embed_dim=(8, 16),
    mlp_ratio=(1.5, 4),
    num_heads=(1, 3),
    depth=(1, 2),
    super_embed_dim=20,
    super_num_heads=4,
    super_depth=3,
    image_size=8,
    patch_size=4,
    in_channels=1,
    head_dim=4,
    max_relative_position=1,
)
CONVOLUTIONAL = MobileNetSpace(
    "small-convolutional",
    kernel=(3, 5),
    expand=(2, 3),
    depth=(1, 2),
    stem_width=8,
    first_width=8,
    widths=(16, 16),
    strides=(1, 1),
    activations=("relu", "relu"),
    squeeze_excite=(False, True),
    final_width=32,
    feature_width=32,
    image_size=8,
    in_channels=1,
)
SIZES = {  # leading rows and columns, of the smallest and of the largest subnet
    "qkv": ("attn.qkv", (3 * 4, 8), (3 * 3 * 4, 16)),
    "proj": ("attn.proj", (8, 4), (16, 3 * 4)),
    "fc1": ("mlp.fc1", (12, 8), (64, 16)),
    "fc2": ("mlp.fc2", (8, 12), (16, 64)),
    "LayerNorm 1": ("norm1", (8,), (16,)),
    "LayerNorm 2": ("norm2", (8,), (16,)),
}


def leading(sizes):
    return tuple(slice(size) for size in sizes)


def random_net(space):
    """Random everywhere, and NaN where not even the largest subnet reads."""
    torch.manual_seed(0)
    net = Supernet(space, 10)
    used = used_by(net, [space.largest()])
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.normal_(0.1, 0.5)
            parameter[~used[name]] = math.nan
    return net


def two_nets(space, scale):
    """Nets that differ in the weights that are new to the smallest subnet: those of the second are larger."""
    standard = random_net(space)
    pretrained = copy.deepcopy(standard)
    trained = used_by(standard, [space.smallest()])
    with torch.no_grad():
        for name, parameter in pretrained.named_parameters():
            parameter[~trained[name]] *= scale
    return {"standard": standard, "pretrained": pretrained}


def expected(values):
    values = values.detach().numpy().astype(np.float64)
    return [values.size, values.mean(), values.var(), values.min(), values.max()]


def row_of(found, component, block, region, init):
    (row,) = found.tables["statistics"].where(component=component, block=block, region=region, init=init).rows
    return list(row[4:])


@pytest.fixture(scope="module")
def nets():
    return two_nets(SPACE, 3)


@pytest.fixture(scope="module")
def found(nets):
    """As it comes back from its file."""
    return WeightStatistics.from_json(statistics_of(nets, SPACE.smallest(), 0).to_json())


@pytest.mark.parametrize("component", SIZES)
def test_statistics_are_those_of_slices(found, nets, component):
    name, small, large = SIZES[component]
    for init, net in nets.items():
        first, second = (net.get_parameter(f"blocks.{at}.{name}.weight") for at in (0, 1))
        # behind the trained columns, and behind the trained rows: together all that is new
        beyond = [first[leading(large)][small[0] :].flatten()]
        if len(small) == 2:
            beyond.append(first[: small[0], small[1] : large[1]].flatten())
        for region, values in (("new", torch.cat(beyond)), ("whole", first[leading(large)])):
            assert row_of(found, component, 1, region, init) == pytest.approx(expected(values))
        for region in ("new", "whole"):
            values = second[leading(large)]
            assert row_of(found, component, 2, region, init) == pytest.approx(expected(values))
    trained = nets["standard"].get_parameter(f"blocks.0.{name}.weight")[leading(small)]
    assert row_of(found, component, 1, "trained", None) == pytest.approx(expected(trained))


def test_what_no_subnet_has_does_not_appear(found):
    table = found.tables["statistics"]
    assert set(table.column("block")) == {1, 2}  # the supernet has three blocks
    assert set(table.where(region="trained").column("block")) == {1}
    assert len(table.rows) == 6 * (1 + 2 * 2 + 2 * 2)


def test_spread_is_over_the_blocks_that_are_trained(found):
    for component, trained, standard, pretrained, quotient in found.tables["spread"].rows:
        at = (component, 1)
        assert trained == pytest.approx(math.sqrt(row_of(found, *at, "trained", None)[2]))
        assert standard == pytest.approx(math.sqrt(row_of(found, *at, "new", "standard")[2]))
        assert pretrained == pytest.approx(3 * standard) and quotient == pytest.approx(3)


def test_findings_say_the_quotients(found):
    times, share, lacking = found.findings()
    assert "qkv 3.0, proj 3.0, fc1 3.0, fc2 3.0, LayerNorm 1 3.0, LayerNorm 2 3.0" in times
    assert "over the 1 of 2 blocks" in times
    new = sum(2 * math.prod(large) - math.prod(small) for _, small, large in SIZES.values())
    whole = sum(2 * math.prod(large) for _, _, large in SIZES.values())
    assert share.startswith(f"{100 * new / whole:.0f} % of the largest subnet's {whole:,} entries")
    assert "lacks (1 of 2)" in lacking


def test_normalisations_that_start_alike_have_no_quotient():
    nets = two_nets(SPACE, 1)
    trained = used_by(nets["standard"], [SPACE.smallest()])
    new = {name: ~mask for name, mask in trained.items()}
    for init, net in nets.items():
        initialise(net, new, trained, init, 0, 1, draw_norms=True)
    found = statistics_of(nets, SPACE.smallest(), 0)
    quotients = dict(
        zip(found.tables["spread"].column("component"), found.tables["spread"].rows, strict=True)
    )
    assert quotients["LayerNorm 1"][2] == 0 and quotients["LayerNorm 1"][4] is None
    assert 10 < quotients["qkv"][4] < 40  # 0.5 for what is trained, 0.02 for what is not
    assert found.findings()[1].startswith("New weights of normalisations are all 1")
    assert f"LayerNorm 1 {quotients['LayerNorm 1'][3]:.3f}" in found.findings()[1]


def test_convolutional_components():
    nets = two_nets(CONVOLUTIONAL, 2)
    found = statistics_of(nets, CONVOLUTIONAL.smallest(), 0)
    assert found.facts["labels"] == ["1.1", "1.2", "2.1", "2.2"]
    expand = nets["standard"].get_parameter("stages.1.0.expand.weight")  # 48 x 16, of which 32 are trained
    assert row_of(found, "expand", 3, "trained", None) == pytest.approx(expected(expand[:32]))
    assert row_of(found, "expand", 3, "new", "standard") == pytest.approx(expected(expand[32:]))
    assert row_of(found, "expand", 3, "new", "pretrained") == pytest.approx(expected(2 * expand[32:]))
    squeeze = found.tables["statistics"].where(component="squeeze")
    assert set(squeeze.column("block")) == {3, 4}  # the first stage has no squeeze-and-excite
    assert set(found.tables["statistics"].where(region="trained").column("block")) == {1, 3}


def test_drawn_again_alike(found, nets):
    first, again = statistics_of(nets, SPACE.smallest(), 0), found.drawings()
    assert (found.tables, found.facts) == (first.tables, first.facts)  # all that is drawn
    assert list(again) == ["", "whole"] and len(svg_text(again[""].figure, "b", "")) < 100_000
    for drawing in again.values():
        assert [axes.get_title("left") for axes in drawing.figure.axes] == list(SIZES)


def test_of_a_run(single, tmp_path):
    run = Run.open(shutil.copytree(single[0].path, tmp_path / "run"))
    found = analysis.weight_statistics(run.path, seed=3)
    net = run.load_net()
    trained = net.get_parameter("blocks.2.mlp.fc1.weight")[:48, :24]
    assert row_of(found, "fc1", 3, "trained", None) == pytest.approx(expected(trained))
    standard, pretrained = (row_of(found, "fc1", 3, "new", init) for init in ("standard", "pretrained"))
    assert standard[2] == pytest.approx(0.02**2, rel=0.1)
    assert pretrained[2] == pytest.approx(expected(trained)[2], rel=0.1)
    assert found.facts["subnet"] == str(run.space.smallest()) and found.facts["seed"] == 3
    assert found.tables == analysis.weight_statistics(run, seed=3).tables
    assert found.tables != analysis.weight_statistics(run, seed=4).tables
    with pytest.raises(UsageError, match="holds no run"):
        analysis.weight_statistics(tmp_path)
    state = torch.load(run.checkpoint_path, weights_only=True)
    torch.save({**state, "step": state["step"] - 1}, run.checkpoint_path)
    with pytest.raises(GrowtasError, match="is not finished"):
        analysis.weight_statistics(run)
