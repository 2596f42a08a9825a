"""The tables of docs/results.md on when growing helps, from the committed numbers."""

from __future__ import annotations

import dataclasses
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.growing_cells import AGAIN, GROUPS, POOL, baselines, read_table
from common.growing_plan import (
    ALONE,
    BATCHES,
    FAMILY,
    MAP,
    MECHANISM,
    NEIGHBOURS,
    POOLED,
    SETTINGS,
    THREE,
    TRANSITIONS,
    TWO,
    UNIFORM,
    UNPLANNED,
    Setting,
)
from common.growing_statistics import LEVEL, stratified
from growtas.comparing.markdown import difference_text, table
from growtas.comparing.statistics import Interval, mean_interval

FOLDER, CELLS, DIFFERENCES = "growing", "cells.csv", "differences.csv"
PICTURE = "growing-map.svg"
MARGIN = 1.0  # points; a difference whose interval is within is none
SHOWN = (*GROUPS, "found")
NAMES = {TWO: "K = 2", THREE: "K = 3"}
NONE = "–"
SHORT = 12  # epochs


@dataclasses.dataclass(frozen=True)
class Found:
    """The committed numbers.

    Args:
        cells: measures of the cells, by setting, method and measure: those of all seeds that have it.
        differences: rows of differences.csv by setting, method, baseline and measure.
    """

    cells: dict[tuple[str, str, str], list[float]]
    differences: dict[tuple[str, str, str, str], dict[str, Any]]

    @classmethod
    def read(cls, folder: Path) -> Found:
        """Read them. Args: folder: of all results."""
        cells: dict[tuple[str, str, str], list[float]] = {}
        for record in read_table(folder / FOLDER / CELLS).records():
            setting, method, _ = (record.pop(name) for name in ("setting", "method", "processor"))
            for measure, value in record.items():
                if value is not None:
                    cells.setdefault((setting, method, measure), []).append(value)
        rows = read_table(folder / FOLDER / DIFFERENCES).records()
        keys = ("setting", "method", "baseline", "measure")
        return cls(cells, {tuple(row[key] for key in keys): row for row in rows})

    def level(self, setting: str, method: str, measure: str, form: str = ".2f") -> str:
        """The mean over the seeds."""
        values = self.cells.get((setting, method, measure))
        return f"{statistics.fmean(values):{form}}" if values else NONE

    def difference(self, setting: str, method: str, measure: str, baseline: str = UNIFORM) -> Interval | None:
        """The mean over the pairs with its interval."""
        row = self.differences.get((setting, method, baseline, measure))
        return row and Interval(int(row["pairs"]), row["mean"], row["low"], row["high"])

    def pairs(self, setting: str, method: str, baseline: str = UNIFORM) -> str:
        """How many there are."""
        found = self.difference(setting, method, GROUPS[0], baseline)
        return str(found.count) if found else NONE

    def has(self, setting: str, method: str) -> bool:
        """Return whether a cell is finished."""
        return (setting, method, GROUPS[0]) in self.cells


def shown(found: Interval | None) -> str:
    """A difference with its interval, in bold where that excludes zero."""
    return difference_text(found) if found else NONE


def plan(_: Path) -> str:
    """The settings with the pairs that are planned for them, and the methods besides the map's three."""
    rows, further = [], []
    for each in SETTINGS:
        own = [batch for batch in BATCHES if batch.setting == each.key]
        pairs = str(max((batch.pairs for batch in own), default=0))
        rows.append(
            (f"`{each.key}`", f"`{each.data}`", _widths(each), f"{each.lr:g}", str(each.epochs), pairs)
        )
        methods = dict.fromkeys(f"`{m}`" for batch in own for m in batch.methods if m not in MAP)
        if methods:
            further.append(f"- `{each.key}`: {', '.join(methods)}")
    header = ("setting", "data", "embed_dim", "learning rate", "epochs", "pairs")
    common = ", ".join(f"`{method}`" for method in MAP)
    parts = [table(header, rows), f"Every setting has {common}; these have others too:", "\n".join(further)]
    return "\n\n".join(parts)


def _widths(setting: Setting) -> str:
    return ", ".join(map(str, setting.search_space().groups))


