"""The kernels as Triton compiles them, for GPUs that need not be there: resources, tensor cores, variants.

These run in subprocesses without TRITON_INTERPRET: Triton decides once per process whether it interprets.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from kernel_cases import needs_interpreter

from growtas.kernels import compile_ahead

TABLE = Path(__file__).parents[2] / "benchmarks" / "results" / "triton_resources.json"
MATRIX_KERNELS = {
    f"{module}.{name}"
    for module in ("linear", "qkv")
    for name in ("_forward", "_backward_input", "_backward_weight")
}


def _run(script: str, tmp_path: Path) -> dict:
    """What a script prints as JSON, run in a process where Triton compiles."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path / "triton")
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _check_row(row: dict) -> None:
    """No spills, shared memory within the limit, tensor cores wherever they can be used, wide copies."""
    what = f"{row['kernel']} on {row['arch']} with {row['dtypes']} and {row['constexprs']}"
    assert row["stack"] == 0, f"{what} spills {row['stack']} bytes"
    assert row["shared"] <= compile_ahead.SHARED_LIMIT[int(row["arch"][3:])], what
    assert row["registers"] * row["warps"] * 32 <= 65536, what
    if row["kernel"] not in MATRIX_KERNELS:
        return
    activations = row["dtypes"].get("x_ptr") or row["dtypes"].get("dy_ptr") or row["dtypes"]["dqkv_ptr"]
    precision = row["constexprs"]["PRECISION"] if activations == "fp32" else "half"
    hopper = row["arch"] == "sm_90"
    if precision != "ieee":
        assert row["wgmma" if hopper else "mma"] > 0, f"{what} uses no tensor cores"
    alignments = [value for name, value in row["constexprs"].items() if name in ("ALIGN_N", "ALIGN_K")]
    if min(alignments) == 8:
        # wgmma takes tf32 operands in one orientation only; where a gradient needs the other, Triton 3.9
        # transposes on the way to shared memory, four bytes at a time.
        transposed = hopper and precision == "tf32" and row["kernel"].endswith("_backward_weight")
        assert row["widest_load_bytes"] == (4 if transposed else 16), (
            f"{what}: {row['widest_load_bytes']} bytes"
        )


def test_largest_tiles_compile_without_spills_and_with_tensor_cores(tmp_path):
    """Compiled here and now: of each kernel that could spill, the largest tile, for both GPUs."""
    rows = _run(
        """
import json
from growtas.kernels import compile_ahead

rows = []
for capability in (80, 90):
    largest = {}
    found = compile_ahead.variants(capability, ["bf16-autocast"], ["autoformer-small"])
    for variant in found.values():
        constants = variant.constexprs()
        if variant.kernel.endswith("_add_partials") or variant.kernel == "layer_norm._forward":
            continue
        size = constants["BLOCK_ROWS"] * constants["BLOCK_COLS"] * constants.get("ALIGN_K", 1)
        if size > largest.get(variant.kernel, (0, None))[0]:
            largest[variant.kernel] = (size, variant)
    rows += [compile_ahead.compile_variant(variant, capability) for _, variant in largest.values()]
print(json.dumps(rows))
""",
        tmp_path,
    )
    assert {(row["kernel"], row["arch"]) for row in rows} >= {
        (kernel, arch) for kernel in MATRIX_KERNELS for arch in ("sm_80", "sm_90")
    }
    for row in rows:
        _check_row(row)


def test_committed_table_is_of_these_sources_and_clean():
    """Every variant of every space, dtype and tile, as `python -m growtas.kernels.compile_ahead` left it."""
    table = json.loads(TABLE.read_text())
    assert table["sources_sha256"] == compile_ahead.sources_digest(), (
        "The kernels changed since their table was made. Run: python -m growtas.kernels.compile_ahead"
    )
    assert {row["arch"] for row in table["variants"]} == {"sm_80", "sm_90"}
    assert {row["kernel"] for row in table["variants"]} > MATRIX_KERNELS
    for row in table["variants"]:
        _check_row(row)


#: Variants of each kernel over T, S and B, any subnet, any batch size, bf16 activations with fp32 parameters:
#: committed tiles (3) x classes of alignment that the widths reach, x final or partial output.
BOUND = {
    "layer_norm._forward": 3 * 2,
    "layer_norm._backward": 3 * 2,
    "layer_norm._add_partials": 1,
    "linear._forward": 3 * 3,
    "linear._backward_input": 3 * 3,
    "linear._backward_weight": 3 * 3 * 2,
    "matmul._add_partials": 2,
    "qkv._forward": 3,
    "qkv._backward_input": 3,
    "qkv._backward_weight": 3 * 2,
}


def test_variants_do_not_grow_with_the_number_of_subnets(tmp_path):
    """200 random layers of T, S and B at random batch sizes; then 100 of arbitrary widths."""
    found = _run(
        """
import json, random
import torch
from growtas.kernels import compile_ahead as ahead, launch
from growtas.space import load_space

rng = random.Random(0)
pools = [list(ahead.layers(load_space(name))) for name in ahead.SPACES]
with launch.recording(90) as found:
    for step in range(200):
        ahead.run_layer(rng.choice(rng.choice(pools)), rng.randint(1, 512), torch.bfloat16, torch.float32)
    kernels = [variant.kernel for variant in found.values()]
with launch.recording(90) as found:
    for step in range(100):
        d, h, m = rng.randint(1, 640), rng.randint(1, 10), rng.randint(1, 2560)
        layer = ahead.Layer(d, h, m, 640, 10, 2560, 64, 197)
        ahead.run_layer(layer, rng.randint(1, 512), torch.bfloat16, torch.float32)
    arbitrary = [variant.kernel for variant in found.values()]
print(json.dumps({"kernels": kernels, "arbitrary": arbitrary}))
""",
        tmp_path,
    )
    kernels = Counter(found["kernels"])
    assert kernels.keys() == BOUND.keys()
    for kernel, count in kernels.items():
        assert count <= BOUND[kernel], f"{kernel} has {count} variants, more than {BOUND[kernel]}"
    for kernel, count in Counter(found["arbitrary"]).items():
        # one class of alignment more per width: three for each of K and N, and for the gradient's rows
        limits = {"layer_norm": 7 * 3 * 2, "linear": 3 * 3 * 3 * 2, "qkv": 3 * 3 * 2, "matmul": 3}
        limit = limits[kernel.split(".")[0]]
        assert count <= limit, f"{kernel} has {count} variants for arbitrary widths, more than {limit}"


@needs_interpreter
def test_interpreted_kernels_have_no_variants():
    from growtas import kernels
    from growtas.errors import UsageError
    from growtas.kernels import launch

    assert set(kernels.compiled_variants().values()) == {0}
    with pytest.raises(UsageError, match="without TRITON_INTERPRET"), launch.recording(90):
        pass
