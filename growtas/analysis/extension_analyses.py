"""What subnets are worth that no step has trained: figures 1, C and E, from their tables."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from growtas.analysis import histograms
from growtas.analysis.base import Analysis, Drawing, Table, Value
from growtas.analysis.charts import ROLE_COLOURS, new_figure, styled
from growtas.analysis.histograms import HERE, PUBLISHED, PUBLISHED_BASES, PUBLISHED_COUNTS

NEAR = 10  # points below the trained subnet that count as kept
SIDES = {"extended": "smallest", "cropped": "largest"}
RECALIBRATED, AS_IT_IS = "recalibrated", "as it is"
INITS = ("standard", "pretrained")
_FROM = {"extended": "extended from the smallest", "cropped": "cropped from the largest"}
_STATISTICS = {
    None: "",
    RECALIBRATED: "With BatchNorm recalibrated for each subnet: ",
    AS_IT_IS: "With BatchNorm's statistics as training left them: ",
}


class ExtendAndCrop(Analysis):
    """Figure 1.

    Its tables: ``subnets`` (a row per subnet and way: side, batchnorm, subnet, group, params, top1 in per
    cent), ``bases`` (the same columns: the subnets that were trained) and ``counts`` (the histograms).
    """

    name = "figure-1"
    title = "Extending a small subnet, and cropping a large one"
    question = (
        "Where only the smallest subnet of a space is trained, what are larger ones worth that take its "
        "weights, the rest being untrained? And where only the largest is trained, what are its crops worth?"
    )
    published = (
        "On AutoFormer and ImageNet, 100 subnets extended from a small one of about 77 % spread from 5 % to "
        "80 %, 41 of them at 60 % or more; of 100 that are cropped from a large one of about 79.6 %, 89 stay "
        "below 5 %, and none reaches 45 %."
    )
    published_counts: ClassVar[Mapping[str, Sequence[int]]] = PUBLISHED_COUNTS

    def sample(self, side: str, batchnorm: str | None) -> Table:
        """The subnets of one side, evaluated in one way."""
        return self.tables["subnets"].where(side=side, batchnorm=batchnorm)

    def base(self, side: str, batchnorm: str | None) -> float:
        """Top-1 of the subnet that was trained, in per cent."""
        return self.tables["bases"].where(side=side, batchnorm=batchnorm).column("top1 (%)")[0]

    # -- sentences ---------------------------------------------------------------------------------------

    def findings(self) -> list[str]:
        said = []
        for batchnorm in self.facts["batchnorm"]:
            said += [self._verdict(batchnorm), *(self._side(side, batchnorm) for side in SIDES)]
        return [*said, self._groups(self.facts["batchnorm"][0]), self._apart()]

    def _verdict(self, batchnorm: str | None) -> str:
        extended, cropped = (self.sample(side, batchnorm).column("top1 (%)") for side in SIDES)
        better = sum(a > b for a, b in zip(extended, cropped, strict=True))
        lead = statistics.mean(extended) - statistics.mean(cropped)
        seen = lead > 0 and 2 * better > len(extended)
        near = self._near("extended", batchnorm)
        said = sentence(
            f"{_STATISTICS[batchnorm]}the asymmetry is {'' if seen else 'not '}seen here: the same "
            f"{len(extended)} subnets are {abs(lead):.1f} points {'better' if lead > 0 else 'worse'} as "
            f"extensions than as crops, on average; {better} of them are better as extensions."
        )
        if seen and 2 * near < len(extended):
            said += (
                f" But extensions lose much too: only {near} of {len(extended)} keep within {NEAR} points."
            )
        return said

    def _near(self, side: str, batchnorm: str | None) -> int:
        """How many subnets stay within a few points of the trained one."""
        least = self.base(side, batchnorm) - NEAR
        return sum(value >= least for value in self.sample(side, batchnorm).column("top1 (%)"))

    def _side(self, side: str, batchnorm: str | None) -> str:
        top1, base = self.sample(side, batchnorm).column("top1 (%)"), self.base(side, batchnorm)
        near = self._near(side, batchnorm)
        return sentence(
            f"{_STATISTICS[batchnorm]}the {SIDES[side]} subnet, trained alone, reaches {base:.1f} %; "
            f"{len(top1)} subnets {_FROM[side]} reach {statistics.mean(top1):.1f} % on average (median "
            f"{statistics.median(top1):.1f} %, from {min(top1):.1f} % to {max(top1):.1f} %), with {near} of "
            f"them ({100 * near / len(top1):.0f} %) within {NEAR} points of it."
        )

    def _groups(self, batchnorm: str | None) -> str:
        axis, samples = self.facts["axis"], {side: self.sample(side, batchnorm) for side in SIDES}
        sides = (f"{side} {by_group(self.facts, sample)}" for side, sample in samples.items())
        widest = [widest_group(self.facts, sample) for sample in samples.values()]
        return sentence(
            f"{_STATISTICS[batchnorm]}means by {axis}: {'; '.join(sides)}. Within one {axis} extensions "
            f"differ by up to {widest[0]:.1f} points, crops by up to {widest[1]:.1f}."
        )

    def _apart(self) -> str:
        """What is not as in the paper."""
        means = (
            f"{histograms.mean_of_counts(counts):.0f} % {side}"
            for side, counts in self.published_counts.items()
        )
        there = f" (its counts have means of about {' and '.join(means)})" if self.published_counts else ""
        return f"{setting(self.facts)} The paper's are of ImageNet, where chance is 0.1 %{there}."

    # -- pictures ----------------------------------------------------------------------------------------

    def drawings(self) -> dict[str, Drawing]:
        ways, facts = self.facts["batchnorm"], self.facts
        rows = len(ways) + bool(self.published_counts)
        with styled():
            figure, axes = new_figure(2.35 * rows + 0.75, rows, 2, sharex=True, squeeze=False)
            for row, batchnorm in zip(axes, ways, strict=False):
                self._draw_row(row, batchnorm)
            if self.published_counts:
                self._draw_published(axes[-1])
            for each in axes[-1]:
                each.set_xlabel("top-1 on the test images (%)")
            histograms.legend(figure, facts["axis"], facts["groups"], bool(self.published_counts))
        return {"": Drawing(figure, self._caption(), self._alt())}

    def _draw_row(self, row: Sequence, batchnorm: str | None) -> None:
        tables = [self.tables["counts"].where(side=side, batchnorm=batchnorm) for side in SIDES]
        for axes, side, counts in zip(row, SIDES, tables, strict=True):
            histograms.stacked(axes, counts, self.facts["axis"], self.facts["groups"])
            histograms.chance_line(axes, self.facts["num_classes"])
            histograms.base_line(axes, self.base(side, batchnorm))
            values = self.sample(side, batchnorm).column("top1 (%)")
            here = "here: " if self.published_counts else ""
            norm = "" if batchnorm is None else f"BatchNorm {batchnorm}, "
            axes.set_title(
                f"{here}{_FROM[side]}\n{norm}n = {len(values)}, mean {statistics.mean(values):.1f} %"
            )
        histograms.scale(row, max(max(counts.column(HERE)) for counts in tables))
        row[0].set_ylabel("subnets")

    def _draw_published(self, row: Sequence) -> None:
        for axes, (side, counts) in zip(row, self.published_counts.items(), strict=True):
            rows = self.tables["counts"].where(side=side, batchnorm=self.facts["batchnorm"][0])
            histograms.plain(axes, rows, PUBLISHED, ROLE_COLOURS["published"])
            histograms.base_line(axes, PUBLISHED_BASES[side], about=True)
            axes.set_title(f"the paper: {side}, AutoFormer on ImageNet\nn = {sum(counts)}")
            histograms.scale([axes], max(counts))
        row[0].set_ylabel("subnets")

    def _caption(self) -> str:
        facts = self.facts
        below = " Below: the counts of the paper's figure 1." if self.published_counts else ""
        norm = (
            ""
            if facts["batchnorm"] == [None]
            else f" First row: BatchNorm's statistics set for each subnet by {facts['calibration_images']} "
            "training images; second row: as training left them."
        )
        return (
            f"Top-1 of {facts['subnets']} subnets that no step has trained, in bins of {histograms.BIN} "
            f"points, coloured by {facts['axis']}. Left: around the weights of the smallest, trained alone, "
            "everything else begins as in a new network. Right: the same subnets are cut out of the largest, "
            "trained alone. Dashed: the subnet that was trained; dotted: chance. "
            f"{facts['test_images']} test images of {facts['data']}; one training each, of "
            f"{epochs_text(facts['epochs'])}.{norm}{below}"
        )

    def _alt(self) -> str:
        parts = []
        for batchnorm in self.facts["batchnorm"]:
            for side in SIDES:
                top1 = self.sample(side, batchnorm).column("top1 (%)")
                norm = "" if batchnorm is None else f", BatchNorm {batchnorm}"
                parts.append(
                    f"{_FROM[side]}{norm}: median {statistics.median(top1):.0f} %, "
                    f"trained subnet {self.base(side, batchnorm):.0f} %"
                )
        return f"Histograms of top-1 accuracy. {'; '.join(parts)}."


class ExtendAndCropConvolutional(ExtendAndCrop):
    """Figure E: figure 1 in a space of convolutional networks, with and without BatchNorm recalibrated."""

    name = "figure-e"
    title = "Extending and cropping convolutional networks"
    question = (
        "Is it so in once-for-all's space of MobileNetV3 networks too, whose subnets differ by kernel, "
        "expand ratio and depth? And how much of it is BatchNorm, whose statistics are those of the trained "
        "subnet?"
    )
    published = (
        "The same asymmetry between k = 3, e = 3, d = 2 and k = 7, e = 6, d = 4. The text gives no counts, "
        "and does not say whether BatchNorm was recalibrated."
    )
    published_counts = {}  # noqa: RUF012 - as the base declares it


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

    def top1(self, init: str) -> list[float]:
        """Per cent, of every subnet under one initialisation."""
        return self.tables["subnets"].column(top1_column(init))

    def findings(self) -> list[str]:
        facts, standard, pretrained = self.facts, self.top1("standard"), self.top1("pretrained")
        drops = [a - b for a, b in zip(standard, pretrained, strict=True)]
        worse = sum(drop > 0 for drop in drops)
        near = [sum(value >= facts["base"] - NEAR for value in self.top1(init)) for init in INITS]
        groups = (f"{init} {by_group(facts, self.tables['subnets'], top1_column(init))}" for init in INITS)
        return [
            f"{len(drops)} subnets extended from the smallest ({facts['base']:.1f} % trained alone) reach "
            f"{statistics.mean(standard):.1f} % on average under the standard initialisation and "
            f"{statistics.mean(pretrained):.1f} % under the pretrained one: a mean drop of "
            f"{statistics.mean(drops):.1f} points; {worse} of them are worse.",
            f"Within {NEAR} points of the trained subnet stay {near[0]} of them under the standard and "
            f"{near[1]} under the pretrained initialisation.",
            f"Means by {facts['axis']}: {'; '.join(groups)}.",
            f"{setting(facts)} One draw of the new weights for each initialisation.",
        ]

    def drawings(self) -> dict[str, Drawing]:
        facts = self.facts
        tables = {init: self.tables["counts"].where(initialisation=init) for init in INITS}
        with styled():
            figure, row = new_figure(3.2, 1, 2, sharex=True)
            for axes, (init, counts) in zip(row, tables.items(), strict=True):
                histograms.stacked(axes, counts, facts["axis"], facts["groups"])
                histograms.chance_line(axes, facts["num_classes"])
                histograms.base_line(axes, facts["base"])
                values = self.top1(init)
                axes.set_title(
                    f"{init} initialisation\nn = {len(values)}, mean {statistics.mean(values):.1f} %"
                )
                axes.set_xlabel("top-1 on the test images (%)")
            histograms.scale(row, max(max(counts.column(HERE)) for counts in tables.values()))
            row[0].set_ylabel("subnets")
            histograms.legend(figure, facts["axis"], facts["groups"])
        caption = (
            f"Top-1 of the same {facts['subnets']} subnets extended from the smallest, in bins of "
            f"{histograms.BIN} points, coloured by {facts['axis']}. Left: new weights begin as in a new "
            "network. Right: they are drawn from a normal of the mean and deviation of the trained ones of "
            "the same tensor, those of normalisations too. Dashed: the subnet that was trained; dotted: "
            f"chance. {facts['test_images']} test images of {facts['data']}; one training, of "
            f"{epochs_text(facts['epochs'])}."
        )
        alt = "Histograms of top-1 accuracy. " + "; ".join(
            f"{init}: median {statistics.median(self.top1(init)):.0f} %" for init in INITS
        )
        return {"": Drawing(figure, caption, f"{alt}; trained subnet {facts['base']:.0f} %.")}


def top1_column(init: str) -> str:
    """The column of figure C's accuracies under one initialisation."""
    return f"{init} top1 (%)"


