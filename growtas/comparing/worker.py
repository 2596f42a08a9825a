"""A process that does one piece of work for another: it stops with it, and says why it failed."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable

from growtas.errors import GrowtasError


def run_worker(work: Callable[[], object], guarded: bool) -> int:
    """Do the work and turn how it ends into an exit status; the last line printed says why it failed.

    Args:
        work: to do; an interrupted one saves what it has.
        guarded: stop it when standard input is closed, that is when the process that started this one ends,
            however it ends.

    Returns:
        The exit status.
    """
    if guarded:
        _stop_with_parent()
    try:
        work()
    except GrowtasError as error:
        if os.environ.get("GROWTAS_DEBUG") == "1":
            raise
        print(error, file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return 130
    return 0


def _stop_with_parent() -> None:
    """Interrupt this process when its parent's end of the pipe is closed."""

    def watch() -> None:
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=watch, daemon=True).start()
