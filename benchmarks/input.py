"""Speed of reading: images per second of one core's CPU time, from JPEG files and packed images, with rivals.

    python benchmarks/input.py [--images 64] [--size 500x375] [--rounds 15] [--seconds 90] [--out FILE]

Photograph-like JPEGs are generated. The ways take turns in one process with one thread; times are of the
CPU, all threads of the process together, so that other work on the machine counts little, and freed memory
is kept in all of them. Every way ends in a batch in memory of the process. "Everything" is the published
augmentation on the CPU (rand-m9-mstd0.5-inc1, erasing 0.25). "Resized bytes" are crops of 224 x 224 pixels,
before flip, RandAugment, normalisation and erasing. "Crops for a GPU to resize" is all that a loading
process of growtas does where the run has a GPU: crops keep their pixels, and the resize costs no CPU either.
Its cost on the CPU is the difference to "resized bytes". RandAugment of torchvision and of DALI is their
own, of other operations.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import environment, input_report, results
from common.timing import interleave, ratio, spread
from PIL import Image
from timm.data import create_transform
from timm.data.loader import fast_collate
from torch.utils.data import default_collate

from growtas.space import load_space
from growtas.training.config import TrainConfig
from growtas.training.data import load_splits
from growtas.training.data.images import AugmentedImages
from growtas.training.data.pack import data_pack
from growtas.training.data.policies import with_safe_operations
from growtas.training.data.workers import keep_freed_memory

BATCH, PIXELS = 32, 224
POLICY = "rand-m9-mstd0.5-inc1"
Way = Callable[[int], object]  # the number of a batch


def photograph(noise: np.random.Generator, width: int, height: int) -> Image.Image:
    """An image with as much detail at every scale as photographs have."""
    pixels = np.zeros((height, width, 3), np.float32)
    for scale in (4, 8, 16, 32, 64, 128):
        shape = max(2, height * scale // 500), max(2, width * scale // 500), 3
        for channel, coarse in enumerate(noise.normal(size=shape).astype(np.float32).transpose(2, 0, 1)):
            smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
            pixels[..., channel] += np.asarray(smooth) / scale**0.8
    pixels += noise.normal(size=(height, width, 1)) * 0.02
    pixels -= pixels.min()
    return Image.fromarray((pixels * (255 / pixels.max())).astype(np.uint8))


def make_folder(folder: Path, count: int, width: int, height: int) -> None:
    """Two classes of JPEGs of quality 90 to train on, and one image of each to test on."""
    noise = np.random.default_rng(0)
    for part, images in (("train", count), ("val", 2)):
        for i in range(images):
            path = folder / part / "ab"[i % 2] / f"{i:05d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            photograph(noise, width, height).save(path, quality=90)


def ours(data: str, what: str) -> Way:
    """growtas' loading process. Args: what: it does, of :data:`common.input_report.PARTS`."""
    split = load_splits(data, load_space("autoformer-tiny")).train
    augmented = AugmentedImages(split, TrainConfig("autoformer-tiny", data=data).resolved())
    augmented.resizes = what != input_report.CROPS

    def batch(number: int) -> object:
        keys = [(0, i % len(split), 0) for i in range(number * BATCH, (number + 1) * BATCH)]
        pixels, labels, draws = augmented.collate([augmented[key] for key in keys])
        return augmented.finished(pixels, draws) if what == input_report.EVERYTHING else pixels

    return batch


def timms(paths: list[Path], everything: bool) -> Way:
    """timm's transforms; without a GPU, or as its PrefetchLoader has them, with RandAugment on the CPU."""
    transform = with_safe_operations(
        create_transform(
            *(PIXELS, True),
            auto_augment=POLICY,
            interpolation="bicubic",
            re_prob=0.25,
            re_mode="pixel",
            use_prefetcher=not everything,
        )
    )
    collate = default_collate if everything else fast_collate
    return lambda number: collate([(transform(_opened(path)), 0) for path in _paths(paths, number)])


def torchvisions(paths: list[Path], everything: bool) -> Way:
    """torchvision's second transforms on tensors, with its own decoder."""
    from torchvision.io import decode_jpeg, read_file
    from torchvision.transforms import v2

    bicubic = v2.InterpolationMode.BICUBIC
    crop = v2.RandomResizedCrop(PIXELS, interpolation=bicubic, antialias=True)
    moments = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    rest = [v2.RandomHorizontalFlip(), v2.RandAugment(2, 9, interpolation=v2.InterpolationMode.BILINEAR)]
    rest += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(**moments), v2.RandomErasing(0.25)]
    transform = v2.Compose([crop, *rest]) if everything else crop
    return lambda number: torch.stack(
        [transform(decode_jpeg(read_file(str(path)), mode="RGB")) for path in _paths(paths, number)]
    )


