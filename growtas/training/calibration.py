"""BatchNorm statistics of one subnet, from a few fixed training images.

The running statistics of a supernet mix those of every subnet that was trained, and fit none of them. So
before a subnet is evaluated or taken out, its layers' statistics are set to what training images give in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import Dataset

from growtas.errors import UsageError
from growtas.space import seeded_rng
from growtas.training.data.kept import KeptImages
from growtas.training.precision import precision

if TYPE_CHECKING:
    from growtas.subnet import AnySubnet
    from growtas.supernet import AnySupernet

IMAGES, BATCH_SIZE = 2000, 200  # OFA's

Statistics = dict[str, tuple[Tensor, Tensor]]


class CalibrationImages:
    """Batches of fixed training images without augmentation, decoded when first needed and kept.

    Args:
        split: the training images.
        device: that they are for.
        workers: processes that read them.
        count: how many; all where there are fewer. Which is the same for every run of that data.
        batch_size: most of a batch; the batches are of nearly equal size.
    """

    def __init__(
        self,
        split: Dataset,
        device: torch.device | str = "cpu",
        workers: int = 0,
        count: int = IMAGES,
        batch_size: int = BATCH_SIZE,
    ) -> None:
        self.count = min(count, len(split))
        self.batch_size = math.ceil(self.count / math.ceil(self.count / batch_size))
        chosen = seeded_rng("calibration images").sample(range(len(split)), self.count)
        batches = [chosen[i : i + self.batch_size] for i in range(0, self.count, self.batch_size)]
        self._kept = KeptImages(split, batches, device, workers)

    def __iter__(self) -> Iterator[Tensor]:
        return (self._kept.batch(number)[0] for number in range(len(self._kept)))


@torch.no_grad()
def recalibrate(net: AnySupernet, images: Iterable[Tensor], subnet: AnySubnet | None = None) -> None:
    """Set the statistics of the layers and channels that a subnet uses to the mean over some batches.

    Every batch is normalised by itself; mean and variance (of the batch, not the unbiased estimate) are then
    averaged over the images. All other statistics stay. A network without BatchNorm is left alone.

    Args:
        net: the supernet; its training mode is restored.
        images: batches (B, C, S, S), moved to the net's device.
        subnet: which one; None for what the net runs without being told.

    Raises:
        UsageError: there are no images, or the subnet is outside the space; nothing was changed.

    Source: Once-for-All, ``set_running_statistics``.
    """
    if not net.needs_calibration:
        return
    device, norms, was_training, seen = next(net.parameters()).device, net.norms().values(), net.training, 0
    net.eval()
    try:
        for norm in norms:
            norm.collect()
        for batch in images:
            net(batch.to(device), subnet)
            seen += len(batch)
        if not seen:
            raise UsageError("There are no images to calibrate BatchNorm with; give some training images.")
    except BaseException:
        for norm in norms:
            norm.collect()  # forget what was seen: an interrupted calibration changes nothing
        raise
    finally:
        for norm in norms:
            norm.adopt()
        net.train(was_training)


@torch.no_grad()
def statistics(net: AnySupernet) -> Statistics:
    """Copies of every BatchNorm's running mean and variance, by the layer's name."""
    return {name: (norm.running_mean.clone(), norm.running_var.clone()) for name, norm in net.norms().items()}


@torch.no_grad()
def set_statistics(net: AnySupernet, values: Statistics) -> None:
    """Put back what :func:`statistics` gave."""
    for name, norm in net.norms().items():
        norm.running_mean.copy_(values[name][0])
        norm.running_var.copy_(values[name][1])


@contextmanager
def kept_statistics(net: AnySupernet) -> Iterator[None]:
    """Whatever is calibrated inside, the statistics afterwards are those of before.

    So evaluating a supernet while it is being trained does not change the training. A network without
    BatchNorm needs nothing.
    """
    if not net.needs_calibration:
        yield
        return
    before = statistics(net)
    try:
        yield
    finally:
        set_statistics(net, before)


@contextmanager
def batch_statistics(net: AnySupernet) -> Iterator[None]:
    """Inside, BatchNorm normalises every batch by itself, as in training; no statistics change.

    For a subnet that answers training batches while the weights change at every step: it is right for each
    subnet, and calibrating anew in every step would cost more than the step.
    """
    norms = net.norms().values() if net.needs_calibration else ()
    try:
        for norm in norms:
            norm.collect()
        yield
    finally:
        for norm in norms:
            norm.collect()
            norm.adopt()


def calibration(
    net: AnySupernet, split: Dataset, amp: str = "none", workers: int = 0
) -> Callable[[AnySubnet], None] | None:
    """Build the function that prepares a supernet for the evaluation of a subnet.

    Args:
        net: the supernet, on its device.
        split: the training images.
        amp: ``none``, ``bfloat16`` or ``float16``.
        workers: processes that read images.

    Returns:
        A function of the subnet that sets the statistics; None for a network without BatchNorm.
    """
    if not net.needs_calibration:
        return None
    device = next(net.parameters()).device
    images = CalibrationImages(split, device, workers)

    def prepare(subnet: AnySubnet) -> None:
        with precision(amp, device):
            recalibrate(net, images, subnet)

    return prepare
