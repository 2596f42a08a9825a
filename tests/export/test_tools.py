"""Tools that people use on timm models work on extracted ones: each runs on timm's deit_tiny and on ours."""

import copy
import warnings

import pytest
import timm
import torch
from thinning import thinned
from torch import nn
from torch.nn.utils import prune

from growtas import cost
from growtas.export.sizes import space_of, subnet_of

SIZES = {"img_size": 8, "patch_size": 2, "in_chans": 3, "num_classes": 5}
DEIT = {"embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2}
OURS = {"embed_dim": 32, "num_heads": [2, 3], "mlp_ratio": [2, 3], "head_dim": 16, "max_relative_position": 2}
CONV = {"kernel": [3, 5, 7, 3], "expand": [3, 4, 3, 4], "depth": [1, 2], "widths": [8, 16]} | {
    "stem_width": 8,
    "first_width": 8,
    "final_width": 32,
    "feature_width": 32,
    "strides": [1, 2],
    "activations": ["relu", "h-swish"],
    "squeeze_excite": [False, True],
}


def deit(**kwargs):
    return timm.create_model("deit_tiny_patch16_224", **SIZES | DEIT | kwargs)


def ours(**kwargs):
    return timm.create_model("growtas_vit", **SIZES | OURS | kwargs)


def conv(**kwargs):
    given = {name: value for name, value in (SIZES | CONV | kwargs).items() if name != "patch_size"}
    return timm.create_model("growtas_mobilenet", **given)


def build(make, **kwargs):
    """A model none of whose parameters is constant, in evaluation mode."""
    torch.manual_seed(0)
    model = make(**kwargs).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def images(batch=3, height=8, width=8):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(batch))


def close(found, expected, atol=1e-5):
    torch.testing.assert_close(torch.as_tensor(found), expected, rtol=1e-4, atol=atol)


# timm's own model shows that a tool works at all, and ours that it works as well: the first can wait.
DEIT_MODEL = pytest.param(deit, marks=pytest.mark.slow)
both = pytest.mark.parametrize("make", [DEIT_MODEL, ours])
each = pytest.mark.parametrize("make", [DEIT_MODEL, ours, conv])


# -- export ------------------------------------------------------------------------------------------------


ONE_BLOCK = {deit: {"depth": 1}, ours: {"num_heads": [3], "mlp_ratio": [3]}, conv: {"depth": [1, 1]}}


@pytest.mark.filterwarnings("ignore")  # the exporters' own, of torch's internals
@pytest.mark.parametrize(
    ("make", "dynamo"),
    thinned(
        [(ours, True), (deit, True), (ours, False), (deit, False), (conv, False)], fast=(4,), several=True
    ),
)
def test_onnx(make, dynamo, tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    model, path = build(make, **ONE_BLOCK[make]), tmp_path / "model.onnx"
    options = (
        {"dynamo": True, "dynamic_shapes": ({0: torch.export.Dim("batch")},)}
        if dynamo
        else {"dynamo": False, "dynamic_axes": {"images": {0: "batch"}, "logits": {0: "batch"}}}
    )
    names = {"input_names": ["images"], "output_names": ["logits"], "verbose": False}
    torch.onnx.export(model, (images(2),), path, **names, **options)
    session = onnxruntime.InferenceSession(path)
    for batch in (1, 5):
        (logits,) = session.run(None, {"images": images(batch).numpy()})
        close(logits, model(images(batch)).detach())


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
@each
def test_torchscript_and_fx(make):
    model = build(make)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # comparisons of sizes become constants
        traced = torch.jit.trace(model, images(2))
    scripted, graph = torch.jit.script(model), torch.fx.symbolic_trace(model)
    for batch in (1, 5):
        for found in (traced, scripted, graph):
            close(found(images(batch)), model(images(batch)))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@each
def test_functorch(make):
    """vmap over single images, and the gradient of each image's loss."""
    model = build(make)
    parameters = dict(model.named_parameters())

    def loss(parameters, image):
        return torch.func.functional_call(model, parameters, (image[None],)).square().sum()

    each_loss = torch.func.vmap(loss, (None, 0))(parameters, images())
    close(each_loss, model(images()).square().sum(1))
    gradients = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, images())
    model(images()).square().sum().backward()
    for name, parameter in parameters.items():
        close(gradients[name].sum(0), parameter.grad, atol=1e-3 * parameter.grad.abs().max().item() + 1e-5)


@both
def test_compiled_as_one_graph(make):
    model = build(make)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    close(compiled(images()), model(images()))


# -- fine-tuning and compression ---------------------------------------------------------------------------


@both
@pytest.mark.slow
def test_lora(make):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["qkv", "proj", "fc1", "fc2"], modules_to_save=["head"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(build(make), config)
    for _ in range(2):  # LoRA's first factor has a gradient once the second is not zero any more
        model.zero_grad()
        model(images()).square().sum().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= 0.1 * parameter.grad
    trained = [p for p in model.parameters() if p.requires_grad]
    assert len(trained) == 2 * 2 * 4 + 2 + 2  # two factors of four layers in two blocks, patches, head
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)


