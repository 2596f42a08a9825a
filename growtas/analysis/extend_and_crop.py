"""Figures 1 and E: subnets around a trained small one, and inside a trained large one."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from growtas.analysis import histograms
from growtas.analysis.base import Analysis, Drawing, Table, Value
from growtas.analysis.charts import ROLE_COLOURS, new_figure
from growtas.analysis.histograms import HERE, PUBLISHED, PUBLISHED_BASES, PUBLISHED_COUNTS
from growtas.analysis.trained import SIDES, nets_of, pair_of
from growtas.analysis.trained import draw as draw_subnets
from growtas.analysis.workspace import SUBNETS
from growtas.errors import UsageError
from growtas.training.calibration import IMAGES
from growtas.training.run import Run

if TYPE_CHECKING:
    from growtas.analysis.workspace import Workspace

CONVOLUTIONAL_SUBNETS = 40
"""Of figure E, at most: to evaluate one of its networks takes as long as fifty transformers of the digits."""

OFA_NETWORKS = ("ofa-smallest", "ofa-largest")
NEAR = 10  # points below the trained subnet that count as kept
RECALIBRATED, AS_IT_IS = "recalibrated", "as it is"
TOP1 = "top1 (%)"
_FROM = {"extended": "extended from the smallest", "cropped": "cropped from the largest"}
_STATISTICS = {
    None: "",
    RECALIBRATED: "With BatchNorm recalibrated for each subnet: ",
    AS_IT_IS: "With BatchNorm's statistics as training left them: ",
}
_COLUMNS = ("side", "batchnorm", "subnet", "group", "params", TOP1)


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

    @classmethod
    def networks(cls, workspace: Workspace) -> tuple[str, ...]:
        return tuple(SIDES.values())

    @classmethod
    def make(cls, workspace: Workspace) -> ExtendAndCrop:
        return cls._of(workspace, workspace.subnets)

    @classmethod
    def _of(cls, workspace: Workspace, subnets: int) -> ExtendAndCrop:
        runs = (workspace.run(name) for name in cls.networks(workspace))
        return _compute(cls, *runs, subnets, workspace.seed, workspace.device, workspace.evaluations)

    def sample(self, side: str, batchnorm: str | None) -> Table:
        """The subnets of one side, evaluated in one way."""
        return self.tables["subnets"].where(side=side, batchnorm=batchnorm)

    def base(self, side: str, batchnorm: str | None) -> float:
        """Top-1 of the subnet that was trained, in per cent."""
        return self.tables["bases"].where(side=side, batchnorm=batchnorm).column(TOP1)[0]

    # -- sentences ---------------------------------------------------------------------------------------

    def findings(self) -> list[str]:
        facts, said = self.facts, []
        for way in facts["batchnorm"]:
            texts = [self._verdict(way), *(self._side(side, way) for side in SIDES)]
            said += (_sentence(_STATISTICS[way] + text) for text in texts)
        first = facts["batchnorm"][0]
        said.append(_sentence(_STATISTICS[first] + self._groups(first)))
        means = " and ".join(
            f"{histograms.mean_of_counts(counts):.0f} % {side}"
            for side, counts in self.published_counts.items()
        )
        there = f" (its counts have means of about {means})" if means else ""
        setting = histograms.setting(facts)
        return [*said, f"{setting} The paper's are of ImageNet, where chance is 0.1 %{there}."]

    def _top1(self, side: str, batchnorm: str | None) -> list[float]:
        return self.sample(side, batchnorm).column(TOP1)

    def _near(self, side: str, batchnorm: str | None) -> int:
        """How many subnets stay within a few points of the trained one."""
        least = self.base(side, batchnorm) - NEAR
        return sum(value >= least for value in self._top1(side, batchnorm))

    def _verdict(self, batchnorm: str | None) -> str:
        extended, cropped = (self._top1(side, batchnorm) for side in SIDES)
        better = sum(a > b for a, b in zip(extended, cropped, strict=True))
        lead = statistics.mean(extended) - statistics.mean(cropped)
        seen = lead > 0 and 2 * better > len(extended)
        near = self._near("extended", batchnorm)
        said = (
            f"the asymmetry is {'' if seen else 'not '}seen here: the same {len(extended)} subnets are "
            f"{abs(lead):.1f} points {'better' if lead > 0 else 'worse'} as extensions than as crops, on "
            f"average; {better} of them are better as extensions."
        )
        if seen and 2 * near < len(extended):
            said += (
                f" But extensions lose much too: only {near} of {len(extended)} keep within {NEAR} points."
            )
        return said

    def _side(self, side: str, batchnorm: str | None) -> str:
        top1, near = self._top1(side, batchnorm), self._near(side, batchnorm)
        return (
            f"the {SIDES[side]} subnet, trained alone, reaches {self.base(side, batchnorm):.1f} %; "
            f"{len(top1)} subnets {_FROM[side]} reach {statistics.mean(top1):.1f} % on average (median "
            f"{statistics.median(top1):.1f} %, from {min(top1):.1f} % to {max(top1):.1f} %), with {near} of "
            f"them ({100 * near / len(top1):.0f} %) within {NEAR} points of it."
        )

    def _groups(self, batchnorm: str | None) -> str:
        axis, samples = self.facts["axis"], {side: self.sample(side, batchnorm) for side in SIDES}
        sides = (f"{side} {histograms.by_group(self.facts, sample)}" for side, sample in samples.items())
        extended, cropped = (
            max(max(own) - min(own) for own in (s.where(group=g).column(TOP1) for g in s.values("group")))
            for s in samples.values()
        )
        return (
            f"means by {axis}: {'; '.join(sides)}. Within one {axis} extensions differ by up to "
            f"{extended:.1f} points, crops by up to {cropped:.1f}."
        )

    # -- picture -----------------------------------------------------------------------------------------

    def draw(self) -> dict[str, Drawing]:
        ways, published = self.facts["batchnorm"], self.published_counts
        rows = len(ways) + bool(published)
        figure, axes = new_figure(2.35 * rows + 0.75, rows, 2, sharex=True, squeeze=False)
        for row, way in zip(axes, ways, strict=False):
            self._draw_row(row, way)
        for each, (side, counts) in zip(axes[-1], published.items(), strict=False):
            own = self.tables["counts"].where(side=side, batchnorm=ways[0])
            histograms.plain(each, own, PUBLISHED, ROLE_COLOURS["published"])
            histograms.base_line(each, PUBLISHED_BASES[side], about=True)
            each.set_title(f"the paper: {side}, AutoFormer on ImageNet\nn = {sum(counts)}")
            histograms.scale([each], max(counts))
        for row in axes:
            row[0].set_ylabel("subnets")
        for each in axes[-1]:
            each.set_xlabel("top-1 on the test images (%)")
        histograms.legend(figure, self.facts, bool(published))
        return {"": Drawing(figure, self._caption(), self._alt())}

    def _draw_row(self, row: Sequence, batchnorm: str | None) -> None:
        tables = [self.tables["counts"].where(side=side, batchnorm=batchnorm) for side in SIDES]
        here = "here: " if self.published_counts else ""
        norm = "" if batchnorm is None else f"BatchNorm {batchnorm}, "
        for axes, side, counts in zip(row, SIDES, tables, strict=True):
            values = self._top1(side, batchnorm)
            title = f"{here}{_FROM[side]}\n{norm}n = {len(values)}, mean {statistics.mean(values):.1f} %"
            histograms.panel(axes, counts, self.facts, self.base(side, batchnorm), title)
        histograms.scale(row, max(max(counts.column(HERE)) for counts in tables))

    def _caption(self) -> str:
        facts = self.facts
        below = " Below: the counts of the paper's figure 1." if self.published_counts else ""
        norm = ""
        if facts["batchnorm"] != [None]:
            norm = (
                f" First row: BatchNorm's statistics set for each subnet by {facts['calibration_images']} "
                "training images; second row: as training left them."
            )
        return (
            f"Top-1 of {facts['subnets']} subnets that no step has trained, in bins of {histograms.BIN} "
            f"points, coloured by {facts['axis']}. Left: around the weights of the smallest, trained alone, "
            "everything else begins as in a new network. Right: the same subnets are cut out of the largest, "
            "trained alone. Dashed: the subnet that was trained; dotted: chance. "
            f"{facts['test_images']} test images of {facts['data']}; one training each, of "
            f"{histograms.epochs_text(facts['epochs'])}.{norm}{below}"
        )

    def _alt(self) -> str:
        parts = [
            f"{_FROM[side]}{'' if way is None else f', BatchNorm {way}'}: median "
            f"{statistics.median(self._top1(side, way)):.0f} %, trained subnet {self.base(side, way):.0f} %"
            for way in self.facts["batchnorm"]
            for side in SIDES
        ]
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
    long = True

    @classmethod
    def networks(cls, workspace: Workspace) -> tuple[str, ...]:
        return OFA_NETWORKS

    @classmethod
    def reason(cls, workspace: Workspace) -> str | None:
        if workspace.convolutional:
            return "the space of this report is convolutional itself: its figure 1 is that figure."
        return None

    @classmethod
    def make(cls, workspace: Workspace) -> ExtendAndCrop:
        return cls._of(workspace, min(workspace.subnets, CONVOLUTIONAL_SUBNETS))


def extend_and_crop(
    smallest: str | Path | Run,
    largest: str | Path | Run,
    subnets: int = SUBNETS,
    seed: int = 0,
    device: str = "auto",
    log: Path | None = None,
) -> ExtendAndCrop:
    """Evaluate random subnets with the weights of two runs that trained one subnet each.

    Around the smallest everything that it does not use is initialised anew, by the standard way, so that the
    result does not depend on how far weight decay has brought it. A network with BatchNorm is evaluated
    twice: with the statistics of each subnet, and with those that training left (0 and 1 of new channels).

    Args:
        smallest, largest: runs of method ``single`` that trained the smallest and the largest subnet of one
            space on the same data, or their folders.
        subnets: how many distinct ones are drawn, the same on both sides, neither of the two among them; all
            others where the space has fewer.
        seed: of the draw and of the new weights.
        device: to compute on; ``auto`` for a GPU where there is one.
        log: file that remembers evaluations; see :func:`growtas.analysis.evaluations.top1_of`.

    Raises:
        UsageError: a run trained something else, or the two do not belong together.
        GrowtasError: a run is not finished.

    Source: GrowTAS, figure 1.

    Example:
        >>> growtas.analysis.extend_and_crop("runs/smallest", "runs/largest").findings()  # doctest: +SKIP
    """
    return _compute(ExtendAndCrop, smallest, largest, subnets, seed, device, log)


def extend_and_crop_convolutional(
    smallest: str | Path | Run,
    largest: str | Path | Run,
    subnets: int = CONVOLUTIONAL_SUBNETS,
    seed: int = 0,
    device: str = "auto",
    log: Path | None = None,
) -> ExtendAndCropConvolutional:
    """Figure 1 for a space of convolutional networks, as figure E.

    Of a larger kernel the rim, which the smaller one does not read, keeps its initial values.

    Args, Raises: as :func:`extend_and_crop`; the space must be convolutional.

    Source: GrowTAS, supplement, figure E.
    """
    run = Run.open(smallest)
    if not run.new_net().needs_calibration:
        raise UsageError(
            f"Figure E is about convolutional networks, but {run.path} is a run of space {run.space.name!r}; "
            "use extend_and_crop."
        )
    return _compute(ExtendAndCropConvolutional, run, largest, subnets, seed, device, log)


def _compute(
    kind: type[ExtendAndCrop],
    smallest: str | Path | Run,
    largest: str | Path | Run,
    subnets: int,
    seed: int,
    device: str,
    log: Path | None,
) -> ExtendAndCrop:
    trained = pair_of(smallest, largest)
    first = trained["extended"]
    drawn, nets = draw_subnets(first.run.space, subnets, seed), nets_of(trained, seed, device)
    ways = [RECALIBRATED, AS_IT_IS] if nets["cropped"].needs_calibration else [None]
    rows: list[tuple[Value, ...]] = []
    bases: list[tuple[Value, ...]] = []
    for way in ways:
        for side, each in trained.items():
            subnets = [each.subnet, *drawn]
            values = each.evaluate(nets[side], subnets, way != AS_IT_IS, log, side)
            base, *others = (
                (side, way, *each.described(subnet), value)
                for subnet, value in zip(subnets, values, strict=True)
            )
            bases.append(base)
            rows += others
    facts = first.facts(seed, drawn) | {
        "batchnorm": ways,
        "calibration_images": min(IMAGES, len(first.splits.train)),
        "epochs": {which: trained[side].run.config.epochs for side, which in SIDES.items()},
    }
    table, base_table = Table.of(_COLUMNS, rows), Table.of(_COLUMNS, bases)
    return kind({"subnets": table, "bases": base_table, "counts": _counts(kind, table, facts)}, facts)


def _counts(kind: type[ExtendAndCrop], table: Table, facts: Mapping[str, Any]) -> Table:
    """The histograms of every side and way, and the published ones beside the first way's."""
    samples = {
        (side, way): table.where(side=side, batchnorm=way) for way in facts["batchnorm"] for side in SIDES
    }
    pairs = {key: zip(t.column("group"), t.column(TOP1), strict=True) for key, t in samples.items()}
    published = {(side, facts["batchnorm"][0]): counts for side, counts in kind.published_counts.items()}
    return histograms.count_table(("side", "batchnorm"), pairs, facts["axis"], facts["groups"], published)


def _sentence(text: str) -> str:
    """With a capital letter, whatever it begins with."""
    return text[0].upper() + text[1:]
