"""Folders of saved models (config.json and weights): checked before a model is built from them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from numbers import Real
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from growtas.architectures import growtas_mobilenet, growtas_vit
from growtas.errors import GrowtasError, UsageError, nearest
from growtas.files import read_json, reading
from growtas.supernet import weights as foreign

WEIGHTS_NAME, CONFIG_NAME = "model.safetensors", "config.json"
CODE = {Path(module.__file__).stem: Path(module.__file__) for module in (growtas_vit, growtas_mobilenet)}
"""Of each architecture of growtas the file that defines it and needs torch and timm only."""

MOST_BYTES = 2**24  # of config.json; one with the 21,843 labels of ImageNet-22k has less than 2**20
MOST_CLASSES, MOST_PIXELS, MOST_CHANNELS = 10**6, 2**14, 2**10  # of an input and an output
MOST_NUMBER, MOST_ENTRIES, MOST_LAYERS = 2**17, 2**12, 2000  # in model_args
ENDINGS = (".safetensors", ".bin", ".pth", ".pt", ".tar")  # of the weights that timm finds in a folder
SLACK = 2**26  # elements that a model may have over its file's bytes: a new head, other positions


def open_model(folder: str | os.PathLike, **args: Any) -> nn.Module:
    """The model of a folder that growtas or timm saved, in evaluation mode.

    Without ``args`` it has exactly the head that was saved, and one of growtas' own exactly the weights.

    Args:
        folder: holds config.json and the weights.
        args: further ones of ``timm.create_model``, to which timm adapts the weights.

    Raises:
        UsageError: a file is missing, timm knows no such architecture, or it takes no such ``args``.
        GrowtasError: config.json or the weights are damaged, or do not belong together.
    """
    folder = Path(folder).absolute()
    about = read_config(folder)
    architecture, path = about["architecture"], folder / CONFIG_NAME
    if not timm.is_model(architecture):
        known = nearest(architecture[:80], timm.list_models())
        raise UsageError(
            f"{path}: timm {timm.__version__} has no model {foreign.shown(architecture)}.{known}"
        )
    if architecture in CODE and not (folder / WEIGHTS_NAME).is_file():
        raise UsageError(
            f"{folder} holds no saved model: {WEIGHTS_NAME} is missing. Save one with growtas extract."
        )
    source = f"local-dir:{folder}"
    try:
        _check_size(folder, source, args)
        if architecture in CODE and not args:
            model = _exact(folder, timm.create_model(source))
            check_digest(folder)
            return model
        model = timm.create_model(source, pretrained=True, **args).eval()
    except GrowtasError:
        raise
    except Exception as error:  # timm, safetensors and each architecture raise their own
        reason = foreign.first_line(error)
        if args:
            raise UsageError(f"{folder} cannot be built with {args}: {reason}.") from error
        raise GrowtasError(
            f"{path} does not describe a model that its weights fit ({reason}). Save the model again."
        ) from error
    _check_taken(folder, model, args)
    check_digest(folder)
    return model


def check_digest(folder: Path) -> None:
    """Raises: GrowtasError: the weights are damaged, or not those that config.json was saved with."""
    try:
        growtas_vit.check_digest(folder)  # of every architecture
    except ValueError as error:
        raise GrowtasError(str(error)) from error


def _check_size(folder: Path, source: str, args: dict[str, Any]) -> None:
    """Raises: GrowtasError: the model is far larger than its file; nothing is allocated to see this."""
    files = [path for path in folder.iterdir() if path.suffix in ENDINGS]
    for path in files:
        if not path.is_file():  # timm would wait on a pipe
            raise GrowtasError(f"{path} is no file of weights. Remove it, or save the model again.")
    try:
        with torch.device("meta"):
            sizes = timm.create_model(source, **args)
    except NotImplementedError:  # an architecture that computes while it is built
        return
    count = sum(parameter.numel() for parameter in sizes.parameters())
    held = sum(path.stat().st_size for path in files)
    if count > held + SLACK:
        raise GrowtasError(
            f"{folder / CONFIG_NAME} describes a model of {count:,} parameters, and its weights have "
            f"{held:,} bytes. Save the model again."
        )


def _exact(folder: Path, model: nn.Module) -> nn.Module:
    """A model of growtas with its weights and no others."""
    path = folder / WEIGHTS_NAME
    found, own = foreign.read(path), model.state_dict()
    try:
        weights = foreign.unwrapped(found, str(path))
        module = (
            growtas_vit if model.architecture == growtas_vit.GrowtasViT.architecture else growtas_mobilenet
        )
        module.check_weights(weights, model)
        foreign.check_shapes(weights, own, str(path))
    except ValueError as error:
        raise GrowtasError(
            f"{path} does not belong to its {CONFIG_NAME}, or is damaged: {error} Save the model again."
        ) from error
    model.load_state_dict({**own, **weights})  # growtas once saved no counters of batches
    return model.eval()


def _check_taken(folder: Path, model: nn.Module, args: dict[str, Any]) -> None:
    """Raises: GrowtasError: the head is not the saved one, unasked, or a parameter is not finite."""
    declared = model.pretrained_cfg.get("num_classes")
    if "num_classes" not in args and model.num_classes != declared:
        raise GrowtasError(
            f"{folder / CONFIG_NAME} describes a head of {model.num_classes} classes, and one of {declared} "
            "for the weights: the head would be random. Correct num_classes, or save the model again."
        )
    for name, parameter in model.named_parameters():
        foreign.check_numbers(name, parameter, parameter.dtype, str(folder))


def read_config(folder: Path) -> dict[str, Any]:
    """The content of a saved model's config.json, its values checked.

    Raises:
        UsageError: there is none.
        GrowtasError: it is damaged, or a value is none that a model can have.
    """
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise UsageError(
            f"{folder} holds no saved model: {CONFIG_NAME} is missing. Write timm:NAME, or the folder of a "
            "model that timm or growtas extract saved."
        )
    with reading(path, "the description of a model", "Save the model again."):
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"it has {path.stat().st_size:,} bytes, and at most {MOST_BYTES:,} are read")
        about = read_json(path)
        for name, problem in _problems(about):
            raise ValueError(f"{name} {problem}")
    return about


def _problems(about: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The values that no model can have, each with what it must be."""
    cfg, args = about.get("pretrained_cfg", about), about.get("model_args") or {}
    if not isinstance(about.get("architecture"), str):
        yield "architecture", "must be text"
    if not isinstance(cfg, dict) or not isinstance(args, dict):
        yield "pretrained_cfg and model_args", "must hold names and values"
        return
    for owner in (about, cfg, args):
        if not _whole(owner.get("num_classes", 0), 0, MOST_CLASSES):
            yield "num_classes", f"must be a whole number from 0 to {MOST_CLASSES:,}"
    labels = about.get("label_names", cfg.get("label_names"))
    if labels is not None and not (
        isinstance(labels, list) and all(isinstance(each, str) for each in labels)
    ):
        yield "label_names", "must be a list of text"
    yield from _of_images(cfg)
    channels, size = args.get("in_chans"), cfg.get("input_size")
    if size and channels is not None and channels != size[0]:
        yield "in_chans", f"is {foreign.shown(channels)} in model_args and {size[0]} in input_size"
    if (
        args
        and "num_classes" in about
        and args.get("num_classes", about["num_classes"]) != about["num_classes"]
    ):
        yield "num_classes", f"is {about['num_classes']}, and {args['num_classes']} in model_args"
    if labels and about["architecture"] in CODE and len(labels) != about.get("num_classes"):
        yield "label_names", f"has {len(labels):,} entries for num_classes={about.get('num_classes')}"
    yield from _of_arguments("model_args", args)


