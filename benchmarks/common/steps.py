"""The rival networks of train_step.py: what a step is, that all compute alike, and what each one costs.

    growtas    growtas.Supernet, a subnet of it
    published  the published way, with the same weights (common/published_vit.py)
    timm       a dense timm ViT of the subnet's size, without relative position (common/dense_vit.py)
    compiled   the same under torch.compile
    masked     the whole supernet under torch.compile, with masks (common/masked_vit.py)

A *training step* is: forward pass in training mode, cross entropy against class indices, backward pass, and
all gradients set to None. The optimizer is not in it, nor is moving the images: they lie on the device.
Drop-path is 0 for all. Under autocast parameters are fp32, and casting them is part of the step. A *forward
pass* is one in eval mode under no_grad, as a search evaluates subnets.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import counting
from common.published_vit import PublishedViT
from growtas import Supernet, load_space
from growtas.ops import direct_gradients
from growtas.space import SearchSpace, Subnet

WAYS = ("growtas", "published", "timm", "compiled", "masked")
SUBNETS = ("smallest", "middle", "largest")
PASSES = ("forward", "step")
COMPILER = "inductor"  # of torch.compile; a rehearsal takes "eager", which only finds the graph
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05}


def pick_subnet(space: SearchSpace, name: str) -> Subnet:
    """A subnet by name: the ends of the space, or its middle.

    Args:
        space: to choose from.
        name: ``smallest``, ``largest`` or ``middle``: the middle embed_dim and depth, with the most heads and
            the widest MLP, which for T is d216, 13 layers, 4 heads, ratio 4.
    """
    if name != "middle":
        return getattr(space, name)()
    width = space.embed_dim[len(space.embed_dim) // 2]
    depth = space.depth[len(space.depth) // 2]
    heads, ratio = max(space.num_heads), max(space.mlp_ratio)
    return Subnet(width, depth, (heads,) * depth, (ratio,) * depth)


@dataclass(frozen=True)
class Case:
    """One subnet, one batch: what the rivals run.

    Args:
        space: name of the space.
        subnet: the subnet.
        name: smallest, middle or largest.
        batch: images.
        device: where.
        dtype: of products; below fp32 by autocast.
    """

    space: str
    subnet: Subnet
    name: str
    batch: int
    device: torch.device
    dtype: torch.dtype

    def autocast(self) -> contextlib.AbstractContextManager:
        """The precision that the step runs in."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)


@dataclass
class Rival:
    """One network, ready to run on a case.

    Args:
        net: whose gradients are cleared.
        logits: the forward pass on the case's images.
        case: what it runs.
        labels: (B,) class indices.
        choose: makes it run another subnet from now on; a dense rival cannot.
    """

    net: nn.Module
    logits: Callable[[], Tensor]
    case: Case
    labels: Tensor
    choose: Callable[[Subnet], None] | None = None

    def __post_init__(self) -> None:
        self.parameters = list(self.net.parameters())

    def loss(self) -> Tensor:
        """Forward pass and cross entropy, under autograd, as growtas.train runs them."""
        with self.case.autocast(), direct_gradients():
            return F.cross_entropy(self.logits().float(), self.labels)

    def step(self) -> None:
        """One training step; the net is in training mode already."""
        self.loss().backward()
        self.clear()

    def clear(self) -> None:
        """Set all gradients to None; and let the weights look new, as after a step of the optimizer.

        What is derived from weights once per optimizer step then counts in every step that is timed.
        """
        for parameter in self.parameters:
            parameter.grad = None
        torch.autograd.graph.increment_version(self.parameters)

    def forward(self) -> Tensor:
        """One forward pass without gradients; the net is in eval mode already."""
        with torch.no_grad(), self.case.autocast():
            return self.logits()


def rivals(case: Case, ways: tuple[str, ...], seed: int = 0) -> dict[str, Rival]:
    """The networks of a case; growtas' and the published one have the same weights.

    Args:
        case: what they run.
        ways: of :data:`WAYS`.
        seed: of weights and images.
    """
    generator = torch.Generator().manual_seed(seed)
    space = load_space(case.space)
    net = Supernet(space, num_classes=1000)
    with torch.no_grad():
        for name, parameter in net.named_parameters():  # biases of 0 and scales of 1 would hide mistakes
            noise = 0.02 * torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise + (1 if "norm" in name and name.endswith("weight") else 0))
    shape = (case.batch, space.in_channels, space.image_size, space.image_size)
    images = torch.randn(shape, generator=generator).to(case.device)
    labels = torch.randint(1000, (case.batch,), generator=generator).to(case.device)

    def rival(way: str) -> Rival:
        chosen = {"subnet": case.subnet}

        def choose(subnet: Subnet) -> None:
            chosen["subnet"] = subnet

        if way == "growtas":
            own = net.to(case.device)
            return Rival(own, lambda: own(images, chosen["subnet"]), case, labels, choose)
        if way == "published":
            copy = as_published(net, case.subnet).to(case.device)
            return Rival(copy, lambda: copy(images, chosen["subnet"]), case, labels, choose)
        torch.manual_seed(seed)
        if way == "masked":
            return masked(net, case, images, labels)
        from common.dense_vit import dense_vit

        dense = dense_vit(case.subnet, net.dims, net.num_classes).to(case.device)
        run = compiled(dense) if way == "compiled" else dense
        return Rival(dense, lambda: run(images), case, labels)

    return {way: rival(way) for way in ways}


def compiled(net: nn.Module) -> Callable:
    """A network under torch.compile, one graph for one size."""
    return torch.compile(net, dynamic=False, backend=COMPILER)


