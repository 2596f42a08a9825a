"""The torch backend: against a materialised relative position, without copies, inside its slice."""

from __future__ import annotations

import pytest
import reference
import torch
from torch.profiler import ProfilerActivity, profile

from growtas import ops
from growtas.errors import UsageError
from growtas.ops import dispatch
from growtas.ops.qkv import reference as qkv_reference


@pytest.fixture(autouse=True)
def _torch_backend():
    with dispatch.use("torch"):
        yield


# -- attention against the published formulation ----------------------------------------------------------


def materialised(qkv, key_v, key_h, value_v, value_h, grid):
    """Attention with the full (N, N, e) relative position, as the paper defines it."""
    rows, columns = grid
    clamp = key_v.shape[0] // 2 - 1
    place = torch.arange(rows * columns)

    def indices(coordinate):
        distance = coordinate[None, :] - coordinate[:, None]
        inner = distance.clamp(-clamp, clamp) + clamp + 1
        full = torch.zeros(len(place) + 1, len(place) + 1, dtype=torch.long)  # row 0 for pairs with cls
        full[1:, 1:] = inner
        return full

    vertical, horizontal = indices(place // columns), indices(place % columns)
    relative_keys = key_v[vertical] + key_h[horizontal]
    relative_values = value_v[vertical] + value_h[horizontal]
    q, k, v = qkv
    logits = torch.einsum("bhid,bhjd->bhij", q, k) + torch.einsum("bhid,ijd->bhij", q, relative_keys)
    attention = (logits * q.shape[-1] ** -0.5).softmax(-1)
    out = torch.einsum("bhij,bhjd->bhid", attention, v)
    out = out + torch.einsum("bhij,ijd->bhid", attention, relative_values)
    return out.transpose(1, 2).flatten(2)


@pytest.mark.parametrize(
    ("grid", "clamp", "heads", "batch"),
    [((4, 4), 14, 2, 2), ((3, 5), 2, 1, 1), ((1, 1), 1, 3, 2), ((7, 2), 3, 1, 1)],
)
def test_attention_equals_the_materialised_form(grid, clamp, heads, batch):
    torch.manual_seed(0)
    tokens = grid[0] * grid[1] + 1
    leaves = [torch.randn(3, batch, heads, tokens, 5, dtype=torch.float64, requires_grad=True)]
    leaves += [torch.randn(2 * clamp + 2, 5, dtype=torch.float64, requires_grad=True) for _ in range(4)]
    ours, theirs = ops.relative_attention(*leaves, grid), materialised(*leaves, grid)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    weights = torch.randn_like(theirs)
    gradients = torch.autograd.grad((ours * weights).sum(), leaves)
    expected = torch.autograd.grad((theirs * weights).sum(), leaves)
    for name, a, b in zip(("qkv", "key_v", "key_h", "value_v", "value_h"), gradients, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")


# -- qkv and its two bias layouts -------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["interleaved", "published"])
@pytest.mark.parametrize(("heads", "width"), [(1, 5), (2, 8), (3, 7)])
def test_qkv_equals_slice_and_concatenate(layout, heads, width):
    torch.manual_seed(0)
    head_dim = 4
    x = torch.randn(2, 3, width, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3 * head_dim * 3, 8, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(3 * head_dim * 3, dtype=torch.float64, requires_grad=True)
    ours = ops.qkv(x, weight, bias, heads, head_dim, layout)

    active = 3 * head_dim * heads
    rows = torch.cat([torch.arange(part, active, 3) for part in range(3)])
    shift = bias[rows] if layout == "interleaved" else bias[:active]
    flat = torch.nn.functional.linear(x, weight[rows, :width], shift)
    theirs = flat.view(2, 3, 3, heads, head_dim).permute(2, 0, 3, 1, 4)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    seed = torch.randn_like(theirs)
    gradients = torch.autograd.grad((ours * seed).sum(), (x, weight, bias))
    expected = torch.autograd.grad((theirs * seed).sum(), (x, weight, bias))
    for a, b in zip(gradients, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", ["interleaved", "published"])
def test_rows_sorted_by_head_mean_the_same(layout):
    """As in a 16-bit shadow on a GPU, whose rows are q, k and v of one head after the other."""
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 3, 6), torch.randn(36, 8), torch.randn(36)
    dqkv = torch.randn(3, 2, 2, 3, 4)
    entries = reference.interleaved_bias(bias, 24, layout).view(2, 4, 3).transpose(1, 2).reshape(-1)
    assert torch.equal(reference.sorted_bias(bias, 24, 4, layout, torch.float32), entries)
    found = qkv_reference._sorted_gradients(dqkv, x.view(-1, 6), weight, bias, layout)
    wanted = reference.qkv_backward_weight(dqkv, x, weight, bias, layout)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_heads_nest():
    """A subnet with fewer heads computes exactly the first heads of one with more."""
    x, weight, bias = torch.randn(1, 3, 6), torch.randn(24, 6), torch.randn(24)
    two, one = (ops.qkv(x, weight, bias, heads, 4) for heads in (2, 1))
    torch.testing.assert_close(two[:, :, :1], one)


# -- only the slice is read, every element of a gradient is written ---------------------------------------


def poisoned(rows: int, columns: int, full_rows: int, full_columns: int) -> torch.Tensor:
    full = torch.full((full_rows, full_columns), float("nan"))
    full[:rows, :columns] = torch.randn(rows, columns)
    return full.requires_grad_()


def poisoned_vector(width: int, full: int) -> torch.Tensor:
    return poisoned(1, width, 1, full).detach()[0].clone().requires_grad_()


@pytest.mark.parametrize("name", ["layer_norm", "linear", "qkv"])
def test_surroundings_of_a_slice_leave_no_trace(name):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, requires_grad=True)
    if name == "layer_norm":
        weight, bias = poisoned_vector(5, 9), poisoned_vector(5, 9)
        y, active = ops.layer_norm(x, weight, bias), (5, None)
    elif name == "linear":
        weight, bias = poisoned(7, 5, 11, 9), poisoned_vector(7, 11)
        y, active = ops.linear(x, weight, bias, 7), (7, 5)
    else:
        weight, bias = poisoned(12, 5, 24, 9), poisoned_vector(12, 24)
        y, active = ops.qkv(x, weight, bias, 2, 2), (12, 5)
    dx, dweight, dbias = torch.autograd.grad(y.square().sum(), (x, weight, bias))
    for tensor in (y, dx, dweight, dbias):
        assert torch.isfinite(tensor).all()
    rows, columns = active
    assert dweight.shape == weight.shape and dbias.shape == bias.shape
    assert dweight[:rows, ...].abs().sum() > 0 and dbias[:rows].abs().sum() > 0
    assert not dweight[rows:].any() and not dbias[rows:].any()
    if columns is not None:
        assert not dweight[:, columns:].any()


# -- no copies -------------------------------------------------------------------------------------------


def allocated(run) -> int:
    """Bytes that a call allocates, those that it frees again included."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    return sum(
        e.nbytes()
        for e in profiler.profiler.kineto_results.events()
        if e.name() == "[memory]" and e.nbytes() > 0
    )


def test_products_allocate_their_results_and_nothing_else():
    """BLAS reads the slices through their strides: no weight is copied, forward or backward."""
    x, dy = torch.randn(64, 216), torch.randn(64, 756)
    weight, bias = torch.randn(1024, 256), torch.randn(1024)
    assert allocated(lambda: reference.linear_forward(x, weight, bias, 756)) == dy.nbytes
    assert allocated(lambda: reference.linear_backward_input(dy, weight, 216)) == x.nbytes
    gradients = weight.nbytes + bias.nbytes
    # the sum over rows is first made beside its place, which costs one more row
    assert allocated(lambda: reference.linear_backward_weight(dy, x, weight, bias)) <= gradients + 756 * 4

    tokens, heads = x.view(2, 32, 216), 3
    shared, shift = torch.randn(768, 256), torch.randn(768)
    out = torch.randn(3, 2, heads, 32, 64)
    project = lambda: reference.qkv_forward(tokens, shared, shift, heads, 64, "interleaved")  # noqa: E731
    assert allocated(project) == out.nbytes
    assert allocated(lambda: reference.interleaved(project())) == out.nbytes  # it is already so
    out = reference.interleaved(out)
    assert allocated(lambda: reference.qkv_backward_input(out, shared, 216)) == x.nbytes
    used = allocated(lambda: reference.qkv_backward_weight(out, tokens, shared, shift, "interleaved"))
    assert used <= shared.nbytes + shift.nbytes + 3 * 192 * 4


# -- mixed precision and errors ---------------------------------------------------------------------------


def test_weight_gradients_keep_the_weight_dtype():
    x = torch.randn(4, 6, dtype=torch.bfloat16, requires_grad=True)
    weight, bias = torch.randn(8, 8, requires_grad=True), torch.randn(8, requires_grad=True)
    y = ops.linear(x, weight, bias, 5)
    dx, dweight, dbias = torch.autograd.grad(y.float().sum(), (x, weight, bias))
    assert y.dtype == dx.dtype == torch.bfloat16
    assert dweight.dtype == dbias.dtype == torch.float32


def test_slices_larger_than_the_weight_are_refused():
    with pytest.raises(UsageError, match=r"linear needs a \(9, 5\) slice, but the shared weight is \(8, 8\)"):
        ops.linear(torch.randn(2, 5), torch.randn(8, 8), None, 9)
    with pytest.raises(UsageError, match="layer_norm got 9 channels, but the shared weight has 8"):
        ops.layer_norm(torch.randn(2, 9), torch.randn(8), torch.randn(8))
    with pytest.raises(UsageError, match="4 heads of 2"):
        ops.qkv(torch.randn(1, 2, 5), torch.randn(18, 8), None, 4, 2)
    with pytest.raises(UsageError, match="Did you mean 'published'"):
        ops.qkv(torch.randn(1, 2, 5), torch.randn(18, 8), None, 2, 2, "publish")
    with pytest.raises(UsageError, match="got 8 tokens, but a 2 x 3 grid makes 6, or 7 with a cls token"):
        ops.relative_attention(torch.randn(3, 1, 1, 8, 4), *[torch.randn(4, 4)] * 4, (2, 3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_layer_norm_computes_in_fp32(dtype):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(5, 24).to(dtype) + 3, torch.randn(30), torch.randn(30)
    found = reference.layer_norm_forward(x, weight, bias, 1e-5, dtype)
    wanted = reference.layer_norm_forward(x.float(), weight, bias, 1e-5, dtype)
    assert found[0].dtype is dtype and found[1].dtype is found[2].dtype is torch.float32
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
