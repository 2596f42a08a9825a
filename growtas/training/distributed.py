"""Several processes on one run, as torchrun starts them: they agree, and rank 0 writes.

Gradients are averaged by :mod:`growtas.training.reducer`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from growtas.errors import GrowtasError, UsageError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among the others.

    Args:
        rank: its number.
        world: how many there are.
        owns_group: whether :meth:`start` made the process group, and :meth:`stop` ends it.
    """

    rank: int = 0
    world: int = 1
    owns_group: bool = False

    @classmethod
    def start(cls, device: torch.device) -> Ranks:
        """Join the others where torchrun's environment says there are any (NCCL on GPUs, else Gloo)."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        return cls(dist.get_rank(), dist.get_world_size(), True)

    def stop(self) -> None:
        """Leave the process group that :meth:`start` made."""
        if self.owns_group:
            dist.destroy_process_group()

    @property
    def first(self) -> bool:
        """Return whether this is the process that writes."""
        return self.rank == 0

    def on_first(self, work: Callable[[], T]) -> T:
        """Do something on rank 0 alone and give its result to every rank.

        Raises:
            GrowtasError: on every rank, what the work raised on rank 0.
        """
        if self.world == 1:
            return work()
        result: list[object] = [None, None]
        failure: GrowtasError | None = None
        if self.first:
            try:
                result[0] = work()
            except GrowtasError as error:
                failure = error
                result[1] = (isinstance(error, UsageError), str(error))
        dist.broadcast_object_list(result, src=0)
        if failure is not None:
            raise failure
        if result[1] is not None:
            is_usage, sentence = result[1]
            raise (UsageError if is_usage else GrowtasError)(sentence)
        return result[0]

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks, in place."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def broadcast(self, tensors: Sequence[Tensor], source: int) -> None:
        """Give every rank the values that one rank has, in place."""
        if self.world > 1:
            flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
            dist.broadcast(flat, source)
            for tensor, values in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
                tensor.copy_(values.view_as(tensor))

    def average_buffers(self, buffers: Iterable[Tensor]) -> None:
        """Replace every buffer of floating-point numbers by its mean over the ranks."""
        floating = [buffer for buffer in buffers if buffer.is_floating_point()]
        if self.world > 1 and floating:
            flat = torch.cat([buffer.reshape(-1) for buffer in floating])
            dist.all_reduce(flat)
            flat.div_(self.world)
            for buffer, mean in zip(floating, flat.split([b.numel() for b in floating]), strict=True):
                buffer.copy_(mean.view_as(buffer))


def choose_device(name: str) -> torch.device:
    """The device of this process.

    Args:
        name: ``auto`` for a GPU where there is one, else a torch device; ``cuda`` is this rank's GPU.

    Raises:
        UsageError: torch does not know the device, or it is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    with suppress(RuntimeError, AssertionError):
        device = torch.device(name)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.empty(0, device=device)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        return device
    raise UsageError(
        f"device={name!r} cannot be used here: torch {torch.__version__} sees "
        f"{torch.cuda.device_count()} CUDA GPUs. Use device='auto' or 'cpu'."
    )