def dalis(folder: Path, everything: bool) -> Way:
    """DALI's pipeline of the CPU: decoding of the crop alone, bicubic resize."""
    from nvidia.dali import fn, pipeline_def, types
    from nvidia.dali.auto_aug import rand_augment

    @pipeline_def(
        batch_size=BATCH, num_threads=1, device_id=None, enable_conditionals=True, prefetch_queue_depth=1
    )
    def pipeline():
        encoded, _ = fn.readers.file(file_root=str(folder / "train"))
        crop = fn.decoders.image_random_crop(
            encoded, random_area=[0.08, 1.0], random_aspect_ratio=[3 / 4, 4 / 3]
        )
        image = fn.resize(crop, size=[PIXELS, PIXELS], interp_type=types.INTERP_CUBIC, antialias=True)
        if not everything:
            return image
        image = rand_augment.rand_augment(image, n=2, m=9)
        moments = {"mean": [123.7, 116.3, 103.5], "std": [58.4, 57.1, 57.4]}
        return fn.crop_mirror_normalize(image, mirror=fn.random.coin_flip(), output_layout="CHW", **moments)

    built = pipeline()
    built.build()
    return lambda number: built.run()


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def _paths(paths: list[Path], number: int) -> list[Path]:
    return [paths[i % len(paths)] for i in range(number * BATCH, (number + 1) * BATCH)]


def rivals(folder: Path, paths: list[Path], what: str) -> dict[str, Way]:
    """Other libraries' ways. Args: what: they do, of :data:`common.input_report.PARTS` but the last."""
    everything = what == input_report.EVERYTHING
    ways = {
        f"timm, {what if everything else 'as for its PrefetchLoader'}": timms(paths, everything),
        f"torchvision v2, {what}": torchvisions(paths, everything),
    }
    try:
        return {**ways, f"DALI, {what}": dalis(folder, everything)}
    except ImportError:
        print("DALI is not installed: pip install nvidia-dali-cuda130")
        return ways


@contextlib.contextmanager
def all_ways(count: int, width: int, height: int) -> Iterator[tuple[dict[str, Way], dict[str, float]]]:
    """Every way that can be imported, and the bytes per image of each store, while their files exist."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "images"
        make_folder(folder, count, width, height)
        paths = sorted((folder / "train").rglob("*.jpg"))
        sizes = {"JPEG files": sum(path.stat().st_size for path in paths) / len(paths)}
        stores = {"JPEG files": f"folder:{folder}"}
        for kind in ("raw", "jpeg"):
            packed = data_pack(folder, Path(scratch) / kind, format=kind, workers=0)
            sizes[f"packed {kind}"] = sum(tar.stat().st_size for tar in packed.rglob("train/*.tar")) / len(
                paths
            )
            stores[f"packed {kind}"] = f"packed:{packed}"
        ways: dict[str, Way] = {}
        for what in input_report.PARTS:
            if what != input_report.CROPS:
                ways |= rivals(folder, paths, what)
            for store, data in stores.items():
                ways[f"growtas, {store}, {what}"] = ours(data, what)
        yield ways, sizes


def cpu_seconds(way: Way) -> Callable[[], float]:
    """A sampler of the CPU time of one batch after another."""
    batches = itertools.count()

    def sample() -> float:
        start = time.process_time()
        way(next(batches))
        return time.process_time() - start

    return sample


def measure(ways: dict[str, Way], rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Images per second of CPU time, median and quartiles, and times the baseline's, round by round."""
    samplers = {name: cpu_seconds(way) for name, way in ways.items()}
    for sampler in samplers.values():
        sampler()
    samples = interleave(samplers, seconds=seconds, rounds=rounds)
    found = []
    for name, each in samples.items():
        middle, low, high = spread(each)
        rates = {"median": BATCH / middle, "low": BATCH / high, "high": BATCH / low}
        found.append({"way": name, **rates, "times": ratio(samples[input_report.BASELINE], each).median})
    return found


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write the result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--size", default="500x375", help="width x height in pixels")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=90)
    parser.add_argument("--out", help="the JSON file (benchmarks/results/<processor>/input.json)")
    given = parser.parse_args(arguments)
    width, height = map(int, given.size.split("x"))
    warnings.filterwarnings("ignore", message="The image decoding and encoding capabilities of TorchVision")
    cpu, threads = torch.device("cpu"), torch.get_num_threads()
    out = Path(given.out) if given.out else environment.result_folder(cpu) / "input.json"
    torch.set_num_threads(1)
    keep_freed_memory()
    described = environment.describe(cpu)
    try:
        with all_ways(given.images, width, height) as (ways, sizes):
            records = measure(ways, given.rounds, given.seconds)
    finally:
        torch.set_num_threads(threads)
    settings = {"size": given.size, "batch": BATCH, "rounds": given.rounds, "images": given.images}
    head = {"benchmark": "input", **described, "settings": settings, "bytes_per_image": sizes}
    results.write(out, head, records)
    data = results.read(out)
    print(f"{input_report.table(data)}\n\n{input_report.setting(data)}\nwrote {out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
