"""The record of a run: an append-only log.jsonl.

Every line of log.jsonl is one JSON object with ``event``, ``step`` and ``epoch`` (both counted from 0),
``time`` (seconds since 1970) and a checksum over itself and the lines before it (:mod:`growtas.chain`). The
events:

============  ======================================================================================
stage         a stage begins: ``stage``, ``groups`` (those active), ``embed_dims`` or ``expands``
              (theirs), and what the method did, such as ``new_region`` and ``new_entries``
step          one update: ``stage``, ``groups``, ``loss``, ``lr``, ``subnets`` (as text) and ``group``
              (the group of each); ``skipped`` is true where the loss (then null) or its gradient was
              not finite
steps         in a long run, up to a hundred updates: see :mod:`growtas.training.steps`; :func:`read_log`
              gives them as ``step`` records
method        what a method that learns along reports
eval          after an epoch: ``split`` and ``results``, a list of ``name`` (smallest, largest,
              random-0, ...), ``subnet``, ``group``, ``params``, ``top1`` (per cent) and ``loss``
interference  before the first step and after epochs, see
              :class:`growtas.methods.interference.Interference`: ``small`` and ``large`` (the groups),
              ``cosine``, ``layers`` (the cosine of each), ``negative``, ``norm_ratio``, ``pairs``,
              ``images``, and ``control``, the same of pairs of two small subnets
gap           the log was removed or cut: the records before ``step`` and behind ``after`` are lost
finish        the run is complete: ``skipped`` steps in total
============  ======================================================================================

``step`` of a step record is the update it describes; of the other events, the next update.
"""

from __future__ import annotations

import errno
import os
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from growtas import atomic
from growtas.chain import Chain, read_lines
from growtas.errors import GrowtasError, UsageError, command
from growtas.files import reading
from growtas.locks import lock
from growtas.progress import say
from growtas.training.steps import Block, unpacked

LOG_NAME = "log.jsonl"
_REMEDY = (
    "Put a good copy back, or move it away and resume: the run is not affected, but what stood there is lost."
)


