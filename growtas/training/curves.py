"""TensorBoard curves of a run."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from growtas.training.log import disk_error


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
