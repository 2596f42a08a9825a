"""Tables of ``make gpu``, from its records: short, since only the end of a long output is kept. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from common.table import number, render

Record = dict[str, Any]
SPACES = ("T", "S", "B", "tiny")


def of(records: Sequence[Record], kind: str) -> list[Record]:
    """The records of a kind."""
    return [record for record in records if record["kind"] == kind]


def cut(text: str, width: int) -> str:
    """A text no longer than so many characters."""
    return text if len(text) <= width else text[: width - 1] + "…"


def machine(records: Sequence[Record]) -> str:
    """The device, the versions and the ceilings."""
    lines = []
    for record in of(records, "about")[-1:]:
        versions, device = record["versions"], record["machine"]
        lines.append(f"{device['device']}, torch {versions['torch']}, triton {versions['triton']}, "
                     f"growtas at {record['commit']}; ptxas {record.get('ptxas', 'unknown')}")  # fmt: skip
    for record in of(records, "ceilings")[-1:]:
        lines.append(f"ceilings: copy {record['bandwidth'] / 1e9:.0f} GB/s, "
                     f"dense product {record['flops'] / 1e12:.0f} TFLOP/s")  # fmt: skip
    compiled = of(records, "compiled")
    if compiled:
        count, failed = sum(r["variants"] for r in compiled), of(records, "compile_failed")
        slowest = max(r["seconds"] for r in compiled)
        lines.append(
            f"{count} variants compiled, the longest share in {slowest:.0f} s; failed: {len(failed)}"
        )
        lines += [f"  {cut(r['kernel'] + ': ' + r['why'], 110)}" for r in failed[:6]]
    return "\n".join(lines)


def smoke(records: Sequence[Record]) -> str:
    """One line per operation: is each way right, and are its bits equal, at T, S and B."""
    found = of(records, "smoke")
    ended = {(r["size"], r["way"]) for r in found}
    over = {r["job"] for r in of(records, "job")}
    for record in of(records, "smoke_begins"):
        if (record["size"], record["way"]) not in ended:
            job = f"smoke {record['way'].split()[1]} {record['op']}"
            status = "took its process down, or hung" if job in over else "still running"
            found.append({**record, "status": status, "error": None})
    ways = list(dict.fromkeys(r["way"] for r in sorted(found, key=lambda r: r["way"])))
    rows, notes = [], []
    for op in dict.fromkeys(r["op"] for r in found):
        cells = []
        for way in ways:
            own = [r for r in found if (r["op"], r["way"]) == (op, way)]
            bad = [r for r in own if r["status"] != "ok"]
            worst = max((r["error"] or 0.0 for r in own), default=0.0)
            cells.append("-" if not own else f"{len(own) - len(bad)}/{len(own)} {worst:.0e}")
            notes += [cut(f"  {r['size']}, {way}: {r['status']}", 150) for r in bad]
            notes += [f"  {r['size']}, {way}: left NaN in its outputs" for r in own if r.get("unwritten")]
        rows.append([op, *cells])
    if not rows:
        return ""
    header = ["right and equal 100 x (of T, S, B); error", *(way.removeprefix("growtas ") for way in ways)]
    more = [f"  and {len(notes) - 14} more in the records"] if len(notes) > 14 else []
    return "\n".join([render(header, rows), *notes[:14], *more])


def _by_size(records: Sequence[Record]) -> dict[str, Record]:
    return {record["space"]: record for record in records}


def races(records: Sequence[Record], every: bool = False) -> str:
    """Operations beside their baselines.

    Args:
        records: of the run.
        every: a line for every way, with each size; else one line per operation, with growtas' best way.
    """
    found = of(records, "race")
    if not found:
        return ""
    spaces = [space for space in SPACES if any(r["space"] == space for r in found)]
    rows = []
    for op in dict.fromkeys(r["op"] for r in found):
        own = [r for r in found if r["op"] == op]
        baseline = own[0]["baseline"]
        for way in dict.fromkeys(r["way"] for r in own):
            sizes = _by_size([r for r in own if r["way"] == way])
            rows.append([op, way, *_times(sizes, spaces)])
        if not every:
            kept = [row for row in rows if row[0] == op and (row[1] == baseline)]
            rivals = [r for r in own if r["way"] != baseline]
            first = spaces[0]
            best = min(
                (r for r in rivals if r["space"] == first), key=lambda r: r["seconds"][0], default=None
            )
            kept += [row for row in rows if best and row[0] == op and row[1] == best["way"]]
            rows = [row for row in rows if row[0] != op] + kept
    header = ["operation", "way", *(f"{s} {what}" for s in spaces for what in ("µs", "bound", "share", "×"))]
    return render(header, rows, left=2)


def _times(sizes: dict[str, Record], spaces: Sequence[str]) -> list[str]:
    cells = []
    for space in spaces:
        record = sizes.get(space)
        if record is None:
            cells += ["-"] * 4
            continue
        bound, share = record.get("bound"), record.get("share")
        cells += [number(1e6 * record["seconds"][0]), number(None if bound is None else 1e6 * bound)]
        cells += ["-" if share is None else f"{share:.0%}"]
        cells += [f"{record['speed'][0]:.2f}" if "speed" in record else "-"]
    return cells


def steps(records: Sequence[Record]) -> str:
    """Training steps of all rivals, the host's and the device's share apart."""
    rows = []
    found = of(records, "step")
    for record in found:
        key = record["way"], record["space"], record["batch"]
        beside = {kind: next((r for r in of(records, kind) if (r["way"], r["space"], r["batch"]) == key), {})
                  for kind in ("profile", "graphed")}  # fmt: skip
        graphed = beside["graphed"]
        own = [r for r in found if r["way"].startswith("growtas") and (r["space"], r["batch"]) == key[1:]]
        best = min((r["seconds"][0] for r in own), default=None)
        relative = record["seconds"][0] / best if best else None
        rows.append([
            record["space"].removeprefix("autoformer-"), str(record["batch"]), record["way"],
            number(1e3 * record["seconds"][0]), number(1e3 * record["host"][0]),
            number(1e3 * beside["profile"]["device"]) if beside["profile"] else "-",
            number(1e3 * graphed["seconds"][0]) if graphed.get("method") == "CUDA graph" else "-",
            str(beside["profile"].get("kernels", "-")), f"{record['images_per_second']:.0f}",
            f"{relative:.2f}" if relative else "-",
            number(1e3 * record["bound"]) if "bound" in record else "-",
            f"{record['share']:.0%}" if "share" in record else "-",
            number(1e3 * record["model"]) if "model" in record else "-",
            f"{record['peak_bytes'] / 2**30:.1f}",
        ])  # fmt: skip
    lines = []
    if rows:
        header = ["space", "batch", "step", "ms", "host", "kernels' sum", "graph", "kernels", "images/s"]
        header += ["× growtas", "bound ms", "share", "model ms", "GiB"]
        lines.append(render(header, rows, left=3))
    for record in of(records, "step_check"):
        size = (
            f", logits {record['logits']:.1e}, gradients {record['gradients']:.1e}"
            if "logits" in record
            else ""
        )
        if record.get("bits_differ") == 0:
            size += ", replayed launches give equal bits"
        lines.append(f"step of {record['way']} against the published way: {record['status']}{size}")
    for record in of(records, "random_subnets"):
        lines.append(
            f"{record['subnets']} random subnets of {record['space']}, {record['way']}: "
            f"{record['images_per_second']:.0f} images/s"
        )
    return "\n".join(lines)


def profile(records: Sequence[Record], most: int = 12) -> str:
    """The longest kernels of growtas' fastest step of the first case."""
    steps = [r for r in of(records, "step") if r["way"].startswith("growtas")]
    steps = [r for r in steps if (r["space"], r["batch"]) == (steps[0]["space"], steps[0]["batch"])]
    way = min(steps, key=lambda r: r["seconds"][0])["way"] if steps else ""
    found = [r for r in of(records, "profile") if r["way"] == way and r["longest"]]
    if not found:
        return ""
    total = found[0]["device"]
    rows = [[cut(name, 60), str(count), number(1e6 * seconds), f"{seconds / total:.0%}"]
            for name, count, seconds in found[0]["longest"][:most]]  # fmt: skip
    return render([f"longest kernels of the step of {way}", "calls", "µs", "share"], rows)


