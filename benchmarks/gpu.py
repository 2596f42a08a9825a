"""Everything that needs a GPU, in one command of at most ten minutes: build, test, measure (``make gpu``).

    python3 benchmarks/gpu.py [--minutes 10]

Needs a CUDA device, nvcc, and a Python with torch, Triton, timm, setuptools, pybind11 and pytest; no network.
The steps: build; compile the Triton kernels, on all cores; tests of kernels and operations; each part of
each_kernel.py in a process of its own, since a kernel that leaves its memory spoils all that its process does
afterwards; training steps of T, S and B, and of T beside torch.compile; the choice of back ends; and where
time is left the steps from a CUDA graph, so without the host's share. Each has a time limit; one that fails
or runs out of time is reported, keeps what it measured, and the next goes on. Results go to
benchmarks/results/<gpu>/, choices to growtas/ops/choices.json, and copies of both to $OUT where that is set.
Exit status: 0; 1 where a step failed; 2 where there is no GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).resolve().parents[1]
CHOICES = ROOT / "growtas" / "ops" / "choices.json"
GRACE_SECONDS = 15.0  # for a step to save what it has after its time is over
#: What the spaces compile at the batches that are measured and checked, in as many processes as there are
#: cores.
WARMUP = (
    "from growtas.warmup import warmup\n"
    "for space in ('autoformer-tiny', 'autoformer-small', 'autoformer-base'):\n"
    "    warmup(space, batch=(4, 128, 512), dtype=('bf16-autocast',))"
)
KERNEL_TESTS = ("kernels/", "ops/", "test_native_")


@dataclass
class Step:
    """One command of the run.

    Args:
        name: for the report.
        command: what runs.
        limit: seconds.
        fallback: commands to try, in turn, where it fails.
    """

    name: str
    command: list[str]
    limit: float
    fallback: list[list[str]] = field(default_factory=list)
    status: str = "not run: no time was left"
    seconds: float = 0.0

    @property
    def failed(self) -> bool:
        """Whether it did not end well."""
        return self.status != "ok"


def steps(python: str, results: Path) -> list[Step]:
    """The commands, in order.

    Args:
        python: the interpreter that has torch.
        results: the folder of this GPU's results.
    """
    pip = [python, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "--no-index"]
    quiet = ["-q", "-m", "not slow or cuda", *(["-n", "4"] if importlib.util.find_spec("xdist") else [])]

    def script(name: str, *arguments: str, out: str = "") -> list[str]:
        path = [python, str(ROOT / "benchmarks" / f"{name}.py"), "--device", "cuda", *arguments]
        return [*path, "--out", str(results / out)] if out else path

    kernels = [
        Step(part, script("each_kernel", "--parts", part, "--seconds", s, out=f"kernels_{part}.json"), limit)
        for part, s, limit in (
            ("attention", "12", 45),
            ("fused", "25", 70),
            ("layer_norm", "6", 40),
            ("products", "25", 70),
        )
    ]
    # Not what auto takes: that follows from measurements which choose.py makes only afterwards.
    train = ["--subnets", "middle", "--backend", "triton", "--seconds", "3"]
    eager = [*train, "--spaces", "T,S,B", "--batch", "128,512", "--ways", "growtas,published,timm"]
    compiled = [*train, "--spaces", "T", "--batch", "128,512", "--ways", "growtas,published,compiled"]
    graph = [*train, "--spaces", "T,S,B", "--batch", "128", "--ways", "growtas,published,timm", "--graph"]
    return [
        Step("build", [*pip, "-e", str(ROOT)], 150, [[python, "setup.py", "build_ext", "--inplace"]]),
        # -P: the installed growtas, not the folder of that name in the current directory.
        Step("warmup", [python, "-P", "-c", WARMUP], 90),
        Step("tests", [python, "-P", "-m", "pytest", *quiet, *gpu_tests()], 120),
        *kernels,
        Step("train_step", script("train_step", *eager, "--deadline", "45", out="train_step.json"), 80),
        Step("compiled", script("train_step", *compiled, out="train_step_compiled.json"), 110),
        Step("choose", script("choose", "--seconds", "30"), 75),
        Step("graph", script("train_step", *graph, out="train_step_graph.json"), 60),
    ]


def gpu_tests() -> list[str]:
    """The test files of kernels and operations, and those with a test that needs a GPU.

    Not the others: they may need packages or a network that a GPU machine lacks.
    """
    tests = ROOT / "tests"
    found = [
        path.relative_to(tests).as_posix()
        for path in sorted(tests.rglob("test_*.py"))
        if path.relative_to(tests).as_posix().startswith(KERNEL_TESTS) or "mark.cuda" in path.read_text()
    ]
    return [f"tests/{name}" for name in found]


def run(command: list[str], limit: float, log: TextIO, environment: dict[str, str]) -> str:
    """Run a command, its output on the screen and in the log.

    Args:
        command: program and arguments.
        limit: seconds; then it gets an interrupt, as from Ctrl-C, and a little later is killed.
        log: where its output is kept.
        environment: of the process.

    Returns:
        ``"ok"``, or what went wrong.
    """
    line = f"$ {' '.join(command)}\n"
    print(line, end="", flush=True)
    log.write(line)
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", start_new_session=True, preexec_fn=_hear_interrupts,
    )  # fmt: skip

    def copy() -> None:
        for text in process.stdout:
            print(text, end="", flush=True)
            log.write(text)

    reader = threading.Thread(target=copy, daemon=True)
    reader.start()
    late = False
    try:
        process.wait(limit)
    except subprocess.TimeoutExpired:
        late = True
    finally:
        _end(process)  # on Ctrl-C as well: nothing of this run outlives it
        reader.join(timeout=5)
        log.flush()
    if late:
        return f"stopped at its limit of {limit:.0f} s"
    return "ok" if process.returncode == 0 else f"exit status {process.returncode}"


def _hear_interrupts() -> None:
    """In the new process: a shell lets its background commands, and so their children, ignore interrupts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _end(process: subprocess.Popen) -> None:
    """End a process and its children, politely first."""
    for number, patience in ((signal.SIGINT, GRACE_SECONDS), (signal.SIGKILL, 5.0)):
        if process.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)


