"""Figure C: subnets around a trained small one, under two initialisations of their new weights."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING

from growtas.analysis import histograms
from growtas.analysis.base import Analysis, Drawing, Table
from growtas.analysis.charts import new_figure
from growtas.analysis.extend_and_crop import NEAR
from growtas.analysis.trained import INITS, Trained
from growtas.analysis.trained import draw as draw_subnets
from growtas.analysis.workspace import SUBNETS
from growtas.training.run import Run

if TYPE_CHECKING:
    from growtas.analysis.workspace import Workspace


class Initialisation(Analysis):
    """Figure C.

    Its tables: ``subnets`` (subnet, group, params, and top1 in per cent under each initialisation) and
    ``counts`` (the histograms). The facts hold the top-1 of the trained subnet, ``base``.
    """

    name = "figure-c"
    title = "How new weights begin: standard and pretrained initialisation"
    question = (
        "Do extended subnets keep what the small one learned because their new weights begin near zero? What "
        "if these are drawn from the distribution of the trained weights instead?"
    )
    published = (
        "Most of the 100 extended subnets keep their accuracy under the standard initialisation; the same "
        "subnets drop towards low accuracies under the pretrained one. The text gives no counts for that."
    )

    @classmethod
    def networks(cls, workspace: Workspace) -> tuple[str, ...]:
        return ("smallest",)

    @classmethod
    def make(cls, workspace: Workspace) -> Initialisation:
        given = workspace.subnets, workspace.seed, workspace.device, workspace.evaluations
        return initialisation(workspace.run("smallest"), *given)

    def top1(self, init: str) -> list[float]:
        """Per cent, of every subnet under one initialisation."""
        return self.tables["subnets"].column(_column(init))

    def findings(self) -> list[str]:
        facts, standard, pretrained = self.facts, self.top1("standard"), self.top1("pretrained")
        drops = [a - b for a, b in zip(standard, pretrained, strict=True)]
        worse = sum(drop > 0 for drop in drops)
        near = [sum(value >= facts["base"] - NEAR for value in self.top1(init)) for init in INITS]
        subnets = self.tables["subnets"]
        groups = (f"{init} {histograms.by_group(facts, subnets, _column(init))}" for init in INITS)
        return [
            f"{len(drops)} subnets extended from the smallest ({facts['base']:.1f} % trained alone) reach "
            f"{statistics.mean(standard):.1f} % on average under the standard initialisation and "
            f"{statistics.mean(pretrained):.1f} % under the pretrained one: a mean drop of "
            f"{statistics.mean(drops):.1f} points; {worse} of them are worse.",
            f"Within {NEAR} points of the trained subnet stay {near[0]} of them under the standard and "
            f"{near[1]} under the pretrained initialisation.",
            f"Means by {facts['axis']}: {'; '.join(groups)}.",
            f"{histograms.setting(facts)} One draw of the new weights for each initialisation.",
        ]

    def draw(self) -> dict[str, Drawing]:
        facts, highest = self.facts, max(self.tables["counts"].column(histograms.HERE))
        figure, row = new_figure(3.2, 1, 2, sharex=True)
        for axes, init in zip(row, INITS, strict=True):
            values, counts = self.top1(init), self.tables["counts"].where(initialisation=init)
            title = f"{init} initialisation\nn = {len(values)}, mean {statistics.mean(values):.1f} %"
            histograms.panel(axes, counts, facts, facts["base"], title)
            axes.set_xlabel("top-1 on the test images (%)")
        histograms.scale(row, highest)
        row[0].set_ylabel("subnets")
        histograms.legend(figure, facts)
        caption = (
            f"Top-1 of the same {facts['subnets']} subnets extended from the smallest, in bins of "
            f"{histograms.BIN} points, coloured by {facts['axis']}. Left: new weights begin as in a new "
            "network. Right: they are drawn from a normal of the mean and deviation of the trained ones of "
            "the same tensor, those of normalisations too. Dashed: the subnet that was trained; dotted: "
            f"chance. {facts['test_images']} test images of {facts['data']}; one training, of "
            f"{histograms.epochs_text(facts['epochs'])}."
        )
        medians = "; ".join(f"{init}: median {statistics.median(self.top1(init)):.0f} %" for init in INITS)
        alt = f"Histograms of top-1 accuracy. {medians}; trained subnet {facts['base']:.0f} %."
        return {"": Drawing(figure, caption, alt)}


def _column(init: str) -> str:
    return f"{init} top1 (%)"


def initialisation(
    smallest: str | Path | Run,
    subnets: int = SUBNETS,
    seed: int = 0,
    device: str = "auto",
    log: Path | None = None,
) -> Initialisation:
    """Evaluate extended subnets whose new weights begin near zero, and as the trained ones are distributed.

    The subnets are those of :func:`extend_and_crop`. The pretrained initialisation draws normalisations too.

    Args, Raises: as :func:`growtas.analysis.extend_and_crop`.

    Source: GrowTAS, supplement, "Why Weight Extension Preserves Performance", figure C.
    """
    trained = Trained.of(smallest, "smallest")
    drawn = draw_subnets(trained.run.space, subnets, seed)
    top1, base = {}, 0.0
    for init in INITS:
        net = trained.extended(init, seed, device)
        base, *top1[init] = trained.evaluate(net, [trained.subnet, *drawn], True, log, init)
    groups = [trained.group(subnet) for subnet in drawn]
    rows = (
        (*trained.described(subnet), *values)
        for subnet, *values in zip(drawn, *(top1[init] for init in INITS), strict=True)
    )
    facts = trained.facts(seed, drawn) | {"base": base, "epochs": {"smallest": trained.run.config.epochs}}
    samples = {(init,): list(zip(groups, top1[init], strict=True)) for init in INITS}
    tables = {
        "subnets": Table.of(("subnet", "group", "params", *map(_column, INITS)), rows),
        "counts": histograms.count_table(("initialisation",), samples, facts["axis"], facts["groups"], {}),
    }
    return Initialisation(tables, facts)
