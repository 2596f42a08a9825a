"""How far the gradients of small and large subnets agree on the weights that they share.

Subnets of a supernet are trained on the same weights. Where the gradient of a small one and that of a large
one point apart, a step for the one undoes a part of a step for the other; the cosine between them on the
entries that both use says how far. A cosine means nothing without what two subnets of one size have, so that
is measured besides, as a control.

GrowTAS (arXiv 2512.12296) argues with this interference and does not measure it; the measurement is ours.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from growtas.space import seeded_rng

if TYPE_CHECKING:
    import random

    from growtas.methods.base import TrainingContext
    from growtas.space import Space
    from growtas.subnet import AnySubnet
    from growtas.supernet import AnySupernet

    Pair = tuple[AnySubnet, AnySubnet]

SUBNETS = 4  # of each side: 8 gradients give 16 pairs of a small and a large one, and 6 of two small ones
IMAGES = 64
EMBEDDING, HEAD = "embedding", "head"
_BLOCK = re.compile(r"(blocks\.\d+|stages\.\d+\.\d+)\.")
_DRAWS = 50  # tries per wanted subnet: a small space may not have as many


@dataclass(frozen=True)
class Interference:
    """Cosines between the gradients of pairs of subnets on the weights that both use.

    Args:
        cosine: over all shared weights together, the mean of the pairs; None where no pair has any.
        layers: the same for each layer, by name in network order: ``embedding``, the blocks (``blocks.0``, or
            ``stages.0.1`` of a convolutional network), ``head``; None where no pair shares the layer.
        negative: share of the pairs whose cosine over all shared weights is below 0.
        norm_ratio: of the second subnet's gradient to the first's on the shared weights, the geometric mean
            of the pairs.
        pairs: pairs that were measured, those without finite gradients left out.
        images: that every gradient is the mean of.
    """

    cosine: float | None
    layers: Mapping[str, float | None] = field(hash=False)
    negative: float | None
    norm_ratio: float | None
    pairs: int
    images: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a log."""
        return asdict(self)


def layer_names(net: nn.Module) -> dict[str, str]:
    """The layer of every parameter, by the parameter's name; layers are in network order.

    What stands before the first block is ``embedding``, what stands after the last one ``head``.
    """
    found = {}
    layer = EMBEDDING
    for name, _ in net.named_parameters():
        block = _BLOCK.match(name)
        if block:
            layer = block[1]
        elif layer != EMBEDDING:
            layer = HEAD
        found[name] = layer
    return found


def measure(
    net: AnySupernet,
    pairs: Sequence[Pair],
    images: Tensor,
    labels: Tensor,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    smoothing: float = 0.0,
) -> Interference:
    """The interference of some pairs of subnets, both on the same images.

    The gradient is that of the cross-entropy with the labels, without drop-path and dropout; BatchNorm
    normalises by the images. The network, its gradients, its statistics and the random generators are left
    as they were. On several ranks the numbers are rank 0's.

    Args:
        net: the supernet.
        pairs: the small subnet first.
        images: (B, C, S, S), on the net's device.
        labels: (B,).
        autocast: gives the context manager of the precision to compute in.
        smoothing: of the labels; what the network is trained with, for without it the gradients of one that
            has learned all share the direction of greater confidence.

    Example:
        >>> space = net.space
        >>> measure(net, [(space.smallest(), space.largest())], images, labels).cosine  # doctest: +SKIP
        0.61
    """
    return measure_each(net, {"": pairs}, images, labels, autocast, smoothing)[""]


def measure_each(
    net: AnySupernet,
    sets: Mapping[str, Sequence[Pair]],
    images: Tensor,
    labels: Tensor,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    smoothing: float = 0.0,
) -> dict[str, Interference]:
    """:func:`measure` for sets of pairs by name; a subnet's gradient is computed once for all of them."""
    subnets = list(dict.fromkeys(subnet for pairs in sets.values() for pair in pairs for subnet in pair))
    layers = list(dict.fromkeys(layer_names(net).values()))
    if not subnets:
        return {name: _of_pairs((), (), layers, (), len(images)) for name in sets}
    with _undisturbed(net):
        gradients = [_gradient(net, subnet, images, labels, autocast, smoothing) for subnet in subnets]
    sums = _sums(net, subnets, gradients, layers)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.broadcast(sums, 0)  # ranks that round differently must not part ways
    dots, squares = sums.tolist()
    places = {subnet: place for place, subnet in enumerate(subnets)}
    return {
        name: _of_pairs(dots, squares, layers, [(places[a], places[b]) for a, b in pairs], len(images))
        for name, pairs in sets.items()
    }


@contextmanager
def _undisturbed(net: nn.Module) -> Iterator[None]:
    """Nothing is drawn at random inside; modes and BatchNorm's statistics are afterwards what they were."""
    modes = [(module, module.training) for module in net.modules()]
    norms = [module for module in net.modules() if isinstance(module, _BatchNorm)]
    kept = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers()]
    net.eval()
    for norm in norms:
        norm.train()  # running statistics mix those of every subnet: no step is taken with them
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for buffer, before in kept:
            buffer.copy_(before)


