"""Runs scripts in processes forked from one that has imported torch and timm, and nothing of growtas.

A process that starts afresh spends seven seconds on these two before its script begins. In a forked one,
growtas is imported anew and reads the script's environment, and Triton compiles: it decides once per process
whether it interprets, and the process of the tests does.
"""

from __future__ import annotations

import json
import os
import runpy
import shutil
import socket
import subprocess
import sys
import tempfile
import traceback
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

ADDRESS = "GROWTAS_TESTS_FORKED_FROM"  # the environment variable that holds it
LEFT_OUT = ("TRITON_INTERPRET", "GROWTAS_BACKEND")


class Done(NamedTuple):
    """How a script ended: as subprocess.CompletedProcess."""

    returncode: int
    stdout: str
    stderr: str


class Server:
    """The process that is forked; it listens at the socket that ``ADDRESS`` names."""

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="forked-")  # a socket's path must be short
        os.environ[ADDRESS] = f"{self.folder}/socket"
        environment = {name: value for name, value in os.environ.items() if name not in LEFT_OUT}
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(os.environ[ADDRESS])
            listening.listen(64)  # an order waits here until the imports are done
            self.process = subprocess.Popen(
                [sys.executable, __file__, str(listening.fileno())],
                env=environment | {"PYTHONHASHSEED": "1"},  # the order of sets is not that of the tests
                stdin=subprocess.DEVNULL,
                pass_fds=[listening.fileno()],
            )

    def close(self) -> None:
        """End the process that is forked."""
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.folder)
        del os.environ[ADDRESS]


def run(script: str | Path, *arguments: str, cwd: Path | None = None, **environment: str) -> Done:
    """Run a script to its end.

    Args:
        script: a file, or Python code.
        arguments: of its command line.
        cwd: the folder it runs in.
        environment: variables that it has beside those of the tests.
    """
    variables = {name: value for name, value in os.environ.items() if name not in LEFT_OUT} | environment
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as connection:
        outputs = [f"{folder}/stdout", f"{folder}/stderr"]
        order = [
            str(script),
            isinstance(script, Path),
            arguments,
            str(cwd or os.getcwd()),
            variables,
            outputs,
        ]
        connection.connect(os.environ[ADDRESS])
        connection.sendall(json.dumps(order).encode() + b"\n")
        answer = connection.makefile().readline()
        assert answer, "the process that is forked has ended"
        return Done(int(answer), *(Path(output).read_text() for output in outputs))


def _serve(listening: socket.socket) -> None:
    """Fork for each connection a process that answers it, which forks the script's."""
    import timm  # noqa: F401 - and torch

    while os.getppid() == STARTED_BY:
        with suppress(TimeoutError):
            connection, _ = listening.accept()
            with connection:
                if not os.fork():
                    listening.close()
                    _answer(connection)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _answer(connection: socket.socket) -> None:
    order = json.loads(connection.makefile().readline())
    pid = os.fork()
    if not pid:
        connection.close()
        _run(*order)
    _, status = os.waitpid(pid, 0)
    connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def _run(script: str, is_file: bool, arguments: list, cwd: str, environment: dict, outputs: list) -> None:
    status: object = 0
    try:  # a forked child never returns from here
        for descriptor, output in enumerate(outputs, 1):
            os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = [script if is_file else "-c", *arguments]
        sys.path[0] = str(Path(script).parent) if is_file else ""
        if is_file:
            runpy.run_path(script, run_name="__main__")
        else:
            exec(script, {"__name__": "__main__"})
    except SystemExit as end:
        status = end.code or 0
        if isinstance(status, str):
            print(status, file=sys.stderr)
    except BaseException:  # noqa: BLE001 - nor as an exception
        traceback.print_exc()
        status = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status if isinstance(status, int) else 1)


if __name__ == "__main__":
    STARTED_BY = os.getppid()
    _listening = socket.socket(fileno=int(sys.argv[1]))
    _listening.settimeout(1.0)
    _serve(_listening)
