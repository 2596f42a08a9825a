"""Layers on slices of shared convolutions against torch's own on copies of the slices."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from growtas import ops
from growtas.errors import UsageError
from growtas.nn.conv import DepthwiseConv, PartialBatchNorm, PointwiseConv, SqueezeExcite


def batch(channels: int, size: int = 6, count: int = 3) -> torch.Tensor:
    x = torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(channels))
    return x.contiguous(memory_format=torch.channels_last).requires_grad_()


def gradients(y, *of):
    weights = torch.linspace(-1, 1, y.numel()).view(y.shape)
    return torch.autograd.grad((y * weights).sum(), of, retain_graph=True)


def assert_close(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bias", [False, True])
def test_a_pointwise_slice_is_the_convolution(cpu_backend, bias):
    layer, x = PointwiseConv(24, 40, bias), batch(16)
    y = layer(x, 28)
    assert y.is_contiguous(memory_format=torch.channels_last)
    expected = F.conv2d(x, layer.weight[:28, :16], layer.bias[:28] if bias else None)
    of = (x, layer.weight, layer.bias) if bias else (x, layer.weight)
    assert_close((y, *gradients(y, *of)), (expected, *gradients(expected, *of)))


@pytest.mark.parametrize("stride", [1, 2])
def test_a_smaller_kernel_is_the_transformed_centre(stride):
    layer, x = DepthwiseConv(20, (3, 5, 7), stride), batch(12, 9)
    matrix7, matrix5 = getattr(layer, "7to5_matrix"), getattr(layer, "5to3_matrix")
    with torch.no_grad():
        assert torch.equal(layer.filters(12, 3), layer.weight[:12, :, 2:5, 2:5])  # at first: the centre
        matrix7.add_(0.1 * torch.randn(25, 25)), matrix5.add_(0.1 * torch.randn(9, 9))
    five = torch.stack([(matrix7 @ w[0, 1:6, 1:6].flatten()).view(1, 5, 5) for w in layer.weight[:12]])
    three = torch.stack([(matrix5 @ w[0, 1:4, 1:4].flatten()).view(1, 3, 3) for w in five])
    for kernel, filters, used in (
        (7, layer.weight[:12], ()),
        (5, five, (matrix7,)),
        (3, three, (matrix7, matrix5)),
    ):
        expected = F.conv2d(x, filters, None, stride, kernel // 2, groups=12)
        y = layer(x, kernel)
        assert y.is_contiguous(memory_format=torch.channels_last)
        of = (x, layer.weight, *used)
        assert_close((y, *gradients(y, *of)), (expected, *gradients(expected, *of)))
        assert len(layer.matrices(kernel)) == len(used)


def observed(run) -> tuple[int, set[str]]:
    """Bytes that a call allocates, those that it frees again included, and the operations it runs."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = profiler.profiler.kineto_results.events()
    allocated = sum(e.nbytes() for e in events if e.name() == "[memory]" and e.nbytes() > 0)
    return allocated, {e.name() for e in events}


@pytest.mark.parametrize("backend", ["torch", "cpu"])
def test_no_pointwise_weight_is_copied(backend):
    """A step over a slice allocates results and gradients and nothing else.

    The weight is large and the image small, so that a copy would weigh more than all activations.
    """
    layer, x = PointwiseConv(512, 1024), batch(384, 2, 1)
    y_bytes, slice_bytes, gradient = 768 * 4 * 4, 768 * 384 * 4, torch.ones(1, 768, 2, 2)
    with ops.use(backend):
        forward, _ = observed(lambda: layer(x.detach(), 768))
        step, _ = observed(lambda: layer(x, 768).backward(gradient))
    assert forward == y_bytes
    # y, dy side by side per pixel, dx, and the gradient at full size
    most = 2 * y_bytes + x.nbytes + layer.weight.nbytes
    assert step <= most + 1024 and 1024 < slice_bytes


def test_no_depthwise_weight_is_copied():
    """The largest kernel's filters are a view; torch makes no tensor of them. (oneDNN packs its own.)"""
    layer, x = DepthwiseConv(1024, (3, 5, 7)), batch(768, 2, 1)
    assert layer.filters(768, 7).data_ptr() == layer.weight.data_ptr()
    copies = {"aten::copy_", "aten::clone", "aten::contiguous", "aten::empty_like"}
    assert not observed(lambda: layer(x.detach(), 7))[1] & copies
    assert observed(lambda: layer(x.detach(), 5))[1] & copies  # the check can see one: a transformed kernel


def test_statistics_are_the_leading_entries():
    norm, reference, x = PartialBatchNorm(10), torch.nn.BatchNorm2d(6), batch(6)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 1.5), norm.bias.uniform_(-1, 1)
        reference.weight.copy_(norm.weight[:6]), reference.bias.copy_(norm.bias[:6])
    assert_close((norm(x),), (reference(x),))
    assert_close(
        (norm.running_mean[:6], norm.running_var[:6]), (reference.running_mean, reference.running_var)
    )
    assert torch.equal(norm.running_mean[6:], torch.zeros(4)) and torch.equal(
        norm.running_var[6:], torch.ones(4)
    )
    assert_close((norm.eval()(x),), (reference.eval()(x),))
    assert set(norm.state_dict()) == {"weight", "bias", "running_mean", "running_var"}
    PartialBatchNorm(10).load_state_dict(dict(norm.state_dict()))
    with pytest.raises(UsageError, match="one image of one pixel"):
        norm.train()(torch.randn(1, 6, 1, 1))


def test_squeeze_excite_is_the_published_formula(cpu_backend):
    layer, x = SqueezeExcite(32, 8), batch(16)
    with torch.no_grad():
        layer.reduce.bias.uniform_(-1, 1), layer.expand.bias.uniform_(-3, 3)
    y = F.relu(F.conv2d(x.mean((2, 3), keepdim=True), layer.reduce.weight[:4, :16], layer.reduce.bias[:4]))
    y = F.conv2d(y, layer.expand.weight[:16, :4], layer.expand.bias[:16])
    expected = x * F.relu6(y + 3) / 6
    of = (x, layer.reduce.weight, layer.expand.bias)
    ours = layer(x, 4)
    assert_close((ours, *gradients(ours, *of)), (expected, *gradients(expected, *of)))
