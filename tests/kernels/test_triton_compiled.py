"""The kernels as Triton compiles them, for GPUs that need not be there: resources, tensor cores, variants.

These run in subprocesses without TRITON_INTERPRET: Triton decides once per process whether it interprets.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from kernel_cases import needs_interpreter

from growtas.kernels import compile_ahead, compiled_code

TABLE = Path(__file__).parents[2] / "benchmarks" / "results" / "triton_resources.json"
#: Every kernel that makes matrix products -> the pointer whose dtype is that of the products.
MATRIX_KERNELS = {
    "linear._forward": "x_ptr",
    "linear_backward._input": "dx_ptr",
    "linear_backward._weight": "x_ptr",
    "qkv._forward": "x_ptr",
    "qkv_backward._input": "dqkv_ptr",
    "qkv_backward._weight": "dqkv_ptr",
    "norm_qkv._forward_held": "qkv_ptr",
    "norm_qkv._forward_tiled": "qkv_ptr",
    "norm_qkv_backward._input": "dqkv_ptr",
    "relative_attention_forward._forward": "qkv_ptr",
    "relative_attention_backward._backward_queries": "qkv_ptr",
    "relative_attention_backward._backward_keys": "qkv_ptr",
    "mlp_fused._forward": "z_ptr",
    "mlp_fused_backward._backward": "z_ptr",
}
#: Of these, the ones whose operands all come from asynchronous copies, 16 bytes wide where rows allow it.
COPYING = {name for name in MATRIX_KERNELS if name.split(".")[0].split("_")[0] in ("linear", "qkv", "norm")}


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
        timeout=500,
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
    products = row["dtypes"][MATRIX_KERNELS[row["kernel"]]]
    precision = row["constexprs"]["PRECISION"] if products == "fp32" else "half"
    hopper = row["arch"] == "sm_90"
    if precision != "ieee":
        # wgmma takes 64 rows from four warps; smaller tiles, and warps side by side, use mma.
        small = row["kernel"].endswith(("mlp_fused_backward._backward", "._backward_queries"))
        found = row["wgmma"] + (row["mma"] if small else 0) if hopper else row["mma"]
        assert found > 0, f"{what} uses no tensor cores"
    alignments = [value for name, value in row["constexprs"].items() if name in ("ALIGN_N", "ALIGN_K")]
    if row["kernel"] in COPYING and min(alignments) == 8:
        # wgmma takes tf32 operands in one orientation only; where a gradient needs the other, Triton 3.9
        # transposes on the way to shared memory, four bytes at a time.
        transposed = hopper and precision == "tf32" and row["kernel"].endswith("_backward._weight")
        assert row["widest_load_bytes"] >= (4 if transposed else 16), (
            f"{what}: {row['widest_load_bytes']} bytes"
        )


def test_largest_tiles_compile_without_spills_and_with_tensor_cores(tmp_path):
    """Compiled here and now: of the products, the largest tile of each kernel, for both GPUs.

    Attention and the fused MLP are held to the same in their own tests.
    """
    rows = _run(
        """
import json
from growtas.kernels import compile_ahead, compiled_code

rows = []
for capability in (80, 90):
    largest = {}
    found = compile_ahead.variants(capability, ["bf16-autocast"], ["autoformer-tiny"])
    for variant in found.values():
        if not variant.kernel.startswith(("linear", "qkv", "norm_qkv", "layer_norm._backward")):
            continue
        constants = variant.constexprs()
        size = constants["BLOCK_ROWS"] * constants["BLOCK_COLS"] * constants.get("ALIGN_K", 1)
        if size > largest.get(variant.kernel, (0, None))[0]:
            largest[variant.kernel] = (size, variant)
    rows += [compile_ahead.compile_variant(variant, capability) for _, variant in largest.values()]
print(json.dumps(rows))
""",
        tmp_path,
    )
    assert {(row["kernel"], row["arch"]) for row in rows} >= {
        (kernel, arch) for kernel in COPYING for arch in ("sm_80", "sm_90")
    }
    for row in rows:
        _check_row(row)


#: Products that nothing else of the loop depends on: their operands come from copies, their sums stay.
PLAIN = ("linear._forward", "linear_backward._input", "linear_backward._weight", "norm_qkv_backward._input")


def test_16_bit_main_loops_on_sm_90_overlap_products_and_copies(tmp_path):
    """With 16-bit weights in memory, no wait of a main loop is for all products or all copies under way."""
    rows = _run(
        """
