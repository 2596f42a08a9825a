"""The weights that a run begins with, where they are those of another one.

They are copied into the new folder when it is made: from then on the run needs nothing but itself.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from growtas import atomic
from growtas.errors import GrowtasError, UsageError, command
from growtas.methods import Method
from growtas.progress import silent
from growtas.space import SearchSpace
from growtas.supernet import weights as foreign
from growtas.supernet.pretrained import PlainViT, load_vit
from growtas.training import checkpoint
from growtas.training.config import TrainConfig
from growtas.training.data import preprocessing
from growtas.training.data.images import seed_globally
from growtas.training.external import is_external, plain_vit
from growtas.training.run import INITIAL_NAME, Run

Source = Run | PlainViT | Callable[[Run], Mapping[str, Tensor]]
"""A run, a pretrained vision transformer, or a function of the new run that gives the weights."""


def open_source(name: str) -> Run | PlainViT:
    """Open what ``initial`` names: a run, or a pretrained vision transformer.

    Raises:
        UsageError: there is neither.
        GrowtasError: its weights cannot be downloaded or read.
    """
    return plain_vit(name) if is_external(name) else Run.open(name)


def adopted(config: TrainConfig, source: Source | None) -> TrainConfig:
    """The settings, with the pooling and the epsilon of the weights that a run begins with."""
    if not isinstance(source, Run | PlainViT):
        return config
    theirs = source.config if isinstance(source, Run) else source
    missing = [name for name in ("global_pool", "norm_eps") if getattr(config, name) is None]
    return dataclasses.replace(config, **{name: getattr(theirs, name) for name in missing})


def of_source(source: Source, run: Run) -> Mapping[str, Tensor]:
    """The weights that a run begins with.

    Args:
        source: a run, whose last weights are taken (not their average where there is one), or a ViT, which is
            put into a supernet with the run's random weights; or a function that gives them.
        run: the one that is to begin with them.

    Raises:
        UsageError: it is not finished, or its weights mean something else in the new run.
        GrowtasError: its checkpoint cannot be used.
    """
    if isinstance(source, PlainViT):
        return _of_vit(source, run)
    if not isinstance(source, Run):
        return source(run)
    theirs, own = source.config.qkv_bias, run.config.qkv_bias
    if theirs != own:
        raise UsageError(
            f"The run {source.path} was trained with qkv_bias={theirs!r}, this one has {own!r}; "
            f"set qkv_bias={theirs!r}."
        )
    state = checkpoint.load(source.checkpoint_path) if source.checkpoint_path.exists() else None
    if state is not None:
        checkpoint.check_belongs(state, source.identity(), source.checkpoint_path)
    done = state["step"] if state else 0
    if done < source.steps:
        raise UsageError(
            f"The run {source.path} is not finished: its checkpoint holds {done:,} of {source.steps:,} "
            f"steps. Finish it first, with: {command('train', '--resume', source.path)}"
        )
    return state["weights"]


def _of_vit(source: PlainViT, run: Run) -> dict[str, Tensor]:
    if not isinstance(run.space, SearchSpace):
        raise UsageError(
            f"initial={source.name!r} is a vision transformer, and {run.space.name!r} is a convolutional "
            "space; leave it out."
        )
    seed_globally("weights", run.config.seed)
    net = run.new_net()
    images = preprocessing(run.config.data, run.space, run.config.interpolation)
    subnet, remarks = load_vit(net, source, images["mean"], images["std"])
    if not silent():
        print("\n".join([f"{source.name} is subnet {subnet} of the new supernet.", *remarks]), flush=True)
    return net.state_dict()


def write(run: Run, weights: Mapping[str, Tensor]) -> str:
    """Put weights into a run's folder.

    Returns:
        The SHA-256 of the file.

    Raises:
        GrowtasError: it cannot be written; no file is left.
    """
    content = safetensors.torch.save({name: value.contiguous() for name, value in weights.items()})
    atomic.write_bytes(run.path / INITIAL_NAME, content)
    return hashlib.sha256(content).hexdigest()


def read(run: Run) -> dict[str, Tensor] | None:
    """The weights that a run's folder says it begins with; None where it begins with random ones.

    Raises:
        GrowtasError: the file is missing, truncated, damaged or another one.
    """
    if run.config.initial is None:
        return None
    path = run.path / INITIAL_NAME
    try:
        content = path.read_bytes()
        if run.initial_digest not in (None, hashlib.sha256(content).hexdigest()):
            raise GrowtasError(
                f"{path}, the weights that this run begins with, is damaged or another file than then. Put "
                "it back, or start the run again in another folder."
            )
        return safetensors.torch.load(content)
    except (OSError, SafetensorError) as error:
        raise GrowtasError(
            f"{path}, the weights that this run begins with, is missing or truncated ({error}). Put it back, "
            "or start the run again in another folder."
        ) from error


def load_into(net: nn.Module, weights: Mapping[str, Tensor], source: str | Path) -> None:
    """Raises: UsageError: the weights of ``source`` are of another network than this one, or not finite."""
    for name, parameter in net.named_parameters():
        if name in weights:
            foreign.check_numbers(name, weights[name], parameter.dtype, str(source))
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        raise UsageError(
            f"The weights of {source} do not fit this run ({str(error).splitlines()[-1].strip()}): the space "
            "and the number of classes must be the same. Nothing was changed."
        ) from error


def check_needed(method: Method, source: Source | None) -> None:
    """Raises: UsageError: the method continues trained weights, but no run that has some was named."""
    if method.continues and not isinstance(source, Run):
        raise UsageError(
            f"method {method.name!r} is a second phase: it continues the weights of a finished run. Train "
            f"one with another method first, then call growtas.finetune(RUN, method={method.name!r}), or on "
            f"the command line: growtas finetune RUN --method {method.name}"
        )
