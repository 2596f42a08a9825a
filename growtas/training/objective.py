"""The objective of a subnet: the labels, mixed or not, and where there is one, a teacher."""

from __future__ import annotations

import torch.nn.functional as F
from timm.data import Mixup
from torch import Tensor

from growtas.training.config import TrainConfig
from growtas.training.run import Run


class Objective:
    """The loss of one subnet in one update.

    Without a teacher it is the cross-entropy with the labels; with one, ``label_weight`` times that plus
    ``distill_weight`` times the cross-entropy with the teacher's probabilities.

    Args:
        config: gives the weights and the smoothing.
        mixed: targets are probabilities, smoothed already.

    Source: both weights 1 are once-for-all's (Cai et al., ICLR 2020); label_weight 0 is BigNAS's.
    """

    def __init__(self, config: TrainConfig, mixed: bool) -> None:
        self.smoothing = 0.0 if mixed else config.smoothing
        self.label_weight = config.label_weight
        self.distill_weight = config.distill_weight

    def __call__(self, logits: Tensor, targets: Tensor, teacher: Tensor | None) -> Tensor:
        """The loss, a scalar.

        Args:
            logits: (B, classes).
            targets: labels (B,) or probabilities (B, classes).
            teacher: logits (B, classes), detached; None without one.
        """
        logits = logits.float()
        loss = F.cross_entropy(logits, targets, label_smoothing=self.smoothing)
        if teacher is None:
            return loss
        soft = F.cross_entropy(logits, teacher.float().softmax(1))
        return self.label_weight * loss + self.distill_weight * soft


def create_mixup(run: Run) -> Mixup | None:
    """Build the mixing of a batch's images and labels; None where the run mixes none."""
    config = run.config
    if not config.mixup and not config.cutmix:
        return None
    return Mixup(
        config.mixup,
        config.cutmix,
        prob=config.mixup_prob,
        switch_prob=config.mixup_switch_prob,
        mode=config.mixup_mode,
        label_smoothing=config.smoothing,
        num_classes=run.num_classes,
    )