import json
from growtas.kernels import compile_ahead

rows, seen = [], set()
for variant in compile_ahead.variants(90, ["bf16-shadow"], ["autoformer-tiny"]).values():
    operands = [kind for name, kind in variant.dtypes().items() if name in ("x_ptr", "dy_ptr", "dqkv_ptr")]
    form = (variant.kernel, *variant.dtypes())
    plain = variant.kernel.startswith(("linear", "norm_qkv_backward")) and operands[0] == "bf16"
    if form in seen or not (plain or variant.kernel == "mlp_fused._forward"):
        continue
    seen.add(form)
    rows.append(compile_ahead.compile_variant(variant, 90))
print(json.dumps(rows))
""",
        tmp_path,
    )
    assert {row["kernel"] for row in rows} == {*PLAIN, "mlp_fused._forward"}
    for row in rows:
        what = f"{row['kernel']} with {row['dtypes']} and {row['constexprs']}"
        assert row["stack"] == 0 and row["wgmma"] > 0, what
        assert not row["serialised"], f"ptxas serialises the wgmmas of {what}"
        assert row["loop_copies"] >= 1, f"{what} waits for every copy"
        if row["kernel"] in PLAIN:  # the fused MLP needs each chunk of h at once, for GELU
            assert row["loop_pendings"] >= 1, f"{what} waits for every product"


def test_waits_are_read_off_the_loops_only():
    text = """
  tt.func public @kernel() {
    ttg.async_wait {num = 0 : i32}
    %0 = scf.for %i = %a to %b step %c iter_args(%x = %y) -> (f32)  : i32 {
      %1 = ttg.async_wait %t {num = 4 : i32}
      %2:2 = ttng.warp_group_dot_wait %d, %e {pendings = 1 : i32} : f32, f32
      scf.if %p {
        %3 = ttg.async_wait %t {num = 2 : i32}
      } else {
      }
      scf.yield %x : f32
    } {tt.num_stages = 3 : i32}
    %4 = ttng.warp_group_dot_wait %0 {pendings = 0 : i32} : f32
    tt.return
  }
"""
    assert compiled_code.loop_waits(text) == {"loop_pendings": 1, "loop_copies": 2}
    assert compiled_code.loop_waits("") == {"loop_pendings": None, "loop_copies": None}


def test_ptxas_is_named_and_an_old_one_noticed(tmp_path, monkeypatch):
    tool = tmp_path / "ptxas"
    for release, noticed in (("12.8", True), ("13.2", True), ("13.3", False), ("14.0", False)):
        tool.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{release}.93'\n")
        tool.chmod(0o755)
        monkeypatch.setenv("TRITON_PTXAS_PATH", str(tool))
        assert compiled_code.ptxas_version() == tuple(int(part) for part in release.split("."))
        notice = compiled_code.ptxas_notice(90)
        assert (notice is not None) == noticed
        assert not noticed or (release in notice and "TRITON_PTXAS_PATH" in notice)
        assert compiled_code.ptxas_notice(80) is None


def test_committed_table_is_of_these_sources_and_clean():
    """Every variant of every space, dtype and tile, as `python -m growtas.kernels.compile_ahead` left it."""
    table = json.loads(TABLE.read_text())
    assert table["sources_sha256"] == compile_ahead.sources_digest(), (
        "The kernels changed since their table was made. Run: python -m growtas.kernels.compile_ahead"
    )
    assert {row["arch"] for row in table["variants"]} == {"sm_80", "sm_90"}
    assert {row["kernel"] for row in table["variants"]} > set(MATRIX_KERNELS)
    for row in table["variants"]:
        _check_row(row)


#: Variants of each kernel that any subnet of T, S and B can launch, at any batch size, under bf16 autocast
#: (parameters and residual stream in fp32): forms of the kernel x tiles x classes of alignment that widths
#: reach (8, and 4 for 756 hidden units).
BOUND = {
    "layer_norm._forward": 3,  # rows padded to 256, 512 and 1024
    "layer_norm._backward": 3 + 2,  # and with the gradient of a residual, where it is no part of the product
    "linear._forward": 3 * 3 + 3 + 3,  # plain, to and from 756 units as well; GELU; residual
    "linear_backward._input": 3 * 3 + 3 + 2,  # plain likewise; from an fp32 stream; through GELU
    "linear_backward._weight": 3 * 3 + 3 + 3,  # plain likewise; from an fp32 stream, with factors and without
    "qkv._forward": 3,
    "qkv_backward._input": 3,
    "qkv_backward._weight": 3 + 3,  # x as it is; normalised on load
    "norm_qkv._forward_held": 1,
    "norm_qkv._forward_tiled": 3,
    "norm_qkv_backward._input": 1,
    "mlp._normalise": 2,
    "mlp_fused._forward": 2 * 2 * 2,
    "mlp_fused_backward._backward": 2 * 2 * 2,
    "relative_attention_forward._forward": 1,
    "relative_attention_backward._backward_queries": 1,
    "relative_attention_backward._backward_keys": 1,
    "relative_attention_backward._add_tables": 1,
}


def test_1000_subnets_of_each_space_launch_a_bounded_set_of_variants(tmp_path):
    """Blocks of 3,000 random subnets at random batch sizes: few variants, all of them compiled ahead."""
    found = _run(
        """
