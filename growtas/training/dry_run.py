"""Estimate of a run: its steps, stages, memory and disk, without running it. Nothing is written."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from growtas import cost
from growtas.progress import track
from growtas.space import Subnet
from growtas.supernet.vit import VisionTransformer
from growtas.training.optimizer import fill_momentum
from growtas.training.precision import announced

if TYPE_CHECKING:
    from growtas.training.loop import Trainer

FEW = (2, 4)  # images that activations are measured on; they grow in proportion from there
DAYS = (1, 3, 7)


@dataclass(frozen=True)
class Activations:
    """Bytes that training a subnet takes besides weights and gradients.

    Args:
        kept: per image, from the forward pass for the backward pass.
        passing: per image, for the block that the backward pass is at.
        rest: whatever the number of images.
    """

    kept: int
    passing: int
    rest: int = 0


@dataclass(frozen=True)
class DryRun:
    """Estimate of a run.

    Args:
        head: the data and the precision, in words.
        steps_per_epoch, steps: updates.
        epochs: of the run.
        batch_size: images per update; ``parts`` and ``ranks`` divide it.
        stages: the groups of each stage and the epochs that it lasts.
        weights: bytes on each device whatever the batch: parameters, gradients, optimizer, and so on.
        activations: by the name of the subnet that runs.
        one_pass: whether one backward pass makes all gradients: they then fill what activations leave.
        inputs: bytes of a batch of images on a device.
        checkpoint: bytes of a checkpoint.
    """

    head: tuple[str, ...]
    steps_per_epoch: int
    steps: int
    epochs: int
    batch_size: int
    parts: int
    ranks: int
    stages: tuple[str, ...]
    weights: Mapping[str, int]
    activations: Mapping[str, Activations]
    one_pass: bool
    inputs: int
    checkpoint: int

    def memory(self, subnet: str = "largest") -> int:
        """Bytes that a device holds at most while a subnet is trained, without its libraries' own."""
        each, gradients = self.activations[subnet], self.weights["gradients"]
        at_once = self.batch_size // self.ranks // self.parts
        kept = each.kept * at_once + each.rest
        grown = max(kept, gradients) if self.one_pass else kept + gradients
        return sum(self.weights.values()) - gradients + self.inputs + grown + each.passing * at_once

    def images_per_second(self, days: float) -> float:
        """How fast images must come for a run of so many days."""
        return self.steps * self.batch_size / (days * 86_400)

    def __str__(self) -> str:
        divided = f" in {self.parts} parts" if self.parts > 1 else ""
        divided += f" on {self.ranks} devices" if self.ranks > 1 else ""
        needed = {days: self.images_per_second(days) for days in DAYS}
        rates = ", ".join(f"{n:,.{0 if n > 10 else 2}f} for {days} d" for days, n in needed.items())
        held = ", ".join(f"{name} {_size(size)}" for name, size in self.weights.items())
        lines = [
            *self.head,
            f"{self.epochs:,} epochs of {self.steps_per_epoch:,} updates: {self.steps:,} updates of "
            f"{self.batch_size:,} images{divided}",
            *(f"  {stage}" for stage in self.stages),
            f"images per second needed: {rates}",
            f"memory of a device: {held}, images {_size(self.inputs)}, and activations",
        ]
        for name, each in self.activations.items():
            lines.append(f"  {name}: {_size(each.kept)} per image, {_size(self.memory(name))} in all")
        lines.append(f"disk: a checkpoint of {_size(self.checkpoint)}, twice while it is replaced")
        return "\n".join(lines)


def dry_run(trainer: Trainer) -> DryRun:
    """Measure on a few random images what a run would hold, and count the rest.

    Args:
        trainer: of the run that would begin; its weights are spent.
    """
    run, config, net = trainer.run, trainer.config, trainer.net
    space, ranks = run.space, trainer.ranks
    subnets = {"smallest": space.smallest(), "largest": space.largest()}
    _step(trainer, subnets["largest"], FEW[0])  # makes the state of the optimizer, and shadows
    parameters = _bytes(net.state_dict().values())
    states = [value for state in trainer.optimizer.state.values() for value in state.values()]
    weights = {
        "weights": parameters,
        "gradients": _bytes(net.parameters()),
        "optimizer": _bytes(value for value in states if isinstance(value, Tensor)),
    }
    shadows = getattr(net, "_shadows", None)
    if shadows is not None:
        weights["16-bit copies"] = 2 * sum(each.numel() for each in net.parameters() if each.ndim > 1)
    if trainer.update.reducer is not None:
        weights["gradients sent"] = trainer.update.reducer.buffer.nbytes
    if trainer.ema is not None:
        weights["averages"] = parameters
    if config.method == "shrinking":
        weights["teacher"] = parameters
    if trainer.update.teacher is not None:
        weights["external teacher"] = _bytes(trainer.update.teacher.model.state_dict().values())
    measured = track(subnets.items(), "measure", "subnet", len(subnets))
    activations = {name: _activations(trainer, subnet) for name, subnet in measured}
    one_pass = config.accumulate == config.subnets_per_step == 1 and config.method != "shrinking"
    one_pass = one_pass and not config.sandwich and config.distill != "inplace"
    size = max((*config.resolution_sizes(), space.image_size))
    return DryRun(
        head=(str(trainer.splits), *announced(run.space, config.amp, trainer.device)),
        steps_per_epoch=run.steps_per_epoch,
        steps=run.steps,
        epochs=config.epochs,
        batch_size=config.batch_size,
        parts=config.accumulate,
        ranks=ranks.world,
        stages=_stages(trainer),
        weights=weights,
        activations=activations,
        one_pass=one_pass,
        inputs=config.batch_size // ranks.world * space.in_channels * size**2 * 4,
        checkpoint=_checkpoint_size(trainer) + weights.get("averages", 0) + weights.get("teacher", 0),
    )


