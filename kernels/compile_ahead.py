"""Compile every kernel for GPUs that need not be there, and tabulate what each variant uses.

    python -m growtas.kernels.compile_ahead --jobs 2           # all of it, into benchmarks/results/
    python -m growtas.kernels.compile_ahead --dtypes bf16 --arch 90 --print-only

The variants are not listed by hand: the launchers run on tensors without values, for every layer signature of
the AutoFormer spaces, small and large batches and every dtype, and ``launch.recording`` notes what they would
compile. Each is then compiled by Triton and ptxas, and read back: registers, stack (spills and local arrays),
shared memory, and the tensor-core instructions of the PTX (``mma.sync`` on sm_80, ``wgmma.mma_async`` on
sm_90). Of sm_90's loops it tells whether products and copies overlap: the fewest products that a wait leaves
running (``loop_pendings``; 0: one is waited for at once), the fewest copies that a wait leaves under way
(``loop_copies``), and whether ptxas serialises the wgmmas of the kernel (``serialised``, remarks from C7510
on), which costs more than either.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

import torch
import triton
from tqdm import tqdm
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from growtas import atomic
from growtas.kernels import launch, layer_norm, linear, mlp, qkv, relative_attention
from growtas.kernels.compiled_code import binary_resources, loop_waits, serialised, widest_copy
from growtas.space import SearchSpace, load_space
from growtas.subnet import Subnet

SPACES = ("autoformer-tiny", "autoformer-small", "autoformer-base")
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
#: Around the blocks: classes of the head, and numbers in a patch of 16 x 16 pixels.
CLASSES, PATCH = 1000, 768
#: Shared memory one block may use, in bytes, by compute capability.
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}
#: name -> (activations, weights, float32_matmul_precision)
DTYPES = {
    "bf16": (torch.bfloat16, torch.bfloat16, "highest"),
    "bf16-shadow": (torch.bfloat16, torch.bfloat16, "highest"),
    "bf16-autocast": (torch.bfloat16, torch.float32, "highest"),
    "fp16-autocast": (torch.float16, torch.float32, "highest"),
    "fp32": (torch.float32, torch.float32, "highest"),
    "tf32": (torch.float32, torch.float32, "high"),
}
#: name -> dtype of parameters that are no matrices, where it is not that of the weights.
VECTORS = {"bf16-shadow": torch.float32}


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


def subnet_layers(space: SearchSpace, subnet: Subnet) -> Iterator[Layer]:
    """The signature of every block of a subnet."""
    for heads, hidden_dim in zip(subnet.num_heads, subnet.hidden_dims, strict=True):
        yield Layer(
            subnet.embed_dim,
            heads,
            hidden_dim,
            space.super_embed_dim,
            space.super_num_heads,
            int(space.super_embed_dim * space.super_mlp_ratio),
            space.head_dim,
            space.num_tokens,
        )


def run_layer(
    layer: Layer,
    batch: int,
    activations: torch.dtype,
    weights: torch.dtype,
    vectors: torch.dtype | None = None,
) -> None:
    """Launch what a block and its surroundings launch, both ways, on tensors without values, while recording.

    Both branches as ``growtas.ops`` runs them, with drop-path factors and without; the LayerNorm, head and
    patch embedding around them; and the operations that are public but not part of a block. The residual
    stream has the wider of the two dtypes, as under autocast.

    Args:
        layer: the sizes of a block.
        batch: images.
        activations, weights: their dtypes; weights are matrices.
        vectors: of biases, LayerNorm's parameters and attention's tables; None means that of the weights.
            Beside 16-bit shadows of fp32 weights, these are fp32, and so is the residual stream.
    """
    vectors = vectors or weights

    def tensor(*shape: int, dtype: torch.dtype = activations) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    def parameter(*shape: int) -> torch.Tensor:
        return tensor(*shape, dtype=vectors if len(shape) == 1 else weights)

    n, d, width = layer.tokens, layer.embed_dim, layer.num_heads * layer.head_dim
    m, d_max, width_max = batch * n, layer.super_embed_dim, layer.super_num_heads * layer.head_dim
    x = tensor(batch, n, d, dtype=torch.promote_types(activations, vectors))
    rows, norm = x.view(m, d), parameter(d_max)
    weight, bias = parameter(3 * width_max, d_max), parameter(3 * width_max)
    proj, proj_bias = parameter(d_max, width_max), parameter(d_max)
    w1, b1 = parameter(layer.super_hidden_dim, d_max), parameter(layer.super_hidden_dim)
    w2, b2 = parameter(d_max, layer.super_hidden_dim), parameter(d_max)
    side = isqrt(n)
    tables = [tensor(2 * side + 2, layer.head_dim, dtype=vectors) for _ in range(4)]
    for scale in (None, tensor(batch, dtype=torch.float32)):
        heads, mean, rstd = qkv.norm_qkv_forward(
            x, norm, norm, 1e-5, weight, bias, layer.num_heads, layer.head_dim, "interleaved", activations
        )
        attended, lse = relative_attention.relative_attention_forward(heads, *tables, (side, side))
        merged = attended.view(m, width)
        linear.linear_residual_forward(merged, proj, proj_bias, rows, scale, n)
        linear.linear_backward_weight(rows, merged, proj, proj_bias, scale, n)
        dattended = linear.linear_backward_input(rows, proj, width, scale, n, activations)
        dqkv, *_ = relative_attention.relative_attention_backward(
            dattended.view(attended.shape), heads, *tables, attended, lse, (side, side)
        )
        qkv.norm_qkv_backward(dqkv, x, mean, rstd, norm, norm, weight, bias, "interleaved", x)
        hidden_dim = layer.hidden_dim
        _, mean, rstd, hidden = mlp.mlp_forward(
            rows, norm, norm, 1e-5, w1, b1, w2, b2, hidden_dim, scale, n, activations
        )
        mlp.mlp_backward(
            rows, rows, mean, rstd, hidden, norm, norm, w1, b1, w2, b2, hidden_dim, scale, n, activations
        )

    _, mean, rstd = layer_norm.layer_norm_forward(rows, norm, norm, 1e-5, activations)
    layer_norm.layer_norm_backward(tensor(m, d), rows, norm, norm, mean, rstd)
    dqkv = qkv.qkv_forward(tensor(batch, n, d), weight, bias, layer.num_heads, layer.head_dim)
    qkv.qkv_backward_input(dqkv, weight, d)
    qkv.qkv_backward_weight(dqkv, tensor(batch, n, d), weight, bias)
    head, patches = (parameter(CLASSES, d_max), parameter(CLASSES)), (parameter(d_max, PATCH), proj_bias)
    for count, k, out, (matrix, shift) in (
        (batch, d, CLASSES, head),
        (m, PATCH, d, patches),
        (m, width, d, (proj, proj_bias)),
        (m, d, layer.hidden_dim, (w1, b1)),
        (m, layer.hidden_dim, d, (w2, b2)),
    ):
        y = linear.linear_forward(tensor(count, k), matrix, shift, out)
        linear.linear_backward_input(y, matrix, k)
        linear.linear_backward_weight(y, tensor(count, k), matrix, shift)


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
                            run_layer(layer, batch, activations, weights, VECTORS.get(name))
    finally:
        torch.set_float32_matmul_precision(before)
    return found


def compile_variant(variant: launch.Variant, capability: int) -> dict[str, Any]:
    """Compile one variant and read back what it uses.

    Returns:
        kernel, arch, dtypes, constexprs, warps, stages; registers per thread, stack bytes per thread, shared
        bytes per block, the numbers of ``mma`` and ``wgmma`` instructions in the PTX; ``loop_pendings``,
        ``loop_copies`` (:func:`loop_waits`) and ``serialised``.

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
        **binary_resources(compiled.asm["cubin"]),
        "shared": compiled.metadata.shared,
        "mma": len(re.findall(r"\bmma\.sync", ptx)),
        "wgmma": len(re.findall(r"\bwgmma\.mma_async", ptx)),
        "widest_load_bytes": widest_copy(ptx),
        **loop_waits(compiled.asm["ttgir"]),
        "serialised": serialised(ptx, capability),
    }


