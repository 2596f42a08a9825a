"""A worker of the tuning without the seconds that importing torch takes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from growtas.tuning import worker


class Forked:
    """A worker forked from this process, in the place of one that imports torch for seconds."""

    def __init__(self, command, stdin, stdout, stderr, env, start_new_session):
        assert command[-1] == "growtas.tuning.worker" and stdin == stdout == subprocess.PIPE
        (read, self._write), (self._read, write) = os.pipe(), os.pipe()
        self.pid, self.returncode = os.fork(), None
        if not self.pid:
            os.setsid()
            for place, descriptor in enumerate((read, write, stderr.fileno())):
                os.dup2(descriptor, place)
            os.closerange(3, 64)
            sys.stdin, sys.stdout = os.fdopen(0, "r"), os.fdopen(1, "w")
            os._exit(worker.main())
        os.close(read), os.close(write)
        self.stdin, self.stdout = os.fdopen(self._write, "wb"), os.fdopen(self._read, "rb")

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def poll(self) -> int | None:
        return self.wait(0)

    def wait(self, timeout: float) -> int | None:
        end = time.monotonic() + timeout
        while self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
            elif time.monotonic() >= end:
                break
            else:
                time.sleep(0.01)
        return self.returncode
