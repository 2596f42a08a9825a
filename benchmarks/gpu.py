"""Everything that needs a GPU, in two runs of at most six minutes each: check, measure, tell (``make gpu``).

    python3 benchmarks/gpu.py --run a|b [--minutes 5.5]

Run A compiles the kernels, compares each with fp64 and with itself (the first table, after about a minute),
times each beside what it has to beat, then a training step of T beside all rivals, then other tiles of the
two worst kernels. Run B runs the same checks, steps of T, S and B, fifty random subnets, the tuning, and the
tests that need a GPU.

Needs a CUDA device and a Python with torch, Triton and timm; no network, no installation. The native module
is built in the background (nvcc, pybind11, ninja), and only what uses it waits for it. Every kernel runs in a
process of its own: one that crashes or hangs costs itself. Every record is on disk the moment it is known, in
benchmarks/results/<gpu>/ and, where that is set, in $OUT: run-<run>.jsonl, the log and the tables.
Exit status: 0; 1 where a job failed; 2 where there is no GPU. With --rehearse the same script runs on a CPU,
with tiny sizes and Triton's interpreter.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import re
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from common import gpu_plan, gpu_tables, gpu_worker
from common.gpu_crew import Crew, Job

ROOT = Path(__file__).resolve().parents[1]
RESERVE_SECONDS = 8.0  # for the last table


def gpu_name() -> str:
    """The name of the first GPU, as its driver has it; empty where there is none. Needs no torch."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ""
    device, name = ctypes.c_int(), ctypes.create_string_buffer(100)
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
        return ""
    failed = driver.cuDeviceGetName(name, len(name), device)
    return "gpu" if failed else name.value.decode()


def result_folder(name: str) -> Path:
    """Where a device's results go, as ``common.environment`` has it."""
    return ROOT / "benchmarks" / "results" / re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def overlay() -> Path:
    """A folder for PYTHONPATH: growtas with kernels/ in its place, without installing anything.

    An editable install maps kernels/ to growtas.kernels; links do the same here. Calling it again adds links
    to what has been built since.
    """
    folder = ROOT / "build" / "gpu-path"
    (folder / "growtas").mkdir(parents=True, exist_ok=True)
    entries = [*(ROOT / "growtas").iterdir(), ROOT / "kernels"]
    for entry in entries:
        with contextlib.suppress(FileExistsError):
            (folder / "growtas" / entry.name).symlink_to(entry)
    return folder


def cuda_tests() -> list[str]:
    """The test files that have a test which needs a GPU.

    Not the others: they may need packages or a network that a GPU machine lacks.
    """
    tests = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(path.relative_to(ROOT)) for path in tests if "mark.cuda" in path.read_text()]


