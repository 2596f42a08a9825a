"""A branch in one native call: against the same branch step by step, and when it is taken."""

from __future__ import annotations

import importlib
import inspect

import pytest
import torch

import growtas
from growtas import ops
from growtas.ops import dispatch, one_call
from growtas.ops.attention_branch import one_call as attention_call
from growtas.ops.attention_branch.one_call import AttentionWeights
from growtas.ops.linear import one_call as linear_call
from growtas.ops.mlp import one_call as mlp_call
from growtas.ops.mlp.weights import MLPWeights

GRID, HEADS, HEAD_DIM, TOKENS, WIDTH, HIDDEN = (2, 3), 2, 8, 7, 12, 20
FULL_WIDTH, FULL_HIDDEN, FULL_HEADS = 16, 24, 3


@pytest.fixture(autouse=True)
def cpp():
    with dispatch.use("cpu"):
        yield


def shared(active: tuple[int, ...], full: tuple[int, ...]) -> torch.Tensor:
    """A shared parameter that is NaN outside its active prefix."""
    whole = torch.full(full, float("nan"))
    whole[tuple(slice(size) for size in active)] = torch.randn(active) * 0.3
    return whole.requires_grad_()


def arguments(branch: str, bias: bool) -> tuple[dict, list[torch.Tensor]]:
    """Keyword arguments of a branch, slices of wider weights, and the tensors that have gradients."""
    torch.manual_seed(0)
    x = torch.randn(3, TOKENS, WIDTH, requires_grad=True)
    norm = shared((WIDTH,), (FULL_WIDTH,)), shared((WIDTH,), (FULL_WIDTH,))

    def layer(active: tuple[int, int], full: tuple[int, int]) -> tuple:
        return shared(active, full), shared(active[:1], full[:1]) if bias else None

    if branch == "linear":
        weight, shift = layer((HIDDEN, WIDTH), (FULL_HIDDEN, FULL_WIDTH))
        given = {"x": x, "weight": weight, "bias": shift, "out_features": HIDDEN}
        tensors = (x, weight, shift)
    elif branch == "mlp":
        fc1 = layer((HIDDEN, WIDTH), (FULL_HIDDEN, FULL_WIDTH))
        fc2 = layer((WIDTH, HIDDEN), (FULL_WIDTH, FULL_HIDDEN))
        given = {"x": x, "norm": norm, "fc1": fc1, "fc2": fc2, "hidden_dim": HIDDEN}
        tensors = (x, *norm, *fc1, *fc2)
    else:
        channels, full = HEADS * HEAD_DIM, FULL_HEADS * HEAD_DIM
        qkv, proj = layer((3 * channels, WIDTH), (3 * full, FULL_WIDTH)), layer((WIDTH, channels), (16, full))
        tables = tuple(shared((4, HEAD_DIM), (4, HEAD_DIM)) for _ in range(4))  # clamp 1
        given = {"x": x, "norm": norm, "qkv": qkv, "tables": tables, "proj": proj}
        given |= {"num_heads": HEADS, "head_dim": HEAD_DIM, "grid": GRID}
        tensors = (x, *norm, *qkv, *tables, *proj)
    return given, [t for t in tensors if t is not None]


def run(branch: str, given: dict, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    y = getattr(ops, branch)(**given)
    seed = torch.linspace(-1, 1, y.numel()).view(y.shape)
    return [y, *torch.autograd.grad(y, tensors, seed)]


@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("branch", "options"),
    [
        ("mlp", {}),
        ("attention_branch", {"bias_layout": "interleaved"}),
        ("attention_branch", {"bias_layout": "published"}),
    ],
)
def test_one_call_is_what_the_steps_are(branch, options, bias, dropped, monkeypatch):
    given, tensors = arguments(branch, bias)
    given |= options
    if dropped:
        given["scale"] = torch.tensor([0.0, 1.25, 2.0])
    compare(branch, given, tensors, monkeypatch)


def test_qkv_in_another_layout_is_not_read_as_one_call_left_it():
    """A forward pass on another backend, with the backward pass on this one."""
    branch = importlib.import_module("growtas.ops.attention_branch")
    given, _ = arguments("attention_branch", True)
    weights = AttentionWeights(*given["norm"], *given["qkv"], *given["tables"], *given["proj"], None)
    with torch.no_grad():
        x, sizes = given["x"], (HEADS, HEAD_DIM, *GRID)
        y, *saved = branch.branch_forward(x, weights, *sizes, "interleaved", 1e-5, torch.float32)
        wanted = branch.branch_backward(y, x, weights, *saved, *GRID, "interleaved")
        saved[2] = saved[2].contiguous()
        found = branch.branch_backward(y, x, weights, *saved, *GRID, "interleaved")
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("bias", [False, True])
def test_a_linear_layer_is_one_call_too(bias, monkeypatch):
    given, tensors = arguments("linear", bias)
    compare("linear", given, tensors, monkeypatch)
    given["x"] = given["x"].detach()
    weight_only = run("linear", given, tensors[1:])  # images need no gradient
    assert not weight_only[1][HIDDEN:].any() and not weight_only[1][:, WIDTH:].any()
    assert weight_only[1].isfinite().all()


