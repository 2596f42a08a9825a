"""train_step.py: the rivals compute the same thing, costs are counted right, nothing measured is lost."""

from __future__ import annotations

import json
import re

import pytest
import reference
import torch
import train_step
from common import counting, step_profile, step_report, steps
from common.dense_vit import WideAttention, dense_vit
from common.published_vit import PublishedViT, relative_embedding
from torch.utils.flop_counter import FlopCounterMode

import growtas
from growtas.space import Subnet

aten = torch.ops.aten

CPU = torch.device("cpu")


def case(subnet: Subnet | None = None, dtype=torch.float32, batch: int = 2) -> steps.Case:
    subnet = subnet or steps.pick_subnet(growtas.load_space("digits"), "middle")
    return steps.Case("digits", subnet, "middle", batch, CPU, dtype)


def test_the_middle_of_t_is_the_issues_subnet():
    subnet = steps.pick_subnet(growtas.load_space("autoformer-tiny"), "middle")
    assert (subnet.embed_dim, subnet.depth, set(subnet.num_heads), set(subnet.mlp_ratio)) == (
        216,
        13,
        {4},
        {4},
    )
    assert steps.pick_subnet(growtas.load_space("autoformer-tiny"), "smallest").embed_dim == 192


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_growtas_and_the_published_way_agree(dtype):
    mixed = Subnet(36, 4, (2, 3, 3, 2), (2, 3, 2, 3))
    found = steps.rivals(case(mixed, dtype), ("growtas", "published"))
    difference = steps.check(case(mixed, dtype), found)
    limit = 1e-5 if dtype == torch.float32 else 0.05
    assert all(0 <= value < limit for value in difference.values())
    assert all(p.grad is None for rival in found.values() for p in rival.net.parameters())


