"""Runs scripts in processes where Triton compiles, each forked from one that has imported everything.

Triton decides once per process whether it interprets, and the process of the tests does. A process that
starts afresh spends seconds on importing torch, Triton and growtas before its script begins.
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import traceback
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent
START = f"import sys; sys.path.insert(0, {str(FOLDER)!r}); import compiling; compiling.serve()"
LEFT_OUT = ("TRITON_INTERPRET", "GROWTAS_BACKEND")


class Done(NamedTuple):
    """How a script ended: as subprocess.CompletedProcess."""

    returncode: int
    stdout: str
    stderr: str


class Server:
    """The process that is forked.

    Args:
        folder: for what the scripts print.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        environment = {name: value for name, value in os.environ.items() if name not in LEFT_OUT}
        self.process = subprocess.Popen(
            [sys.executable, "-c", START],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, script: str | Path, *arguments: str, **environment: str) -> Done:
        """Run a script to its end.

        Args:
            script: a file, or Python code.
            arguments: of its command line.
            environment: variables that it has beside those of the tests.
        """
        outputs = [str(self.folder / name) for name in ("stdout", "stderr")]
        order = [str(script), isinstance(script, Path), arguments, environment, outputs]
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, "the process that is forked has ended"
        return Done(int(answer), *(Path(output).read_text() for output in outputs))

    def close(self) -> None:
        """End the process that is forked, even where another child of the tests still holds its input."""
        self.process.kill()
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


def serve() -> None:
    """Fork for each order on standard input, and answer with its exit status."""
    import torch  # noqa: F401

    import growtas.kernels.compile_ahead
    import growtas.supernet
    import growtas.warmup  # noqa: F401

    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            _run(*json.loads(line))
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _run(script: str, is_file: bool, arguments: list, environment: dict, outputs: list) -> None:
    status: object = 0
    try:  # a forked child never returns from here
        for descriptor, output in enumerate(outputs, 1):
            os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        os.environ.update(environment)
        sys.argv = [script if is_file else "-c", *arguments]
        if is_file:
            sys.path.insert(0, str(Path(script).parent))
            runpy.run_path(script, run_name="__main__")
        else:
            exec(script, {"__name__": "__main__"})
    except SystemExit as end:
        status = end.code or 0
    except BaseException:  # noqa: BLE001 - nor as an exception
        traceback.print_exc()
        status = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status if isinstance(status, int) else 1)
