"""The kernels as Triton compiles them, for GPUs that need not be there: resources, tensor cores, variants.

A few variants are compiled here and now; the committed tables hold all of them, for two versions of Triton.
Compiling happens in processes without TRITON_INTERPRET (tests/compiling.py).
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from kernel_cases import needs_interpreter

from growtas.kernels import compile_ahead, compiled_code

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
#: Tables by two versions of Triton: the newest that torch brings, and that of torch 2.11.
TABLES = ("triton_resources.json", "triton_resources_3.6.json")
ARCHES = {"sm_80", "sm_90"}
#: Every kernel with matmuls -> the pointer whose dtype is that of the matmuls.
MATRIX_KERNELS = {
    "linear.forward._forward": "x_ptr",
    "linear.backward._input": "dx_ptr",
    "linear.backward._weight": "x_ptr",
    "linear.backward_converting._input": "dx_ptr",
    "linear.backward_pair._weights": "x1_ptr",
    "qkv.forward._forward": "x_ptr",
    "qkv.backward._input": "dqkv_ptr",
    "qkv.backward._weight": "dqkv_ptr",
    "norm_qkv.forward._forward_held": "qkv_ptr",
    "norm_qkv.forward._forward_tiled": "qkv_ptr",
    "norm_qkv.backward._input": "dqkv_ptr",
    "relative_attention.forward._forward": "qkv_ptr",
    "relative_attention.two_pass._backward_queries": "qkv_ptr",
    "relative_attention.two_pass._backward_keys": "qkv_ptr",
    "mlp.fused_forward._forward": "z_ptr",
    "mlp.fused_backward._backward": "z_ptr",
}
#: The others that training launches.
ROW_KERNELS = {
    "layer_norm.forward._forward",
    "layer_norm.backward._backward",
    "layer_norm.normalise._normalise",
    "common.rows._rows",
    "pooled_norm.forward._forward",
    "pooled_norm.backward._backward",
    "tokens.forward._forward",
    "tokens.backward._backward",
    "shadow._cast",
}
WEIGHT_GRADIENTS = ("linear.backward._weight", "linear.backward_pair._weights", "qkv.backward._weight")
#: Of the first, the ones whose operands all come from asynchronous copies, 16 bytes wide where rows allow it.
COPYING = {name for name in MATRIX_KERNELS if name.split(".")[0].split("_")[0] in ("linear", "qkv", "norm")}


@pytest.fixture
def run(run_script, tmp_path):
    """Runs a script in a process where Triton compiles, and reads the JSON that it prints."""

    def run(script: str) -> dict:
        done = run_script(script, TRITON_CACHE_DIR=str(tmp_path / "triton"))
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


MATMULS, COPIES, SERIALISED = "waits for every matmul", "waits for every copy", "is serialised"
#: (kernel, what it waits for) -> why, of 16-bit matmuls whose operands are 16 bits in memory.
EXCEPTIONS = {
    ("norm_qkv.forward._forward_held", MATMULS): "the sums of each step are final, and stored at once",
    ("norm_qkv.forward._forward_held", COPIES): "two stages: the held rows leave no room for a third",
    (
        "norm_qkv.forward._forward_tiled",
        SERIALISED,
    ): "few rows: the operand made on load goes through registers",
    (
        "qkv.backward._weight, normalising",
        MATMULS,
    ): "the operand made on load has one place",
    ("mlp.fused_forward._forward", MATMULS): "GELU needs each chunk of h at once",
    ("mlp.fused_forward._forward", COPIES): "sm_80: two stages, for the 99 KiB of the smallest parts",
    ("mlp.fused_backward._backward", MATMULS): "GELU needs each chunk of h at once",
    ("mlp.fused_backward._backward", COPIES): "two stages: sums and two chunks of weights leave no room",
    ("relative_attention.forward._forward", MATMULS): "the softmax needs the scores of each step at once",
    ("relative_attention.forward._forward", COPIES): "sm_80: two stages",
    ("relative_attention.two_pass._backward_queries", MATMULS): "the softmax needs each step's scores",
    ("relative_attention.two_pass._backward_queries", COPIES): "two stages",
    ("relative_attention.two_pass._backward_keys", MATMULS): "the softmax needs each step's scores",
    ("relative_attention.two_pass._backward_keys", COPIES): "sm_80: two stages",
}


#: The same of the newest Triton alone.
NEWEST = {
    (
        "linear.backward._weight",
        SERIALISED,
    ): "756 units of dy and their sum for the bias",
    ("relative_attention.forward._forward", SERIALISED): "every matmul is waited for as it is",
    ("mlp.fused_backward._backward", SERIALISED): "756 hidden units: every register is in use",
}
#: (kernel, GPU, operands) -> bytes that a variant may spill. All but the last are of ways to train that are
#: not the default; the last has 756 hidden units, in Triton 3.9 alone.
SPILLS = {
    ("norm_qkv.forward._forward_held", "sm_90", "fp32 weights"): 8,
    ("mlp.fused_forward._forward", "sm_90", "fp32 weights"): 8,
    ("relative_attention.forward._forward", "sm_80", "ieee"): 8,
    ("relative_attention.two_pass._backward_keys", "sm_80", "tf32"): 16,
    ("mlp.fused_backward._backward", "sm_90", "16 bits"): 8,
}


def _dtype(row: dict) -> str:
    """The dtype of a kernel's matmuls."""
    return row["dtypes"][MATRIX_KERNELS[row["kernel"]]]