@pytest.mark.filterwarnings("ignore")  # torch.ao announces its successor
@each
def test_quantized_dynamically(make):
    model = build(make)
    quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, torch.qint8)
    layers = [m for m in quantized.modules() if isinstance(m, torch.ao.nn.quantized.dynamic.Linear)]
    assert len(layers) == sum(type(m) is nn.Linear for m in model.modules()) > 0
    expected = model(images())
    assert 0 < (quantized(images()) - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.parametrize("kind", ["Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"])
@both
def test_torchao(make, kind):
    quantization = pytest.importorskip("torchao.quantization")
    model = build(make)
    quantized = copy.deepcopy(model)
    quantization.quantize_(quantized, getattr(quantization, kind)())
    assert type(quantized.blocks[0].attn.qkv.weight) is not nn.Parameter
    with torch.inference_mode():
        expected = model(images())
        assert 0 < (quantized(images()) - expected).abs().max() < 0.1 * expected.abs().max()


@each
def test_pruned_over_two_steps(make):
    model = build(make)
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    for layer in layers:
        prune.l1_unstructured(layer, "weight", amount=0.3)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for _ in range(2):
        before = model(images())
        before.square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        assert not torch.equal(model(images()), before)
    for layer in layers:
        prune.remove(layer, "weight")
        assert (layer.weight == 0).float().mean() == pytest.approx(0.3, abs=0.05)


# -- looking inside ----------------------------------------------------------------------------------------


@both
def test_forward_hooks_fire(make):
    model, fired = build(make), []
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.LayerNorm | nn.Conv2d)]
    for name in names:
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: fired.append(name))
    model(images())
    assert fired == names
    assert len(names) == 1 + 2 * 6 + 2  # patches; two norms and four layers per block; norm and head


def macs(model):
    return cost.macs(subnet_of(model), space_of(model), model.num_classes)


@pytest.fixture
def plain_attention():
    """Counters do not know scaled_dot_product_attention, of any timm model."""
    former = timm.layers.use_fused_attn()
    timm.layers.set_fused_attn(False)
    yield
    timm.layers.set_fused_attn(former)


@pytest.mark.parametrize("make", [ours, conv])
def test_fvcore_counts_the_macs(make, plain_attention):
    nn_count = pytest.importorskip("fvcore.nn")
    model = build(make)
    counted = nn_count.FlopCountAnalysis(model, images(1)).unsupported_ops_warnings(False)
    assert counted.total() == pytest.approx(macs(model), rel=0.15)


@pytest.mark.parametrize("make", [ours, conv])
def test_ptflops_and_torchinfo_count(make):
    ptflops, torchinfo = pytest.importorskip("ptflops"), pytest.importorskip("torchinfo")
    model = build(make)
    parameters = sum(p.numel() for p in model.parameters())
    counted, found = ptflops.get_model_complexity_info(
        copy.deepcopy(model), (3, 8, 8), as_strings=False, print_per_layer_stat=False, backend="aten"
    )
    assert found == parameters
    assert counted == pytest.approx(macs(model), rel=0.25)
    summary = torchinfo.summary(model, input_data=images(1), verbose=0)
    assert summary.total_params == parameters
    assert {"Linear", "Conv2d"} <= {info.class_name for info in summary.summary_list}


# -- timm's interface --------------------------------------------------------------------------------------


@both
def test_intermediate_layers(make):
    model = build(make)
    features = model.forward_features(images())
    (last,) = model.get_intermediate_layers(images(), 1, norm=True)
    close(last, features[:, 1:])
    pairs = model.get_intermediate_layers(images(), [0, 1], reshape=True, return_prefix_tokens=True)
    assert [tuple(part.shape) for pair in pairs for part in pair] == [(3, 32, 4, 4), (3, 1, 32)] * 2
    found = model.forward_intermediates(images(), 2, output_dict=True, return_prefix_tokens=True)
    close(found["image_features"], features)
    assert len(found["image_intermediates"]) == len(found["image_intermediates_prefix"]) == 2


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
@both
def test_other_image_sizes(make):
    fixed, wide = build(make), build(make, img_size=(8, 12))
    assert wide(images(2, 8, 12)).shape == (2, 5)
    with pytest.raises(AssertionError, match="doesn't match model"):
        fixed(images(2, 8, 12))
    dynamic = build(make, dynamic_img_size=True)
    close(dynamic(images()), fixed(images()))
    resized = copy.deepcopy(fixed)
    resized.set_input_size((12, 8))
    close(resized(images(2, 12, 8)), dynamic(images(2, 12, 8)))
    resized.set_input_size((8, 8), patch_size=(4, 4))
    assert resized(images()).shape == (3, 5)
    scripted = torch.jit.script(dynamic)
    close(scripted(images(2, 6, 10)), dynamic(images(2, 6, 10)))


@pytest.mark.parametrize("pooling", ["", "avg", "token", "max", "avgmax", "map"])
@both
def test_pooling(make, pooling):
    model = build(make, global_pool=pooling)
    assert model(images()).shape == ((3, 17, 5) if not pooling else (3, 5))
    model.reset_classifier(7, "" if pooling == "map" else pooling)
    assert model.get_classifier().out_features == 7


@both
def test_dropout(make):
    for name in ("drop_rate", "proj_drop_rate", "attn_drop_rate", "pos_drop_rate", "drop_path_rate"):
        model = build(make, **{name: 0.5})
        exact = model(images(8))
        close(exact, build(make)(images(8)))
        model.train()
        drawn = model(images(8))
        assert not torch.equal(drawn, exact) and not torch.equal(drawn, model(images(8))), name


@both
def test_attention_mask(make):
    """A key that is hidden from all queries changes nothing."""
    model, mask = build(make), torch.ones(17, 17, dtype=torch.bool)
    mask[:, -1] = False
    changed = images()
    changed[:, :, -2:, -2:] += 1
    first, second = (model.forward_features(x, attn_mask=mask)[:, :-1] for x in (images(), changed))
    close(first, second)
    assert not torch.equal(model.forward_features(images())[:, :-1], first)