def tests(folder: Path) -> str:
    """The planned tests with their verdicts."""
    found, cells = Found.read(folder), _by_seed(folder)
    rows = []
    for pool, method, baseline in FAMILY:
        own = found.difference(POOL + pool, method, GROUPS[0], baseline)
        if own is not None:
            p = found.differences[POOL + pool, method, baseline, GROUPS[0]]
            rows.append(
                (
                    *(f"{pool}: `{method}` − `{baseline}`", str(own.count), own.text()),
                    *(_p(p["p"]), _p(p["p_holm"]), verdict(own, p["p_holm"])),
                    shown(stratified(_gaps(cells, POOLED[pool], method, baseline))),
                )
            )
    header = ("pool, difference on the smallest group", "pairs", "points", "p", "p, Holm", "growing helps")
    header += ("points, mean of these settings",)
    return table(header, rows) if rows else ""


def rest(folder: Path) -> str:
    """The mean of the long settings whose labels are right; a split that was made after results were seen."""
    cells, rows = _by_seed(folder), []
    keys = [each.key for each in SETTINGS if each.epochs > SHORT and not each.wrong_labels]
    for group, label in ((GROUPS[0], "smallest group"), (GROUPS[-1], "widest"), ("found", "found by search")):
        gaps = [_gaps(cells, keys, method, UNIFORM, group) for method in (TWO, THREE)]
        if any(map(any, gaps)):
            rows.append((label, *(shown(stratified(own)) for own in gaps)))
    header = ("points, mean of these settings", *(f"{NAMES[method]} − uniform" for method in (TWO, THREE)))
    return table(header, rows) if rows else ""


def unplanned(folder: Path) -> str:
    """Pools that were made after results were seen: intervals, and no test."""
    found = Found.read(folder)
    rows = [
        (
            f"{pool}: `{method}` − `{baseline}`",
            str(own.count),
            *(
                shown(found.difference(POOL + pool, method, measure, baseline))
                for measure in (GROUPS[0], GROUPS[-1], "found")
            ),
        )
        for pool, method, baseline in UNPLANNED
        if (own := found.difference(POOL + pool, method, GROUPS[0], baseline)) is not None
    ]
    return table(("pool", "pairs", "smallest group", "widest", "found by search"), rows) if rows else ""


def processors(folder: Path) -> str:
    """How many cells ran on which processor, and the pairs whose two runs did not share it."""
    cells, count = _by_seed(folder), Counter[str]()
    apart: dict[tuple[str, str, str], list[str]] = {}
    for (setting, method, seed), own in cells.items():
        count[own["processor"]] += 1
        for baseline in baselines(method, (setting, AGAIN, seed) in cells):
            other = cells.get((setting, baseline, seed))
            if other and other["processor"] != own["processor"]:
                apart.setdefault((setting, method, baseline), []).append(f"{seed:g}")
    if not cells:
        return ""
    parts = [table(("processor", "cells"), [(name, str(ran)) for name, ran in count.most_common()])]
    if apart:
        rows = [(f"`{key}`", f"`{a}` − `{b}`", ", ".join(seeds)) for (key, a, b), seeds in apart.items()]
        parts += ["Differences across processors:", table(("setting", "difference", "seeds"), rows)]
    return "\n\n".join(parts)


def _by_seed(folder: Path) -> dict[tuple[str, str, int], dict[str, Any]]:
    """The cells by setting, method and seed."""
    records = read_table(folder / FOLDER / CELLS).records()
    return {(c["setting"], c["method"], c["seed"]): c for c in records}


def _gaps(
    cells: Mapping[tuple[str, str, int], Mapping[str, Any]],
    settings: Sequence[str],
    method: str,
    baseline: str,
    measure: str = GROUPS[0],
) -> list[list[float]]:
    """Differences of the pairs of each setting."""
    return [
        [
            own[measure] - cells[setting, baseline, seed][measure]
            for (setting, name, seed), own in cells.items()
            if (setting, name) == (key, method) and (setting, baseline, seed) in cells
        ]
        for key in settings
    ]


