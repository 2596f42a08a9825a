"""Compile every kernel for GPUs that need not be there, and tabulate what each variant uses.

    python -m growtas.kernels.compile_ahead                    # all of it, into benchmarks/results/
    python -m growtas.kernels.compile_ahead --dtypes bf16 --arch 90 --print-only

The variants are not listed by hand: the launchers run on tensors without values, for every layer signature of
the AutoFormer spaces, small and large batches and every dtype, and ``launch.recording`` notes what they would
compile. Each is then compiled by Triton and ptxas, and read back: registers, stack (spills and local arrays),
shared memory, and the tensor-core instructions of the PTX (``mma.sync`` on sm_80, ``wgmma.mma_async`` on
sm_90).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from tqdm import tqdm
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from growtas import atomic
from growtas.errors import GrowtasError
from growtas.kernels import launch, layer_norm, linear, qkv
from growtas.space import SearchSpace, load_space

SPACES = ("autoformer-tiny", "autoformer-small", "autoformer-base")
BATCHES = (1, 8, 128)
#: Shared memory one block may use, in bytes, by compute capability.
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}
#: name -> (activations, weights, float32_matmul_precision)
DTYPES = {
    "bf16": (torch.bfloat16, torch.bfloat16, "highest"),
    "bf16-autocast": (torch.bfloat16, torch.float32, "highest"),
    "fp16-autocast": (torch.float16, torch.float32, "highest"),
    "fp32": (torch.float32, torch.float32, "highest"),
    "tf32": (torch.float32, torch.float32, "high"),
}


@dataclass(frozen=True)
class Layer:
    """One signature: a subnet's embed_dim, heads and MLP width, and the super sizes around them."""

    embed_dim: int
    num_heads: int
    hidden_dim: int
    super_embed_dim: int
    super_num_heads: int
    super_hidden_dim: int
    head_dim: int
    tokens: int


def layers(space: SearchSpace) -> Iterator[Layer]:
    """Every embed_dim x heads x MLP width that a block of the space can have (12, 27, 18 for T, S, B)."""
    for embed_dim in space.embed_dim:
        for heads in space.num_heads:
            for ratio in space.mlp_ratio:
                yield Layer(
                    embed_dim,
                    heads,
                    int(embed_dim * ratio),
                    space.super_embed_dim,
                    space.super_num_heads,
                    int(space.super_embed_dim * space.super_mlp_ratio),
                    space.head_dim,
                    space.num_tokens,
                )


def run_layer(layer: Layer, batch: int, activations: torch.dtype, weights: torch.dtype) -> None:
    """Launch every kernel of one block, forward and backward, on tensors without values, in ``recording``."""

    def tensor(*shape: int, dtype: torch.dtype = activations) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    m, d, width = batch * layer.tokens, layer.embed_dim, layer.num_heads * layer.head_dim
    super_width = layer.super_num_heads * layer.head_dim
    for x_dtype in dict.fromkeys((activations, torch.float32)):  # the residual stream is fp32 under autocast
        x, scale = tensor(m, d, dtype=x_dtype), tensor(layer.super_embed_dim, dtype=weights)
        _, mean, rstd = layer_norm.layer_norm_forward(x, scale, scale, 1e-5, activations)
        layer_norm.layer_norm_backward(tensor(m, d), x, scale, scale, mean, rstd)

    x = tensor(batch, layer.tokens, d)
    weight = tensor(3 * super_width, layer.super_embed_dim, dtype=weights)
    bias = tensor(3 * super_width, dtype=weights)
    dqkv = qkv.qkv_forward(x, weight, bias, layer.num_heads, layer.head_dim)
    qkv.qkv_backward_input(dqkv, weight, d)
    qkv.qkv_backward_weight(dqkv, x, weight, bias)

    for k, n, k_max, n_max in (
        (width, d, super_width, layer.super_embed_dim),
        (d, layer.hidden_dim, layer.super_embed_dim, layer.super_hidden_dim),
        (layer.hidden_dim, d, layer.super_hidden_dim, layer.super_embed_dim),
    ):
        x = tensor(m, k)
        weight, bias = tensor(n_max, k_max, dtype=weights), tensor(n_max, dtype=weights)
        dy = linear.linear_forward(x, weight, bias, n)
        linear.linear_backward_input(dy, weight, k)
        linear.linear_backward_weight(dy, x, weight, bias)


