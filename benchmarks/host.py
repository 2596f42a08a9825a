"""Host time of a training step on a GPU, measured without one.

    python benchmarks/host.py [--spaces T,S,B] [--seconds 0.5] [--json] [--out FILE]

Kernels are neither compiled nor run: the function by which Triton's launcher enters the driver is replaced by
one that returns at once, and CPU tensors stand for the GPU's; their memory comes from the heap and stays
there, as that of a caching allocator does. All else is what a training step does: modules, autograd, growtas'
operations, the launchers, and Triton's launcher up to the driver. Images are small (32 x 32), since the host
does the same work for a large batch, and the few operations of torch around the kernels then take the time of
a call; on a GPU each would take a launch of torch's instead. The optimizer is left out.

Printed: the time of a step (forward and backward), the quickest of many, which nothing interrupted; that of a
step whose blocks run one by one, by their own operations; what lies around the blocks; launches and
allocations; microseconds per launch for each launcher function called alone, and the functions in which a
step spends its time. The CPU time is the lowest mean of several rows of steps: what else runs on the machine
adds to it.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import cProfile
import ctypes
import dataclasses
import functools
import itertools
import json
import os
import pstats
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)

import torch
from common import environment, results, steps
from common.products import SPACES
from triton.backends.nvidia.driver import CudaLauncher
from triton.runtime import driver

import growtas
from growtas.kernels.common import launch, plan, tiles, workspace
from growtas.kernels.mlp import tiles as mlp_tiles
from growtas.nn import block as block_module
from growtas.ops import direct_gradients, dispatch

#: Builtins and functions that give new memory.
ALLOCATING = {"empty", "empty_strided", "empty_like", "new_empty", "zeros", "zeros_like", "ones", "full"}
ALLOCATING |= {"_empty_strided_cpu", "_empty_strided_cuda", "new_zeros"}

IMAGES, PIXELS = 4, 32

#: What a result file leaves out: the details of one day.
UNKEPT = {"launchers", "where"}


class _Driver:
    """Enough of Triton's driver for its launcher."""

    def allocate_default_profile_scratch(self, size: int, align: int, stream: int) -> None:
        return None


@dataclasses.dataclass
class _Compiled:
    """Stands for a compiled kernel: the launcher is Triton's own, the driver behind it is missing."""

    run: CudaLauncher
    function: int = 1
    packed_metadata: tuple[int, int, int] = (4, 1, 0)


def _launcher() -> CudaLauncher:
    made = object.__new__(CudaLauncher)
    made.num_ctas = 1
    made.global_scratch_size = made.profile_scratch_size = 0
    made.global_scratch_align = made.profile_scratch_align = 1
    made.launch_cooperative_grid = made.launch_pdl = False
    made.gsan_enabled, made.arg_annotations, made.kernel_signature = False, (), b""
    made.launch = lambda *_: None
    return made


@contextlib.contextmanager
def stubbed() -> Iterator[list[str]]:
    """Inside, growtas trains on CPU tensors by way of its Triton launchers, and no kernel runs.

    Yields:
        A list that fills up with the kernels that went through Triton's long way: in a warm step, none.
    """
    compiled = _Compiled(_launcher())
    long_way: list[str] = []
    empty = getattr(torch._C._dynamo.guards, "_empty_strided_cpu", None)
    allocator = workspace.allocator

    def run(jitted: Any, grid: Any, device: Any, *arguments: Any, **constants: Any) -> _Compiled:
        name = launch.name_of(jitted)
        long_way.append(name)
        for names in launch.open_counts:
            names.append(name)
        return compiled

    replaced = [
        (launch, "run", run),
        (launch, "_check_device", lambda *_: None),
        (launch, "multiprocessors", lambda _: 132),
        (mlp_tiles, "_has_wgmma", lambda _: True),
        (plan, "_current_device", itertools.repeat(-1).__next__),
        (plan, "_current_stream", {-1: 0}.get),
        (plan, "_capturing", itertools.repeat(False).__next__),
        (workspace, "allocator", lambda device: empty or allocator(device)),
        (dispatch, "_mismatch", lambda *_: ""),
        (dispatch, "available", lambda _: dispatch.Availability(True)),
    ]
    before = [(place, name, getattr(place, name)) for place, name, _ in replaced]
    try:
        former_driver = driver.active
    except RuntimeError:  # no GPU
        former_driver = None
    driver.set_active(_Driver())
    launch.forget()
    for place, name, value in replaced:
        setattr(place, name, value)
    try:
        with dispatch.use("triton"), tiles.constrained(held=True):
            yield long_way
    finally:
        for place, name, value in before:
            setattr(place, name, value)
        driver.set_active(former_driver)
        launch.forget()


