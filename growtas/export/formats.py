"""A model as one file for another runtime (ONNX, torch.export's .pt2, TorchScript), checked in it."""

from __future__ import annotations

import copy
import importlib.util
import io
import json
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.data import resolve_data_config
from torch import Tensor, nn

from growtas import atomic
from growtas.errors import GrowtasError, UsageError, nearest

TOLERANCE = 1e-4  # relative to the largest logit: the runtime has kernels of its own
BATCHES = (1, 5)  # images that a file is checked on; it is made from two
ONNX_BYTES = 2 * 10**9  # a protocol buffer holds no more
INT8 = ("none", "weights", "dynamic")
INPUT, OUTPUT = "images", "logits"

Logits = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Format:
    """A kind of file.

    Args:
        suffix: of its name.
        packages: that writing and checking it needs besides growtas' own.
        write: the bytes of a model, given two images and what is said about the model.
        load: the model of a file, in its runtime.
    """

    suffix: str
    packages: tuple[str, ...]
    write: Callable[[nn.Module, Tensor, dict[str, str]], bytes]
    load: Callable[[Path], Logits]


@dataclass(frozen=True)
class Exported:
    """A file that was written.

    Args:
        path: of the file.
        size: in bytes.
        difference: the largest of a logit, on random images of batches of 1 and of 5, between the file in its
            runtime and the model in PyTorch (quantized likewise).
        largest: logit of these images.
        quantized: linear layers whose weights are int8.
        top1: accuracy of the model and of the file, in per cent, where it was measured.
        images: that it was measured on, in words.
    """

    path: Path
    size: int
    difference: float
    largest: float
    quantized: int = 0
    top1: tuple[float, float] | None = None
    images: str = ""

    def __str__(self) -> str:
        int8 = f", {self.quantized} linear layers in int8" if self.quantized else ""
        accuracy = ""
        if self.top1 is not None:
            before, after = self.top1
            accuracy = f"\ntop-1 {before:.2f} % before and {after:.2f} % after, on the {self.images}"
        return (
            f"{self.path}: {self.size:,} bytes{int8}; on batches of {BATCHES[0]} and {BATCHES[1]} random "
            f"images its logits differ by at most {self.difference:.2g} (the largest logit is "
            f"{self.largest:.2g}){accuracy}"
        )


def write(
    model: nn.Module, to: str, out: str | os.PathLike, int8: str = "none", overwrite: bool = False
) -> Exported:
    """Write a model as one file, load it in its runtime and compare the logits.

    The file takes float32 images, normalised as the model's ``pretrained_cfg`` says, in batches of any size.
    It holds these data too (``config.json`` of a .pt2 or TorchScript file, ``metadata_props`` of ONNX). It is
    put in place only where the logits are equal.

    Args:
        model: of growtas or timm; it is left as it is.
        to: ``onnx``, ``pt2`` (torch.export) or ``torchscript``.
        out: the file.
        int8: ``weights`` stores the weights of linear layers as int8 and computes in float32; ``dynamic``
            computes linear layers in int8, which only ``pt2`` can hold, and whoever loads it needs torchao.
        overwrite: replace another file.

    Raises:
        UsageError: the format is unknown, a package is missing, or the file exists.
        GrowtasError: the model cannot be written in this format, or computes something else in its runtime.
    """
    check(to, int8)
    out, kind = Path(out), FORMATS[to]
    if out.exists() and not overwrite:
        raise UsageError(f"{out} exists; choose another file, or pass overwrite=True (--overwrite).")
    model = plain_copy(model)
    quantized = quantize(model, int8) if int8 != "none" else 0
    shape = resolve_data_config({}, model=model)["input_size"]
    draw = torch.Generator().manual_seed(0)
    size = sum(tensor.nbytes for tensor in model.state_dict().values())
    if to == "onnx" and size > ONNX_BYTES:
        raise UsageError(f"ONNX files hold up to 2 GB, and this model's weights are {size:,} bytes; use pt2.")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of deprecation, in torch's exporters themselves
        try:
            content = kind.write(model, torch.randn(2, *shape, generator=draw), _about(model))
        except Exception as error:  # the exporters raise errors of their own and of what they call
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise GrowtasError(f"torch cannot write this {type(model).__name__} as {to}: {reason}") from error
        atomic.make_folder(out.parent)
        with atomic.replace(out) as temporary:
            temporary.write_bytes(content)
            found = kind.load(temporary)
            difference = largest = 0.0
            for batch in BATCHES:
                images = torch.randn(batch, *shape, generator=draw)
                expected = model(images)
                apart = (found(images) - expected).abs().max().item()
                difference = max(difference, apart if apart == apart else float("inf"))
                largest = max(largest, expected.abs().max().item())
            if not difference <= TOLERANCE * largest:
                raise GrowtasError(
                    f"{out} was not written: its logits differ by {difference:.3g} from the model's, and "
                    f"{TOLERANCE * largest:.3g} is allowed (the largest logit is {largest:.3g}). Choose "
                    "another format, or report this."
                )
    return Exported(out, len(content), difference, largest, quantized)


