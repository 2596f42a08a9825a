"""Cases of a race: the operations of a space, by dtype and class of shared widths, at the space's own sizes.

A choice holds for an operation, a dtype and a class of widths: that is a case. Its jobs are calls of public
operations, as training makes them. An operation that has no public function (norm + qkv, fc1 + GELU) is raced
within the branch that it is part of, everything else in the branch being the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from growtas.ops import dispatch, one_call
from growtas.space import SearchSpace

HALF = ("bfloat16", "float16")
DTYPES = ("float32", *HALF)
BATCH = {"cuda": 128, "cpu": 8}
"""Images per device where nobody says."""


@dataclass(frozen=True)
class Job:
    """One call to check and to time.

    Args:
        call: the public operation: layer_norm, linear, qkv, relative_attention, mlp or attention_branch.
        name: the size, for the record.
        dtype: of GEMMs; for layer_norm of the result.
        x_dtype: of the activations that come in: of the residual stream for layer_norm and branches.
        batch, tokens: of x.
        d, heads, hidden: of the subnet's layer.
        rows, inner: of a linear's slice: n and k.
        shared: of a linear's weight: N_max and K_max.
        D, H, M, e: shared embed_dim, heads and MLP width; head_dim.
        side: rows and columns of patches.
        clamp: of the relative position.
    """

    call: str
    name: str
    dtype: str
    x_dtype: str
    batch: int
    tokens: int
    d: int
    heads: int
    hidden: int
    D: int
    H: int
    M: int
    e: int
    side: int
    clamp: int
    rows: int = 0
    inner: int = 0
    shared: tuple[int, int] = (0, 0)

    @classmethod
    def parse(cls, values: dict[str, Any]) -> Job:
        """From the fields as JSON has them."""
        return cls(**{**values, "shared": tuple(values["shared"])})


@dataclass(frozen=True)
class Case:
    """The jobs that decide one choice.

    Args:
        op: key of growtas.ops.dispatch.OPERATIONS.
        dtype, width_class: as the record's choices have them.
        jobs: to check and to time.
        checks: only to check: the branches where the operation's other steps run.
    """

    op: str
    dtype: str
    width_class: str
    jobs: tuple[Job, ...]
    checks: tuple[Job, ...]

    def identity(self) -> dict[str, Any]:
        """How a record says that this case was finished."""
        sizes = sorted({f"{job.name} x{job.batch} {job.dtype}" for job in self.jobs})
        return {"op": self.op, "dtype": self.dtype, "class": self.width_class, "sizes": sizes}

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON has them."""
        return asdict(self)

    @classmethod
    def parse(cls, values: dict[str, Any]) -> Case:
        """From the fields as JSON has them."""
        jobs = {name: tuple(map(Job.parse, values[name])) for name in ("jobs", "checks")}
        return cls(**{**values, **jobs})

    def __str__(self) -> str:
        return f"{self.op} {self.dtype} {self.width_class}"


def cases(space: SearchSpace, batch: int, dtypes: Sequence[str], kind: str) -> list[Case]:
    """The cases of a space, parts of branches before the fused operations that stand for several of them.

    Args:
        space: whose sizes are taken.
        batch: images per device.
        dtypes: of GEMMs.
        kind: of device: ``cpu`` or ``cuda``.
    """
    found: dict[tuple[str, str, str], tuple[list[Job], list[Job]]] = {}
    for dtype in dtypes:
        for op, key_dtype, width, jobs, checks in _of_dtype(space, batch, dtype, kind):
            own = found.setdefault((op, key_dtype, dispatch.shape_class(width)), ([], []))
            for kept, new in zip(own, (jobs, checks), strict=True):
                kept.extend(job for job in new if job not in kept)
    order = ("qkv", "relative_attention", "layer_norm", "linear", "linear_gelu", "mlp", "norm_qkv")
    made = [Case(*key, tuple(jobs), tuple(checks)) for key, (jobs, checks) in found.items()]
    return sorted(made, key=lambda case: (order.index(case.op), DTYPES.index(case.dtype), case.width_class))


Entry = tuple[str, str, int, list[Job], list[Job]]