def sentence(text: str) -> str:
    """With a capital letter, whatever it begins with."""
    return text[0].upper() + text[1:]


def by_group(facts: Mapping[str, Any], subnets: Table, column: str = "top1 (%)") -> str:
    """Means of the groups that have any subnets, such as ``24: 95.5 % (n = 33), 36: 89.4 % (n = 35)``."""
    parts = []
    for group in facts["groups"]:
        values: Sequence[Value] = subnets.where(group=group).column(column)
        if values:
            parts.append(f"{group}: {statistics.mean(values):.1f} % (n = {len(values)})")
    return ", ".join(parts)


def widest_group(facts: Mapping[str, Any], subnets: Table) -> float:
    """The largest difference of two accuracies within one group, in points."""
    samples = (subnets.where(group=group).column("top1 (%)") for group in facts["groups"])
    return max(max(values) - min(values) for values in samples if values)


def setting(facts: Mapping[str, Any]) -> str:
    """On what the numbers are, in a sentence or two."""
    return (
        f"Here: space {facts['space']} ({facts['subnets_in_space']:,} subnets) on {facts['data']}, "
        f"{facts['test_images']} test images of {facts['num_classes']} classes, where chance is "
        f"{100 / facts['num_classes']:.2g} %; one training each, so nothing is said about other seeds."
    )


def epochs_text(epochs: Mapping[str, int]) -> str:
    """Epochs of one or two runs: ``60 epochs``, or ``24 (smallest) and 12 (largest) epochs``."""
    if len(set(epochs.values())) == 1:
        return f"{next(iter(epochs.values()))} epochs"
    return " and ".join(f"{count} ({name})" for name, count in epochs.items()) + " epochs"
