"""The parent's side of a worker: starts it, asks it, ends it when it hangs, starts another after a crash."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

START_SECONDS = 180.0  # to import torch on a slow disk and start a GPU
MOST_FAILURES = 3  # crashes and hangs of a backend; then its other classes are left out untried


class Child:
    """The worker of one backend, started when it is first asked.

    Args:
        name: of the backend.
        patience: seconds that an answer may take beyond what it was given for timing.
    """

    def __init__(self, name: str, patience: float) -> None:
        self.name, self.patience, self.failures = name, patience, 0
        self._process: subprocess.Popen | None = None
        self._ready = False
        self._pending = b""

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The worker's answer, or ``refused`` where there is none.

        Args:
            request: as growtas.tuning.worker takes it.
        """
        if self.failures >= MOST_FAILURES:
            return {"refused": f"not tried after {self.failures} crashes", "kind": "untried"}
        try:
            self.start()
            if not self._ready:
                self._read(START_SECONDS)
                self._ready = True
            line = json.dumps(request).encode() + b"\n"
            self._process.stdin.write(line)
            self._process.stdin.flush()
            answer = self._read(self.patience + 4 * request["seconds"])
            if answer.pop("spoiled", False):
                self._fail()
            return answer
        except TimeoutError as late:
            self._fail()
            return {"refused": f"it did not answer within {late} s", "kind": "hang"}
        except (OSError, EOFError):
            reason = self._last_words()
            self._fail()
            return {"refused": f"its process crashed ({reason})", "kind": "crash"}

    def start(self) -> None:
        """Start the worker, unless it runs already; it is waited for when it is first asked."""
        if self._process is not None:
            return
        environment = {name: value for name, value in os.environ.items() if name != "GROWTAS_BACKEND"}
        paths = [path for path in sys.path if path]  # growtas as it is imported here, wherever that is
        environment["PYTHONPATH"] = os.pathsep.join(paths)
        self._errors = tempfile.TemporaryFile()
        self._pending, self._ready = b"", False
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "growtas.tuning.worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, env=environment,
            start_new_session=True,  # Ctrl-C reaches the parent alone, which ends its children
        )  # fmt: skip

    def _read(self, seconds: float) -> dict[str, Any]:
        """One line of the worker. Raises: TimeoutError, EOFError."""
        end = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._pending:
                if not selector.select(max(0.0, end - time.monotonic())):
                    raise TimeoutError(f"{seconds:.0f}")
                piece = os.read(self._process.stdout.fileno(), 1 << 16)
                if not piece:
                    raise EOFError
                self._pending += piece
        line, _, self._pending = self._pending.partition(b"\n")
        return json.loads(line)

    def _last_words(self) -> str:
        """Why a process that is gone has ended: its signal, or the last line that it printed."""
        try:
            status = self._process.wait(5)
        except subprocess.TimeoutExpired:
            status = None
        if status is not None and status < 0:
            return signal.Signals(-status).name
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:200] if lines else f"exit status {status}"

    def _fail(self) -> None:
        self.failures += 1
        self.close()

    def close(self) -> None:
        """End the worker."""
        if self._process is None:
            return
        process, self._process = self._process, None
        if process.poll() is None:
            process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # the driver may hold a process that hung
            process.wait(10)
        for stream in (process.stdin, process.stdout, self._errors):
            with contextlib.suppress(BrokenPipeError):  # of what was not sent yet
                stream.close()
