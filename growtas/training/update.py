"""One update of a run: the mixed batch, the gradients of its subnets, and the optimizer's step."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from timm.utils import ModelEmaV3
from torch import Tensor

from growtas.errors import UsageError
from growtas.methods import Method, TrainingContext
from growtas.ops import direct_gradients
from growtas.space import Subnet
from growtas.supernet import SingleModel, VisionTransformer
from growtas.training.calibration import batch_statistics
from growtas.training.data.images import seed_globally
from growtas.training.external import Teacher
from growtas.training.inputs import at_resolution, checked_resolutions
from growtas.training.objective import Objective, create_mixup
from growtas.training.optimizer import fill_momentum
from growtas.training.precision import precision, resolved
from growtas.training.ranks.reducer import GradientReducer
from growtas.training.run import Run


class Update:
    """The computation of one update, a function of the run's seed, the step and the rank.

    Args:
        run: gives the settings.
        method: gives the subnets of a step.
        context: net, optimizer and device.
        ema: the averaged weights, where the run keeps some.
        world: processes that share a batch.
        teacher: another model that teaches.

    Attributes:
        scaler: keeps float16's gradients in its range; without effect in another precision.
        parameters: of the net, listed once.
        reducer: averages gradients over the ranks; None where there is one.

    Raises:
        UsageError: the settings do not fit the space, or the batch does not divide.
    """

    def __init__(
        self,
        run: Run,
        method: Method,
        context: TrainingContext,
        ema: ModelEmaV3 | None,
        world: int = 1,
        teacher: Teacher | None = None,
    ) -> None:
        self.config, self.method, self.context, self.ema = run.config, method, context, ema
        self.net, self.optimizer, self.device = context.net, context.optimizer, context.device
        self.teacher, self.parameters = teacher, tuple(context.net.parameters())
        self.mixup = create_mixup(run)
        self.resolutions = checked_resolutions(run)
        self.objective = Objective(run.config, self.mixup is not None)
        scaled = resolved(run.config.amp, context.device) == "float16"
        self.scaler = torch.amp.GradScaler(context.device.type, enabled=scaled)
        dtype = getattr(torch, run.config.reduce_dtype)
        self.reducer = GradientReducer(context.net, world, dtype) if world > 1 else None
        parts, batch = run.config.accumulate, run.config.batch_size
        if batch % (parts * world):
            raise UsageError(
                f"batch_size={batch} does not divide into accumulate={parts} parts"
                f"{f' on each of {world} ranks' if world > 1 else ''}; change one of them."
            )
        if run.config.checkpoint_activations and isinstance(context.net, SingleModel):
            context.net.model.set_grad_checkpointing()
        elif run.config.checkpoint_activations:
            if not isinstance(context.net, VisionTransformer):
                raise UsageError(
                    f"checkpoint_activations is for vision transformers, and {run.space.name!r} is a "
                    "convolutional space; leave it out, and use accumulate for less memory."
                )
            context.net.checkpoint_activations = True

    def gradients(
        self, step: int, images: Tensor, labels: Tensor, rank: int
    ) -> tuple[tuple[Subnet, ...], Tensor]:
        """Mix a batch and compute the gradients of every subnet of the step, means over the ranks.

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
        for parameter in self.parameters:
            parameter.grad = None
        subnets, parts = self.method.subnets(step), self.config.accumulate
        losses = [
            self._backward(step, subnets, *part, number == parts)
            for number, part in enumerate(zip(images.chunk(parts), targets.chunk(parts), strict=True), 1)
        ]
        return subnets, sum(losses[1:], losses[0]) / parts

    def _backward(
        self, step: int, subnets: tuple[Subnet, ...], images: Tensor, targets: Tensor, last: bool
    ) -> Tensor:
        """Add the gradients of one part of a batch. Returns: the mean of the subnets' losses."""
        config, method = self.config, self.method
        how = method.gradients if config.gradients == "auto" else config.gradients
        share = config.accumulate * (len(subnets) if how == "mean" else 1)
        soft = self.teacher_logits(step, images)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for number, subnet in enumerate(subnets, 1):
            # the reducer has a hook on every parameter; without one, nobody asks autograd about them
            direct = direct_gradients() if self.reducer is None else nullcontext()
            with precision(config.amp, self.device), direct:
                logits = self.net(images, subnet)
            loss = self.objective(logits, targets, soft)
            completes = self.reducer is not None and last and number == len(subnets)
            with self.reducer.last_backward(subnets) if completes else nullcontext():
                self.scaler.scale(loss / share).backward()
            total += loss.detach() / len(subnets)
            if soft is None and config.distill == "inplace":
                soft = logits.detach()  # the first subnet is the largest: the others learn from it
        return total

    @torch.no_grad()
    def teacher_logits(self, step: int, images: Tensor) -> Tensor | None:
        """Logits (B, classes) of the method's teacher, else of the averaged weights where they teach.

        Args:
            step: number of the update.
            images: (B, C, S, S), on the device.
        """
        soft = self.method.teacher_logits(images, self.context)
        if soft is None and self.teacher is not None:
            return self.teacher(images)
        if soft is None and self.config.distill == "ema":
            net, largest = self.ema.module, self.method.extremes(step)[1]
            with precision(self.config.amp, self.device), batch_statistics(net):
                soft = net(images, largest)
        return soft

    def unscale(self) -> None:
        """Undo the scaler's factor in the gradients, once they are complete; let it see whether they are
        finite and choose the next factor."""
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)
            self.scaler.update()

    def norm(self) -> Tensor:
        """The norm of all gradients together, a scalar on the device."""
        return torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])

    def apply(self, norm: Tensor) -> None:
        """Change the weights by the gradients as they are. Args: norm: of the gradients, a scalar."""
        if self.net.unused_blocks == "zero":
            for parameter in self.parameters:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
        if self.config.clip_grad is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.config.clip_grad, norm)
        fill_momentum(self.optimizer)
        self.optimizer.step()