def candidates(records: Sequence[Record]) -> str:
    """Tiles that were tried, by operation and size, the fastest first, beside the committed choice."""
    found, rows = of(records, "candidate"), []
    for key in dict.fromkeys((r["op"], r["size"], r["way"]) for r in found):
        own = [r for r in found if (r["op"], r["size"], r["way"]) == key]
        timed = sorted((r for r in own if r["status"] == "ok"), key=lambda r: r["seconds"][0])
        now = [r for r in of(records, "race") if (r["op"], r["size"], r["way"]) == key]
        before = number(1e6 * now[0]["seconds"][0]) if now else "-"
        for record in timed[:2]:
            rows.append([record["size"], record["fields"].removeprefix(record["op"]).strip(), before,
                         number(1e6 * record["seconds"][0])])  # fmt: skip
        if len(own) > len(timed):
            rows.append([key[1], f"{len(own) - len(timed)} of {len(own)} failed or were wrong", before, "-"])
    return render(["tiles", "choice", "µs now", "µs"], rows, left=2) if rows else ""


def jobs(records: Sequence[Record], most: int = 16) -> str:
    """How many jobs ended well, and what became of the others."""
    found = of(records, "job")
    bad = [r for r in found if r["status"] != "ok"]
    lines = [f"{len(found) - len(bad)} of {len(found)} jobs ended well"]
    lines += [cut(f"  {r['job']}: {r['status']}", 150) for r in bad[:most]]
    if len(bad) > most:
        lines.append(f"  and {len(bad) - most} more in the records")
    refused = of(records, "refused")
    lines += [cut(f"  not timed: {r['size']}, {r['way']}: {r['reason']}", 150) for r in refused[:8]]
    if len(refused) > 8:
        lines.append(f"  and {len(refused) - 8} more were not timed")
    return "\n".join(lines)


def final(records: Sequence[Record], most: int = 11_000) -> str:
    """Everything that matters, short enough for the end of an output."""
    parts = [
        jobs(records),
        profile(records),
        candidates(records),
        races(records),
        machine(records),
        steps(records),
    ]
    text = "\n\n".join(part for part in parts if part)
    return text if len(text) <= most else "(cut)\n" + text[-most:]
