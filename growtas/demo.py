"""``growtas demo``: the whole way on scikit-learn's digits, from nothing to an exported subnet."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from growtas.bounds import COST, EPOCHS, GENERATIONS, SEED, SUBNETS, bounded
from growtas.errors import GrowtasError, UsageError

if TYPE_CHECKING:
    from growtas.searching.result import SearchResult
    from growtas.training.run import Run

# Beside the digits' own recipe of growtas.training.config. Of seven recipes (clipping or not, learning rate,
# smoothing, mixup, weight decay) this one did best on the search split, which alone was looked at: 96.9 % on
# average over 18 random subnets, the others 94.6 to 96.8 %.
RECIPE = {"clip_grad": 1.0, "eval_every": 0}
LOGIT_TOLERANCE = 1e-4  # relative to the largest logit
RUN, MODEL, PICTURE = "run", "best", "demo.png"


@dataclass(frozen=True)
class DemoResult:
    """The results of the demo.

    Args:
        found: the search.
        logit_difference: largest absolute difference, over the test images, between the logits of the
            supernet's slice and of the model read back from its file.
        files: every file written, with the folder in front.
    """

    found: SearchResult
    logit_difference: float
    files: tuple[Path, ...]


@bounded(max_params=COST, epochs=EPOCHS, population=SUBNETS, generations=GENERATIONS, seed=SEED)
def demo(
    out: str = "demo-output",
    max_params: float = 60_000,
    epochs: int = 100,
    population: int = 50,
    generations: int = 10,
    seed: int = 0,
) -> DemoResult:
    """Train a supernet on scikit-learn's digits with GrowTAS, search it, export the best subnet, draw it all.

    A second call with the same folder continues where the first one was stopped, or shows its results again.

    Args:
        out: the folder; everything is written there.
        max_params: limit of the search on the subnet's parameters (the space has 16,618 to 109,990).
        epochs: of training.
        population: subnets of a generation of the search.
        generations: of the search.
        seed: of training and of search.

    Returns:
        The search's result, the check of the logits and the files.

    Raises:
        UsageError: the folder holds something else, or a demo with other settings.
        GrowtasError: the exported model differs from the supernet's slice.
    """
    folder = Path(out)
    settings = {
        **RECIPE,
        "space": "digits",
        "data": "digits",
        "method": "growtas",
        "epochs": epochs,
        "seed": seed,
    }
    _check_folder(folder, settings)
    began = time.perf_counter()
    run = _train(folder, settings)
    trained = time.perf_counter()
    found = _search(run, max_params, population, generations, seed)
    searched = time.perf_counter()
    difference = _export(run, found, folder / MODEL)
    _draw(run, found, int(max_params), folder / PICTURE)
    files = tuple(sorted(path for path in folder.rglob("*") if path.is_file()))
    print(_report(run, found, int(max_params), difference, files, trained - began, searched - trained))
    return DemoResult(found, difference, files)


def _check_folder(folder: Path, settings: dict[str, Any]) -> None:
    """Refuse a folder with anything but an earlier demo of the same settings, before anything is written."""
    from growtas.training.run import CONFIG_NAME, Run

    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; choose a folder for the demo with --out.")
    if not any(path.is_file() for path in folder.rglob("*")):  # new, or stopped before the first file
        return
    if not (folder / RUN / CONFIG_NAME).is_file():
        raise UsageError(f"{folder} holds something else than a demo; choose another folder with --out.")
    config = Run.open(folder / RUN).config
    for name, value in settings.items():
        if getattr(config, name) != value:
            raise UsageError(
                f"{folder} holds a demo with {name}={getattr(config, name)}, not {value}; choose another "
                "folder with --out, or remove this one."
            )


def _train(folder: Path, settings: dict[str, Any]) -> Run:
    import growtas
    from growtas.training.run import CONFIG_NAME, Run

    if not (folder / RUN / CONFIG_NAME).exists():
        print(f"1/4 training a supernet on scikit-learn's digits into {folder / RUN}", flush=True)
        return growtas.train(**settings, out=str(folder / RUN))
    run = Run.open(folder / RUN)
    if run.finished:
        print(f"1/4 training was finished earlier: {folder / RUN}", flush=True)
        return run
    print(f"1/4 continuing the training in {folder / RUN}", flush=True)
    return growtas.train(resume=run.path)


def _search(run: Run, max_params: float, population: int, generations: int, seed: int) -> SearchResult:
    import growtas

    print(f"2/4 searching it for the best subnet of at most {max_params:,.0f} parameters", flush=True)
    return growtas.search(
        run, max_params=max_params, population=population, generations=generations, seed=seed
    )


def _export(run: Run, found: SearchResult, folder: Path) -> float:
    """Save the best subnet, read it back, and compare its logits with the supernet slice's."""
    import torch

    import growtas.export
    from growtas.training.data import evaluation_loader

    print("3/4 extracting the best subnet and comparing its logits with the supernet slice's", flush=True)
    net, subnet = run.load_net(), found.best.subnet
    growtas.export.save(growtas.export.extract(run, subnet), folder, overwrite=True)
    saved = growtas.export.load(folder)
    difference = largest = 0.0
    with torch.inference_mode():
        for images, _ in evaluation_loader(run.splits().search, 256):
            expected = net(images, subnet)
            difference = max(difference, (saved(images) - expected).abs().max().item())
            largest = max(largest, expected.abs().max().item())
    if not difference <= LOGIT_TOLERANCE * largest:  # also where the difference is not a number
        raise GrowtasError(
            f"The model read back from {folder} differs from the supernet's slice by {difference:.3g}, and "
            f"{LOGIT_TOLERANCE * largest:.3g} is allowed; report this."
        )
    return difference