def masked(net: Any, case: Case, images: Tensor, labels: Tensor) -> Rival:
    """The masked network of the supernet's size, compiled once for all subnets."""
    from common.masked_vit import MaskedViT, masks_of

    wide = MaskedViT(net.dims, net.num_classes).to(case.device)
    run = compiled(wide)
    chosen = {"masks": masks_of(case.subnet, net.dims, case.device)}

    def choose(subnet: Subnet) -> None:
        chosen["masks"] = masks_of(subnet, net.dims, case.device)

    return Rival(wide, lambda: run(images, chosen["masks"]), case, labels, choose)


def product_flops(case: Case, num_classes: int = 1000) -> int:
    """FLOPs of a training step's products with weights: forward, input gradient and weight gradient.

    What is made again in the backward pass does not count, nor does attention; the images need no gradient.

    Args:
        case: subnet and batch.
        num_classes: outputs of the head.
    """
    space, subnet = load_space(case.space), case.subnet
    d, patch = subnet.embed_dim, space.in_channels * space.patch_size**2
    per_token = sum(
        4 * d * heads * space.head_dim + 2 * d * hidden
        for heads, hidden in zip(subnet.num_heads, subnet.hidden_dims, strict=True)
    )
    stem = 2 * (space.num_tokens - 1) * patch * d
    return 2 * case.batch * (3 * space.num_tokens * per_token + stem + 3 * d * num_classes)


def bound_of(case: Case, direction: str = "step") -> dict[str, float]:
    """FLOPs of a pass, and the bytes that any implementation moves that computes branch by branch.

    Products with weights three times, and attention's two products forward and five backward. Every residual
    branch reads its input and writes its output forward, and reads dy and x and writes dx backward, in fp32;
    weights are read twice in the dtype of products, their gradients written once in fp32.

    Args:
        case: subnet, batch and dtype.
        direction: ``step``, or ``forward`` for that pass alone.
    """
    space, subnet, step = load_space(case.space), case.subnet, direction == "step"
    tokens, e, d = space.num_tokens, space.head_dim, subnet.embed_dim
    attention = sum(2 * case.batch * heads * tokens * tokens * e for heads in subnet.num_heads)
    weights = sum(
        4 * d * heads * e + 2 * d * hidden
        for heads, hidden in zip(subnet.num_heads, subnet.hidden_dims, strict=True)
    )
    stream = 2 * subnet.depth * 4 * case.batch * tokens * d
    products, size = product_flops(case), case.dtype.itemsize
    if step:
        return {"flops": products + 7 * attention, "bytes": 5 * stream + (2 * size + 4) * weights}
    stem = 2 * case.batch * (tokens - 1) * space.in_channels * space.patch_size**2 * d
    return {
        "flops": (products + stem) // 3 + 2 * attention,
        "bytes": 2 * stream + size * weights,
    }


def bias_order(bias: Tensor, heads: int, head_dim: int) -> Tensor:
    """growtas' interleaved qkv bias (or its gradient) in the published order: all of q, of k, of v."""
    used = 3 * heads * head_dim
    return torch.cat((bias[:used].view(-1, 3).t().flatten(), bias[used:]))


def as_published(net: Any, subnet: Subnet) -> PublishedViT:
    """The published network that computes what growtas' computes for a subnet."""
    copy = PublishedViT(net)
    copy.load_state_dict(net.state_dict())
    with torch.no_grad():
        for block, heads in zip(copy.blocks, subnet.num_heads, strict=False):
            block.attn.qkv.bias.copy_(bias_order(block.attn.qkv.bias, heads, net.dims.head_dim))
    return copy


def check(case: Case, found: dict[str, Rival]) -> dict[str, float]:
    """Compare growtas with the published way before anything is timed.

    Returns:
        The relative differences of logits and of all gradients taken together.

    Raises:
        ArithmeticError: they are too large; what is timed would not be the same thing.
    """
    growtas, published = found["growtas"], found["published"]
    for rival in (growtas, published):
        rival.net.eval()
    expected = published.forward().double()
    logits = ((growtas.forward().double() - expected).norm() / expected.norm()).item()
    for rival in (growtas, published):
        rival.net.train()
        rival.loss().backward()
    wanted = dict(published.net.named_parameters())
    heads, head_dim = case.subnet.num_heads, growtas.net.dims.head_dim
    wrong = total = 0.0
    for name, parameter in growtas.net.named_parameters():
        own, other = parameter.grad, wanted[name].grad
        if own is None or other is None:
            if (own is None) != (other is None):
                raise ArithmeticError(f"only one of growtas and the published way has a gradient of {name}")
            continue
        if name.endswith("qkv.bias"):
            own = bias_order(own, heads[int(name.split(".")[1])], head_dim)
        wrong += (own.double() - other.double()).square().sum().item()
        total += other.double().square().sum().item()
    for rival in (growtas, published):
        rival.clear()
    difference = {"logits": logits, "gradients": (wrong / total) ** 0.5}
    limit = TOLERANCE[case.dtype]
    for what, value in difference.items():
        if not value <= limit:
            raise ArithmeticError(
                f"growtas and the published way differ by {value:.2g} in their {what}, over {limit:g}"
            )
    return difference


def costs(case: Case, rival: Rival) -> dict[str, Any]:
    """The bytes a rival keeps for its backward pass, per image, and how many operations its step runs."""
    rival.net.train()
    saved = counting.saved_bytes(rival.loss, [rival.net])
    if case.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(case.device)
        before = torch.cuda.memory_allocated(case.device)
        rival.step()
        torch.cuda.synchronize(case.device)
        peak = torch.cuda.max_memory_allocated(case.device) - before
        found = {"operations": counting.count_launches(rival.step), "peak_per_image": peak // case.batch}
    else:
        found = {"operations": counting.count_operations(rival.step).total()}
    return {"saved_per_image": saved // case.batch, **found}