import json, random
from collections import Counter
import torch
from growtas.kernels import compile_ahead as ahead, launch
from growtas.space import load_space

rng = random.Random(0)
ahead_of_time = set(ahead.variants(90, ["bf16-autocast"]))
subnets, signatures = 0, set()
with launch.recording(90) as found:
    for name in ahead.SPACES:
        space = load_space(name)
        for _ in range(1000):
            subnet = space.sample(rng)
            signatures.update(ahead.subnet_layers(space, subnet))
            subnets += 1
    for layer in sorted(signatures, key=str):
        for batch in (rng.randint(1, 16), rng.randint(17, 128), rng.randint(129, 600)):
            ahead.run_layer(layer, batch, torch.bfloat16, torch.float32)
    variants = Counter(variant.kernel for variant in found.values())
print(json.dumps({
    "subnets": subnets, "signatures": len(signatures), "variants": variants,
    "unforeseen": sorted(set(found) - ahead_of_time),
}))
""",
        tmp_path,
    )
    assert found["subnets"] == 3000 and found["signatures"] <= 12 + 27 + 18
    assert not found["unforeseen"]
    assert found["variants"].keys() == BOUND.keys()
    for kernel, count in found["variants"].items():
        assert count <= BOUND[kernel], f"{kernel} has {count} variants, more than {BOUND[kernel]}"


def test_arbitrary_widths_do_not_add_variants_without_end(tmp_path):
    """40 blocks of widths that no space has: one more class of alignment per width, and no more."""
    found = _run(
        """
import json, random
from collections import Counter
import torch
from growtas.kernels import compile_ahead as ahead, launch

rng = random.Random(0)
with launch.recording(90) as found:
    for step in range(40):
        d, h, m = rng.randint(1, 640), rng.randint(1, 10), rng.randint(1, 2560)
        layer = ahead.Layer(d, h, m, 640, 10, 2560, 64, 197)
        ahead.run_layer(layer, rng.randint(1, 512), torch.bfloat16, torch.float32)
print(json.dumps(Counter(variant.kernel for variant in found.values())))
""",
        tmp_path,
    )
    # Rows padded to 16 ... 1024 x classes of alignment; tiles x classes of K x classes of N x forms.
    limits = {
        "layer_norm": 7 * 3 * 2, "mlp": 7 * 3, "linear": 3 * 9 * 3, "linear_backward": 3 * 9 * 4,
        "qkv": 3 * 3, "qkv_backward": 3 * 3 * 2, "norm_qkv": 3 * 3, "norm_qkv_backward": 3,
        "mlp_fused": 3 * 9 * 4, "mlp_fused_backward": 3 * 9 * 4,
        "relative_attention_forward": 1, "relative_attention_backward": 1,
    }  # fmt: skip
    for kernel, count in found.items():
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
