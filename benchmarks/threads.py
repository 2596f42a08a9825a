"""Measure training steps per second by number of threads and by how waiting threads wait.

    python benchmarks/threads.py [--rounds 9] [--seconds 1.0]

Each way is a process of its own, since libgomp reads its environment once; the processes take turns, first
with the machine as it is, then beside processes that keep every core busy. A ratio is taken per round.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from common import environment, results, threads_report
from common.timing import interleave, spread

WAYS = {
    threads_report.SPINNING: {},
    threads_report.SLEEPING: {"OMP_WAIT_POLICY": "passive"},
    threads_report.ONE: {"OMP_NUM_THREADS": "1"},
}
NETS = {"digits": 32, "digits, 96 wide": 32, "digits, 192 wide": 32, "autoformer-tiny": 4}  # and the batch
BUSY = "while True: pass"


def space_of(name: str) -> Any:
    """A preset, or the digits' space with other widths and heads of 24."""
    from growtas.space import load_space

    preset, _, width = name.partition(", ")
    space = load_space(preset)
    if not width:
        return space
    width = int(width.split()[0])
    sizes = {"embed_dim": (width // 2, width), "num_heads": (width // 24,), "head_dim": 24}
    own = {key: value for key, value in space.to_dict().items() if not key.startswith("super_")}
    return type(space)(**own | sizes)


class Net:
    """A supernet in training, the largest subnet in every step. Args: name: of :data:`NETS`."""

    def __init__(self, name: str) -> None:
        import torch

        import growtas

        torch.manual_seed(0)
        self.space = space_of(name)
        self.net = growtas.Supernet(self.space, 10).train()
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=1e-4)
        size = self.space.image_size
        self.images = torch.randn(NETS[name], self.space.in_channels, size, size)
        self.labels = torch.arange(NETS[name]) % 10
        self.subnet = self.space.largest()

    def step(self) -> None:
        """One update."""
        from torch.nn.functional import cross_entropy

        loss = cross_entropy(self.net(self.images, self.subnet), self.labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def rate(self, seconds: float) -> float:
        """Steps per second of wall time, over at least two steps."""
        begin, steps = time.perf_counter(), 0
        while steps < 2 or time.perf_counter() - begin < seconds:
            self.step()
            steps += 1
        return steps / (time.perf_counter() - begin)


def serve() -> None:
    """Answer lines of [net, seconds] with steps per second, until standard input ends."""
    nets: dict[str, Net] = {}
    for line in sys.stdin:
        name, seconds = json.loads(line)
        if name not in nets:
            nets.clear()
            nets[name] = Net(name)
            nets[name].rate(0)
        print(nets[name].rate(seconds), flush=True)


@contextmanager
def way(variables: dict[str, str], threads: int) -> Iterator[subprocess.Popen]:
    """A process that measures with these variables."""
    environment_ = {**os.environ, "OMP_NUM_THREADS": str(threads), **variables}
    command = [sys.executable, str(Path(__file__)), "--serve"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment_
    ) as process:
        yield process
        process.stdin.close()


@contextmanager
def busy(count: int) -> Iterator[None]:
    """As many processes that compute all the time."""
    running = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def measure(nets: Sequence[str], rounds: int, seconds: float, cores: int) -> list[dict[str, Any]]:
    """One record for each net, load and way."""
    from growtas import cost

    records = []
    with ExitStack() as stack:
        processes = {name: stack.enter_context(way(own, cores)) for name, own in WAYS.items()}

        def ask(process: subprocess.Popen, net: str) -> float:
            process.stdin.write(json.dumps([net, seconds]) + "\n")
            process.stdin.flush()
            return 1 / float(process.stdout.readline())

        for net in nets:
            space = space_of(net)
            params = cost.parameters(space.largest(), space, 10)
            samplers = {name: (lambda p=p, n=net: ask(p, n)) for name, p in processes.items()}
            for load in (0, cores):
                with busy(load):
                    for sampler in samplers.values():
                        sampler()
                    taken = interleave(samplers, seconds=0, rounds=rounds, least=rounds)
                for name, samples in taken.items():
                    rates = spread([1 / each for each in samples])
                    before = taken[threads_report.SPINNING]
                    times = spread([b / own for b, own in zip(before, samples, strict=True)])
                    record = {"net": net, "batch": NETS[net], "params": params, "busy": load, "way": name}
                    record |= {"rate": rates.median, "low": rates.low, "high": rates.high}
                    record |= {"times": times.median, "times_low": times.low, "times_high": times.high}
                    records.append(record)
                    print(json.dumps(results.rounded(record)), file=sys.stderr, flush=True)
    return records


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write the result file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=1.0, help="of one turn")
    parser.add_argument("--nets", nargs="+", default=list(NETS), choices=NETS)
    parser.add_argument("--out", help="the JSON file (benchmarks/results/<processor>/threads.json)")
    parser.add_argument("--note", default="", help="about the machine, for the result file")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.serve:
        serve()
        return 0
    device = environment.pick_device("cpu")
    out = Path(given.out) if given.out else environment.result_folder(device) / "threads.json"
    head = {"benchmark": "threads", **environment.describe(device), "settings": {"note": given.note}}
    head["settings"] |= {"rounds": given.rounds, "seconds": given.seconds}
    records = measure(given.nets, given.rounds, given.seconds, environment.processors())
    results.write(out, head, records)
    print(threads_report.table(results.read(out)))
    print(f"wrote {out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
