"""The report of a comparison as Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence

from growtas.comparing.plan import RATE_NAME, Recorded
from growtas.comparing.statistics import Interval
from growtas.comparing.summary import Cells, Row, Summary
from growtas.jobs.folder import read_json

FEW = 4  # pairs: with fewer an interval is hardly worth its name
_FAMILIES = {
    "random": "Random subnets of each group",
    "extreme": "Smallest and largest subnet of each group",
    "searched": "Best subnet found under each limit",
}
_CLOCKS = {
    "cpu": "processor time, since cells ran side by side and their wall time depends on their neighbours",
    "wall": "wall time; it is comparable where one cell ran at a time",
}


def report_text(recorded: Recorded, cells: Cells, summary: Summary) -> str:
    """The whole report. Args: cells: the finished ones; summary: their numbers."""
    plan = recorded.plan
    parts = [f"# Methods on {plan.data}, space {plan.space.name}", _setting(recorded)]
    if summary.missing:
        listed = ", ".join(f"{spec} seed {seed}" for spec, seed in summary.missing)
        total = len(recorded.methods) * recorded.seeds
        parts.append(f"**Not finished: {len(summary.missing)} of {total} cells**: {listed}.")
    if cells:
        parts += ["## What can be said", _verdict(recorded, summary)]
        for family, title in _FAMILIES.items():
            rows = [row for row in summary.rows if row.measure.family == family]
            if rows:
                parts += _family(title, rows, str(recorded.methods[0]))
        if plan.limits:
            parts += ["Parameters of the subnets found, mean over seeds:", _found(recorded, cells)]
            rows = [row for row in summary.rows if row.measure.family == "searched"]
            if all(row.top5 is not None for row in rows):
                parts += ["Top-5 of the subnets found, mean over seeds:", _top5(rows)]
        parts += ["## Training time", _times(recorded, summary)]
        parts += ["## Made by", _made_by(cells)]
    return "\n\n".join(parts) + "\n"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, padded so that it reads as text, too; the first column left, the others right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        return f"| {' | '.join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)])} |"

    rule = ["-" * (width - 1) + ":" if i else ":" + "-" * (width - 1) for i, width in enumerate(widths)]
    return "\n".join([line(header), line(rule), *map(line, rows)])


def difference_text(found: Interval) -> str:
    """A difference with its interval, in bold where that excludes zero."""
    text = found.text() + (" (one pair)" if found.low is None else "")
    return f"**{text}**" if found.excludes(0.0) else text


# -- parts -----------------------------------------------------------------------------------------------


def _setting(recorded: Recorded) -> str:
    plan, recipe, images = recorded.plan, recorded.recipe, recorded.plan.images
    shared = ", ".join(f"{name}={value}" for name, value in plan.settings.items())
    sentences = [
        f"{len(recorded.methods)} methods, {recorded.seeds} paired seeds (0 to {recorded.seeds - 1}): runs "
        "of a seed begin with the same weights and see the same images in the same order.",
        f"{recipe['epochs']} epochs of {images['train']:,} images in batches of {recipe['batch_size']}"
        f"{'; ' + shared if shared else ''}.",
        _rate(recorded),
        f"Top-1 in per cent on the {images['test']:,} images of the test split, with inherited weights; per "
        f"group {plan.subnets} random subnets, the same for every run.",
        f"Searches: {plan.population} x {plan.generations} evaluations on the {images['search']:,} images of "
        "the search split; the subnet found is then judged on the test split.",
        "Brackets are 95 % confidence intervals of the mean paired difference to "
        f"{recorded.methods[0]} (Student's t), bold where they exclude zero.",
    ]
    return "\n".join(sentences)


def _rate(recorded: Recorded) -> str:
    plan = recorded.plan
    rate = plan.rate()
    if plan.lr == "recipe":
        return f"Learning rate {recorded.recipe['lr']:g}, the recipe's."
    if plan.lr != "auto":
        return f"Learning rate {rate:g}, as given."
    if rate is None:
        return "The learning rate is not chosen yet."
    chosen = read_json(plan.path / RATE_NAME, lambda rate: {t["lr"]: float(t["top1"]) for t in rate["tried"]})
    tried = ", ".join(f"{each:g}: {top1:.2f} %" for each, top1 in chosen.items())
    edge = " It lies at the edge of what was tried." if rate in (min(chosen), max(chosen)) else ""
    return (
        f"Learning rate {rate:g} for every method, chosen with uniform sampling on the search split with a "
        f"seed of its own ({tried}).{edge}"
    )


def _verdict(recorded: Recorded, summary: Summary) -> str:
    """The intervals that exclude zero, in plain sentences."""
    baseline = recorded.methods[0]
    compared = [row for row in summary.rows if row.difference is not None]
    with_interval = [row for row in compared if row.difference.low is not None]
    if not compared:
        return f"No other method has a seed in common with {baseline} yet."
    if not with_interval:
        return "One pair of runs has no interval: no difference can be claimed."
    decided = [row for row in with_interval if row.decided]
    count = len(with_interval)
    first = (
        f"{len(decided)} of {count} intervals exclude zero. Where methods do not differ at all, about "
        f"{max(1, round(0.05 * count))} of {count} would by chance; those with a dagger exclude it also with "
        "Bonferroni's correction for their number."
    )
    fewest = min(row.difference.count for row in with_interval)
    if fewest < FEW:
        first += f" With {fewest} pairs the spread is hardly known: take it as a hint at most."
    lines = [
        f"- {row.spec} is {'better' if row.difference.mean > 0 else 'worse'} than {baseline} on "
        f"{row.measure.label}: {row.difference.text()} points over {row.difference.count} pairs"
        f"{' †' if row.strict.excludes(0.0) else ''}."
        for row in decided
    ]
    silent = {row.spec for row in with_interval} - {row.spec for row in decided}
    lines += [
        f"- {spec}: every interval includes zero; no difference is shown."
        for spec in recorded.methods
        if spec in silent
    ]
    return "\n".join([f"{first}\n", *lines])


def _family(title: str, rows: Sequence[Row], baseline: str) -> list[str]:
    measures = list(dict.fromkeys(row.measure for row in rows))
    header = ["method", "seeds", *(measure.label for measure in measures)]
    levels, differences = [], []
    for spec in dict.fromkeys(row.spec for row in rows):
        own = [row for row in rows if row.spec == spec]
        levels.append([str(spec), str(own[0].level.count), *(f"{row.level.mean:.2f}" for row in own)])
        if own[0].difference is not None:
            pairs = str(own[0].difference.count)
            differences.append([str(spec), pairs, *(difference_text(row.difference) for row in own)])
    parts = [f"## {title}", "Mean top-1:", table(header, levels)]
    if differences:
        parts += [f"Difference to {baseline}:", table(["method", "pairs", *header[2:]], differences)]
    return parts


def _found(recorded: Recorded, cells: Cells) -> str:
    limits = recorded.plan.limits
    rows = []
    for spec in recorded.methods:
        own = [cell for (which, _), cell in cells.items() if which == spec]
        if own:
            sums = [math.fsum(cell["searched"][i]["params"] for cell in own) for i in range(len(limits))]
            rows.append([str(spec), *(f"{total / len(own):,.0f}" for total in sums)])
    return table(["method", *(limit.label for limit in limits)], rows)


def _top5(rows: Sequence[Row]) -> str:
    labels = list(dict.fromkeys(row.measure.label for row in rows))
    own: dict[str, list[str]] = {}
    for row in rows:
        own.setdefault(str(row.spec), []).append(f"{row.top5.mean:.2f}")
    return table(["method", *labels], [[spec, *values] for spec, values in own.items()])


def _times(recorded: Recorded, summary: Summary) -> str:
    baseline, rows = recorded.methods[0], []
    for time in summary.times:
        ratio = "1" if time.spec == baseline else "-"
        if time.ratio is not None:
            ratio = time.ratio.text(".3f")
            ratio = f"**{ratio}**" if time.ratio.excludes(1.0) else ratio
        seconds = ["-" if found is None else f"{found.mean:,.1f}" for found in (time.cpu, time.wall)]
        rows.append([str(time.spec), *seconds, ratio])
    text = (
        "Seconds of training alone, mean over seeds; a second phase counts its first one in. The ratio to "
        f"{baseline} is of {_CLOCKS[summary.clock]}; bold where the interval excludes one."
    )
    unknown = sum(time.unknown for time in summary.times)
    if unknown:
        text += f" Cells left out, since a process of theirs was killed and nobody knows its time: {unknown}."
    return f"{text}\n\n" + table(["method", "CPU s", "wall s", f"ratio to {baseline}"], rows)


def _made_by(cells: Cells) -> str:
    lines = []
    made = [cell["made_by"] for cell in cells.values()]
    for name in ("growtas", "commit", "torch", "timm", "numpy", "python", "platform", "cores", "device"):
        values = list(dict.fromkeys(str(each[name]) for each in made if each.get(name) is not None))
        if name == "platform":  # the kernel's version is of no use to anybody
            values = list(dict.fromkeys(value.partition("-")[0] for value in values))
        if values:
            lines.append(f"- {name}: {', '.join(values)}")
        if name == "commit" and len(values) > 1:
            lines.append("  (not all cells were made by the same code)")
    return "\n".join(lines)
