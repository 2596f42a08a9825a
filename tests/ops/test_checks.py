"""Arguments of every public operation: strided ones count as what they hold, wrong ones end in a sentence.

The C++ code reads, and writes gradients of, vectors by their length: nothing short, strided or expanded may
reach it.
"""

from __future__ import annotations

import pytest
import torch

from growtas import ops
from growtas.errors import UsageError
from growtas.ops.linear import cpu as linear_cpu

B, N, D, HIDDEN, HEADS, E, GRID = 3, 7, 12, 20, 2, 8, (2, 3)
FULL, FULL_HIDDEN, FULL_HEADS = 16, 24, 3
SIZES = {"out_features", "num_heads", "head_dim", "hidden_dim"}


def flat_arguments(op: str) -> dict:
    """Arguments by name, pairs spread: vectors and matrices of shared size, x and whole numbers."""
    torch.manual_seed(0)
    normal = torch.randn
    x, channels, full = normal(B, N, D), 3 * FULL_HEADS * E, FULL_HEADS * E
    norm = {"norm_weight": normal(FULL), "norm_bias": normal(FULL)}
    qkv = {"qkv_weight": normal(channels, FULL), "qkv_bias": normal(channels)}
    tables = {name: normal(4, E) for name in ("key_v", "key_h", "value_v", "value_h")}
    heads = {"num_heads": HEADS, "head_dim": E}
    return {
        "layer_norm": {"x": x, **norm},
        "linear": {
            "x": x, "weight": normal(FULL_HIDDEN, FULL), "bias": normal(FULL_HIDDEN), "out_features": HIDDEN,
        },
        "qkv": {"x": x, **qkv, **heads},
        "relative_attention": {"x": normal(3, B, HEADS, N, E), **tables},
        "mlp": {
            "x": x, **norm, "w1": normal(FULL_HIDDEN, FULL), "b1": normal(FULL_HIDDEN),
            "w2": normal(FULL, FULL_HIDDEN), "b2": normal(FULL), "hidden_dim": HIDDEN, "scale": torch.rand(B),
        },
        "attention_branch": {
            "x": x, **norm, **qkv, **tables, **heads, "proj_weight": normal(FULL, full),
            "proj_bias": normal(FULL), "scale": torch.rand(B),
        },
    }[op]  # fmt: skip


def run(op: str, a: dict) -> torch.Tensor:
    """The public operation on flat arguments."""
    tables = tuple(a[name] for name in ("key_v", "key_h", "value_v", "value_h") if name in a)
    norm = a.get("norm_weight"), a.get("norm_bias")
    if op == "layer_norm":
        return ops.layer_norm(a["x"], *norm)
    if op == "linear":
        return ops.linear(a["x"], a["weight"], a["bias"], a["out_features"])
    if op == "qkv":
        return ops.qkv(a["x"], a["qkv_weight"], a["qkv_bias"], a["num_heads"], a["head_dim"])
    if op == "relative_attention":
        return ops.relative_attention(a["x"], *tables, GRID)
    if op == "mlp":
        fc1, fc2 = (a["w1"], a["b1"]), (a["w2"], a["b2"])
        return ops.mlp(a["x"], norm, fc1, fc2, a["hidden_dim"], scale=a["scale"])
    qkv, proj = (a["qkv_weight"], a["qkv_bias"]), (a["proj_weight"], a["proj_bias"])
    return ops.attention_branch(
        a["x"], norm, qkv, tables, proj, a["num_heads"], a["head_dim"], GRID, scale=a["scale"]
    )


def result_and_gradients(op: str, arguments: dict) -> list[torch.Tensor]:
    leaves = {n: a.detach().requires_grad_() for n, a in arguments.items() if isinstance(a, torch.Tensor)}
    leaves |= {n: arguments[n] for n in ("scale",) if n in arguments}  # it has no gradient
    y = run(op, {**arguments, **leaves})
    gradients = torch.autograd.grad(
        y, [leaf for n, leaf in leaves.items() if n != "scale"], torch.ones_like(y)
    )
    return [y.detach(), *gradients]


OPS = ("layer_norm", "linear", "qkv", "relative_attention", "mlp", "attention_branch")
TENSORS = [(op, name) for op in OPS for name, a in flat_arguments(op).items() if isinstance(a, torch.Tensor)]


@pytest.fixture(params=["torch", "cpu"])
def backend(request, monkeypatch):
    """A backend that reads any strides, C++ at any size; Triton's launchers are behind the same checks."""
    monkeypatch.setattr(linear_cpu, "MIN_OPERATIONS", 1)
    with ops.use(request.param):
        yield


def strided(x: torch.Tensor) -> torch.Tensor:
    """The same values, every second element of a larger tensor of NaN along each axis."""
    whole = torch.full([2 * size for size in x.shape], float("nan"))
    view = whole[tuple(slice(None, None, 2) for _ in x.shape)]
    return view.copy_(x)