_mine: dict[int, dict[str, launch.Variant]] = {}


def _record_in_worker(capabilities: Sequence[int], dtypes: Sequence[str], cache: str | None) -> None:
    """In every compiling process: find the variants again, because kernels cannot be sent to it."""
    if cache:
        os.environ["TRITON_CACHE_DIR"] = cache
    _mine.update({capability: variants(capability, dtypes) for capability in capabilities})


def _compile_in_worker(item: tuple[str, int]) -> dict[str, Any]:
    key, capability = item
    return compile_variant(_mine[capability][key], capability)


def _compile_all(
    work: Sequence[tuple[launch.Variant, int]], dtypes: Sequence[str], cache: str | None, jobs: int
) -> list[dict[str, Any]]:
    """The resources of every variant, in order, compiled by ``jobs`` processes."""
    shown = {"desc": "compiling", "unit": "kernel", "disable": None, "total": len(work)}
    if jobs == 1:
        return [compile_variant(*item) for item in tqdm(work, **shown)]
    capabilities = sorted({capability for _, capability in work})
    with multiprocessing.get_context("spawn").Pool(
        jobs, _record_in_worker, (capabilities, dtypes, cache)
    ) as pool:
        items = [(variant.key, capability) for variant, capability in work]
        return list(tqdm(pool.imap(_compile_in_worker, items), **shown))


def sources_digest() -> str:
    """SHA-256 over the code that decides what is compiled; equal digests mean that a table is up to date.

    Docstrings, comments and blank space do not count, so that a better sentence does not cost a compilation.
    """
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
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
    parser.add_argument("--dtypes", nargs="+", choices=sorted(DTYPES), default=list(DTYPES))
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
        for variant in variants(arch, chosen.dtypes).values()
        if chosen.kernels in variant.kernel
    ]
    rows = _compile_all(work, chosen.dtypes, chosen.cache, chosen.jobs)
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
