"""Figure D: cosines of block outputs, against ones computed by hand, and what is said of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from growtas import analysis
from growtas.analysis.blocks import block_labels, block_outputs
from growtas.analysis.charts import svg_text
from growtas.analysis.similarity import _cosine_sums, cosines
from growtas.analysis.trained import draw
from growtas.space import SearchSpace, load_space
from growtas.supernet import Supernet
from growtas.training.calibration import statistics

SPACE = SearchSpace(
    "small",
    embed_dim=(8, 16),
    mlp_ratio=(2, 3),
    num_heads=(1, 3),
    depth=(2, 3),
    super_depth=4,
    image_size=8,
    patch_size=4,
    in_channels=1,
    head_dim=4,
    max_relative_position=1,
)
ALL, CLS = "all tokens", "cls token"


def random_net(space, dtype=torch.float32):
    torch.manual_seed(0)
    net = Supernet(space, 10)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(0, 0.3)
    return net.to(dtype).eval()


def images_of(space, count, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    size = (count, space.in_channels, space.image_size, space.image_size)
    return TensorDataset(torch.randn(size, generator=generator, dtype=dtype), torch.zeros(count))


def by_hand(net, images, subnet):
    """The blocks' outputs, block after block."""
    x = net.forward_embedding(images, subnet.embed_dim)
    outputs = []
    for at in range(subnet.depth):
        x = net.blocks[at](x, subnet.num_heads[at], subnet.hidden_dims[at], net.dims.grid)
        outputs.append(x.detach().numpy())
    return outputs


def cosine(a, b):
    return float((a * b).sum() / math.sqrt((a * a).sum() * (b * b).sum()))


def test_against_loops_in_double_precision():
    net, images = random_net(SPACE, torch.float64), images_of(SPACE, 3, torch.float64)
    base, other = SPACE.subnet(8, 3, 1, 2), SPACE.subnet(16, 2, [3, 1], [2, 3])
    table = cosines(net, base, [other], images, images)
    assert sorted(table.column("block")) == [1, 1, 2, 2]  # the blocks that both have
    with torch.no_grad():
        ours, theirs = (by_hand(net, images.tensors[0], subnet) for subnet in (base, other))
    for block in (1, 2):
        a, b = ours[block - 1], theirs[block - 1][..., :8]
        values = [[cosine(a[i, t], b[i, t]) for t in range(5)] for i in range(3)]
        for tokens, value in ((ALL, np.mean(values)), (CLS, np.mean([row[0] for row in values]))):
            (found,) = table.where(tokens=tokens, block=block).column("cosine")
            assert found == pytest.approx(float(value), abs=1e-12)
            assert abs(found) < 0.999


def test_the_base_itself_is_all_alike():
    net, images = random_net(SPACE), images_of(SPACE, 4)
    for base in (SPACE.smallest(), SPACE.largest()):
        table = cosines(net, base, [base], images, images)
        assert len(table.rows) == 2 * base.depth
        assert table.column("cosine") == pytest.approx([1.0] * len(table.rows), abs=1e-12)


def test_channels_that_one_lacks_do_not_count():
    a = torch.tensor([[[1.0, 0.0], [3.0, 4.0]]])
    b = torch.tensor([[[1.0, 1.0, math.nan], [4.0, 3.0, math.nan]]])
    expected = [(ALL, (math.sqrt(0.5) + 24 / 25) / 2), (CLS, math.sqrt(0.5))]
    for pair in ((a, b), (b, a)):
        found = _cosine_sums(*pair, False)
        assert [name for name, _ in found] == [ALL, CLS]
        assert [value for _, value in found] == pytest.approx([value for _, value in expected])
    ((name, value),) = _cosine_sums(a, b, True)
    assert name == "all positions" and value == pytest.approx(expected[0][1])


def test_batches_do_not_matter():
    net, images = random_net(SPACE), images_of(SPACE, 5)
    subnets = draw(SPACE, 3, seed=0)
    whole = cosines(net, SPACE.largest(), subnets, images, images)
    parts = cosines(net, SPACE.largest(), subnets, images, images, batch_size=2)
    assert [row[:3] for row in parts.rows] == [row[:3] for row in whole.rows]
    assert parts.column("cosine") == pytest.approx(whole.column("cosine"), abs=1e-6)