@pytest.mark.parametrize("op, name", TENSORS)
def test_a_strided_argument_is_what_it_holds(op, name, backend):
    arguments = flat_arguments(op)
    wanted = result_and_gradients(op, arguments)
    other = {**arguments, name: strided(arguments[name])}
    for got, expected in zip(result_and_gradients(op, other), wanted, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("op, name", [(op, n) for op, n in TENSORS if flat_arguments(op)[n].dim() == 1])
def test_an_expanded_vector_is_what_it_holds(op, name, backend):
    arguments = flat_arguments(op)
    arguments[name] = torch.full_like(arguments[name], 0.7)
    wanted = result_and_gradients(op, arguments)
    other = {**arguments, name: torch.tensor([0.7]).expand(arguments[name].shape)}
    for got, expected in zip(result_and_gradients(op, other), wanted, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


def wrong_tensors(x: torch.Tensor, is_x: bool):
    """Versions of an argument that no operation takes."""
    yield x.int()
    yield x.to(torch.complex64)
    yield x[0] if x.dim() > 2 or not is_x else x.flatten()
    yield x[..., :0]
    if not is_x:
        yield x.to("meta")
        yield x.double()  # beside activations in fp32
        yield x[None]
    if x.dim() == 1:
        yield x[:-1]
        yield torch.cat((x, x))
    elif not is_x:
        yield x[: x.shape[0] // 4]
        yield x[:, : x.shape[1] // 4]


@pytest.mark.parametrize("op, name", TENSORS)
def test_a_wrong_tensor_is_a_sentence(op, name):
    arguments = flat_arguments(op)
    for wrong in wrong_tensors(arguments[name], name == "x"):
        if op in ("layer_norm", "linear") and name == "x" and wrong.is_floating_point() and wrong.numel():
            continue  # any number of leading axes
        if name == "scale" and wrong.dtype is torch.float64:
            continue  # converted: a factor, no parameter
        with pytest.raises(UsageError) as caught:
            run(op, {**arguments, name: wrong})
        assert str(caught.value).endswith((".", "?")), (wrong.shape, wrong.dtype)


@pytest.mark.parametrize("op, name", [(op, n) for op in OPS for n in flat_arguments(op) if n in SIZES])
@pytest.mark.parametrize("size", [0, -1, 1000])
def test_a_slice_that_is_empty_or_too_large_is_a_sentence(op, name, size):
    with pytest.raises(UsageError, match="needs a .* slice"):
        run(op, {**flat_arguments(op), name: size})


@pytest.mark.parametrize("grid", [(-2, -3), (0, 3), (3, 0)])
def test_a_grid_without_places_is_a_sentence(grid):
    qkv, *tables = (torch.randn(3, B, HEADS, 1 + max(0, grid[0] * grid[1]), E), *torch.randn(4, 4, E))
    with pytest.raises(UsageError, match="a cls token"):
        ops.relative_attention(qkv, *tables, grid)


def test_a_qkv_weight_that_is_not_three_times_as_high_as_its_channels_is_a_sentence():
    arguments = flat_arguments("qkv")
    arguments |= {name: arguments[name][:-1] for name in ("qkv_weight", "qkv_bias")}
    with pytest.raises(UsageError, match="a multiple of 3"):
        run("qkv", arguments)


@pytest.mark.parametrize("op", OPS)
def test_an_empty_batch_has_an_empty_result_and_zero_gradients(op, backend):
    arguments = flat_arguments(op)
    axis = 1 if op == "relative_attention" else 0
    arguments["x"] = arguments["x"].narrow(axis, 0, 0)
    if "scale" in arguments:
        arguments["scale"] = arguments["scale"][:0]
    y, dx, *gradients = result_and_gradients(op, arguments)
    assert y.numel() == 0 and dx.shape == arguments["x"].shape
    assert all(not gradient.any() for gradient in gradients)


@pytest.mark.parametrize("op", ["relative_attention", "attention_branch"])
@pytest.mark.parametrize("rows", [0, 1, 3])
def test_tables_of_no_clamp_are_a_sentence(op, rows):
    """All four alike: rows 2 * m + 2 for a clamp m of 0 or more, and not one less."""
    arguments = flat_arguments(op)
    arguments |= {name: torch.randn(rows, E) for name in ("key_v", "key_h", "value_v", "value_h")}
    with pytest.raises(UsageError, match="for one clamp m"):
        run(op, arguments)


@pytest.mark.parametrize("op", ["layer_norm", "mlp", "attention_branch"])
def test_a_dtype_that_cannot_be_is_a_sentence(op):
    a = flat_arguments(op)
    for dtype in (torch.int32, torch.float64):
        with pytest.raises(UsageError, match=f"{op} got (out_)?dtype in {str(dtype)[6:]}"):
            if op == "layer_norm":
                ops.layer_norm(a["x"], a["norm_weight"], a["norm_bias"], out_dtype=dtype)
            elif op == "mlp":
                norm = a["norm_weight"], a["norm_bias"]
                ops.mlp(a["x"], norm, (a["w1"], a["b1"]), (a["w2"], a["b2"]), HIDDEN, dtype=dtype)
            else:
                tables = tuple(a[name] for name in ("key_v", "key_h", "value_v", "value_h"))
                ops.attention_branch(
                    a["x"], (a["norm_weight"], a["norm_bias"]), (a["qkv_weight"], a["qkv_bias"]), tables,
                    (a["proj_weight"], a["proj_bias"]), HEADS, E, GRID, dtype=dtype,
                )  # fmt: skip
