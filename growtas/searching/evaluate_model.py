"""Accuracy of one saved model on some data, prepared as the model expects it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from timm.data import resolve_data_config
from torch import nn

from growtas.errors import UsageError
from growtas.searching.evaluate import Evaluator
from growtas.space import ModelSpace
from growtas.supernet import SingleModel
from growtas.training.data import Splits, load_splits
from growtas.training.external import create
from growtas.training.model import check_classes, model_space
from growtas.training.ranks import choose_device
from growtas.training.run import CONFIG_NAME, Run


@dataclass(frozen=True)
class ModelAccuracy:
    """The accuracy of a model.

    Args:
        model: its folder, or ``timm:NAME``.
        data: name of the data.
        split: of that.
        images: how many there are.
        top1: per cent of the images classified correctly.
        top5: per cent of the images whose label is among the five highest logits; None for up to 5 classes.
        params: parameters of the model.
    """

    model: str
    data: str
    split: str
    images: int
    top1: float
    top5: float | None
    params: int

    def __str__(self) -> str:
        top5 = "" if self.top5 is None else f", top-5 {self.top5:.2f} %"
        return (
            f"{self.model}: top-1 {self.top1:.2f} %{top5} on the {self.images:,} images of the {self.split} "
            f"split of {self.data}, {self.params:,} parameters"
        )


def evaluate_model(
    name: str,
    data: str | None = None,
    split: str = "test",
    batch_size: int | None = None,
    amp: str = "auto",
    device: str = "auto",
    workers: int = 0,
    data_folder: str | None = None,
) -> ModelAccuracy:
    """Evaluate a saved model. Args, Raises: as :func:`growtas.evaluate`."""
    model = create(name)
    found = images_of(name, model, data, data_folder)
    if found is None:
        raise UsageError(f"{name} is a model, and data says which images to evaluate it on: give data=NAME.")
    splits, space = found
    net = SingleModel(model, space).to(choose_device(device))
    images = getattr(splits, split)
    top1, top5 = Evaluator(net, images, batch_size, amp, workers, keep=False).accuracy(
        net.space.largest(), (1, 5)
    )
    params = sum(parameter.numel() for parameter in model.parameters())
    return ModelAccuracy(
        name, splits.name, split, len(images), top1, top5 if model.num_classes > 5 else None, params
    )


def images_of(
    name: str, model: nn.Module, data: str | None, data_folder: str | None = None
) -> tuple[Splits, ModelSpace] | None:
    """The images to evaluate a model on, and how they become its input.

    Args:
        name: that the model was created from.
        model: of timm's.
        data: name of the data; that of its fine-tuning where None.
        data_folder: where timm data sets are stored.

    Returns:
        Both; None where no data is given and the model's folder knows none.

    Raises:
        UsageError: the data is not there, or the model has other classes.
    """
    if data is None and not (Path(name) / CONFIG_NAME).is_file():
        return None
    if data is None:
        run = Run.open(name, of_model=True)
        splits, space = run.splits(), model_space(name, model, run.config.data)
    else:
        space = model_space(name, model, data)
        interpolation = resolve_data_config({}, model=model)["interpolation"]
        splits = load_splits(data, space, data_folder=data_folder, interpolation=interpolation)
    check_classes(name, model, splits)
    return splits, space