def test_outputs_of_blocks_are_the_network_s():
    net, images = random_net(SPACE), images_of(SPACE, 2).tensors[0]
    subnet = SPACE.subnet(16, 2, 3, 2)
    outputs = block_outputs(net, images, subnet)
    assert list(block_labels(net).values()) == ["1", "2", "3"]  # no subnet has the supernet's fourth
    assert list(outputs) == ["blocks.0", "blocks.1"]
    torch.testing.assert_close(net.norm(outputs["blocks.1"]), net.forward_features(images, subnet))
    assert not any(block._forward_hooks for block in net.blocks)


def test_convolutional_networks_are_calibrated_for_each_subnet():
    space = load_space("digits-mobilenet")
    net, images = random_net(space), images_of(space, 8)
    before = statistics(net)
    base, other = space.largest(), space.subnet(kernel=5, expand=4, depth=[3, 1, 2])
    table = cosines(net, base, [base, other], images, images)
    assert set(table.column("tokens")) == {"all positions"}
    assert table.where(subnet=str(base)).column("cosine") == pytest.approx([1.0] * 9, abs=1e-9)
    # stages of 3, 1 and 2 blocks, of which the base's have three each
    assert table.where(subnet=str(other)).column("block") == [1, 2, 3, 4, 7, 8]
    assert all(0 < value < 1 for value in table.where(subnet=str(other)).column("cosine"))
    for name, values in statistics(net).items():
        assert all(torch.equal(a, b) for a, b in zip(values, before[name], strict=True))


def test_of_two_runs(single):
    made = analysis.similarity(*single, subnets=6, images=40, device="cpu")
    found = type(made).from_json(made.to_json())
    table, space = found.tables["similarities"], single[0].space
    drawn = draw(space, 6, seed=0)
    assert list(dict.fromkeys(table.column("subnet"))) == [str(subnet) for subnet in drawn]
    for subnet in drawn:
        own = table.where(subnet=str(subnet), tokens=CLS)
        assert own.where(side="extended").column("block") == [1, 2, 3]
        assert own.where(side="cropped").column("block") == list(range(1, subnet.depth + 1))
        assert set(own.column("group")) == {subnet.embed_dim}
    for row in found.tables["blocks"].rows:
        side, tokens, block, count, mean, lower, upper, least, most = row
        values = table.where(side=side, tokens=tokens, block=block).column("cosine")
        assert (count, least, most) == (len(values), min(values), max(values))
        assert mean == pytest.approx(np.mean(values))
        assert (lower, upper) == pytest.approx(tuple(np.percentile(values, (25, 75))))
    said = " ".join(found.findings())
    assert "40 test images of digits and 6 random subnets" in said
    means = [found.tables["blocks"].where(side=side, tokens=ALL) for side in ("extended", "cropped")]
    extended, cropped = (m.column("mean")[:3] for m in means)
    above = sum(a > b for a, b in zip(extended, cropped, strict=True))
    assert f"behind {above} of the 3 blocks" in said
    assert f"on average {np.mean(extended):.2f} against {np.mean(cropped):.2f}" in said
    assert (found.tables, found.facts) == (made.tables, made.facts)
    (again,) = found.drawings().values()
    assert [axes.get_title("left") for axes in again.figure.axes] == [f"(a) {ALL}", f"(b) {CLS}"]
    assert len(svg_text(again.figure, "d", "")) < 40_000


def test_the_same_images_and_subnets_in_every_call(single):
    first, second = (analysis.similarity(*single, subnets=2, images=10, device="cpu") for _ in range(2))
    assert first.to_json() == second.to_json()


def test_blocks_are_in_order_where_few_subnets_have_some(single):
    """Deep blocks are first met at whichever subnet is deep; the curve must not go back and forth."""
    found = analysis.similarity(*single, subnets=6, images=4, device="cpu")
    for side, blocks in (("extended", 3), ("cropped", 5)):
        for tokens in (ALL, CLS):
            own = found.tables["blocks"].where(side=side, tokens=tokens)
            assert own.column("block") == list(range(1, blocks + 1))