def _of_dtype(space: SearchSpace, batch: int, dtype: str, kind: str) -> Iterator[Entry]:
    """Operation, its dtype, its shared width, jobs and checks."""
    sizes = _Sizes(space, batch, dtype)
    layers = _three(_layers(space))
    mlps = [sizes.job("mlp", *layer) for layer in layers]
    attentions = [sizes.job("attention_branch", *layer) for layer in layers]
    middle = len(layers) // 2
    mlp, attention = mlps[middle : middle + 1], attentions[middle : middle + 1]
    D, M, inner = space.super_embed_dim, space.super_hidden_dim, space.super_num_heads * space.head_dim

    # Under autocast the residual stream is in fp32, and the result in the dtype of the GEMMs.
    norms = [sizes.job("layer_norm", d, *layers[0][1:], x_dtype="float32") for d in space.embed_dim]
    rows = batch * space.num_tokens
    if kind == "cpu" and dtype == "float32" and rows * D * M <= one_call.MOST_OPERATIONS:
        # There LayerNorm in C++ means whole branches in one call: that is what a choice of it decides.
        yield "layer_norm", "float32", D, [*mlps, *attentions], norms
    else:
        yield "layer_norm", "float32", D, _three(norms), mlp
    yield "qkv", dtype, D, [sizes.job("qkv", *layer) for layer in layers], attention
    heads = [(layers[-1][0], h, layers[-1][2]) for h in _three(space.num_heads)]
    yield (
        "relative_attention",
        dtype,
        space.head_dim,
        [sizes.job("relative_attention", *one) for one in heads],
        attention,
    )
    patch = space.in_channels * space.patch_size**2
    for d, h, hidden in layers:
        yield "linear", dtype, D, [sizes.linear("fc1", d, h, hidden, (hidden, d), (M, D))], mlp
        proj = sizes.linear("proj", d, h, hidden, (d, h * space.head_dim), (D, inner))
        yield "linear", dtype, inner, [proj], attention
        yield "linear", dtype, M, [sizes.linear("fc2", d, h, hidden, (d, hidden), (D, M))], mlp
        yield "linear", dtype, patch, [sizes.linear("patches", d, h, hidden, (d, patch), (D, patch))], []
    yield "linear_gelu", dtype, D, mlps, []
    yield "mlp", dtype, D, mlps, []
    yield "norm_qkv", dtype, D, attentions, []


def _layers(space: SearchSpace) -> list[tuple[int, int, int]]:
    """embed_dim, heads and MLP width of every layer of the space, narrow ones first."""
    return [
        (d, heads, int(d * ratio))
        for d in space.embed_dim
        for heads in space.num_heads
        for ratio in space.mlp_ratio
    ]


def _three(values: Sequence) -> list:
    """The first, the middle and the last."""
    return [values[i] for i in dict.fromkeys((0, len(values) // 2, len(values) - 1))]


class _Sizes:
    """Makes jobs of one space."""

    def __init__(self, space: SearchSpace, batch: int, dtype: str) -> None:
        self.dtype = dtype
        self.shared: dict[str, Any] = {
            "batch": batch,
            "tokens": space.num_tokens,
            "D": space.super_embed_dim,
            "H": space.super_num_heads,
            "M": space.super_hidden_dim,
            "e": space.head_dim,
            "side": space.image_size // space.patch_size,
            "clamp": space.max_relative_position,
        }

    def job(self, call: str, d: int, heads: int, hidden: int, x_dtype: str | None = None) -> Job:
        sizes = {
            "layer_norm": f"d{d}",
            "qkv": f"d{d} h{heads}",
            "relative_attention": f"h{heads} e{self.shared['e']}",
            "mlp": f"d{d} m{hidden}",
            "attention_branch": f"d{d} h{heads}",
        }[call]
        branch = call in ("mlp", "attention_branch")
        x_dtype = x_dtype or ("float32" if branch else self.dtype)
        return Job(
            call, f"{call} {sizes}", self.dtype, x_dtype, d=d, heads=heads, hidden=hidden, **self.shared
        )

    def linear(
        self, role: str, d: int, heads: int, hidden: int, used: tuple[int, int], shared: tuple[int, int]
    ) -> Job:
        name, (rows, inner) = f"{role} {used[1]}→{used[0]}", used
        return Job(
            "linear", name, self.dtype, self.dtype, d=d, heads=heads, hidden=hidden, rows=rows, inner=inner,
            shared=shared, **self.shared,
        )  # fmt: skip


def torch_dtype(name: str) -> torch.dtype:
    """The dtype of a name."""
    return getattr(torch, name)
