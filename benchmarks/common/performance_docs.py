"""The generated parts of docs/performance.md and of the README, from the result files.

Every function takes the folder of all results and gives Markdown; where a result is missing it says which
command makes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import kernel_report, results, step_bytes, step_report
from common.steps import pick_subnet
from common.table import number, render
from growtas import load_space

Record = dict[str, Any]
#: Bytes and FLOPs per second: of the data sheets (bf16, dense), and what the plan of the kernels assumes.
CEILINGS = {
    "H100 data sheet": (3.35e12, 989e12), "H200 data sheet": (4.8e12, 989e12),
    "3.0 TB/s, 790 TFLOP/s": (3.0e12, 790e12),
}  # fmt: skip


def complete(folder: Path, pattern: str) -> list[tuple[Path, Record]]:
    """The result files of a pattern, CPUs first, that were not cut short."""
    found = [(path, results.read(path)) for path in sorted(folder.glob(pattern))]
    whole = [(path, data) for path, data in found if data.get("complete") and data["records"]]
    return sorted(whole, key=lambda item: on_gpu(item[1]))


def on_gpu(data: Record) -> bool:
    """Return whether a result is a GPU's."""
    return "compute_capability" in data["machine"]


def _own(data: Record, direction: str) -> list[Record]:
    return [r for r in data["records"] if r["way"] == "growtas" and r["pass"] == direction]


def _range(values: Sequence[float], digits: int = 2) -> str:
    low, high = min(values), max(values)
    texts = f"{low:.{digits}f}", f"{high:.{digits}f}"
    return texts[0] if texts[0] == texts[1] else f"{texts[0]} to {texts[1]}"


def _setting(data: Record) -> str:
    machine = data["machine"]
    batches = ", ".join(str(b) for b in sorted({r["batch"] for r in data["records"]}))
    threads = "" if on_gpu(data) else f", {machine['threads']} threads"
    return f"{machine['device'].replace('(R)', '')}{threads}, {data['settings']['dtype']}, batch {batches}"


def headline(folder: Path) -> str:
    """A training step of T on the first device, and in short on the others: the README's headline."""
    sentences = []
    for _, data in complete(folder, "*/train_step.json"):
        own = [r for r in _own(data, "step") if r["space"] == "T"]
        if not own or any("vs_timm" not in r for r in own):
            continue
        other = {r["name"]: r for r in data["records"] if r["way"] == "published" and r["pass"] == "step"}
        kept = [r["saved_per_image"] / 1e6 for r in own]
        theirs = [other[r["name"]]["saved_per_image"] / 1e6 for r in own]
        faster, dense = ([r[f"vs_{name}"][0] for r in own] for name in ("published", "timm"))
        if sentences:
            sentences.append(
                f"On {_setting(data)}, it is {_range(faster)} times as fast as the published approach and "
                f"{_range(dense)} times as fast as the dense ViT."
            )
            continue
        sentences.append(
            f"A training step of an AutoFormer-T subnet runs **{_range(faster)} times as fast as the "
            f"published approach** and {_range(dense)} times as fast as a dense timm ViT of its size without "
            "relative position, and keeps "
            f"{_range(kept, 0)} MB per image for the backward pass in place of {_range(theirs, 0)} "
            f"({_setting(data)}; [how it is measured](docs/performance.md))."
        )
    return " ".join(sentences)


def steps(folder: Path) -> str:
    """The training steps of every device: growtas' ratios, then every rival."""
    found = complete(folder, "*/train_step*.json")
    found = [(path, data) for path, data in found if not data["settings"]["quick"]]
    if not found:
        return "No result is committed yet: `python benchmarks/train_step.py --profile` makes one."
    sections = []
    for path, data in found:
        records = data["records"]
        described = "  \n".join(step_report.describe(data).splitlines())
        parts = [
            f"### Training steps, {data['machine']['device']}",
            f"`{path.relative_to(folder.parent.parent)}`, {data['date'][:10]}  \n{described}",
            "Speed of growtas relative to the alternatives, medians of paired rounds:",
            step_report.headline(records, markdown=True),
        ]
        if not on_gpu(data) and data["settings"]["dtype"] == "float32":
            parts.append("\n".join(f"- {line}" for line in step_report.bars(records)))
        parts += [
            "<details><summary>Every implementation, with memory and operations</summary>",
            step_report.table(records, markdown=True),
            "</details>",
        ]
        sections.append("\n\n".join(parts))
    return "\n\n".join(sections)


def profiles(folder: Path) -> str:
    """Where a step's time goes, of every device and subnet that was profiled."""
    sections = []
    for _, data in complete(folder, "*/train_step.json"):
        for record in data["records"]:
            if "profile" in record:
                profile = record["profile"]
                note = step_report.profile_note(profile)
                sections += [
                    f"{step_report.label(record)}, {_setting(data)}:",
                    step_report.profile_table(profile, markdown=True),
                    f"{note[0].upper()}{note[1:]}.",
                ]
    return "\n\n".join(sections) or "No profile is committed yet."


