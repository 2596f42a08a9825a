"""Training recipes: what settings that are not given become, by the data and the kind of space. No torch."""

from __future__ import annotations

from typing import Any

from growtas.errors import UsageError, nearest

REFERENCE_BATCH = 512  # the published learning rate is 5e-4 per 512 images
WARMUP_SHARE = 0.1  # a run too short for the recipe's warm-up spends at most this part of it warming up

PUBLISHED: dict[str, Any] = {
    "opt": "adamw",
    "epochs": 500,
    "batch_size": 1024,
    "lr_per_512": 5e-4,
    "min_lr": 1e-5,
    "warmup_lr": 1e-6,
    "warmup_epochs": 20,
    "weight_decay": 0.05,
    "smoothing": 0.1,
    "mixup": 0.8,
    "cutmix": 1.0,
    "drop_path": 0.1,
    "auto_augment": "rand-m9-mstd0.5-inc1",
    "color_jitter": 0.4,
    "reprob": 0.25,
    "hflip": 0.5,
    "shift": 0,
}
"""AutoFormer's recipe, the same for T, S and B."""

PUBLISHED_CONVOLUTIONAL: dict[str, Any] = {
    **PUBLISHED,
    "opt": "sgd",  # timm's is Nesterov's, of momentum 0.9
    "epochs": 590,
    "batch_size": 2048,
    "lr_per_512": 0.65,
    "min_lr": 0.0,
    "warmup_lr": 0.0,
    "warmup_epochs": 5,
    "weight_decay": 3e-5,
    "mixup": 0.0,
    "cutmix": 0.0,
    "drop_path": 0.0,
    "auto_augment": "none",
    "reprob": 0.0,
}
"""Once-for-all's recipe: 2.6 for 2048 images while the largest network is trained alone (180 epochs), then
progressive shrinking (410)."""

RECIPES: dict[str, dict[str, Any]] = {
    "digits": {
        "opt": "adamw",
        "epochs": 60,
        "batch_size": 32,
        "lr": 3e-3,
        "min_lr": 1e-5,
        "warmup_lr": 1e-6,
        "warmup_epochs": 4,
        "weight_decay": 0.05,
        "smoothing": 0.1,
        "mixup": 0.0,
        "cutmix": 0.0,
        "drop_path": 0.0,
        "auto_augment": "none",
        "color_jitter": 0.0,
        "reprob": 0.0,
        "hflip": 0.0,
        "shift": 0,
    },
}
# The rate is the best of 1.5e-3 to 2.4e-2 for uniform sampling, on the search split.
RECIPES["glyphs"] = RECIPES["digits"] | {"batch_size": 64, "epochs": 40, "lr": 1.2e-2}
# Not searched at this length: 3e-3 and 6e-3 were tried over 12 epochs, see the data set's module.
RECIPES["typefaces"] = RECIPES["glyphs"] | {"lr": 6e-3}
"""Settings that replace the published recipe for the data named here."""

TRANSFER: dict[str, Any] = {
    "opt": "adamw",
    "epochs": 30,
    "batch_size": 128,
    "lr_per_512": 1e-3,
    "min_lr": 1e-6,
    "layer_decay": 0.75,
}
"""Settings of growtas transfer besides the augmentation of the data's recipe: the fine-tuning of BEiT and MAE
(AdamW, cosine, layer decay, 5e-4 per 256 images), with epochs and batch for small data sets."""

AUTOFORMER: dict[str, Any] = {
    **PUBLISHED,
    "method": "uniform",
    "sched": "cosine",
    "sched_step": "epoch_late",
    "mixup_prob": 1.0,
    "mixup_switch_prob": 0.5,
    "mixup_mode": "batch",
    "interpolation": "bicubic",
    "remode": "pixel",
    "recount": 1,
    "repeated_augmentation": 3,
    "qkv_bias": "published",
    "unused_blocks": "zero",
    "amp": "float16",
    "search_images": "shared",
}
"""AutoFormer's published command, for 8 GPUs of 128 images, to the letter."""

NAMED: dict[str, dict[str, Any]] = {
    "autoformer": AUTOFORMER,
    "growtas": AUTOFORMER
    | {"method": "growtas", "stages": 2, "transition": "size-aware", "new_region": "keep"},
    "prenas": AUTOFORMER
    | {
        "method": "prenas",
        "qkv_bias": "interleaved",
        "mixup_mode": "elem",
        "auto_augment": "rand-n3-m10-mstd0.5-inc1",
        "recount": 2,
        "min_lr": 1e-7,
    },
    "ofa": PUBLISHED_CONVOLUTIONAL
    | {
        "method": "shrinking",
        "resolutions": "128-224/4",
        "interpolation": "bilinear",
        "unused_blocks": "zero",
        "amp": "none",
        "gradients": "sum",
    },
}
"""Recipes by the name of the published system; docs/training.md has each beside its source."""

CONVOLUTIONAL = ("ofa",)
PRENAS_SMALL = {"auto_augment": "v0r-mstd0.5", "recount": 1, "min_lr": 1e-5}  # of AutoFormer-S alone


def named(recipe: str, space: str) -> dict[str, Any]:
    """The settings of a recipe, with ``lr_per_512`` in place of ``lr``.

    Args:
        recipe: one of :data:`NAMED`.
        space: name of the space that it trains.

    Raises:
        UsageError: there is no such recipe (the nearest is named).
    """
    if recipe not in NAMED:
        raise UsageError(f"There is no recipe {recipe!r}.{nearest(str(recipe), NAMED)}")
    small = PRENAS_SMALL if (recipe, space) == ("prenas", "autoformer-small") else {}
    return {**NAMED[recipe], **small}
