"""Figure A: the part of a shared weight that each choice of widths uses, and where these parts do not nest.

Computed from the space alone: nothing is trained, and torch is not loaded.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.colors import ListedColormap
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from growtas.analysis.base import Analysis, Drawing, Table
from growtas.analysis.charts import ACCENT, group_colour, new_figure
from growtas.space import MobileNetSpace, SearchSpace, Space, load_space

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from growtas.analysis.workspace import Workspace

PUBLISHED = ("autoformer-tiny", "autoformer-small", "autoformer-base")
_OTHER = ("other_embed_dim", "other_mlp_ratio", "other_hidden_dim")
_VIOLATION = ("embed_dim", "mlp_ratio", "hidden_dim", *_OTHER, "excess")
_LINES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)))  # of the ratios, the largest first
_WITHIN, _NOT = "#CFE3F1", "#F3F3F3"
_LABELLED = 16  # rectangles up to which every cell of the matrix has room for a label


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

    @classmethod
    def make(cls, workspace: Workspace) -> WeightRegions:
        return weight_regions(workspace.space)

    def draw(self) -> dict[str, Drawing]:
        return {"": _mobile(self) if "widths" in self.tables else _vit(self)}

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
    """The part of fc1's weight that each (embed_dim, mlp_ratio) uses, and which of these parts nest.

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
    inclusion, broken = found.tables["inclusion"], found.tables["violations"].rows
    name, dims = found.facts["space"], sorted(inclusion.values("embed_dim"))
    pairs = sum(row[0] < row[3] for row in inclusion.rows)
    groups = f"embed_dims: {', '.join(map(str, dims))}"
    if not pairs:
        return [f"{name} has one embed_dim, {dims[0]}: its rectangles differ by the ratio alone and nest."]
    if not broken:
        return [
            f"All {pairs} pairs of rectangles of {name} of different embed_dims nest ({groups}): a wider one "
            "with the smallest ratio still holds a narrower one with the largest."
        ]
    listed = "; ".join(f"{d} × {r} = {h} > {d2} × {r2} = {h2}" for d, r, h, d2, r2, h2, _ in broken)
    d, _, h, d2, _, h2, excess = max(broken, key=lambda row: row[-1] / row[2])
    sentences = [
        f"Pairs of a narrower and a wider rectangle of {name} ({groups}) that do not nest: {len(broken)} of "
        f"{pairs} ({listed}).",
        f"The largest overhang is that of {d} × {h} over {d2} × {h2}: {excess} of {h} hidden channels, "
        f"{100 * excess / h:.1f} % of the entries of fc1 that the narrower subnet uses.",
    ]
    far = sum(dims.index(row[3]) - dims.index(row[0]) > 1 for row in broken)
    if len(dims) > 2:
        sentences.append(
            f"Pairs of them that lie more than one group apart: {far} of {len(broken)}; stages of two "
            "neighbours (K = 2) do not train all of the overlaps together."
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


# -- the picture of transformers -------------------------------------------------------------------------


def _vit(found: Analysis) -> Drawing:
    rectangles = found.tables["rectangles"].records()
    broken, name = found.tables["violations"], found.facts["space"]
    figure, axes = new_figure(6.4, 2, 2, height_ratios=(1, 2.4))
    ratios = sorted({each["mlp_ratio"] for each in rectangles}, reverse=True)
    lines = {ratio: _LINES[at % len(_LINES)] for at, ratio in enumerate(ratios)}
    whole = [each for each in rectangles if each["mlp_ratio"] == ratios[0]]
    _to_scale(axes[0, 0], whole, lines)
    axes[0, 0].set_title("(a) ideal: one rectangle per embed_dim")
    _to_scale(axes[0, 1], rectangles, lines)
    axes[0, 1].set_title("(b) actual: one per embed_dim and ratio")
    _corners(axes[1, 0], rectangles, lines, broken)
    _matrix(axes[1, 1], found.tables["inclusion"], rectangles)
    caption = (
        f"The part of fc1's weight, embed_dim by embed_dim × mlp_ratio, that each of the {len(rectangles)} "
        f"combinations of {name} uses. (a) What one would hope for: each embed_dim as a whole, nested. (b) "
        "What the ratios make of it, to the same scale. (c) The corners of (b) with their hidden_dim; marked "
        "is what sticks out of a rectangle of a larger embed_dim. (d) Whether the rectangle of a row lies "
        "within that of a column; the marked cells should and do not, by that many hidden channels."
    )
    alt = (
        f"Nested rectangles of {name}'s fc1 weights and a matrix of {len(rectangles)} by {len(rectangles)} "
        f"cells that shows which lies within which; {len(broken.rows)} cells are marked as violations."
    )
    return Drawing(figure, caption, alt)


def _to_scale(axes: Axes, rectangles: list[dict[str, Any]], lines: dict) -> None:
    for each in sorted(rectangles, key=lambda r: r["entries"], reverse=True):
        colour, size = group_colour(each["group"]), (each["hidden_dim"], each["embed_dim"])
        axes.add_patch(Rectangle((0, 0), *size, facecolor=colour, alpha=0.5 / len(rectangles), linewidth=0))
        style = {"edgecolor": colour, "linestyle": lines[each["mlp_ratio"]], "linewidth": 1.3}
        axes.add_patch(Rectangle((0, 0), *size, fill=False, **style))
    high, wide = (max(r[key] for r in rectangles) for key in ("embed_dim", "hidden_dim"))
    dims = sorted({each["embed_dim"] for each in rectangles})
    axes.set(xlim=(0, 1.02 * wide), ylim=(0, 1.06 * high), aspect="equal")
    axes.set(xlabel="hidden_dim (channels)", ylabel="embed_dim", yticks=[0, dims[0], dims[-1]])


def _corners(axes: Axes, rectangles: list[dict[str, Any]], lines: dict, broken: Table) -> None:
    dims = sorted({each["embed_dim"] for each in rectangles})
    hidden = [each["hidden_dim"] for each in rectangles]
    spread = max(hidden) - min(hidden) or max(hidden)
    step = (dims[-1] - dims[0]) / max(1, len(dims) - 1) or dims[0]
    left, bottom = min(hidden) - 0.2 * spread, dims[0] - 0.8 * step
    for each in rectangles:
        x, y = each["hidden_dim"], each["embed_dim"]
        style = {
            "color": group_colour(each["group"]),
            "linestyle": lines[each["mlp_ratio"]],
            "linewidth": 1.5,
        }
        axes.plot([left, x, x], [y, y, bottom], **style)
        at = {"ha": "center", "fontsize": 9, "zorder": 5, "bbox": {"color": "white", "pad": 0.8}}
        axes.annotate(str(x), (x, y), (0, 6), textcoords="offset points", color="0.15", **at)
    depth = 0.12 * step
    for row in broken.rows:
        box = (row[5], row[0] - depth), row[6], depth
        axes.add_patch(Rectangle(*box, color=ACCENT, linewidth=0, zorder=4))
    axes.set(xlim=(left, max(hidden) + 0.1 * spread), ylim=(bottom, dims[-1] + 0.4 * step), yticks=dims)
    for label, group in zip(axes.get_yticklabels(), range(len(dims)), strict=True):
        label.set(color=group_colour(group), fontweight="bold")
    axes.set(xlabel="hidden_dim (channels)", ylabel="embed_dim")
    axes.set_title("(c) actual: the corners enlarged")
    handles: list = [
        Line2D([], [], color="0.3", linestyle=line, label=f"ratio {ratio}") for ratio, line in lines.items()
    ]
    if broken.rows:
        handles.append(Patch(color=ACCENT, label="sticks out"))
    _legend(axes, handles)


def _legend(axes: Axes, handles: list) -> None:
    """Above an axes' title."""
    axes.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(-0.02, 1.07), ncols=len(handles), handlelength=1.8,
        columnspacing=1.2, handletextpad=0.5, borderpad=0,
    )  # fmt: skip