def _gradient(
    net: AnySupernet,
    subnet: AnySubnet,
    images: Tensor,
    labels: Tensor,
    autocast: Callable[[], AbstractContextManager],
    smoothing: float,
) -> dict[str, Tensor]:
    """The gradient of the loss of a subnet, by parameter; without those that it does not use."""
    names, parameters = zip(*net.named_parameters(), strict=True)
    with torch.enable_grad():
        with autocast():
            logits = net(images, subnet)
        scale = 2.0**10 if logits.dtype == torch.float16 else 1.0  # small gradients would become 0 there
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
        found = torch.autograd.grad(loss * scale, parameters, allow_unused=True)
    return {name: each / scale for name, each in zip(names, found, strict=True) if each is not None}


@torch.no_grad()
def _sums(
    net: AnySupernet,
    subnets: Sequence[AnySubnet],
    gradients: Sequence[Mapping[str, Tensor]],
    layers: Sequence[str],
) -> Tensor:
    """Compute the products and norms that cosines are made of.

    Returns:
        (2, layers, n, n) in double precision for n subnets: the dot products of gradients i and j, and the
        squared norm of gradient i on the weights that j uses too.
    """
    n = len(subnets)
    device = next(net.parameters()).device
    sums = torch.zeros(2, len(layers), n, n, dtype=torch.float64, device=device)
    shapes = [net.subnet_shapes(subnet) for subnet in subnets]
    for name, layer in layer_names(net).items():
        like = net.get_parameter(name)
        values = torch.zeros(n, *like.shape, dtype=torch.float64, device=device)
        uses = torch.zeros_like(values)
        for i in range(n):
            if name in shapes[i] and name in gradients[i]:
                box = tuple(slice(size) for size in shapes[i][name])
                values[i][box] = gradients[i][name][box].double()
                uses[i][box] = 1
        # outside its own box a gradient is zero: products of whole tensors are those of the shared boxes
        values, uses = values.flatten(1), uses.flatten(1)
        place = layers.index(layer)
        sums[0, place] += values @ values.T
        sums[1, place] += values.square() @ uses.T
    return sums


def _of_pairs(
    dots: Sequence[Sequence[Sequence[float]]],
    squares: Sequence[Sequence[Sequence[float]]],
    layers: Sequence[str],
    pairs: Sequence[tuple[int, int]],
    images: int,
) -> Interference:
    """The means over pairs of places in the sums by layer."""
    whole, ratios = [], []
    by_layer: dict[str, list[float]] = {layer: [] for layer in layers}
    for i, j in pairs:
        each = [(dots[k][i][j], squares[k][i][j], squares[k][j][i]) for k in range(len(layers))]
        dot, first, second = (math.fsum(values) for values in zip(*each, strict=True))
        if not math.isfinite(dot + first + second) or not first * second:
            continue
        whole.append(_cosine(dot, first, second))
        ratios.append(0.5 * math.log(second / first))
        for layer, sums in zip(layers, each, strict=True):
            if sums[1] * sums[2]:
                by_layer[layer].append(_cosine(*sums))
    return Interference(
        cosine=_mean(whole),
        layers={layer: _mean(values) for layer, values in by_layer.items()},
        negative=_mean([float(cosine < 0) for cosine in whole]),
        norm_ratio=math.exp(_mean(ratios)) if ratios else None,
        pairs=len(whole),
        images=images,
    )


def _cosine(dot: float, first: float, second: float) -> float:
    return max(-1.0, min(1.0, dot / (math.sqrt(first) * math.sqrt(second))))


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def between_groups(
    training: TrainingContext,
    small: Sequence[int],
    large: Sequence[int],
    seed: int,
    *key: object,
    subnets: int = SUBNETS,
    images: int = IMAGES,
) -> dict[str, Interference]:
    """The interference between subnets of some groups and of some others, on training images.

    Args:
        training: gives the net, the images and the precision.
        small, large: groups, from 0.
        seed: of the run.
        key: with the seed it determines the subnets and the images.
        subnets: random ones of each side; every one is paired with every one of the other side.
        images: that gradients are computed on.

    Returns:
        ``between`` the two sides, and the ``control``: the pairs of two subnets of the first side.
    """
    rng = seeded_rng("interference", seed, *key)
    first = distinct_subnets(training.net.space, small, subnets, rng)
    second = distinct_subnets(training.net.space, large, subnets, rng)
    drawn, labels = training.draw_images("train", images, "interference", *key)
    sets = {
        "between": list(itertools.product(first, second)),
        "control": list(itertools.combinations(first, 2)),
    }
    return measure_each(training.net, sets, drawn, labels, training.autocast, training.smoothing)


def distinct_subnets(
    space: Space, groups: Sequence[int], count: int, rng: random.Random
) -> tuple[AnySubnet, ...]:
    """Random subnets of some groups, none twice; fewer where there are not as many."""
    drawn: dict[AnySubnet, None] = {}
    for _ in range(_DRAWS * count):
        if len(drawn) == count:
            break
        drawn[space.sample(rng, groups)] = None
    return tuple(drawn)
