"""Accuracy of subnets with the weights they inherit; ``growtas.evaluate``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import Dataset

from growtas import cost
from growtas.errors import UsageError, nearest
from growtas.progress import track_images
from growtas.searching.named import named_subnet
from growtas.searching.result import Score
from growtas.subnet import AnySubnet
from growtas.training.data import evaluation_loader
from growtas.training.data.workers import worker_count
from growtas.training.evaluate import precision

if TYPE_CHECKING:
    from growtas.supernet import AnySupernet
    from growtas.training.run import Run

SPLITS = ("test", "search", "train")
AMP = ("none", "bfloat16", "float16")
CACHE_BYTES = 2**30


@dataclass(frozen=True)
class Accuracy:
    """The result of :func:`growtas.evaluate`.

    Args:
        subnet: that was evaluated.
        top1: per cent of the images classified correctly.
        images: how many there are.
        split: whose.
        params: parameters of the subnet.
        macs: multiply-accumulates of one image.
    """

    subnet: AnySubnet
    top1: float
    images: int
    split: str
    params: int
    macs: int

    def __str__(self) -> str:
        return (
            f"{self.subnet}: top-1 {self.top1:.2f} % on the {self.images:,} images of the {self.split} "
            f"split, {self.params:,} parameters, {self.macs:,} MACs"
        )


def evaluate(
    run: Run | str | os.PathLike,
    subnet: AnySubnet | str = "best",
    split: str = "test",
    batch_size: int = 256,
    amp: str = "none",
    device: str = "auto",
    workers: int = 0,
    averaged: bool = False,
) -> Accuracy:
    """Top-1 accuracy of a subnet of a run, with the weights that it inherits.

    Args:
        run: folder of a training run.
        subnet: best (of the run's finished search; best:6e6 of that under the limit 6e6), pareto:3 or
            pareto:6e6 (of its front, by number or limit), smallest, largest, or sizes such as
            d24-h2,2,3-r2,3,2.
        split: test, search (held out from training) or train.
        batch_size: images evaluated at once.
        amp: bfloat16 or float16 for autocast, none for float32.
        device: such as cuda:1; auto is a GPU where there is one.
        workers: processes that load images.
        averaged: take the moving average of the weights that a run with ema_decay keeps.

    Returns:
        The accuracy, with the subnet and its size; printed, it is one line.

    Raises:
        UsageError: there is no run, split or subnet like that.
        GrowtasError: the run has no checkpoint yet, or no finished search where the best is asked for.

    Example:
        >>> growtas.evaluate("runs/tiny", "largest").top1  # doctest: +SKIP
    """
    if split not in SPLITS:
        raise UsageError(f"There is no split {split!r}.{nearest(split, SPLITS)}")
    from growtas.training.calibration import calibration
    from growtas.training.distributed import choose_device
    from growtas.training.run import Run

    run = Run.open(run)
    chosen = named_subnet(subnet, run.space, run)
    run.space.validate(chosen)
    splits = run.splits()
    dataset = getattr(splits, split)
    net = run.load_net(choose_device(device), averaged)
    calibrate = calibration(net, splits.train, amp, workers)
    top1 = Evaluator(net, dataset, batch_size, amp, workers, calibrate=calibrate).top1(chosen)
    params, macs = (count(chosen, run.space, run.num_classes) for count in (cost.parameters, cost.macs))
    return Accuracy(chosen, top1, len(dataset), split, params, macs)


class Evaluator:
    """Evaluates one subnet after the other on one set of images.

    The images are kept on the device where they take at most ``cache_bytes``, so that evaluating hundreds of
    subnets loads them once; else they are loaded again for every subnet.

    Args:
        net: the supernet, on the device to compute on; it is put in evaluation mode.
        dataset: of (image (C, S, S) float32, label).
        batch_size: images evaluated at once.
        amp: ``"bfloat16"`` or ``"float16"`` for autocast, ``"none"`` for float32.
        workers: processes that load images; as many as fit where None.
        cache_bytes: most memory for kept images.
        calibrate: called before each subnet is evaluated, to set the BatchNorm statistics for it.

    Raises:
        UsageError: an unknown amp, a batch size below 1, no images, or a network with BatchNorm that nothing
            calibrates.
    """

    def __init__(
        self,
        net: AnySupernet,
        dataset: Dataset,
        batch_size: int = 256,
        amp: str = "none",
        workers: int | None = None,
        cache_bytes: int = CACHE_BYTES,
        calibrate: Callable[[AnySubnet], None] | None = None,
    ) -> None:
        if amp not in AMP:
            raise UsageError(f"amp={amp!r} is unknown.{nearest(str(amp), AMP)}")
        if batch_size < 1:
            raise UsageError(f"batch_size={batch_size} must be 1 or more.")
        if not len(dataset):
            raise UsageError("There are no images to evaluate on: the split is empty.")
        if net.needs_calibration and calibrate is None:
            raise UsageError("A network with BatchNorm is calibrated for each subnet before it is evaluated.")
        self.net = net.eval()
        self.images = len(dataset)
        self._device = next(net.parameters()).device
        self._amp = amp
        self._loader = evaluation_loader(dataset, batch_size, worker_count(workers))
        self._cache_bytes = cache_bytes
        self._calibrate = calibrate
        self._kept: list[tuple[torch.Tensor, torch.Tensor]] | None = None

    def top1(self, subnet: AnySubnet) -> float:
        """Per cent of the images classified correctly; logits that are not finite count as wrong.

        Args:
            subnet: of the net's space.
        """
        return self.accuracy(subnet, (1,))[0]

    def score(self, subnets: Iterable[AnySubnet]) -> Iterator[Score]:
        """Evaluate one subnet after the other, and keep which images each classifies correctly.

        Args:
            subnets: of the net's space.
        """
        for subnet in subnets:
            correct = torch.cat([batch[:, 0] for batch in self._correct(subnet, 1)]).cpu().numpy()
            yield Score(100 * int(correct.sum()) / self.images, self.images, np.packbits(correct).tobytes())

    def accuracy(self, subnet: AnySubnet, top: Sequence[int] = (1, 5)) -> tuple[float, ...]:
        """Per cent of the images whose label is among the highest logits.

        Among equal logits the first ones are taken; an image whose logits are not all finite counts as wrong.

        Args:
            subnet: of the net's space.
            top: how many of the highest logits, 1 or more each; more than there are classes is all of them.

        Returns:
            One number for each of ``top``.

        Raises:
            UsageError: ``top`` is empty or holds a number below 1.
        """
        if not top or min(top) < 1:
            raise UsageError(
                f"top={tuple(top)} is not possible; give whole numbers, 1 or more, such as (1, 5)."
            )
        most = min(max(top), self.net.num_classes)
        correct = sum(batch.sum(0) for batch in self._correct(subnet, most))
        within = correct.cumsum(0).tolist()  # the only wait for the device
        return tuple(100 * within[min(number, most) - 1] / self.images for number in top)

    @torch.inference_mode()
    def _correct(self, subnet: AnySubnet, most: int) -> Iterator[torch.Tensor]:
        """For each batch, bool (B, most): the label is at the first, second, ... place."""
        if self._calibrate is not None:
            self._calibrate(subnet)
        with precision(self._amp, self._device):
            for images, labels in self._batches():
                logits = self.net(images, subnet)
                places = _highest(logits, most) == labels[:, None]
                yield places & logits.isfinite().all(1, keepdim=True)

    def _batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        if self._kept is not None:
            yield from self._kept
            return
        kept, fits = [], True
        for images, labels in track_images(self._loader, "evaluate", self.images):
            batch = images.to(self._device, non_blocking=True), labels.to(self._device, non_blocking=True)
            if not kept:
                fits = self.images * batch[0][0].nbytes <= self._cache_bytes
            if fits:
                kept.append(batch)
            yield batch
        if fits:
            self._kept = kept


def _highest(logits: torch.Tensor, count: int) -> torch.Tensor:
    """Classes (B, count) with the highest of ``logits`` (B, classes), descending, the first among equals."""
    if count == 1:
        return logits.argmax(1, keepdim=True)
    return logits.argsort(dim=1, descending=True, stable=True)[:, :count]
