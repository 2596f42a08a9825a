"""The pictures of figure A, drawn from its tables. Imports matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from matplotlib.colors import ListedColormap
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from growtas.analysis.base import Analysis, Drawing, Table
from growtas.analysis.charts import ACCENT, new_figure, styled
from growtas.plotting import GROUP_COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_LINES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)))  # of the ratios, the largest first
_WITHIN, _NOT = "#CFE3F1", "#F3F3F3"
_LABELLED = 16  # rectangles up to which every cell of the matrix has room for a label


def drawings(found: Analysis) -> dict[str, Drawing]:
    """The picture of either family."""
    with styled():
        return {"": _mobile(found) if "widths" in found.tables else _vit(found)}


def _colour(group: int) -> str:
    return GROUP_COLOURS[group % len(GROUP_COLOURS)]


# -- transformers ----------------------------------------------------------------------------------------


def _vit(found: Analysis) -> Drawing:
    rectangles = [
        dict(zip(t.columns, row, strict=True)) for t in [found.tables["rectangles"]] for row in t.rows
    ]
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
        colour, size = _colour(each["group"]), (each["hidden_dim"], each["embed_dim"])
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
        style = {"color": _colour(each["group"]), "linestyle": lines[each["mlp_ratio"]], "linewidth": 1.5}
        axes.plot([left, x, x], [y, y, bottom], **style)
        at = {"ha": "center", "fontsize": 9, "zorder": 5, "bbox": {"color": "white", "pad": 0.8}}
        axes.annotate(str(x), (x, y), (0, 6), textcoords="offset points", color="0.15", **at)
    depth = 0.12 * step
    for row in broken.rows:
        box = (row[5], row[0] - depth), row[6], depth
        axes.add_patch(Rectangle(*box, color=ACCENT, linewidth=0, zorder=4))
    axes.set(xlim=(left, max(hidden) + 0.1 * spread), ylim=(bottom, dims[-1] + 0.4 * step), yticks=dims)
    for label, group in zip(axes.get_yticklabels(), range(len(dims)), strict=True):
        label.set(color=_colour(group), fontweight="bold")
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
            label.set_color(_colour(each["group"]))
    axes.spines[:].set_visible(False)
    axes.set_ylabel("this rectangle ...")
    axes.set_xlabel("... lies within this one")
    axes.set_title("(d) inclusion")
    legend = ((_WITHIN, "within"), (_NOT, "not"), (ACCENT, "not, though narrower"))
    _legend(axes, [Patch(color=colour, label=text) for colour, text in legend])


# -- MobileNetV3 -----------------------------------------------------------------------------------------


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
            axes.barh(at, mid_width, 0.7, color=_colour(expand.index(ratio)), edgecolor="white")
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
    _legend(axes, [Patch(color=_colour(at), label=f"expand {ratio}") for at, ratio in enumerate(expand)])
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
