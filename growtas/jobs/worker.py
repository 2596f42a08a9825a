"""The process of one job: ``python -m growtas.jobs.worker MODULE:FUNCTION JSON [--guarded]``.

Its last line says why it failed. Guarded, it stops when standard input is closed: when the process that
started it ends, however it ends.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading

from growtas.errors import GrowtasError


def main(argv: list[str]) -> int:
    """Call the function with the arguments. Args: argv: as above. Returns: the exit status."""
    work, arguments, *flags = argv
    if "--guarded" in flags:
        threading.Thread(target=_stop_with_parent, daemon=True).start()
    module, _, function = work.partition(":")
    try:
        getattr(importlib.import_module(module), function)(**json.loads(arguments))
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
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
