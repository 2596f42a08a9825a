"""Runs of every method and every verb that writes, as small as they come, and what each leaves at its end."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image

for _folder in ("training", "comparing"):
    sys.path.insert(0, str(Path(__file__).parents[1] / _folder))
from comparisons import SPACE as SPACE_VALUES  # noqa: E402
from comparisons import forked, results, space_file  # noqa: E402
from runs import SPACE, records  # noqa: E402

import growtas  # noqa: E402
import growtas.analysis.report  # noqa: E402
from growtas import export  # noqa: E402
from growtas.analysis import charts  # noqa: E402
from growtas.comparing import figure  # noqa: E402
from growtas.errors import UsageError  # noqa: E402
from growtas.jobs import job  # noqa: E402
from growtas.ops import records as tuning  # noqa: E402
from growtas.spaces.mobilenet import MobileNetSpace  # noqa: E402
from growtas.timing import table as tables  # noqa: E402
from growtas.timing import targets  # noqa: E402
from growtas.training import checkpoint  # noqa: E402
from growtas.tuning import children  # noqa: E402
from growtas.tuning import driver as tuner  # noqa: E402

FAST = {
    "space": SPACE,
    "data": "digits",
    "epochs": 3,
    "batch_size": 384,
    "eval_every": 2,
    "eval_subnets": 0,
    "drop_path": 0.2,
    "mixup": 0.8,
    "tensorboard": False,
    "device": "cpu",
}
"""A run of six steps."""

MOBILENET = MobileNetSpace(
    "tiny-mobilenet",
    kernel=(3, 5),
    expand=(2, 3),
    depth=(1, 2),
    stem_width=8,
    first_width=8,
    widths=(16,),
    final_width=16,
    feature_width=16,
    strides=(2,),
    activations=("h-swish",),
    squeeze_excite=(True,),
    stem_stride=1,
    image_size=8,
    in_channels=1,
)
FILES = {
    "space": dataclasses.replace(SPACE, name="rgb", in_channels=3, image_size=16),
    "batch_size": 16,
    "workers": 1,
}
PATIENCE = 300.0  # seconds for what a killed process started to end


@dataclass(frozen=True)
class Case:
    """Something that can be killed at any moment and started again.

    Args:
        name: for the command line.
        go: does it in a folder, or goes on with it.
        left: what its end is judged by, of that folder.
        jobs: it works in processes that it starts.
    """

    name: str
    go: Callable[[Path, Path], object]
    left: Callable[[Path], Any]
    jobs: bool = False


def make_inputs(folder: Path) -> None:
    """The inputs of the cases: a finished run, a saved model and a folder of images."""
    run = growtas.train(**FAST, ema_decay=0.9, out=folder / "run")
    export.save(growtas.extract(run, SPACE.largest()), folder / "model")
    growtas.train(**FAST | {"space": MOBILENET, "epochs": 1}, method="uniform", out=folder / "mobilenet")
    space_file(folder)
    noise = np.random.default_rng(0)
    for part, count in (("train", 20), ("val", 4)):
        for label, name in enumerate(("ant", "bee", "cat")):
            (folder / "images" / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = noise.integers(0, 80, (24, 20 + number, 3), dtype=np.uint8)
                pixels[..., label] += 150
                Image.fromarray(pixels).save(folder / "images" / part / name / f"{number}.jpg")


# -- training --------------------------------------------------------------------------------------------


def trained(folder: Path) -> dict[str, Any]:
    """A run's checkpoint, its log without times, and its files."""
    out = folder / "run"
    state = checkpoint.load(out / "checkpoint.pt")
    state["log_offset"] = state["log_check"] = None  # of time stamps, which differ
    return {"checkpoint": state, "log": records(out), "files": names(out)}


def names(folder: Path) -> list[str]:
    """The files of a folder and those below it; of curves the folder alone."""
    return sorted({str(path.relative_to(folder)).split("tensorboard/")[0] for path in folder.rglob("*")})


def going_on(begin: Callable[..., object], **settings: Any) -> Callable[[Path, Path], object]:
    """Begin a run, or resume it as a user would, who looks for the folder of a run."""

    def go(folder: Path, inputs: Path) -> object:
        if (folder / "run" / "config.yaml").exists():
            return (growtas.transfer if begin is growtas.transfer else growtas.train)(resume=folder / "run")
        given = {name: value(inputs) if callable(value) else value for name, value in settings.items()}
        return begin(**given, out=folder / "run")

    return go


