"""Figure D: how far the subnets around or inside a trained one keep the outputs of its blocks."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset, Subset

from growtas.analysis.base import Analysis, Drawing, Table, Value
from growtas.analysis.blocks import block_axis, block_labels, block_outputs, convolutional
from growtas.analysis.charts import ROLE_COLOURS, new_figure
from growtas.analysis.trained import SIDES, nets_of, pair_of
from growtas.analysis.trained import draw as draw_subnets
from growtas.progress import Progress, track
from growtas.space import seeded_rng
from growtas.training.calibration import calibration, kept_statistics, set_statistics
from growtas.training.calibration import statistics as norm_statistics
from growtas.training.data import evaluation_loader
from growtas.training.run import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor

    from growtas.analysis.workspace import Workspace
    from growtas.subnet import AnySubnet
    from growtas.supernet import AnySupernet

SUBNETS, IMAGES = 40, 512
BATCH_SIZE = 64
ALL, CLS, POSITIONS = "all tokens", "cls token", "all positions"
_THE = {ALL: ALL, CLS: f"the {CLS}", POSITIONS: POSITIONS}
_COLUMNS = ("side", "tokens", "subnet", "group", "block", "cosine")
_SUMMARY = ("mean", "lower quartile", "upper quartile", "min", "max")


class Similarity(Analysis):
    """Figure D. Its tables:

    - ``similarities``: the mean cosine over images and tokens, by side (``extended``, ``cropped``), tokens
      (``all tokens`` and ``cls token``; ``all positions`` of a convolutional network), subnet and block;
    - ``blocks``: the same over subnets: their number (those that have the block), mean, quartiles, least and
      largest.
    """

    name = "figure-d"
    title = "Block outputs of extended and cropped subnets"
    question = (
        "A subnet that was trained alone is extended by channels, heads and layers that were not, or cropped "
        "to some of its own. How much do the outputs of its blocks turn away from what they were?"
    )
    published = (
        "On AutoFormer the paper finds the blocks of expanded subnets closer to the base than those of "
        "cropped ones, by the cosine of their outputs, averaged over all tokens and for the cls token alone: "
        "a subnet that grows keeps what it has learnt, and one that is cut drifts away from it."
    )

    @classmethod
    def networks(cls, workspace: Workspace) -> tuple[str, ...]:
        return tuple(SIDES.values())

    @classmethod
    def make(cls, workspace: Workspace) -> Similarity:
        runs = (workspace.run(name) for name in cls.networks(workspace))
        subnets = min(workspace.subnets, SUBNETS)
        return similarity(*runs, subnets, seed=workspace.seed, device=workspace.device)

    def findings(self) -> list[str]:
        facts, said = self.facts, []
        for tokens in facts["tokens"]:
            extended, cropped = (self._means(side, tokens) for side in SIDES)
            common = extended.keys() & cropped.keys()
            above = sum(extended[block] > cropped[block] for block in common)
            means = " against ".join(f"{_mean(values, common):.2f}" for values in (extended, cropped))
            said.append(
                f"Over {_THE[tokens]}: extended subnets are closer to their base than cropped ones behind "
                f"{above} of the {len(common)} blocks that both bases have; on average {means}."
            )
        for side in SIDES:
            groups = "; ".join(f"{g} {v:.2f}" for g, v in self._by_group(side, facts["tokens"][0]).items())
            said.append(
                f"By {facts['axis']} of the {side} subnets ({facts['tokens'][0]}, all blocks): {groups}."
            )
        said.append(
            f"These are means over {facts['images']} test images of {facts['data']} and {facts['subnets']} "
            "random subnets, the same on both sides, of one trained network per side; a block counts where "
            "the subnet and its base have it."
        )
        return said

    def _means(self, side: str, tokens: str) -> dict[int, float]:
        own = self.tables["blocks"].where(side=side, tokens=tokens)
        return dict(zip(own.column("block"), own.column("mean"), strict=True))

    def _by_group(self, side: str, tokens: str) -> dict[Value, float]:
        own = self.tables["similarities"].where(side=side, tokens=tokens)
        groups = sorted(own.values("group"))
        return {group: statistics.mean(own.where(group=group).column("cosine")) for group in groups}

    def draw(self) -> dict[str, Drawing]:
        facts, kinds = self.facts, self.facts["tokens"]
        figure, axes = new_figure(3.6, 1, len(kinds), sharey=True, squeeze=False)
        for each, tokens, letter in zip(axes[0], kinds, "ab", strict=False):
            for side in SIDES:
                _curve(each, self.tables["blocks"].where(side=side, tokens=tokens), side)
            style = {"color": ROLE_COLOURS["base"], "linestyle": "--", "linewidth": 1.2}
            each.axhline(1, label="the base itself", **style)
            each.set_title(f"({letter}) {tokens}" if len(kinds) > 1 else tokens)
            block_axis(each, facts["labels"])
            each.grid(axis="y")
        axes[0, 0].set_ylabel("cosine similarity with the base")
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
        caption = (
            "Cosine similarity of each block's output with that of the subnet that was trained, over the "
            f"channels that both have: mean over {facts['subnets']} random subnets of {facts['space']} "
            "(line; the band holds their middle half), fewer where not all have the block, and "
            f"{facts['images']} test images of {facts['data']}. The base of the extended ones is the "
            "smallest subnet, that of the cropped ones the largest."
        )
        alt = "Curves of the cosine similarity with the base by block, for extended and for cropped subnets."
        return {"": Drawing(figure, caption, alt)}


def similarity(
    smallest: str | Path | Run,
    largest: str | Path | Run,
    subnets: int = SUBNETS,
    images: int = IMAGES,
    seed: int = 0,
    device: str = "auto",
) -> Similarity:
    """Compare the block outputs of a trained subnet with those of subnets that share its weights.

    Around the smallest, what it does not use is initialised by the standard way, as for figure 1. A network
    with BatchNorm is calibrated for every subnet, the base included.

    Args:
        smallest, largest: runs of method ``single`` that trained the smallest and the largest subnet of one
            space on the same data, or their folders.
        subnets: how many, the first of those that figure 1 of the same seed draws.
        images: of the test split, at most; which is the same for every call.
        seed: of the draw and of the new weights.
        device: to compute on; ``auto`` for a GPU where there is one.

    Returns:
        Figure D.

    Raises:
        UsageError: a run trained something else, or the two do not belong together.
        GrowtasError: a run is not finished.

    Source: GrowTAS, supplement, figure D.
    """
    trained = pair_of(smallest, largest)
    first, nets = trained["extended"], nets_of(trained, seed, device)
    drawn, split = draw_subnets(first.run.space, subnets, seed), first.splits.test
    chosen = seeded_rng("images of similarity").sample(range(len(split)), min(images, len(split)))
    rows: list[tuple[Value, ...]] = []
    for side, each in trained.items():
        found = cosines(nets[side], each.subnet, drawn, Subset(split, chosen), each.splits.train, desc=side)
        for subnet, tokens, block, cosine in found.rows:
            rows.append((side, tokens, subnet, each.group(each.run.space.parse(subnet)), block, cosine))
    net = nets["extended"]
    facts = {
        "space": first.run.space.name,
        "axis": first.run.space.group_axis,
        "data": first.run.config.data,
        "seed": seed,
        "subnets": len(drawn),
        "images": len(chosen),
        "tokens": [POSITIONS] if convolutional(net) else [ALL, CLS],
        "labels": list(block_labels(net).values()),
    }
    return Similarity({"similarities": Table.of(_COLUMNS, rows), "blocks": _over_subnets(rows)}, facts)


@torch.no_grad()
def cosines(
    net: AnySupernet,
    base: AnySubnet,
    subnets: Sequence[AnySubnet],
    images: Dataset,
    training_images: Dataset,
    batch_size: int = BATCH_SIZE,
    desc: str = "similarity",
) -> Table:
    """The cosine between what the blocks of subnets answer and what those of one subnet do.

    Args:
        net: the supernet, on the device to compute on; its BatchNorm statistics are restored.
        base: the subnet that the others are compared with.
        subnets: to compare.
        images: of (image, label), that all of them are shown.
        training_images: to calibrate BatchNorm with, for every subnet; a network without needs none.
        batch_size: images at once; the outputs of all blocks of the base are kept for them.
        desc: of the progress bar.

    Returns:
        subnet, tokens, block (from 1) and cosine, the mean over images and tokens, over the first channels
        that both have; of the blocks that both have.
    """
    net = net.eval()
    device = next(net.parameters()).device
    numbers = {name: at for at, name in enumerate(block_labels(net), start=1)}
    sums: dict[tuple[str, str, int], float] = {}
    with kept_statistics(net):
        prepare = _preparation(net, [base, *subnets], training_images)
        loader = evaluation_loader(images, batch_size)
        with Progress(len(loader) * len(subnets), desc, "subnet") as progress:
            for batch, _ in loader:
                batch = batch.to(device)
                prepare(base)
                wanted = block_outputs(net, batch, base)
                for subnet in subnets:
                    prepare(subnet)
                    for name, output in block_outputs(net, batch, subnet).items():
                        if name in wanted:
                            for tokens, value in _cosine_sums(wanted[name], output, convolutional(net)):
                                key = str(subnet), tokens, numbers[name]
                                sums[key] = sums.get(key, 0.0) + value
                    progress.update()
    rows = ((*key, value / len(images)) for key, value in sums.items())
    return Table.of(("subnet", "tokens", "block", "cosine"), rows)


def _preparation(net: AnySupernet, subnets: Sequence[AnySubnet], training_images: Dataset):
    """A function of one of the subnets that sets its BatchNorm statistics, each found once."""
    calibrate = calibration(net, training_images)
    if calibrate is None:
        return lambda subnet: None
    found = {}
    for subnet in track(subnets, "calibrate", "subnet"):
        calibrate(subnet)
        found[subnet] = norm_statistics(net)
    return lambda subnet: set_statistics(net, found[subnet])


def _cosine_sums(a: Tensor, b: Tensor, convolution: bool) -> list[tuple[str, float]]:
    """For each kind of tokens the sum over images of their mean cosine; (B, T, c) and (B, T, c')."""
    channels = min(a.shape[-1], b.shape[-1])
    cosine = F.cosine_similarity(a[..., :channels].double(), b[..., :channels].double(), dim=-1)
    everywhere = cosine.mean(1).sum().item()
    return [(POSITIONS, everywhere)] if convolution else [(ALL, everywhere), (CLS, cosine[:, 0].sum().item())]


def _over_subnets(rows: Sequence[tuple[Value, ...]]) -> Table:
    cases: dict[tuple, list[float]] = {}
    for side, tokens, _, _, block, cosine in rows:
        cases.setdefault((side, tokens, block), []).append(cosine)
    columns = ("side", "tokens", "block", "subnets", *_SUMMARY)
    return Table.of(columns, ((*case, len(cases[case]), *_summary(cases[case])) for case in sorted(cases)))


def _summary(values: list[float]) -> tuple[float, ...]:
    lower, upper = np.quantile(values, (0.25, 0.75)).tolist()
    return statistics.mean(values), lower, upper, min(values), max(values)


def _mean(values: dict[int, float], of: set[int]) -> float:
    return statistics.mean(values[each] for each in of)


def _curve(axes: Axes, table: Table, side: str) -> None:
    blocks, mean, *band = (table.column(name) for name in ("block", *_SUMMARY[:3]))
    axes.fill_between(blocks, *band, color=ROLE_COLOURS[side], alpha=0.25, linewidth=0)
    marker = {"extended": "o", "cropped": "s"}[side]
    axes.plot(blocks, mean, color=ROLE_COLOURS[side], marker=marker, markersize=5, label=side)
