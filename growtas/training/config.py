"""Every setting of a training run, its defaults and its checks. No torch.

A setting left at None takes its value from the recipe of the data: the published one of AutoFormer and
GrowTAS (500 epochs of ImageNet), or a small one for the embedded digits.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from growtas.bounds import COST, EPOCHS, IMAGES, PIXELS, PROCESSES, SEED, SUBNETS, Bound
from growtas.errors import UsageError, nearest, quoted
from growtas.methods.schedule import MAX_PARAMS
from growtas.spaces.choices import MOST_CHOICES
from growtas.training.embedded import data_for
from growtas.training.recipes import (
    CONVOLUTIONAL,
    NAMED,
    PUBLISHED,
    PUBLISHED_CONVOLUTIONAL,
    RECIPES,
    REFERENCE_BATCH,
    WARMUP_SHARE,
    named,
)
from growtas.training.settings_checks import (
    ABOVE_ZERO,
    BELOW_ONE,
    PROBABILITY,
    at_least,
    choices,
    setting,
    stages_text,
    transition_text,
    typed,
)


@dataclass(frozen=True, repr=False)
class TrainConfig:
    """The settings of :func:`growtas.train` and of ``growtas train``.

    Args:
        recipe: a published system's settings: ``autoformer``, ``growtas``, ``prenas`` or ``ofa``; those that
            are given besides win. See docs/training.md.
        space: name of a preset or path of a YAML file.
        data: needed, unless the space is named after an embedded set (``digits``, ``digits-mobilenet``,
            ``glyphs``, ``typefaces``). ``folder:PATH`` (PATH/train/CLASS/* and PATH/val/CLASS/*),
            ``packed:PATH`` (written by growtas data pack), a timm data set name such as ``torch/cifar10`` or
            ``hfds/OWNER/NAME``, ``digits``, or rendered characters: ``glyphs`` (which character?) or
            ``typefaces`` (which font?); ``glyphs:COUNT`` has another number to train on than 16000, and
            ``glyphs:COUNT,label_noise=0.2`` or ``glyphs:label_noise=0.2`` replaces that share of the labels
            that are trained on.
        method: ``growtas``, ``uniform``, or another that is registered.
        stages: number of stages, or the groups of each such as ``0,1/0,1,2``.
        transition: ``size-aware``, ``midpoint``, the epochs such as ``250,375``, or ``plateau``, which begins
            a stage when the loss has stopped falling.
        new_region: ``keep``, ``standard``, ``near_zero`` or ``pretrained``: how weights start that a stage
            newly uses.
        new_region_moments: ``reset`` sets the optimizer's moments of those weights to zero; ``keep``.
        method_options: of the method itself, ``key=value,key=value``; see docs/methods.md.
        subnets_per_step: random subnets of each update.
        gradients: of an update's subnets: their ``mean``, their ``sum``, or ``auto``, what the method's
            source does (``sum`` for shrinking, ``mean`` for the others).
        sandwich: train the largest and the smallest subnet in every update besides the random ones.
        distill: ``none``; ``inplace``: the largest subnet is trained first in every update and teaches the
            others; ``ema``: the largest subnet of the averaged weights (see ema_decay) teaches; ``teacher``:
            another model does.
        teacher: that model: ``timm:NAME`` with timm's pretrained weights, or a folder that timm or growtas
            extract saved. It sees the mixed images, in its own size and normalisation.
        distill_weight: of the cross-entropy with the teacher's probabilities.
        label_weight: of the cross-entropy with the labels, for subnets that have a teacher.
        ema_decay: keep an exponential moving average of the weights, such as 0.9999; none where None.
        epochs: passes over the training images (500; digits 60, glyphs and typefaces 40).
        batch_size: images per update, over all ranks together (1024; digits 32, glyphs and typefaces 64).
        accumulate: equal parts that an update's images are computed in one after the other, for less memory;
            the update is that of the whole batch, but BatchNorm sees the parts.
        checkpoint_activations: keep only the input of each transformer block and compute the block again in
            the backward pass: less memory, about a third more time, equal gradients.
        out: the folder of the run; it must not hold anything yet.
        seed: determines initial weights, order, augmentation and subnets.
        transition_params: size C of the size-aware rule; the space's own where None.
        transition_max_params: its C_max.
        transition_beta: its beta in epochs; a tenth of the epochs where None.
        opt: a timm optimizer name (adamw; sgd for convolutional spaces on published data).
        lr: peak learning rate; 5e-4 per 512 images where None (digits 3e-3, glyphs 1.2e-2,
            typefaces 6e-3).
        min_lr: at the end of the schedule (1e-5).
        warmup_lr: at the first update (1e-6).
        warmup_epochs: epochs of linear warm-up (20; digits 4), at most a tenth of the run unless given.
        weight_decay: 0.05; never on 1-D parameters, absolute position and cls token.
        layer_decay: of growtas transfer alone: the learning rate of a layer over that of the one above it
            (0.75); 1 for one rate.
        sched: a timm schedule over the whole run; nothing restarts at a transition.
        sched_step: ``update`` sets the learning rate at every update, ``epoch`` at the beginning of each
            epoch, ``epoch_late`` so and one epoch late, as AutoFormer's code does.
        clip_grad: largest gradient norm; none where None.
        smoothing: label smoothing (0.1).
        mixup: alpha of mixup, 0 for none (0.8; digits 0).
        cutmix: alpha of cutmix, 0 for none (1.0; digits 0).
        mixup_prob: share of batches that are mixed.
        mixup_switch_prob: share of those that use cutmix where both are on.
        mixup_mode: ``batch``, ``pair`` or ``elem``.
        drop_path: rate of the last block (0.1; digits 0).
        auto_augment: timm's policy string, ``none`` for none (rand-m9-mstd0.5-inc1; digits none).
        color_jitter: used where there is no policy (0.4; digits 0).
        reprob: probability of random erasing (0.25; digits 0).
        remode: ``const``, ``rand`` or ``pixel``.
        recount: most erased rectangles.
        hflip: probability of a horizontal flip (0.5; digits 0).
        shift: most pixels by which embedded images are moved at random (0).
        interpolation: of resized crops, and of the evaluation's resize.
        resolutions: sizes in pixels that the images of an update are scaled to, one drawn per update, such as
            ``128,160,192`` or ``128-224/4`` (every fourth); only for convolutional spaces.
        repeated_augmentation: differently augmented copies of each image per epoch; an epoch stays as long
            and sees a share of the images. The published runs use 3 on several GPUs.
        qkv_bias: ``interleaved`` (nested in the heads) or ``published``.
        global_pool: of a vision transformer, what the head takes: ``avg``, the mean of the patch tokens, or
            ``token``, the cls token; that of ``initial`` where None, else ``avg``.
        norm_eps: epsilon of a vision transformer's LayerNorms; that of ``initial`` where None, else 1e-5.
        unused_blocks: ``skip`` leaves blocks beyond the sampled depth without gradients, so the optimizer
            does not touch them; ``zero`` gives them zero gradients, so weight decay and momentum still move
            them, as the published code did under torch 1.7.
        amp: ``bfloat16`` or ``float16`` (with a gradient scaler) for autocast, with TF32 for what stays
            float32 on a GPU; ``none`` for float32; ``auto``: bfloat16 on a GPU that has it, float16 on an
            older one, none on a CPU.
        reduce_dtype: ``float32`` or ``bfloat16``, in which several ranks send and add up gradients; half the
            bytes in bfloat16.
        device: ``auto`` (a GPU where there is one), ``cpu``, ``cuda``, ``cuda:1``, ...
        tune: ``auto`` races backends first where a GPU has no tuning record of what the run needs, once;
            ``off`` takes what records there are. See growtas tune.
        workers: processes that load images; as many as fit where None.
        rank_timeout: seconds that one exchange between several ranks may take, after which a rank that hangs
            ends the run; one that died does at once.
        data_folder: where timm data sets are stored.
        download: let timm download the data set into ``data_folder``.
        bad_images: ``error`` stops at an image that cannot be read; ``skip`` decodes all images before the
            first use of the data, once, and leaves out and counts those that cannot. See growtas data check.
        split_seed: determines which training images are held out for the search; not the run's seed, so
            that runs of several seeds are compared on the same images.
        search_images: ``held_out`` keeps the images that the search ranks subnets by out of training;
            ``shared`` trains on them too, as the published code does.
        eval_every: epochs between evaluations on the search split; 0 for the end only.
        eval_subnets: random subnets evaluated besides the smallest and the largest.
        interference_every: epochs between measurements of how far the gradients of the smallest and the
            largest group agree on the weights that they share; 0 for none.
        log_every: steps between step records in log.jsonl.
        log_steps: of them that are complete in a run of more, evenly spread; of the others the log keeps the
            subnets alone, packed. 0 for all.
        checkpoint_every_steps: steps between checkpoints within an epoch; 0 for none.
        checkpoint_every_seconds: seconds between checkpoints within an epoch; 0 for none.
        tensorboard: write TensorBoard curves, where ``trackers`` is not given.
        trackers: where curves go: ``tensorboard``, ``wandb``, ``mlflow``, several with commas, or ``none``.
        initial: weights to begin with: the folder of a finished run (its last ones; see growtas finetune), or
            a pretrained vision transformer: ``timm:NAME``, a folder that timm saved, or a ``.safetensors`` or
            ``.pth`` file with timm's or DeiT's names.

    Raises:
        UsageError: a value makes no sense; the sentence names it and what is allowed.
    """

    space: str
    data: str | None = None
    method: str = "growtas"
    stages: int | str = setting(2, Bound(1, MOST_CHOICES, words=True))
    transition: str = "size-aware"
    new_region: str = setting("keep", choices("keep", "standard", "near_zero", "pretrained"))
    new_region_moments: str = setting("keep", choices("keep", "reset"))
    method_options: str = ""
    subnets_per_step: int = setting(1, at_least(1, 1000))
    gradients: str = setting("auto", choices("auto", "mean", "sum"))
    sandwich: bool = False
    distill: str = setting("none", choices("none", "inplace", "ema", "teacher"))
    teacher: str | None = None
    distill_weight: float = setting(1.0, at_least(0))
    label_weight: float = setting(1.0, at_least(0))
    ema_decay: float | None = setting(None, BELOW_ONE)
    epochs: int | None = setting(None, EPOCHS)
    batch_size: int | None = setting(None, IMAGES)
    accumulate: int = setting(1, IMAGES)
    checkpoint_activations: bool = setting(False, runtime=True)
    out: str | None = None
    seed: int = setting(0, SEED)
    transition_params: float | None = setting(None, at_least(0, COST.most))
    transition_max_params: float = setting(MAX_PARAMS, COST)
    transition_beta: float | None = setting(None, Bound(-EPOCHS.most, EPOCHS.most, whole=False))
    opt: str | None = None
    lr: float | None = setting(None, at_least(0, 1e30))
    min_lr: float | None = setting(None, at_least(0))
    warmup_lr: float | None = setting(None, at_least(0))
    warmup_epochs: float | None = setting(None, at_least(0))
    weight_decay: float | None = setting(None, at_least(0))
    layer_decay: float | None = setting(None, Bound(0, 10, whole=False, above=True))
    sched: str = setting("cosine", choices("cosine", "constant", "poly", "rsqrt", "tanh", "wsd"))
    sched_step: str = setting("update", choices("update", "epoch", "epoch_late"))
    clip_grad: float | None = setting(None, ABOVE_ZERO)
    smoothing: float | None = setting(None, BELOW_ONE)
    mixup: float | None = setting(None, at_least(0))
    cutmix: float | None = setting(None, at_least(0))
    mixup_prob: float = setting(1.0, PROBABILITY)
    mixup_switch_prob: float = setting(0.5, PROBABILITY)
    mixup_mode: str = setting("batch", choices("batch", "pair", "elem"))
    drop_path: float | None = setting(None, BELOW_ONE)
    auto_augment: str | None = None
    color_jitter: float | None = setting(None, at_least(0))
    reprob: float | None = setting(None, PROBABILITY)
    remode: str = setting("pixel", choices("const", "rand", "pixel"))
    recount: int = setting(1, at_least(1, 1000))
    hflip: float | None = setting(None, PROBABILITY)
    shift: int | None = setting(None, at_least(0, PIXELS.most))
    interpolation: str = setting("bicubic", choices("bicubic", "bilinear", "nearest", "random"))
    resolutions: str | None = None
    repeated_augmentation: int = setting(1, at_least(1, 1000))
    qkv_bias: str = setting("interleaved", choices("interleaved", "published"))
    global_pool: str | None = setting(None, choices("avg", "token"))
    norm_eps: float | None = setting(None, Bound(0, 1, whole=False, above=True))
    unused_blocks: str = setting("skip", choices("skip", "zero"))
    amp: str = setting("auto", choices("auto", "none", "bfloat16", "float16"))
    reduce_dtype: str = setting("float32", choices("float32", "bfloat16"))
    device: str = setting("auto", runtime=True)
    tune: str = setting("auto", choices("auto", "off"), runtime=True)
    workers: int | None = setting(None, PROCESSES, runtime=True)
    rank_timeout: float = setting(600.0, ABOVE_ZERO, runtime=True)
    data_folder: str | None = setting(None, runtime=True)
    download: bool = False
    bad_images: str = setting("error", choices("error", "skip"))
    split_seed: int = setting(0, SEED)
    search_images: str = setting("held_out", choices("held_out", "shared"))
    eval_every: int = setting(10, at_least(0))
    eval_subnets: int = setting(2, at_least(0, SUBNETS.most))
    interference_every: int = setting(0, at_least(0), runtime=True)
    log_every: int = setting(1, at_least(1))
    log_steps: int = setting(20_000, at_least(0), runtime=True)
    checkpoint_every_steps: int = setting(0, at_least(0), runtime=True)
    checkpoint_every_seconds: float = setting(600.0, at_least(0), runtime=True)
    tensorboard: bool = setting(True, runtime=True)
    trackers: str | None = setting(None, runtime=True)
    initial: str | None = None
    recipe: str | None = None

    def __post_init__(self) -> None:
        self._set("stages", stages_text(self.stages))
        self._set("transition", transition_text(self.transition))
        for name in ("out", "data_folder", "space", "initial", "teacher"):
            if isinstance(getattr(self, name), Path):
                self._set(name, str(getattr(self, name)))
        if isinstance(self.data, str) and self.data.startswith(("folder:", "packed:")):
            kind, _, path = self.data.partition(":")
            folder = Path(path).expanduser().absolute()  # a resume may run in another working folder
            self._set("data", f"{kind}:{folder}")
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = typed(field.name, getattr(self, field.name), hints[field.name])
            self._set(field.name, value)
            if value is not None and field.metadata.get("check"):
                field.metadata["check"](field.name, value)
        if None not in (self.warmup_epochs, self.epochs) and self.warmup_epochs >= self.epochs:
            raise UsageError(
                f"warmup_epochs={self.warmup_epochs:g} leaves nothing of epochs={self.epochs}; "
                "lower it or train longer."
            )

        if self.distill == "ema" and self.ema_decay is None:
            raise UsageError(
                "distill='ema' needs averaged weights to learn from; set ema_decay, such as 0.999."
            )
        if (self.distill == "teacher") != (self.teacher is not None):
            raise UsageError(
                f"distill={self.distill!r} and teacher={self.teacher!r} do not belong together: give both "
                "distill='teacher' and teacher='timm:NAME' or a folder, or neither."
            )
        if self.teacher is not None and not self.teacher.startswith("timm:"):
            self._set("teacher", str(Path(self.teacher).expanduser().absolute()))  # for a resume elsewhere
        self.resolution_sizes()

    def __repr__(self) -> str:
        """The settings that are not at their defaults, as they can be written again."""
        given = (f.name for f in dataclasses.fields(self) if getattr(self, f.name) != f.default)
        return f"TrainConfig({', '.join(f'{name}={getattr(self, name)!r}' for name in given)})"

    def resolution_sizes(self) -> tuple[int, ...]:
        """The sizes that ``resolutions`` names, none where it is not given; UsageError if unreadable."""
        text = self.resolutions or ""
        try:
            first, dash, rest = text.partition("-")
            if dash:
                last, _, step = rest.partition("/")
                found = range(int(first), int(last) + 1, int(step or 1))
                sizes = tuple(found[: PIXELS.most + 1])  # more than may be, of a range of 23 digits
            else:
                sizes = tuple(int(part) for part in text.split(",") if part.strip())
            if any(not 1 <= size <= PIXELS.most for size in sizes) or bool(text) != bool(sizes):
                raise ValueError(text)
        except ValueError:
            raise UsageError(
                f"resolutions={quoted(text)} is not possible; write sizes of 1 to {PIXELS.most:,} pixels, "
                "such as '128,160,192', or a range and its step, such as '128-224/4'."
            ) from None
        return sizes

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def resolved(self, convolutional: bool = False) -> TrainConfig:
        """The same settings with every None that a recipe knows filled in.

        Args:
            convolutional: the space is one of convolutional networks, whose published recipe is another.

        Raises:
            UsageError: data is not given, and the space is not named after an embedded set.
        """
        published = PUBLISHED_CONVOLUTIONAL if convolutional else PUBLISHED
        data = data_for(self.space, self.data)
        recipe = {"data": data, **RECIPES.get(data.partition(":")[0], published)}
        if self.recipe is not None:
            recipe = {"data": data, **named(self.recipe, self.space)}
            if convolutional != (self.recipe in CONVOLUTIONAL):
                fitting = [name for name in NAMED if (name in CONVOLUTIONAL) == convolutional]
                raise UsageError(
                    f"recipe={self.recipe!r} does not fit the space {self.space!r}, which is of another "
                    f"family; choose {' or '.join(fitting)}, or leave it out."
                )
        rate = recipe.pop("lr_per_512", None)
        values = {name: value for name, value in recipe.items() if getattr(self, name) is None}
        epochs = values.get("epochs", self.epochs)
        if "warmup_epochs" in values:
            values["warmup_epochs"] = min(values["warmup_epochs"], WARMUP_SHARE * epochs)
        if self.lr is None and rate is not None:
            values["lr"] = rate * values.get("batch_size", self.batch_size) / REFERENCE_BATCH
        return dataclasses.replace(self, **values)

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values, as config.yaml holds them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Build and check the settings from plain values.

        Raises:
            UsageError: a name is unknown (the nearest is named), or a value makes no sense.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                raise UsageError(f"Training has no setting {name!r}.{nearest(str(name), known)}")
        if "space" not in values:
            raise UsageError("Training needs a space: the name of a preset or the path of a YAML file.")
        recipe = {}
        if values.get("recipe") is not None:  # what resolved() cannot fill in, since it has a default
            defaults = {field.name: field.default for field in dataclasses.fields(cls)}
            settings = named(values["recipe"], str(values["space"]))
            recipe = {name: value for name, value in settings.items() if defaults.get(name) is not None}
        return cls(**{**recipe, **values})


FORMER: dict[str, Any] = {}
"""Of a setting that is younger than the first format, the value that runs had before it, where that is not
its default now. A setting that gets another default goes in here with its first one."""


def with_former(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that an earlier version wrote, those that it did not know yet at the value of that time."""
    fields = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
    known = {name: value for name, value in fields.items() if value is not dataclasses.MISSING}
    return {**known, **FORMER, **settings}


RUNTIME = tuple(field.name for field in dataclasses.fields(TrainConfig) if field.metadata.get("runtime"))
"""Settings that a resume may change: they do not enter the result."""

BOUNDS = {
    field.name: field.metadata["check"]
    for field in dataclasses.fields(TrainConfig)
    if isinstance(field.metadata.get("check"), Bound)
}
"""Of every number, for public functions to check it before anything else."""
