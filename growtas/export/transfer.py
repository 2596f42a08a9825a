"""``growtas.transfer``: fine-tune a saved model on other data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from timm.data import resolve_data_config
from torch import Tensor, nn

from growtas.bounds import PIXELS, bounded
from growtas.errors import UsageError, nearest
from growtas.export import card, files
from growtas.progress import silent
from growtas.searching.evaluate import Evaluator
from growtas.supernet import SingleModel
from growtas.training.config import BOUNDS, TrainConfig
from growtas.training.data import preprocessing
from growtas.training.data.images import seed_globally
from growtas.training.embedded import EMBEDDED
from growtas.training.external import PREFIX, create
from growtas.training.log import last_record
from growtas.training.model import label_names, model_space, takes_size
from growtas.training.ranks import choose_device
from growtas.training.recipes import REFERENCE_BATCH, TRANSFER, WARMUP_SHARE
from growtas.training.run import Run
from growtas.training.start import begin, resumed

OF_SUPERNETS = (
    *("space", "recipe", "initial", "method", "method_options", "stages", "transition", "new_region"),
    *("transition_params", "transition_max_params", "transition_beta", "new_region_moments", "gradients"),
    *("subnets_per_step", "sandwich", "qkv_bias", "global_pool", "norm_eps", "unused_blocks", "tune"),
    *("eval_subnets", "interference_every", "resolutions"),
)
"""Settings of training that mean nothing to one model."""

OF_ARCHITECTURE = ("architecture", "fixed_input_size", "crop_mode", "first_conv", "classifier")
"""Entries of timm's pretrained_cfg that hold for any weights."""

SETTINGS = tuple(f.name for f in dataclasses.fields(TrainConfig) if f.name not in OF_SUPERNETS)


@bounded(image_size=PIXELS, **BOUNDS)
def transfer(
    model: str | Path | None = None,
    data: str | None = None,
    *,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    image_size: int | None = None,
    license: str | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    min_lr: float | None = None,
    warmup_epochs: float | None = None,
    layer_decay: float | None = None,
    ema_decay: float | None = None,
    **settings: Any,
) -> Run:
    """Fine-tune a model on other data, and save it as growtas extract does.

    The model gets a new head where the data has other classes, and its positions are resampled to another
    image size. The folder ``out`` holds the model (model.safetensors, config.json with its own preprocessing
    and class names, README.md) and the run (config.yaml, log.jsonl, checkpoint.pt).

    Args:
        model: a folder that growtas extract, growtas transfer or timm saved, or ``timm:NAME`` for timm's
            pretrained weights.
        data: as of growtas train.
        out: the folder of the run and of the fine-tuned model; it must not hold anything yet.
        resume: the folder of an interrupted one to continue instead; it knows its settings.
        image_size: pixels of the square input; the model's own where None.
        license: of the weights, for config.json and the card; nothing is said where None.
        epochs: passes over the training images; 30 where None.
        batch_size: images per update, over all ranks together; 128 where None.
        lr: peak learning rate, of the last layer; 1e-3 per 512 images where None.
        min_lr: at the end of the schedule; 1e-6 where None.
        warmup_epochs: epochs of linear warm-up; a tenth of the epochs where None.
        layer_decay: the learning rate of a layer over that of the one above it, 1 for one rate; 0.75 where
            None.
        ema_decay: keep an exponential moving average of the weights, such as 0.999, and save it as the model;
            none where None.
        settings: others of growtas train that concern one model, with its defaults for the same data.

    Returns:
        The finished run, whose folder timm loads as ``local-dir:``.

    Raises:
        UsageError: there is no such model or data, or a setting is unknown or makes no sense. Nothing was
            written.
        GrowtasError: as :func:`growtas.train`.
        growtas.training.guards.Interrupted: Ctrl-C or SIGTERM; saved, and can be resumed.

    Source:
        The recipe is the fine-tuning of BEiT and MAE (arXiv 2106.08254, 2111.06377), which timm's follow;
        epochs and batch size are our choice, for small data sets.

    Example:
        >>> run = growtas.transfer("best", "folder:flowers", out="runs/flowers")  # doctest: +SKIP
    """
    settings |= {
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "min_lr": min_lr,
        "warmup_epochs": warmup_epochs,
        "layer_decay": layer_decay,
        "ema_decay": ema_decay,
    }
    if resume is not None:
        if model is not None or image_size is not None:
            raise UsageError("A resumed run keeps its model and its image size; leave them out.")
        run = resumed(Run.open(resume, of_model=True), {"data": data, "out": out, **settings})
    else:
        run = _begun(str(model) if model else None, data, out, image_size, settings)
    if not silent():
        _save(run, license)
    return run


