"""Models of others: a pretrained ViT to begin with, and a teacher. From timm, a folder or a file."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.data import resolve_data_config
from timm.models import VisionTransformer
from torch import Tensor, nn

import growtas.architectures  # noqa: F401 - registers growtas' own with timm
from growtas.errors import GrowtasError, UsageError, nearest
from growtas.supernet import weights
from growtas.supernet.pretrained import PlainViT
from growtas.supernet.saved import open_model
from growtas.training.data import Splits, preprocessing
from growtas.training.precision import precision
from growtas.training.run import Run

PREFIX = "timm:"
FILES = (".safetensors", ".pth", ".pt", ".bin")


def is_external(name: str) -> bool:
    """True if ``initial`` names a model of others rather than a run."""
    path = Path(name)
    return name.startswith(PREFIX) or path.suffix in FILES or (path / "config.json").is_file()


def create(name: str, **args: Any) -> nn.Module:
    """A model with its pretrained weights, in evaluation mode.

    Args:
        name: ``timm:NAME``, or a folder that timm or growtas saved (config.json and weights).
        args: further ones of ``timm.create_model``, for a model that has been created without them.

    Raises:
        UsageError: timm has no such model, the folder holds none, or the model takes no such arguments.
        GrowtasError: the weights cannot be downloaded or read.
    """
    chosen = name.removeprefix(PREFIX)
    if not name.startswith(PREFIX) or chosen.startswith("local-dir:"):
        return open_model(chosen.removeprefix("local-dir:"), **args)
    architecture = chosen.partition(".")[0]
    if ":" not in chosen and not timm.is_model(architecture):
        known = nearest(architecture, timm.list_models())
        raise UsageError(f"timm {timm.__version__} has no model {architecture!r}.{known}")
    try:
        return timm.create_model(chosen, pretrained=True, **args).eval()
    except Exception as error:  # timm, huggingface_hub, requests and safetensors each raise their own
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if args:  # it was created without them before
            raise UsageError(f"{name} cannot be built with {args}: {reason.rstrip('.')}.") from error
        raise GrowtasError(
            f"The weights of {name} could not be loaded ({reason}). Where there is no network, download them "
            "on another machine, save them with timm.models.save_for_hf, and give that folder."
        ) from error


def plain_vit(name: str) -> PlainViT:
    """A pretrained vision transformer to begin with.

    Args:
        name: as of :func:`create`, or a ``.safetensors`` or ``.pth`` file of weights, of which are assumed
            what plain ViT and DeiT have: the cls token goes to the head, and the norms have epsilon 1e-6.

    Raises:
        UsageError: the model is no plain vision transformer.
        GrowtasError: its weights cannot be downloaded or read.
    """
    if Path(name).suffix in FILES and not name.startswith(PREFIX):
        return PlainViT(name, weights.unwrapped(weights.read(name), name))
    model = create(name)
    problem = _why_not_plain(model)
    if problem:
        raise UsageError(
            f"{name} is no plain vision transformer: {problem}. Choose another, such as "
            "timm:deit_tiny_patch16_224."
        )
    data = resolve_data_config({}, model=model)
    return PlainViT(
        name,
        model.state_dict(),
        model.blocks[0].attn.head_dim,
        model.global_pool,
        model.norm.eps,
        tuple(data["mean"]),
        tuple(data["std"]),
    )


def _why_not_plain(model: nn.Module) -> str | None:
    if not isinstance(model, VisionTransformer):
        return f"it is a {type(model).__name__}"
    if model.global_pool not in ("token", "avg"):
        return f"it pools with global_pool={model.global_pool!r}, and only 'token' and 'avg' are known"
    if not isinstance(model.norm, nn.LayerNorm) or not isinstance(model.fc_norm, nn.Identity):
        return "its last norm comes after the pooling"
    activation = getattr(model.blocks[0].mlp, "act", None)
    if not isinstance(activation, nn.GELU) or getattr(activation, "approximate", "none") != "none":
        return f"its activation is {activation}, not the exact GELU"
    return None


def weights_hash(net: nn.Module) -> str:
    """SHA-256 of a net's parameters and buffers, names included: the same on every device."""
    digest = hashlib.sha256()
    for name, tensor in sorted(net.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


class Teacher:
    """Another model that teaches every subnet, on the images of the step.

    Args:
        name: as of :func:`create`.
        num_classes: of the run.
        mean, std: how the run's images are normalised, per channel.
        device: to compute on.
        amp: the run's precision.
        classes: names of the run's classes, where it knows them.

    Attributes:
        digest: of the teacher's weights.

    Raises:
        UsageError: it has other classes than the run.
        GrowtasError: its weights cannot be loaded.
    """

    def __init__(
        self,
        name: str,
        num_classes: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        device: torch.device,
        amp: str = "none",
        classes: tuple[str, ...] = (),
    ) -> None:
        model = create(name)
        if model.num_classes != num_classes:
            raise UsageError(
                f"The teacher {name} has {model.num_classes:,} classes, and this run has {num_classes:,}; "
                "choose a teacher of the same classes."
            )
        labels = tuple(model.pretrained_cfg.get("label_names") or ())
        if labels and classes and labels != tuple(classes):
            first = next(i for i, pair in enumerate(zip(labels, classes, strict=True)) if pair[0] != pair[1])
            raise UsageError(
                f"The teacher {name} has other classes than this run: class {first} is {labels[first]!r} "
                f"there and {classes[first]!r} here. Choose a teacher of the same classes, in the same order."
            )
        self.digest = weights_hash(model)
        self.model = model.requires_grad_(False).to(device)
        self.device, self.amp = device, amp
        data = resolve_data_config({}, model=model)
        self.channels, *self.size = data["input_size"]
        moments = ((mean, std), (data["mean"], data["std"]))
        self.ours, self.theirs = (torch.tensor(m, device=device).view(2, -1, 1, 1) for m in moments)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Logits (B, classes). Args: images: (B, C, S, S), normalised as the run's, mixed or not."""
        images = images * self.ours[1] + self.ours[0]
        if images.shape[1] != self.channels:  # grey in every channel, or the mean of the colours
            images = (
                images.expand(-1, self.channels, -1, -1) if images.shape[1] == 1 else images.mean(1, True)
            )
        images = (images - self.theirs[0]) / self.theirs[1]
        if list(images.shape[2:]) != self.size:
            images = F.interpolate(images, size=self.size, mode="bicubic", antialias=True)
        with precision(self.amp, self.device):
            return self.model(images)


def load_teacher(run: Run, splits: Splits, device: torch.device) -> Teacher | None:
    """The external teacher of a run; None where it has none.

    Raises:
        UsageError: it has other classes than the run.
        GrowtasError: its weights cannot be loaded, or are not those that the run began with.
    """
    config = run.config
    if config.teacher is None:
        return None
    images = preprocessing(config.data, run.space, config.interpolation)
    moments = (tuple(images["mean"]), tuple(images["std"]))
    teacher = Teacher(config.teacher, run.num_classes, *moments, device, config.amp, splits.classes)
    if run.teacher_digest not in (None, teacher.digest):
        raise GrowtasError(
            f"The teacher {config.teacher} has other weights than when the run {run.path} began (digest "
            f"{teacher.digest[:12]}, and it was {run.teacher_digest[:12]}). Put the former ones back."
        )
    return teacher
