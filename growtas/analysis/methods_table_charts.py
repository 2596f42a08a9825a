"""The picture of Table A: accuracy against parameters, and the differences to the baseline."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from growtas.analysis.base import Analysis, Drawing, Table
from growtas.analysis.charts import new_figure
from growtas.comparing.figure import looks
from growtas.comparing.limits import Limit
from growtas.comparing.specs import read_methods

_SPREAD = 0.7  # of the room of one limit that the methods share


def drawings(found: Analysis) -> dict[str, Drawing]:
    """The picture of a table of methods; see :meth:`.Analysis.drawings`."""
    facts, table = found.facts, found.tables["searched"]
    specs = read_methods(facts["methods"])
    look = {str(spec): each for spec, each in looks(specs).items()}
    figure, (left, right) = new_figure(3.9, columns=2, width_ratios=(1.1, 1))
    for method, style in look.items():
        own = table.where(method=method)
        if own.rows:
            _levels(left, own, found.tables["cells"].where(method=method), method, style)
    left.set_xlabel("parameters of the subnet found")
    left.set_ylabel("top-1 on the test split (%)")
    left.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1e3:,.0f} k"))
    left.xaxis.set_major_locator(MaxNLocator(6))
    left.set_title("the best subnet found under each limit")
    left.grid()
    others = [m for m in look if any(each is not None for each in table.where(method=m).column("difference"))]
    for number, method in enumerate(others):
        shift = _SPREAD * ((number + 0.5) / len(others) - 0.5)
        _differences(right, table.where(method=method), shift, facts["limits"], look[method])
    right.axhline(0, color="black", linewidth=1)
    limits = [Limit.parse(text) for text in facts["limits"]]
    right.set_xticks(range(len(limits)), [_short(limit) for limit in limits])
    right.set_xlim(-0.5, len(limits) - 0.5)
    right.set_xlabel("at most so many " + ("MACs" if limits[0].kind == "macs" else "parameters"))
    right.set_ylabel(f"difference to {facts['baseline']} (points)")
    right.set_title("paired by seed")
    right.grid(axis="y")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=min(6, len(look)))
    return {"": Drawing(figure, _caption(found), _alt(found))}


def _levels(axes: Axes, own: Table, cells: Table, method: str, style: dict[str, str]) -> None:
    """Mean top-1 over mean parameters with the intervals over the seeds, and the seeds as small dots."""
    axes.scatter(
        cells.column("params"), cells.column("top1"), s=9, color=style["color"], alpha=0.55, linewidths=0
    )
    axes.errorbar(
        own.column("params"), own.column("top1"), _whiskers(own, "top1"), label=method, linestyle="none",
        capsize=2, elinewidth=0.9, markersize=7, **style,
    )  # fmt: skip


def _differences(axes: Axes, own: Table, shift: float, limits: list[str], style: dict[str, str]) -> None:
    places = [limits.index(limit) + shift for limit in own.column("limit")]
    axes.errorbar(
        places, own.column("difference"), _whiskers(own, "difference"), linestyle="none", capsize=3,
        markersize=6, **style,
    )  # fmt: skip


def _whiskers(own: Table, name: str) -> list[list[float]]:
    """Lengths below and above; none where one seed has no interval."""
    columns = [own.column(f"{name}{end}") for end in ("", "_low", "_high")]
    ends = [
        (0.0, 0.0) if low is None else (mean - low, high - mean)
        for mean, low, high in zip(*columns, strict=True)
    ]
    return [[low for low, _ in ends], [high for _, high in ends]]


def _short(limit: Limit) -> str:
    return f"{limit.most:,}" + (" MACs" if limit.kind == "macs" else "")


def _caption(found: Analysis) -> str:
    facts = found.facts
    seeds = facts["seeds"]
    text = (
        f"The best subnet under each limit, found by {facts['evaluations']} evaluations on "
        f"{facts['search_images']:,} held-out images and judged on {facts['test_images']:,} test images with "
        f"inherited weights; mean over {seeds} seed{'s' if seeds > 1 else ''}, {facts['epochs']} epochs each."
    )
    if seeds > 1:
        text += (
            " Dots are single seeds; whiskers are 95 % confidence intervals of the mean (left) and of the "
            f"mean paired difference to {facts['baseline']} (right): where one holds zero, no difference is "
            "shown."
        )
    return text


def _alt(found: Analysis) -> str:
    facts = found.facts
    return (
        f"Two charts of {', '.join(facts['methods'])} on {facts['data']}: top-1 over parameters of the "
        f"subnets found under {len(facts['limits'])} limits, and the differences to {facts['baseline']} with "
        "their intervals."
    )
