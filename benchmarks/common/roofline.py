"""The two ceilings of a device, measured on the spot: a large copy and a large dense product."""

from __future__ import annotations

from typing import NamedTuple

import torch

from common import timing


class Roofline(NamedTuple):
    """The best rates measured on the device.

    Args:
        bandwidth: bytes read and written per second, of a copy far larger than the caches.
        flops: floating-point operations per second, of a square product in the dtype measured.
    """

    bandwidth: float
    flops: float

    def floor(self, flops: float, moved: float) -> float:
        """The least seconds for so much arithmetic and so many bytes, whichever takes longer."""
        return max(flops / self.flops, moved / self.bandwidth)

    def best(self, other: Roofline) -> Roofline:
        """The higher of two ceilings, each."""
        return Roofline(max(self.bandwidth, other.bandwidth), max(self.flops, other.flops))


def measure(device: torch.device, dtype: torch.dtype, seconds: float = 1.0) -> Roofline:
    """Measure both ceilings, on random data, the best of several samples each.

    Args:
        device: the device.
        dtype: of the product.
        seconds: that the measurement may take, roughly.
    """
    on_gpu = device.type == "cuda"
    generator = torch.Generator(device).manual_seed(0)
    source = torch.randn((1 << 30 if on_gpu else 1 << 27) // 4, device=device, generator=generator)
    target = torch.empty_like(source)
    size = 8192 if on_gpu else 1536
    a, b = (torch.randn(size, size, device=device, generator=generator).to(dtype) for _ in range(2))
    c = torch.empty_like(a)
    samplers = {
        "copy": timing.sampler([lambda: lambda: target.copy_(source)], device, 0.0)[0],
        "product": timing.sampler([lambda: lambda: torch.mm(a, b, out=c)], device, 0.0)[0],
    }
    samples = timing.interleave(samplers, seconds=seconds, rounds=50, least=3)
    return Roofline(
        bandwidth=2 * source.nbytes / min(samples["copy"]), flops=2 * size**3 / min(samples["product"])
    )
