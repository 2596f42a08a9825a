"""An image with logits far from zero, constant rows, NaN or infinity leaves every other image its bits.

So does what the kernels keep between calls: the run after such a batch has the bits of the run before it.
"""

from __future__ import annotations

import pytest
import torch
from cuda_on_cpu import emulated
from op_draws import BF16, FP16, FP32, STRATEGIES, draw, run

from growtas.ops import dispatch, one_call
from growtas.ops.linear import cpu
from growtas.ops.mlp import cuda

BAD = 1
IMAGES = {"relative_attention": 1}  # the axis of x; of the result it is 1 for qkv
CUDA_OPS = ("layer_norm", "linear", "linear_gelu", "qkv", "mlp")


def spoil(x: torch.Tensor, kind: str) -> None:
    """Make one image, in place, what it should not be."""
    if kind == "far":
        x *= 1e3
    elif kind == "constant":
        x.fill_(3.3)
    else:
        x[..., 0, -1] = float(kind)


def passes(op: str, case, x: torch.Tensor, dy_seed: int = 5) -> list[torch.Tensor]:
    """The result and the gradient of x, the axis of images first."""
    leaf = x.clone().requires_grad_()
    y = run(op, {**case.values(), **case.numbers, "x": leaf})
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(dy_seed)).to(y.dtype)
    (dx,) = torch.autograd.grad(y, leaf, dy)
    return [y.detach().movedim(1 if op == "qkv" else 0, 0), dx.movedim(IMAGES.get(op, 0), 0)]


def assert_contained(op: str, dtype: torch.dtype, kinds=("far", "constant", "nan", "inf", "-inf")) -> None:
    """Every other image has the bits that it has without the bad one, and so has a later run."""
    seed = next(s for s in range(100, 400) if fits(op, draw(op, s, (dtype,))))
    case = draw(op, seed, (dtype,))
    case.tensors["x"] = x = images_of(op, case.tensors["x"])
    for name in case.names():
        case.tensors[name] = case.tensors[name].to(FP32)
    if case.tensors.get("scale") is not None:
        case.tensors["scale"] = torch.tensor([0.5, 0.0, 2.0])
    usual = passes(op, case, x)
    others = [i for i in range(3) if i != BAD]
    for kind in kinds:
        bad = x.clone()
        spoil(bad.select(IMAGES.get(op, 0), BAD), kind)
        got, again = passes(op, case, bad), passes(op, case, x)
        for name, a, b, c in zip(("y", "dx"), usual, got, again, strict=True):
            assert a.isfinite().all(), f"{op} {dtype} {name} is not finite before {kind}: {case}"
            assert torch.equal(a[others], b[others]), (
                f"{op} {dtype}: {kind} in one image changes {name} of another"
            )
            assert torch.equal(a, c), f"{op} {dtype}: {kind} changes {name} of the next run"
        if kind not in ("far", "constant"):
            assert not got[0][BAD].isfinite().all(), f"{op} {dtype}: {kind} is gone from its image's result"


def fits(op: str, case) -> bool:
    """A draw with more than a channel or two, where every backend has something to do, also in token 0."""
    if case.numbers.get("tokens", (0, 1))[0]:
        return False
    return case.tensors["x"].shape[-1] >= 8 and case.tensors["x"].dim() >= 3


def images_of(op: str, x: torch.Tensor) -> torch.Tensor:
    """Three images of the drawn shape."""
    shape = list(x.shape)
    shape[IMAGES.get(op, 0)] = 3
    return torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(x.dtype)


@pytest.mark.parametrize("dtype", [FP32, BF16, FP16])
@pytest.mark.parametrize("op", STRATEGIES)
def test_a_bad_image_stays_alone(op, dtype, monkeypatch):
    for backend, least, most in (("cpu", 1 << 18, 1 << 24), ("cpu", 1, 0), ("torch", 1, 0)):
        monkeypatch.setattr(cpu, "MIN_OPERATIONS", least)
        monkeypatch.setattr(one_call, "MOST_OPERATIONS", most)
        with dispatch.use(backend):
            assert_contained(op, dtype)


def slowly(*cases: tuple) -> list:
    """Cases that make test leaves out."""
    return [pytest.param(*case, marks=pytest.mark.slow) for case in cases]


@pytest.mark.parametrize(
    "op, dtype",  # the interpreter multiplies bfloat16 wrongly
    [("linear", FP16), *slowly(*[(op, dtype) for op in STRATEGIES for dtype in (FP32, FP16)])],
)
def test_a_bad_image_stays_alone_in_triton(op, dtype, small_tiles):
    with dispatch.use("triton"):
        assert_contained(op, dtype, ("nan", "far"))


@pytest.mark.parametrize("dtype", [FP32, BF16])
@pytest.mark.parametrize("op", ["layer_norm", "linear", "qkv", "mlp"])
def test_a_bad_image_stays_alone_in_cuda(op, dtype, monkeypatch):
    emulated.emulate(emulated.emulated_module(), monkeypatch)
    monkeypatch.setattr(cuda, "_unsupported_here", lambda device: "")
    with dispatch.assigned(dict.fromkeys(CUDA_OPS, "cuda")):
        assert_contained(op, dtype, ("nan", "far"))
