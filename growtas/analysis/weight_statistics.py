"""Figure B: the weights around a trained subnet, under two initialisations of the rest."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from matplotlib.patches import Patch

from growtas.analysis.base import Analysis, Drawing, Table
from growtas.analysis.blocks import block_axis, block_labels, convolutional
from growtas.analysis.charts import ROLE_COLOURS, new_figure
from growtas.analysis.trained import INITS, Trained
from growtas.methods.regions import used_by
from growtas.training.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor

    from growtas.analysis.workspace import Workspace
    from growtas.subnet import AnySubnet
    from growtas.supernet import AnySupernet

_ROLES = {
    "trained": "trained region",
    "standard": "standard initialisation",
    "pretrained": "pretrained initialisation",
}
REGIONS = {"new": "the new region", "whole": "the whole tensor"}
VIT_COMPONENTS = {
    "qkv": "attn.qkv.weight",
    "proj": "attn.proj.weight",
    "fc1": "mlp.fc1.weight",
    "fc2": "mlp.fc2.weight",
    "LayerNorm 1": "norm1.weight",
    "LayerNorm 2": "norm2.weight",
}
MOBILENET_COMPONENTS = {
    "expand": "expand.weight",
    "depthwise": "depthwise.weight",
    "project": "project.weight",
    "squeeze": "se.reduce.weight",
    "BatchNorm of expand": "expand_norm.weight",
    "BatchNorm of depthwise": "depthwise_norm.weight",
}
_CASES = [("trained", None), *((region, init) for region in REGIONS for init in INITS)]
_COLUMNS = ("component", "block", "region", "init", "entries", "mean", "variance", "min", "max")


class WeightStatistics(Analysis):
    """Figure B. Its tables:

    - ``statistics``: number, mean, variance, least and largest of the entries of each component, block (from
      1), region (``trained``, ``new``, ``whole``) and initialisation (None for ``trained``, which has none);
    - ``spread``: the standard deviation of the new region per component, over the blocks that have trained
      entries, under both initialisations, and the quotient of the two.
    """

    name = "figure-b"
    title = "The weights around a trained subnet"
    question = (
        "Extended subnets read weights that no step has trained. What do these weights look like beside the "
        "trained ones, when they start as a network's weights do (standard), and when they are drawn like "
        "the trained entries of the same tensor (pretrained)?"
    )
    published = (
        "For AutoFormer the paper shows mean, variance, least and largest weight per layer, of qkv, proj, "
        "fc1, fc2 and both LayerNorms: drawn like the trained weights the new ones have a much larger "
        "variance, above all in qkv, linear layers and LayerNorm, while the standard ones stay close to "
        "zero: the reason, it says, why extended subnets keep their accuracy under standard initialisation."
    )

    @classmethod
    def networks(cls, workspace: Workspace) -> tuple[str, ...]:
        return ("smallest",)

    @classmethod
    def make(cls, workspace: Workspace) -> WeightStatistics:
        return weight_statistics(workspace.run("smallest"), workspace.seed)

    def findings(self) -> list[str]:
        statistics, rows = self.tables["statistics"], self.tables["spread"].rows
        count, trained = len(self.facts["labels"]), self._trained_blocks()
        said = []
        times = [f"{name} {quotient:.1f}" for name, _, _, _, quotient in rows if quotient is not None]
        if times:
            said.append(
                "Drawn like the trained entries (pretrained), the new ones have so many times the standard "
                f"deviation of standard ones: {', '.join(times)} (over the {trained} of {count} blocks that "
                "the smallest subnet has)."
            )
        fixed = [f"{name} {pretrained:.3f}" for name, _, _, pretrained, quotient in rows if quotient is None]
        if fixed:
            said.append(
                "New weights of normalisations are all 1 under standard initialisation; drawn like the "
                f"trained ones they have these standard deviations: {', '.join(fixed)}."
            )
        new, whole = (
            sum(statistics.where(init="standard", region=region).column("entries")) for region in REGIONS
        )
        said.append(
            f"{100 * new / whole:.0f} % of the largest subnet's {whole:,} entries of these components are "
            "new to the smallest."
        )
        if trained < count:
            said.append(
                f"In the blocks that the smallest subnet lacks ({count - trained} of {count}) both "
                "initialisations are the standard one: there is nothing to be drawn like."
            )
        return said

    def shown(self) -> dict[str, Table]:
        over = f"over the {self._trained_blocks()} blocks that the smallest subnet has"
        return {f"Standard deviation of the weights, {over}": self.tables["spread"]}

    def _trained_blocks(self) -> int:
        return len(self.tables["statistics"].where(region="trained").values("block"))

    def draw(self) -> dict[str, Drawing]:
        return {"" if region == "new" else region: self._draw(region) for region in REGIONS}

    def _draw(self, region: str) -> Drawing:
        table, labels = self.tables["statistics"], self.facts["labels"]
        components = table.values("component")
        figure, axes = new_figure(5.4, 2, 3, sharex=True)
        for each, component in zip(axes.flat, components, strict=False):
            own = table.where(component=component)
            cases = [own.where(region="trained"), *(own.where(region=region, init=init) for init in INITS)]
            for role, case, shift in zip(("trained", *INITS), cases, (-0.25, 0, 0.25), strict=True):
                _bars(each, case, role, shift, len(labels))
            for block in set(cases[1].column("block")) - set(cases[0].column("block")):
                each.axvspan(block - 0.5, block + 0.5, color="0.94", linewidth=0, zorder=0)
            each.set_title(component)
            block_axis(each, labels)
            each.grid(axis="y")
            each.set_axisbelow(True)
        for each in axes.flat[len(components) :]:
            each.set_visible(False)
        for each in axes[0]:
            each.set_xlabel("")  # the row below has it
        for each in axes[:, 0]:
            each.set_ylabel("value of a weight")
        handles = [Patch(color=ROLE_COLOURS[role], label=text) for role, text in _ROLES.items()]
        handles.append(Patch(color="0.94", label="not in the smallest subnet"))
        figure.legend(handles=handles, loc="outside upper center", ncols=4)
        where = REGIONS[region]
        caption = (
            f"Weights of {where} by block, under both initialisations, beside the trained region: mean "
            "(stroke), one standard deviation around it (bar), least to largest (thin line). New is what the "
            f"largest subnet of {self.facts['space']} uses and the smallest, which alone was trained, does "
            f"not; whole is both. One network, seed {self.facts['seed']} of the new weights."
        )
        alt = f"{len(components)} charts of the mean, spread, least and largest weight of {where} by block."
        return Drawing(figure, caption, alt)


def weight_statistics(smallest: str | Path | Run, seed: int = 0) -> WeightStatistics:
    """The weights of a network whose smallest subnet was trained, and of the rest under two initialisations.

    Args:
        smallest: a finished run of method ``single`` that trained the smallest subnet, or its folder.
        seed: of what is drawn for the rest; it is what figure C of the same seed evaluates.

    Returns:
        Figure B.

    Raises:
        UsageError: the folder holds no run, or the run trained something else.
        GrowtasError: the run is not finished.

    Source: GrowTAS, supplement, figure B.
    """
    trained = Trained.of(smallest, "smallest")
    nets = {init: trained.extended(init, seed, "cpu") for init in INITS}
    return statistics_of(nets, trained.subnet, seed)


@torch.no_grad()
def statistics_of(nets: Mapping[str, AnySupernet], trained: AnySubnet, seed: int) -> WeightStatistics:
    """As :func:`weight_statistics`, of nets in memory.

    Args:
        nets: a supernet of one space per initialisation, equal where the subnet was trained.
        trained: the subnet that was.
        seed: for the record.
    """
    net = nets[INITS[0]]
    old, whole = (used_by(net, [subnet]) for subnet in (trained, net.space.largest()))
    masks = {"trained": old, "new": {name: whole[name] & ~old[name] for name in whole}, "whole": whole}
    rows = []
    for component, block, name in _tensors(net):
        for region, init in _CASES:
            values = nets[init or INITS[0]].get_parameter(name).cpu()[masks[region][name]]
            if len(values):
                rows.append((component, block, region, init, *_summary(values)))
    table = Table.of(_COLUMNS, rows)
    facts = {
        "space": net.space.name,
        "subnet": str(trained),
        "seed": seed,
        "labels": list(block_labels(net).values()),
    }
    return WeightStatistics({"statistics": table, "spread": _spread(table)}, facts)


def _tensors(net: AnySupernet) -> Iterator[tuple[str, int, str]]:
    """Component, block (from 1) and name of every parameter that is looked at."""
    names = dict(net.named_parameters())
    for component, suffix in (MOBILENET_COMPONENTS if convolutional(net) else VIT_COMPONENTS).items():
        for block, prefix in enumerate(block_labels(net), start=1):
            if f"{prefix}.{suffix}" in names:  # not every block has squeeze-and-excite
                yield component, block, f"{prefix}.{suffix}"


def _summary(values: Tensor) -> tuple[int, float, float, float, float]:
    """Number, mean, variance (of all values, not an estimate), least and largest."""
    values = values.double()
    variance = values.var(correction=0).item()
    return len(values), values.mean().item(), variance, values.min().item(), values.max().item()


def _spread(table: Table) -> Table:
    """The standard deviation per component: the root of the variances' mean over the trained blocks."""
    rows = []
    for component in table.values("component"):
        own = table.where(component=component)
        blocks = set(own.where(region="trained").column("block"))
        deviations = []
        for region, init in (("trained", None), ("new", "standard"), ("new", "pretrained")):
            found = own.where(region=region, init=init)
            pairs = zip(found.column("block"), found.column("variance"), strict=True)
            variances = [variance for block, variance in pairs if block in blocks]
            deviations.append(math.sqrt(sum(variances) / len(variances)) if variances else None)
        _, standard, pretrained = deviations
        if pretrained is not None:
            rows.append((component, *deviations, pretrained / standard if standard else None))
    return Table.of(("component", "trained", "standard", "pretrained", "pretrained / standard"), rows)


