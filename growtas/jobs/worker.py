"""The process of one job: ``python -m growtas.jobs.worker MODULE:FUNCTION JSON [--guarded] [--reason=FILE]``.

Its last line says why it failed, and so does the file, which the first of several ranks to fail writes.
Guarded, it stops when standard input is closed: when the process that started it ends, however it ends.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from contextlib import suppress

from growtas.errors import GrowtasError
from growtas.jobs.ranks import call


def main(argv: list[str]) -> int:
    """Call the function with the arguments. Args: argv: as above. Returns: the exit status."""
    work, arguments, *flags = argv
    if "--guarded" in flags:
        threading.Thread(target=_stop_with_parent, daemon=True).start()
    reason = next((flag.partition("=")[2] for flag in flags if flag.startswith("--reason=")), None)
    try:
        call(work, json.loads(arguments))
    except GrowtasError as error:
        _write_reason(reason, str(error))
        if os.environ.get("GROWTAS_DEBUG") == "1":
            raise
        print(error, file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        _write_reason(reason, f"{type(error).__name__}: {error}")
        raise
    return 0


def _write_reason(file: str | None, sentence: str) -> None:
    if file is not None:
        with suppress(FileExistsError), open(file, "x") as opened:
            opened.write(sentence)


def _stop_with_parent() -> None:
    """Interrupt this process when its parent's end of the pipe is closed."""
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGINT)


if __name__ == "__main__":
    # A shell without job control starts background commands with SIGINT ignored, which is inherited.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(main(sys.argv[1:]))
