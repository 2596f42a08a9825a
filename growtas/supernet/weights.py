"""State dicts from elsewhere: unwrapped, and checked name by name before a network takes them."""

from __future__ import annotations

import os
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from growtas.errors import GrowtasError, UsageError
from growtas.files import damaged_record

CONTAINERS = ("model", "state_dict", "model_ema", "state_dict_ema")
"""Entries of a checkpoint that hold a state dict, the first one first."""
PREFIXES = ("module.", "_orig_mod.")
"""Prefixes of names that DistributedDataParallel and torch.compile add."""
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
NESTED = 4  # containers within containers


def read(path: str | os.PathLike) -> Any:
    """The content of a file of weights: of safetensors, or of torch.save without any code.

    Args:
        path: ends in ``.safetensors``, or is read as torch.load does with ``weights_only=True``.

    Raises:
        UsageError: there is no such file.
        GrowtasError: it is damaged, or holds more than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"There is no file {path} of weights.")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        _check_archive(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file leads both libraries to errors of every kind
        remedy = "Copy it again, or save the weights again."
        if path.suffix != ".safetensors":
            remedy = (
                "One that holds more than tensors is not loaded, since it can run code: save the state dict "
                "alone, as .safetensors."
            )
        raise GrowtasError(f"{path} cannot be read as weights ({first_line(error)}). {remedy}") from error


def _check_archive(path: Path) -> None:
    """Raises: ValueError: a part of torch's zip file is damaged; torch.load looks at no checksum."""
    if not zipfile.is_zipfile(path):
        return
    with open(path, "rb") as file:
        with zipfile.ZipFile(file) as archive:
            if any(each.compress_type != zipfile.ZIP_STORED for each in archive.infolist()):
                raise ValueError("its records are compressed, and torch compresses none")
        damaged = damaged_record(file)
    if damaged is not None:
        raise ValueError(f"{damaged} is damaged: its checksum is wrong")


def first_line(error: Exception) -> str:
    """The first line of an error's text without its full stop, or the name of its kind."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def unwrapped(found: Any, source: str) -> dict[str, Tensor]:
    """The state dict of a checkpoint: its names and tensors, without the prefix that a wrapper adds.

    One warning says that a prefix was removed, and one which of several state dicts is taken.

    Args:
        found: a state dict, alone or in one of :data:`CONTAINERS`.
        source: how sentences name it.

    Raises:
        UsageError: it is none, or holds something that is not a plain dense tensor of numbers.
    """
    for _ in range(NESTED):
        inner = [
            key for key in CONTAINERS if isinstance(found, Mapping) and isinstance(found.get(key), Mapping)
        ]
        if not inner:
            break
        if len(inner) > 1:
            _notice(f"{source} has weights under {' and '.join(map(repr, inner))}; {inner[0]!r} is taken.")
        found = found[inner[0]]
    expected = f"A state dict has names and tensors, alone or under {' or '.join(map(repr, CONTAINERS))}."
    if not isinstance(found, Mapping):
        raise UsageError(f"{source} holds no state dict, but a {type(found).__name__}. {expected}")
    weights = dict(found)
    if not weights:
        raise UsageError(f"{source} holds an empty state dict. {expected}")
    for name, value in weights.items():
        problem = "its name is not text" if not isinstance(name, str) else _not_plain(value)
        if problem:
            raise UsageError(
                f"{source} holds no state dict: {shown(name)} does not fit, {problem}. {expected}"
            )
    for prefix in PREFIXES * 2:  # either may be the outer one
        if all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
            _notice(f"The names of {source} begin with {prefix!r}, which a wrapper adds; it is removed.")
    return weights


def _notice(sentence: str) -> None:
    warnings.warn(sentence, stacklevel=4)


def _not_plain(value: Any) -> str | None:
    """Why a value cannot be a weight; None where it can."""
    if not isinstance(value, Tensor):
        return f"it is a {type(value).__name__} and not a tensor"
    if value.is_nested:
        return "it is a nested tensor; make it a plain one"
    if value.is_quantized or type(value) not in (Tensor, nn.Parameter):
        return "it is quantised or of another class of tensors; dequantise it"
    if value.layout != torch.strided:
        return "it is sparse; make it dense with to_dense()"
    if value.is_meta:
        return "it is on the device 'meta' and holds no numbers; load it on the CPU"
    return None


def renamed(weights: Mapping[str, Tensor], rename: Callable[[str], str], source: str) -> dict[str, Tensor]:
    """Weights under other names. Raises: UsageError: two of them get the same name."""
    found: dict[str, Tensor] = {}
    for name, value in weights.items():
        new = rename(name)
        if new in found:
            raise UsageError(
                f"{source} has two tensors for {shown(new)}, one of them {shown(name)}; remove one of them."
            )
        found[new] = value
    return found


def check_shapes(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str) -> None:
    """Check that weights can be copied into tensors, each into that of its name, and are finite.

    Args:
        weights: to be copied.
        expected: has their names; only dtypes and shapes are read.
        source: how sentences name the weights' origin.

    Raises:
        UsageError: a shape or a kind of number differs, a number is not finite, or a variance is negative.
    """
    for name, value in weights.items():
        own = expected[name]
        if value.shape != own.shape:
            raise UsageError(
                f"{name} is {tuple(value.shape)} in {source}, but {tuple(own.shape)} in this net; build the "
                "net from the space and the number of classes that the checkpoint has."
            )
        check_numbers(name, value, own.dtype, source)


def check_numbers(name: str, value: Tensor, dtype: torch.dtype, source: str) -> None:
    """Raises: UsageError: a tensor's dtype is of another kind, or its numbers are not finite in ``dtype``."""
    real = dtype.is_floating_point
    if value.dtype not in FLOATS if real else value.is_floating_point() or value.is_complex():
        kinds = ", ".join(map(str, FLOATS)) if real else "whole numbers"
        raise UsageError(f"{name} is {value.dtype} in {source}, and {kinds} are expected; convert it.")
    if not real:
        return
    bad = (~value.detach().to(dtype).isfinite()).sum().item()
    if bad:
        raise UsageError(
            f"{name} has {bad:,} of {value.numel():,} numbers in {source} that are not finite in {dtype} "
            "(NaN or infinite): the weights are damaged or their training has diverged. Use others."
        )
    if name.endswith("running_var") and (value < 0).any():
        raise UsageError(f"{name} has negative variances in {source}: the weights are damaged. Use others.")


def shown(name: Any) -> str:
    """A name from a file for a sentence: quoted, and cut where it is long."""
    text = repr(name) if isinstance(name, str) else f"a {type(name).__name__}"
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text):,} characters)"


def some(names: Iterable[str], most: int = 3) -> str:
    """The first of some names and how many more there are. Args: names; most: named."""
    names = list(names)
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return f"{', '.join(shown(name)[1:-1] for name in names[:most])}{more}"