def check(to: str, int8: str = "none") -> None:
    """Raises: UsageError: a format is unknown or does not go with ``int8``, or a package is not installed."""
    if to not in FORMATS:
        raise UsageError(f"to={to!r} is unknown.{nearest(str(to), FORMATS)}")
    if int8 not in INT8:
        raise UsageError(f"int8={int8!r} is unknown.{nearest(str(int8), INT8)}")
    if int8 == "dynamic" and to != "pt2":
        raise UsageError(f"int8='dynamic' can be written to pt2, not to {to}; use int8='weights'.")
    needed = FORMATS[to].packages + (("torchao",) if int8 != "none" else ())
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(
            f"to={to!r} with int8={int8!r} needs packages that are not installed ({', '.join(missing)}): "
            "pip install 'growtas[export]'"
        )


def plain_copy(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode, in float32 on the CPU, of standard operations only."""
    model = copy.deepcopy(model).float().cpu().eval()
    return model.unfuse() if hasattr(model, "unfuse") else model


def quantize(model: nn.Module, int8: str) -> int:
    """Turn a model's linear layers into int8 ones by torchao. Returns: how many.

    Args:
        model: is changed.
        int8: ``weights`` or ``dynamic``.

    Raises:
        UsageError: it has no linear layers.
    """
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_
    from torchao.utils import unwrap_tensor_subclass

    linear = sum(isinstance(module, nn.Linear) for module in model.modules())
    if not linear:
        raise UsageError(f"{type(model).__name__} has no linear layers, and torchao quantizes no others.")
    quantize_(model, Int8WeightOnlyConfig() if int8 == "weights" else Int8DynamicActivationInt8WeightConfig())
    unwrap_tensor_subclass(model)  # plain int8 tensors, which need no torchao where the file is loaded
    return linear


def _about(model: nn.Module) -> dict[str, str]:
    """The preprocessing and the classes, as texts by name."""
    names = list(model.pretrained_cfg.get("label_names") or ())
    about: dict[str, Any] = {**resolve_data_config({}, model=model), "label_names": names}
    return {name: json.dumps(value) for name, value in about.items()}


# -- formats ---------------------------------------------------------------------------------------------


def _config(about: dict[str, str]) -> dict[str, str]:
    return {"config.json": json.dumps({name: json.loads(value) for name, value in about.items()})}


def _write_onnx(model: nn.Module, images: Tensor, about: dict[str, str]) -> bytes:
    program = torch.onnx.export(
        model,
        (images,),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        input_names=[INPUT],
        output_names=[OUTPUT],
        verbose=False,
    )
    program.model.metadata_props.update(about)
    return program.model_proto.SerializeToString()


def _load_onnx(path: Path) -> Logits:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])


def _write_pt2(model: nn.Module, images: Tensor, about: dict[str, str]) -> bytes:
    program = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files=_config(about))
    return buffer.getvalue()


def _load_pt2(path: Path) -> Logits:
    return torch.export.load(io.BytesIO(path.read_bytes())).module()


def _write_torchscript(model: nn.Module, images: Tensor, about: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(model, images, check_trace=False), buffer, _extra_files=_config(about))
    return buffer.getvalue()


FORMATS = {
    "onnx": Format(".onnx", ("onnx", "onnxscript", "onnxruntime"), _write_onnx, _load_onnx),
    "pt2": Format(".pt2", (), _write_pt2, _load_pt2),
    "torchscript": Format(".pt", (), _write_torchscript, torch.jit.load),
}