def _form(row: dict) -> str:
    """The kernel, and whether one that has both forms normalises its rows on load."""
    normalising = row["kernel"] == "qkv.backward._weight" and "mean_ptr" in row["dtypes"]
    return row["kernel"] + (", normalising" if normalising else "")


def _reads_fp32_weights(row: dict) -> bool:
    """Of 16-bit matmuls: whether they convert weights on load, which only graphs of torch.compile have."""
    return "fp32" in (row["dtypes"].get("weight_ptr"), row["dtypes"].get("w1_ptr"))


def _operands(row: dict) -> tuple[str, str, str]:
    """The kernel, the GPU, and how a kernel that makes matmuls does so."""
    if row["kernel"] not in MATRIX_KERNELS:
        return row["kernel"], row["arch"], "rows"
    half = "fp32 weights" if _reads_fp32_weights(row) else "16 bits"
    fp32 = _dtype(row) == "fp32"
    return row["kernel"], row["arch"], row["constexprs"]["PRECISION"] if fp32 else half


def _flaws(row: dict) -> set[str]:
    """The flaws of a main loop: waits for everything, and serialised matmuls."""
    found = {
        MATMULS: row["loop_pendings"] == 0,
        COPIES: row["loop_copies"] == 0,
        SERIALISED: row["serialised"],
    }
    return {flaw for flaw, there in found.items() if there}


def _check_row(row: dict) -> None:
    """No spills, shared memory within the limit, tensor cores wherever they can be used, wide copies."""
    what = f"{row['kernel']} on {row['arch']} with {row['dtypes']} and {row['constexprs']}"
    assert row["stack"] <= SPILLS.get(_operands(row), 0), f"{what} spills {row['stack']} bytes"
    assert row["shared"] <= compile_ahead.SHARED_LIMIT[int(row["arch"][3:])], what
    assert row["registers"] * row["warps"] * 32 <= 65536, what
    if row["kernel"] not in MATRIX_KERNELS:
        return
    matmuls = _dtype(row)
    precision = row["constexprs"]["PRECISION"] if matmuls == "fp32" else "half"
    hopper = row["arch"] == "sm_90"
    if precision != "ieee":
        # wgmma takes 64 rows from four warps; smaller tiles, and warps side by side, use mma.
        small = row["kernel"].endswith(("mlp.fused_backward._backward", "._backward_queries"))
        found = row["wgmma"] + (row["mma"] if small else 0) if hopper else row["mma"]
        assert found > 0, f"{what} uses no tensor cores"
    alignments = [value for name, value in row["constexprs"].items() if name in ("ALIGN_N", "ALIGN_K")]
    if row["kernel"] in COPYING and min(alignments) == 8:
        # wgmma takes tf32 operands in one orientation only; where a gradient needs the other, Triton 3.9
        # transposes on the way to shared memory, four bytes at a time.
        transposed = hopper and precision == "tf32" and row["kernel"] in WEIGHT_GRADIENTS
        assert row["widest_load_bytes"] >= (4 if transposed else 16), (
            f"{what}: {row['widest_load_bytes']} bytes"
        )


#: GEMMs that nothing else of the loop depends on: their operands come from copies, their sums stay.
PLAIN = (
    "linear.forward._forward",
    "linear.backward._weight",
    "linear.backward_pair._weights",
    "linear.backward_converting._input",
)


