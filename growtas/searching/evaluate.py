"""Accuracy of subnets with the weights they inherit; ``growtas.evaluate``."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch

from growtas import cost, threads
from growtas.bounds import IMAGES, PROCESSES, bounded
from growtas.errors import UsageError, nearest
from growtas.progress import say_once, track_images
from growtas.searching.named import named_subnet
from growtas.searching.racing import Bar, behind, estimate, rungs, stratified_order
from growtas.searching.result import Score
from growtas.subnet import AnySubnet
from growtas.training.calibration import Statistics, set_statistics, statistics
from growtas.training.data import Split
from growtas.training.data.kept import NOWHERE, KeptImages
from growtas.training.data.workers import worker_count
from growtas.training.external import is_external
from growtas.training.precision import missing_kernels, precision, resolved
from growtas.training.ranks import Ranks

if TYPE_CHECKING:
    from growtas.searching.evaluate_model import ModelAccuracy
    from growtas.supernet import AnySupernet
    from growtas.training.run import Run

SPLITS = ("test", "search", "train")
AMP = ("auto", "none", "bfloat16", "float16")
GPU_BATCH, CPU_BATCH = 1024, 256
TOGETHER = 10  # subnets that a batch of images is normalised for; an interrupted search loses that many


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


@bounded(batch_size=IMAGES, workers=PROCESSES)
def evaluate(
    run: Run | str | os.PathLike,
    subnet: AnySubnet | str = "best",
    split: str = "test",
    batch_size: int | None = None,
    amp: str = "auto",
    device: str = "auto",
    workers: int = 0,
    averaged: bool = False,
    data: str | None = None,
    data_folder: str | None = None,
) -> Accuracy | ModelAccuracy:
    """Accuracy of a subnet of a run with the weights that it inherits, or of a saved model.

    Args:
        run: folder of a training run; or a model: a folder that growtas extract, growtas transfer or timm
            wrote, or timm:NAME.
        subnet: of a run: best (of its finished search; best:6e6 of that under the limit 6e6), pareto:3 or
            pareto:6e6 (of its front, by number or limit), smallest, largest, or sizes such as
            d24-h2,2,3-r2,3,2.
        split: test, search (held out from training) or train.
        batch_size: images evaluated at once; 1,024 on a GPU and 256 on a CPU where none is given.
        amp: bfloat16 or float16 for autocast, none for float32; auto is the GPU's best, float32 on a CPU.
        device: such as cuda:1; auto is a GPU where there is one.
        workers: processes that load images.
        averaged: take the moving average of the weights that a run with ema_decay keeps.
        data: of a model: as of growtas train, prepared as the model's config.json says; that of its own
            fine-tuning where not given.
        data_folder: where that data is stored, if it is a timm data set.

    Returns:
        The accuracy, with the subnet and its size; printed, it is one line. That of a model has the top-5
        accuracy too, where it has more than 5 classes.

    Raises:
        UsageError: there is no run, model, split or subnet like that, a run is to be evaluated on other data,
            or a model has other classes than the data.
        GrowtasError: the run has no checkpoint yet, or no finished search where the best is asked for.

    Example:
        >>> growtas.evaluate("runs/tiny", "largest").top1  # doctest: +SKIP
    """
    if split not in SPLITS:
        raise UsageError(f"There is no split {split!r}.{nearest(split, SPLITS)}")
    if isinstance(run, str | os.PathLike) and is_external(str(run)):
        from growtas.searching.evaluate_model import evaluate_model

        return evaluate_model(str(run), data, split, batch_size, amp, device, workers, data_folder)
    from growtas.training.calibration import calibration
    from growtas.training.ranks import choose_device
    from growtas.training.run import Run

    run = Run.open(run)
    if data is not None:
        raise UsageError(
            f"A run is evaluated on its own data; leave out data={data!r}, or extract the subnet and "
            "evaluate that folder."
        )
    threads.fit(run.space)
    chosen = named_subnet(subnet, run.space, run)
    run.space.validate(chosen)
    splits = run.splits()
    dataset = getattr(splits, split)
    net = run.load_net(choose_device(device), averaged)
    calibrate = calibration(net, splits.train, amp, workers)
    top1 = Evaluator(net, dataset, batch_size, amp, workers, calibrate, keep=False).top1(chosen)
    params, macs = (count(chosen, run.space, run.num_classes) for count in (cost.parameters, cost.macs))
    return Accuracy(chosen, top1, len(dataset), split, params, macs)


class Evaluator:
    """Evaluates subnets on one set of images, which are decoded once.

    The images stand in an order of which every beginning is a stratified sample, in batches that depend on
    ``batch_size`` alone; ranks take them in turn, so that a result does not depend on how many there are.

    Args:
        net: the supernet, on the device to compute on; it is put in evaluation mode.
        dataset: a split.
        batch_size: images evaluated at once; 1,024 on a GPU and 256 on a CPU where None.
        amp: ``"bfloat16"`` or ``"float16"`` for autocast, ``"none"`` for float32; ``"auto"`` is bfloat16 on
            GPUs that have it, float16 on others and float32 on a CPU.
        workers: processes that load images; as many as fit where None.
        calibrate: called before a subnet is evaluated, to set the BatchNorm statistics for it.
        images: the first so many of that order; all where None.
        keep: False decodes the images anew for each call, for one that is evaluated once.
        ranks: processes that share the images.

    Raises:
        UsageError: an unknown amp, a batch size below 1, no images or fewer than were asked for, or a
            network with BatchNorm that nothing calibrates.
    """

    def __init__(
        self,
        net: AnySupernet,
        dataset: Split,
        batch_size: int | None = None,
        amp: str = "auto",
        workers: int | None = None,
        calibrate: Callable[[AnySubnet], None] | None = None,
        images: int | None = None,
        keep: bool = True,
        ranks: Ranks | None = None,
    ) -> None:
        if amp not in AMP:
            raise UsageError(f"amp={amp!r} is unknown.{nearest(str(amp), AMP)}")
        self._device = next(net.parameters()).device
        if batch_size is None:
            batch_size = GPU_BATCH if self._device.type == "cuda" else CPU_BATCH
        if batch_size < 1:
            raise UsageError(f"batch_size={batch_size} must be 1 or more.")
        if not len(dataset):
            raise UsageError("There are no images to evaluate on: the split is empty.")
        self.images = len(dataset) if images is None else images
        if not 0 < self.images <= len(dataset):
            raise UsageError(
                f"images={images} is not possible: the split has {len(dataset):,}; choose at least 1 and at "
                "most that many, or leave it out for all."
            )
        if net.needs_calibration and calibrate is None:
            raise UsageError("A network with BatchNorm is calibrated for each subnet before it is evaluated.")
        if lacking := missing_kernels(net.space, self._device):
            say_once(lacking)
        self.net = net.eval()
        self._amp = resolved(amp, self._device)
        self._calibrate = calibrate if net.needs_calibration else None
        self._ranks = ranks or Ranks()
        self._rungs = rungs(self.images)
        batches = [batch for rung in pairwise([0, *self._rungs]) for batch in _batches(*rung, batch_size)]
        self._own = batches[self._ranks.rank :: self._ranks.world]
        order = stratified_order(dataset.labels)
        self._kept = KeptImages(
            dataset,
            [order[first:last] for first, last in self._own],
            self._device,
            worker_count(workers),
            keep,
        )
        self._statistics: dict[AnySubnet, Statistics] = {}
        self._set: AnySubnet | None = None  # whose statistics the network has

    @property
    def races(self) -> bool:
        """Return whether a subnet can leave: there are enough images to be divided."""
        return len(self._rungs) > 1

    def top1(self, subnet: AnySubnet) -> float:
        """Per cent of the images classified correctly; logits that are not finite count as wrong.

        Args:
            subnet: of the net's space.
        """
        return self.accuracy(subnet, (1,))[0]

    @torch.inference_mode()
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
        self._prepare([subnet])
        most = min(max(top), self.net.num_classes)
        correct = torch.zeros(most, dtype=torch.int64, device=self._device)  # at first, second, ... place
        batches = (self._kept.batch(number) for number in range(len(self._own)))
        if self._kept.decoded < len(self._own):
            batches = track_images(batches, "evaluate", sum(last - first for first, last in self._own))
        for images, labels in batches:
            correct += self._correct(subnet, images, labels, most).sum(0)
        within = self._ranks.sum(correct).cumsum(0).tolist()  # the only wait for the device
        return tuple(100 * within[min(number, most) - 1] / self.images for number in top)

    def score(
        self,
        subnets: Sequence[AnySubnet],
        seen: Callable[[int], object] = lambda images: None,
        bar: Bar | None = None,
    ) -> Iterator[Score]:
        """Evaluate subnets, some at a time, and keep which images each classifies correctly.

        Args:
            subnets: of the net's space.
            seen: called with a number of images that were evaluated, or that a subnet need not see.
            bar: a subnet that is behind it, as :mod:`growtas.searching.racing` has it, is not evaluated on
                further images. Without it every subnet is evaluated on all.

        Yields:
            The scores, in order.
        """
        waiting = list(subnets)
        while waiting:
            again = torch.tensor(int(self._kept.place == NOWHERE), device=self._device)
            size = len(waiting) if self._ranks.sum(again) else TOGETHER
            yield from self._race(waiting[:size], seen, bar)
            waiting = waiting[size:]

    @torch.inference_mode()
    def _race(
        self, subnets: Sequence[AnySubnet], seen: Callable[[int], object], bar: Bar | None
    ) -> list[Score]:
        """Scores of a few subnets; each batch of images is read and normalised once for all of them."""
        self._prepare(subnets)
        right = torch.zeros(len(subnets), self.images, dtype=torch.uint8, device=self._device)
        theirs = None if bar is None else _from_bits(bar.correct, self.images).to(self._device)
        scores: dict[int, Score] = {}
        first = told = 0
        for last in self._rungs:
            running = [row for row in range(len(subnets)) if row not in scores]
            if not running:
                break
            for number, (begin, end) in enumerate(self._own):
                if first <= begin < last:
                    images, labels = self._kept.batch(number)
                    for row in running:
                        right[row, begin:end] = self._correct(subnets[row], images, labels, 1)[:, 0]
                    told += len(running) * (end - begin)
                    seen(len(running) * (end - begin))
            for row in running:
                self._ranks.sum(right[row, first:last])
                if last == self.images:
                    top1 = 100 * int(right[row].sum()) / self.images
                    scores[row] = Score(top1, self.images, _bits(right[row]))
                elif theirs is not None:
                    own, other = right[row, :last], theirs[:last]
                    lost, won = torch.stack([(other > own).sum(), (own > other).sum()]).tolist()
                    if behind(lost, won, last, self.images):
                        scores[row] = Score(estimate(bar, lost, won, last), last, _bits(own))
            now = sum(self.images if row in scores else last for row in range(len(subnets)))
            seen(now - told)  # images of other ranks, and those that a subnet need not see
            first, told = last, now
        return [scores[row] for row in range(len(subnets))]

    def _prepare(self, subnets: Sequence[AnySubnet]) -> None:
        """Calibrate the network for each subnet; the ranks take turns."""
        if self._calibrate is None:
            return
        self._statistics = {}
        for number, subnet in enumerate(subnets):
            owner = number % self._ranks.world
            if owner == self._ranks.rank:
                self._calibrate(subnet)
            norms = self.net.norms().values()
            self._ranks.broadcast([each for n in norms for each in (n.running_mean, n.running_var)], owner)
            self._statistics[subnet] = statistics(self.net)
            self._set = subnet

    def _correct(
        self, subnet: AnySubnet, images: torch.Tensor, labels: torch.Tensor, most: int
    ) -> torch.Tensor:
        """Bool (B, most): the label of an image is at the first, second, ... place."""
        if self._calibrate is not None and self._set != subnet:
            set_statistics(self.net, self._statistics[subnet])
            self._set = subnet
        with precision(self._amp, self._device):
            logits = self.net(images, subnet)
        return (_highest(logits, most) == labels[:, None]) & logits.isfinite().all(1, keepdim=True)


def _batches(first: int, last: int, size: int) -> list[tuple[int, int]]:
    """Beginnings and ends of batches of nearly equal size, at most ``size``."""
    size = math.ceil((last - first) / math.ceil((last - first) / size))
    return [(begin, min(begin + size, last)) for begin in range(first, last, size)]


def _from_bits(correct: bytes, images: int) -> torch.Tensor:
    return torch.from_numpy(np.unpackbits(np.frombuffer(correct, np.uint8))[:images])


def _bits(right: torch.Tensor) -> bytes:
    return np.packbits(right.cpu().numpy()).tobytes()


def _highest(logits: torch.Tensor, count: int) -> torch.Tensor:
    """Classes (B, count) with the highest of ``logits`` (B, classes), descending, the first among equals."""
    if count == 1:
        return logits.argmax(1, keepdim=True)
    return logits.argsort(dim=1, descending=True, stable=True)[:, :count]