def disk_error(error: OSError, path: Path) -> GrowtasError:
    """The sentence for a file that could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        reason, remedy = "no space is left on the device", "Free some space"
    elif error.errno == errno.EFBIG:
        reason, remedy = "the limit on the size of files is reached", "Raise it (ulimit -f)"
    else:
        reason, remedy = (error.strerror or str(error)).lower(), "Mend that"
    folder = path.parent.parent if path.parent.name == "tensorboard" else path.parent
    return GrowtasError(
        f"{path} could not be written: {reason}. The last checkpoint is intact. {remedy}, then resume with: "
        f"{command('train', '--resume', folder)}"
    )


@dataclass
class _Place:
    """A place between two records of a log.

    Args:
        chain: of the records before it.
        bytes: that they take in the file.
        offset: the same with line ends of one byte.
        step, epoch: of the last one.
    """

    chain: Chain = field(default_factory=Chain)
    bytes: int = 0
    offset: int = 0
    step: int = 0
    epoch: int = 0

    @property
    def check(self) -> str:
        return f"{self.chain.value:08x}"

    def add(self, record: Mapping[str, Any], line: bytes) -> None:
        """Go behind a record."""
        self.bytes += len(line)
        self.offset += len(line.rstrip(b"\r\n")) + 1
        self.step, self.epoch = record.get("step", 0), record.get("epoch", 0)


def _read(file: IO[bytes], path: Path, place: _Place, until: int | None = None) -> None:
    """Move a place behind all records of a file, or behind those up to an offset."""
    file.seek(0)
    lines: list[bytes] = []

    def noted() -> Iterator[bytes]:
        for line in file:
            if until is not None and place.offset >= until:
                return
            lines.append(line)
            yield line

    for record in read_lines(noted(), str(path), _REMEDY, place.chain):
        place.add(record, lines.pop())


def _read_until(file: IO[bytes], path: Path, offset: int, check: str | None) -> _Place:
    """The place where a checkpoint was written. Raises: GrowtasError: the records before are others."""
    place = _Place()
    _read(file, path, place, offset)
    if place.offset != offset or check not in (None, place.check):
        size = os.fstat(file.fileno()).st_size
        raise GrowtasError(
            f"{path} was cut or changed: its records are not those that the checkpoint was written after "
            f"(they took {offset} bytes; it has {size}). Nothing was changed. {_REMEDY}"
        )
    return place


class RunLog:
    """log.jsonl, held under a lock for as long as the run is being written.

    Args:
        folder: of the run.

    Raises:
        UsageError: another process is writing this run.
        GrowtasError: the file cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOG_NAME
        self._file = self._locked()
        self._block: Block | None = None
        self._at = _Place()

    def _locked(self) -> IO[bytes]:
        try:
            file = open(self.path, "a+b")  # noqa: SIM115 - held for the whole run
        except OSError as error:
            raise disk_error(error, self.path) from error
        try:
            lock(file)
        except OSError as error:
            file.close()
            raise UsageError(
                f"Another process is writing the run in {self.path.parent}; wait for it, or choose another "
                "folder."
            ) from error
        return file

    def keep(self, offset: int = 0, check: str | None = None, step: int = 0, epoch: int = 0) -> None:
        """Cut off the records that were written after the checkpoint.

        Args:
            offset: that :meth:`sync` gave for it; 0 where there is none.
            check: that :attr:`check` gave; None where an older version wrote the checkpoint.
            step, epoch: where the run goes on; a log that is gone begins there, with a record ``gap``.

        Raises:
            GrowtasError: the records before are not those that the checkpoint was written after, or the file
                cannot be cut.
        """
        size = os.fstat(self._file.fileno()).st_size
        if offset and not size:
            say(
                f"{self.path} is gone: the records before step {step} are lost, for curves and figures. The "
                "run goes on with a new log; its result does not change."
            )
            self.write("gap", step, epoch, after=None)
            return
        self._at = _read_until(self._file, self.path, offset, check)
        if offset and not self._at.chain.signed:
            say(
                f"The records in {self.path} have no checksums, since an older version wrote them: what was "
                "changed there could not be noticed. Those that are added have."
            )
        try:
            self._file.truncate(self._at.bytes)
        except OSError as error:
            raise disk_error(error, self.path) from error

    @property
    def check(self) -> str:
        """The checksum of all records."""
        return self._at.check

    def write(self, event: str, step: int, epoch: int, **values: Any) -> None:
        """Append one record. Raises: GrowtasError: it could not be written."""
        self._write_block()
        self._append({"event": event, "step": step, "epoch": epoch, **values})

    def write_step(self, step: int, epoch: int, complete: bool, **values: Any) -> None:
        """Append a step of a long run, whose records are thinned.

        Args:
            step, epoch: as of :meth:`write`.
            complete: keep all values, not only what was drawn.
            values: of a record of event ``step``.

        Raises:
            GrowtasError: it could not be written.
        """
        values = {"step": step, "epoch": epoch, **values}
        if self._block is not None and not self._block.takes(values):
            self._write_block()
        if self._block is None:
            self._block = Block({name: values[name] for name in ("epoch", "stage", "groups")})
        self._block.add(values, complete)

    def _write_block(self) -> None:
        block, self._block = self._block, None
        if block is not None:
            self._append({"event": "steps", "step": block.drawn["step"][0], **block.record()})

    def _append(self, record: dict[str, Any]) -> None:
        line = self._at.chain.write({**record, "time": round(time.time(), 3)})
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            raise disk_error(error, self.path) from error
        self._at.add(record, line)

    def sync(self) -> int:
        """Flush to the disk. Returns: bytes that the records take, for the checkpoint."""
        self._write_block()
        try:
            self._file.flush()
            self._look_after()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise disk_error(error, self.path) from error
        return self._at.offset

    def _look_after(self) -> None:
        """Put the file back where it was removed; begin behind what is left where it was cut."""
        held = os.fstat(self._file.fileno())
        try:
            there = os.path.samestat(held, os.stat(self.path))
        except FileNotFoundError:
            there = False
        if there and held.st_size >= self._at.bytes:
            return
        if not there:
            other = self._locked() if self.path.exists() else None  # of another process' run by now?
            self._file.seek(0)
            atomic.write_bytes(self.path, self._file.read())
            for former in filter(None, (other, self._file)):
                former.close()
            self._file = self._locked()
            say(f"{self.path} was removed or replaced while the run went on; it was put back as it was.")
        if held.st_size < self._at.bytes:
            step, epoch, self._at = self._at.step, self._at.epoch, _Place()
            with suppress(GrowtasError):  # a damaged line ends it
                _read(self._file, self.path, self._at)
            self._file.truncate(self._at.bytes)
            after = self._at.step if self._at.bytes else None
            say(
                f"{self.path} was cut while the run went on: records from step {after or 0} to {step} are "
                "lost, for curves and figures. The run goes on; its result does not change."
            )
            self._append({"event": "gap", "step": step, "epoch": epoch, "after": after})

    def discard(self) -> None:
        """Remove the file of a run that did not begin: nothing was written to it."""
        if not os.fstat(self._file.fileno()).st_size:
            with suppress(OSError):
                self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file and release the lock. Never raises: the records that count were flushed."""
        with suppress(OSError, GrowtasError):
            self._write_block()
        with suppress(OSError):
            self._file.close()


def read_log(folder: str | os.PathLike, event: str | None = None) -> Iterator[dict[str, Any]]:
    """The records of a run, in order.

    Args:
        folder: of the run.
        event: only records of this kind; all where None. ``draw`` gives a record for every update with what
            was drawn, also for those of which a long run keeps no ``step`` record.

    Yields:
        One dictionary per record; an unfinished last line is left out.

    Raises:
        UsageError: the folder has no log.
        GrowtasError: a line is damaged.
    """
    path = Path(folder) / LOG_NAME
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise UsageError(f"{folder} has no {LOG_NAME}; is it the folder of a run?") from error
    wanted = {"draw": ("step", "steps"), "step": ("step", "steps")}.get(event, (event,))
    with file, reading(path, "the log of a run", _REMEDY):
        for record in read_lines(file, str(path), _REMEDY):
            kind = record["event"]
            if event is not None and kind not in wanted:
                continue
            yield from unpacked(record, event or "step") if kind == "steps" else (record,)


def check_before(path: Path, state: Mapping[str, Any]) -> None:
    """Raises: GrowtasError: the log was cut or changed since a checkpoint was written. Args: state: its."""
    with open(path, "rb") as file:
        _read_until(file, path, state["log_offset"], state.get("log_check"))


def check_whole(folder: str | os.PathLike) -> None:
    """Raises: UsageError: records of the run are lost."""
    for gap in read_log(folder, "gap"):
        raise UsageError(
            f"The log of {folder} was removed or cut, and records before step {gap['step']} are lost; this "
            "needs all of them."
        )


def last_record(folder: str | os.PathLike, event: str) -> dict[str, Any] | None:
    """The last record of a kind; None where there is none, as in a log that was removed."""
    return next(iter(deque(read_log(folder, event), maxlen=1)), None)