def verdict(found: Interval, p: float | None) -> str:
    """The answer of a planned test, as the plan says before any run.

    Args:
        found: the mean difference.
        p: corrected.
    """
    if p is not None and p < LEVEL:
        return "yes" if found.mean > 0 else "it hurts"
    within = found.low is not None and max(-found.low, found.high) <= MARGIN
    return "no" if within else "undecided"


def _p(p: float | None) -> str:
    return NONE if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def the_map(folder: Path) -> str:
    """Growing minus uniform in every setting, with the picture above where there is one."""
    found = Found.read(folder)
    keys = [s.key for s in SETTINGS if any(found.has(s.key, method) for method in (TWO, THREE))]
    if not keys:
        return ""
    header, rows = ["setting", "pairs"], [[f"`{key}`", found.pairs(key, TWO)] for key in keys]
    tables = []
    for measure, label in {
        GROUPS[0]: "smallest group",
        GROUPS[-1]: "widest",
        "found": "found by search",
    }.items():
        own = [
            [
                *(row if not tables else row[:1]),
                found.level(key, UNIFORM, measure),
                *(shown(found.difference(key, method, measure)) for method in (TWO, THREE)),
            ]
            for key, row in zip(keys, rows, strict=True)
        ]
        names = (f"uniform, {label}", *(f"{NAMES[method]} − uniform" for method in (TWO, THREE)))
        tables.append(table((*(header if not tables else header[:1]), *names), own))
    details = "<details><summary>The widest group, and subnets found by search</summary>"
    return "\n\n".join([*_picture(folder), tables[0], details, *tables[1:], "</details>"])


def _picture(folder: Path) -> list[str]:
    exists = (folder.parents[1] / "docs" / "images" / PICTURE).is_file()
    return [f"![Growing minus uniform in every setting](images/{PICTURE})"] if exists else []


def plateau(folder: Path) -> str:
    """Over all pairs: points gained beside epochs gained on the plateau, and the smallest group beside the
    widest. In no pool, and without a claim."""
    cells = _by_seed(folder)
    rows = []
    for method in (TWO, THREE):
        pairs = [
            (own, cells[setting, UNIFORM, seed])
            for (setting, name, seed), own in cells.items()
            if name == method and (setting, UNIFORM, seed) in cells
        ]
        small, large = ([a[group] - b[group] for a, b in pairs] for group in (GROUPS[0], GROUPS[-1]))
        left = [(a["left_at_epoch"], b["left_at_epoch"]) for a, b in pairs]
        known = [
            (b - a, gain)
            for (a, b), gain, (own, _) in zip(left, small, pairs, strict=True)
            if None not in (a, b) and _epochs(own["setting"]) == SHORT
        ]
        if len(known) < 3:
            continue
        sooner, gains = zip(*known, strict=True)
        line = statistics.linear_regression(sooner, gains)
        rows.append(
            (
                *(f"{NAMES[method]} − uniform", str(len(known))),
                *(f"{statistics.correlation(sooner, gains):.2f}", f"{line.slope:.1f}"),
                *(f"{line.intercept:+.1f}", str(len(pairs))),
                shown(mean_interval([a - b for a, b in zip(small, large, strict=True)])),
            )
        )
    header = (
        *("difference", f"pairs, {SHORT} epochs", "correlation", "points per epoch sooner"),
        *("points where neither is sooner", "pairs, all", "gain of smallest − of widest group"),
    )
    return table(header, rows) if rows else ""


def shares(folder: Path) -> str:
    """How much of a run is over when the plateau is left, by setting, the longest first; all of it where that
    does not happen."""
    cells, rows = _by_seed(folder), []
    for each in SETTINGS:
        share = {
            (method, seed): 100 * (own["left_at_epoch"] or each.epochs) / each.epochs
            for (setting, method, seed), own in cells.items()
            if setting == each.key and method in MAP
        }
        uniform = [percent for (method, _), percent in share.items() if method == UNIFORM]
        row: list[str] = []
        for method in (TWO, THREE):
            sooner = [share[UNIFORM, seed] - x for (m, seed), x in share.items() if m == method]
            gains = [gain for own in _gaps(cells, [each.key], method, UNIFORM) for gain in own]
            if sooner:
                row += [f"{round(statistics.fmean(sooner)):+d} %", f"{statistics.fmean(gains):+.1f}"]
        if len(row) == 4:
            rows.append((statistics.fmean(uniform), f"`{each.key}`", *row))
    header = ("setting", "uniform, on the plateau")
    header += tuple(f"{NAMES[m]}, {what}" for m in (TWO, THREE) for what in ("sooner by", "gain"))
    ordered = sorted(rows, key=lambda row: -row[0])
    found = [(name, f"{share:.0f} %", *rest) for share, name, *rest in ordered]
    return table(header, found) if found else ""


