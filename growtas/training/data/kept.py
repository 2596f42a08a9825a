"""Fixed batches of a split, decoded once and kept as they were decoded, wherever there is room for them.

Images of files are kept as bytes, a quarter of what float32 takes, and are normalised batch by batch on the
device; the values are those of an evaluation that decodes them anew.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from growtas.progress import say
from growtas.training.data.images import MemoryImages, from_stored, stored
from growtas.training.data.memory import free_bytes, free_disk
from growtas.training.data.workers import begin_loading

SHARE = 0.5  # of what is free, at most, for images: the network and other processes need the rest
DEVICE, HOST, DISK, NOWHERE = "device", "host", "disk", "nowhere"


class KeptImages:
    """Batches by number, decoded when they are first asked for.

    Args:
        dataset: a split.
        batches: the numbers of the images of each batch.
        device: that the batches are for.
        workers: processes that decode.
        keep: False decodes the batches anew in every pass, for a split that is gone through once.

    Attributes:
        place: where the images are kept: on the device, in the host's memory, in a temporary file, or
            nowhere, which is decided by what is free when the first batch was decoded; None before.
        decoded: how many batches need not be decoded any more.
    """

    def __init__(
        self,
        dataset: Dataset,
        batches: Sequence[Sequence[int]],
        device: torch.device | str = "cpu",
        workers: int = 0,
        keep: bool = True,
    ) -> None:
        self.dataset, self.batches, self.device = dataset, batches, torch.device(device)
        self.place = None if keep else NOWHERE
        self.decoded = 0
        self._workers = 0 if isinstance(dataset, MemoryImages) else min(workers, len(batches))
        self._ends = np.cumsum([0, *map(len, batches)]).tolist()
        self._loader: Iterator[tuple[Tensor, Tensor]] = iter(())
        self._next = -1  # the batch that comes out of it next
        self._images = self._labels = torch.empty(0)

    def __len__(self) -> int:
        return len(self.batches)

    def batch(self, number: int) -> tuple[Tensor, Tensor]:
        """Images (B, C, S, S) float32 and labels (B,) int64 of a batch, on the device."""
        while self.place != NOWHERE and self.decoded <= number:
            images, labels = self._load(self.decoded)
            if self.place is None:
                self._choose(images)
                if self.place == NOWHERE and number == 0:
                    return self._finished(images, labels)
            if self.place != NOWHERE:
                self._keep(images, labels)
        if self.place == NOWHERE:
            return self._finished(*self._load(number))
        part = slice(*self._ends[number : number + 2])
        return self._finished(self._images[part], self._labels[part])

    def _load(self, number: int) -> tuple[Tensor, Tensor]:
        if number != self._next:
            loader = DataLoader(
                self.dataset,
                batch_sampler=self.batches[number:],
                num_workers=self._workers,
                collate_fn=stored,
                pin_memory=self.device.type == "cuda",
                worker_init_fn=begin_loading,
                generator=torch.Generator(),  # of its own, or reading images would move on the global one
            )
            self._loader = iter(loader)
        self._next = number + 1
        return next(self._loader)

    @torch.inference_mode(False)  # what is made in that mode could not be filled outside of it
    def _choose(self, images: Tensor) -> None:
        """Find room for all images, given the first batch."""
        shape = self._ends[-1], *images.shape[1:]
        needed = images[0].nbytes * shape[0]
        on_gpu = self.device.type == "cuda"
        folder = tempfile.gettempdir()
        if needed <= SHARE * free_bytes(self.device):
            self.place, self._where = DEVICE, f"on {self.device}"
            self._images = torch.empty(shape, dtype=images.dtype, device=self.device)
        elif on_gpu and needed <= SHARE * free_bytes(torch.device("cpu")):
            self.place, self._where = HOST, "in the host's memory"
            self._images = torch.empty(shape, dtype=images.dtype, pin_memory=True)
        elif needed <= SHARE * free_disk(folder):
            self.place, self._where = DISK, f"in a temporary file in {folder}"
            with tempfile.TemporaryFile(dir=folder) as file:  # without a name: it goes with the process
                mapped = np.memmap(file, images.numpy().dtype, "w+", shape=shape)
            self._images = torch.from_numpy(mapped)
        else:
            self.place = NOWHERE
            say(
                f"{shape[0]:,} images take {_size(needed)}, for which neither memory nor {folder} has room: "
                "they are decoded again whenever they are needed"
            )
            return
        self._labels = torch.empty(shape[0], dtype=torch.int64, device=self.device)

    def _keep(self, images: Tensor, labels: Tensor) -> None:
        part = slice(*self._ends[self.decoded : self.decoded + 2])
        self._images[part].copy_(images, non_blocking=True)
        self._labels[part].copy_(labels, non_blocking=True)
        self.decoded += 1
        if self.decoded == len(self.batches):
            self._loader = iter(())  # ends the loading processes
            if images.dtype == torch.uint8:
                size = _size(self._images.nbytes)
                say(f"{self._ends[-1]:,} images decoded once, {size} {self._where}")

    def _finished(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        images, labels = (each.to(self.device, non_blocking=True) for each in (images, labels))
        return from_stored(images, getattr(self.dataset, "channels", 3)), labels


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
