"""The jobs of make gpu on a CPU, on one small layer: what they record, and that a wrong kernel is seen."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from common import gpu_jobs, gpu_steps, gpu_tables, gpu_worker, steps
from common.dense_vit import dense_vit
from common.masked_vit import MaskedViT, masks_of

import growtas
from growtas.ops import dispatch
from growtas.space import Subnet

interpreted = pytest.mark.skipif(torch.cuda.is_available(), reason="Triton is compiled in this process")


@pytest.fixture
def context(tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "COMPILER", "eager")
    path = str(tmp_path / "records.jsonl")
    gpu_worker.append([path], {"kind": "ceilings", "bandwidth": 1e10, "flops": 1e11})
    return gpu_jobs.Context("cpu", [path])


def records(context, kind):
    return gpu_tables.of(gpu_worker.read(context.records[0]), kind)


@interpreted
def test_smoke_and_race_record_errors_bits_and_bounds(context):
    gpu_jobs.smoke(context, "products", "fc1 forward", "triton")
    found = records(context, "smoke")
    assert [r["way"] for r in found] == ["growtas triton", "growtas triton same"]
    assert all(r["status"] == "ok" and r["error"] < 1e-6 and not r["unwritten"] for r in found)
    gpu_jobs.race(context, "products", "fc1 forward", skip=["growtas triton same"], only=["strided"])
    found = records(context, "race")
    assert [r["way"] for r in found] == ["cublas", "strided"]
    for record in found:
        least = max(record["flops"] / 1e11, record["bytes"] / 1e10)
        assert record["bound"] == pytest.approx(least, rel=1e-3)
        assert record["share"] == pytest.approx(least / record["seconds"][0], rel=1e-3)
    assert "strided" in gpu_tables.races(gpu_worker.read(context.records[0]), every=True)


def test_a_kernel_that_leaves_memory_or_changes_bits_is_seen(context, monkeypatch):
    work = gpu_jobs.pick(context, "products", "fc1 forward")[0]
    right, turn = work.ways["cublas"], iter(range(1000))

    def leaves(i):
        def run():
            out = torch.empty_like(right(i)()[0])
            out[1:] = right(i)()[0][1:]
            return (out,)

        return run

    def changes(i):
        return lambda: (right(i)()[0] * (1 + 1e-7 * (next(turn) % 2)),)

    def crashes(i):
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nand more")

    for make, word in (
        (leaves, "its error"),
        (changes, "differ in bits"),
        (crashes, "illegal memory access"),
    ):
        own = dataclasses.replace(work, ways={"cublas": right, "growtas triton": make})
        monkeypatch.setattr(gpu_jobs, "pick", lambda *_, own=own: [own])
        gpu_jobs.smoke(context, "products", "fc1 forward", "triton")
        assert word in records(context, "smoke")[-1]["status"]


def test_a_way_that_took_its_process_down_is_not_timed(context):
    work = gpu_jobs.pick(context, "products", "fc1 forward")[0]
    about = {"part": "products", "op": work.op, "size": str(work), "way": "growtas triton", "space": "tiny"}
    context.add("smoke_begins", **about)
    assert gpu_jobs.crashed(context) == {("fc1 forward", "growtas triton")}
    context.add("smoke", **about, status="ok", error=0.0)
    assert gpu_jobs.crashed(context) == set()


@pytest.mark.slow
def test_steps_of_every_rival_are_timed_with_their_bound(context):
    for way in ("growtas triton", "published", "timm", "compiled", "masked"):
        context.state.clear()
        gpu_jobs.step_time(context, way, "T", 128)
    found = records(context, "step")
    assert [r["way"] for r in found] == ["growtas triton", "published", "timm", "compiled", "masked"]
    assert all(0 < r["bound"] and 0 < r["share"] < 1 and r["host"][0] > 0 for r in found)
    modelled = {r["way"]: r.get("model") for r in found}
    assert 0 < modelled["growtas triton"] and modelled["published"] is None
    gpu_jobs.step_check(context, "T")
    assert {r["status"] for r in records(context, "step_check")} == {"ok"}
    gpu_jobs.random_subnets(context, "masked", "T", 128)
    assert records(context, "random_subnets")[0]["images_per_second"] > 0
    shown = gpu_tables.steps(gpu_worker.read(context.records[0]))
    assert "bound ms" in shown and "masked" in shown and "random subnets" in shown


def test_a_step_on_cublas_takes_triton_for_what_is_no_gemm(context, monkeypatch):
    monkeypatch.setattr(dispatch, "_mismatch", lambda *_: "")
    monkeypatch.setattr(dispatch, "available", lambda _: dispatch.Availability(True))
    monkeypatch.setattr(context, "tiny", False)
    with gpu_steps.backend(context, "growtas cublas"):
        found = {
            op: dispatch.choose(op, torch.device("cuda"), torch.bfloat16, 256) for op in dispatch.OPERATIONS
        }
    assert {op for op, name in found.items() if name == "triton"} == {"relative_attention", "layer_norm"}
    assert set(found.values()) == {"triton", "cublas"}


def test_candidates_are_those_of_the_kernels_that_lose_most(context):
    known = {"part": "fused", "space": "T", "baseline": "unfused", "way": "growtas triton"}
    for op, seconds in (("mlp", 2e-4), ("norm_qkv", 1e-4), ("linear_gelu", 9e-5)):
        context.add("race", **known, op=op, size=f"T {op}", seconds=[seconds] * 3, bound=5e-5, share=0.5)
    gpu_jobs.to_try(context)
    assert [r["op"] for r in records(context, "to_try")] == ["mlp", "mlp", "norm_qkv", "norm_qkv"]
    for fields in gpu_steps.candidate_fields("fused", "norm_qkv"):
        with gpu_steps.constrained("fused", "norm_qkv", fields):
            pass


def test_the_masked_network_is_the_dense_one_of_the_subnets_size():
    space = growtas.load_space("digits")
    net = growtas.Supernet(space, num_classes=10)
    subnet = Subnet(36, 4, (2, 3, 3, 2), (2, 3, 2, 3))
    torch.manual_seed(0)
    wide = MaskedViT(net.dims, 10)
    with torch.no_grad():
        for parameter in wide.parameters():  # biases of 0 and scales of 1 would hide mistakes
            parameter.add_(0.05 * torch.randn_like(parameter))
    dense = dense_vit(subnet, net.dims, 10)
    d, e = subnet.embed_dim, net.dims.head_dim
    pairs = [
        (dense.patch_embed.proj.weight, wide.patch_embed.weight[:d]),
        (dense.patch_embed.proj.bias, wide.patch_embed.bias[:d]),
        (dense.cls_token, wide.cls_token[..., :d]),
        (dense.pos_embed, wide.pos_embed[..., :d]),
        (dense.fc_norm.weight, wide.norm.weight[:d]),
        (dense.fc_norm.bias, wide.norm.bias[:d]),
        (dense.head.weight, wide.head.weight[:, :d]),
        (dense.head.bias, wide.head.bias),
    ]
    for own, other, heads, m in zip(
        dense.blocks, wide.blocks, subnet.num_heads, subnet.hidden_dims, strict=False
    ):
        width, total = heads * e, other.heads * e
        rows = torch.cat([torch.arange(width) + part * total for part in range(3)])
        pairs += [(own.norm1.weight, other.norm1.weight[:d]), (own.norm1.bias, other.norm1.bias[:d])]
        pairs += [(own.norm2.weight, other.norm2.weight[:d]), (own.norm2.bias, other.norm2.bias[:d])]
        pairs += [
            (own.attn.qkv.weight, other.qkv.weight[rows, :d]),
            (own.attn.qkv.bias, other.qkv.bias[rows]),
        ]
        pairs += [
            (own.attn.proj.weight, other.proj.weight[:d, :width]),
            (own.attn.proj.bias, other.proj.bias[:d]),
        ]
        pairs += [(own.mlp.fc1.weight, other.fc1.weight[:m, :d]), (own.mlp.fc1.bias, other.fc1.bias[:m])]
        pairs += [(own.mlp.fc2.weight, other.fc2.weight[:d, :m]), (own.mlp.fc2.bias, other.fc2.bias[:d])]
    with torch.no_grad():
        for own, other in pairs:
            own.copy_(other)
        images = torch.randn(2, net.dims.in_channels, net.dims.image_size, net.dims.image_size)
        found = wide.eval()(images, masks_of(subnet, net.dims, torch.device("cpu")))
        torch.testing.assert_close(found, dense.eval()(images), rtol=1e-4, atol=1e-5)
