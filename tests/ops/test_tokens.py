"""The first tokens in one pass: the bits and gradients of cat and +, and fewer passes over the images."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from growtas import ops
from growtas.nn.linear import PatchEmbedding

PATCHES, FULL = 6, 16


def inputs(dtype: torch.dtype, width: int) -> tuple[torch.Tensor, ...]:
    """Patches, cls token and position; NaN in the shared parameters beyond the width."""
    torch.manual_seed(0)
    patches = torch.randn(3, PATCHES, width, dtype=dtype)
    shared = torch.randn(1, 1, FULL), torch.randn(1, PATCHES + 1, FULL)
    for parameter in shared:
        parameter[:, :, width:] = float("nan")
    return tuple(t.requires_grad_() for t in (patches, *shared))


def composed(patches: torch.Tensor, cls_token: torch.Tensor, pos_embed: torch.Tensor) -> torch.Tensor:
    """The published way."""
    width = patches.shape[-1]
    first = cls_token[:, :, :width].expand(len(patches), -1, -1).to(patches.dtype)
    return torch.cat((first, patches), 1) + pos_embed[:, :, :width]


def gradients(run, given: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    x = run(*given)
    seed = torch.linspace(-1, 1, x.numel()).view(x.shape)
    return [x, *torch.autograd.grad(x, given, seed)]


@pytest.mark.parametrize("width", [12, FULL])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_pass_gives_the_bits_of_cat_and_add(dtype, width):
    given = inputs(dtype, width)
    own, expected = gradients(ops.tokens, given), gradients(composed, given)
    for got, want, exact in zip(own, expected, (True, True, False, False), strict=True):
        assert got.dtype is want.dtype and got.shape == want.shape
        torch.testing.assert_close(got, want, **({"rtol": 0, "atol": 0} if exact else {}))
    assert own[0].dtype is torch.float32
    assert not own[2][..., width:].any() and not own[3][..., width:].any()


def test_parameters_that_are_frozen_get_no_gradient():
    patches, cls_token, pos_embed = inputs(torch.float32, 12)
    x = ops.tokens(patches, cls_token.detach(), pos_embed.detach())
    (dpatches,) = torch.autograd.grad(x.sum(), patches)
    assert torch.equal(dpatches, torch.ones_like(patches))


class Copies(TorchDispatchMode):
    """Counts what copies or converts tensors of a size."""

    def __init__(self, numel: int) -> None:
        super().__init__()
        self.numel, self.names = numel, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if (
            name in ("copy_", "_to_copy", "clone", "contiguous", "_reshape_copy")
            and args[0].numel() == self.numel
        ):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("autocast", [True, False])
def test_images_are_moved_and_converted_in_one_copy(autocast):
    embed, images = PatchEmbedding(3, 16, 2), torch.randn(2, 3, 4, 6)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        with Copies(images.numel()) as copies:
            patches = embed(images, 12)
        conv = torch.nn.functional.conv2d(images, embed.proj.weight[:12], embed.proj.bias[:12], 2)
    assert len(copies.names) == 1
    assert patches.dtype is (torch.bfloat16 if autocast else torch.float32)
    torch.testing.assert_close(
        patches,
        conv.flatten(2).transpose(1, 2),
        rtol=1e-2 if autocast else 1e-5,
        atol=1e-2 if autocast else 1e-6,
    )