def train(**settings: Any) -> Callable[[Path, Path], object]:
    """Train. Args: settings: that differ from ``FAST``."""
    return going_on(growtas.train, **FAST | settings)


TRAINING = {
    "growtas": train(method="growtas", checkpoint_every_steps=2, new_region_moments="reset"),
    "growtas-curves": train(method="growtas", checkpoint_every_steps=1, tensorboard=True),
    "interference": train(method="growtas", interference_every=1),
    "plateau": train(
        method="growtas",
        transition="plateau",
        method_options="window=1",
        epochs=5,
        checkpoint_every_steps=1,
    ),
    "uniform": train(
        method="uniform",
        sandwich=True,
        subnets_per_step=2,
        gradients="sum",
        distill="ema",
        ema_decay=0.9,
        checkpoint_every_steps=1,
    ),
    "prenas": train(method="prenas", method_options="images=4", checkpoint_every_steps=2),
    "focusformer": train(
        method="focusformer", method_options="update_every=2,images=16,samples=2,uniform=0.2"
    ),
    "single": train(method="single", method_options="subnet=largest"),
    "shrinking": train(space=MOBILENET, method="shrinking", epochs=4, eval_every=0),
    "mobilenet": train(space=MOBILENET, method="growtas", batch_size=576),
    "files": train(**FILES, data=lambda inputs: f"folder:{inputs / 'images'}"),
    "finetune": going_on(
        growtas.finetune, run=lambda inputs: inputs / "run", epochs=2, checkpoint_every_steps=1, lr=1e-3
    ),
    "transfer": going_on(
        growtas.transfer,
        model=lambda inputs: inputs / "model",
        data="digits",
        epochs=2,
        batch_size=384,
        workers=0,
        device="cpu",
        tensorboard=False,
        checkpoint_every_steps=2,
    ),
}


# -- searching and taking out ----------------------------------------------------------------------------


def search(**limits: Any) -> Callable[[Path, Path], object]:
    """Search. Args: limits: of it."""
    sizes = {"population": 4, "generations": 3, "device": "cpu", "workers": 0}
    return lambda folder, inputs: growtas.search(inputs / "run", out=folder / "found", **sizes, **limits)


def searched(folder: Path) -> dict[str, Any]:
    """The files of a search."""
    return contents(folder / "found")


def extract(folder: Path, inputs: Path) -> object:
    """Save a subnet as a model."""
    return export.save(growtas.extract(inputs / "run", SPACE.smallest()), folder / "model")


def extracted(folder: Path) -> dict[str, bytes]:
    """The files of a model, which can be loaded."""
    export.load(folder / "model")
    return contents(folder / "model")


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder but for what a killed process left of a file that it did not finish."""
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if not path.name.startswith(".")}


def export_file(folder: Path, inputs: Path) -> object:
    """Write a model for another runtime."""
    out = folder / "model.pt"
    return out.exists() or export.convert(inputs / "model", "torchscript", out=out)


def exported(folder: Path) -> torch.Tensor:
    """The logits of a TorchScript file."""
    with torch.inference_mode():
        return torch.jit.load(folder / "model.pt")(torch.linspace(0, 1, 64).reshape(1, 1, 8, 8))


def pack(folder: Path, inputs: Path) -> object:
    """Pack images into shards."""
    return growtas.data_pack(inputs / "images", folder / "packed", size=16, shard_images=20, workers=0)


def packed(folder: Path) -> dict[str, bytes]:
    """The shards; nothing but the lock may lie beside them."""
    return {"names": [name for name in names(folder) if ".lock" not in name], **contents(folder)}


# -- measurements, of a machine whose times are known ----------------------------------------------------


def latency(folder: Path, inputs: Path) -> object:
    """Measure a table of latencies."""
    times = {"milliseconds": lambda name, *rest: 1.0 + len(name), "prepare": lambda *rest: lambda: None}
    short = {f"{name}_SECONDS": 0.0 for name in ("PIECES", "SUBNETS", "VALIDATION")}
    short |= {"WRITE_EVERY": 0.0, "LEAST_ROUNDS": 3}
    space = growtas.SearchSpace(**SPACE_VALUES)
    with (
        mock.patch.dict("os.environ", GROWTAS_CACHE=str(folder / "cache")),
        mock.patch.multiple(targets, **times),
        mock.patch.multiple(tables, **short),
    ):
        return growtas.latency(space, validate=3, threads=1)


def tune(folder: Path, inputs: Path) -> object:
    """Race backends."""
    fast = {"forward": [1.5, 1.4, 1.6], "step": [1.5, 1.4, 1.6], "own_us": [1.0, 1.0]}

    def ask(self: object, request: dict) -> dict:
        jobs = tuner.Case.parse(request["case"]).jobs
        return {"measurements": [{"size": each.name, "rows": each.batch, **fast} for each in jobs]}

    with (
        mock.patch.dict("os.environ", GROWTAS_CACHE=str(folder / "cache")),
        mock.patch.multiple(children.Child, ask=ask, start=lambda self: None, close=lambda self: None),
    ):
        return tuner.tune("digits", "cpu", out=str(folder / "copy.json"))


def tuned(folder: Path) -> dict[str, Any]:
    """The record and its copy, without times."""
    found = {}
    for path in (*(folder / "cache").rglob("*.json"), folder / "copy.json"):
        data = tuning.read(path)
        found[path.name] = {key: value for key, value in data.items() if key not in ("date", "seconds")}
    return found


# -- what works in several processes ---------------------------------------------------------------------


def patiently(work: Callable[[], object]) -> object:
    """Do something as soon as the processes of a killed attempt have let go of it."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return work()
        except UsageError as error:
            if "Another process" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(0.1)