def _draw(run: Run, found: SearchResult, max_params: int, path: Path) -> None:
    from growtas.plotting import EvaluatedSubnet, Step, picture
    from growtas.training.log import read_log

    print("4/4 drawing", flush=True)
    steps = [
        Step(record["step"] / run.steps_per_epoch, record["loss"], group)
        for record in read_log(run.path, "step")
        for group in record["group"]
    ]
    picture(
        path,
        [EvaluatedSubnet(e.params, e.top1, run.space.group_of(e.subnet)) for e in found.history],
        found.history.index(found.best),
        max_params,
        run.images["search"],
        steps,
        [record["epoch"] for record in read_log(run.path, "stage") if record["step"]],
        run.space.groups,
        f"GrowTAS on scikit-learn's digits, {run.config.epochs} epochs, seed {run.config.seed}",
    )


def _report(
    run: Run,
    found: SearchResult,
    max_params: int,
    difference: float,
    files: tuple[Path, ...],
    training: float,
    searching: float,
) -> str:
    """The table and the list of files."""
    best, images = found.best, run.images
    rows = (
        ("best subnet", str(best.subnet)),
        ("parameters", f"{best.params:,} (limit {max_params:,})"),
        ("multiply-accumulates", f"{best.macs:,} per image"),
        ("top-1, search split", f"{best.top1:.2f} % of {images['search']} images held out from training"),
        ("top-1, test split", f"{found.test_top1:.2f} % of {images['test']} images, looked at once"),
        ("subnets evaluated", f"{len(found.history)} of {found.feasible:,} within the limit"),
        ("logits", f"{difference:.2g} is the largest difference from the supernet slice's"),
        ("training", f"{run.config.epochs} epochs, {run.steps:,} steps, {training:.0f} s in this call"),
        ("search", f"{searching:.0f} s in this call"),
    )
    width = max(len(name) for name, _ in rows)
    lines = ["", *(f"{name:<{width}}  {value}" for name, value in rows), "", "files"]
    lines += [f"  {path}  {_size(path.stat().st_size)}" for path in files]
    return "\n".join(lines)


def _size(count: int) -> str:
    return f"{count / 1000:,.0f} kB" if count >= 1000 else f"{count} bytes"