def _bars(axes: Axes, table: Table, role: str, shift: float, blocks: int) -> None:
    """Least to largest as a thin line, a standard deviation around the mean as a thick one, by block."""
    x, mean, variance, least, most = (table.column(c) for c in ("block", "mean", "variance", "min", "max"))
    x, deviation = [block + shift for block in x], [math.sqrt(value) for value in variance]
    low, high = ([m + s * d for m, d in zip(mean, deviation, strict=True)] for s in (-1, 1))
    left, right = ([at + step for at in x] for step in (-0.09, 0.09))
    wide = min(6.0, 32 / blocks)  # points; three of them share the room of a block
    style = {"color": ROLE_COLOURS[role], "solid_capstyle": "butt"}
    axes.plot(*_strokes(x, x, least, most), linewidth=min(0.9, wide / 3), **style)
    axes.plot(*_strokes(x, x, low, high), linewidth=wide, **style)
    axes.plot(*_strokes(left, right, mean, mean), color="black", linewidth=1.1)


def _strokes(x0: list, x1: list, y0: list, y1: list) -> tuple[list[float], list[float]]:
    """Straight strokes as one broken line, which takes less of a file than one line each."""
    gap = [math.nan] * len(x0)
    return tuple([v for each in zip(a, b, gap, strict=True) for v in each] for a, b in ((x0, x1), (y0, y1)))
