"""Disturbances of the arguments that tests/op_draws.py draws: harmless ones, and those to be refused."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from op_draws import BF16, FP16, FP32, FP64, TABLES, Case, memory, negated

OTHER_DTYPES = (
    torch.int64, torch.int8, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2,
)  # fmt: skip
LARGEST = {"out_features": "weight", "hidden_dim": "w1", "num_heads": "qkv_weight", "head_dim": "qkv_weight"}


# ------------------------------------------------------------------------------------------------- harmless


def laid_out(case: Case, rng: random.Random, layout: str) -> None:
    """One tensor in other strides."""
    name = rng.choice(["x", *case.names(), *(["scale"] if case.tensors.get("scale") is not None else [])])
    value = case.tensors[name]
    case.tensors[name] = (
        negated(value) if layout == "negated" and value.dtype is FP32 else memory(case, value, rng, layout)
    )
    case.done.append(f"{layout} {name}")


def expanded(case: Case, rng: random.Random) -> None:
    """One tensor that repeats its first entry along an axis."""
    name = rng.choice(["x", *case.names(), *(["scale"] if case.tensors.get("scale") is not None else [])])
    value = case.tensors[name]
    axis = rng.randrange(value.dim())
    normed = name == "x" and case.op in ("layer_norm", "pooled_norm", "mlp", "attention_branch")
    if normed and axis == value.dim() - 1:
        return  # a constant row: what LayerNorm divides there is the rounding of its mean
    if value.shape[axis]:
        first = memory(case, value.narrow(axis, 0, 1), rng, "dense")
        case.tensors[name] = first.expand(value.shape)
        case.done.append(f"expanded {name} along {axis}")


def aliased(case: Case, rng: random.Random) -> None:
    """One parameter, or x, that is a view of another."""
    of = rng.choice(case.names())
    name = rng.choice(["x", *case.names()])
    shape, source = case.tensors[name].shape, case.tensors[of]
    if FP64 in (source.dtype, case.tensors[name].dtype) and source.dtype is not case.tensors[name].dtype:
        return
    if name == of or of in case.aliases or name in {source for source, _ in case.aliases.values()}:
        return
    if source.dim() == 2 and len(shape) == 1 and source.shape[0] >= shape[0] and rng.random() < 0.5:
        case.aliases[name] = of, lambda t: t[: shape[0], -1]
    elif source.numel() >= shape.numel():
        case.aliases[name] = of, lambda t: t.reshape(-1)[: shape.numel()].view(shape)
    else:
        return
    case.done.append(f"{name} is a view of {of}")


def empty(case: Case, rng: random.Random) -> None:
    """No image, or no token."""
    x = case.tensors["x"]
    axes = {"relative_attention": [1], "attention_branch": [0], "tokens": [0], "pooled_norm": [0]}
    axis = rng.choice(axes.get(case.op, list(range(x.dim() - 1)) or [None]))
    if axis is None or "x" in case.aliases or x.dim() == 1:
        return
    case.tensors["x"] = x.narrow(axis, 0, 0)
    if axis == 0 and case.tensors.get("scale") is not None:
        case.tensors["scale"] = case.tensors["scale"][:0]
    case.done.append(f"x of {tuple(case.tensors['x'].shape)}")


HARMLESS: tuple[Callable[[Case, random.Random], None], ...] = (
    lambda case, rng: laid_out(case, rng, "strided"),
    lambda case, rng: laid_out(case, rng, "transposed"),
    lambda case, rng: laid_out(case, rng, "negated"),
    expanded,
    aliased,
)


# --------------------------------------------------------------------------------------------------- refused


def _any(case: Case) -> list[str]:
    """Every tensor that no alias concerns."""
    bound = {*case.aliases, *(of for of, _ in case.aliases.values())}
    return [n for n, t in case.tensors.items() if t is not None and n not in bound]


def wrong_length(case: Case, rng: random.Random) -> None:
    """A vector, a table or a position that is too short or too long."""
    names = [n for n in _any(case) if n in (*case.names(1), *TABLES, "scale", "pos_embed")]
    if not names:
        return
    name = rng.choice(names)
    value = case.tensors[name]
    axis = 1 if name == "pos_embed" else 0
    size = value.shape[axis]
    if not size:
        return
    length = rng.choice([0, size - 1, size + 1, 2 * size + 1])
    case.tensors[name] = torch.cat([value] * 3, axis).narrow(axis, 0, length)
    case.refused = True
    case.done.append(f"{name} of length {length}")


def no_columns(case: Case, rng: random.Random) -> None:
    """A matrix, a cls token or a position without columns."""
    names = [n for n in case.free(2, 3) if n not in TABLES]
    if names:
        name = rng.choice(names)
        case.tensors[name] = case.tensors[name][..., :0]
        case.refused = True
        case.done.append(f"{name} of {tuple(case.tensors[name].shape)}")


def wrong_axes(case: Case, rng: random.Random) -> None:
    """An axis too many or too few."""
    names = [n for n in _any(case) if n != "x" or case.op not in ("layer_norm", "linear")]
    if names:
        name = rng.choice(names)
        value = case.tensors[name]
        case.tensors[name] = value[None] if rng.random() < 0.5 or not value.numel() else value.flatten()[0]
        case.refused = True
        case.done.append(f"{name} of {tuple(case.tensors[name].shape)}")


def wrong_dtype(case: Case, rng: random.Random) -> None:
    """Whole numbers, bool, complex, 8 bits, or fp64 beside narrower activations."""
    names = _any(case)
    if names:
        name = rng.choice(names)
        wide = name not in ("x", "scale") and case.tensors["x"].dtype is not FP64
        dtype = rng.choice([*OTHER_DTYPES, FP64] if wide else OTHER_DTYPES)
        case.tensors[name] = case.tensors[name].to(dtype)
        case.refused = True
        case.done.append(f"{name} in {dtype}")


def wrong_device(case: Case, rng: random.Random) -> None:
    """One tensor without memory beside others that have some."""
    names = _any(case)
    if names and len([t for t in case.tensors.values() if t is not None]) > 1:
        name = rng.choice(names)
        case.tensors[name] = case.tensors[name].to("meta")
        case.refused = True
        case.done.append(f"{name} on meta")


def wrong_number(case: Case, rng: random.Random) -> None:
    """A size of 0, less, too much, or no whole number; a grid of other tokens."""
    numbers = [n for n in case.numbers if n in LARGEST or n == "grid"]
    if not numbers:
        return
    name = rng.choice(numbers)
    if name == "grid":
        rows, columns = case.numbers["grid"]
        wrong = [
            (rows + 1, columns + 1),
            (0, columns),
            (-rows, -columns),
            (rows, columns, 1),
            (rows + 0.5, columns),
            (10**12, 10**12),
        ]
    else:
        full = case.tensors[LARGEST[name]].shape[0]
        wrong = [0, -1, full + 1, 10**15, 2.5, float("nan"), True, "3", None]
    case.numbers[name] = rng.choice(wrong)
    case.refused = True
    case.done.append(f"{name}={case.numbers[name]}")


def wrong_setting(case: Case, rng: random.Random) -> None:
    """A dtype that cannot be computed in, an unknown layout, a scale that wants a gradient."""
    name = rng.choice([*(n for n in ("dtype", "out_dtype", "bias_layout") if n in case.numbers), "scale"])
    if name == "scale":
        if case.tensors.get("scale") is None:
            return
        case.tensors["scale"] = case.tensors["scale"].clone().requires_grad_()
    else:
        wrong = (
            ("interleave", "")
            if name == "bias_layout"
            else (torch.int32, torch.complex64, torch.float8_e4m3fn)
        )
        case.numbers[name] = rng.choice(wrong)
    case.refused = True
    case.done.append(f"wrong {name}")


REFUSED = (wrong_length, no_columns, wrong_axes, wrong_dtype, wrong_device, wrong_number, wrong_setting)


def disturb(case: Case, rng: random.Random) -> Case:
    """None to three harmless disturbances, and in a third of the cases one that is to be refused."""
    if rng.random() < 0.08:
        empty(case, rng)
    for _ in range(rng.choice([0, 1, 1, 2, 3])):
        rng.choice(HARMLESS)(case, rng)
    for name, value in case.tensors.items():
        if value is not None and value.is_contiguous() and value.numel():
            case.tensors[name] = memory(case, value, rng, "dense")
    if rng.random() < 0.35:
        rng.choice(REFUSED)(case, rng)
    return case


GRADIENTS = ("dense", "strided", "transposed", "expanded", "negated")


def gradient(y: torch.Tensor, rng: random.Random, layout: str) -> torch.Tensor:
    """A gradient of y in some layout."""
    if layout == "expanded":
        return torch.full((1,) * y.dim(), 0.5, dtype=y.dtype).expand(y.shape)
    value = torch.randn(y.shape, generator=torch.Generator().manual_seed(rng.randrange(10**6))).to(y.dtype)
    if layout == "negated" and y.dtype is FP32:
        return negated(value)
    if layout == "strided" and y.numel():
        return torch.stack((value, torch.full_like(value, float("nan"))), -1)[..., 0]
    return value.transpose(0, -1).contiguous().transpose(0, -1) if layout == "transposed" else value


DTYPES = {
    "cpu": (FP32, FP32, FP32, BF16, FP16),
    "torch": (FP32, FP32, BF16, FP16, FP64),
    "triton": (FP32, FP16),  # the interpreter multiplies bfloat16 wrongly
    "cuda": (FP32, BF16, FP16),
}