def overlay() -> Path:
    """A folder to put on PYTHONPATH where installing is not possible: growtas with kernels/ in its place.

    An editable install maps kernels/ to growtas.kernels; links do the same here.
    """
    folder = ROOT / "build" / "gpu-path"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "growtas").mkdir(parents=True)
    for entry in (ROOT / "growtas").iterdir():
        (folder / "growtas" / entry.name).symlink_to(entry)
    (folder / "growtas" / "kernels").symlink_to(ROOT / "kernels")
    return folder


def run_all(todo: list[Step], minutes: float, log: TextIO, start: Callable[..., str] = run) -> None:
    """Run the steps, whatever becomes of each, within the time.

    Args:
        todo: the steps; their status and seconds are filled in.
        minutes: for all of them.
        log: where their output is kept.
        start: runs one command, as :func:`run` does.
    """
    end = time.monotonic() + 60 * minutes - GRACE_SECONDS
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    environment.setdefault("GROWTAS_BUILD", "cuda")
    for step in todo:
        begin = time.monotonic()
        if begin >= end:
            continue
        print(f"\n== {step.name}", flush=True)
        step.status = start(step.command, min(step.limit, end - begin), log, environment)
        for other in step.fallback:
            if step.failed and time.monotonic() < end:
                print(f"{step.name}: {step.status}; trying another way", flush=True)
                step.status = start(other, min(step.limit, end - time.monotonic()), log, environment)
                if not step.failed:
                    environment["PYTHONPATH"] = str(overlay())
        step.seconds = time.monotonic() - begin


def main(argv: list[str] | None = None) -> int:
    """Run everything and report.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="for everything")
    options = parser.parse_args(argv)
    begin = time.monotonic()
    try:
        import torch
    except ImportError as error:
        print(f"This Python has no torch that works ({error}): run with one that has.", file=sys.stderr)
        return 2
    if not torch.cuda.is_available():
        print(
            "No CUDA device is visible: run on a machine with an NVIDIA GPU and its driver.", file=sys.stderr
        )
        return 2
    from common import environment, table

    device = environment.pick_device("cuda")
    results = environment.result_folder(device)
    results.mkdir(parents=True, exist_ok=True)
    todo = steps(sys.executable, results)
    log_path = results / "gpu.log"
    with open(log_path, "w") as log:
        run_all(todo, options.minutes - (time.monotonic() - begin) / 60, log)
    report(todo, device, results)
    with contextlib.suppress(Exception):  # the table must not cost what was measured
        print(f"\n{bars(results)}")
    cells = [[step.name, step.status, f"{step.seconds:.0f}"] for step in todo]
    print(f"\n{table.render(['step', 'outcome', 'seconds'], cells, left=2)}")
    keep = os.environ.get("OUT")
    if keep:
        copy_results([*results.iterdir(), CHOICES], Path(keep))
    print(f"results: {results.relative_to(ROOT)}{f', copied to {keep}' if keep else ''}")
    return 1 if any(step.failed for step in todo) else 0


def report(todo: list[Step], device, results: Path) -> None:
    """Write gpu.json: what ran, how it ended and how long it took."""
    sys.path.append(str(ROOT))  # this process began before growtas was installed
    from common import environment
    from common.results import write

    records = [{"step": step.name, "status": step.status, "seconds": step.seconds} for step in todo]
    write(results / "gpu.json", environment.describe(device), records, key="steps")


def bars(folder: Path) -> str:
    """What was reached, from the result files that are there: geometric means, and training steps."""
    from common import kernel_report, step_report
    from common.results import read

    shown = []
    records = [r for path in sorted(folder.glob("kernels_*.json")) for r in read(path)["records"]]
    if records:
        shown.append(kernel_report.summary(records))
    for path in sorted(folder.glob("train_step*.json")):
        ratios = step_report.headline(read(path)["records"])
        shown.append(f"{path.name}: growtas' speed relative to\n{ratios}")
    return "\n\n".join(shown)


def copy_results(paths: list[Path], folder: Path) -> None:
    """Copy files to a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in paths:
        if path.is_file():
            shutil.copy2(path, folder / path.name)


if __name__ == "__main__":
    sys.exit(main())
