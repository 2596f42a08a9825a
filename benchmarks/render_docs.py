"""Write the measured numbers of the documents from the committed results; none is typed by hand.

    python benchmarks/render_docs.py [--check]

In the documents of :data:`DOCUMENTS` the text between two marks, such as ``<!-- kernels -->`` and ``<!-- end
kernels -->``, is replaced. In docs/images, roofline.svg, size-glyphs.svg and growing-map.svg are drawn from
the same files, and export.svg from a preset.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import (
    environment,
    evidence,
    export_plot,
    growing_plot,
    growing_report,
    input_report,
    performance_docs,
    predictor_report,
    product_report,
    reduce_report,
    resource_tables,
    results,
    roofline_plot,
    search_report,
    size_plot,
    threads_report,
)
from common.table import geometric_mean, render

from growtas.ops import records

ROOT = environment.ROOT
IMAGES = ROOT / "docs" / "images"
ROOFLINE, SIZES, EXPORT = (IMAGES / f"{name}.svg" for name in ("roofline", "size-glyphs", "export"))
GROWING = IMAGES / growing_report.PICTURE


def gemm_section(path: Path) -> str:
    """The results of one slice_matmul.json.

    Args:
        path: of the file.
    """
    data = results.read(path)
    records = product_report.in_order(data["records"])
    where = path.relative_to(environment.ROOT)
    described = "  \n".join(product_report.describe(data).splitlines())
    return "\n\n".join(
        [
            f"### Sliced GEMMs, {data['machine']['device']}",
            f"`{where}`, {data['date'][:10]}, load average {data['machine']['load_average']} on "
            f"{data['machine']['processors']} processors at the start.  \n{described}",
            "Geometric means over the widths:",
            product_report.summary(records, markdown=True),
            "<details><summary>All widths</summary>",
            product_report.table(records, markdown=True),
            "</details>",
        ]
    )


def choices_section(tuned: list[dict[str, Any]]) -> str:
    """Tuning records: per class of widths the choice, and the worst of its sizes.

    Args:
        tuned: the records; those without measurements are left out.
    """
    groups: dict[tuple[str, ...], list[dict]] = {}
    choices = {record["key"]["device"]: record["choices"] for record in tuned if record["measurements"]}
    for record in tuned:
        for one in record["measurements"]:
            key = record["key"]["device"], *(one[field] for field in ("op", "dtype", "class", "backend"))
            groups.setdefault(key, []).append(one)
    rows = []
    for (device, op, dtype, width_class, name), own in groups.items():
        timed = [record for record in own if "refused" not in record]
        chosen = records.name_of(choices[device].get(op, {}).get(dtype, {}).get(width_class, "torch"))
        cells = [device, op, dtype, f"to {width_class}" if width_class != "1024" else "over 512", name]
        if not timed:
            rows.append([*cells, "left out", "left out", str(len(own)), chosen])
            continue
        for key in ("forward", "step"):
            mean = geometric_mean(record[key][0] for record in timed)
            worst = min((record[key][1] for record in timed), default=float("nan"))
            cells.append(f"{mean:.2f} ({worst:.2f})")
        rows.append([*cells, str(len(own)), chosen])
    header = ["device", "operation", "dtype", "width", "backend", "× torch, forward", "both passes"]
    return "\n\n".join(
        [
            "### Tuning records, measured",
            "Speed relative to the torch backend: the geometric mean of the medians over all sizes; in "
            "brackets the lowest lower quartile.",
            render([*header, "sizes", "taken"], rows, left=5, markdown=True),
        ]
    )


def gemms_and_choices(folder: Path) -> str:
    """The generated part of docs/benchmarks.md."""
    files = sorted(folder.glob("*/slice_matmul.json"))
    sections = [gemm_section(path) for path in files]
    shipped = [record for _, record in records.shipped()]
    others = [results.read(path) for path in sorted(folder.glob("*/tuning.json"))]
    return "\n\n".join([*sections, choices_section(shipped + others)])


def kernels_and_roofline(folder: Path) -> str:
    """The means of every kernel, with the picture under them where there is one."""
    text = performance_docs.kernels(folder)
    if ROOFLINE.is_file():
        text += (
            "\n\n![Throughput of each kernel over its arithmetic intensity]"
            "(images/roofline.svg)\n\n"
            "Each point is the fastest backend of a kernel at one size; the line is the measured roofline. "
            "LayerNorm counts no FLOPs; the table compares it with a copy."
        )
    return text


DOCUMENTS: dict[Path, dict[str, Callable[[Path], str]]] = {
    ROOT / "docs" / "benchmarks.md": {"generated": gemms_and_choices},
    ROOT / "docs" / "performance.md": {
        "steps": performance_docs.steps,
        "profiles": performance_docs.profiles,
        "kernels": kernels_and_roofline,
        "gpu": performance_docs.gpu_state,
        "host": performance_docs.host,
        "step model": performance_docs.step_model,
    },
    ROOT / "docs" / "kernels.md": {"resources": resource_tables.worst_cases},
    ROOT / "docs" / "training.md": {"reading": input_report.reading},
    ROOT / "docs" / "imagenet.md": {"cores": input_report.cores},
    ROOT / "docs" / "distributed.md": {
        "reduce bytes": reduce_report.sent,
        "reduce times": reduce_report.exposed,
        "reduce model": reduce_report.clusters,
        "threads": threads_report.shared_machine,
    },
    ROOT / "docs" / "results.md": {
        "growing plan": growing_report.plan,
        "growing tests": growing_report.tests,
        "growing unplanned": growing_report.unplanned,
        "growing processors": growing_report.processors,
        "growing rest": growing_report.rest,
        "growing map": growing_report.the_map,
        "growing shares": growing_report.shares,
        "growing plateau": growing_report.plateau,
        "growing mechanism": growing_report.mechanism,
        "growing transitions": growing_report.transitions,
        "growing neighbours": growing_report.neighbours,
    },
    ROOT / "docs" / "search.md": {"cost": search_report.cost, "predictor": predictor_report.predictor},
    environment.RESULTS / evidence.NAME / "README.md": {"findings": evidence.findings},
    ROOT / "README.md": {"headline": performance_docs.headline, "sizes": size_plot.caption},
}
"""The generated parts, by document and mark."""


def rendered(path: Path, folder: Path) -> str:
    """A document with its generated parts written anew.

    Args:
        path: a key of :data:`DOCUMENTS`.
        folder: of all results.

    Raises:
        SystemExit: a mark is missing.
    """
    text = path.read_text()
    for name, generate in DOCUMENTS[path].items():
        begin, end = f"<!-- {name} -->", f"<!-- end {name} -->"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise SystemExit(f"{path.relative_to(ROOT)} has no {begin} ... {end}: put the marks back.")
        body = generate(folder)
        text = f"{before}{begin}\n\n{body}\n\n{end}{after}" if body else f"{before}{begin}\n{end}{after}"
    return text


def main(argv: list[str] | None = None) -> int:
    """Write the documents, or say whether they are up to date.

    Returns:
        The exit status: 1 where ``--check`` finds a difference.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a document is old")
    options = parser.parse_args(argv)
    if not options.check:
        roofline_plot.plot(environment.RESULTS, ROOFLINE)
        size_plot.plot(environment.RESULTS, SIZES)
        growing_plot.plot(environment.RESULTS, GROWING)
        export_plot.plot(EXPORT)
    old = []
    for path in DOCUMENTS:
        fresh = rendered(path, environment.RESULTS)
        if fresh != path.read_text():
            old.append(path)
            if not options.check:
                path.write_text(fresh)
    for path in old if options.check else ():
        print(
            f"{path.relative_to(ROOT)} is not what the results say: run benchmarks/render_docs.py",
            file=sys.stderr,
        )
    return int(bool(old) and options.check)


if __name__ == "__main__":
    sys.exit(main())
