"""The two runs of ``make gpu``: which jobs, in which order, with which limits. Needs no torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.gpu_crew import Job

ROOT = Path(__file__).resolve().parents[2]
SHARES = 13
DIRECTIONS = ("forward", "input gradient", "weight gradient")
PRODUCTS = [f"{op} {direction}" for op in ("fc1", "fc2", "qkv", "proj") for direction in DIRECTIONS]
#: part -> operations, the most telling first.
OPS = {
    "attention": ["attention forward", "attention backward"],
    "layer_norm": ["layer_norm forward", "layer_norm backward"],
    "fused": [
        "mlp", "mlp backward", "norm_qkv", "norm_qkv backward", "linear_gelu", "linear_gelu backward",
        "linear_residual", "linear_residual backward",
    ],
    "products": PRODUCTS,
    "ends": ["tokens", "tokens backward", "pooled_norm", "pooled_norm backward"],
}  # fmt: skip
CUDA_OPS = {
    "layer_norm": OPS["layer_norm"],
    "products": [f"{op} {direction}" for op in ("fc1", "qkv") for direction in DIRECTIONS],
    "fused": ["mlp", "linear_gelu", "linear_gelu backward", "linear_residual"],
}
#: What lies between cuBLAS's GEMMs; the GEMMs themselves read 16-bit shadows by stride.
CUBLAS_OPS = {
    "fused": OPS["fused"],
    "products": ["fc1 weight gradient", "qkv forward", "qkv weight gradient"],
}
CUDA_WAYS = ("growtas cuda", "growtas cuda same")
#: The ways of a training step that are compiled by torch are prepared beside other jobs.
COMPILED = ("compiled", "masked")


def jobs_a(after_build: Any, out: Path, tests: Sequence[str]) -> tuple[list[Job], list[Job]]:
    """Run A: is every kernel right, what does each take, and a training step of T beside all rivals.

    Args:
        after_build: called when the native build has ended.
        out, tests: of run B.

    Returns:
        Kernels; and training steps, which compiling of candidates may go beside.
    """
    start, smoked = begin(after_build), smoke("triton") + smoke("cublas")
    done = tuple(job.name for job in smoked)
    races = race("attention", done, 150) + race("layer_norm", done, 150, skip=CUDA_WAYS)
    races += race("fused", done, 170, skip=CUDA_WAYS)[:4] + race("products", done, 190, skip=CUDA_WAYS)
    races += race("fused", done, 200, skip=CUDA_WAYS)[4:]
    native = smoke("cuda", by=230)
    built = tuple(job.name for job in native)
    for part in ("fused", "layer_norm", "products"):
        own = {"only": CUDA_WAYS, "requires": ("native",), "label": "cuda ", "ops": CUDA_OPS[part]}
        races += race(part, built, 215, **own)
    ends = {"part": "fused", "op": "mlp", "subnets": ["smallest", "largest"]}
    native.append(
        Job("smoke cuda mlp at T's ends", "smoke", {**ends, "backend": "cuda"}, limit=40, lane="burst",
            needs=("ceilings",), requires=("native",), by=230)
    )  # fmt: skip
    races.append(
        Job("time cuda mlp at T's ends", "race", {**ends, "skip": [], "only": list(CUDA_WAYS)}, limit=25,
            needs=built, requires=("native",), by=215)
    )  # fmt: skip
    prepared = [
        Job(f"prepare {way} T 128", "step_prepare", step(way, "T", 128), limit=150, lane="side", keep=True,
            needs=compiled())
        for way in COMPILED
    ]  # fmt: skip
    ways = (
        "growtas cublas",
        "growtas triton",
        "timm",
        "growtas torch",
        "compiled",
        "masked",
        "published",
        "growtas auto",
    )
    steps = [check_step("T", done), *(time_step(way, "T", 128, done) for way in ways)]
    return [*start, *smoked, *native, *prepared, *races], steps


def jobs_b(after_build: Any, out: Path, tests: Sequence[str]) -> tuple[list[Job], list[Job]]:
    """Run B: the tests, steps of T, S and B beside all rivals, many subnets, the tuning record.

    Args:
        after_build: called when the native build has ended.
        out: a folder for the tuning record.
        tests: the CUDA-marked test files.
    """
    start, smoked = begin(after_build, every_signature=True), smoke("triton") + smoke("cublas")
    done = tuple(job.name for job in smoked)
    cases = [("T", 128), ("S", 128), ("B", 128), ("T", 512)]
    prepared = [
        Job(f"prepare {way} {space} {batch}", "step_prepare", step(way, space, batch), limit=200, lane="side",
            keep=True, needs=compiled())
        for space, batch in cases[:3] for way in COMPILED if (way, space) != ("masked", "B")
    ]  # fmt: skip
    ways = ("growtas cublas", "growtas triton", "timm", "compiled", "masked", "published", "growtas torch")
    steps = [check_step("T", done)]
    steps += [time_step(way, "T", 128, done, by=140, keep=way == "masked") for way in ways]
    steps += [
        Job(f"subnets {way} T", "random_subnets", {"way": way, "space": "T", "batch": 128}, limit=60,
            needs=done, by=170, on="step masked T 128" if way == "masked" else "")
        for way in ("growtas cublas", "growtas triton", "masked")
    ]  # fmt: skip
    tune = [sys.executable, "-P", "-m", "growtas.tuning", "autoformer-tiny", "--device", "cuda",
            "--seconds", "40", "--out", str(out / "tuning.json")]  # fmt: skip
    steps += [Job("tune", command=tune, limit=100, needs=done, by=200)]
    steps += [time_step("growtas auto", "T", 128, (*done, "tune"), by=240)]
    steps += [
        time_step(way, space, batch, done, by=270)
        for space, batch in cases[1:]
        for way in ("growtas cublas", "growtas triton", "compiled", "timm", "published", "masked")
        if (way, space, batch) != ("masked", "B", 128)
    ]
    races = [job for part in ("attention", "layer_norm") for job in race(part, done, 290)]
    races += race("fused", done, 290)[:4]
    test = [sys.executable, "-P", "-m", "pytest", "-q", "--maxfail=12", "-m", "cuda"]
    test += [*(["-n", "8"] if has_xdist() else []), *tests]
    last = [Job("tests", command=test, limit=60, lane="burst", needs=(*done, "native"), by=260)]
    last += smoke("cuda", by=280) + [sanitizer(done)]
    return [*start, *smoked, *prepared, *steps], [*last[:1], *races, *last[1:]]


def has_xdist() -> bool:
    """True where tests can run in several processes."""
    import importlib.util

    return importlib.util.find_spec("xdist") is not None


def begin(after_build: Any, every_signature: bool = False) -> list[Job]:
    """The native build in the background, the ceilings, and compiling in several processes."""
    build = ["nice", "-n", "10", sys.executable, "setup.py", "build_ext", "--inplace"]
    shares = [
        Job(f"compile {share}", "compile_kernels",
            {"share": share, "shares": SHARES, "spaces": ["T", "S", "B"] if every_signature else ["T"],
             "every_signature": every_signature}, limit=80, lane="side")
        for share in range(SHARES)
    ]  # fmt: skip
    native = Job("native", command=build, limit=280, lane="side", after=after_build)
    return [Job("about", "about"), *shares, Job("ceilings", "ceilings", limit=30), native]


def compiled() -> tuple[str, ...]:
    """The names of the compiling jobs."""
    return tuple(f"compile {share}" for share in range(SHARES))


def smoke(backend: str, by: float = 200.0) -> list[Job]:
    """Every kernel of a backend against fp64 and for equal bits, each in a process of its own."""
    cuda, triton = backend == "cuda", {**OPS, "products": CUDA_OPS["products"]}
    names = {"cuda": CUDA_OPS, "cublas": CUBLAS_OPS, "triton": triton}[backend]
    needs = ("ceilings",) if cuda else ("ceilings", *compiled())
    return [
        Job(f"smoke {backend} {op}", "smoke", {"part": part, "op": op, "backend": backend}, limit=40,
            lane="burst", needs=needs, requires=("native",) if cuda else (), by=by)
        for part, found in names.items() for op in found
    ]  # fmt: skip


def race(
    part: str,
    needs: Sequence[str],
    by: float,
    skip: Sequence[str] = (),
    only: Sequence[str] = (),
    requires: Sequence[str] = (),
    label: str = "",
    ops: Sequence[str] | None = None,
) -> list[Job]:
    """A job per operation of a part, each in a process of its own."""
    return [
        Job(f"time {label}{op}", "race", {"part": part, "op": op, "skip": list(skip), "only": list(only)},
            limit=25, needs=tuple(needs), requires=tuple(requires), by=by)
        for op in ops or OPS[part]
    ]  # fmt: skip


def step(way: str, space: str, batch: int) -> dict[str, Any]:
    """The arguments of a job that runs training steps."""
    return {"way": way, "space": space, "batch": batch}


def check_step(space: str, needs: Sequence[str]) -> Job:
    """Whole steps against the published way."""
    return Job(
        f"check step {space}", "step_check", {"space": space}, limit=40, needs=tuple(needs), lane="burst"
    )


def time_step(
    way: str, space: str, batch: int, needs: Sequence[str], by: float = float("inf"), keep: bool = False
) -> Job:
    """A rival's training step, in the process that prepared it where there is one."""
    name = f"{way} {space} {batch}"
    prepared = (
        (f"prepare {name}",) if way in COMPILED and batch == 128 and (way, space) != ("masked", "B") else ()
    )
    return Job(f"step {name}", "step_time", step(way, space, batch), limit=50, needs=tuple(needs), by=by,
               requires=prepared, on=prepared[0] if prepared else "", keep=keep)  # fmt: skip


