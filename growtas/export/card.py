"""README.md of a saved model: its card on the Hugging Face Hub, made from what config.json holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from growtas.errors import GrowtasError
from growtas.searching.folder import results_in
from growtas.searching.result import ParetoResult
from growtas.subnet import AnySubnet

if TYPE_CHECKING:
    from growtas.training.run import Run

CARD_NAME = "README.md"


def facts(run: Run, subnet: AnySubnet) -> dict[str, Any]:
    """How a subnet of a run came about, as plain values: data, training, and the figures of its search.

    Args:
        run: that it is taken from.
        subnet: of the run's space.
    """
    config, images = run.config, run.images
    known = {
        "data": title(config.data),
        "train_images": images["train"],
        "space": run.space.name,
        "method": config.method,
        "epochs": config.epochs,
    }
    found = []
    with suppress(GrowtasError):  # a damaged log of a search is no reason not to extract
        for result in results_in(run.path):
            found += [(each.images or images["search"], each, result) for each in result.history]
    found = [each for each in found if each[1].subnet == subnet]
    if not found:
        return known
    count, own, result = max(found, key=lambda each: each[0])  # of the search that saw the most images
    known |= {"search_top1": own.top1, "search_images": count, "evaluated": len(result.history)}
    if own.standard_error is not None:
        known["search_standard_error"] = own.standard_error
    is_front = isinstance(result, ParetoResult)
    points, tested = (result.front, result.test_top1) if is_front else ((result.best,), (result.test_top1,))
    for point, test_top1 in zip(points, tested, strict=True):
        if point.subnet == subnet:
            known |= {"test_top1": test_top1, "test_images": images["test"]}
    return known


def title(name: str) -> str:
    """The name of data or of a model without the folders of this machine: ``folder:flowers``."""
    kind, colon, path = name.rpartition(":")
    return f"{kind}{colon}{Path(path).name}" if Path(path).is_absolute() else name


def card(config: Mapping[str, Any]) -> str:
    """The text of the card. Args: config: the content of config.json."""
    license = config["pretrained_cfg"].get("license")
    header = ["library_name: timm", "pipeline_tag: image-classification", "tags:", "- timm", "- growtas"]
    header += [f"license: {license}"] if license else []
    rows = [f"| {name} | {value} |" for name, value in _figures(config)]
    lines = ["---", *header, "---", f"# {config['architecture']}", "", _purpose(config), ""]
    return "\n".join([*lines, "| | |", "|---|---|", *rows, "", *_usage(config)])


def _purpose(config: Mapping[str, Any]) -> str:
    own = config["growtas"]
    made = own.get("trained", {})
    data = f" It was trained on `{made['data']}`." if "data" in made else ""
    if "model" in made:
        return f"`{made['model']}`, fine-tuned on `{made['data']}` by growtas {own['version']}."
    return (
        f"An image classifier that growtas {own['version']} took out of a supernet, as the subnet "
        f"`{own['subnet']}`.{data}"
    )


def _figures(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The rows of the table, as far as they are known."""
    own, cfg = config["growtas"], config["pretrained_cfg"]
    made = own.get("trained", {})
    yield "parameters", f"{own['parameters']:,}"
    if "macs" in own:
        yield "multiply-accumulates of an image", f"{own['macs']:,}"
    yield "input", " x ".join(str(size) for size in cfg["input_size"])
    yield "classes", f"{config['num_classes']:,}"
    if "test_top1" in made:
        yield "top-1 on the test images", f"{made['test_top1']:.2f} % of {made['test_images']:,}"
    if "search_top1" in made:
        error = made.get("search_standard_error")
        error = "" if error is None else f" (standard error {error:.2f})"
        yield (
            "top-1 on held-out training images",
            f"{made['search_top1']:.2f} % of {made['search_images']:,}{error}",
        )
    if "evaluated" in made:
        yield "found by", f"a search that evaluated {made['evaluated']:,} subnets"
    if "space" in made:
        yield "trained by", f"method {made['method']} in the space {made['space']}"
    if "epochs" in made:
        yield "training", f"{made['epochs']:,} epochs of {made['train_images']:,} images"


def _usage(config: Mapping[str, Any]) -> list[str]:
    """How to load it, from this folder and from the Hub."""
    architecture = config["architecture"]
    code = ["import timm"]
    if architecture.startswith("growtas_"):
        code.append("import growtas.export  # registers the architecture; without growtas: see below")
    code += [
        "",
        "# or hf-hub:USER/NAME, once it is uploaded",
        'model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()',
    ]
    code.append("transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))")
    lines = ["## How to load it", "", "```python", *code, "```", ""]
    if architecture.startswith("growtas_"):
        lines += [
            f"Without growtas, `{architecture}.py` of this folder does the same, with torch and timm only.",
            "With the folder on Python's path:",
            "",
            "```python",
            f"import {architecture}",
            "",
            f'model = {architecture}.load("FOLDER")',
            "```",
            "",
        ]
    return lines
