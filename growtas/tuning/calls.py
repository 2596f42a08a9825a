"""Makes the tensors of a job and runs it: forward, and forward with backward, as training does.

Shapes and dtypes are those of growtas.tuning.cases. All that lies outside a slice of a shared weight is NaN:
a kernel that reads it fails its check. In 16 bits the GEMMs read shadows of the weights, as in training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from growtas import ops, shadow
from growtas.ops.shadows import refresh
from growtas.tuning.cases import Job, torch_dtype


@dataclass
class Call:
    """A job on tensors of its own.

    Args:
        job: the job.
        leaves: that gradients are taken of, by name.
        extra: what else the operation takes.
        gradient: of the result.
        dtype: of GEMMs.
        shadows: of the weights, kept alive.
    """

    job: Job
    leaves: dict[str, Tensor]
    extra: dict[str, Any]
    gradient: Tensor
    dtype: torch.dtype
    shadows: shadow.Shadows | None = None

    def forward(self) -> Tensor:
        """The result, with what the backward pass needs."""
        return _RUN[self.job.call](self.job, self.leaves, self.extra, self.dtype)

    def step(self) -> list[Tensor]:
        """The result and the gradients of all leaves."""
        y = self.forward()
        return [y.detach(), *torch.autograd.grad(y, list(self.leaves.values()), self.gradient)]

    def double(self) -> Call:
        """The same call in fp64, on the same numbers."""

        def wide(x: Any) -> Any:
            return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x

        leaves = {name: wide(x.detach()).requires_grad_() for name, x in self.leaves.items()}
        extra = {name: wide(x) for name, x in self.extra.items()}
        return Call(self.job, leaves, extra, wide(self.gradient), torch.float64)

    def bytes(self) -> int:
        """Of all its tensors."""
        own = [*self.leaves.values(), self.gradient]
        return sum(x.numel() * x.element_size() for x in own)


def make(job: Job, device: torch.device, seed: int) -> Call:
    """A job on random tensors.

    Args:
        job: its sizes and dtypes.
        device: where.
        seed: of the numbers.
    """
    draw = _Draw(device, seed)
    x_dtype, dtype = torch_dtype(job.x_dtype), torch_dtype(job.dtype)
    wide = job.heads * job.e
    x = draw(job.batch, job.tokens, job.d).to(x_dtype)
    leaves: dict[str, Tensor] = {"x": x}
    extra: dict[str, Any] = {"scale": None}
    weights: dict[str, tuple[tuple[int, int], tuple[int, int]]] = {}
    if job.call in ("layer_norm", "mlp", "attention_branch"):
        leaves |= {"norm_weight": 1 + draw.vector(job.d, job.D), "norm_bias": draw.vector(job.d, job.D)}
    if job.call == "linear":
        leaves["x"] = draw(job.batch, job.tokens, job.inner).to(x_dtype)
        weights["w"] = (job.rows, job.inner), job.shared
    if job.call in ("qkv", "attention_branch"):
        weights["qkv"] = (3 * wide, job.d), (3 * job.H * job.e, job.D)
    if job.call == "attention_branch":
        weights["proj"] = (job.d, wide), (job.D, job.H * job.e)
    if job.call == "mlp":
        weights["fc1"] = (job.hidden, job.d), (job.M, job.D)
        weights["fc2"] = (job.d, job.hidden), (job.D, job.M)
    for name, (used, shared) in weights.items():
        leaves[name] = draw.matrix(used, shared)
        leaves[f"{name}_bias"] = draw.vector(used[0], shared[0])
    if job.call == "relative_attention":
        leaves = {"qkv": _projected(job, x, draw)}
    if job.call in ("relative_attention", "attention_branch"):
        for name in ("key_v", "key_h", "value_v", "value_h"):
            leaves[name] = 0.1 * draw(2 * job.clamp + 2, job.e)
    if job.call in ("mlp", "attention_branch"):
        kept = torch.rand(job.batch, device=device, generator=draw.generator) < 0.9
        extra["scale"] = kept.float() / 0.9  # drop path
    leaves = {name: leaf.detach().requires_grad_() for name, leaf in leaves.items()}
    result = dtype if job.call not in ("mlp", "attention_branch") else x_dtype
    shadows = _shadows(job, leaves)
    refresh(shadows, dtype, device)
    call = Call(job, leaves, extra, torch.empty(0), dtype, shadows)
    with torch.no_grad():
        shape = call.forward().shape
    call.gradient = draw(*shape).to(result)
    return call


def _projected(job: Job, x: Tensor, draw: _Draw) -> Tensor:
    """Queries, keys and values with the strides that the projection in force gives them."""
    used, shared = (3 * job.heads * job.e, job.d), (3 * job.H * job.e, job.D)
    weight, bias = draw.matrix(used, shared), draw.vector(used[0], shared[0])
    shadows = shadow.Shadows([weight, bias], {0: job.e, 1: job.e})
    refresh(shadows, x.dtype, x.device)
    with torch.no_grad():
        return ops.qkv(x, weight, bias, job.heads, job.e)


def _shadows(job: Job, leaves: dict[str, Tensor]) -> shadow.Shadows:
    """Of the weights and biases of GEMMs."""
    own = [name for name in leaves if name.removesuffix("_bias") in ("w", "qkv", "proj", "fc1", "fc2")]
    own = [] if job.call == "relative_attention" else own  # there qkv is what comes in
    head_dims = {place: job.e for place, name in enumerate(own) if name.startswith("qkv")}
    return shadow.Shadows([leaves[name] for name in own], head_dims)


class _Draw:
    """Normal random tensors, in fp32."""

    def __init__(self, device: torch.device, seed: int) -> None:
        self.device, self.generator = device, torch.Generator(device).manual_seed(seed)

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(*shape, device=self.device, generator=self.generator)

    def vector(self, used: int, shared: int) -> Tensor:
        full = torch.full((shared,), torch.nan, device=self.device)
        full[:used] = 0.1 * self(used)
        return full

    def matrix(self, used: tuple[int, int], shared: tuple[int, int]) -> Tensor:
        full = torch.full(shared, torch.nan, device=self.device)
        full[: used[0], : used[1]] = self(*used) * used[1] ** -0.5
        return full


def _layer_norm(job: Job, t: dict[str, Tensor], extra: dict, dtype: torch.dtype) -> Tensor:
    return ops.layer_norm(t["x"], t["norm_weight"], t["norm_bias"], out_dtype=dtype)


def _linear(job: Job, t: dict[str, Tensor], extra: dict, dtype: torch.dtype) -> Tensor:
    return ops.linear(t["x"], t["w"], t["w_bias"], job.rows)


def _qkv(job: Job, t: dict[str, Tensor], extra: dict, dtype: torch.dtype) -> Tensor:
    return ops.qkv(t["x"], t["qkv"], t["qkv_bias"], job.heads, job.e)


_TABLES = ("key_v", "key_h", "value_v", "value_h")


def _relative_attention(job: Job, t: dict[str, Tensor], extra: dict, dtype: torch.dtype) -> Tensor:
    return ops.relative_attention(t["qkv"], *(t[name] for name in _TABLES), (job.side, job.side))


def _pair(t: dict[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    return t[name], t[f"{name}_bias"]


def _norm(t: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return t["norm_weight"], t["norm_bias"]


def _mlp(job: Job, t: dict[str, Tensor], extra: dict, dtype: torch.dtype) -> Tensor:
    return ops.mlp(
        t["x"], _norm(t), _pair(t, "fc1"), _pair(t, "fc2"), job.hidden, scale=extra["scale"], dtype=dtype
    )


def _attention_branch(job: Job, t: dict[str, Tensor], extra: dict, dtype: torch.dtype) -> Tensor:
    tables = tuple(t[name] for name in _TABLES)
    return ops.attention_branch(
        t["x"], _norm(t), _pair(t, "qkv"), tables, _pair(t, "proj"), job.heads, job.e, (job.side, job.side),
        scale=extra["scale"], dtype=dtype,
    )  # fmt: skip


_RUN = {
    "layer_norm": _layer_norm,
    "linear": _linear,
    "qkv": _qkv,
    "relative_attention": _relative_attention,
    "mlp": _mlp,
    "attention_branch": _attention_branch,
}
