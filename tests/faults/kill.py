"""Kill runs of every method and every verb again and again: each must end as one that was left alone.

    python tests/faults/kill.py --times 100 [--seed 0] [--only train search ...]
    python tests/faults/kill.py --every [--only search ...]

A round takes one case, lets it meet one to three faults (SIGKILL, SIGTERM or SIGINT at a random moment; a
kill, a refused call or a loss of power at a random call to the disk), resumes it, and compares its end bit
for bit with that of a run left alone. ``--every`` puts one fault at every call to the disk instead. Each
failure is told with the command that repeats it; the exit status is then 1.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path[:0] = [str(Path(__file__).parents[up]) for up in (0, 1, 2)]

from attempts import Bench, Failed, at_every_call, drawn, now, timed  # noqa: E402
from cases import CASES, TRAINING, Case  # noqa: E402


def main(arguments: list[str] | None = None) -> int:
    """Run the rounds. Returns: the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=100, help="rounds, shared by the cases in turn")
    parser.add_argument("--seed", type=int, default=0, help="of the faults")
    parser.add_argument("--only", nargs="+", default=(), help=f"cases: train, {', '.join(CASES)}")
    parser.add_argument("--round", type=int, help="this round alone, of one case")
    parser.add_argument("--every", action="store_true", help="every fault at every call to the disk")
    given = parser.parse_args(arguments)
    known = {name for only in given.only for name in (TRAINING if only == "train" else (only,))}
    if known - CASES.keys():
        parser.error(f"there is no case {', '.join(sorted(known - CASES.keys()))}")
    chosen = [case for name, case in CASES.items() if not known or name in known]
    with tempfile.TemporaryDirectory(prefix="growtas-faults-") as folder:
        os.environ["GROWTAS_CACHE"] = f"{folder}/cache"
        bench = Bench(Path(folder), moments=True)
        return _every(bench, chosen) if given.every else _rounds(bench, chosen, given)


def _rounds(bench: Bench, chosen: list[Case], given: argparse.Namespace) -> int:
    failures, met, seconds = [], defaultdict(Counter), Counter()
    rounds = range(given.times) if given.round is None else [given.round]
    for number in rounds:
        case = chosen[number % len(chosen)] if given.round is None else chosen[0]
        faults: list = []

        def one(case: Case = case, number: int = number, faults: list = faults) -> None:
            calls = bench.whole(case).calls
            faults += drawn(case, calls, random.Random(f"{given.seed} {case.name} {number}"))
            bench.suffer(case, faults)

        try:
            seconds[case.name] += timed(one)
            how = "same bits"
        except Failed as error:
            how = f"FAILED: {error}"
            again = f"python tests/faults/kill.py --only {case.name} --seed {given.seed} --round {number}"
            failures.append(
                f"{case.name}, after {'; '.join(map(str, faults))}: {error}\n  repeat it: {again}"
            )
        met[case.name].update(fault.what for fault in faults)
        met[case.name]["rounds"] += 1
        print(
            f"{now()} {number + 1}/{given.times} {case.name}: {'; '.join(map(str, faults))}: {how}",
            flush=True,
        )
    return _summary(met, seconds, failures)


def _every(bench: Bench, chosen: list[Case]) -> int:
    failures, met, seconds = [], defaultdict(Counter), Counter()
    for case in chosen:
        calls = bench.whole(case).calls["disk"]
        print(f"{now()} {case.name}: {calls} calls to the disk", flush=True)
        for fault in at_every_call(calls):
            try:
                seconds[case.name] += timed(lambda case=case, fault=fault: bench.suffer(case, [fault]))
            except Failed as error:
                failures.append(f"{case.name}, {fault}: {error}")
                print(failures[-1], flush=True)
            met[case.name][fault.what] += 1
            met[case.name]["rounds"] += 1
        for seed in range(-1, 4):
            try:
                bench.power_at_the_end(case, seed)
            except Failed as error:
                failures.append(f"{case.name}, power lost at its end ({seed}): {error}")
                print(failures[-1], flush=True)
            met[case.name]["power"] += 1
            met[case.name]["rounds"] += 1
    return _summary(met, seconds, failures)


def _summary(met: dict[str, Counter], seconds: Counter, failures: list[str]) -> int:
    columns = ("rounds", "SIGKILL", "SIGTERM", "SIGINT", "ENOSPC", "EACCES", "EIO", "power")
    print("\n" + "".join(f"{name:>9}" for name in columns) + "    CPU s  case")
    for name, counts in met.items():
        print("".join(f"{counts[each]:>9}" for each in columns) + f"{seconds[name]:>9.1f}  {name}")
    total = sum(met.values(), Counter())
    print("".join(f"{total[each]:>9}" for each in columns) + f"{sum(seconds.values()):>9.1f}  all")
    print(f"\n{total['rounds'] - len(failures)} of {total['rounds']} rounds ended with the same bits.")
    for failure in failures:
        print(f"FAILED {failure}")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
