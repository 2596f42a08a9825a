"""``growtas.finetune``: a short second phase on the weights of a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from growtas import cost
from growtas.bounds import bounded
from growtas.errors import UsageError
from growtas.training.config import BOUNDS, TrainConfig
from growtas.training.run import Run
from growtas.training.start import begin

LR_SHARE = 0.05  # 5e-5 of the published 1e-3: AutoFormer-T and -S
LR_SHARE_LARGE = 0.005  # 5e-6 of it: AutoFormer-B
LARGE = 50e6  # parameters; T, S and B have 9, 34 and 75 million


@bounded(**BOUNDS)
def finetune(
    run: str | Path | Run,
    method: str = "growtas+",
    *,
    out: str | Path | None = None,
    epochs: int = 5,
    lr: float | None = None,
    **settings: Any,
) -> Run:
    """Train the weights of a finished run further, in a run of its own.

    It keeps the settings of the first run but for these: a fresh optimizer, a cosine without warm-up, few
    epochs and a low learning rate; the options of the method are its own. The new run can be resumed
    (``growtas train --resume``), searched, evaluated and extracted as any other, and needs the first one no
    more.

    Args:
        run: the finished run, or its folder.
        method: ``growtas+`` trains the groups behind the first one and leaves what the first one uses as it
            is, to the bit (with ``method_options="frozen=literal"``: what the groups of the first stage use);
            any other method goes on with all weights.
        out: the folder of the new run; ``finetune-METHOD`` in the first run's folder where None.
        epochs: passes over the training images.
        lr: peak learning rate; where None a share of the first run's: 0.05, or 0.005 for spaces of more than
            50 million parameters. That is the published 5e-5 (T, S) and 5e-6 (B) at the published recipe.
        settings: other settings of :class:`growtas.training.config.TrainConfig`.

    Returns:
        The finished new run.

    Raises:
        UsageError: the first run is not finished, or a setting is unknown or cannot be given here.
        GrowtasError: as :func:`growtas.train`.

    Source:
        GrowTAS+ in GrowTAS (arXiv 2512.12296). Epochs and learning rates follow the authors' launch settings;
        their scaling to other recipes is our own choice, and so is min_lr, lowered by the same share.

    Example:
        >>> plus = finetune(train("digits", out="runs/digits"))
        >>> plus.path
        PosixPath('runs/digits/finetune-growtas+')
    """
    source = Run.open(run)
    for name in ("space", "initial", "recipe"):
        if name in settings:
            raise UsageError(f"{name} cannot be given to a finetune: it continues the run {source.path}.")
    first = source.config
    lr = _rounded(first.lr * lr_share(source)) if lr is None else lr
    values = first.to_dict() | {
        "recipe": None,
        "method": method,
        "method_options": first.method_options if method == first.method else "",
        "initial": str(source.path),
        "out": str(source.path / f"finetune-{method}" if out is None else out),
        "epochs": epochs,
        "lr": lr,
        "min_lr": _rounded(first.min_lr * lr / first.lr) if first.lr else 0.0,
        "sched": "cosine",
        "warmup_epochs": 0.0,
        "sched_step": "update",
    }
    return begin(TrainConfig.from_dict(values | settings), source.space)


def lr_share(source: Run) -> float:
    """The learning rate of a finetune as a share of its first run's."""
    space = source.space
    size = space.schedule_params or cost.parameters(space.largest(), space, source.num_classes)
    return LR_SHARE if size <= LARGE else LR_SHARE_LARGE


def _rounded(value: float) -> float:
    """Without the tail that a product of two short numbers has: 0.00015, not 0.00015000000000000001."""
    return float(f"{value:.12g}")
