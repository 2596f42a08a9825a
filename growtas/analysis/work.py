"""One piece of a report in a process of its own: a network or a part.

``python -m growtas.analysis.work BASE --network NAME`` or ``... BASE --part NAME``. It can be killed at any
moment and started again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from growtas.analysis import parts
from growtas.analysis.plan import read_plan
from growtas.comparing.worker import run_worker
from growtas.errors import UsageError


def main(argv: list[str] | None = None) -> int:
    """Do one piece of work. Args: argv: as above. Returns: the exit status."""
    parser = argparse.ArgumentParser(prog="python -m growtas.analysis.work")
    parser.add_argument("base")
    parser.add_argument("--network")
    parser.add_argument("--part")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--guarded", action="store_true", help="stop when standard input is closed")
    given = parser.parse_args(argv)

    def work() -> None:
        workspace = read_plan(Path(given.base), given.device)
        if workspace is None:
            raise UsageError(f"{given.base} holds no report.")
        if given.network is not None:
            workspace.networks.train(given.network)
        else:
            parts.make(workspace, given.part)

    return run_worker(work, given.guarded)


if __name__ == "__main__":
    sys.exit(main())