class Run:
    """One run: its crew, its files, and what is shown.

    Args:
        letter: a or b.
        seconds: for everything.
        folders: where records go; log and tables to the first.
        rehearse: on a CPU, with tiny sizes.
        jobs: the module that has the jobs' functions.
    """

    def __init__(
        self,
        letter: str,
        seconds: float,
        folders: Sequence[Path],
        rehearse: bool,
        jobs: str = "common.gpu_jobs",
    ) -> None:
        self.letter, self.folder = letter, folders[0]
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        self.records = [str(folder / f"run-{letter}.jsonl") for folder in folders]
        for path in self.records:
            Path(path).unlink(missing_ok=True)
        self.log = open(folders[0] / f"run-{letter}.log", "ab", buffering=0)  # noqa: SIM115
        self.tables = folders[0] / f"run-{letter}.txt"
        self.tables.unlink(missing_ok=True)
        path = [str(overlay()), str(ROOT / "benchmarks"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        environment = {
            **os.environ,
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
        }
        environment.setdefault("GROWTAS_BUILD", "cuda")
        environment.setdefault("MAX_JOBS", "6")
        if rehearse:
            environment |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
        slow = {"side": 2, "ready": 1, "patience": 8.0}  # kernels are interpreted
        device, many = ("cpu", slow) if rehearse else ("cuda", {"side": 15, "ready": 4})
        limit = seconds - RESERVE_SECONDS
        self.crew = Crew(limit, self.records, self.log, environment, device=device, jobs=jobs, **many)

    def found(self) -> list[dict]:
        """All records so far."""
        return gpu_worker.read(self.records[0])

    def show(self, title: str, text: str) -> None:
        """Print a table, and keep it."""
        if text:
            text = f"\n== {title}, {self.crew.elapsed():.0f} s\n{text}\n"
            print(text, end="", flush=True)
            with open(self.tables, "a") as file:
                file.write(text)

    def kernels_and_steps(self, kernels: list[Job], steps: list[Job]) -> None:
        """Run A's and run B's jobs: checks, then timings, each with its table as soon as it is complete."""
        crew = self.crew
        crew.hire(crew.ready)
        smoked = [job.name for job in kernels if job.name.startswith("smoke triton")]
        crew.waiting += kernels
        crew.run([], until=lambda: all(name in crew.done for name in smoked))
        self.show("machine", gpu_tables.machine(self.found()))
        self.show("smoke", gpu_tables.smoke(self.found()))
        # Not what waits for the native build, nor what is prepared beside all this.
        foreground = [job.name for job in kernels if job.name.startswith("time ") and not job.requires]
        crew.run([], until=lambda: all(name in crew.done for name in foreground))
        self._kept("kernels", gpu_tables.races(self.found(), every=True))
        if self.letter == "a":
            crew.run([Job("choose candidates", "to_try", limit=20)])
            compiling, trying = gpu_plan.candidate_jobs(gpu_tables.of(self.found(), "to_try"))
            crew.waiting += compiling
            crew.run(steps)
            self.show("steps", gpu_tables.steps(self.found()))
            crew.run(trying)
        crew.run(steps if self.letter == "b" else [])
        names = [job.name for job in kernels]
        crew.run([], until=lambda: all(name in crew.done for name in names))

    def _kept(self, title: str, text: str) -> None:
        """Keep a long table without printing it: only the end of the output is seen."""
        with open(self.tables, "a") as file:
            file.write(f"\n== {title}, {self.crew.elapsed():.0f} s\n{text}\n")

    def finish(self) -> bool:
        """End all processes and show what is known; whether every job ended well."""
        self.crew.end()
        records = self.found()
        self._kept("every kernel", gpu_tables.races(records, every=True))
        self._kept("smoke", gpu_tables.smoke(records))
        self.show(f"run {self.letter}", gpu_tables.final(records))
        print(f"records: {', '.join(self.records)}")
        return all(record["status"] == "ok" for record in gpu_tables.of(records, "job"))


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--run", choices=("a", "b"), default="a", help="kernels first, or steps and tests")
    parser.add_argument("--minutes", type=float, default=5.5, help="for everything")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, with tiny sizes")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None, jobs: str = "common.gpu_jobs") -> int:
    """Run everything and report.

    Returns:
        The exit status.
    """
    options = parse(argv)
    name = "rehearsal" if options.rehearse else gpu_name()
    if not name:
        print(
            "No CUDA device is visible: run on a machine with an NVIDIA GPU and its driver.", file=sys.stderr
        )
        return 2
    folders = [Path(os.environ["OUT"]).resolve()] if os.environ.get("OUT") else []
    rehearsal = (folders[0] if folders else ROOT / "build") / "rehearsal"  # not one for several at a time
    folders.append(rehearsal if options.rehearse else result_folder(name))
    run = Run(options.run, 60 * options.minutes, folders, options.rehearse, jobs)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)

    def after_build(job: Job) -> None:
        overlay()

    make = gpu_plan.jobs_a if options.run == "a" else gpu_plan.jobs_b
    plan = make(after_build, run.folder, cuda_tests())
    if options.rehearse:
        for job in [job for jobs in plan for job in jobs]:
            job.by = float("inf")
            if job.command:
                job.command = [sys.executable, "-c", f"print({shlex.join(job.command)!r})"]
    try:
        run.kernels_and_steps(*plan)
    except KeyboardInterrupt:
        print("\nInterrupted: what was measured until now is kept.", file=sys.stderr)
    finally:
        well = run.finish()
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