def test_plain_gemms_overlap_products_and_copies(run):
    """Compiled here and now for one block of T in bf16: the tables hold the rest."""
    rows = run(
        f"""
import dataclasses, json
from growtas import warmup
from growtas.kernels import compile_ahead
from growtas.space import load_space

space = load_space("autoformer-tiny")
space = dataclasses.replace(space, embed_dim=(216,), num_heads=(4,), mlp_ratio=(4,))
rows = []
for capability, kernels in ((90, {PLAIN}), (80, {PLAIN[:1]})):
    found = warmup.record(space, [128], ["bf16-autocast"], 1000, (capability, None, None))
    for kernel in kernels:
        variant = next(variant for variant in found.values() if variant.kernel == kernel)
        rows.append(compile_ahead.compile_variant(variant, capability))
print(json.dumps(rows))
""",
    )
    assert [row["kernel"] for row in rows] == [*PLAIN, PLAIN[0]]
    for row in rows:
        _check_row(row)
        assert not _flaws(row), row
        assert row["loop_copies"] >= 1 and (row["arch"] == "sm_80" or row["loop_pendings"] >= 1), row


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


def _table(name: str) -> dict:
    return json.loads((RESULTS / name).read_text())


@pytest.mark.parametrize("name", TABLES)
def test_committed_table_is_of_these_sources_and_clean(name):
    """Every variant of every space, dtype and tile, as `python -m growtas.kernels.compile_ahead` left it."""
    table = _table(name)
    assert table["sources_sha256"] == compile_ahead.sources_digest(), (
        "The kernels changed since their table was made. Run: python -m growtas.kernels.compile_ahead"
    )
    assert {(row["kernel"], row["arch"]) for row in table["variants"]} == {
        (kernel, arch) for kernel in {*MATRIX_KERNELS, *ROW_KERNELS} for arch in ARCHES
    }
    for row in table["variants"]:
        _check_row(row)


def test_committed_tables_are_of_two_tritons():
    newest, older = (_table(name)["triton"] for name in TABLES)
    assert older.startswith("3.6") and not newest.startswith("3.6")


def test_16_bit_main_loops_wait_for_nothing_but_what_is_listed():
    """In both tables: no wait for every matmul or every copy, nothing serialised, but :data:`EXCEPTIONS`."""
    needed, listed = set(), EXCEPTIONS | NEWEST
    for name in TABLES:
        excepted = listed if name == TABLES[0] else EXCEPTIONS
        for row in _table(name)["variants"]:
            if row["kernel"] not in MATRIX_KERNELS or _dtype(row) == "fp32" or _reads_fp32_weights(row):
                continue
            for flaw in _flaws(row):
                needed.add((_form(row), flaw))
                assert (_form(row), flaw) in excepted, f"{_form(row)} {flaw} in {name}: {row}"
    unneeded = listed.keys() - needed
    rows = [row for name in TABLES for row in _table(name)["variants"]]
    unneeded |= SPILLS.keys() - {_operands(row) for row in rows if row["stack"]}
    assert not unneeded, f"No variant needs these exceptions any more; take them out: {sorted(unneeded)}"


#: Variants of each kernel that a block of any subnet of T, S and B can launch, at any batch size, under bf16
#: autocast with shadows: forms of the kernel x tiles x classes of alignment that widths reach (8; 4 for 756
#: hidden units).
BOUND = {
    "shadow._cast": 1,
    "layer_norm.forward._forward": 3,  # rows padded to 256, 512 and 1024
    "layer_norm.backward._backward": 3,
    "layer_norm.normalise._normalise": 3,
    "common.rows._rows": 2 * 2 + 2,  # in another dtype and scaled, with sums and without; through GELU
    "linear.forward._forward": 3 + 3,  # residual; GELU
    "linear.backward._input": 3 + 2,  # plain; through GELU
    "linear.backward._weight": 3 * 3,  # plain, and with 756 units before or behind it
    "linear.backward_converting._input": 1,
    "linear.backward_pair._weights": 3,
    "qkv.forward._forward": 3,
    "qkv.backward._input": 3,
    "qkv.backward._weight": 3 + 3,  # x as it is; normalised on load
    "norm_qkv.forward._forward_held": 1,
    "norm_qkv.forward._forward_tiled": 3,
    "norm_qkv.backward._input": 1,
    "mlp.fused_forward._forward": 2 * 3,  # rows in two pieces, in one, and that with 756 units
    "mlp.fused_backward._backward": 2 * 2,  # in one piece, and that with 756 units
    "relative_attention.forward._forward": 1,
    "relative_attention.two_pass._backward_queries": 1,
    "relative_attention.two_pass._backward_keys": 1,
}


