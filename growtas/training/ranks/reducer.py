"""Gradients averaged over the ranks while the backward pass runs, and only the part that a step trains.

All ranks train the same subnets, so each knows which leading box of every gradient can differ from zero
(``subnet_shapes``). The boxes are sent in buckets, the last layers first, as soon as the gradients of a
bucket are complete; the rest of a gradient is zero on every rank, and is not sent.

Why not DistributedDataParallel: it sends whole gradients, those of unused blocks too, and to know which they
are it looks through the graph of every step (``find_unused_parameters``). docs/distributed.md measures it.
"""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import compress

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._utils import _unflatten_dense_tensors

from growtas.errors import GrowtasError

BUCKETS = 8
LEAST_BYTES, MOST_BYTES = 2**20, 25 * 2**20

Box = tuple[int, ...]
Bucket = tuple[Tensor, Mapping[str, Box]]  # its part of the buffer, and its boxes by parameter name


@dataclass(frozen=True)
class Plan:
    """The boxes of the gradients that a step sends, in the order of sending.

    Args:
        buckets: for each the sizes of its boxes, by parameter name.
        last: parameters that the last backward pass of the step changes; the others are complete before it.
    """

    buckets: tuple[Mapping[str, Box], ...]
    last: frozenset[str]

    @property
    def numel(self) -> int:
        """How many numbers are sent."""
        return sum(math.prod(box) for bucket in self.buckets for box in bucket.values())


def plan(names: Sequence[str], shapes: Sequence[Mapping[str, Box]], itemsize: int = 4) -> Plan:
    """Plan the buckets of a step, the same on every rank.

    A box holds those of all subnets. There are eight buckets, but for small and large nets, which get buckets
    of 1 MiB and of 25 MiB: what is sent after the backward pass is about the last bucket.

    Args:
        names: of the parameters, in the order in which the forward pass takes them.
        shapes: the boxes that each subnet of the step uses, the last one's last.
        itemsize: bytes of a number as it is sent.
    """
    boxes: dict[str, Box] = {}
    for name, box in (item for each in shapes for item in each.items()):
        boxes[name] = tuple(map(max, boxes.get(name, box), box))
    last = frozenset(shapes[-1])
    order = sorted((name for name in reversed(names) if name in boxes), key=last.__contains__)
    sizes = {name: math.prod(boxes[name]) * itemsize for name in order}
    most = min(max(sum(sizes.values()) / BUCKETS, LEAST_BYTES), MOST_BYTES)
    buckets: list[dict[str, Box]] = []
    held = most
    for name in order:
        if held >= most:
            buckets.append({})
            held = 0
        buckets[-1][name] = boxes[name]
        held += sizes[name]
    return Plan(tuple(buckets), last)