def _of_images(cfg: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """How images are prepared."""
    size = cfg.get("input_size")
    if size is not None and not (
        isinstance(size, list)
        and len(size) == 3
        and _whole(size[0], 1, MOST_CHANNELS)
        and all(_whole(side, 1, MOST_PIXELS) for side in size[1:])
    ):
        yield "input_size", f"must be channels, height and width, at most {MOST_PIXELS:,}"
    for name, least in (("mean", -1e6), ("std", 1e-6)):
        values = cfg.get(name)
        if values is not None and not (
            isinstance(values, list) and values and all(_real(value, least, 1e6) for value in values)
        ):
            yield name, "must be a list of finite numbers" + (" above 0" if name == "std" else "")
    if cfg.get("crop_pct") is not None and not _real(cfg["crop_pct"], 0.01, 10):
        yield "crop_pct", "must be a number from 0.01 to 10"
    for name in ("interpolation", "crop_mode", "license", "first_conv", "classifier"):
        value = cfg.get(name)
        lists = name in ("first_conv", "classifier") and isinstance(value, list)
        if not all(isinstance(each, str | None) for each in (value if lists else [value])):
            yield name, "must be text"


def _of_arguments(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Numbers and lists of a model's arguments that are too large to build it."""
    if isinstance(value, dict | list):
        if len(value) > MOST_ENTRIES:
            yield name, f"has {len(value):,} entries, and {MOST_ENTRIES:,} are possible"
            return
        for key, each in value.items() if isinstance(value, dict) else ((name, each) for each in value):
            yield from _of_arguments(str(key), each)
    elif isinstance(value, Real):
        layers = any(word in name for word in ("depth", "layer", "block"))
        most = MOST_CLASSES if name == "num_classes" else MOST_LAYERS if layers else MOST_NUMBER
        if not _real(value, -most, most):
            yield name, f"is {value if isinstance(value, float) else 'a number'} beyond {most:,}"


def _whole(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _real(value: Any, least: float, most: float) -> bool:
    return (
        isinstance(value, bool) or isinstance(value, Real) and math.isfinite(value) and least <= value <= most
    )
