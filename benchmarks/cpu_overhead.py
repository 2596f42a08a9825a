"""CPU time of a training step of a small subnet, growtas beside a dense timm ViT of its size.

    python benchmarks/cpu_overhead.py [--space digits] [--subnet largest] [--batch 8] [--rounds 150] [--json]

In a net this small the step is calls, not arithmetic. Both nets take turns in one process on one thread; what
is compared is the CPU time of the process, so that other work on the machine matters little. The result is
the median of the turns' ratios. A step is that of common/steps.py.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time

import torch
from common import steps
from common.steps import SUBNETS, Case

from growtas import load_space

BAR = 0.8
"""Of timm's CPU time, for the digits' largest subnet at batch 8."""


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--space", default="digits", help="name of a transformer's space")
    add("--subnet", default="largest", choices=SUBNETS)
    add("--batch", type=int, default=8, help="images")
    add("--rounds", type=int, default=150, help="turns of each net")
    add("--json", action="store_true", help="print the numbers as JSON")
    options = parser.parse_args(argv)
    if min(options.batch, options.rounds) < 1:
        parser.error("--batch and --rounds must be 1 or more")
    return options


def cpu_seconds(rival: steps.Rival) -> float:
    """CPU time of the process for one step."""
    begin = time.process_time()
    rival.step()
    return time.process_time() - begin


def measure(space: str, subnet: str, batch: int, rounds: int) -> dict[str, float]:
    """Run both nets in turns.

    Returns:
        Median CPU seconds of a step of each, the median of their ratios and its quartiles.
    """
    torch.set_num_threads(1)
    picked = steps.pick_subnet(load_space(space), subnet)
    case = Case(space, picked, subnet, batch, torch.device("cpu"), torch.float32)
    found = steps.rivals(case, ("growtas", "timm"))
    for rival in found.values():
        rival.net.train()
        for _ in range(5):
            rival.step()
    turns = [{way: cpu_seconds(rival) for way, rival in found.items()} for _ in range(rounds)]
    ratios = [turn["growtas"] / turn["timm"] for turn in turns]
    lower, middle, upper = statistics.quantiles(ratios, n=4) if rounds > 1 else ratios * 3
    seconds = {way: statistics.median(turn[way] for turn in turns) for way in found}
    return {**seconds, "ratio": middle, "lower": lower, "upper": upper}


def main(argv: list[str] | None = None) -> int:
    """Measure and show. Returns: the exit status, 0."""
    options = parse(argv)
    found = measure(options.space, options.subnet, options.batch, options.rounds)
    if options.json:
        print(json.dumps({**vars(options), **found}))
        return 0
    print(
        f"{options.space} {options.subnet}, batch {options.batch}, one thread: growtas "
        f"{found['growtas'] * 1e3:.2f} ms of CPU time a step, timm {found['timm'] * 1e3:.2f} ms; ratio "
        f"{found['ratio']:.2f} (quartiles {found['lower']:.2f} to {found['upper']:.2f}; the bar for the "
        f"digits' largest subnet at batch 8 is {BAR})"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
