"""Compile every kernel for GPUs that need not be there, and tabulate the resources of each variant.

    python -m growtas.kernels.compile_ahead --jobs 2           # all of it, into benchmarks/results/
    python -m growtas.kernels.compile_ahead --sets bf16 --arch 90 --print-only

The variants are not listed by hand: ``growtas.warmup`` runs blocks forward and backward on tensors without
values, and notes the variants they would compile. :data:`SETS` says for which spaces, batches and dtypes.
Each is then compiled by Triton and ptxas, and read back: registers, stack (spills and local arrays),
shared memory, and the tensor-core instructions of the PTX (``mma.sync`` on sm_80, ``wgmma.mma_async`` on
sm_90). Of sm_90's loops it tells whether wgmmas and copies overlap: the fewest wgmmas that a wait leaves
running (``loop_pendings``; 0: one is waited for at once), the fewest copies that a wait leaves under way
(``loop_copies``), and whether ptxas serialises the wgmmas of the kernel (``serialised``, remarks from C7510
on), which costs more than either. All of this is counted; nothing is timed.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import importlib
import json
import multiprocessing
import os
import pkgutil
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from tqdm import tqdm
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from growtas import atomic, warmup
from growtas.errors import GrowtasError
from growtas.kernels.common import launch
from growtas.kernels.compiled_code import binary_resources, loop_waits, serialised, widest_copy
from growtas.space import SearchSpace, load_space

SPACES = ("autoformer-tiny", "autoformer-small", "autoformer-base")
#: Classes of the head.
CLASSES = 1000
#: The folder of the kernels.
FOLDER = Path(__file__).parent
#: Shared memory one block may use, in bytes, by compute capability.
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}


@dataclass(frozen=True)
class Selection:
    """The blocks, batches and dtype that are compiled for one way to train."""

    dtype: str  # a key of ``warmup.DTYPES``
    batches: tuple[int, ...]  # images
    shadows: bool = True  # GEMMs read 16-bit shadows of fp32 weights
    widest: bool = (
        False  # only the widest blocks of the smallest space, where the MLP is fused, and of the next
    )


#: name -> selection. All of "bf16", which is what training launches by default; fp16 differs in
#: the dtype only. Graphs made by torch.compile read fp32 weights ("mixed"). Of these and of fp32, the widest
#: blocks of a space stand for the others.
SETS = {
    "bf16": Selection("bf16-autocast", (1, 4, 16, 64, 128, 512)),
    "mixed": Selection("bf16-autocast", (128,), shadows=False, widest=True),
    "fp32": Selection("fp32", (128,), widest=True),
    "tf32": Selection("tf32", (128,), widest=True),
}


def _spaces(names: Iterable[str], widest: bool) -> Iterator[SearchSpace]:
    for name in list(names)[: 2 if widest else None]:
        space = load_space(name)
        if widest:
            last = {choice: getattr(space, choice)[-1:] for choice in ("embed_dim", "num_heads", "mlp_ratio")}
            space = dataclasses.replace(space, **last)
        yield space


def variants(
    capability: int, sets: Iterable[str] = tuple(SETS), spaces: Iterable[str] = SPACES
) -> dict[str, launch.Variant]:
    """Everything the launchers would compile for these spaces.

    Args:
        capability: 80, 90, ...
        sets: keys of :data:`SETS`.
        spaces: names or files, as ``load_space`` takes them.

    Returns:
        The variants by their unique key.
    """
    found: dict[str, launch.Variant] = {}
    for name in sets:
        chosen = SETS[name]
        for space in _spaces(spaces, chosen.widest):
            found |= warmup.record(
                space, chosen.batches, [chosen.dtype], CLASSES, (capability, None, None), chosen.shadows
            )
    return found


def compile_variant(variant: launch.Variant, capability: int) -> dict[str, Any]:
    """Compile one variant and read back its resources.

    Returns:
        kernel, arch, dtypes, constexprs, warps, stages; registers per thread, stack bytes per thread, shared
        bytes per block, the numbers of ``mma`` and ``wgmma`` instructions in the PTX; ``loop_pendings``,
        ``loop_copies`` (:func:`loop_waits`) and ``serialised``.

    Raises:
        GrowtasError: it does not compile, or the compiler's tool that reads binaries failed.
    """
    source = ASTSource(
        launch.KERNELS[variant.kernel], dict(variant.signature), dict(variant.constants), dict(variant.attrs)
    )
    target = GPUTarget("cuda", capability, 32)
    try:
        compiled = triton.compile(source, target=target, options=dict(variant.options))
    except Exception as error:
        raise GrowtasError(
            f"{variant.kernel} does not compile for sm_{capability} with {variant.dtypes()} and "
            f"{variant.constexprs()}: {error}"
        ) from error
    ptx = compiled.asm["ptx"]
    return {
        "kernel": variant.kernel,
        "arch": f"sm_{capability}",
        "dtypes": variant.dtypes(),
        "constexprs": {k: v for k, v in variant.constexprs().items() if v is not None},
        "warps": variant.options["num_warps"],
        "stages": variant.options["num_stages"],
        **binary_resources(compiled.asm["cubin"]),
        "shared": compiled.metadata.shared,
        "mma": len(re.findall(r"\bmma\.sync", ptx)),
        "wgmma": len(re.findall(r"\bwgmma\.mma_async", ptx)),
        "widest_load_bytes": widest_copy(ptx),
        **loop_waits(compiled.asm["ttgir"]),
        "serialised": serialised(ptx, capability),
    }


def _begin(cache: str | None) -> None:
    """In every compiling process: import the kernels, since variants are sent by name."""
    if cache:
        os.environ["TRITON_CACHE_DIR"] = cache
    for module in pkgutil.walk_packages([str(FOLDER)], "growtas.kernels."):
        importlib.import_module(module.name)


def _compile_item(item: tuple[launch.Variant, int]) -> dict[str, Any]:
    return compile_variant(*item)


def _compile_all(
    work: Sequence[tuple[launch.Variant, int]], cache: str | None, jobs: int
) -> list[dict[str, Any]]:
    """The resources of every variant, in order, compiled by ``jobs`` processes."""
    shown = {"desc": "compiling", "unit": "kernel", "disable": None, "total": len(work)}
    if jobs == 1:
        return [compile_variant(*item) for item in tqdm(work, **shown)]
    with multiprocessing.get_context("spawn").Pool(jobs, _begin, (cache,)) as pool:
        return list(tqdm(pool.imap(_compile_item, work), **shown))


def sources_digest() -> str:
    """SHA-256 over the code that decides what is compiled; equal digests mean that a table is up to date.

    Docstrings, comments and blank space do not count, so that a better sentence does not cost a compilation;
    nor do the files that only launch what was compiled.
    """
    digest = hashlib.sha256()
    for path in sorted(FOLDER.rglob("*.py")):
        if path.name in ("replay.py", "workspace.py"):
            continue
        code = path.read_text()
        code = re.sub(r'""".*?"""', "", code, flags=re.DOTALL)
        code = re.sub(r"(^|\s)#.*$", "", code, flags=re.MULTILINE)
        digest.update("\n".join(line.strip() for line in code.splitlines() if line.strip()).encode())
    return digest.hexdigest()


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The worst case of each kernel and architecture, as text."""
    form = "{:44} {:6} {:>8} {:>9} {:>6} {:>10} {:>10} {:>12}"
    head = ("kernel", "arch", "variants", "registers", "stack", "shared KiB", "with mma", "with wgmma")
    lines = [form.format(*head)]
    for kernel, arch in sorted({(row["kernel"], row["arch"]) for row in rows}):
        group = [row for row in rows if (row["kernel"], row["arch"]) == (kernel, arch)]
        worst = {name: max(row[name] for row in group) for name in ("registers", "stack", "shared")}
        shared = f"{worst['shared'] / 1024:.1f}"
        counts = [sum(row[name] > 0 for row in group) for name in ("mma", "wgmma")]
        lines.append(
            form.format(kernel, arch, len(group), worst["registers"], worst["stack"], shared, *counts)
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile, print the table, write the JSON. Returns 1 if a variant spills or does not fit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--arch", type=int, nargs="+", default=sorted(SHARED_LIMIT), help="capabilities: 80 90"
    )
    parser.add_argument("--sets", nargs="+", choices=sorted(SETS), default=list(SETS))
    parser.add_argument("--kernels", default="", help="only kernels whose name contains this")
    parser.add_argument("--cache", help="folder for compiled kernels (default: Triton's own)")
    parser.add_argument("--jobs", type=int, default=1, help="compiling processes")
    parser.add_argument("--out", default="benchmarks/results/triton_resources.json")
    parser.add_argument("--print-only", action="store_true", help="do not write the file")
    chosen = parser.parse_args(arguments)
    if chosen.cache:
        os.environ["TRITON_CACHE_DIR"] = chosen.cache
    work = [
        (variant, arch)
        for arch in chosen.arch
        for variant in variants(arch, chosen.sets).values()
        if chosen.kernels in variant.kernel
    ]
    rows = _compile_all(work, chosen.cache, chosen.jobs)
    print(table(rows))
    bad = [
        row
        for row in rows
        if row["stack"] or row["shared"] > SHARED_LIMIT.get(int(row["arch"][3:]), min(SHARED_LIMIT.values()))
    ]
    for row in bad:
        print(f"spills or does not fit: {row}", file=sys.stderr)
    if not chosen.print_only:
        report = {
            "about": "Resources of every compiled Triton variant; see growtas.kernels.compile_ahead.",
            "sources_sha256": sources_digest(),
            "triton": triton.__version__,
            "variants": [],
        }
        head = json.dumps(report, indent=1).removesuffix("[]\n}")
        lines = ",\n".join("  " + json.dumps(row) for row in rows)  # one variant per line: readable in a diff
        Path(chosen.out).parent.mkdir(parents=True, exist_ok=True)
        atomic.write_text(chosen.out, f"{head}[\n{lines}\n ]\n}}\n")
        print(f"{len(rows)} variants written to {chosen.out}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