class GradientReducer:
    """Replaces the gradients of a step by their means over the ranks, during its last backward pass.

    Every rank must use it in the same steps with the same subnets. A bucket is sent when its gradients are
    complete and the buckets before it were sent, so that all ranks send in one order.

    Args:
        net: gives the parameters, and with ``subnet_shapes`` what a subnet uses of them.
        world: number of ranks.
        dtype: that sums are sent and added in.
    """

    def __init__(self, net: nn.Module, world: int, dtype: torch.dtype = torch.float32) -> None:
        self.net, self.world = net, world
        self.parameters = {name: each for name, each in net.named_parameters() if each.requires_grad}
        like = next(iter(self.parameters.values()))
        self.buffer = like.new_empty(sum(each.numel() for each in self.parameters.values()), dtype=dtype)
        self._of_subnets = functools.lru_cache(maxsize=64)(self._plan)
        self._buckets: tuple[Bucket, ...] = ()
        self._missing: list[set[str]] = []
        self._sent: list[tuple[dist.Work, Sequence[Tensor], Sequence[Tensor]]] = []
        self._bucket_of: Mapping[str, int] | None = None
        itself = weakref.ref(self)  # else parameters and hooks would hold each other for ever
        for name, parameter in self.parameters.items():
            parameter.register_post_accumulate_grad_hook(functools.partial(_complete, itself, name))

    @contextmanager
    def last_backward(self, subnets: Sequence) -> Iterator[None]:
        """The context of a step's last backward pass; after it all gradients are means.

        Args:
            subnets: all of the step, in the order of their backward passes.

        Raises:
            GrowtasError: a gradient is not where the plan has it.
        """
        self._buckets, last, self._bucket_of = self._of_subnets(tuple(subnets))
        self._missing = [boxes.keys() & last for _, boxes in self._buckets]
        self._sent = []
        try:
            self._send()
            yield
            for names in self._missing:  # of a layer that the graph went around
                names.clear()
            self._send()
            for work, places, parts in self._sent:
                work.wait()
                self._receive(places, parts)
        finally:
            self._bucket_of, self._sent = None, []

    def _plan(self, subnets: tuple) -> tuple[tuple[Bucket, ...], frozenset[str], Mapping[str, int]]:
        shapes = [self.net.subnet_shapes(subnet) for subnet in subnets]
        planned = plan(list(self.parameters), shapes, self.buffer.itemsize)
        buckets, start = [], 0
        for boxes in planned.buckets:
            end = start + sum(map(math.prod, boxes.values()))
            buckets.append((self.buffer[start:end], boxes))
            start = end
        places = {name: place for place, (_, boxes) in enumerate(buckets) for name in boxes}
        return tuple(buckets), planned.last, places

    def complete(self, name: str) -> None:
        """Take note that the gradient of a parameter is complete, and send what became ready."""
        if self._bucket_of is None:
            return
        place = self._bucket_of.get(name)
        if place is None or place < len(self._sent):
            raise GrowtasError(
                f"The gradient of {name} cannot be averaged over the ranks: "
                + ("subnet_shapes does not name it." if place is None else "it changed after it was sent.")
            )
        self._missing[place].discard(name)
        if not self._missing[place]:
            self._send()

    @torch.no_grad()
    def _send(self) -> None:
        """Send, in order, the buckets whose gradients are complete."""
        while len(self._sent) < len(self._buckets) and not self._missing[len(self._sent)]:
            flat, boxes = self._buckets[len(self._sent)]
            parts = [self._part(name, box) for name, box in boxes.items()]
            places = _unflatten_dense_tensors(flat, parts)
            _copy(places, parts)
            op = dist.ReduceOp.AVG if dist.get_backend() == "nccl" else dist.ReduceOp.SUM
            self._sent.append((dist.all_reduce(flat, op, async_op=True), places, parts))

    def _part(self, name: str, box: Box) -> Tensor:
        """The box of a gradient, as a view; zeros that belong nowhere where there is no gradient."""
        gradient = self.parameters[name].grad
        if gradient is None:
            return self.buffer.new_zeros(box)
        return gradient if gradient.shape == box else gradient.as_strided(box, gradient.stride())

    @torch.no_grad()
    def _receive(self, places: Sequence[Tensor], parts: Sequence[Tensor]) -> None:
        """Put what a bucket received where it belongs."""
        if dist.get_backend() == "nccl":  # it has divided
            _copy(parts, places)
        else:
            for place, part in zip(places, parts, strict=True):
                torch.div(place, self.world, out=part)


def _complete(itself: weakref.ref[GradientReducer], name: str, parameter: Tensor) -> None:
    reducer = itself()
    if reducer is not None:
        reducer.complete(name)


def _copy(to: Sequence[Tensor], source: Sequence[Tensor]) -> None:
    """Copy tensors; a GPU takes the contiguous ones in one launch, if they are by themselves."""
    dense = [a.is_contiguous() and b.is_contiguous() for a, b in zip(to, source, strict=True)]
    for chosen in (dense, [not each for each in dense]):
        if any(chosen):
            torch._foreach_copy_(list(compress(to, chosen)), list(compress(source, chosen)))
