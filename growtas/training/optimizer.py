"""The optimizer and the schedule of a run, by timm: one of each, from the first step to the last."""

from __future__ import annotations

import torch
from timm.optim import create_optimizer_v2, get_optimizer_info
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler

from growtas.errors import UsageError
from growtas.supernet import SingleModel
from growtas.training.config import TrainConfig
from growtas.training.run import Run

FUSED_OPTIMIZERS = ("adam", "adamw", "sgd")


def create_optimizer(
    net: torch.nn.Module, config: TrainConfig, device: torch.device
) -> torch.optim.Optimizer:
    """timm's optimizer; no weight decay on 1-D parameters and on what the net excludes.

    Raises:
        UsageError: timm knows no optimizer of that name, or it takes no such settings; or the net is a
            supernet and is to have a rate per layer.
    """
    if isinstance(net, SingleModel):
        net = net.model  # its names are those that the model's own patterns of layers match
    elif config.layer_decay is not None:
        raise UsageError(
            f"layer_decay={config.layer_decay} is for fine-tuning one model with growtas transfer; a "
            "supernet's layers share one learning rate. Leave it out."
        )
    extra = {"fused": True} if config.opt in FUSED_OPTIMIZERS and device.type in ("cpu", "cuda") else {}
    try:
        if get_optimizer_info(config.opt).second_order:
            raise ValueError("it needs second derivatives, which growtas' operations do not have")
        return create_optimizer_v2(
            net,
            opt=config.opt,
            lr=config.lr,
            weight_decay=config.weight_decay,
            layer_decay=config.layer_decay,
            **extra,
        )
    except (AssertionError, ValueError, TypeError) as error:
        raise UsageError(f"opt={config.opt!r} cannot be used ({error}); see timm.optim.") from error


def fill_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Give parameters that have a gradient for the first time the momentum 0 that their first update makes.

    torch's SGD adds the gradient to it: the same bits as without. Its fused form takes a group only where
    all of its parameters have momentum or none has, and a stage brings some that never had a gradient.
    """
    if not isinstance(optimizer, torch.optim.SGD):
        return
    for group in optimizer.param_groups:
        if group["momentum"] and group["fused"]:
            for parameter in group["params"]:
                state = optimizer.state[parameter] if parameter.grad is not None else {"momentum_buffer": 0}
                if state.get("momentum_buffer") is None:
                    state["momentum_buffer"] = torch.zeros_like(parameter)


def create_scheduler(optimizer: torch.optim.Optimizer, run: Run) -> Scheduler:
    """timm's schedule over the whole run: warm-up, then one decay.

    Raises:
        UsageError: the schedule does not fit the run.
    """
    config = run.config
    try:
        scheduler, _ = create_scheduler_v2(
            optimizer,
            sched=config.sched,
            num_epochs=config.epochs,
            warmup_epochs=config.warmup_epochs,
            warmup_lr=config.warmup_lr,
            min_lr=config.min_lr,
            step_on_epochs=config.sched_step != "update",
            updates_per_epoch=run.steps_per_epoch,
        )
    except (AssertionError, ValueError) as error:
        raise UsageError(f"sched={config.sched!r} does not fit this run: {error}") from error
    return scheduler


def set_schedule(scheduler: Scheduler, how: str, step: int, steps_per_epoch: int) -> None:
    """Set the learning rates of an update.

    Args:
        scheduler: what :func:`create_scheduler` gave.
        how: ``update``, ``epoch`` or ``epoch_late`` (AutoFormer's code steps after an epoch, by its number:
            the first two epochs have the same rate).
        step: number of the update.
        steps_per_epoch: updates per epoch.
    """
    if how == "update":
        scheduler.step_update(step)
    else:
        scheduler.step(max(0, step // steps_per_epoch - (how == "epoch_late")))
