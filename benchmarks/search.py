"""Subnets per second of a search, beside the evaluation of one subnet after the other.

    python benchmarks/search.py [--images 2000] [--size 500x375] [--space NAME] [--device auto] [--out FILE]

JPEGs of handwritten digits are generated, and a supernet is trained on some of them for a minute. Then
the same evolution (20 subnets, 10 generations) searches it on the other images: with every subnet evaluated
on all of them, and with those leaving that are behind (growtas/searching/racing.py). Both must end with the
same subnet. The baseline decodes the images again for every subnet, in float32 and batches of 256, as growtas
did for images that did not fit into 1 GB; its times are of random subnets, between which the two searches'
own evaluation of ten subnets is timed, so that other work on the machine disturbs all of them alike. On a CPU
there is one thread, times are of the CPU, and the space is a small one for images of 32 x 32 pixels, since
a CPU takes far longer for one of 224 x 224 than to decode it; on a GPU it is autoformer-tiny, time is by the
clock, and as many processes decode as there are cores.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import environment, results, search_report
from common.timing import interleave, spread
from PIL import Image
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

import growtas
from growtas.progress import track
from growtas.searching.evaluate import TOGETHER, Evaluator
from growtas.searching.evolution import Evolution, EvolutionConfig
from growtas.searching.feasible import feasible_set
from growtas.searching.limits import Limits
from growtas.searching.result import Evaluation
from growtas.space import SearchSpace, load_space, seeded_rng
from growtas.training.data import load_splits
from growtas.training.data.kept import KeptImages
from growtas.training.data.workers import keep_freed_memory
from growtas.training.precision import precision

SETTINGS = EvolutionConfig(population=20, generations=10, parents=5, mutations=10, crossovers=10)
TRAINED_ON, STEPS, BATCH = 1500, 600, 64
BASELINE_BATCH = 256


def small_space() -> SearchSpace:
    """The digits' space, for colour images of 32 x 32 pixels."""
    return dataclasses.replace(load_space("digits"), image_size=32, patch_size=8, in_channels=3)


