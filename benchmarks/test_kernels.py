"""pytest-benchmark cases of the operations: ``pytest benchmarks --benchmark-only``.

One group per operation, pass and width; in it torch's dense layer and every backend that runs here. The
paired comparisons are in slice_matmul.py and each_kernel.py; these serve to follow one kernel over commits
(``--benchmark-autosave``, ``--benchmark-compare``).
"""

from __future__ import annotations

import pytest
import torch
from common import environment, norms, products, ways
from common.race import PASSES

DEVICE = environment.pick_device("auto")
ON_GPU = DEVICE.type == "cuda"
DTYPE = torch.bfloat16 if ON_GPU else torch.float32
BATCH = 128 if ON_GPU else 2

PRODUCTS = products.products(["T", "B"], "few")
PRODUCT_WAYS = [name for name in ways.names(DEVICE) if name != "views"]
NORMS = [norms.Norm(BATCH * 197, width, shared) for width, shared in ((216, 256), (576, 640))]

pytestmark = pytest.mark.benchmark(min_rounds=5, max_time=0.2, warmup=True, warmup_iterations=2)


def ascii_id(case: products.Product | norms.Norm) -> str:
    """A name that is readable where pytest escapes what is not ASCII."""
    return str(case).replace("→", "-").replace("×", "-").replace(" ", "-")


def timed(benchmark, call) -> None:
    """Benchmark a call, until the device has done it."""

    def run():
        call()
        if ON_GPU:
            torch.cuda.synchronize()

    benchmark(run)


@pytest.mark.parametrize("direction", PASSES)
@pytest.mark.parametrize("name", PRODUCT_WAYS)
@pytest.mark.parametrize("product", PRODUCTS, ids=ascii_id)
def test_product(benchmark, product, name, direction):
    benchmark.group = f"{product} {direction}"
    inputs = products.make_inputs(product, BATCH, DEVICE, DTYPE, torch.float32, seed=0)
    with ways.active(name, product.kernel, product.inner, DEVICE, DTYPE):
        way = ways.build(name, product, inputs)
        timed(benchmark, way.run if direction == "forward" else way.backward_call())


@pytest.mark.parametrize("direction", PASSES)
@pytest.mark.parametrize("name", norms.names(DEVICE))
@pytest.mark.parametrize("norm", NORMS, ids=ascii_id)
def test_layer_norm(benchmark, norm, name, direction):
    benchmark.group = f"{norm} {direction}"
    inputs = norm.make_inputs(DEVICE, torch.float32, seed=0)
    with ways.active(name, "layer_norm", norm.width, DEVICE, torch.float32):
        way = norms.build(name, norm, inputs)
        timed(benchmark, way.run if direction == "forward" else way.backward_call())
