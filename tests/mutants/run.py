"""Mutation testing: makes small faults in the sources, one at a time, and checks that a test fails for each.

    python tests/mutants/run.py                    twenty drawn from the list
    python tests/mutants/run.py --sample 40 --seed 1
    python tests/mutants/run.py --all
    python tests/mutants/run.py --only searching   those whose file, text or test contains the word

A fault exists in the memory of a forked process, or, in C++, in a temporary folder: no file is changed. The
process that is forked has imported torch and nothing of growtas, so that a mutant costs a few seconds.
Exit status 0: every test that the list names passes without its mutant and fails with it.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.machinery
import importlib.util
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))

from mutants import ROOT, Mutant, load  # noqa: E402

LIMIT = 600  # seconds; a mutant that keeps its test from ending is as good as killed
PYTEST = ["-x", "-q", "-n0", "-pno:cacheprovider", "-pno:benchmark"]
IMPORTS = (
    "torch",
    "timm",
    "timm.optim",
    "timm.scheduler",
    "torch.utils.flop_counter",
    "triton",
    "sklearn.datasets",
)
IMPORTS += (
    "pytest",
    "hypothesis",
    "_hypothesis_pytestplugin",
    "xdist.plugin",
    "pytest_timeout",
    "yaml",
    "simplejpeg",
)
WAYS = {0: "passes", 1: "fails", -signal.SIGALRM: "does not end"}


class Outcome(NamedTuple):
    """The end of a run of tests."""

    status: int  # pytest's, or minus the signal that ended it
    failed: list[str]  # node ids
    output: str


class Finder(importlib.machinery.SourceFileLoader):
    """Gives one module another source, or loads a native module from another place."""

    def __init__(self, name: str, path: str, source: str | None) -> None:
        super().__init__(name, path)
        self.source = source

    def find_spec(self, name: str, path: object = None, target: object = None):
        """The module, where it is the one."""
        if name != self.name:
            return None
        if self.source is None:
            return importlib.util.spec_from_file_location(name, self.path)
        return importlib.util.spec_from_file_location(name, self.path, loader=self)

    def get_code(self, fullname: str):
        """The mutant's code; bytecode that lies on disk is neither read nor written."""
        return compile(self.source, self.path, "exec", dont_inherit=True)


class Recorder:
    """Keeps the node ids of what failed."""

    def __init__(self) -> None:
        self.failed: list[str] = []

    def pytest_runtest_logreport(self, report) -> None:
        """Called by pytest after each phase of a test."""
        if report.failed:
            self.failed.append(report.nodeid)


def prepare() -> None:
    """Import what every forked process needs. No thread may be started here, and growtas not imported."""
    os.chdir(ROOT)
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.setdefault("TRITON_INTERPRET", "1")
    for name in IMPORTS:
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(name)
    import hypothesis

    # An example that fails is enough: no smaller one is looked for, and none is kept on disk.
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
    hypothesis.settings.register_profile("mutants", phases=phases, database=None)
    hypothesis.settings.load_profile("mutants")
    gc.collect()
    gc.freeze()  # forked processes need not look at what they share
    gone = [name for name in sys.modules if name.split(".")[0] == "growtas"]
    assert not gone, f"{gone} would not be mutated"


def run(tests: Iterable[str], finder: Finder | None = None, options: Sequence[str] = PYTEST) -> Outcome:
    """Run tests in a forked process, with a mutant or without."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        pid = os.fork()
        if not pid:
            _child([*options, f"--basetemp={folder}/tests", *tests], finder, folder)
        _, status = os.waitpid(pid, 0)
        with contextlib.suppress(ProcessLookupError):  # what the tests left running
            os.killpg(pid, signal.SIGKILL)
        noted = Path(folder, "failed")
        failed = json.loads(noted.read_text()) if noted.exists() else []
        output = Path(folder, "output").read_text(errors="replace")
        return Outcome(os.waitstatus_to_exitcode(status), failed, output)


def _child(arguments: list[str], finder: Finder | None, folder: str) -> None:
    status = 70
    try:  # a forked child never returns from here
        os.setpgid(0, 0)
        signal.alarm(LIMIT)
        output = os.open(f"{folder}/output", os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1)
        os.dup2(output, 2)
        if finder is not None:
            sys.meta_path.insert(0, finder)
        import pytest

        recorder = Recorder()
        status = int(pytest.main(arguments, [recorder]))
        Path(folder, "failed").write_text(json.dumps(recorder.failed))
    finally:
        sys.stdout.flush()
        os._exit(status)


def run_mutant(mutant: Mutant, tests: Iterable[str]) -> Outcome:
    """Run tests with a mutant in place of its source."""
    if not mutant.native:
        return run(tests, Finder(mutant.module, str(ROOT / mutant.file), mutant.source()))
    import native

    with tempfile.TemporaryDirectory(prefix="mutant-build-") as folder:
        return run(tests, Finder("growtas._cpu", str(native.build(mutant, Path(folder))), None))


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sample", type=int, default=20, help="how many mutants (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (default: %(default)s)")
    parser.add_argument(
        "--only", default="", help="a word in the file, the texts or the test; no draw is made"
    )
    parser.add_argument("--all", action="store_true", help="every mutant of the list")
    options = parser.parse_args()

    mutants, problems = load()
    if problems:
        print(*problems, sep="\n")
        return 2
    chosen = [m for m in mutants if m.test]
    if options.only:
        chosen = [m for m in chosen if options.only in f"{m.file} {m.was} {m.now} {m.test}"]
    elif not options.all:
        drawn = random.Random(options.seed).sample(range(len(chosen)), min(options.sample, len(chosen)))
        chosen = [chosen[i] for i in sorted(drawn)]
    if not chosen:
        print(f"No mutant of the list contains {options.only!r}.")
        return 2

    prepare()
    unchanged = run(dict.fromkeys(m.test for m in chosen), options=PYTEST[1:])
    if unchanged.status:
        named = ", ".join(unchanged.failed) or unchanged.output[-2000:]
        print(f"Without a mutant {named} should pass and does not: mend it, or name another test.")
        return 1
    survivors = []
    for number, mutant in enumerate(chosen, 1):
        began = time.monotonic()
        outcome = run_mutant(mutant, [mutant.test])
        killed = outcome.status == 1 or outcome.status < 0
        way = WAYS.get(outcome.status, "crashes" if killed else f"could not run (status {outcome.status})")
        survivors += [] if killed else [mutant]
        took = f"{time.monotonic() - began:.1f} s"
        print(f"{number}/{len(chosen)} {'killed' if killed else 'SURVIVES'} ({took}) {mutant}", flush=True)
        if not killed:
            print(f"    {mutant.test} {way}\n{outcome.output[-2000:] if outcome.status else ''}".rstrip())
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} mutants were killed.")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
