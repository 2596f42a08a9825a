"""One kernel's job at one size, and the ways to do it: what each_kernel.py checks and times.

Activations are in a 16-bit dtype on a GPU, shared weights in fp32, the residual stream in fp32: as in
training under autocast. growtas' launchers are looked up when a way is built, by the names that all back
ends share, so that one that is missing costs that way alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from common.products import SPACES
from growtas import load_space
from growtas.ops.dispatch import FOLLOWERS, OPERATIONS
from growtas.shadow import Shadows

Call = Callable[[], Sequence[Tensor]]


def launcher(backend: str, name: str) -> Callable:
    """A launcher of a backend, by the name that all backends share.

    Args:
        backend: ``torch``, ``cpu``, ``cublas``, ``triton`` or ``cuda``.
        name: such as ``linear_gelu_forward``.

    Raises:
        LookupError: this backend has no such launcher.
    """
    for operation in (*OPERATIONS.values(), *FOLLOWERS.values()):
        if backend in operation.backends and hasattr(operation.load(backend), name):
            return getattr(operation.load(backend), name)
    raise LookupError(f"{backend} has no {name}")


def exists(work: Work, way: str) -> bool:
    """Return whether a way of growtas has its launchers; it is built to find out, on the smallest input."""
    try:
        work.ways[way](work.inputs(1, torch.device("cpu"), torch.float32, 0))
    except LookupError:
        return False
    return True


@dataclass(frozen=True)
class Layer:
    """One layer signature of a space, with the shared sizes around it.

    Args:
        space: T, S, B or another space's name.
        d, heads, hidden: of the subnet.
        D, H, M: embed_dim, heads and hidden width that are shared.
        e: head dim.
        grid: rows and columns of patches.
        clamp: of the relative position.
    """

    space: str
    d: int
    heads: int
    hidden: int
    D: int
    H: int
    M: int
    e: int = 64
    grid: tuple[int, int] = (14, 14)
    clamp: int = 14

    @property
    def tokens(self) -> int:
        """N, with cls."""
        return self.grid[0] * self.grid[1] + 1

    @property
    def width(self) -> int:
        """h * e."""
        return self.heads * self.e


def layers(names: Iterable[str]) -> Iterator[Layer]:
    """Every signature of spaces: embed_dim x heads x MLP width.

    Args:
        names: of T, S and B.
    """
    for name in names:
        space = load_space(SPACES[name])
        side = space.image_size // space.patch_size
        for d in space.embed_dim:
            for heads in space.num_heads:
                for ratio in space.mlp_ratio:
                    yield Layer(
                        name, d, heads, int(d * ratio), space.super_embed_dim, space.super_num_heads,
                        space.super_hidden_dim, space.head_dim, (side, side), space.max_relative_position,
                    )  # fmt: skip


@dataclass(frozen=True)
class Work:
    """A kernel's job at one size.

    Args:
        part: the bar that it belongs to: products, fused, layer_norm, attention or ends.
        op: the operation, such as ``mlp backward``.
        layer: the size.
        flops: of one call at a batch.
        moved: the least bytes of one call at a batch and at so many bytes per activation: each operand once.
        inputs: makes inputs from batch, device, dtype of activations and seed.
        ways: by name, what makes a call on some inputs; a call gives plain tensors to compare.
        baseline: the way that speed is relative to.
        truth: the same tensors in fp64, from inputs in fp64.
        yardstick: the way whose error is the measure for the others; the baseline where None.
        unchecked: ways that compute something else (attention without relative position).
        untimed: ways that are there for their error only.
    """

    part: str
    op: str
    layer: Layer
    flops: Callable[[int], int]
    moved: Callable[[int, int], int]
    inputs: Callable[[int, torch.device, torch.dtype, int], Any]
    ways: dict[str, Callable[[Any], Call]]
    baseline: str
    truth: Callable[[Any], Call]
    yardstick: str | None = None
    unchecked: tuple[str, ...] = ()
    untimed: tuple[str, ...] = ()

    def __str__(self) -> str:
        layer = self.layer
        return f"{layer.space} {self.op} d{layer.d} h{layer.heads} m{layer.hidden}"


class Inputs(dict):
    """Named tensors of one call; other values pass through :meth:`double`."""

    __getattr__ = dict.__getitem__

    def double(self) -> Inputs:
        """Floating tensors in fp64."""
        return Inputs(
            {
                name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
                for name, value in self.items()
            }
        )


def shadows_of(weights: Sequence[Tensor], dtype: torch.dtype, head_dims: Mapping[int, int]) -> Shadows:
    """16-bit shadows of shared weights, up to date; they live as long as what is returned."""
    found = Shadows(weights, head_dims)
    found.refresh(dtype)
    return found


def normal(device: torch.device, seed: int) -> Callable[..., Tensor]:
    """A source of normal random tensors: ``source(*shape, scale=1.0)``, in fp32; without values on meta."""
    if device.type == "meta":
        return lambda *shape, scale=1.0: torch.empty(*shape, device=device)
    generator = torch.Generator(device).manual_seed(seed)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, device=device, generator=generator) * scale

    return draw


def errors(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest of the RMS errors of some tensors, relative; infinite for NaN and wrong shapes."""
    if len(found) != len(expected):
        return float("inf")
    worst = 0.0
    for own, right in zip(found, expected, strict=True):
        if own.shape != right.shape:
            return float("inf")
        error = ((own.double() - right).norm() / right.norm().clamp_min(1e-30)).item()
        worst = max(worst, error if error == error else float("inf"))
    return worst


def check(work: Work, inputs: Any, dtype: torch.dtype) -> tuple[dict[str, float], dict[str, str]]:
    """Compare every way with fp64: at most twice the yardstick's error, plus a quarter of the dtype's step.

    Returns:
        The error of each way that passed, NaN for those that compute something else; why others did not.
    """
    expected = [tensor.clone() for tensor in work.truth(inputs.double())()]
    yardstick = work.yardstick or work.baseline
    limit = 2 * errors(work.ways[yardstick](inputs)(), expected) + torch.finfo(dtype).eps / 4
    passed, refused = {}, {}
    for name, make in work.ways.items():
        try:
            out = make(inputs)()
            found = float("nan") if name in work.unchecked else errors(out, expected)
        except Exception as error:  # one that cannot run must not end the measurement of the others
            refused[name] = f"{type(error).__name__}: {(str(error).splitlines() or ['no message'])[0]}"
            continue
        if found > limit:
            refused[name] = f"its error against fp64 is {found:.2g}, over {limit:.2g}"
        else:
            passed[name] = found
    return passed, refused


def differentiate(outputs: Tensor, leaves: Sequence[Tensor], gradient: Tensor) -> Call:
    """A call that runs only the backward pass, after a forward pass that ran once."""
    return lambda: torch.autograd.grad(outputs, leaves, gradient, retain_graph=True)