class _Counting(io.RawIOBase):
    """A file that keeps nothing but its size."""

    size = 0

    def writable(self) -> bool:
        return True

    def write(self, content) -> int:
        self.size += len(content)
        return len(content)


def _checkpoint_size(trainer: Trainer) -> int:
    """Bytes of a file that holds the weights and the optimizer."""
    file = _Counting()
    states = (each.state_dict() for each in (trainer.net, trainer.optimizer, trainer.method))
    torch.save(dict(zip(("weights", "optimizer", "method"), states, strict=True)), file)
    return file.size


def _stages(trainer: Trainer) -> tuple[str, ...]:
    """Each stage with its epochs, and the sizes of the subnets that it draws."""
    method, space, found = trainer.method, trainer.run.space, []
    firsts = [stage.first_epoch for stage in method.stages]
    for number, (first, end) in enumerate(zip(firsts, [*firsts[1:], trainer.config.epochs], strict=True)):
        groups = method.stages[number].groups
        ends = [space.smallest(groups), space.largest(groups)]
        least, most = (cost.parameters(each, space, trainer.run.num_classes) for each in ends)
        values = ", ".join(str(space.groups[group]) for group in groups)
        found.append(
            f"stage {number + 1}: epochs {first} to {end - 1}, {space.group_axis} {values} "
            f"({least / 1e6:.1f} to {most / 1e6:.1f} million parameters)"
        )
    return tuple(found)


def _loss(trainer: Trainer, subnet: Subnet, count: int) -> Tensor:
    """The loss of a subnet for random images of the run's largest size."""
    space, config = trainer.run.space, trainer.config
    size = max((*config.resolution_sizes(), space.image_size))
    images = torch.zeros(count, space.in_channels, size, size, device=trainer.device)
    targets = torch.full((count, trainer.run.num_classes), 1 / trainer.run.num_classes, device=trainer.device)
    with trainer.context.autocast():
        logits = trainer.net(images, subnet)
    return trainer.update.objective(logits, targets, None)


def _step(trainer: Trainer, subnet: Subnet, count: int) -> None:
    _loss(trainer, subnet, count).backward()
    fill_momentum(trainer.optimizer)
    trainer.optimizer.step()


def _activations(trainer: Trainer, subnet: Subnet) -> Activations:
    """Activations of a subnet, measured on few images.

    A GPU says so itself. On a CPU what is kept is counted, and a transformer's block takes about as much
    again while the backward pass is at it, twice that where it is computed again (both measured).
    """
    net, (few, more) = trainer.net, FEW
    if trainer.device.type == "cuda":
        (kept, peak), (kept_of_more, peak_of_more) = (_on_gpu(trainer, subnet, count) for count in FEW)
        passing = (peak_of_more - kept_of_more - peak + kept) // (more - few)
    else:
        kept, kept_of_more = (_on_cpu(trainer, subnet, count) for count in FEW)
        passing = 0
        if isinstance(net, VisionTransformer):
            again, net.checkpoint_activations = net.checkpoint_activations, False
            block = (_on_cpu(trainer, subnet, more) - _on_cpu(trainer, subnet, few)) // (more - few)
            net.checkpoint_activations = again
            passing = block // subnet.depth * (1 + again)
    per_image = (kept_of_more - kept) // (more - few)
    return Activations(per_image, max(0, passing), max(0, kept - few * per_image))


def _on_gpu(trainer: Trainer, subnet: Subnet, count: int) -> tuple[int, int]:
    """Bytes of memory after the forward pass and at most, over those before it."""
    device = trainer.device
    _loss(trainer, subnet, count).backward()  # workspaces
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    loss = _loss(trainer, subnet, count)
    kept = torch.cuda.memory_allocated(device) - before
    loss.backward()
    return kept, torch.cuda.max_memory_allocated(device) - before


def _on_cpu(trainer: Trainer, subnet: Subnet, count: int) -> int:
    """Bytes that the forward pass keeps for the backward pass, without the weights."""
    weights = {each.untyped_storage().data_ptr() for each in trainer.net.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = _loss(trainer, subnet, count)  # held until all is counted, or memory would be used again
    del loss
    return sum(kept.values())


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _size(count: float) -> str:
    """Bytes in words."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
