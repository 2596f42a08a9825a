"""Accuracy of a few subnets while the supernet is being trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Subset

from growtas import cost
from growtas.errors import UsageError
from growtas.progress import track_images
from growtas.space import ModelSpace, Space, seeded_rng
from growtas.subnet import AnySubnet
from growtas.training.calibration import kept_statistics, set_statistics, statistics
from growtas.training.data import Split, evaluation_loader
from growtas.training.data.images import MemoryImages
from growtas.training.precision import precision
from growtas.training.ranks import Ranks

if TYPE_CHECKING:
    from growtas.supernet import AnySupernet

BATCH_SIZE = 256


def watched_subnets(space: Space, count: int) -> dict[str, AnySubnet]:
    """The smallest, the largest and ``count`` random subnets of a space, the same for every run."""
    if isinstance(space, ModelSpace):
        return {"model": space.largest()}
    rng = seeded_rng("watched subnets")
    drawn = {f"random-{i}": space.sample(rng) for i in range(count)}
    return {"smallest": space.smallest(), "largest": space.largest(), **drawn}


def evaluate(
    net: AnySupernet,
    subnets: dict[str, AnySubnet],
    split: Split,
    device: torch.device,
    amp: str = "none",
    workers: int = 0,
    ranks: Ranks | None = None,
    calibrate: Callable[[AnySubnet], None] | None = None,
) -> list[dict]:
    """Top-1 accuracy and cross-entropy of subnets with the weights they inherit.

    Args:
        net: the supernet; its training mode and its BatchNorm statistics are restored.
        subnets: by name.
        split: images to evaluate on.
        device: to compute on.
        amp: ``none``, ``bfloat16`` or ``float16``.
        workers: processes that load images.
        ranks: processes that share the images.
        calibrate: sets the BatchNorm statistics for a subnet; what :func:`calibration` gave.

    Returns:
        One dictionary per subnet: name, subnet, group, params, top1 (per cent), loss.

    Raises:
        UsageError: the network has BatchNorm, and nothing calibrates it.
    """
    if net.needs_calibration and calibrate is None:
        raise UsageError("A network with BatchNorm is calibrated for each subnet before it is evaluated.")
    ranks = ranks or Ranks()
    totals = torch.zeros(len(subnets), 2, dtype=torch.float64, device=device)
    was_training = net.training
    net.eval()
    # not in inference mode: a resume may evaluate first, and what the network keeps then goes into training
    with torch.no_grad(), kept_statistics(net):
        own = {}
        if net.needs_calibration:
            for name, subnet in subnets.items():
                calibrate(subnet)
                own[name] = statistics(net)
        own_images = len(range(ranks.rank, len(split), ranks.world))
        batches = track_images(_batches(split, workers, ranks), "evaluate", own_images, len(subnets))
        for images, labels in batches:
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            for row, (name, subnet) in enumerate(subnets.items()):
                if own:
                    set_statistics(net, own[name])
                with precision(amp, device):
                    logits = net(images, subnet).float()
                totals[row, 0] += (logits.argmax(1) == labels).sum()
                totals[row, 1] += F.cross_entropy(logits, labels, reduction="sum")
    net.train(was_training)
    ranks.sum(totals)
    return [
        {
            "name": name,
            "subnet": str(subnet),
            "group": net.space.group_of(subnet),
            "params": _parameters(net, subnet),
            "top1": round(100 * correct / len(split), 4),
            "loss": _finite(total / len(split)),
        }
        for (name, subnet), (correct, total) in zip(subnets.items(), totals.tolist(), strict=True)
    ]


def _batches(split: Split, workers: int, ranks: Ranks) -> Iterable[tuple[Tensor, Tensor]]:
    if isinstance(split, MemoryImages):
        workers = 0
    own = Subset(split, range(ranks.rank, len(split), ranks.world)) if ranks.world > 1 else split
    return evaluation_loader(own, BATCH_SIZE, workers)


def _parameters(net: AnySupernet, subnet: AnySubnet) -> int:
    if isinstance(net.space, ModelSpace):
        return sum(parameter.numel() for parameter in net.parameters())
    return cost.parameters(subnet, net.space, net.num_classes)


def _finite(value: float) -> float | None:
    """JSON knows no NaN."""
    return round(value, 6) if abs(value) < float("inf") else None