class Step:
    """Forward and backward pass of the middle subnet of a space, under bfloat16 autocast with drop path.

    Args:
        space: T, S or B, or the name of a space.
    """

    def __init__(self, space: str) -> None:
        found = growtas.load_space(SPACES.get(space, space))
        self.subnet = steps.pick_subnet(found, "middle")
        small = dataclasses.replace(found, image_size=PIXELS)
        self.net = growtas.Supernet(small, num_classes=1000, drop_path_rate=0.1).train()
        self.images = torch.randn(IMAGES, 3, PIXELS, PIXELS)
        self.labels = torch.zeros(IMAGES, dtype=torch.long)
        self.parameters = list(self.net.parameters())  # as an optimizer has them

    def forward(self) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16), direct_gradients():  # as growtas.train has them
            return torch.nn.functional.cross_entropy(self.net(self.images, self.subnet), self.labels)

    def __call__(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None
        self.forward().backward()

    @contextlib.contextmanager
    def one_by_one(self) -> Iterator[None]:
        """Inside, blocks run by their own operations, and no launch is replayed."""
        block_stack, block_module.block_stack = block_module.block_stack, lambda *given: given[-1]()
        try:
            yield
        finally:
            block_module.block_stack = block_stack

    @contextlib.contextmanager
    def without_blocks(self) -> Iterator[None]:
        """Inside, the step has what lies before and after the blocks only."""
        blocks, self.net.blocks = self.net.blocks, torch.nn.ModuleList()
        try:
            yield
        finally:
            self.net.blocks = blocks


def _seconds(work: Callable[[], Any], row: float, rows: int = 5) -> float:
    """CPU time of a call: the lowest mean of some rows of calls that take ``row`` seconds each."""
    best = float("inf")
    for _ in range(rows):
        calls, start = 0, time.process_time()
        while (spent := time.process_time() - start) < row:
            for _ in range(8):
                work()
            calls += 8
        best = min(best, spent / calls)
    return best


def _quickest(work: Callable[[], Any], seconds: float, calls: int = 20) -> float:
    """Time of a call: of the quickest of many short rows of calls, which nothing else cut into."""
    best, rows = float("inf"), 0
    work()  # whatever is made once
    start = time.perf_counter()
    while rows < 10 or time.perf_counter() - start < seconds:
        rows += 1
        begun = time.perf_counter()
        for _ in range(calls):
            work()
        best = min(best, time.perf_counter() - begun)
    return best / calls


def counts(step: Step, long_way: list[str]) -> dict[str, Any]:
    """Count the calls of one warm step: launches by kernel, allocations, and what must not be in it."""
    calls: collections.Counter[str] = collections.Counter()

    def note(frame: Any, event: str, argument: Any) -> None:
        if event == "call":
            code = frame.f_code
            calls[f"{os.path.basename(code.co_filename)}:{getattr(code, 'co_qualname', code.co_name)}"] += 1
        elif event == "c_call" and argument.__name__ in ALLOCATING:
            calls["allocations"] += 1

    long_way.clear()
    with launch.counted() as launched:
        sys.setprofile(note)
        try:
            step()
        finally:
            sys.setprofile(None)

    def called(file: str, name: str) -> int:
        return sum(n for call, n in calls.items() if call.startswith(file) and call.endswith(name))

    return {
        "launches": len(launched),
        "by_kernel": dict(collections.Counter(launched)),
        "long_way": dict(collections.Counter(long_way)),
        "planned": called("plan.py:", "make"),
        "looked_up": called("plan.py:", "Plan.start"),
        "replays": called("replay.py:", "Replay.start"),
        "signature_bind": called("inspect.py:", "Signature.bind") + called("inspect.py:", "Signature._bind"),
        "jit_run": called("jit.py:", "JITFunction.run"),
        "triton_cdiv": called("__init__.py:", "cdiv") + called("core.py:", "cdiv"),
        "allocations": calls["allocations"],
        "python_calls": sum(n for call, n in calls.items() if ":" in call),
    }


def each_launcher(step: Step, seconds: float) -> dict[str, dict[str, float]]:
    """CPU microseconds of every launcher function that a step calls, alone, as the step calls it."""
    seen: dict[str, tuple[Callable, tuple, dict]] = {}
    choose = dispatch.Operation.__call__

    class Noting:
        """A backend whose steps are noted as they are called."""

        def __init__(self, backend: Any) -> None:
            self.backend = backend

        def __getattr__(self, name: str) -> Callable:
            function = getattr(self.backend, name)

            def call(*args: Any, **options: Any) -> Any:
                if name != "unsupported":
                    seen.setdefault(name, (function, args, options))
                return function(*args, **options)

            return call

    dispatch.Operation.__call__ = lambda *arguments: Noting(choose(*arguments))
    try:
        with step.one_by_one():
            step()
    finally:
        dispatch.Operation.__call__ = choose
    found = {}
    for name, (function, args, options) in seen.items():
        with launch.counted() as launched, torch.no_grad():
            function(*args, **options)

        with torch.no_grad():
            microseconds = _quickest(functools.partial(function, *args, **options), seconds) * 1e6
        found[name] = {
            "launches": len(launched),
            "microseconds": microseconds,
            "per_launch": microseconds / max(1, len(launched)),
        }
    return found


def where(step: Step, lines: int = 12) -> list[tuple[str, int, float]]:
    """The functions with the most time of their own in five steps: name, calls per step, share."""
    profile = cProfile.Profile()
    profile.enable()
    for _ in range(5):
        step()
    profile.disable()
    stats = pstats.Stats(profile).stats
    whole = sum(own for _, _, own, _, _ in stats.values())
    ordered = sorted(stats.items(), key=lambda item: -item[1][2])[:lines]
    return [
        (
            name if file == "~" else f"{os.path.basename(file)}:{line} {name}",
            calls // 5,
            own / whole,
        )
        for (file, line, name), (_, calls, own, _, _) in ordered
    ]


def _keep_memory() -> None:
    """Have freed memory stay with the process; giving it back and getting it anew takes a tenth of a step."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's
    if mallopt is not None:
        mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


def measure(space: str, seconds: float) -> dict[str, Any]:
    """Everything about one space.

    Args:
        space: T, S or B.
        seconds: of CPU time to average over.
    """
    torch.set_num_threads(1)
    _keep_memory()
    with stubbed() as long_way:
        step = Step(space)
        for _ in range(3):
            step()
        counted = counts(step, long_way)
        forward = _seconds(step.forward, seconds)
        both = _seconds(step, seconds)
        quickest = _quickest(step, 2 * seconds, 1)
        with step.one_by_one():
            apart = _quickest(step, 2 * seconds, 1)
        with step.without_blocks():
            ends = _quickest(step, seconds, 1)
        return {
            "space": space,
            "subnet": str(step.subnet),
            "milliseconds": both * 1e3,
            "forward_milliseconds": forward * 1e3,
            "quickest_milliseconds": quickest * 1e3,
            "one_by_one_milliseconds": apart * 1e3,
            "ends_milliseconds": ends * 1e3,
            **counted,
            "launchers": each_launcher(step, seconds / 2),
            "where": where(step),
        }


def show(found: dict[str, Any]) -> None:
    """Print the tables of one space."""
    print(f"\n{found['space']}: {found['subnet']}")
    print(
        f"  {found['quickest_milliseconds']:.2f} ms per step, {found['ends_milliseconds']:.2f} of it around "
        f"the blocks; {found['one_by_one_milliseconds']:.2f} ms with blocks one by one\n"
        f"  {found['milliseconds']:.2f} ms of CPU time on average, {found['forward_milliseconds']:.2f} of it "
        "forward\n"
        f"  {found['launches']} launches, {found['allocations']} allocations, {found['python_calls']} calls "
        "of Python functions per step"
    )
    print(f"  {'launcher':32s} {'launches':>8s} {'us':>7s} {'us per launch':>14s}")
    for name, row in found["launchers"].items():
        print(f"  {name:32s} {row['launches']:8d} {row['microseconds']:7.1f} {row['per_launch']:14.1f}")
    print(f"  {'own time of functions, profiled':60s} {'calls':>6s} {'share':>7s}")
    for name, calls, share in found["where"]:
        print(f"  {name[:60]:60s} {calls:6d} {share:7.1%}")


def main(argv: list[str] | None = None) -> None:
    """Command line; see the head of the file."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--spaces", default="T,S,B", help="of T, S and B, separated by commas")
    parser.add_argument("--seconds", type=float, default=0.5, help="of CPU time to average over")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the tables")
    parser.add_argument("--out", type=Path, help="write the result file that the documents are made from")
    options = parser.parse_args(argv)
    unknown = [space for space in options.spaces.split(",") if space not in SPACES]
    if unknown:
        parser.error(f"there is no space {unknown[0]!r}: choose from {', '.join(SPACES)}")
    found = [measure(space, options.seconds) for space in options.spaces.split(",")]
    if options.out:
        device = environment.pick_device("cpu")
        head = {"benchmark": "host", **environment.describe(device), "settings": {"seconds": options.seconds}}
        records = [{key: value for key, value in one.items() if key not in UNKEPT} for one in found]
        results.write(options.out, head, records)
    if options.json:
        print(json.dumps(found))
        return
    for one in found:
        show(one)


if __name__ == "__main__":
    main()
