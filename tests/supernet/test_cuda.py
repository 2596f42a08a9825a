"""The supernet on a GPU, on every backend: fp32 against the CPU in fp64, bfloat16 autocast against fp32."""

from __future__ import annotations

import copy
import random

import pytest
import torch

import growtas
from growtas.ops import dispatch

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(params=["torch", "triton", "cuda", "auto"])
def gpu_backend(request):
    with dispatch.use(request.param):
        yield request.param


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return growtas.Supernet("autoformer-tiny", num_classes=10).eval()


def run(net, images, subnet, autocast=False):
    """Logits and the gradients of the parameters that the subnet uses, on the CPU in fp64."""
    net.zero_grad()
    with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
        logits = net(images, subnet)
    logits.double().square().sum().backward()
    gradients = {n: p.grad.double().cpu() for n, p in net.named_parameters() if p.grad is not None}
    return logits.detach().double().cpu(), gradients


def error(ours, truth):
    return ((ours - truth).norm() / truth.norm()).item()


def test_training_step_matches_the_cpu(net, gpu_backend):
    subnet = net.space.sample(random.Random(0))
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with dispatch.use("torch"):
        truth, wanted = run(copy.deepcopy(net).double(), images.double(), subnet)
    on_gpu, images = copy.deepcopy(net).cuda(), images.cuda()
    logits, gradients = run(on_gpu, images, subnet)
    assert error(logits, truth) < 1e-5
    assert set(gradients) == set(wanted)
    for name, gradient in gradients.items():
        assert error(gradient, wanted[name]) < 1e-4, name
    again = run(on_gpu, images, subnet)
    assert torch.equal(again[0], logits)
    assert all(torch.equal(again[1][name], gradient) for name, gradient in gradients.items())

    logits, gradients = run(on_gpu, images, subnet, autocast=True)
    assert error(logits, truth) < 0.05
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in on_gpu.parameters())
    for name, gradient in gradients.items():
        assert error(gradient, wanted[name]) < 0.1, name