def sanitizer(needs: Sequence[str]) -> Job:
    """compute-sanitizer on one small job of each kind, where time is left."""
    script = ROOT / "benchmarks" / "each_kernel.py"
    command = [
        "compute-sanitizer",
        "--tool",
        "memcheck",
        "--error-exitcode",
        "9",
        sys.executable,
        str(script),
    ]
    command += ["--device", "cuda", "--tiny", "--seconds", "20", "--out", "/dev/null"]
    return Job("sanitizer", command=command, limit=60, lane="burst", needs=tuple(needs))


def candidate_jobs(found: Sequence[dict[str, Any]]) -> tuple[list[Job], list[Job]]:
    """Compiling, and timing, the tiles to try.

    Args:
        found: records of kind ``to_try``: ``part``, ``op``, ``way``, ``fields``.
    """
    compiling, timing = [], []
    for kernel in found:
        label = " ".join([kernel["op"], *(f"{key}={value}" for key, value in kernel["fields"].items())])
        about = {"part": kernel["part"], "op": kernel["op"], "fields": kernel["fields"]}
        compiling.append(
            Job(f"compile {label}", "compile_kernels", {"share": 0, "shares": 1, "candidate": about},
                limit=60, lane="side")
        )  # fmt: skip
        args = {**about, "way": kernel["way"], "label": label}
        timing.append(Job(f"try {label}", "candidates", args, limit=20, needs=(f"compile {label}",)))
    return compiling, timing