def test_1000_subnets_of_each_space_launch_a_bounded_set_of_variants(run):
    """Blocks of 3,000 random subnets at random batch sizes: few variants, all of them in the tables."""
    found = run(
        """
import json, random
from collections import Counter
import torch
from growtas import warmup
from growtas.kernels import compile_ahead as ahead
from growtas.kernels.common import launch
from growtas.space import load_space

rng = random.Random(0)
subnets, blocks = 0, set()
for name in ahead.SPACES:
    space = load_space(name)
    for _ in range(1000):
        subnet = space.sample(rng)
        hidden = zip(subnet.num_heads, subnet.hidden_dims, strict=True)
        blocks.update((name, subnet.embed_dim, *sizes) for sizes in hidden)
        subnets += 1
with launch.recording(90) as found:
    for preferred in ("triton", "cublas"):
        with warmup._on_triton((90, None, None), preferred):
            for index, (name, *sizes) in enumerate(sorted(blocks)):
                batches = [rng.randint(1, 16), rng.randint(17, 128), rng.randint(129, 600)]
                if preferred == "cublas":  # launches fewer kernels: one size for each block, in turn
                    batches = [batches[index % 3]]
                for batch in batches:
                    warmup.run_block(load_space(name), *sizes, batch, torch.bfloat16, torch.float32)
print(json.dumps({
    "subnets": subnets, "signatures": len(blocks),
    "variants": [
        [v.kernel, v.dtypes(), {k: c for k, c in v.constexprs().items() if c is not None},
         v.options["num_warps"], v.options["num_stages"]]
        for v in found.values()
    ],
}))
""",
    )
    assert found["subnets"] == 3000 and found["signatures"] <= 12 + 27 + 18
    for name in TABLES:
        rows = [row for row in _table(name)["variants"] if row["arch"] == "sm_90"]
        known = [[row[k] for k in ("kernel", "dtypes", "constexprs", "warps", "stages")] for row in rows]
        for variant in found["variants"]:
            assert variant in known, f"{name} does not hold {variant}"
    counts = Counter(variant[0] for variant in found["variants"])
    assert counts.keys() == BOUND.keys()
    for kernel, count in counts.items():
        assert count <= BOUND[kernel], f"{kernel} has {count} variants, more than {BOUND[kernel]}"


def test_arbitrary_widths_do_not_add_variants_without_end(run):
    """40 blocks of widths that no space has: one more class of alignment per width, and no more."""
    found = run(
        """
import json, random
from collections import Counter
import torch
from growtas import warmup
from growtas.kernels.common import launch
from growtas.space import load_space

rng = random.Random(0)
space = load_space("autoformer-base")
with launch.recording(90) as found, warmup._on_triton((90, None, None)):
    for step in range(40):
        d, h, m = rng.randint(1, 640), rng.randint(1, 10), rng.randint(1, 2560)
        warmup.run_block(space, d, h, m, rng.randint(1, 512), torch.bfloat16, torch.float32)
print(json.dumps(Counter(variant.kernel for variant in found.values())))
""",
    )
    # Rows padded to 16 ... 1024 x classes of alignment; tiles x classes of K x classes of N x forms.
    limits = {
        "layer_norm.forward": 7 * 3 * 2, "layer_norm.backward": 7 * 3 * 2, "layer_norm.normalise": 7 * 3,
        "linear.forward": 3 * 9 * 3, "linear.backward": 3 * 9 * 4, "linear.backward_pair": 3 * 9,
        "linear.backward_converting": 9,
        "qkv.forward": 3 * 3, "qkv.backward": 3 * 3 * 2, "norm_qkv.forward": 3 * 3, "norm_qkv.backward": 3,
        "mlp.fused_forward": 3 * 9 * 4, "mlp.fused_backward": 3 * 9 * 4, "relative_attention.forward": 1,
        "relative_attention.two_pass": 1, "common.rows": 3 * 4, "shadow": 1,
    }  # fmt: skip
    for kernel, count in found.items():
        limit = limits[kernel.rpartition(".")[0]]
        assert count <= limit, f"{kernel} has {count} variants for arbitrary widths, more than {limit}"


@needs_interpreter
def test_interpreted_kernels_have_no_variants():
    from growtas import kernels
    from growtas.errors import UsageError
    from growtas.kernels.common import launch

    assert set(kernels.compiled_variants().values()) == {0}
    with pytest.raises(UsageError, match="without TRITON_INTERPRET"), launch.recording(90):
        pass
