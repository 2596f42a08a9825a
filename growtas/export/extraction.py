"""Take a subnet out of a supernet, as a model of its own whose logits are shown to be the same."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import timm
import torch
from torch import Tensor

from growtas.architectures import growtas_mobilenet, growtas_vit
from growtas.errors import GrowtasError, UsageError
from growtas.export import card
from growtas.export.sizes import Model, arguments
from growtas.searching.named import named_subnet
from growtas.subnet import AnySubnet
from growtas.supernet import AnySupernet, MobileNetV3, VisionTransformer

if TYPE_CHECKING:
    from growtas.training.run import Run

# Relative to the largest logit, in float32. The supernet's kernels and plain layers multiply the same numbers
# and add them in another order.
TOLERANCE = 1e-5

_FAMILIES = {
    VisionTransformer: ("growtas_vit", growtas_vit.pretrained_cfg),
    MobileNetV3: ("growtas_mobilenet", growtas_mobilenet.pretrained_cfg),
}
"""Of each kind of supernet the standalone model, and timm's description of its input and head."""


def extract(
    net: AnySupernet | Run | str | os.PathLike,
    subnet: AnySubnet | str,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    tolerance: float | None = None,
    averaged: bool = False,
    fused: bool = False,
) -> Model:
    """Copy a subnet's slices into a standalone timm model and check that its logits are the slice's.

    The model is plain PyTorch; ``model.fuse()`` runs growtas' kernels over the same parameters.

    Args:
        net: a supernet, a training run or its folder. A supernet's BatchNorm statistics are taken as they are
            (:func:`growtas.training.calibration.recalibrate` sets them for a subnet); those of a run are
            measured for the subnet on its training images.
        subnet: of the supernet's space, its text such as ``"d24-h2,2,3-r2,3,2"``, ``"smallest"``,
            ``"largest"``, or ``"best"`` of a run's finished search.
        mean: of the input's channels, as training normalised them; taken from a run's data where None.
        std: standard deviation of the same.
        tolerance: largest allowed difference of the logits, relative to the largest logit; None: 1e-5 in
            float32, and 16 roundings of a dtype of 16 bits.
        averaged: of a run: take the moving average of the weights that it keeps with ema_decay.
        fused: call the model's ``fuse()``, after plain PyTorch was checked, and check again.

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
    preprocessing: dict[str, Any] = {}
    trained: dict[str, Any] = {}
    if not isinstance(net, VisionTransformer | MobileNetV3):
        if isinstance(net, torch.nn.Module):
            raise UsageError(
                f"A subnet is extracted from a supernet; this {type(net).__name__} is a model already."
            )
        from growtas.training.run import Run

        run = Run.open(net)
        subnet = named_subnet(subnet, run.space, run)
        trained = card.facts(run, subnet)
        net, preprocessing = _net_of_run(run, subnet, averaged)
    subnet = named_subnet(subnet, net.space)
    net.space.validate(subnet)
    like, dims = next(net.parameters()), net.dims
    architecture, pretrained_cfg = next(pair for kind, pair in _FAMILIES.items() if isinstance(net, kind))
    cfg = pretrained_cfg(
        input_size=(dims.in_channels, dims.image_size, dims.image_size),
        num_classes=net.num_classes,
        **{**preprocessing, **_normalisation(mean, std, dims.in_channels, preprocessing)},
    )
    model = timm.create_model(architecture, pretrained_cfg=cfg, **arguments(net, subnet))
    model = model.to(like.device, like.dtype).eval()
    model.load_state_dict(net.slice_state_dict(subnet))
    model.trained, model.extraction_error = trained, 0.0
    if tolerance is None:
        tolerance = max(TOLERANCE, 16 * torch.finfo(like.dtype).eps)
    for fuse in (False, True) if fused else (False,):
        if fuse:
            model.fuse()
        error, largest = _compare(net, model, subnet, batch_size=4, seed=0)
        if not error <= tolerance * largest:  # also where the difference is not a number
            raise GrowtasError(
                f"The extracted {subnet} differs from the supernet's slice by {error:.3g}, and "
                f"{tolerance * largest:.3g} is allowed (the largest logit is {largest:.3g}). Check that the "
                "weights are finite, then report this."
            )
        model.extraction_error = max(model.extraction_error, error)
    return model


def verify(
    net: AnySupernet, model: torch.nn.Module, subnet: AnySubnet, batch_size: int = 4, seed: int = 0
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


def _net_of_run(run: Run, subnet: AnySubnet, averaged: bool) -> tuple[AnySupernet, dict[str, Any]]:
    """The supernet of a run; how its images were prepared and its classes, in timm's terms.

    BatchNorm's statistics are measured for the subnet, on the run's training images.
    """
    from growtas.training.calibration import calibration
    from growtas.training.data import preprocessing

    net = run.load_net(averaged=averaged)
    if net.needs_calibration:
        calibration(net, run.splits().train)(subnet)
    prepared = preprocessing(run.config.data, run.space, run.config.interpolation)
    return net, prepared | ({"label_names": run.classes} if run.classes else {})


def _compare(
    net: AnySupernet, model: torch.nn.Module, subnet: AnySubnet, batch_size: int, seed: int
) -> tuple[float, float]:
    """The largest difference of the logits, and the largest logit."""
    dims = net.dims
    generator = torch.Generator().manual_seed(seed)
    shape = (batch_size, dims.in_channels, dims.image_size, dims.image_size)
    images = torch.randn(shape, generator=generator).to(next(net.parameters()))
    training = net.training, model.training
    try:
        net.eval(), model.eval()
        with torch.inference_mode(), _exact_products():
            expected: Tensor = net(images, subnet)
            difference = (model(images) - expected).abs().max()
    finally:
        net.train(training[0]), model.train(training[1])
    return difference.item(), expected.abs().max().item()


@contextmanager
def _exact_products() -> Iterator[None]:
    """Within it, a GPU multiplies float32 as such: by default cuDNN's convolutions take TF32."""
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


def _normalisation(
    mean: Sequence[float] | None, std: Sequence[float] | None, channels: int, known: dict[str, Any]
) -> dict[str, tuple[float, ...]]:
    """The given value; else the known one; else timm's default for colour images and none for others."""
    values = {}
    for name, given, nothing in (("mean", mean, 0.0), ("std", std, 1.0)):
        if given is not None:
            if len(given) != channels:
                raise UsageError(f"{name}={tuple(given)} needs {channels} entries, one per channel.")
            values[name] = tuple(float(value) for value in given)
        elif name not in known and channels != 3:
            values[name] = (nothing,) * channels
    return values