def compare(folder: Path, inputs: Path) -> object:
    """Compare two methods."""
    given = {"data": "digits", "methods": ["uniform", "growtas"], "seeds": 1, "epochs": 2, "lr": "3e-3"}
    given |= {"limits": [2000], "subnets": 2, "population": 4, "generations": 2, "jobs": 1, "device": "cpu"}
    given |= {"settings": ["batch_size=384", "transition=1"]}
    with mock.patch.object(job, "start_process", forked), mock.patch.object(figure, "draw", drawn):
        found = patiently(lambda: growtas.compare(folder / "out", inputs / "small.yaml", **given))
    return _succeeded(found.failed)


def drawn(path: Path, *shown: object) -> Path:
    """In the place of half a second of matplotlib."""
    return path


def compared(folder: Path) -> dict[str, Any]:
    """The results of the cells and the report without times."""
    report = json.loads((folder / "out" / "report.json").read_text())
    return {"cells": results(folder / "out"), "report": report["results"]}


def report(folder: Path, inputs: Path) -> object:
    """Make one figure that needs two networks."""
    given = {"epochs": 2, "subnets": 4, "seeds": 1, "settings": ["batch_size=384"], "device": "cpu"}
    given |= {"space": inputs / "small.yaml", "data": "digits", "only": ["figure-1"], "jobs": 1}
    with mock.patch.object(job, "start_process", forked), mock.patch.object(charts, "save", _unsaved):
        found = patiently(lambda: growtas.report(out=folder / "out", **given))
    return _succeeded(found.failed)


def _unsaved(figure: object, path: Path, alt: str) -> str:
    path.write_text("<svg></svg>")
    return "<svg></svg>"


def _succeeded(failed: dict[str, str]) -> None:
    """Jobs that failed are told together, as the command line does. Raises: GrowtasError: there are any."""
    if failed:
        raise growtas.GrowtasError("; ".join(f"{name} failed: {why}" for name, why in failed.items()))


def reported(folder: Path) -> dict[str, Any]:
    """The parts of the report, and the page."""
    parts = {path.name: path.read_text() for path in (folder / "out" / "report" / "parts").glob("*.json")}
    return {"parts": parts, "page": (folder / "out" / "report.html").exists()}


CASES = {name: Case(name, go, trained) for name, go in TRAINING.items()} | {
    case.name: case
    for case in (
        Case("search", search(max_params=2500), searched),
        Case("pareto", search(pareto="params"), searched),
        Case("predictor", search(predictor=True), searched),
        Case("extract", extract, extracted),
        Case("export", export_file, exported),
        Case("pack", pack, packed),
        Case("latency", latency, lambda folder: contents(folder / "cache")),
        Case("tune", tune, tuned),
        Case("compare", compare, compared, jobs=True),
        Case("report", report, reported, jobs=True),
    )
}


def clear(folder: Path) -> Path:
    """An empty folder in the place of this one."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