def _matrix(axes: Axes, inclusion: Table, rectangles: list[dict[str, Any]]) -> None:
    count = len(rectangles)
    rows = [inclusion.rows[at : at + count] for at in range(0, count**2, count)]
    states = [[2 if row[7] else int(row[6]) for row in line] for line in rows]
    edges = [at - 0.5 for at in range(count + 1)]
    axes.pcolormesh(edges, edges, states, cmap=ListedColormap([_NOT, _WITHIN, ACCENT]), vmin=0, vmax=2)
    axes.invert_yaxis()
    size = min(9, 72 / count)
    for y, line in enumerate(rows if count <= _LABELLED else ()):
        for x, row in enumerate(line):
            text = f"+{row[2] - row[5]}" if row[7] else ("in" if row[6] else "-")
            style = {"color": "white", "fontweight": "bold"} if row[7] else {"color": "0.35"}
            axes.text(x, y, text, ha="center", va="center", fontsize=size, **style)
    axes.set_xticks([at - 0.5 for at in range(1, count)], minor=True)
    axes.set_yticks([at - 0.5 for at in range(1, count)], minor=True)
    axes.grid(which="minor", color="white", linewidth=1, alpha=1)
    axes.tick_params(which="both", length=0)
    labels = [f"{each['embed_dim']} × {each['mlp_ratio']}" for each in rectangles]
    axes.set_xticks(range(count), labels, rotation=45, ha="right", fontsize=size)
    axes.set_yticks(range(count), labels, fontsize=size)
    for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
        for label, each in zip(ticks, rectangles, strict=True):
            label.set_color(group_colour(each["group"]))
    axes.spines[:].set_visible(False)
    axes.set_ylabel("this rectangle ...")
    axes.set_xlabel("... lies within this one")
    axes.set_title("(d) inclusion")
    legend = ((_WITHIN, "within"), (_NOT, "not"), (ACCENT, "not, though narrower"))
    _legend(axes, [Patch(color=colour, label=text) for colour, text in legend])


