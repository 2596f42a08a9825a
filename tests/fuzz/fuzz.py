"""Reads mutated inputs, and keeps those that end in anything but success or one sentence.

python tests/fuzz/fuzz.py                          10,000 mutations over all targets
python tests/fuzz/fuzz.py --target space --n 500   of one target
python tests/fuzz/fuzz.py --target space FILE ...  files again that failed before
python tests/fuzz/fuzz.py --guided                 by atheris, which looks for inputs that reach new lines
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import Fuzzer, counts, judge, tally
from targets import TARGETS

SECONDS_WITHOUT_ANSWER = 300  # of one input: it waits for something, which takes no processor time


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", action="append", choices=list(TARGETS), help="all where not given")
    parser.add_argument("--n", type=int, default=10_000, help="mutations of all targets together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, default=Path("fuzz-failures"), help="where failing inputs are kept"
    )
    parser.add_argument(
        "--guided", action="store_true", help="let coverage guide the mutations; needs atheris"
    )
    parser.add_argument("files", nargs="*", type=Path, help="inputs to read in the place of mutations")
    args = parser.parse_args()
    targets = [TARGETS[name] for name in args.target or TARGETS]
    out = args.out.resolve()
    files = [path.resolve() for path in args.files]
    if args.guided and importlib.util.find_spec("atheris") is None:
        parser.error("--guided needs atheris: pip install atheris")
    failures, began = 0, time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        if files:
            return any([_again(targets[0], path, Path(scratch, "case")) for path in files])
        for target, count in zip(targets, counts(targets, args.n).values(), strict=True):
            if args.guided:
                guided = [sys.executable, Path(__file__).with_name("guided.py")]
                failures += subprocess.call([*guided, target.name, str(count), str(args.seed), out]) != 0
                continue
            failures += _fuzz(Fuzzer(target, args.seed), count, Path(scratch, "case"), out)
    print(f"{args.n:,} mutations, seed {args.seed}, {time.monotonic() - began:.0f} s: {failures} failures")
    return min(1, failures)


def _fuzz(fuzzer: Fuzzer, count: int, folder: Path, out: Path) -> int:
    name, verdicts, told, began = fuzzer.target.name, [], set(), time.process_time()
    faulthandler.dump_traceback_later(SECONDS_WITHOUT_ANSWER, exit=True)
    for number, verdict, said in fuzzer.run(range(count), folder):
        faulthandler.dump_traceback_later(SECONDS_WITHOUT_ANSWER, exit=True)
        verdicts.append(verdict)
        kind = said[:60]
        if verdict == "failure" and kind not in told:
            told.add(kind)
            out.mkdir(parents=True, exist_ok=True)
            kept = out / f"{name}-{fuzzer.seed}-{number}"
            kept.write_bytes(fuzzer.input(number))
            print(
                f"FAILURE {name} {number}: {said}\n  again: python {__file__} --target {name} {kept}",
                flush=True,
            )
        if sys.stderr.isatty():
            print(f"\r{name}: {number + 1:,} of {count:,}", end="", file=sys.stderr, flush=True)
    faulthandler.cancel_dump_traceback_later()
    if sys.stderr.isatty():
        print("\r", end="", file=sys.stderr)
    took = time.process_time() - began
    print(f"{name}: {len(verdicts):,} inputs, {tally(verdicts)}; {took:.1f} CPU-s", flush=True)
    return verdicts.count("failure")


def _again(target, path: Path, folder: Path) -> bool:
    verdict, said = judge(target, path.read_bytes(), folder)
    print(f"{path.name}: {verdict}: {said}")
    return verdict == "failure"


if __name__ == "__main__":
    sys.exit(main())
