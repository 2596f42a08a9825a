"""The record of a run: an append-only log.jsonl and TensorBoard curves.

Every line of log.jsonl is one JSON object with ``event``, ``step`` and ``epoch`` (both counted from 0) and,
last, ``time`` (seconds since 1970). The events:

============  ======================================================================================
stage         a stage begins: ``stage``, ``groups`` (those active), ``embed_dims`` or ``expands``
              (theirs), and what the method did, such as ``new_region`` and ``new_entries``
step          one update: ``stage``, ``groups``, ``loss``, ``lr``, ``subnets`` (as text) and ``group``
              (the group of each); ``skipped`` is true where the loss (then null) or its gradient was
              not finite
method        what a method that learns along reports
eval          after an epoch: ``split`` and ``results``, a list of ``name`` (smallest, largest,
              random-0, ...), ``subnet``, ``group``, ``params``, ``top1`` (per cent) and ``loss``
interference  before the first step and after epochs, see
              :class:`growtas.methods.interference.Interference`: ``small`` and ``large`` (the groups),
              ``cosine``, ``layers`` (the cosine of each), ``negative``, ``norm_ratio``, ``pairs``,
              ``images``, and ``control``, the same of pairs of two small subnets
finish        the run is complete: ``skipped`` steps in total
============  ======================================================================================

``step`` of a step record is the update it describes; of the other events, the next update.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from growtas.errors import GrowtasError, UsageError
from growtas.locks import lock

LOG_NAME = "log.jsonl"


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
        f"growtas train --resume {folder}"
    )


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
        try:
            self._file = open(self.path, "ab")  # noqa: SIM115 - held for the whole run
        except OSError as error:
            raise disk_error(error, self.path) from error
        try:
            lock(self._file)
        except OSError as error:
            self._file.close()
            raise UsageError(
                f"Another process is writing the run in {folder}; wait for it, or choose another folder."
            ) from error

    def keep(self, offset: int) -> None:
        """Cut off what lies behind ``offset`` bytes: it was written after the checkpoint.

        Raises:
            GrowtasError: the file is shorter than that, or cannot be cut.
        """
        size = os.fstat(self._file.fileno()).st_size
        if size < offset:
            raise GrowtasError(
                f"{self.path} has {size} bytes, but the checkpoint was written after {offset}: the log was "
                "cut or replaced. Put the whole file back; nothing was changed."
            )
        try:
            self._file.truncate(offset)
        except OSError as error:
            raise disk_error(error, self.path) from error

    def write(self, event: str, step: int, epoch: int, **values: Any) -> None:
        """Append one record. Raises: GrowtasError: it could not be written."""
        record = {"event": event, "step": step, "epoch": epoch, **values, "time": round(time.time(), 3)}
        try:
            self._file.write(json.dumps(record, allow_nan=False).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise disk_error(error, self.path) from error

    def sync(self) -> int:
        """Flush to the disk. Returns: the size in bytes, for the checkpoint."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise disk_error(error, self.path) from error
        return os.fstat(self._file.fileno()).st_size

    def discard(self) -> None:
        """Remove the file of a run that did not begin: nothing was written to it."""
        if not os.fstat(self._file.fileno()).st_size:
            with suppress(OSError):
                self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file and release the lock. Never raises: the records that count were flushed."""
        with suppress(OSError):
            self._file.close()


def read_log(folder: str | os.PathLike, event: str | None = None) -> Iterator[dict[str, Any]]:
    """The records of a run, in order.

    Args:
        folder: of the run.
        event: only records of this kind; all where None.

    Yields:
        One dictionary per complete line; an unfinished last line is left out.

    Raises:
        UsageError: the folder has no log.
    """
    path = Path(folder) / LOG_NAME
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise UsageError(f"{folder} has no {LOG_NAME}; is it the folder of a run?") from error
    with file:
        for line in file:
            if line.endswith(b"\n"):
                record = json.loads(line)
                if event in (None, record["event"]):
                    yield record


class Curves:
    """TensorBoard curves; nothing where they are switched off.

    The records are written by this thread: torch's SummaryWriter has one of its own, which meets a full disk
    with a traceback on the screen instead of an error that can be told.

    Args:
        folder: of the run; event files go to its folder ``tensorboard``.
        enabled: whether to write.
        first_step: curves from this step on are replaced.

    Raises:
        GrowtasError: they could not be written.
    """

    def __init__(self, folder: Path, enabled: bool, first_step: int) -> None:
        self._file = None
        if not enabled:
            return
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = Event, Summary
        now = time.time()
        self.path = (
            folder / "tensorboard" / f"events.out.tfevents.{int(now)}.{os.uname().nodename}.{os.getpid()}"
        )
        try:
            self.path.parent.mkdir(exist_ok=True)
            self._file = open(self.path, "ab")  # noqa: SIM115 - held for the whole run
        except OSError as error:
            raise disk_error(error, folder / "tensorboard") from error
        self._records = RecordWriter(self._file)
        self._write(Event(wall_time=now, step=first_step, file_version="brain.Event:2"))
        if first_step:
            start = SessionLog(status=SessionLog.START)
            self._write(Event(wall_time=now, step=first_step, session_log=start))

    def add(self, step: int, **values: float) -> None:
        """Add one point to each curve; a double underscore in a name stands for a slash."""
        if self._file is not None:
            points = [
                self._summary.Value(tag=name.replace("__", "/"), simple_value=value)
                for name, value in values.items()
            ]
            summary = self._summary(value=points)
            self._write(self._event(wall_time=time.time(), step=step, summary=summary))

    def _write(self, event: Any) -> None:
        try:
            self._records.write(event.SerializeToString())
        except OSError as error:
            raise disk_error(error, self.path) from error

    def flush(self) -> None:
        """Write what is buffered."""
        if self._file is not None:
            try:
                self._file.flush()
            except OSError as error:
                raise disk_error(error, self.path) from error

    def close(self) -> None:
        """Close the file. Never raises: the curves are not what a run is about."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
