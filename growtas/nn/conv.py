"""Convolutions on slices of shared weights: pointwise, depthwise with elastic kernel, squeeze-and-excite.

Activations are (B, C, H, W) in channels_last memory throughout. Their pixels then are the rows of a matrix
and a pointwise convolution is a GEMM with a corner of the shared matrix, which growtas' sliced kernels
read through its strides: no weight is copied. The leading filters of a depthwise convolution lie side by
side, so they are a view of the shared weight too; only a smaller kernel is a new, small tensor, since it is
the larger one's centre times a learned matrix.

Source: Cai et al., "Once-for-All" (ICLR 2020).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from growtas import ops
from growtas.errors import UsageError
from growtas.nn.precision import compute_dtype


def he_fan_out(weight: Tensor) -> None:
    """OFA's initialisation of a convolution: normal, variance 2 / (out_channels * k * k), also where it is
    depthwise."""
    nn.init.normal_(weight, std=(2 / (weight.shape[0] * weight.shape[2] * weight.shape[3])) ** 0.5)


class PointwiseConv(nn.Module):
    """A shared 1x1 convolution; the first channels of input and output take part.

    Args:
        in_channels, out_channels: of the shared weight.
        bias: whether there is one, starting at 0.

    Args of forward:
        x: (B, k, H, W), k <= in_channels.
        out_channels: n <= out_channels.

    Returns of forward:
        (B, n, H, W), channels_last.
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels, 1, 1))
        self.register_parameter("bias", nn.Parameter(torch.zeros(out_channels)) if bias else None)
        he_fan_out(self.weight)

    def forward(self, x: Tensor, out_channels: int) -> Tensor:
        pixels = x.to(compute_dtype(x)).permute(0, 2, 3, 1)
        y = ops.linear(pixels, self.weight.flatten(1), self.bias, out_channels)
        return y.permute(0, 3, 1, 2)


class DepthwiseConv(nn.Module):
    """A shared depthwise convolution; the first channels take part, at one of several kernel sizes.

    The filter of a smaller kernel is the centre of the next larger one, flattened, times a square matrix that
    is learned, shared by all channels, and the identity at first.

    Args:
        channels: of the shared weight.
        kernels: sides of the kernel, odd, ascending; the shared weight has the largest.
        stride: of the convolution.

    Args of forward:
        x: (B, k, H, W), k <= channels.
        kernel: one of the sides.

    Returns of forward:
        (B, k, ceil(H / stride), ceil(W / stride)), channels_last.
    """

    def __init__(self, channels: int, kernels: Sequence[int], stride: int = 1) -> None:
        super().__init__()
        self.kernels, self.stride = tuple(kernels), stride
        self.weight = nn.Parameter(torch.empty(channels, 1, kernels[-1], kernels[-1]))
        for smaller, larger in itertools.pairwise(self.kernels):
            self.register_parameter(_matrix_name(larger, smaller), nn.Parameter(torch.eye(smaller**2)))
        he_fan_out(self.weight)

    def filters(self, channels: int, kernel: int) -> Tensor:
        """(channels, 1, kernel, kernel): a view of the weight at the largest kernel, else transformed."""
        filters = self.weight[:channels]
        for larger, smaller in itertools.pairwise(reversed(self.kernels)):
            if larger == kernel:
                break
            edge = (larger - smaller) // 2
            centre = filters[:, :, edge : edge + smaller, edge : edge + smaller].reshape(channels, -1)
            matrix = getattr(self, _matrix_name(larger, smaller))
            filters = F.linear(centre, matrix).view(channels, 1, smaller, smaller)
        return filters

    def matrices(self, kernel: int) -> tuple[str, ...]:
        """Names of the transforms that lead to a kernel."""
        steps = itertools.pairwise(self.kernels)
        return tuple(_matrix_name(larger, smaller) for smaller, larger in steps if smaller >= kernel)

    def forward(self, x: Tensor, kernel: int) -> Tensor:
        channels = x.shape[1]
        return F.conv2d(x, self.filters(channels, kernel), None, self.stride, kernel // 2, groups=channels)


def _matrix_name(larger: int, smaller: int) -> str:
    return f"{larger}to{smaller}_matrix"


class PartialBatchNorm(nn.BatchNorm2d):
    """BatchNorm over the first channels of its own, with the first entries of its statistics.

    While it is calibrated (:meth:`collect`) it normalises every batch by the batch itself and adds up what it
    sees; :meth:`adopt` then makes the mean of that the running statistics.

    Args of forward:
        x: (B, k, H, W), k <= num_features.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features, eps=1e-5, momentum=0.1)
        self.num_batches_tracked = None  # it would count batches of all widths, and nothing reads it
        self._collected: list[Tensor] | None = None

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        nn.Module._load_from_state_dict(self, *args, **kwargs)  # BatchNorm's would add num_batches_tracked

    def collect(self) -> None:
        """Begin to add up the statistics of batches."""
        self._collected = []

    def adopt(self) -> None:
        """End it; the entries of the channels that were seen become the mean over all images."""
        collected, self._collected = self._collected, None
        if collected:
            mean, var, images = collected
            self.running_mean[: len(mean)] = mean / images
            self.running_var[: len(var)] = var / images

    def forward(self, x: Tensor) -> Tensor:
        k = x.shape[1]
        mean, var, training = self.running_mean[:k], self.running_var[:k], self.training
        if self._collected is not None:
            var, mean = torch.var_mean(x.float(), (0, 2, 3), correction=0)
            seen = [mean * len(x), var * len(x), len(x)]
            before = self._collected or [0, 0, 0]
            self._collected = [a + b for a, b in zip(before, seen, strict=True)]
            training = False
        elif training and x.numel() <= k:
            raise UsageError(
                f"BatchNorm cannot train on one image of one pixel ({tuple(x.shape)}); take a larger batch, "
                "larger images or fewer strides."
            )
        return F.batch_norm(x, mean, var, self.weight[:k], self.bias[:k], training, self.momentum, self.eps)


class SqueezeExcite(nn.Module):
    """Channels scaled by what a small network makes of their means; the first channels take part.

    Args:
        channels: of the shared weights.
        inner: channels between its two layers.

    Args of forward:
        x: (B, k, H, W), k <= channels.
        inner: m, inner channels that take part.

    Returns of forward:
        (B, k, H, W).
    """

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.reduce = PointwiseConv(channels, inner, bias=True)
        self.expand = PointwiseConv(inner, channels, bias=True)

    def forward(self, x: Tensor, inner: int) -> Tensor:
        y = F.relu(self.reduce(x.mean((2, 3), keepdim=True), inner))
        return x * F.hardsigmoid(self.expand(y, x.shape[1]))
