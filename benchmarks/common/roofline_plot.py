"""The roofline of every device that has kernel results: what each kernel reaches of what it could."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common.performance_docs import ceilings, complete, on_gpu
from common.table import shown

#: Okabe and Ito's colours, which stay apart for colour-blind readers, and a marker of its own for each part.
STYLES = {
    "products": ("#0072B2", "o"),
    "fused": ("#D55E00", "s"),
    "attention": ("#009E73", "^"),
}


def best(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """growtas' fastest way of each job that counts FLOPs."""
    found: dict[str, dict[str, Any]] = {}
    for record in records:
        if record["way"].startswith("growtas ") and record["flops"] and record["part"] in STYLES:
            former = found.get(record["size"])
            if former is None or record["seconds"][0] < former["seconds"][0]:
                found[record["size"]] = record
    return list(found.values())


def plot(folder: Path, path: Path) -> bool:
    """Draw the picture.

    Args:
        folder: of all results.
        path: .svg.

    Returns:
        Whether there was anything to draw.
    """
    files = complete(folder, "*/kernels*.json")
    devices = list(dict.fromkeys(file.parent for file, _ in files))
    if not devices:
        return False
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    # Text stays text and names are fixed, so that the file is small and the same in every run.
    with pyplot.rc_context({"svg.fonttype": "none", "svg.hashsalt": "growtas", "font.size": 9}):
        figure, axes = pyplot.subplots(1, len(devices), figsize=(5.2 * len(devices), 3.8), squeeze=False)
        for axis, device in zip(axes[0], devices, strict=True):
            _panel(axis, [data for file, data in files if file.parent == device])
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="lower center", ncols=len(labels), frameon=False)
        figure.tight_layout(rect=(0, 0.06, 1, 1))
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)
    return True


def _panel(axis: Any, files: list[dict[str, Any]]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    ceiling = ceilings(files)
    unit, name = (1e12, "TFLOP/s") if on_gpu(files[0]) else (1e9, "GFLOP/s")
    records = best([record for data in files for record in data["records"]])
    intensities = [record["flops"] / record["bytes"] for record in records]
    ridge = ceiling["flops"] / ceiling["bandwidth"]
    low, high = min(*intensities, ridge, 1e9) / 2, max(*intensities, ridge, 1.0) * 2
    line = sorted({low, min(max(ridge, low), high), high})
    roof = [min(ceiling["flops"], x * ceiling["bandwidth"]) / unit for x in line]
    axis.plot(line, roof, color="black", lw=1.2, label="measured ceilings")
    for part, (color, marker) in STYLES.items():
        own = [record for record in records if record["part"] == part]
        axis.plot(
            [record["flops"] / record["bytes"] for record in own],
            [record["flops"] / record["seconds"][0] / unit for record in own],
            marker, color=color, markersize=4, alpha=0.8, label=shown(part), markeredgewidth=0,
        )  # fmt: skip
    axis.set_xscale("log")
    axis.set_yscale("log")
    for one in (axis.xaxis, axis.yaxis):  # 10, 20, 50, 100: few enough not to touch
        one.set_major_locator(LogLocator(subs=(1, 2, 5)))
        one.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        one.set_minor_formatter(NullFormatter())
    axis.set_xlabel("arithmetic intensity (FLOP per byte)")
    axis.set_ylabel(name)
    settings = files[0]["settings"]
    axis.set_title(f"{files[0]['machine']['device']}, {settings['dtype']}, batch {settings['batch']}")
    axis.grid(alpha=0.3)
