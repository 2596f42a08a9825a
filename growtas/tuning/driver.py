"""``growtas tune``: races the backends of a space's operations on this machine, and keeps the record.

Each backend is raced against torch in a process of its own, case by case. Every finished case is written at
once, so that an interrupted tuning goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import datetime
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from growtas import atomic, bounds
from growtas.errors import GrowtasError, UsageError, nearest
from growtas.locks import locked
from growtas.ops import dispatch, records
from growtas.space import SearchSpace, load_space
from growtas.tuning import compiling
from growtas.tuning.cases import BATCH, DTYPES, Case, cases, torch_dtype
from growtas.tuning.children import Child
from growtas.tuning.decide import decide
from growtas.tuning.report import summaries, table

KINDS = {"cpu": ("cpu",), "cuda": ("cublas", "cuda", "triton")}
"""The backends that may run on a kind of device."""

REPEATS = {"cuda": 100, "cpu": 8}
"""Runs that must give equal bits before a backend may win."""

WAIT = 1800.0
"""Seconds to wait for another process that tunes the same device: two at once would measure each other."""

COMPILE_SECONDS = 150.0
"""That all kernels of one class may take to compile."""

__all__ = ["Session", "plan", "rivals", "tune"]


@bounds.bounded(seconds=bounds.SECONDS, batch=bounds.BATCH, patience=bounds.SECONDS)
def tune(
    space: SearchSpace | str = "autoformer-tiny",
    device: str = "auto",
    dtype: Sequence[str] = (),
    seconds: float = 90.0,
    batch: int | None = None,
    patience: float = 60.0,
    again: bool = False,
    out: str | None = None,
) -> Path:
    """Race the backends of every operation of a space on this machine, and keep which ones win.

    A kernel may win only where its results and gradients agree with fp64 and its bits do not change from run
    to run. One that is wrong, crashes, hangs or does not compile is left out, and the record says why.

    Args:
        space: a search space, the name of a preset or the path of a YAML file.
        device: auto for a GPU where there is one, else such as cpu or cuda:1.
        dtype: of GEMMs: bfloat16 (the default on a GPU), float16 or float32 (on a CPU).
        seconds: for checking and timing, about; compiling comes on top.
        batch: images per device; 128 on a GPU and 8 on a CPU where not given.
        patience: seconds that a backend may take for one class, beyond its share, before it counts as hung.
        again: race classes that were finished before once more.
        out: a file that the record is copied to, such as for sending it in.

    Returns:
        The record's file.

    Raises:
        UsageError: the space has nothing to tune, or a device, dtype or number makes no sense.
    """
    space, place, todo = plan(space, device, dtype, batch)
    for name, value in (("seconds", seconds), ("patience", patience)):
        if value < 0:
            raise UsageError(f"{name}={value:g} is not possible; it must be 0 or more.")
    path = records.path_of(records.key(place))
    busy = f"Another process is tuning for {path}; its record is waited for."
    with locked(path.with_suffix(".lock"), busy, WAIT):
        session = Session(path, place, Path(out) if out else None)
        rest = todo if again else [case for case in todo if not session.finished(case)]
        names = {case: rivals(case, place) for case in rest}
        rest = [case for case in rest if names[case]]
        print(f"{len(todo) - len(rest)} of {len(todo)} classes need no race; the record: {path}")
        try:
            if rest:
                session.race(rest, names, seconds, patience)
            elif session.copy:
                session.write()
        finally:
            dispatch.changed()
    print(table(summaries(session.record)))
    return path


def plan(
    space: SearchSpace | str, device: str, dtype: Sequence[str], batch: int | None
) -> tuple[SearchSpace, torch.device, list[Case]]:
    """The space, the device and the cases to race; arguments as of :func:`tune`."""
    found = load_space(space)
    if not isinstance(found, SearchSpace):
        raise UsageError(f"Space {found.name!r} runs on torch's convolutions: there is nothing to tune.")
    place = _device(device)
    for name in dtype:
        if name not in DTYPES:
            raise UsageError(f"There is no dtype {name!r} to tune.{nearest(name, DTYPES)}")
    if batch is not None and batch < 1:
        raise UsageError(f"batch={batch} is not possible; it must be 1 or more.")
    default = ("bfloat16",) if place.type == "cuda" else ("float32",)
    return found, place, cases(found, batch or BATCH[place.type], tuple(dtype) or default, place.type)


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device={name!r} cannot be used here. Use device='auto' or 'cpu'.") from error
    if device.type not in BATCH:
        raise UsageError(f"device={name!r} has no backends to race. Use a processor or an NVIDIA GPU.")
    index = torch.cuda.current_device() if device.type == "cuda" and device.index is None else device.index
    return torch.device(device.type, index)


def rivals(case: Case, device: torch.device) -> list[str]:
    """The backends other than torch that a case has on a device."""
    own = [name for name in KINDS[device.type] if name in dispatch.OPERATIONS[case.op].backends]
    own = [name for name in own if dispatch.suits(name, device, torch_dtype(case.dtype))]
    return [] if dispatch.interpreted() and device.type == "cuda" else own


class Session:
    """One tuning: a record that grows case by case.

    Args:
        path: of the record.
        device: raced on.
        copy: a second file for it, or None.
    """

    def __init__(self, path: Path, device: torch.device, copy: Path | None = None) -> None:
        self.path, self.device, self.copy = path, device, copy
        key = records.key(device)
        old = records.read(path)
        if old is None or old.get("key") != key:
            old = {"format": records.FORMAT, "key": key, "choices": {}, "finished": [], "measurements": []}
        self.record: records.Record = old
        self.told: set[tuple[str, str]] = set()

    def finished(self, case: Case) -> bool:
        """Return whether this very case is in the record."""
        return case.identity() in self.record["finished"]

    def race(
        self, todo: Sequence[Case], names: dict[Case, list[str]], seconds: float, patience: float
    ) -> None:
        """Race cases; what is finished when Ctrl-C comes is kept.

        Args:
            todo: the cases.
            names: the backends of each.
            seconds: of checks and timing, for all.
            patience: as of :func:`tune`.
        """
        from growtas.progress import Progress

        children = {name: Child(name, patience) for own in names.values() for name in own}
        try:
            for child in children.values():
                child.start()  # they import while Triton compiles
            self._compile(todo, names)
            end = time.monotonic() + seconds
            left = sum(map(len, names.values()))
            with Progress(left, "tune", "race") as bar:
                for case in todo:
                    begin, found = time.monotonic(), []
                    for name in names[case]:
                        bar.show(f"{name}: {case}")
                        share = max(0.0, end - time.monotonic()) / left
                        found += self._one(children[name], case, share)
                        left -= 1
                        bar.update()
                    self._keep(case, found, time.monotonic() - begin)
        finally:
            for child in children.values():
                child.close()

    def _compile(self, todo: Sequence[Case], names: dict[Case, list[str]]) -> None:
        compiled = [(case, name) for case in todo for name in names[case] if name in ("triton", "cublas")]
        if compiled:
            jobs = compiling.processes(self.device, len(compiled))
            requests = [self._request(name, case, seconds=0.0) for case, name in compiled]
            compiling.compile_ahead(requests, jobs, COMPILE_SECONDS)

    def _one(self, child: Child, case: Case, seconds: float) -> list[dict[str, Any]]:
        """The measurements of one backend on one case, or one that says why it is left out."""
        head = {"op": case.op, "dtype": case.dtype, "class": case.width_class, "backend": child.name}
        answer = child.ask(self._request(child.name, case, seconds=seconds))
        while answer.get("kind") == "memory" and case.jobs[0].batch > 1:
            case = _smaller(case)
            answer = child.ask(self._request(child.name, case, seconds=seconds))
        if "refused" not in answer:
            return [{**head, **one} for one in answer["measurements"]]
        if answer["kind"] not in ("unsupported", "untried") and (child.name, case.op) not in self.told:
            self.told.add((child.name, case.op))
            _say(f"{child.name} is left out for {case}: {answer['refused']}")
        return [{**head, "refused": answer["refused"], "kind": answer["kind"]}]

    def _request(self, name: str, case: Case, *, seconds: float) -> dict[str, Any]:
        return {
            "case": case.to_dict(),
            "backend": name,
            "place": dispatch.place_of(dispatch.OPERATIONS[case.op].backends[name]),
            "choices": self.record["choices"],
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "seconds": seconds,
            "repeats": REPEATS[self.device.type],
        }

    def _keep(self, case: Case, found: list[dict[str, Any]], seconds: float) -> None:
        """Add a finished case to the record and write it."""
        raced, sizes = set(map(_race_of, found)), set(map(_size_of, found))
        measurements = [  # of other sizes in the same class, which count as well
            one
            for one in self.record["measurements"]
            if _size_of(one) not in sizes and not ("refused" in one and _race_of(one) in raced)
        ]
        measurements += found
        finished = [one for one in self.record["finished"] if one != case.identity()]
        self.record |= {
            "about": "Written by growtas tune. Speeds relative to torch: median, lower and upper quartile.",
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "machine": {"processors": _processors(), "threads": torch.get_num_threads()}
            | {"system": f"{platform.system()} {platform.machine()}", "python": platform.python_version()},
            "seconds": round(self.record.get("seconds", 0) + seconds, 1),
            "choices": decide(measurements),
            "finished": [*finished, case.identity()],
            "measurements": measurements,
        }
        self.write()

    def write(self) -> None:
        """Write the record where it belongs, and its copy.

        Raises:
            GrowtasError: a folder cannot be written.
        """
        for path in filter(None, (self.path, self.copy)):
            try:
                records.write(path, self.record)
            except atomic.NotWritten as error:
                raise GrowtasError(
                    f"The record {path} cannot be written ({error.__cause__.strerror}); name another folder "
                    "with GROWTAS_CACHE, or another file with --out."
                ) from error


def _race_of(one: dict[str, Any]) -> tuple[str, ...]:
    return one["op"], one["dtype"], one["class"], one["backend"]


def _size_of(one: dict[str, Any]) -> tuple:
    return (*_race_of(one), one.get("size"), one.get("rows"), one.get("result"))


def _smaller(case: Case) -> Case:
    """The same case at half of the images."""

    def half(jobs: tuple) -> tuple:
        return tuple(dataclasses.replace(job, batch=job.batch // 2) for job in jobs)

    return dataclasses.replace(case, jobs=half(case.jobs), checks=half(case.checks))


def _processors() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _say(sentence: str) -> None:
    from tqdm import tqdm

    tqdm.write(f"growtas tune: {sentence}", file=sys.stderr)
