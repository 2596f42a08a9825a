"""One update of a run: the mixed batch, the gradients of its subnets, and the optimizer's step."""

from __future__ import annotations

import torch
from timm.utils import ModelEmaV3
from torch import Tensor

from growtas.methods import Method, TrainingContext
from growtas.space import Subnet
from growtas.training.calibration import batch_statistics
from growtas.training.images import seed_globally
from growtas.training.inputs import at_resolution, checked_resolutions
from growtas.training.objective import Objective, create_mixup
from growtas.training.optimizer import fill_momentum
from growtas.training.precision import precision
from growtas.training.run import Run


class Update:
    """What an update computes, a function of the run's seed, the step and the rank.

    Args:
        run: gives the settings.
        method: gives the subnets of a step.
        context: net, optimizer and device.
        ema: the averaged weights, where the run keeps some.

    Raises:
        UsageError: the settings do not fit the space.
    """

    def __init__(self, run: Run, method: Method, context: TrainingContext, ema: ModelEmaV3 | None) -> None:
        self.config, self.method, self.context, self.ema = run.config, method, context, ema
        self.net, self.optimizer, self.device = context.net, context.optimizer, context.device
        self.mixup = create_mixup(run)
        self.resolutions = checked_resolutions(run)
        self.objective = Objective(run.config, self.mixup is not None)

    def gradients(
        self, step: int, images: Tensor, labels: Tensor, rank: int
    ) -> tuple[tuple[Subnet, ...], Tensor]:
        """Mix a batch and compute the gradients of every subnet of the step.

        Args:
            step: number of the update.
            images: (B, C, S, S), of this rank.
            labels: (B,).
            rank: of this process; mixup and drop-path differ from rank to rank.

        Returns:
            The subnets, and the mean of their losses, a scalar on the device.
        """
        seed_globally("step", self.config.seed, step, rank)  # of mixup and drop-path
        images = images.to(self.device, non_blocking=True)
        targets = labels.to(self.device, non_blocking=True)
        if self.resolutions:
            images = at_resolution(images, self.resolutions, self.config.seed, step)
        if self.mixup is not None:
            images, targets = self.mixup(images, targets)
        self.optimizer.zero_grad(set_to_none=True)
        return self._backward(step, images, targets)

    def _backward(self, step: int, images: Tensor, targets: Tensor) -> tuple[tuple[Subnet, ...], Tensor]:
        config, method = self.config, self.method
        how = method.gradients if config.gradients == "auto" else config.gradients
        subnets = method.subnets(step)
        soft = self.teacher_logits(step, images)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for subnet in subnets:
            with precision(config.amp, self.device):
                logits = self.net(images, subnet)
            loss = self.objective(logits, targets, soft)
            (loss / len(subnets) if how == "mean" else loss).backward()
            total += loss.detach() / len(subnets)
            if soft is None and config.distill == "inplace":
                soft = logits.detach()  # the first subnet is the largest: the others learn from it
        return subnets, total

    @torch.no_grad()
    def teacher_logits(self, step: int, images: Tensor) -> Tensor | None:
        """Logits (B, classes) of the method's teacher, else of the averaged weights where they teach.

        Args:
            step: number of the update.
            images: (B, C, S, S), on the device.
        """
        soft = self.method.teacher_logits(images, self.context)
        if soft is None and self.config.distill == "ema":
            net, largest = self.ema.module, self.method.extremes(step)[1]
            with precision(self.config.amp, self.device), batch_statistics(net):
                soft = net(images, largest)
        return soft

    def apply(self, norm: Tensor) -> None:
        """Change the weights by the gradients as they are. Args: norm: of the gradients, a scalar."""
        if self.net.unused_blocks == "zero":
            for parameter in self.net.parameters():
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
        if self.config.clip_grad is not None:
            torch.nn.utils.clip_grads_with_norm_(self.net.parameters(), self.config.clip_grad, norm)
        fill_momentum(self.optimizer)
        self.optimizer.step()