def kernels(folder: Path) -> str:
    """Geometric means of every kernel beside its baseline, and the picture where there is one."""
    found = complete(folder, "*/kernels*.json")
    if not found:
        return "No result is committed yet: `python benchmarks/each_kernel.py --spaces T` makes one."
    sections = []
    for parent in dict.fromkeys(path.parent for path, _ in found):
        own = [data for path, data in found if path.parent == parent]
        head = own[0]
        records = [record for data in own for record in data["records"]]
        ceiling = ceilings(own)
        machine, settings = head["machine"], head["settings"]
        threads = "" if on_gpu(head) else f", {machine['threads']} threads"
        sections += [
            f"### Each kernel, {machine['device']}",
            f"{settings['dtype']}, batch {settings['batch']}{threads}, {head['date'][:10]}, growtas at "
            f"{head['commit']}. Ceilings measured here: {ceiling['bandwidth'] / 1e9:.0f} GB/s (copy), "
            f"{number(ceiling['flops'] / 1e12)} TFLOP/s (dense GEMM).",
            kernel_report.summary(records, bars=on_gpu(head), markdown=True),
        ]
        left = sum(len(data["left_out"]) for data in own)
        if left:
            sections.append(f"Left out because the time limit was reached: {left} jobs.")
    return "\n\n".join(sections)


def ceilings(files: Sequence[Record]) -> dict[str, float]:
    """The higher of the ceilings that several files of one device hold."""
    return {key: max(data["roofline"][key] for data in files) for key in ("bandwidth", "flops")}


def gpu_state(folder: Path) -> str:
    """Return whether kernels have run on a GPU, and what the compiler says of each."""
    ran = sorted({d["machine"]["device"] for _, d in complete(folder, "*/kernels*.json") if on_gpu(d)})
    lines = [
        f"Measured on: {', '.join(ran)}."
        if ran
        else "**No GPU run is committed.** The Triton kernels have been compared with fp64 in Triton's "
        "interpreter and compiled ahead of time for sm_80 and sm_90 (the table); the CUDA C++ kernels have "
        "been compiled by nvcc and run in an emulation on the CPU. Neither has run on a GPU, and their "
        "throughput is unknown."
    ]
    path = folder / "triton_resources.json"
    if path.is_file():
        lines.append(resources(results.read(path)["variants"]))
    return "\n\n".join(lines)


def resources(variants: Sequence[Record]) -> str:
    """The worst case of every Triton kernel and architecture."""
    rows = []
    for kernel, arch in sorted({(row["kernel"], row["arch"]) for row in variants}):
        group = [row for row in variants if (row["kernel"], row["arch"]) == (kernel, arch)]
        worst = {name: max(row[name] for row in group) for name in ("registers", "stack", "shared")}
        tensor = sum(row["mma"] > 0 or row["wgmma"] > 0 for row in group)
        cells = [f"`{kernel}`", arch, str(len(group)), str(worst["registers"]), str(worst["stack"])]
        rows.append([*cells, f"{worst['shared'] / 1024:.1f}", str(tensor)])
    header = [
        "Triton kernel",
        "GPU",
        "variants",
        "registers",
        "spilled bytes",
        "shared KiB",
        "on tensor cores",
    ]
    return render(header, rows, left=2, markdown=True)


def host(folder: Path) -> str:
    """The host's time for a step, blocks replayed and one by one."""
    sections = []
    for path in sorted(folder.glob("*/host.json")):
        data = results.read(path)
        rows = [
            [
                record["space"],
                str(record["launches"]),
                f"{record['quickest_milliseconds']:.1f}",
                f"{record['ends_milliseconds']:.1f}",
                f"{record['one_by_one_milliseconds']:.1f}",
                f"{record['one_by_one_milliseconds'] / record['quickest_milliseconds']:.1f}",
            ]
            for record in data["records"]
        ]
        header = ["space", "launches", "ms", "of it around the blocks", "ms, blocks one by one", "ratio"]
        sections += [
            f"`benchmarks/results/{path.parent.name}/host.json`, {data['date'][:10]}, one core of "
            f"{data['machine']['device']}, torch {data['versions']['torch']}, Triton "
            f"{data['versions']['triton']}, growtas at {data['commit']}",
            render(header, rows, markdown=True),
        ]
    return "\n\n".join(sections)


def step_model(folder: Path) -> str:
    """Bytes and FLOPs of the middle step of T at batch 128, by kernel, and the least time that they take."""
    space = load_space("autoformer-tiny")
    subnet = pick_subnet(space, "middle")
    found = {name: step_bytes.step_bytes(space, subnet, 128, name) for name in step_bytes.BACKENDS}
    header = ["", "launches", "GB moved", "TFLOP", *(f"ms, {name}" for name in CEILINGS)]
    rows = [_model_row(name, list(step.values()), 1e9, 1e12, 1e3) for name, step in found.items()]
    sections = [render(header, rows, markdown=True)]
    header = ["kernel or operation", "launches", "MB", "GFLOP", *(f"µs, {name}" for name in CEILINGS)]
    for name, step in found.items():
        slowest = sorted(step.items(), key=lambda item: -item[1].least(*CEILINGS["H100 data sheet"]))
        rows = [_model_row(f"`{kernel}`", [own], 1e6, 1e9, 1e6) for kernel, own in slowest]
        table = render(header, rows, markdown=True)
        sections.append(f"<details><summary>{name}, by kernel</summary>\n\n{table}\n\n</details>")
    return "\n\n".join(sections)


def _model_row(
    name: str, found: Sequence[step_bytes.Launches], bytes_: float, flops: float, time: float
) -> list[str]:
    cells = [name, str(sum(len(own.launches) for own in found))]
    cells.append(number(sum(own.moved for own in found) / bytes_))
    cells.append(number(sum(own.flops for own in found) / flops))
    return cells + [number(time * sum(own.least(*rates) for own in found)) for rates in CEILINGS.values()]
