"""Parts of a job that several processes work on, as torchrun starts them."""

from __future__ import annotations

import importlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from growtas.errors import GrowtasError

PAUSE = 0.1  # seconds between two looks at the ranks


def call(work: str, arguments: Mapping[str, Any]) -> None:
    """Call a function. Args: work: ``MODULE:FUNCTION``; arguments: by name."""
    module, _, function = work.partition(":")
    getattr(importlib.import_module(module), function)(**arguments)


def call_on_ranks(work: str, arguments: Mapping[str, Any], ranks: int) -> None:
    """Call a function here, or in every process of a torchrun on this machine.

    Args:
        work: ``MODULE:FUNCTION``.
        arguments: by name; plain values.
        ranks: how many processes; 1 is this one.

    Raises:
        GrowtasError: a rank failed; its sentence.
        Interrupted: SIGINT or SIGTERM; every rank was told and has ended.
    """
    if ranks == 1:
        call(work, arguments)
        return
    from torch.distributed.run import get_args_parser

    from growtas.training.guards import Interrupted, stop_signals

    with tempfile.TemporaryDirectory() as folder, stop_signals() as received:
        reason = Path(folder) / "reason"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--nproc-per-node", str(ranks)]
        if "--shutdown-timeout" in get_args_parser().format_help():  # torch 2.11 has no such option
            command += ["--shutdown-timeout", "100"]
        command += ["-m", "growtas.jobs.worker", work, json.dumps(dict(arguments)), "--guarded"]
        process = subprocess.Popen(
            [*command, f"--reason={reason}"],
            stdin=subprocess.PIPE,  # closes with this process, which every rank notices
            start_new_session=True,
        )
        told = False
        while process.poll() is None:
            if received and not told:
                process.send_signal(signal.SIGINT)  # torchrun passes it on
                told = True
            time.sleep(PAUSE)
        process.stdin.close()
        said = reason.read_text() if reason.exists() else ""
    if received:
        raise Interrupted(said or "Interrupted.", received[0])
    if process.returncode:
        raise GrowtasError(said or f"torchrun ended with status {process.returncode}; see above.")
