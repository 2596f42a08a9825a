"""Training recipes: what settings that are not given become, by the data and the kind of space. No torch."""

from __future__ import annotations

from typing import Any

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
"""What replaces the published recipe for data that is named here."""