def _begun(
    name: str | None,
    data: str | None,
    out: str | Path | None,
    image_size: int | None,
    settings: dict[str, Any],
) -> Run:
    if name is None or data is None:
        raise UsageError("Give a model and data to fine-tune it on, or resume=FOLDER to continue.")
    for setting in settings:
        if setting not in SETTINGS:
            raise UsageError(f"Fine-tuning has no setting {setting!r}.{nearest(setting, SETTINGS)}")
    if settings.get("distill") == "inplace":
        raise UsageError(
            "distill='inplace' is for supernets; one model learns from a teacher, or from its ema."
        )
    if not name.startswith(PREFIX):
        name = str(Path(name).expanduser().absolute())
    model = create(name)
    if image_size is not None and takes_size(name, model):
        model = create(name, img_size=image_size)
    space = model_space(name, model, data, image_size)
    if space.image_width is not None:
        raise UsageError(
            f"{name} takes images of {space.image_size} x {space.image_width} pixels, and growtas trains on "
            "square ones: its augmentation crops squares. Give --image-size; evaluate and export take the "
            "model as it is."
        )
    interpolation = resolve_data_config({}, model=model)["interpolation"]
    values = recipe(settings) | {
        "space": space.name,
        "data": data,
        "out": out,
        "initial": name,
        "method": "single",
        "method_options": "subnet=largest",
        "stages": 1,
    }
    config = TrainConfig.from_dict({"interpolation": interpolation} | values)
    return begin(config, space, source=lambda run: _initial(run, model))


def recipe(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a fine-tuning, its recipe filled in. Args: settings: those that are given."""
    given = {name: value for name, value in settings.items() if value is not None}
    values = {**TRANSFER, **given}
    rate = values.pop("lr_per_512")
    values.setdefault("lr", rate * values["batch_size"] / REFERENCE_BATCH)
    values.setdefault("warmup_epochs", WARMUP_SHARE * values["epochs"])
    return values


def _initial(run: Run, model: nn.Module) -> dict[str, Tensor]:
    """A model's weights, with a new head where the run has other classes."""
    labels = label_names(model)
    if model.num_classes != run.num_classes or labels and run.classes and labels != run.classes:
        if not silent():
            print(f"The head is new: {run.num_classes:,} classes of {run.config.data}.", flush=True)
        seed_globally("weights", run.config.seed)
        model.reset_classifier(run.num_classes)
    return SingleModel(model, run.space).state_dict()


def _save(run: Run, license: str | None) -> None:
    """Write the fine-tuned model beside the run."""
    config, space = run.config, run.space
    net = run.load_net(averaged=config.ema_decay is not None)
    model = net.model
    model.pretrained_cfg = {
        **{name: model.pretrained_cfg[name] for name in OF_ARCHITECTURE if name in model.pretrained_cfg},
        "custom_load": False,  # the names are timm's own
        "input_size": (space.in_channels, space.image_size, space.image_size),
        **preprocessing(config.data, space, config.interpolation),
        "mean": space.mean,
        "std": space.std,
        "num_classes": run.num_classes,
        **({"label_names": run.classes} if run.classes else {}),
    }
    if config.data.partition(":")[0] not in EMBEDDED:
        model.pretrained_cfg["crop_pct"] = space.crop_pct
    model.trained = {
        "data": card.title(config.data),
        "model": card.title(space.name),
        "train_images": run.images["train"],
        "epochs": config.epochs,
        "search_top1": _held_out(run, net),
        "search_images": run.images["search"],
    }
    model._model_args = dict(space.args)
    files.save(model, run.path, overwrite=True, license=license)


def _held_out(run: Run, net: SingleModel) -> float:
    """Top-1 accuracy on the held-out images; training does not evaluate the averaged weights."""
    config = run.config
    if config.ema_decay is None:
        evaluation = last_record(run.path, "eval")
        if evaluation is not None:  # else the log was removed
            return evaluation["results"][0]["top1"]
    net, images = net.to(choose_device(config.device)), run.splits().search
    return Evaluator(net, images, amp=config.amp, workers=config.workers, keep=False).top1(
        run.space.largest()
    )
