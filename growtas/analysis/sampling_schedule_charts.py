"""The picture of Figure G: bars of sampling probability per stage and group."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from growtas.analysis.base import Analysis, Drawing, Table
from growtas.analysis.charts import new_figure
from growtas.plotting import GROUP_COLOURS

_SPREAD = 0.8  # of the room of a stage that the groups share


def drawings(found: Analysis) -> dict[str, Drawing]:
    """The picture of a schedule of sampling; see :meth:`.Analysis.drawings`."""
    facts = found.facts
    names = panels(found)
    tables = [found.tables["schedules"].where(schedule=name) for name in names]
    widths = [1 + len(set(table.column("stage"))) for table in tables]
    figure, axes = new_figure(3.3, columns=len(names), squeeze=False, width_ratios=widths, sharey=True)
    for place, (name, table) in enumerate(zip(names, tables, strict=True)):
        _panel(axes[0, place], table, facts["groups"])
        title = name
        if name == "run":
            title = f"{facts['same_as'] or 'stages of its own'}: the run"
        axes[0, place].set_title(title, fontweight="bold" if name == "run" else "normal")
    axes[0, 0].set_ylabel("share of draws")
    axes[0, 0].set_ylim(0, 1.12)
    ticks = sorted({0.0, 1.0, *found.tables["schedules"].column("meant")})
    axes[0, 0].set_yticks(ticks, [_fraction(tick) for tick in ticks])
    handles = [
        Patch(facecolor=GROUP_COLOURS[group % len(GROUP_COLOURS)], label=f"{facts['axis']} {value}")
        for group, value in enumerate(facts["groups"])
    ]
    handles += [
        Line2D([], [], color="black", linewidth=2, label="meant"),
        Line2D([], [], color="0.25", linewidth=1, marker="_", label="95 % interval"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(6, len(handles)))
    return {"": Drawing(figure, _caption(found), _alt(found))}


def panels(found: Analysis) -> list[str]:
    """The schedules that are drawn: where the run has K stages, its counts stand for those of that K."""
    names = list(dict.fromkeys(found.tables["schedules"].column("schedule")))
    same = found.facts["same_as"]
    if same is None:
        return names
    return ["run" if name == same else name for name in names if name != "run"]


def _panel(axes: Axes, table: Table, groups: list[int]) -> None:
    at = {name: place for place, name in enumerate(table.columns)}
    stages = list(dict.fromkeys(table.column("stage")))
    width = _SPREAD / len(groups)
    for row in table.rows:
        share, low, high, meant = (row[at[name]] for name in ("share", "low", "high", "meant"))
        if share is None:
            continue
        group = groups.index(row[at["group"]])
        x = stages.index(row[at["stage"]]) + width * (group + 0.5) - _SPREAD / 2
        colour = GROUP_COLOURS[group % len(GROUP_COLOURS)]
        axes.bar(x, share, 0.88 * width, color=colour)
        axes.hlines(meant, x - 0.47 * width, x + 0.47 * width, color="black", linewidth=2, zorder=3)
        ends = [[share - low], [high - share]]
        axes.errorbar(x, share, ends, color="0.25", linewidth=1, capsize=2, zorder=4)
        axes.annotate(
            f"{100 * share:.1f}", (x, max(high, meant)), xytext=(0, 3), textcoords="offset points",
            ha="center", fontsize=8,
        )  # fmt: skip
    labels = []
    for stage in stages:
        row = table.where(stage=stage).rows[0]
        first, last = row[at["epoch_from"]], row[at["epoch_to"]] - 1
        epochs = f"epoch {first}" if first == last else f"epochs {first}–{last}"
        labels.append(f"stage {stage}\n{epochs}")
    axes.set_xticks(range(len(stages)), labels, fontsize=8)
    axes.set_xlim(-0.55, len(stages) - 0.45)
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="y")
    axes.set_axisbelow(True)


def _fraction(probability: float) -> str:
    """Such as ``1/3``: a group is drawn with one over the number of active groups, or not at all."""
    return f"{probability:g}" if probability in (0, 1) else f"1/{round(1 / probability)}"


def _caption(found: Analysis) -> str:
    facts = found.facts
    drawn = {name: count for name, count, *_ in found.tables["tests"].rows}
    text = (
        "Share of every group among the draws of each stage, in per cent above the bars. The run: "
        f"{drawn['run']:,} draws counted in its log ({facts['data']}, {facts['epochs']} epochs, seed "
        f"{facts['seed']})."
    )
    others = [name for name in panels(found) if name != "run"]
    if others:
        text += (
            f" {', '.join(others)}: {drawn[others[0]]:,} draws each of the method's own code, one for every "
            "step of such a run."
        )
    return f"{text} Whiskers are Wilson's 95 % intervals; black lines are the probabilities that are meant."


def _alt(found: Analysis) -> str:
    names = ", ".join(name for name in panels(found) if name != "run")
    return (
        f"Bars of sampling probability per stage and group: counted in a run of GrowTAS, and for {names}; "
        "each beside the probability that is meant."
    )
