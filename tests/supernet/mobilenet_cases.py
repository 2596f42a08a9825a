"""A MobileNetV3 space small enough for tests, and a supernet of it that looks trained."""

from __future__ import annotations

import torch
from torch import Tensor

from growtas.spaces.mobilenet import MobileNetSpace
from growtas.supernet import MobileNetV3, Supernet

SMALL = MobileNetSpace(
    "small",
    kernel=(3, 5, 7),
    expand=(2, 3, 4),
    depth=(1, 2),
    stem_width=8,
    first_width=8,
    widths=(16, 24),
    final_width=32,
    feature_width=40,
    strides=(2, 1),
    activations=("relu", "h-swish"),
    squeeze_excite=(False, True),
    image_size=16,
)


def trained_like(space: MobileNetSpace = SMALL, num_classes: int = 5, seed: int = 0) -> MobileNetV3:
    """A supernet in evaluation mode none of whose tensors is constant, as after training."""
    torch.manual_seed(seed)
    net = Supernet(space, num_classes).eval()
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            tensor.add_(
                0.1 * torch.randn_like(tensor) if not name.endswith("var") else torch.rand_like(tensor)
            )
    return net


def pictures(count: int = 4, size: int = 16, channels: int = 3, seed: int = 1) -> Tensor:
    """Random images."""
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(seed))
