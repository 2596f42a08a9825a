"""Figures 1, C and E: subnets around a trained small one, and inside a trained large one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from growtas.analysis.base import Table, Value
from growtas.analysis.extension_analyses import (
    AS_IT_IS,
    INITS,
    RECALIBRATED,
    SIDES,
    ExtendAndCrop,
    ExtendAndCropConvolutional,
    Initialisation,
    top1_column,
)
from growtas.analysis.histograms import count_table
from growtas.analysis.trained import Trained, check_pair, draw
from growtas.analysis.workspace import SUBNETS, Part, Workspace
from growtas.errors import UsageError
from growtas.training.calibration import IMAGES
from growtas.training.run import Run

CONVOLUTIONAL_SUBNETS = 40
"""Of figure E, at most: to evaluate one of its networks takes as long as fifty transformers of the digits."""

OFA_NETWORKS = ("ofa-smallest", "ofa-largest")
_COLUMNS = ("subnet", "group", "params", "top1 (%)")


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
    return _extend_and_crop(ExtendAndCrop, smallest, largest, subnets, seed, device, log)


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
    return _extend_and_crop(ExtendAndCropConvolutional, run, largest, subnets, seed, device, log)


def initialisation(
    smallest: str | Path | Run,
    subnets: int = SUBNETS,
    seed: int = 0,
    device: str = "auto",
    log: Path | None = None,
) -> Initialisation:
    """Evaluate extended subnets whose new weights begin near zero, and as the trained ones are distributed.

    The subnets are those of :func:`extend_and_crop`. The pretrained initialisation draws normalisations too.

    Args, Raises: as :func:`extend_and_crop`.

    Source: GrowTAS, supplement, "Why Weight Extension Preserves Performance", figure C.
    """
    trained = Trained.of(smallest, "smallest")
    drawn = draw(trained.run.space, subnets, seed)
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
        "subnets": Table.of((*_COLUMNS[:-1], *(top1_column(init) for init in INITS)), rows),
        "counts": count_table(("initialisation",), samples, facts["axis"], facts["groups"], {}),
    }
    return Initialisation(tables, facts)


def _extend_and_crop(
    kind: type[ExtendAndCrop],
    smallest: str | Path | Run,
    largest: str | Path | Run,
    subnets: int,
    seed: int,
    device: str,
    log: Path | None,
) -> ExtendAndCrop:
    trained = {
        side: Trained.of(run, which)
        for (side, which), run in zip(SIDES.items(), (smallest, largest), strict=True)
    }
    check_pair(*(each.run for each in trained.values()))
    first = trained["extended"]
    drawn = draw(first.run.space, subnets, seed)
    nets = {"extended": first.extended("standard", seed, device), "cropped": trained["cropped"].net(device)}
    ways = [RECALIBRATED, AS_IT_IS] if nets["cropped"].needs_calibration else [None]
    rows: list[tuple[Value, ...]] = []
    bases: list[tuple[Value, ...]] = []
    for way in ways:
        for side, each in trained.items():
            values = each.evaluate(nets[side], [each.subnet, *drawn], way != AS_IT_IS, log, side)
            described = [(side, way, *each.described(subnet)) for subnet in (each.subnet, *drawn)]
            base, *others = ((*row, value) for row, value in zip(described, values, strict=True))
            bases.append(base)
            rows += others
    facts = first.facts(seed, drawn) | {
        "batchnorm": ways,
        "calibration_images": min(IMAGES, len(first.splits.train)),
        "epochs": {which: trained[side].run.config.epochs for side, which in SIDES.items()},
    }
    table = Table.of(("side", "batchnorm", *_COLUMNS), rows)
    return kind(
        {
            "subnets": table,
            "bases": Table.of(table.columns, bases),
            "counts": _counts(kind, table, facts),
        },
        facts,
    )


def _counts(kind: type[ExtendAndCrop], table: Table, facts: Mapping[str, Any]) -> Table:
    """The histograms of every side and way, and the published ones beside the first way's."""
    samples, published = {}, {}
    for way in facts["batchnorm"]:
        for side in SIDES:
            sample = table.where(side=side, batchnorm=way)
            samples[side, way] = list(zip(sample.column("group"), sample.column("top1 (%)"), strict=True))
            if way == facts["batchnorm"][0] and side in kind.published_counts:
                published[side, way] = kind.published_counts[side]
    return count_table(("side", "batchnorm"), samples, facts["axis"], facts["groups"], published)


# -- parts of the report -------------------------------------------------------------------------------------


def _why_not_e(workspace: Workspace) -> str | None:
    if workspace.convolutional:
        return "the space of this report is convolutional itself: its figure 1 is that figure."
    return None


def _common(workspace: Workspace) -> tuple[int, str, Path]:
    """Arguments behind the number of subnets."""
    return workspace.seed, workspace.device, workspace.evaluations


def _figure_1(workspace: Workspace) -> ExtendAndCrop:
    runs = (workspace.run(which) for which in SIDES.values())
    return extend_and_crop(*runs, workspace.subnets, *_common(workspace))


def _figure_c(workspace: Workspace) -> Initialisation:
    return initialisation(workspace.run("smallest"), workspace.subnets, *_common(workspace))


def _figure_e(workspace: Workspace) -> ExtendAndCropConvolutional:
    runs = (workspace.run(name) for name in OFA_NETWORKS)
    subnets = min(workspace.subnets, CONVOLUTIONAL_SUBNETS)
    return extend_and_crop_convolutional(*runs, subnets, *_common(workspace))


FIGURE_1 = Part(ExtendAndCrop, _figure_1, lambda workspace: tuple(SIDES.values()))
FIGURE_C = Part(Initialisation, _figure_c, lambda workspace: ("smallest",))
FIGURE_E = Part(
    ExtendAndCropConvolutional, _figure_e, lambda workspace: OFA_NETWORKS, reason=_why_not_e, long=True
)
