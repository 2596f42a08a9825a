"""Figure A: the violations of the published spaces, by hand and by brute force, and what is drawn of them."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from growtas import analysis
from growtas.analysis.charts import svg_text
from growtas.analysis.weight_regions import PUBLISHED, WeightRegions
from growtas.space import SearchSpace, Subnet, load_space

BY_HAND = {
    "autoformer-tiny": [(192, 4, 768, 216, 3.5, 756, 12), (216, 4, 864, 240, 3.5, 840, 24)],
    "autoformer-small": [(320, 4, 1280, 384, 3, 1152, 128), (384, 4, 1536, 448, 3, 1344, 192)],
    "autoformer-base": [
        (528, 3.5, 1848, 576, 3, 1728, 120),
        (528, 4, 2112, 576, 3, 1728, 384),
        (528, 4, 2112, 576, 3.5, 2016, 96),
        (528, 4, 2112, 624, 3, 1872, 240),
        (576, 3.5, 2016, 624, 3, 1872, 144),
        (576, 4, 2304, 624, 3, 1872, 432),
        (576, 4, 2304, 624, 3.5, 2184, 120),
    ],
    "digits": [(36, 3, 108, 48, 2, 96, 12)],
}
NESTED = SearchSpace("nested", (100, 200), (3, 4), (2,), (2,), image_size=8, patch_size=4)


def regions(name):
    """The analysis as it comes back from its file."""
    return WeightRegions.from_json(analysis.weight_regions(name).to_json())


def used(embed_dim, ratio):
    """Entries of fc1 as a set, sized as a subnet of these choices says."""
    (hidden,) = Subnet(embed_dim, 1, (1,), (ratio,)).hidden_dims
    return hidden, {(row, column) for row in range(0, hidden, 12) for column in range(0, embed_dim, 12)}


@pytest.mark.parametrize("name", BY_HAND)
def test_violations(name):
    assert list(regions(name).tables["violations"].rows) == BY_HAND[name]


@pytest.mark.parametrize("name", ["autoformer-tiny", "digits"])
def test_inclusion_is_that_of_sets_of_entries(name):
    """Every size of these spaces is a multiple of 12, so every twelfth entry tells."""
    space, inclusion = load_space(name), regions(name).tables["inclusion"]
    choices = [(d, r) for d in space.embed_dim for r in space.mlp_ratio]
    assert len(inclusion.rows) == len(choices) ** 2
    for d, r, hidden, other_d, other_r, other_hidden, within, violation in inclusion.rows:
        (own_hidden, own), (their_hidden, theirs) = used(d, r), used(other_d, other_r)
        assert (hidden, other_hidden) == (own_hidden, their_hidden)
        assert within == (own <= theirs)
        assert violation == (d < other_d and not own <= theirs)


def test_findings_name_the_violations():
    first, largest, where = regions("autoformer-tiny").findings()
    assert "do not nest: 2 of 12 (192 × 4 = 768 > 216 × 3.5 = 756; 216 × 4 = 864 > 240 × 3.5 = 840)." in first
    assert "24 of 864 hidden channels, 2.8 %" in largest
    assert "between neighbouring groups" in where
    # 528 x 4 reaches past 576, over 624 x 3
    assert (
        regions("autoformer-base")
        .findings()[-1]
        .startswith("Pairs of them that lie more than one group apart: 1 of 7")
    )


def test_a_space_that_nests_says_so():
    found = regions(NESTED)
    assert not found.tables["violations"].rows
    assert found.findings() == [
        "All 4 pairs of rectangles of nested of different embed_dims nest (embed_dims: 100, 200): a wider "
        "one with the smallest ratio still holds a narrower one with the largest."
    ]


def test_shown_beside_the_published_spaces():
    own, published = regions("digits").shown().values()
    assert own.rows == tuple(BY_HAND["digits"])
    assert list(published.rows) == [(name, *row) for name in PUBLISHED for row in BY_HAND[name]]
    _, others = regions("autoformer-base").shown().values()
    assert set(others.column("space")) == {"autoformer-tiny", "autoformer-small"}
    assert list(regions(NESTED).shown()) == ["The published spaces: rectangles that do not nest"]


def test_mobilenet_widths_nest():
    found = regions("ofa-mobilenetv3")
    widths = found.tables["widths"]
    assert widths.where(stage=1, block=1).rows == ((1, 1, 16, 3, 48), (1, 1, 16, 4, 64), (1, 1, 16, 6, 96))
    assert widths.where(stage=5, block=4, expand=6).column("mid_width") == [960]
    assert "nest in 20 of 20 blocks" in found.findings()[0]
    assert found.shown() == {}


@pytest.mark.parametrize("name", ["autoformer-tiny", "digits-mobilenet"])
def test_drawn_again_alike(name):
    kept, made = regions(name), analysis.weight_regions(name)
    assert (kept.tables, kept.facts) == (made.tables, made.facts)  # all that is drawn
    (drawing,) = kept.drawings().values()
    assert len(svg_text(drawing.figure, "a", drawing.alt)) < 60_000 and kept.facts["space"] in drawing.caption


def test_overhangs_are_drawn():
    """The cell of each violation holds its excess, and the picture its mark."""
    (drawing,) = regions("autoformer-tiny").drawings().values()
    corners, matrix = drawing.figure.axes[2:]
    assert sorted(t.get_text() for t in matrix.texts if t.get_text().startswith("+")) == ["+12", "+24"]
    assert [(p.get_x(), p.get_width()) for p in corners.patches] == [(756, 12), (840, 24)]


def test_needs_no_torch():
    code = "import sys; from growtas import analysis; analysis.weight_regions('digits').findings(); "
    result = subprocess.run(
        [sys.executable, "-c", code + "print('torch' in sys.modules)"], capture_output=True
    )
    assert result.stdout.strip() == b"False", result.stderr


def test_functions_are_not_hidden_by_their_modules(monkeypatch):
    for home in set(analysis._HOME.values()):
        importlib.import_module(f"growtas.analysis.{home}")
        monkeypatch.delitem(sys.modules, f"growtas.analysis.{home}")
        importlib.import_module(f"growtas.analysis.{home}")  # the first import binds it in the package
    for name in analysis.__all__:
        assert callable(getattr(analysis, name)), name
