"""Choices, bounds and types of the settings of a training run. No torch."""

from __future__ import annotations

import types
import typing
from typing import Any

from growtas.errors import UsageError

CHOICES: dict[str, tuple[str, ...]] = {
    "sched": ("cosine", "constant", "poly", "rsqrt", "tanh", "wsd"),
    "mixup_mode": ("batch", "pair", "elem"),
    "remode": ("const", "rand", "pixel"),
    "qkv_bias": ("interleaved", "published"),
    "unused_blocks": ("skip", "zero"),
    "amp": ("auto", "none", "bfloat16", "float16"),
    "sched_step": ("update", "epoch", "epoch_late"),
    "search_images": ("held_out", "shared"),
    "tune": ("auto", "off"),
    "new_region": ("keep", "standard", "near_zero", "pretrained"),
    "new_region_moments": ("keep", "reset"),
    "gradients": ("auto", "mean", "sum"),
    "distill": ("none", "inplace", "ema", "teacher"),
    "global_pool": ("avg", "token"),
    "interpolation": ("bicubic", "bilinear", "nearest", "random"),
    "bad_images": ("error", "skip"),
}

AT_LEAST: dict[str, float] = {
    "epochs": 1,
    "batch_size": 1,
    "accumulate": 1,
    "recount": 1,
    "repeated_augmentation": 1,
    "log_every": 1,
    "eval_every": 0,
    "eval_subnets": 0,
    "workers": 0,
    "shift": 0,
    "lr": 0,
    "min_lr": 0,
    "warmup_lr": 0,
    "warmup_epochs": 0,
    "weight_decay": 0,
    "mixup": 0,
    "cutmix": 0,
    "color_jitter": 0,
    "checkpoint_every_steps": 0,
    "checkpoint_every_seconds": 0,
    "interference_every": 0,
    "transition_params": 0,
    "subnets_per_step": 1,
    "distill_weight": 0,
    "label_weight": 0,
}
ABOVE_ZERO = ("norm_eps", "clip_grad", "transition_max_params")
BELOW_ONE = ("smoothing", "drop_path", "ema_decay")
PROBABILITIES = ("mixup_prob", "mixup_switch_prob", "reprob", "hflip")


def stages_text(stages: Any) -> Any:
    """Nested lists as the text form, so that YAML, the command line and Python hold the same value."""
    if isinstance(stages, list | tuple) and all(isinstance(groups, list | tuple) for groups in stages):
        return "/".join(",".join(str(group) for group in groups) for groups in stages)
    return stages


def transition_text(transition: Any) -> Any:
    """An epoch or a list of epochs as the text form."""
    if isinstance(transition, int) and not isinstance(transition, bool):
        return str(transition)
    if isinstance(transition, list | tuple):
        return ",".join(str(epoch) for epoch in transition)
    return transition


def typed(name: str, value: Any, hint: Any) -> Any:
    """The value, an int as a float where a float is meant; otherwise it must be what the field says."""
    allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if isinstance(value, int) and not isinstance(value, bool) and int not in allowed and float in allowed:
        return float(value)
    if isinstance(value, bool) and bool not in allowed or not isinstance(value, allowed):
        kinds = " or ".join(_KINDS[kind] for kind in allowed)
        raise UsageError(f"{name}={value!r} is not possible; it must be {kinds}.")
    return value


_KINDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    type(None): "none",
}
