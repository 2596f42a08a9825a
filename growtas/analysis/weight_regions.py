"""Figure A: which part of a shared weight each choice of widths uses, and where these parts do not nest.

Computed from the space alone: nothing is trained, and torch is not loaded.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from growtas.analysis.base import Analysis, Drawing, Table
from growtas.analysis.workspace import Part
from growtas.space import MobileNetSpace, SearchSpace, Space, load_space

PUBLISHED = ("autoformer-tiny", "autoformer-small", "autoformer-base")
_OTHER = ("other_embed_dim", "other_mlp_ratio", "other_hidden_dim")
_VIOLATION = ("embed_dim", "mlp_ratio", "hidden_dim", *_OTHER, "excess")


class WeightRegions(Analysis):
    """Figure A. Its tables, of a space of transformers:

    - ``rectangles``: embed_dim, mlp_ratio, hidden_dim and the entries of fc1's weight that they use;
    - ``inclusion``: whether each rectangle lies within each other one, and whether it should and does not;
    - ``violations``: those of this space, with the number of hidden channels that stick out;
    - ``published``: those of the published spaces.

    Of a space of MobileNetV3 networks ``widths``: the middle width of every block at every expand ratio.
    """

    name = "figure-a"
    title = "Which weights a subnet uses"
    question = (
        "Growing from small subnets to large ones promises that what is trained first lies inside of what is "
        "trained later. Does the part of the shared weights that a narrower subnet uses lie within the part "
        "that a wider one uses?"
    )
    published = (
        "The paper groups subnets by embed_dim, for that should nest. It then draws AutoFormer-T and shows "
        "that the groups do not nest cleanly: with a large MLP ratio a narrow subnet uses more of fc1 than "
        "a wider subnet with a small ratio does, 192 × 4 = 768 hidden channels against 216 × 3.5 = 756. It "
        "is the paper's reason for stages of two neighbouring groups each (K = 2) instead of one group each "
        "(K = 3): what overlaps is then trained together."
    )

    def drawings(self) -> dict[str, Drawing]:
        from growtas.analysis import weight_regions_charts

        return weight_regions_charts.drawings(self)

    def findings(self) -> list[str]:
        return _mobile_findings(self) if "widths" in self.tables else _vit_findings(self)

    def shown(self) -> dict[str, Table]:
        if "widths" in self.tables:
            return {}
        tables = {}
        if self.tables["violations"].rows:
            tables[f"Rectangles of {self.facts['space']} that do not nest"] = self.tables["violations"]
        tables["The published spaces: rectangles that do not nest"] = self.tables["published"]
        return tables


def weight_regions(space: str | Path | Space) -> WeightRegions:
    """Which part of fc1's weight each (embed_dim, mlp_ratio) uses, and which of these parts nest.

    Args:
        space: name of a preset, path of a YAML file, or a space.

    Returns:
        Figure A of that space. For MobileNetV3 spaces the widths inside of the blocks, which always nest.

    Raises:
        UsageError: there is no such space.

    Example:
        >>> weight_regions("digits").tables["violations"].rows
        ((36, 3, 108, 48, 2, 96, 12),)

    Source: GrowTAS, supplement, figure A.
    """
    space = load_space(space)
    if isinstance(space, MobileNetSpace):
        return WeightRegions({"widths": _widths(space)}, {"space": space.name})
    rectangles = _rectangles(space)
    rows = ((*a, a[0] * a[2], space.embed_dim.index(a[0])) for a in rectangles)
    columns = ("embed_dim", "mlp_ratio", "hidden_dim", "entries", "group")
    published = [
        (name, *violation)
        for name in PUBLISHED
        if name != space.name
        for violation in violations(load_space(name))
    ]
    tables = {
        "rectangles": Table.of(columns, rows),
        "inclusion": _inclusion(rectangles),
        "violations": Table.of(_VIOLATION, violations(space)),
        "published": Table.of(("space", *_VIOLATION), published),
    }
    return WeightRegions(tables, {"space": space.name})


def violations(space: SearchSpace) -> Iterator[tuple[Any, ...]]:
    """Pairs of rectangles of which the one with fewer embedding channels has more hidden channels.

    Yields:
        embed_dim, ratio and hidden width of the one, the same of the other, and by how many hidden channels
        the first exceeds the second; ordered by the first, then by the second.
    """
    for a, b in itertools.product(_rectangles(space), repeat=2):
        if a[0] < b[0] and a[2] > b[2]:
            yield (*a, *b, a[2] - b[2])


def _rectangles(space: SearchSpace) -> list[tuple[Any, ...]]:
    """embed_dim, MLP ratio and hidden width (rounded as subnets round it) of every choice."""
    return [(d, r, int(d * r)) for d in space.embed_dim for r in space.mlp_ratio]


def _inclusion(rectangles: list[tuple[Any, ...]]) -> Table:
    rows = [
        (*a, *b, a[0] <= b[0] and a[2] <= b[2], a[0] < b[0] and a[2] > b[2])
        for a, b in itertools.product(rectangles, repeat=2)
    ]
    return Table.of(("embed_dim", "mlp_ratio", "hidden_dim", *_OTHER, "within", "violation"), rows)


def _widths(space: MobileNetSpace) -> Table:
    rows = [
        (stage + 1, index + 1, space.in_width(stage, index), expand, space.mid_width(stage, index, expand))
        for stage in range(space.stages)
        for index in range(space.slots)
        for expand in space.expand
    ]
    return Table.of(("stage", "block", "in_width", "expand", "mid_width"), rows)


def _vit_findings(found: WeightRegions) -> list[str]:
    inclusion, broken = found.tables["inclusion"], found.tables["violations"]
    name, dims = found.facts["space"], sorted(set(inclusion.column("embed_dim")))
    pairs = [row for row in inclusion.rows if row[0] < row[3]]
    groups = f"{len(dims)} embed_dims ({', '.join(map(str, dims))})"
    if not pairs:
        return [f"{name} has one embed_dim, {dims[0]}: its rectangles differ by the ratio alone and nest."]
    if not broken.rows:
        return [
            f"All {len(pairs)} pairs of rectangles of {name} of different embed_dims nest ({groups}): a "
            "wider one with the smallest ratio still holds a narrower one with the largest."
        ]
    sentences = [
        f"Of the {len(pairs)} pairs of a narrower and a wider rectangle of {name} ({groups}), "
        f"{len(broken.rows)} {'does' if len(broken.rows) == 1 else 'do'} not nest: "
        + "; ".join(f"{d} × {r} = {h} > {d2} × {r2} = {h2}" for d, r, h, d2, r2, h2, _ in broken.rows)
        + "."
    ]
    d, _, h, d2, _, h2, excess = max(broken.rows, key=lambda row: row[-1] / row[2])
    sentences.append(
        f"The largest overhang is that of {d} × {h} over {d2} × {h2}: {excess} of {h} hidden channels, "
        f"{100 * excess / h:.1f} % of the entries of fc1 that the narrower subnet uses."
    )
    far = [row for row in broken.rows if dims.index(row[3]) - dims.index(row[0]) > 1]
    if len(dims) > 2:
        sentences.append(
            f"{len(far)} of the {len(broken.rows)} {'reaches' if len(far) == 1 else 'reach'} over more than "
            "the next group: stages of two neighbours (K = 2) do not train all of the overlaps together."
            if far
            else "All of it lies between neighbouring groups, as stages of two neighbours (K = 2) assume."
        )
    return sentences


def _mobile_findings(found: WeightRegions) -> list[str]:
    widths = found.tables["widths"]
    expand = sorted(set(widths.column("expand")))
    blocks = [widths.rows[at : at + len(expand)] for at in range(0, len(widths.rows), len(expand))]
    nested = sum(all(a[-1] <= b[-1] for a, b in itertools.pairwise(block)) for block in blocks)
    sentences = [
        f"The expand ratios {', '.join(map(str, expand))} of {found.facts['space']} nest in {nested} of "
        f"{len(blocks)} blocks: a block's input width is fixed, so a larger ratio means more middle channels "
        "that begin with those of the smaller one. A smaller kernel is the centre of the larger one's "
        "filter, and a shallower stage the first blocks of a deeper one. It is unlike a space of "
        "transformers, where the MLP ratio multiplies an embed_dim that is chosen as well."
    ]
    if len(expand) > 2:
        low, middle, high = expand[0], expand[-2], expand[-1]
        sentences.append(
            "Whole subnets need not nest nevertheless, for the ratio is chosen per block and the largest one "
            f"gives the group: with {middle} in every block a subnet of group {middle} uses weights that one "
            f"of group {high} with {high} in a single block and {low} elsewhere does not."
        )
    return sentences


PART = Part(WeightRegions, lambda workspace: weight_regions(workspace.space))
