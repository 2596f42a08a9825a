"""``growtas.export.convert``: a subnet of a run, or a saved model, as one file for another runtime."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import torch
from torch import Tensor, nn

from growtas.bounds import bounded
from growtas.errors import UsageError
from growtas.export import formats
from growtas.export.extraction import extract
from growtas.export.formats import Exported
from growtas.searching.evaluate import Evaluator
from growtas.searching.evaluate_model import images_of
from growtas.supernet import SingleModel
from growtas.training.external import PREFIX, create, is_external
from growtas.training.model import model_space
from growtas.training.run import Run


@bounded()
def convert(
    source: Run | str | os.PathLike,
    to: str,
    *,
    out: str | os.PathLike | None = None,
    subnet: str = "best",
    averaged: bool = False,
    int8: str = "none",
    data: str | None = None,
    data_folder: str | None = None,
    split: str = "test",
    overwrite: bool = False,
) -> Exported:
    """Write a model as one file for another runtime, and compare the logits there.

    The file takes float32 images, normalised as the model's config.json says, in batches of any size.

    Args:
        source: folder of a training run; or a model: a folder that growtas extract, growtas transfer or timm
            wrote, or timm:NAME.
        to: onnx, pt2 (torch.export) or torchscript.
        out: the file; model.onnx, model.pt2 or model.pt in the source's folder where None.
        subnet: of a run: best (of its finished search; best:6e6 of that under the limit 6e6), pareto:3 or
            pareto:6e6 (of its front, by number or limit), smallest, largest, or sizes such as
            d24-h2,2,3-r2,3,2.
        averaged: of a run with ema_decay: take the moving average of the weights.
        int8: weights stores the weights of linear layers as int8 and computes in float32; dynamic computes
            linear layers in int8, which only pt2 can hold, and whoever loads the file needs torchao; none.
        data: of a model: images to measure the accuracy before and after int8 on, as of growtas train; its
            own data where it knows some.
        data_folder: where that data is stored, if it is a timm data set.
        split: of the data: test, search (held out from training) or train.
        overwrite: replace another file.

    Returns:
        The file, its size, the largest difference of a logit, and with int8 the accuracies.

    Raises:
        UsageError: there is no such model, subnet, format or data, a package is missing, or the file exists.
        GrowtasError: the model cannot be written, or computes something else in its runtime. No file is left.
    """
    formats.check(to, int8)
    is_model = not isinstance(source, Run) and is_external(str(source))
    if out is None and is_model and str(source).startswith(PREFIX):
        raise UsageError(f"{source} has no folder; give out=FILE.")
    if is_model:
        name, model = str(source), create(str(source))
    else:
        run = Run.open(source)
        if data is not None:
            raise UsageError(f"A run is evaluated on its own data; leave out data={data!r}.")
        name, model = str(run.path), extract(run, subnet, averaged=averaged)
    if out is None:
        out = Path(name) / f"model{formats.FORMATS[to].suffix}"
    if int8 == "none":
        return formats.write(model, to, out, int8, overwrite)
    if is_model:
        found = images_of(name, model, data, data_folder)
    else:
        found = run.splits(), model_space(name, model, run.config.data)
    written = formats.write(model, to, out, int8, overwrite)
    if found is None:
        return written
    splits, space = found
    nets = (model, _InRuntime(written.path, to, model.num_classes))
    before, after = (
        Evaluator(SingleModel(net, space).cpu(), getattr(splits, split), keep=False) for net in nets
    )
    return dataclasses.replace(
        written,
        top1=(before.top1(space.name), after.top1(space.name)),
        images=f"{before.images:,} images of the {split} split of {splits.name}",
    )


class _InRuntime(nn.Module):
    """A file in its runtime as a module."""

    def __init__(self, path: Path, to: str, num_classes: int) -> None:
        super().__init__()
        self.num_classes, self._run = num_classes, formats.FORMATS[to].load(path)
        self.place = nn.Parameter(torch.empty(0))  # says where it computes

    def forward(self, images: Tensor) -> Tensor:
        return self._run(images)