def test_the_published_bias_needs_no_reordering():
    """With qkv_bias="published" the state dict alone is enough."""
    space = growtas.load_space("digits")
    net = growtas.Supernet(space, num_classes=10, qkv_bias="published")
    for block in net.blocks:
        torch.nn.init.normal_(block.attn.qkv.bias)
    copy = PublishedViT(net)
    copy.load_state_dict(net.state_dict())
    images = torch.randn(2, 1, 8, 8)
    for subnet in (space.smallest(), space.largest()):
        torch.testing.assert_close(copy(images, subnet), net(images, subnet), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("what", ["logits", "gradients", "missing"])
def test_a_difference_is_not_timed(what):
    found = steps.rivals(case(), ("growtas", "published"))
    published = found["published"]
    if what == "logits":
        with torch.no_grad():
            published.net.head.bias.add_(1)
    elif what == "gradients":
        published.net.norm.weight.register_hook(lambda grad: grad + 1)
    else:
        published.net.pos_embed.requires_grad_(False)
    with pytest.raises(ArithmeticError, match="gradient of pos_embed" if what == "missing" else what):
        steps.check(case(), found)


def test_the_embedding_of_pairs_is_the_tables_entries():
    table_v, table_h = torch.randn(8, 4), torch.randn(8, 4)
    found = relative_embedding(table_v, table_h, 10)  # a 3 x 3 grid and cls
    assert found.shape == (10, 10, 4)
    torch.testing.assert_close(found[0, 5], table_v[0] + table_h[0])
    torch.testing.assert_close(found[5, 0], table_v[0] + table_h[0])
    # token 2 is row 0, column 1; token 9 is row 2, column 2
    torch.testing.assert_close(found[2, 9], table_v[2 + 4] + table_h[1 + 4])
    torch.testing.assert_close(found[9, 2], table_v[-2 + 4] + table_h[-1 + 4])


def test_the_dense_model_has_the_subnets_size():
    space = growtas.load_space("digits")
    dims = growtas.Supernet(space, num_classes=10).dims
    subnet = Subnet(36, 4, (2, 3, 3, 2), (2, 3, 2, 3))
    net = dense_vit(subnet, dims, 10)
    tables = 4 * (2 * dims.max_relative_position + 2) * dims.head_dim * subnet.depth
    expected = growtas.cost.parameters(subnet, space, 10) - tables
    assert sum(p.numel() for p in net.parameters()) == expected
    assert [block.attn.num_heads for block in net.blocks] == [2, 3, 3, 2]
    assert net(torch.randn(2, 1, 8, 8)).shape == (2, 10)


def test_attention_for_an_older_timm_is_timms():
    from timm.models.vision_transformer import Attention

    own, timms = WideAttention(24, 3, 16), Attention(24, 3, attn_head_dim=16, qkv_bias=True)
    own.load_state_dict(timms.state_dict())
    x = torch.randn(2, 5, 24)
    torch.testing.assert_close(own(x), timms(x))


def test_saved_bytes_are_counted_once_and_without_parameters():
    layer, x = torch.nn.Linear(3, 5), torch.randn(7, 3, requires_grad=True)

    def forward():
        return layer(x).exp() + x.view(21)[:1].sin()  # x is saved twice, exp's result once

    assert counting.saved_bytes(forward, [layer]) == 4 * (7 * 3 + 7 * 5)
    assert counting.saved_bytes(forward) == 4 * (7 * 3 + 7 * 5 + 5 * 3)


def test_operations_are_those_that_do_work():
    x = torch.randn(4, 4, requires_grad=True)

    def step():
        x[1:].t().mul(2).sum().backward()
        x.grad = None

    found = counting.count_operations(step)
    # ones_like is the seed of the backward pass; the cut runs backwards as a fill and a copy
    assert dict(found) == {"mul": 2, "sum": 1, "ones_like": 1, "slice_backward": 2}


def test_native_kernels_count_and_the_operations_are_seen_inside():
    x, weight, bias = torch.randn(4, 8), torch.ones(8), torch.zeros(8)
    with growtas.ops.use("cpu"):
        assert counting.count_operations(lambda: growtas.ops.layer_norm(x, weight, bias)) == {
            "layer_norm_forward": 1
        }
    with growtas.ops.use("torch"):
        found = counting.count_operations(lambda: growtas.ops.linear(x, torch.randn(3, 8), None, 2))
        assert found["mm"] + found["addmm"] == 1 and "linear" not in found
    assert reference.layer_norm_forward(x, weight, bias, 1e-5, x.dtype)[0].shape == x.shape  # put back


def test_the_profile_knows_kinds_of_work():
    names = {
        "aten::addmm": "products", "aten::bmm": "products", "aten::mm": "products",
        "growtas::relative_attention_forward": "attention",
        "aten::_scaled_dot_product_flash_attention_for_cpu": "attention", "aten::_softmax": "attention",
        "growtas::layer_norm_backward": "LayerNorm", "aten::native_layer_norm": "LayerNorm",
        "aten::gelu_backward": "GELU", "growtas::bias_gelu_forward": "GELU", "aten::copy_": "copies",
        "aten::add": "rest", "growtas::product": "products",
    }  # fmt: skip
    assert {name: step_profile.group_of(name) for name in names} == names
    rival = steps.rivals(case(), ("growtas",))["growtas"]
    found = step_profile.profile_step(rival.step, steps=1)
    groups = found["groups"]
    assert groups["attention"]["calls"] >= 2 * case().subnet.depth
    assert groups["products"]["calls"] > 0
    total = sum(entry["seconds"] for entry in groups.values())
    assert total == pytest.approx(found["seconds"], rel=0.05)


def test_the_products_flops_are_those_that_torch_counts():
    """Of the dense model of the same size, without its attention and without the images' gradient."""
    one = case(batch=2)
    subnet = one.subnet
    found = steps.rivals(one, ("timm",))["timm"]
    with FlopCounterMode(display=False) as counted:
        found.loss().backward()
    whole = counted.get_flop_counts()["Global"]
    products = sum(n for op, n in whole.items() if op in (aten.mm, aten.addmm))
    stem = sum(n for op, n in whole.items() if op in (aten.convolution, aten.convolution_backward))
    tokens, patch = 16, 2 * 2
    assert stem == 2 * 2 * 2 * tokens * patch * subnet.embed_dim
    assert steps.product_flops(one) == products + stem


TINY = ["--spaces", "digits", "--device", "cpu", "--threads", "1", "--batch", "2", "--seconds", "0"]


def test_a_run_writes_json_and_tables(tmp_path, capsys):
    out = tmp_path / "new" / "train_step.json"
    assert (
        train_step.main([*TINY, "--subnets", "middle", "--profile", "--rounds", "5", "--out", str(out)]) == 0
    )
    data = json.loads(out.read_text())
    assert data["complete"] and not data["failures"] and data["versions"]["timm"] and data["commit"]
    assert {(r["pass"], r["way"]) for r in data["records"]} == {
        (turn, way) for turn in ("forward", "step") for way in ("growtas", "published", "timm")
    }
    by = {(r["pass"], r["way"]): r for r in data["records"]}
    assert by["step", "published"]["vs_published"] == [1.0, 1.0, 1.0]
    own, rival = by["step", "growtas"], by["step", "published"]
    low, high = own["vs_published"][1:]
    assert low <= rival["seconds"][2] / own["seconds"][1] and high >= rival["seconds"][1] / own["seconds"][2]
    assert own["saved_per_image"] < rival["saved_per_image"] and 20 < own["operations"] < rival["operations"]
    assert own["difference"]["logits"] < 1e-5 and own["profile"]["groups"]["products"]["seconds"] > 0
    ceiling = data["roofline"]
    for record in data["records"]:
        least = max(record["flops"] / ceiling["flops"], record["bytes"] / ceiling["bandwidth"])
        assert record["bound"] == pytest.approx(least, rel=1e-3)
        assert record["share"] == pytest.approx(least / record["seconds"][0], rel=1e-3)
    shown = capsys.readouterr().out
    assert "ceilings measured here" in shown and "GFLOP/s" in shown
    header = next(line for line in shown.splitlines() if line.startswith("subnet"))
    assert [name for name in re.split(r"  +", header.strip()) if name] == [
        "subnet", "batch", "pass", "way", "ms", "± %", "bound ms", "share", "× published", "× timm",
        "images/s", "saved MB/image", "operations",
    ]  # fmt: skip
    assert "training step at least 2.3 x published" in shown


def test_json_goes_to_standard_output(tmp_path, capsys):
    out = tmp_path / "train_step.json"
    arguments = [*TINY, "--quick", "--rounds", "1", "--json", "--out", str(out)]
    assert train_step.main(arguments) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(out.read_text())


def test_an_error_costs_one_case_and_a_deadline_is_kept(tmp_path, capsys, monkeypatch):
    measure = train_step.measure

    def broken(one, *arguments):
        if one.name == "smallest":
            raise RuntimeError("out of memory\nand a long story")
        return measure(one, *arguments)

    monkeypatch.setattr(train_step, "measure", broken)
    out = tmp_path / "train_step.json"
    arguments = [*TINY, "--rounds", "1", "--out", str(out)]
    assert train_step.main([*arguments, "--subnets", "smallest,middle"]) == 1
    data = json.loads(out.read_text())
    assert [failure["reason"] for failure in data["failures"]] == ["RuntimeError: out of memory"]
    assert {record["name"] for record in data["records"]} == {"middle"}
    assert train_step.main([*arguments, "--subnets", "middle", "--deadline", "-1"]) == 1
    assert "left out" in capsys.readouterr().err


def test_a_rival_that_fails_and_a_count_that_fails_cost_only_themselves(tmp_path, capsys, monkeypatch):
    rivals, costs = steps.rivals, steps.costs

    def broken(one, ways):
        found = rivals(one, ways)
        if "timm" in found:
            found["timm"].loss = lambda: (_ for _ in ()).throw(RuntimeError("no memory"))
        return found

    def uncounted(one, rival):
        if rival.net.__class__.__name__ == "PublishedViT":
            raise RuntimeError("no profiler")
        return costs(one, rival)

    monkeypatch.setattr(steps, "rivals", broken)
    monkeypatch.setattr(steps, "costs", uncounted)
    out = tmp_path / "train_step.json"
    assert train_step.main([*TINY, "--subnets", "middle", "--rounds", "1", "--out", str(out)]) == 1
    data = json.loads(out.read_text())
    assert {(f["way"], f["reason"]) for f in data["failures"]} == {
        ("timm", "RuntimeError: no memory"),
        ("counting published", "RuntimeError: no profiler"),
    }
    assert {record["way"] for record in data["records"]} == {"growtas", "published"}


def test_ctrl_c_keeps_what_was_measured(tmp_path, monkeypatch, capsys):
    measure = train_step.measure

    def interrupted(one, *arguments):
        if one.name == "middle":
            raise KeyboardInterrupt
        return measure(one, *arguments)

    monkeypatch.setattr(train_step, "measure", interrupted)
    out = tmp_path / "train_step.json"
    arguments = [*TINY, "--rounds", "1", "--subnets", "smallest,middle", "--out", str(out)]
    assert train_step.main(arguments) == 130
    data = json.loads(out.read_text())
    assert not data["complete"] and {record["name"] for record in data["records"]} == {"smallest"}


def test_the_bars_are_judged_by_the_worst_subnet():
    def record(direction, **ratios):
        return {"way": "growtas", "pass": direction, **{k: [v, v, v] for k, v in ratios.items()}}

    lines = step_report.bars(
        [
            record("step", vs_published=2.5, vs_timm=1.2),
            record("step", vs_published=2.2, vs_timm=1.1),
            record("forward", vs_published=1.7),
        ]
    )
    assert [line.rsplit(" ", 1)[1] for line in lines] == ["MISSED", "met", "met"]


def test_the_masked_way_and_old_records_without_a_bound_are_shown():
    about = {"space": "T", "name": "middle", "embed_dim": 216, "depth": 13, "batch": 128, "pass": "step"}
    ratios = {f"vs_{name}": [2.0, 1.9, 2.1] for name in ("published", "timm", "compiled", "masked")}
    old = {**about, "way": "growtas", "seconds": [0.01, 0.009, 0.011], **ratios}
    new = {**old, "way": "masked", "bound": 0.004, "share": 0.4}
    lines = step_report.table([old, new]).splitlines()
    assert "× masked supernet" in lines[0] and "bound ms" in lines[0]
    assert "40%" in lines[-1] and "40%" not in lines[-2]
    assert "bound ms" not in step_report.table([old]).splitlines()[0]
    assert "× masked supernet" in step_report.headline([old]) and "2.00" in step_report.headline([old])


@pytest.mark.slow
def test_masked_steps_run_in_a_process_with_the_others(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(steps, "COMPILER", "eager")
    arguments = [*TINY, "--quick", "--rounds", "1", "--ways", "growtas,published,compiled,masked"]
    assert train_step.main([*arguments, "--out", str(tmp_path / "train_step.json")]) == 0
    records = json.loads((tmp_path / "train_step.json").read_text())["records"]
    own = next(r for r in records if r["way"] == "growtas" and r["pass"] == "step")
    assert own["vs_masked"][0] > 0 and "× masked supernet" in capsys.readouterr().out


def test_the_bound_counts_each_pass():
    """A forward pass has a third of the step's products, and two of attention's seven."""
    one = case(batch=2)
    whole, forward = steps.bound_of(one), steps.bound_of(one, "forward")
    subnet, tokens, e, d = one.subnet, 17, 12, one.subnet.embed_dim
    attention = sum(2 * 2 * heads * tokens * tokens * e for heads in subnet.num_heads)
    stem = 2 * 2 * 16 * 4 * d  # the images get no gradient
    assert whole["flops"] - 7 * attention == 3 * (forward["flops"] - 2 * attention) - stem
    assert forward["bytes"] < whole["bytes"] < 3 * forward["bytes"]


@pytest.mark.parametrize(
    "argument", [["--subnets", "tiny"], ["--ways", "growtas"], ["--batch", "0"], ["--batch", "x"]]
)
def test_bad_arguments_are_usage_errors(argument, capsys):
    with pytest.raises(SystemExit) as stop:
        train_step.main(["--device", "cpu", *argument])
    assert stop.value.code == 2
    assert argument[0].strip("-").rstrip("s") in capsys.readouterr().err