def variants(
    capability: int, dtypes: Iterable[str] = tuple(DTYPES), spaces: Iterable[str] = SPACES
) -> dict[str, launch.Variant]:
    """Everything the launchers would compile for these spaces and dtypes.

    Args:
        capability: 80, 90, ...
        dtypes: keys of :data:`DTYPES`.
        spaces: names or files, as ``load_space`` takes them.

    Returns:
        The variants by their unique key.
    """
    before = torch.get_float32_matmul_precision()
    try:
        with launch.recording(capability) as found:
            for name in dtypes:
                activations, weights, precision = DTYPES[name]
                torch.set_float32_matmul_precision(precision)
                for space in spaces:
                    for layer in layers(load_space(space)):
                        for batch in BATCHES:
                            run_layer(layer, batch, activations, weights)
    finally:
        torch.set_float32_matmul_precision(before)
    return found


def compile_variant(variant: launch.Variant, capability: int) -> dict[str, Any]:
    """Compile one variant and read back what it uses.

    Returns:
        kernel, arch, dtypes, constexprs, warps, stages; registers per thread, stack bytes per thread, shared
        bytes per block, and the numbers of ``mma`` and ``wgmma`` instructions in the PTX.

    Raises:
        GrowtasError: the compiler's tool that reads binaries failed.
    """
    source = ASTSource(
        launch.KERNELS[variant.kernel], dict(variant.signature), dict(variant.constants), dict(variant.attrs)
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=dict(variant.options))
    ptx = compiled.asm["ptx"]
    return {
        "kernel": variant.kernel,
        "arch": f"sm_{capability}",
        "dtypes": variant.dtypes(),
        "constexprs": {k: v for k, v in variant.constexprs().items() if v is not None},
        "warps": variant.options["num_warps"],
        "stages": variant.options["num_stages"],
        **_binary_resources(compiled.asm["cubin"]),
        "shared": compiled.metadata.shared,
        "mma": len(re.findall(r"\bmma\.sync", ptx)),
        "wgmma": len(re.findall(r"\bwgmma\.mma_async", ptx)),
        "widest_load_bytes": _widest_copy(ptx),
    }


def _widest_copy(ptx: str) -> int:
    """Bytes of the widest asynchronous copy from global to shared memory; 0 where there is none."""
    return max(
        (
            int(size, 16)
            for size in re.findall(r"cp\.async\.c[ag]\.shared\.global [^;]*?, 0x([0-9a-f]+)", ptx)
        ),
        default=0,
    )


def _binary_resources(cubin: bytes) -> dict[str, int]:
    """Registers and stack of a CUDA binary, read by the cuobjdump that comes with Triton."""
    tool = triton.knobs.nvidia.cuobjdump.path
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=False)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", done.stdout)
    if not found:
        raise GrowtasError(
            f"{tool} could not read a compiled kernel: {done.stderr.strip() or done.stdout.strip()}"
        )
    return {"registers": int(found[1]), "stack": int(found[2]) + int(found[4])}


def sources_digest() -> str:
    """SHA-256 over the code that decides what is compiled; equal digests mean that a table is up to date.

    Docstrings, comments and blank space do not count, so that a better sentence does not cost a compilation.
    """
    digest = hashlib.sha256()
    for name in ("launch", "tiles", "matmul", "linear", "qkv", "layer_norm", "compile_ahead"):
        code = (Path(__file__).parent / f"{name}.py").read_text()
        code = re.sub(r'""".*?"""', "", code, flags=re.DOTALL)
        code = re.sub(r"(^|\s)#.*$", "", code, flags=re.MULTILINE)
        digest.update("\n".join(line.strip() for line in code.splitlines() if line.strip()).encode())
    return digest.hexdigest()


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The worst case of each kernel and architecture, as text."""
    form = "{:26} {:6} {:>8} {:>9} {:>6} {:>10} {:>10} {:>12}"
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
    parser.add_argument("--dtypes", nargs="+", choices=sorted(DTYPES), default=list(DTYPES))
    parser.add_argument("--kernels", default="", help="only kernels whose name contains this")
    parser.add_argument("--cache", help="folder for compiled kernels (default: Triton's own)")
    parser.add_argument("--out", default="benchmarks/results/triton_resources.json")
    parser.add_argument("--print-only", action="store_true", help="do not write the file")
    chosen = parser.parse_args(arguments)
    if chosen.cache:
        os.environ["TRITON_CACHE_DIR"] = chosen.cache
    work = [
        (variant, arch)
        for arch in chosen.arch
        for variant in variants(arch, chosen.dtypes).values()
        if chosen.kernels in variant.kernel
    ]
    rows = [compile_variant(*item) for item in tqdm(work, desc="compiling", unit="kernel", disable=None)]
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
