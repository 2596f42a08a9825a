"""Take a subnet out of a supernet, as a model of its own whose logits are shown to be the same."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import timm
import torch
from torch import Tensor

from growtas.errors import GrowtasError, UsageError
from growtas.export.timm_model import GrowtasViT, pretrained_cfg
from growtas.space import Subnet
from growtas.supernet.vit import VisionTransformer

if TYPE_CHECKING:
    from growtas.training.run import Run

# Relative to the largest logit. Slice and copy multiply the same numbers; only the order of a sum may differ,
# where the library chooses another kernel for another row stride.
TOLERANCE = 1e-4


def extract(
    net: VisionTransformer | Run | str | os.PathLike,
    subnet: Subnet | str,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    tolerance: float = TOLERANCE,
) -> GrowtasViT:
    """Copy a subnet's slices into a standalone timm model and check that its logits are the slice's.

    Args:
        net: a supernet, a training run or its folder.
        subnet: of the supernet's space, or its text such as ``"d24-h2,2,3-r2,3,2"``.
        mean: of the input's channels, as training normalised them; taken from a run's data where None.
        std: standard deviation of the same.
        tolerance: largest allowed difference of the logits, relative to the largest logit.

    Returns:
        The model, in evaluation mode, on the supernet's device; ``model.extraction_error`` is the largest
        absolute difference of the logits that was seen.

    Raises:
        UsageError: the subnet is outside the space, or there is no run.
        GrowtasError: the logits differ; the model would not be the subnet.

    Example:
        >>> vit = growtas.extract(run, found.best.subnet)
        >>> growtas.export.save(vit, "best")
    """
    subnet = Subnet.parse(subnet) if isinstance(subnet, str) else subnet
    if not isinstance(net, VisionTransformer):
        net, preprocessing = _net_of_run(net)
    else:
        preprocessing = {}
    if net.space is None:
        raise UsageError(
            "A subnet is extracted from a supernet; this network is an extracted subnet already."
        )
    net.space.validate(subnet)
    device, dtype = net.pos_embed.device, net.pos_embed.dtype
    dims = net.dims.of_subnet(subnet)
    args: dict[str, Any] = {
        "embed_dim": subnet.embed_dim,
        "num_heads": list(subnet.num_heads),
        "mlp_ratio": list(subnet.mlp_ratio),
        "img_size": dims.image_size,
        "patch_size": dims.patch_size,
        "in_chans": dims.in_channels,
        "num_classes": net.num_classes,
        "head_dim": dims.head_dim,
        "max_relative_position": dims.max_relative_position,
    }
    cfg = pretrained_cfg(
        input_size=(dims.in_channels, dims.image_size, dims.image_size),
        num_classes=net.num_classes,
        **{**preprocessing, **_normalisation(mean, std, dims.in_channels, preprocessing)},
    )
    model = timm.create_model("growtas_vit", pretrained_cfg=cfg, **args).to(device, dtype).eval()
    model.load_state_dict(net.slice_state_dict(subnet))
    model.extraction_error, largest = _compare(net, model, subnet, batch_size=4, seed=0)
    if not model.extraction_error <= tolerance * largest:  # also where the difference is not a number
        raise GrowtasError(
            f"The extracted {subnet} differs from the supernet's slice by {model.extraction_error:.3g}, and "
            f"{tolerance * largest:.3g} is allowed (the largest logit is {largest:.3g}). Check that the "
            "weights are finite, then report this."
        )
    return model


def verify(
    net: VisionTransformer, model: torch.nn.Module, subnet: Subnet, batch_size: int = 4, seed: int = 0
) -> float:
    """The largest difference between the logits of a supernet's slice and of an extracted model.

    Args:
        net: the supernet.
        model: the extracted model, on the same device.
        subnet: which slice.
        batch_size: random images, standard normal.
        seed: of the images.

    Returns:
        The largest absolute difference over all logits; 0 where they are equal to the bit.
    """
    return _compare(net, model, subnet, batch_size, seed)[0]


def _net_of_run(run: Run | str | os.PathLike) -> tuple[VisionTransformer, dict[str, Any]]:
    """The supernet of a run or of its folder, and how its images were prepared, in timm's terms."""
    from growtas.training.data import preprocessing
    from growtas.training.run import Run

    run = Run.open(run)
    return run.load_net(), preprocessing(run.config.data, run.space, run.config.interpolation)


def _compare(
    net: VisionTransformer, model: torch.nn.Module, subnet: Subnet, batch_size: int, seed: int
) -> tuple[float, float]:
    """The largest difference of the logits, and the largest logit."""
    dims = net.dims
    generator = torch.Generator().manual_seed(seed)
    shape = (batch_size, dims.in_channels, dims.image_size, dims.image_size)
    images = torch.randn(shape, generator=generator).to(net.pos_embed)
    training = net.training, model.training
    try:
        net.eval(), model.eval()
        with torch.inference_mode():
            expected: Tensor = net(images, subnet)
            difference = (model(images) - expected).abs().max()
    finally:
        net.train(training[0]), model.train(training[1])
    return difference.item(), expected.abs().max().item()


def _normalisation(
    mean: Sequence[float] | None, std: Sequence[float] | None, channels: int, known: dict[str, Any]
) -> dict[str, tuple[float, ...]]:
    """What is given; else what is known; else timm's default for colour images and none for others."""
    values = {}
    for name, given, nothing in (("mean", mean, 0.0), ("std", std, 1.0)):
        if given is not None:
            if len(given) != channels:
                raise UsageError(f"{name}={tuple(given)} needs {channels} entries, one per channel.")
            values[name] = tuple(float(value) for value in given)
        elif name not in known and channels != 3:
            values[name] = (nothing,) * channels
    return values
