"""Training batches in an order that is a function of the seed and the epoch, from any step on.

Why not timm's create_loader: its loaders draw augmentation from generators that run on from sample to sample,
and a sampler cannot be entered in the middle of an epoch; a resumed run would see other images. timm's draws
are kept; order and randomness are keyed instead. Loading processes read and crop. Where the run has a GPU,
it resizes the crops and does the rest of the augmentation, batch by batch; else the loading processes do.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from growtas.errors import UsageError
from growtas.training.config import TrainConfig
from growtas.training.data.images import AugmentedImages, MemoryImages, stream_seed
from growtas.training.data.splits import Split
from growtas.training.data.workers import begin_loading, worker_count

FEW_WORKERS = 8  # more of them hold enough batches in shared memory with one each


class TrainingLoader:
    """The batches of a whole run, for one rank.

    Args:
        split: the training images.
        config: resolved settings.
        rank: of this process.
        world: number of processes; each takes every world-th image of a batch.

    Raises:
        UsageError: the batch does not divide among the ranks, is larger than the split, or is odd under
            mixup; or timm does not know the augmentation.
    """

    def __init__(self, split: Split, config: TrainConfig, rank: int = 0, world: int = 1) -> None:
        self.split, self.config, self.rank, self.world = split, config, rank, world
        if config.batch_size % world:
            raise UsageError(f"batch_size={config.batch_size} does not divide among {world} ranks.")
        if config.batch_size > len(split):
            raise UsageError(
                f"batch_size={config.batch_size} is larger than the {len(split)} training images; lower it."
            )
        if (config.mixup or config.cutmix) and config.batch_size // world % 2:
            raise UsageError(
                f"Mixup and cutmix pair the images of a batch, but {config.batch_size // world} per rank is "
                "odd; change batch_size, or set mixup=0 and cutmix=0."
            )
        self.steps_per_epoch = len(split) // config.batch_size
        self._augmented = None
        if not isinstance(split, MemoryImages):
            try:
                self._augmented = AugmentedImages(split, config)
            except (AssertionError, ValueError, KeyError, IndexError) as error:
                raise UsageError(
                    f"timm cannot make transforms of auto_augment={config.auto_augment!r} ({error}); "
                    "see timm.data.auto_augment, or set auto_augment='none'."
                ) from error

    def order(self, epoch: int) -> tuple[Tensor, Tensor]:
        """The images of an epoch in the order of training, over all ranks.

        Args:
            epoch: counted from 0.

        Returns:
            (n,) numbers of images and (n,) which copy of the image each is.
        """
        repeats = self.config.repeated_augmentation
        generator = torch.Generator().manual_seed(stream_seed("order", self.config.seed, epoch))
        images = torch.randperm(len(self.split), generator=generator)
        places = torch.arange(len(self.split))
        return images[places // repeats], places % repeats

    def plan(self, first_step: int) -> Iterator[tuple[int, Tensor, Tensor]]:
        """(epoch, images, copies) of this rank for every step of the run from ``first_step`` on."""
        size = self.config.batch_size
        for epoch in range(first_step // self.steps_per_epoch, self.config.epochs):
            images, copies = self.order(epoch)
            first = first_step % self.steps_per_epoch if epoch == first_step // self.steps_per_epoch else 0
            for step in range(first, self.steps_per_epoch):
                own = slice(step * size + self.rank, (step + 1) * size, self.world)
                yield epoch, images[own], copies[own]

    def batches(self, first_step: int, device: torch.device | str = "cpu") -> Iterator[tuple[Tensor, Tensor]]:
        """(images (B, C, S, S) float32, labels (B,) int64) of every step from ``first_step`` on.

        Args:
            first_step: of the run.
            device: of the run. A GPU finishes the images of files, which are then on it, one batch ahead.
        """
        augmented = self._augmented
        if augmented is None:
            for epoch, images, copies in self.plan(first_step):
                yield self.split.training_batch(self.config, epoch, images, copies)
            return
        keys = (
            [(epoch, image, copy) for image, copy in zip(images.tolist(), copies.tolist(), strict=True)]
            for epoch, images, copies in self.plan(first_step)
        )
        on_gpu = torch.device(device).type == "cuda"
        augmented.resizes = not on_gpu
        workers = worker_count(self.config.workers)
        loader = DataLoader(
            augmented,
            batch_sampler=keys,
            num_workers=workers,
            prefetch_factor=(2 if workers <= FEW_WORKERS else 1) if workers else None,
            collate_fn=augmented.collate if on_gpu else functools.partial(_finished, augmented),
            pin_memory=on_gpu,
            worker_init_fn=begin_loading,
        )
        yield from _one_ahead(loader, augmented, device) if on_gpu else loader


def _finished(augmented: AugmentedImages, items: Sequence[Any]) -> tuple[Tensor, Tensor]:
    pixels, labels, draws = augmented.collate(items)
    return augmented.finished(pixels, draws), labels


def _one_ahead(
    loader: DataLoader, augmented: AugmentedImages, device: torch.device | str
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches copied to and finished by a GPU, beside the work on the batch before."""
    stream = torch.cuda.Stream(device)
    ahead = None
    for pixels, labels, draws in loader:
        with torch.cuda.stream(stream):
            images = augmented.finished(pixels.to(device, non_blocking=True), draws)
            batch = images, labels.to(device, non_blocking=True), stream.record_event()
        if ahead is not None:
            yield _taken(*ahead)
        ahead = batch
    if ahead is not None:
        yield _taken(*ahead)


def _taken(images: Tensor, labels: Tensor, done: torch.cuda.Event) -> tuple[Tensor, Tensor]:
    """A batch for the current stream, whose memory is not given away while that stream uses it."""
    current = torch.cuda.current_stream(images.device)
    current.wait_event(done)
    images.record_stream(current)
    labels.record_stream(current)
    return images, labels
