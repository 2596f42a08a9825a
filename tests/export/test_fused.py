"""fuse() runs growtas' kernels over the parameters of the plain model, and unfuse() takes it back."""

import copy
import io
import sys
from pathlib import Path

import pytest
import timm
import torch

from growtas import export
from growtas.errors import UsageError
from growtas.supernet import Supernet

sys.path.insert(0, str(Path(__file__).parents[1] / "supernet"))
from mobilenet_cases import SMALL, trained_like

ARGS = {"embed_dim": 24, "num_heads": [2, 3], "mlp_ratio": [2, 3], "img_size": [8, 12], "patch_size": 2}
ARGS |= {"in_chans": 1, "num_classes": 5, "head_dim": 12, "max_relative_position": 2}


def vit(**kwargs):
    torch.manual_seed(0)
    return timm.create_model("growtas_vit", **ARGS, **kwargs)


def mobilenet():
    return export.extract(trained_like(), SMALL.largest())


@pytest.mark.parametrize("family", [vit, mobilenet])
def test_training_through_both_gives_equal_gradients(family):
    plain = family().train()
    fused = copy.deepcopy(plain).fuse()
    images = torch.randn(4, plain.in_chans, 8, 12)
    results = []
    for model in (plain, fused):
        torch.manual_seed(1)  # the head's dropout
        logits = model(images)
        logits.square().sum().backward()
        results.append((logits, *(p.grad for p in model.parameters())))
    largest = max(value.abs().max().item() for value in results[0])
    assert largest > 0.1
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6 * largest)
    assert plain.state_dict().keys() == fused.state_dict().keys()
    plain.load_state_dict(fused.state_dict())


def test_unfused_again_hooks_fire():
    model, fired = vit().eval(), []
    model.fuse().unfuse()
    model.blocks[0].attn.qkv.register_forward_hook(lambda *_: fired.append(1))
    model(torch.randn(1, 1, 8, 12))
    assert fired == [1]


def test_copies_of_a_fused_model_run_on_their_own_parameters():
    model = vit().eval().fuse()
    other, pickled = copy.deepcopy(model), io.BytesIO()
    torch.save(model, pickled)
    images = torch.randn(2, 1, 8, 12)
    before = model(images)
    assert torch.equal(torch.load(io.BytesIO(pickled.getvalue()), weights_only=False)(images), before)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(model(images), before)
    assert not other(images).any()


def test_in_bfloat16_the_kernels_are_as_near_as_plain_pytorch():
    """Under autocast, twice: a shadow of a weight that has changed since is stale."""
    model = vit().eval()
    images = torch.randn(4, 1, 8, 12)
    for _ in range(2):
        with torch.no_grad():
            model.blocks[0].mlp.fc1.weight.mul_(1.5)
            exact = model.unfuse()(images)
            with torch.autocast("cpu", torch.bfloat16):
                plain, fused = model(images), model.fuse()(images)
        scale = exact.abs().max()
        assert (fused - exact).abs().max() <= 2 * (plain - exact).abs().max() + 0.01 * scale


def test_images_of_another_size():
    model = vit(dynamic_img_size=True).eval()
    for size in ((8, 12), (10, 6)):
        images = torch.randn(2, 1, *size)
        torch.testing.assert_close(model.fuse()(images), model.unfuse()(images), rtol=1e-4, atol=1e-6)
    with pytest.raises(UsageError, match=r"images are \(10, 6\), but this model takes \(8, 12\)"):
        vit().fuse()(images)


def test_compiled_as_one_graph():
    model = vit().eval().fuse()
    images = torch.randn(2, 1, 8, 12)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(images), model(images), rtol=1e-4, atol=1e-6)


def test_drop_path_and_checkpointing():
    model = vit(drop_path_rate=0.5).train().fuse()
    model.set_grad_checkpointing()
    images = torch.randn(64, 1, 8, 12)
    torch.manual_seed(1)
    logits = model(images)
    logits.sum().backward()
    assert not torch.equal(logits, model.eval()(images))
    assert all(p.grad is not None for p in model.parameters())


def test_what_the_kernels_would_pass_over_is_refused():
    images = torch.randn(1, 1, 8, 12)
    with pytest.raises(UsageError, match="no dropout inside of a block"):
        vit(proj_drop_rate=0.1).fuse()
    model = vit().fuse()
    model.blocks[1].mlp.fc2.register_forward_hook(lambda *_: None)
    with pytest.raises(UsageError, match="has hooks, which growtas' kernels do not call"):
        model(images)
    model = vit().fuse()
    model.blocks[0].attn.proj = torch.nn.Sequential(model.blocks[0].attn.proj)
    with pytest.raises(UsageError, match="was replaced by Sequential"):
        model(images)


def test_loaded_and_extracted_fused(tmp_path):
    net = Supernet("digits", 10).eval()
    subnet, images = net.space.smallest(), torch.randn(2, 1, 8, 8)
    model = export.extract(net, subnet, fused=True)
    loaded = export.load(export.save(model, tmp_path), fused=True)
    with torch.inference_mode():
        assert torch.equal(loaded(images), model(images))
        assert not torch.equal(loaded.unfuse()(images), loaded.fuse()(images))  # other sums