def _epochs(key: str) -> int:
    return next((each.epochs for each in SETTINGS if each.key == key), 0)


def mechanism(folder: Path) -> str:
    """Growing beside its controls, and groups that are trained alone."""
    found = Found.read(folder)
    methods = tuple(dict.fromkeys((*MAP, *MECHANISM, *ALONE)))
    return "\n\n".join(
        part
        for key in _with(found, (*MECHANISM[1:], *ALONE[1:]))
        for part in (
            f"`{key}`:",
            _methods(found, key, methods),
            _along(found, key, methods),
            *_contrasts(found, key, (TWO, THREE)),
        )
    )


def transitions(folder: Path) -> str:
    """Growing with the first stage shorter and longer."""
    found, methods = Found.read(folder), (UNIFORM, TWO, *TRANSITIONS[1:])
    return "\n\n".join(
        part
        for key in _with(found, TRANSITIONS[1:])
        for part in (f"`{key}`:", _methods(found, key, methods), *_contrasts(found, key, TRANSITIONS[1:]))
    )


def neighbours(folder: Path) -> str:
    """Other methods in the same setting."""
    found, methods = Found.read(folder), (*MAP, AGAIN, *NEIGHBOURS[1:])
    return "\n\n".join(
        part
        for key in _with(found, NEIGHBOURS[1:])
        for part in (f"`{key}`:", _methods(found, key, methods), *_contrasts(found, key, NEIGHBOURS[1:]))
    )


def _with(found: Found, methods: Iterable[str]) -> list[str]:
    """The settings in which one of some methods ran."""
    return [s.key for s in SETTINGS if any(found.has(s.key, method) for method in methods)]


def _methods(found: Found, key: str, methods: Sequence[str]) -> str:
    """Levels and differences to uniform."""
    rows = [
        (
            *(f"`{m}`", found.pairs(key, m), *(found.level(key, m, each) for each in SHOWN)),
            *(shown(found.difference(key, m, each)) for each in SHOWN),
            found.level(key, m, "cpu_seconds", ".0f"),
        )
        for m in methods
        if found.has(key, m)
    ]
    return table(("method", "pairs", *SHOWN, *(f"− uniform, {each}" for each in SHOWN), "CPU s"), rows)


def _along(found: Found, key: str, methods: Sequence[str]) -> str:
    """When training left the plateau, and how far gradients agreed."""
    named = {
        "left_at_epoch": ".1f",
        "cosine": ".3f",
        "control": ".3f",
        "cosine_last": ".3f",
        "control_last": ".3f",
    }
    rows = [
        (
            f"`{method}`",
            *(found.level(key, method, measure, form) for measure, form in named.items()),
            shown(found.difference(key, method, "cosine")),
        )
        for method in methods
        if found.has(key, method)
    ]
    header = (
        "left the plateau at epoch",
        "cosine",
        "control",
        "cosine, end",
        "control, end",
        "cosine − uniform's",
    )
    return table(("method", *header), rows)


def _contrasts(found: Found, key: str, methods: Iterable[str]) -> list[str]:
    """Differences to what is not uniform; nothing where there is none."""
    rows = [
        (
            *(f"`{method}` − `{baseline}`", found.pairs(key, method, baseline)),
            *(shown(found.difference(key, method, measure, baseline)) for measure in SHOWN),
        )
        for method in methods
        for own, of, baseline, measure in found.differences
        if (own, of, measure) == (key, method, GROUPS[0]) and baseline != UNIFORM
    ]
    return [table(("difference", "pairs", *SHOWN), rows)] if rows else []
