"""The first tokens in Triton: torch's bits forward, fp64's sums backward, in poisoned memory."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import (
    GPU,
    assert_as_good_as_torch,
    assert_written_once,
    assert_zero_outside,
    needs_interpreter,
    parameter,
    poisoned_outputs,
    recorded_stores,
    with_dtypes,
)

from growtas import ops
from growtas.errors import GrowtasError, UsageError
from growtas.kernels import tokens
from growtas.kernels.common import launch
from growtas.ops.tokens import reference

# images, patches, width, shared width
CASES = [
    pytest.param(5, 49, 216, 256, id="T-216"),
    pytest.param(37, 3, 24, 80, id="many-images"),
    pytest.param(3, 20, 13, 17, id="primes"),
    pytest.param(1, 1, 1, 3, id="one-channel"),
    pytest.param(2, 4, 300, 640, id="two-tiles"),
]
if GPU:
    CASES += [pytest.param(128, 196, 216, 256, id="T-216-batch-128")]

#: dtypes of patches, cls and position
DTYPES = [
    pytest.param((torch.float32,) * 3, id="fp32"),
    pytest.param((torch.float16, torch.float32, torch.float32), id="fp16-fp32"),
    pytest.param((torch.float16,) * 3, id="fp16"),
]
if GPU:
    DTYPES += [pytest.param((torch.bfloat16, torch.float32, torch.float32), id="bf16-fp32")]


def inputs(batch, patches, width, full, dtypes, device):
    """Patches, cls and position, NaN outside of their slices, and the gradient of the result."""
    torch.manual_seed(batch * 1000 + width)
    given = (
        torch.randn(batch, patches, width, device=device).to(dtypes[0]),
        parameter((1, full), (1, width), dtypes[1], device, 1.0)[None],
        parameter((patches + 1, full), (patches + 1, width), dtypes[2], device, 1.0)[None],
    )
    dtype = torch.promote_types(dtypes[0], dtypes[2])
    return given, torch.randn(batch, patches + 1, width, device=device).to(dtype)


@pytest.mark.parametrize("batch, patches, width, full, dtypes", with_dtypes(CASES, DTYPES))
def test_forward_has_the_bits_of_torch_and_gradients_match_fp64(batch, patches, width, full, dtypes, device):
    given, dy = inputs(batch, patches, width, full, dtypes, device)
    with poisoned_outputs(), launch.counted() as launched:
        x = tokens.tokens_forward(*given)
        found = tokens.tokens_backward(dy, dtypes, (full, full))
        again = tokens.tokens_backward(dy, dtypes, (full, full))
    assert launched == ["tokens.forward._forward"] + 2 * ["tokens.backward._backward"]
    assert x.dtype is dy.dtype and torch.equal(x, reference.tokens_forward(*given))
    plain = reference.tokens_backward(dy, dtypes, (full, full), (True, True, True))
    assert found[0].dtype is dtypes[0] and torch.equal(found[0], plain[0])
    rounded = dy[:, :1].to(dtypes[0])
    for name, own, same, of_torch, terms in zip(
        ("dcls", "dposition"), found[1:], again[1:], plain[1:], (rounded, dy), strict=True
    ):
        truth = torch.zeros(own.shape, dtype=torch.float64, device=device)
        truth[..., :width] = terms.double().sum(0)
        assert torch.equal(own, same), "another run, other bits"
        assert_zero_outside(own, (1, own.shape[1], width), name)
        assert_as_good_as_torch(own, of_torch, truth, batch, name)


def test_images_that_share_a_program_are_those_of_programs_of_their_own(device, monkeypatch):
    given, _ = inputs(13, 18, 40, 48, (torch.float32,) * 3, device)
    monkeypatch.setattr(launch, "multiprocessors", lambda _: 1)  # so few that three images share a program
    launch.forget()
    assert torch.equal(tokens.tokens_forward(*given), reference.tokens_forward(*given))


@needs_interpreter
def test_every_element_is_written_once(device):
    given, dy = inputs(35, 6, 40, 80, (torch.float32,) * 3, device)
    with recorded_stores() as stores:
        x = tokens.tokens_forward(*given)
        found = tokens.tokens_backward(dy, (torch.float32,) * 3, (80, 80))
    for name, result in zip(("x", "dpatches", "dcls", "dposition"), (x, *found), strict=True):
        assert_written_once(stores, result, name)


def test_the_public_operation_takes_the_kernels_where_layer_norm_does(device):
    """Strided parameters and patches, a frozen parameter, an expanded gradient, and no second derivative."""
    given, _ = inputs(3, 5, 12, 16, (torch.float32,) * 3, device)
    leaves = [t.repeat_interleave(2, -1)[..., ::2].requires_grad_() for t in given]
    leaves[1].requires_grad_(False)
    with ops.use("triton"), launch.counted() as launched:
        x = ops.tokens(*leaves)
        dpatches, dposition = torch.autograd.grad(x.sum(), (leaves[0], leaves[2]), retain_graph=True)
        with pytest.raises(GrowtasError, match="tokens has no second derivative"):
            torch.autograd.grad(x.sum(), leaves[0], create_graph=True)
    assert launched == ["tokens.forward._forward", "tokens.backward._backward"]
    assert torch.equal(x, reference.tokens_forward(*given))
    assert torch.equal(dpatches, torch.ones_like(dpatches))
    assert (dposition[..., :12] == 3).all() and not dposition[..., 12:].any()


def test_no_images(device):
    given, dy = inputs(0, 4, 12, 16, (torch.float32,) * 3, device)
    with poisoned_outputs():
        assert tokens.tokens_forward(*given).shape == (0, 5, 12)
        dpatches, *sums = tokens.tokens_backward(dy, (torch.float32,) * 3, (16, 16))
    assert dpatches.shape == (0, 4, 12) and not any(each.any() for each in sums)


def test_refuses_what_does_not_fit(device):
    (patches, cls, position), dy = inputs(2, 4, 12, 16, (torch.float32,) * 3, device)
    with pytest.raises(UsageError, match=r"pos_embed has shape \(1, 4, 16\), but \(1, 5, 12 or more\)"):
        tokens.tokens_forward(patches, cls, position[:, 1:])
    with pytest.raises(UsageError, match="float64"):
        tokens.tokens_forward(patches.double(), cls, position)
    with pytest.raises(UsageError, match="12 channels"):
        tokens.tokens_backward(dy, (torch.float32,) * 3, (16, 8))
