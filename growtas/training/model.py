"""One model on some data: the size, the normalisation and the crop that it expects of the images."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from timm.data import resolve_data_config
from torch import nn

from growtas.errors import UsageError
from growtas.space import ModelSpace
from growtas.supernet.saved import CONFIG_NAME, read_config
from growtas.training.data import Splits, preprocessing
from growtas.training.data.evaluation_crop import MODES
from growtas.training.embedded import EMBEDDED
from growtas.training.external import PREFIX

INTERPOLATIONS = ("bicubic", "bilinear", "nearest")


def model_space(name: str, model: nn.Module, data: str, image_size: int | None = None) -> ModelSpace:
    """Describe a model and how the images of some data become its input.

    Args:
        name: that the model was created from; see :func:`growtas.training.external.create`.
        model: of timm's.
        data: name of the data; see :func:`growtas.training.data.load_splits`.
        image_size: pixels, where it was created for another size than its weights were.

    Raises:
        UsageError: growtas cannot prepare images as the model expects them.
    """
    cfg = resolve_data_config({}, model=model)
    channels, height, width = cfg["input_size"]
    if cfg["crop_mode"] not in MODES or cfg["interpolation"] not in INTERPOLATIONS:
        raise UsageError(
            f"{name} takes images with crop_mode={cfg['crop_mode']!r} and interpolation="
            f"{cfg['interpolation']!r}; growtas has the modes {', '.join(MODES)} and the interpolations "
            f"{', '.join(INTERPOLATIONS)}. Set these in the pretrained_cfg of the model's config.json."
        )
    if image_size is not None:
        height = width = image_size
    if height != width and data.partition(":")[0] in EMBEDDED:
        raise UsageError(
            f"{name} takes images of {height} x {width} pixels, and the embedded {data} are square: give "
            "other data."
        )
    if len(cfg["mean"]) != channels:
        raise UsageError(
            f"{name} takes images of {channels} channels, and its mean={cfg['mean']} has another number of "
            "entries; set mean and std in the pretrained_cfg of the model's config.json."
        )
    args = _arguments(name)
    if image_size is not None and takes_size(name, model):
        args["img_size"] = image_size
    space = ModelSpace(
        name=name,
        architecture=model.pretrained_cfg["architecture"],
        args=args,
        image_size=height,
        in_channels=channels,
        mean=cfg["mean"],
        std=cfg["std"],
        scale=(1.0,) * channels,
        shift=(0.0,) * channels,
        crop_pct=cfg["crop_pct"],
        crop_mode=cfg["crop_mode"],
        image_width=None if width == height else width,
    )
    prepared = preprocessing(data, space)
    moments = list(zip(prepared["mean"], prepared["std"], cfg["mean"], cfg["std"], strict=True))
    return dataclasses.replace(
        space,
        scale=tuple(std / own_std for _, std, _, own_std in moments),
        shift=tuple((mean - own_mean) / own_std for mean, _, own_mean, own_std in moments),
    )


def _arguments(name: str) -> dict[str, Any]:
    """The arguments that a model's folder builds it with, but those that are given anew."""
    if name.startswith(PREFIX) or not (Path(name) / CONFIG_NAME).is_file():
        return {}
    args = read_config(Path(name)).get("model_args") or {}
    return {key: value for key, value in args.items() if key not in ("num_classes", "drop_path_rate")}


def takes_size(name: str, model: nn.Module) -> bool:
    """True if a model is built for an image size, as one with positions is."""
    return bool(model.pretrained_cfg.get("fixed_input_size")) or "img_size" in _arguments(name)


def check_classes(name: str, model: nn.Module, splits: Splits) -> None:
    """Raises: UsageError: a model has other classes than some data, as far as both name theirs."""
    if model.num_classes != splits.num_classes:
        raise UsageError(
            f"{name} has {model.num_classes:,} classes, and {splits.name} has {splits.num_classes:,}. "
            "To train it on these, use growtas transfer."
        )
    labels = label_names(model)
    for number, (own, theirs) in enumerate(zip(labels, splits.classes, strict=False)):
        if own != theirs:
            raise UsageError(
                f"{name} has other classes than {splits.name}: class {number} is {own!r} in the model's "
                f"label_names and {theirs!r} in the data. Name the folders of the images as the model does, "
                "or train it on these with growtas transfer."
            )


def label_names(model: nn.Module) -> tuple[str, ...]:
    """The names of a model's classes, in the order of its outputs; none where it has none."""
    return tuple(model.pretrained_cfg.get("label_names") or ())
