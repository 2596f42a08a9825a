"""Several processes on one run, as torchrun starts them: they agree, and rank 0 writes.

Gradients are averaged by :mod:`growtas.training.ranks.reducer`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from growtas.errors import GrowtasError, UsageError, quoted
from growtas.training.ranks.lifeline import GRACE, Lifeline, RankFailed
from growtas.training.ranks.meeting import fresh_store

TIMEOUT = 600.0  # seconds of one exchange; a rank that died is noticed long before

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among the others.

    Args:
        rank: its number.
        world: how many there are.
        lifeline: tells of their failures; None where :meth:`joined` did not make the process group.
    """

    rank: int = 0
    world: int = 1
    lifeline: Lifeline | None = None

    @classmethod
    @contextmanager
    def joined(cls, device: torch.device, timeout: float = TIMEOUT) -> Iterator[Ranks]:
        """Join the others where torchrun's environment says there are any (NCCL on GPUs, else Gloo).

        An exception that ends the block reaches the other ranks, whatever they wait for. Where it is what
        the failure of another rank looks like here, that failure is raised in its place.

        Args:
            device: of this rank.
            timeout: seconds that one exchange between the ranks may take.

        Raises:
            RankFailed: another rank failed.
        """
        if dist.is_available() and dist.is_initialized():
            yield cls(dist.get_rank(), dist.get_world_size())
            return
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            yield cls()
            return
        backend = "nccl" if device.type == "cuda" else "gloo"
        store, rank, world = fresh_store(timeout)
        limit = timedelta(seconds=timeout)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=limit)
        lifeline = Lifeline.connect(rank, world)
        try:
            yield cls(rank, world, lifeline)
        except BaseException as error:
            failure = _failure_behind(error, lifeline, timeout)
            if failure is None:
                raise
            raise failure from error
        finally:
            with suppress(RuntimeError):  # of a group that is broken already
                dist.destroy_process_group()
            lifeline.close()

    @property
    def first(self) -> bool:
        """Return whether this is the process that writes."""
        return self.rank == 0

    def on_first(self, work: Callable[[], T]) -> T:
        """Do something on rank 0 alone, however long it takes, and give its result to every rank.

        Raises:
            GrowtasError: on every rank, what the work raised on rank 0.
        """
        if self.world == 1:
            return work()
        result: list[object] = [None, None]
        failure: Exception | None = None
        if self.first:
            try:
                result[0] = work()
            except Exception as error:  # noqa: BLE001 - raised again below
                failure = error
                result[1] = (isinstance(error, UsageError), _sentence(error))
        if self.lifeline is not None:
            self.lifeline.turn()
        dist.broadcast_object_list(result, src=0)
        if failure is not None:
            raise failure
        if result[1] is not None:
            is_usage, sentence = result[1]
            raise (UsageError if is_usage else GrowtasError)(sentence)
        return result[0]

    def note(self, sentence: str) -> None:
        """Give the end of the sentence that the failure of a rank is told with; rank 0's counts."""
        if self.lifeline is not None and self.first:
            self.lifeline.note(sentence)

    def check(self) -> None:
        """Raises: RankFailed: another rank has failed."""
        if self.lifeline is not None:
            self.lifeline.check()

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all ranks, in place."""
        if self.world > 1:
            self.check()
            dist.all_reduce(values)
        return values

    def interleave(self, own: Tensor, count: int) -> Tensor:
        """Put together what the ranks have of every ``world``-th row: rank r has the rows r, r + world, ...

        Args:
            own: (n, ...) of this rank.
            count: rows of the whole.

        Returns:
            (count, ...), on every rank.
        """
        if self.world == 1:
            return own
        self.check()
        most = -(-count // self.world)
        rows = torch.cat([own, own[:1].expand(most - len(own), *own.shape[1:])])
        parts = [torch.empty_like(rows) for _ in range(self.world)]
        dist.all_gather(parts, rows)
        return torch.stack(parts, 1).flatten(0, 1)[:count]

    def broadcast(self, tensors: Sequence[Tensor], source: int) -> None:
        """Give every rank the values that one rank has, in place."""
        if self.world > 1:
            self.check()
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


def _failure_behind(error: BaseException, lifeline: Lifeline, timeout: float) -> RankFailed | None:
    """The failure of another rank that an exception comes from; else the others are told of this one."""
    if isinstance(error, RankFailed):
        return None
    if isinstance(error, dist.DistError) or isinstance(error, RuntimeError) and "gloo" in str(error).lower():
        failure = lifeline.wait(GRACE)
        if failure is not None:
            return failure
        late = "timed out" in str(error).lower() or "timeout" in str(error).lower()
        why = f"it waited {timeout:g} s for the others" if late else "it lost the others"
        failure = RankFailed(
            f"Rank {lifeline.rank} gave up: {why} ({str(error).splitlines()[0]}). A rank hangs, or "
            "rank_timeout is too short."
        )
        lifeline.report(str(failure), failure.exit_status)
        return failure
    lifeline.report(_sentence(error), getattr(error, "exit_status", 1))
    return None


def _sentence(error: BaseException) -> str:
    """The sentence that other ranks are told of an exception."""
    return str(error) if isinstance(error, GrowtasError) else f"{type(error).__name__}: {error}"


def choose_device(name: str) -> torch.device:
    """The device of this process.

    Args:
        name: ``auto`` for a GPU where there is one, else a torch device; ``cuda`` is this rank's GPU.

    Raises:
        UsageError: torch does not know the device, it is not there, or several ranks would share it.
    """
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if ranks > 1 and name.startswith("cuda:"):
        raise UsageError(
            f"device={name!r} would put all {ranks} ranks on one GPU. Use device='cuda': each rank takes the "
            "GPU of its LOCAL_RANK; CUDA_VISIBLE_DEVICES chooses among them."
        )
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    with suppress(RuntimeError, AssertionError):
        device = torch.device(name)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        if device.type == "meta":  # which holds no numbers
            raise RuntimeError(name)
        torch.empty(0, device=device)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        return device
    raise UsageError(
        f"device={quoted(name)} cannot be used here: torch {torch.__version__} sees "
        f"{torch.cuda.device_count()} CUDA GPUs. Use device='auto' or 'cpu'."
    )