def make_folder(folder: Path, count: int, width: int, height: int) -> None:
    """JPEGs of quality 90: images to train on and ``count`` others, each a digit before a blurred ground."""
    digits, noise = load_digits(), np.random.default_rng(0)
    for part, first, images in (("train", 0, TRAINED_ON), ("val", 1200, count)):
        for i in range(images):
            digit = first + i % (1200 if part == "train" else len(digits.images) - 1200)
            shape = (height // 8, width // 8, 3)
            ground = Image.fromarray(noise.integers(0, 256, shape, dtype=np.uint8)).resize((width, height))
            ink = Image.fromarray((digits.images[digit] * 15).astype(np.uint8)).resize(ground.size)
            pixels = np.asarray(ground, np.float32) * 0.6 + np.asarray(ink, np.float32)[..., None] * 0.6
            path = folder / part / str(digits.target[digit]) / f"{i:05d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)


def trained(space: Any, split: Any, device: torch.device, workers: int) -> growtas.Supernet:
    """A supernet after a short training, a random subnet in each step."""
    torch.manual_seed(0)
    net, rng = growtas.Supernet(space, 10).to(device).train(), seeded_rng("benchmark training")
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    order = [rng.sample(range(len(split)), BATCH) for _ in range(len(split) // BATCH)]
    images = KeptImages(split, order, device, workers)
    for step in track(range(STEPS), "train", "step"):
        batch, labels = images.batch(step % len(order))
        with precision("auto", device):
            loss = cross_entropy(net(batch, space.sample(rng)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


def search(evaluator: Evaluator, space: Any, races: bool, clock: Callable[[], float]) -> dict[str, Any]:
    """A whole search, decoding included: what it found, the images it evaluated, and its seconds."""
    evolution = Evolution(feasible_set(space, 10, Limits()), SETTINGS, seed=0)
    subnets = images = 0
    begin = clock()
    while candidates := evolution.ask():
        scores = list(evaluator.score(candidates, bar=evolution.bar if races else None))
        subnets += len(scores)
        images += sum(score.images for score in scores)
        evolution.rank(
            [
                Evaluation(subnet, each.top1, 0, 0, evolution.generation, each.images, each.correct)
                for subnet, each in zip(candidates, scores, strict=True)
            ]
        )
    return {
        "best": str(evolution.best),
        "top1": evolution.parents and evaluator.top1(evolution.best),
        "subnets": subnets,
        "images": images,
        "seconds": clock() - begin,
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write the result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--size", default="500x375", help="width x height in pixels")
    parser.add_argument("--space", help="a preset; by default a small one on a CPU, autoformer-tiny on a GPU")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", help="the JSON file (benchmarks/results/<processor>/search.json)")
    given = parser.parse_args(arguments)
    device = environment.pick_device(given.device)
    on_cpu = device.type == "cpu"
    clock = time.process_time if on_cpu else time.perf_counter
    workers = 0 if on_cpu else environment.processors()
    if on_cpu:
        torch.set_num_threads(1)
        keep_freed_memory()
    space = load_space(given.space or "autoformer-tiny") if given.space or not on_cpu else small_space()
    out = Path(given.out) if given.out else environment.result_folder(device) / "search.json"
    described = environment.describe(device)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "images"
        make_folder(folder, given.images, *map(int, given.size.split("x")))
        splits = load_splits(f"folder:{folder}", space)
        net = trained(space, splits.train, device, workers)
        record = measure(net, splits.test, given.rounds, workers, clock)
    settings = {
        "space": space.name if given.space or not on_cpu else "digits, 32 x 32 pixels",
        "images": given.images,
        "size": given.size,
        "clock": "CPU time, one thread" if on_cpu else f"wall clock, {workers} decoding processes",
    }
    data = {"benchmark": "search", **described, "settings": settings, "records": record}
    results.write(out, {key: value for key, value in data.items() if key != "records"}, record)
    print(search_report.setting(data))
    print(search_report.table(data))
    print(f"wrote {out}")
    return 0


def measure(
    net: Any, split: Any, rounds: int, workers: int, clock: Callable[[], float]
) -> list[dict[str, Any]]:
    """One record for each way.

    Raises:
        SystemExit: the two searches end with different subnets.
    """
    rng = seeded_rng("benchmark")
    one_by_one = Evaluator(net, split, BASELINE_BATCH, "none", workers, keep=False)
    kept = Evaluator(net, split, workers=workers)
    kept.top1(net.space.smallest())  # decodes

    def baseline() -> float:
        begin = clock()
        one_by_one.top1(net.space.sample(rng))
        return clock() - begin

    def together() -> float:
        subnets = [net.space.sample(rng) for _ in range(TOGETHER)]
        begin = clock()
        list(kept.score(subnets))
        return (clock() - begin) / TOGETHER

    samples = interleave({"again": baseline, "kept": together}, seconds=0, rounds=rounds, least=rounds)
    again = samples["again"]
    found = {
        races: search(Evaluator(net, split, workers=workers), net.space, races, clock)
        for races in (False, True)
    }
    if found[False]["best"] != found[True]["best"]:
        raise SystemExit(f"The searches ended with different subnets: {found}.")
    middle, low, high = spread(again)
    records = [
        {"way": search_report.BASELINE, "rate": 1 / middle, "low": 1 / high, "high": 1 / low},
    ]
    ratios = [a / b for a, b in zip(again, samples["kept"], strict=True)]
    ratio = spread(ratios)
    middle, low, high = spread(samples["kept"])
    rates = {"rate": 1 / middle, "low": 1 / high, "high": 1 / low}
    records.append(
        {
            "way": search_report.KEPT,
            **rates,
            "times": ratio.median,
            "times_low": ratio.low,
            "times_high": ratio.high,
        }
    )
    for races, way in ((False, search_report.ALL), (True, search_report.RACED)):
        each = found[races]
        rate = each["subnets"] / each["seconds"]
        ratio = spread([seconds * rate for seconds in again])
        records.append(
            {
                "way": way,
                "rate": rate,
                "times": ratio.median,
                "times_low": ratio.low,
                "times_high": ratio.high,
                **each,
            }
        )
    return records


if __name__ == "__main__":
    raise SystemExit(main())