# -- the picture of MobileNetV3 --------------------------------------------------------------------------


def _mobile(found: Analysis) -> Drawing:
    """One bar per stage's first and later blocks, which differ in their input: the widths nested in it."""
    widths, name = found.tables["widths"], found.facts["space"]
    expand = sorted(set(widths.column("expand")))
    kinds = dict.fromkeys((row[0], min(row[1], 2)) for row in widths.rows)
    figure, axes = new_figure(1.3 + 0.42 * len(kinds))
    longest = max(widths.column("mid_width"))
    labels = []
    for at, (stage, block) in enumerate(kinds):
        own = widths.where(stage=stage, block=block)
        for _, _, _, ratio, mid_width in reversed(own.rows):
            axes.barh(at, mid_width, 0.7, color=group_colour(expand.index(ratio)), edgecolor="white")
        text = " / ".join(str(row[-1]) for row in own.rows)
        axes.annotate(
            text, (own.rows[-1][-1], at), (5, 0), textcoords="offset points", va="center", fontsize=9
        )
        labels.append(f"stage {stage}, {'later blocks' if block > 1 else 'first block'}: {own.rows[0][2]} in")
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    axes.set(xlabel="middle channels (rows of the expansion's weight)", xlim=(0, 1.18 * longest))
    _legend(axes, [Patch(color=group_colour(at), label=f"expand {ratio}") for at, ratio in enumerate(expand)])
    axes.legend_.set_bbox_to_anchor((0, 1.01))
    blocks = len(widths.rows) // len(expand)
    caption = (
        f"Middle channels of the blocks of {name} ({blocks} blocks; a stage's later ones are alike) at each "
        "expand ratio. Each ratio uses the leading channels, from 0 to its number, and all channels of the "
        "block's input."
    )
    alt = (
        f"Bars of {name}'s middle widths: in every block each expand ratio's bar lies within the next one's."
    )
    return Drawing(figure, caption, alt)
