"""The way of a subnet out of its supernet: the slices that are copied, the folder, the files and runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import growtas

SPACE, CLASSES, SUBNET = "digits", 10, "d36-h3,2,3,2-r3,2,3,2"
SLICE, REST, LINE = "#0072B2", "#d9d9d9", "#777777"
FOLDER = (
    ("model.safetensors", "the slices, copied"),
    ("config.json", "sizes, input, class names"),
    ("growtas_vit.py", "the model, in plain PyTorch"),
    ("README.md", "the card"),
)
RUNTIMES = (
    ("timm", 'create_model("local-dir:best")'),
    ("ONNX Runtime", "growtas export best --to onnx"),
    ("torch.export", "growtas export best --to pt2"),
    ("TorchScript", "growtas export best --to torchscript"),
    ("training on other data", "growtas transfer best --data ..."),
    ("Hugging Face Hub", "hf upload USER/NAME best"),
)


def shapes(space: growtas.SearchSpace) -> list[list[tuple[str, tuple[int, int], tuple[int, int]]]]:
    """Of each block the linear layers: name, rows and columns in the supernet, and those of the subnet."""
    subnet = space.parse(SUBNET)
    super_dim, super_rows = max(space.embed_dim), space.head_dim * max(space.num_heads)
    super_hidden = int(max(space.mlp_ratio) * super_dim)
    found = []
    for block in range(max(space.depth)):
        dim = rows = hidden = 0
        if block < subnet.depth:
            dim, rows = subnet.embed_dim, space.head_dim * subnet.num_heads[block]
            hidden = int(subnet.mlp_ratio[block] * dim)
        found.append([
            ("qkv", (3 * super_rows, super_dim), (3 * rows, dim)),
            ("proj", (super_dim, super_rows), (dim, rows)),
            ("fc1", (super_hidden, super_dim), (hidden, dim)),
            ("fc2", (super_dim, super_hidden), (dim, hidden)),
        ])  # fmt: skip
    return found


def plot(path: Path) -> None:
    """Draw the picture.

    Args:
        path: .svg.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context({"svg.fonttype": "none", "svg.hashsalt": "growtas", "font.size": 8.5}):
        figure = pyplot.figure(figsize=(7.8, 4.1))
        axis = figure.add_axes((0, 0, 1, 1), xlim=(0, 780), ylim=(410, 0))
        axis.axis("off")
        _supernet(axis, growtas.load_space(SPACE))
        _arrow(axis, 232, 290, "extract")
        _boxes(axis, 298, 178, "a folder of its own", FOLDER)
        _arrow(axis, 484, 534, "")
        _boxes(axis, 542, 228, "wherever it is needed", RUNTIMES)
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)


def _supernet(axis: Any, space: growtas.SearchSpace) -> None:
    from matplotlib.patches import Rectangle

    _title(axis, 12, f"the supernet of {SPACE}")
    scale, top = 0.4, 58.0
    for number, layers in enumerate(shapes(space), start=1):
        left = 58.0
        for name, whole, own in layers:
            for (rows, columns), colour in ((whole, REST), (own, SLICE)):
                place, size = (left, top), (scale * columns, scale * rows)
                axis.add_patch(Rectangle(place, *size, facecolor=colour, lw=0))
            if number == 1:
                axis.text(left, top - 6, name)
            left += scale * whole[1] + 16
        axis.text(12, top + 11, f"block {number}")
        top += scale * max(rows for _, (rows, _), _ in layers) + 5
    subnet = space.parse(SUBNET)
    own, whole = (growtas.cost.parameters(each, space, CLASSES) for each in (subnet, space.largest()))
    axis.text(12, 384, f"{SUBNET}:", color=SLICE)
    axis.text(12, 399, f"{own:,} of {whole:,} parameters", color=SLICE)


def _boxes(axis: Any, left: float, width: float, title: str, boxes: tuple[tuple[str, str], ...]) -> None:
    from matplotlib.patches import FancyBboxPatch

    _title(axis, left, title)
    height, step = 38, 52
    for number, (name, about) in enumerate(boxes):
        top = 208 + (number - len(boxes) / 2) * step + (step - height) / 2
        style = {"boxstyle": "round,pad=0,rounding_size=4", "facecolor": "white", "edgecolor": LINE}
        axis.add_patch(FancyBboxPatch((left, top), width, height, **style))
        axis.text(left + 8, top + 15, name, weight="bold")
        axis.text(left + 8, top + 30, about, color="#444444")


def _title(axis: Any, left: float, text: str) -> None:
    axis.text(left, 26, text, fontsize=10.5, weight="bold")


def _arrow(axis: Any, left: float, right: float, text: str) -> None:
    middle = 208
    axis.annotate("", (right, middle), (left, middle), arrowprops={"arrowstyle": "-|>", "color": "black"})
    axis.text((left + right) / 2, middle - 8, text, ha="center")