def compare(branch: str, given: dict, tensors: list[torch.Tensor], monkeypatch) -> None:
    """One call forward, one backward, the same bits each time, and the numbers of the steps."""
    calls = []
    places = {"linear": linear_call, "mlp": mlp_call, "attention": attention_call}
    for name in [f"{op}_{way}" for op in places for way in ("forward", "backward")]:
        place = places[name.split("_")[0]]
        own = getattr(place, name)
        monkeypatch.setattr(place, name, lambda *a, own=own, name=name: (calls.append(name), own(*a))[1])
    found = run(branch, given, tensors)
    assert [name.split("_")[1] for name in calls] == ["forward", "backward"]
    again = run(branch, given, tensors)
    monkeypatch.setattr(one_call, "MOST_OPERATIONS", 0)
    expected = run(branch, given, tensors)
    assert len(calls) == 4, "the steps are not one call"
    for one, twice, steps in zip(found, again, expected, strict=True):
        assert torch.equal(one, twice)
        torch.testing.assert_close(one, steps, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("branch", ["linear", "mlp", "attention_branch"])
def test_threads_change_no_bits(branch):
    given, tensors = arguments(branch, bias=True)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(run(branch, given, tensors))
    finally:
        torch.set_num_threads(before)
    for each in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], each, strict=True))


def test_it_is_left_to_small_branches_in_fp32_on_cpp():
    given, _ = arguments("mlp", bias=True)
    x, weights = given["x"], MLPWeights(*given["norm"], *given["fc1"], *given["fc2"], None)
    takes = mlp_call.takes_mlp
    assert takes(x, weights, HIDDEN, torch.float32)
    assert not takes(x, weights, HIDDEN, torch.bfloat16)
    assert not takes(x.double(), weights, HIDDEN, torch.float32)
    assert not takes(x[:0], weights, HIDDEN, torch.float32)
    strided = weights._replace(w1=weights.w1.t().contiguous().t())
    assert not takes(x, strided, HIDDEN, torch.float32)
    large = torch.empty(256, 197, 12).expand(256, 197, 12)
    assert not takes(large, weights, HIDDEN * 2, torch.float32)
    with dispatch.use("torch"):
        assert not takes(x, weights, HIDDEN, torch.float32)


def test_a_slice_larger_than_its_weight_is_refused():
    module = growtas.native.load("cpu")
    addresses = (1,) * 7
    with pytest.raises(ValueError, match="fc1 needs a slice of 25 x 12, and the weight is 24 x 16"):
        module.mlp_forward((3, TOKENS, WIDTH, 25, 16, 24, 16, 24), addresses, (1,) * 5, 1e-5)
    with pytest.raises(ValueError, match="the number of images is 0, and must be 1 or more"):
        module.mlp_forward((0, TOKENS, WIDTH, 20, 16, 24, 16, 24), addresses, (1,) * 5, 1e-5)
    with pytest.raises(ValueError, match="the layer needs a slice of 25 x 12, and the weight is 24 x 16"):
        module.linear_forward((3, 25, 12, 24, 16), (1, 1), (1, 1))
    with pytest.raises(ValueError, match="the number of rows is 0, and must be 1 or more"):
        module.linear_backward((0, 20, 12, 24, 16), (1, 1), (1, 1), (1, 1, 1))
    sizes = (3, TOKENS, WIDTH, HEADS, HEAD_DIM, *GRID, 1, 16, 40, 24, 16, 24, 0)
    with pytest.raises(ValueError, match="qkv needs a slice of 48 x 12, and the weight is 40 x 16"):
        module.attention_forward(sizes, (1,) * 11, (1,) * 7, 1e-5)


def test_a_warm_step_binds_no_signature(monkeypatch):
    """torch binds the arguments of an autograd.Function with setup_context in every call."""
    net = growtas.Supernet("digits", num_classes=10).train()
    images, labels = torch.randn(2, 1, 8, 8), torch.tensor([1, 2])

    def step() -> None:
        torch.nn.functional.cross_entropy(net(images, net.space.largest()), labels).backward()

    step()

    def refuse(*args, **kwargs):
        raise AssertionError("a signature was bound in a training step")

    monkeypatch.setattr(inspect.Signature, "bind", refuse)
    monkeypatch.setattr(inspect, "signature", refuse)
    step()


def test_a_vector_of_another_length_is_not_taken():
    """The C++ code would read, and write the gradient of, memory behind it."""
    x, weight = torch.randn(2, 5, 8), torch.randn(12, 8)
    assert linear_call.takes_linear(x, weight, torch.randn(12), 10)
    assert not linear_call.takes_linear(x, weight, torch.randn(11), 10)
    vectors = {"shift": 8, "b1": 12, "b2": 8, "scale": 2}

    def takes(**lengths):
        shift, b1, b2, scale = (torch.randn(lengths.get(name, n)) for name, n in vectors.items())
        weights = MLPWeights(torch.ones(8), shift, weight, b1, torch.randn(8, 12), b2, scale)
        return mlp_call.takes_mlp(x, weights, 12, torch.float32)

    assert takes()
    for name, length in vectors.items():
        assert not takes(**{name: length - 1}), name
