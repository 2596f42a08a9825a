"""Shows what train_step.py measured: its tables and the profile, from the records of its JSON file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from common.table import number, render, shown

Record = dict[str, Any]
#: What growtas has to reach, by pass and rival, on a CPU (docs/performance.md).
BARS = {("step", "published"): 2.3, ("forward", "published"): 1.6, ("step", "timm"): 1.0}
#: The rivals that are shown where a record has them, and their titles.
MORE = {"compiled": "× compiled timm", "masked": "× masked supernet"}
TITLES = {"forward": "forward", "step": "training step"}


def label(record: Record) -> str:
    """The case of a record: ``T middle d216 L13``."""
    return f"{record['space']} {record['name']} d{record['embed_dim']} L{record['depth']}"


def _ratio(record: Record, rival: str) -> str:
    found = record.get(f"vs_{rival}")
    return f"{found[0]:.2f} [{found[1]:.2f}, {found[2]:.2f}]" if found else "-"


def _more(records: Sequence[Record]) -> list[str]:
    return [name for name in MORE if any(f"vs_{name}" in record for record in records)]


def table(records: Sequence[Record], markdown: bool = False) -> str:
    """One line per case, pass and rival."""
    more, bound = _more(records), any("bound" in record for record in records)
    header = ["subnet", "batch", "pass", "way", "ms", "± %"]
    header += ["bound ms", "share"] if bound else []
    header += ["× published", "× timm", *(MORE[name] for name in more)]
    header += ["images/s", "saved MB/image", "operations"]
    rows = []
    for record in records:
        median, low, high = record["seconds"]
        cells = [label(record), str(record["batch"]), TITLES[record["pass"]], record["way"]]
        cells += [number(1e3 * median), f"{50 * (high - low) / median:.0f}"]
        if bound:
            known = "bound" in record
            cells += [number(1e3 * record["bound"]), f"{record['share']:.0%}"] if known else ["-", "-"]
        cells += [_ratio(record, rival) for rival in ("published", "timm", *more)]
        saved = record.get("saved_per_image")
        cells += [number(record["batch"] / median), number(saved / 1e6) if saved is not None else "-"]
        cells += [str(record.get("operations", "-"))]
        rows.append(cells)
    return render(header, rows, left=4, markdown=markdown)


def headline(records: Sequence[Record], markdown: bool = False) -> str:
    """growtas' own ratios only, one line per case and pass, with the bars where there are some."""
    more = [name for name in _more(records) if name != "compiled"]
    rows = []
    for record in records:
        if record["way"] != "growtas":
            continue
        cells = [label(record), str(record["batch"]), TITLES[record["pass"]]]
        for rival in ("published", "timm", "compiled", *more):
            cells.append(number(record[f"vs_{rival}"][0]) if f"vs_{rival}" in record else "-")
        rows.append(cells)
    header = ["subnet", "batch", "pass", "× published", "× timm", "× compiled timm"]
    header += [MORE[name] for name in more]
    return render(header, rows, left=3, markdown=markdown)


def bars(records: Sequence[Record]) -> list[str]:
    """The bars on a CPU, and whether each was met by the medians of all subnets."""
    lines = []
    for (direction, rival), least in BARS.items():
        found = [
            record[f"vs_{rival}"][0]
            for record in records
            if record["way"] == "growtas" and record["pass"] == direction and f"vs_{rival}" in record
        ]
        if found:
            verdict = "met" if min(found) >= least else "MISSED"
            worst = f"lowest {min(found):.2f}, highest {max(found):.2f}"
            lines.append(f"{TITLES[direction]} at least {least} x {rival}: {worst}: {verdict}")
    return lines


def profile_table(profile: Record, markdown: bool = False) -> str:
    """Where the step's time goes."""
    rows = []
    for name, entry in profile["groups"].items():
        share = entry["seconds"] / profile["seconds"]
        rows.append([shown(name), number(1e3 * entry["seconds"]), f"{share:.0%}", str(entry["calls"])])
    rows.append(["step, profiled", number(1e3 * profile["seconds"]), "100%", ""])
    return render(["kind of work", "ms", "share", "calls"], rows, markdown=markdown)


def profile_note(profile: Record) -> str:
    """The rate of the GEMMs beside the measured peak."""
    seconds = profile["groups"]["products"]["seconds"]
    rate = profile["flops"] / seconds if seconds else 0.0
    return (
        f"GEMMs: {profile['flops'] / 1e9:.1f} GFLOP at {rate / 1e9:.0f} GFLOP/s, "
        f"{rate / profile['peak_flops']:.0%} of the {profile['peak_flops'] / 1e9:.0f} GFLOP/s that the best "
        "of torch's dense GEMMs of these sizes reaches"
    )


def describe(head: Record) -> str:
    """The measurements and their machine, in a few lines."""
    machine, versions, settings = head["machine"], head["versions"], head["settings"]
    methods = ", ".join(settings["methods"]) or "nothing"
    lines = [
        f"{machine['device']}, CPU threads: {machine['threads']}, torch {versions['torch']}, "
        f"timm {versions['timm']}, growtas {versions['growtas']} at {head['commit']}",
        f"{settings['dtype']}, backend {settings['backend']}, timed by {methods}; in turns, "
        f"{settings['rounds']} rounds at most",
    ]
    if head.get("roofline"):
        ceiling = head["roofline"]
        lines.append(
            f"ceilings measured here: {ceiling['bandwidth'] / 1e9:.0f} GB/s (copy), "
            f"{number(ceiling['flops'] / 1e12)} TFLOP/s (dense GEMM)"
        )
    if settings.get("profiled"):
        lines.append("profiled after the timing, not during it")
    return "\n".join(lines)
