"""``growtas.check``: every file of a run, a search, a comparison, a report or an exported model, verified."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from growtas import files
from growtas.analysis import parts
from growtas.analysis import plan as reports
from growtas.bounds import bounded
from growtas.comparing import plan as comparisons
from growtas.comparing.summary import whole_cell
from growtas.errors import GrowtasError, UsageError
from growtas.jobs.folder import read_json
from growtas.searching.folder import header_of
from growtas.searching.log import read_log as read_search
from growtas.searching.log import read_records
from growtas.supernet import saved
from growtas.training import checkpoint, initial
from growtas.training.log import LOG_NAME, check_before, read_log
from growtas.training.run import CONFIG_NAME, INITIAL_NAME, Run

_FOREIGN = ("tensorboard", "wandb", "mlruns")  # folders of other programs
_TEXT = (".csv", ".html", ".md", ".py", ".svg", ".txt", ".yaml", ".yml")


@dataclass(frozen=True)
class Finding:
    """One file.

    Args:
        path: relative to the folder.
        ok: False where it is damaged; None where there is nothing to check it by.
        told: its state in words.
    """

    path: Path
    ok: bool | None
    told: str

    def __str__(self) -> str:
        mark = {True: "ok", False: "DAMAGED", None: "unchecked"}[self.ok]
        return f"{mark:<9}  {self.path}: {self.told}"


@dataclass(frozen=True, repr=False)
class Checked:
    """The files of a folder.

    Args:
        folder: that was checked.
        findings: one for each file.
    """

    folder: Path
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """True where no file is damaged."""
        return all(found.ok is not False for found in self.findings)

    def __repr__(self) -> str:
        return f"Checked({self._summary()})"

    def __str__(self) -> str:
        return "\n".join([*map(str, self.findings), self._summary()])

    def _summary(self) -> str:
        counts = [sum(found.ok is kind for found in self.findings) for kind in (True, False, None)]
        return "{}: {} files are as they were written, {} damaged, {} unchecked".format(self.folder, *counts)


@bounded()
def check(folder: str | os.PathLike) -> Checked:
    """Verify every file in the folder of a run, search, comparison, report or exported model.

    Nothing is changed. Checkpoints, logs, exported weights and results carry checksums; of the other files,
    only the format is looked at, or nothing: they are named as unchecked.

    Args:
        folder: of any of these, or of several.

    Returns:
        The state of each file.

    Raises:
        UsageError: the folder does not exist, or holds no file.

    Example:
        >>> assert growtas.check("runs/digits").ok
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder; give that of a run, comparison, report or exported model.")
    findings = tuple(_found(path, path.relative_to(folder)) for path in _files(folder))
    if not findings:
        raise UsageError(f"{folder} holds no file to check.")
    return Checked(folder, findings)


def _files(folder: Path) -> Iterator[Path]:
    for base, folders, names in os.walk(folder):
        folders.sort()
        yield from (Path(base) / name for name in sorted(names))


def _found(path: Path, name: Path) -> Finding:
    if not path.is_file():  # it is not opened: reading a pipe would wait
        lost = path.is_symlink() and not path.exists()
        told = "it is a link to a file that is not there" if lost else "it is a pipe, a socket or a device"
        return Finding(name, False if lost else None, told)
    try:
        told = _told(path, name)
    except (GrowtasError, OSError) as error:
        return Finding(name, False, " ".join(str(error).split()))
    return Finding(name, told is not None, told) if told else Finding(name, None, "it carries no checksum")


def _told(path: Path, name: Path) -> str | None:
    """The state of a whole file; None where nothing can be known. Raises: GrowtasError: it is damaged."""
    if set(name.parts) & set(_FOREIGN):
        return None
    by_name = _BY_NAME.get(path.name)
    if by_name is not None:
        return by_name(path)
    if path.parent.name == "parts" and path.suffix == ".json":
        parts.read_file(path)
        return "a part of a report"
    if path.suffix == ".jsonl":
        return _search(path) if header_of(path) else _lines(path)
    return _by_suffix(path)


def _config(path: Path) -> str:
    run = _run(path.parent)
    return f"settings of a run of {run.steps:,} steps, made by growtas {run.versions.get('growtas', '?')}"


def _run(folder: Path) -> Run:
    try:
        return Run.open(folder)
    except UsageError:
        return Run.open(folder, of_model=True)


def _checkpoint(path: Path) -> str:
    run, state = _run(path.parent), checkpoint.load(path)
    checkpoint.check_belongs(state, run.identity(), path)
    return f"step {state['step']:,} of {run.steps:,}, checksums match"


def _log(path: Path) -> str:
    count = sum(1 for _ in read_log(path.parent))
    saved_at = path.parent / checkpoint.CHECKPOINT_NAME
    state = None
    with suppress(GrowtasError):  # the checkpoint has a line of its own
        state = checkpoint.load(saved_at)
    if state is not None:
        check_before(path, state)
    gaps = sum(1 for _ in read_log(path.parent, "gap"))
    lost = f"; records were lost {gaps} times" if gaps else ""
    return f"{count:,} records{lost}"


def _search(path: Path) -> str:
    records = read_records(path, path.read_bytes())
    count = sum(record["record"] == "evaluation" for record in records)
    state = "not finished" if read_search(path) is None else "finished"
    return f"a search with {count:,} evaluations, {state}"


def _lines(path: Path) -> str | None:
    from growtas.analysis.evaluations import damaged_lines

    damaged = damaged_lines(path)
    if damaged:
        raise GrowtasError(f"lines {', '.join(map(str, damaged[:5]))} are damaged; they are made again")
    return "every line is whole"


def _initial(path: Path) -> str | None:
    run = _run(path.parent)
    initial.read(run)
    return "the weights that the run began with" if run.initial_digest else None


def _weights(path: Path) -> str | None:
    about = saved.read_config(path.parent)
    saved.check_digest(path.parent)
    return "weights of a model" if "sha256" in (about.get("growtas") or {}) else None


def _model(path: Path) -> str:
    return f"describes a {saved.read_config(path.parent)['architecture']}"


def _plan(path: Path) -> str:
    recorded = comparisons.comparison_in(path.parent)
    return f"a comparison of {len(recorded.methods)} methods"


def _report(path: Path) -> str | None:
    if path.parent.name != reports.WORK:
        return _by_suffix(path)  # of a comparison
    reports.read_plan(path.parent.parent, "cpu")
    return "settings of a report"


def _cell(path: Path) -> str:
    read_json(path, lambda cell: whole_cell(cell) if "time" in cell else float(cell["top1"]))
    return "a result of a comparison"


def _by_suffix(path: Path) -> str | None:
    with files.reading(path, f"a {path.suffix} file", "Make it again."):
        if path.suffix == ".json":
            files.read_json(path)
            return "checksum matches" if "crc" in json.loads(path.read_bytes()) else None
        if path.suffix == ".png":
            from PIL import Image

            with Image.open(path) as image:
                image.verify()
            return "a picture"
        if path.suffix in _TEXT:
            path.read_text(encoding="utf-8")
    return None


_BY_NAME: dict[str, Callable[[Path], Any]] = {
    CONFIG_NAME: _config,
    checkpoint.CHECKPOINT_NAME: _checkpoint,
    LOG_NAME: _log,
    INITIAL_NAME: _initial,
    saved.WEIGHTS_NAME: _weights,
    saved.CONFIG_NAME: _model,
    comparisons.PLAN_NAME: _plan,
    comparisons.RESULT_NAME: _cell,
    reports.PLAN_NAME: _report,
}
