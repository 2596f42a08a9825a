"""State dicts from elsewhere: loaded as they are, or refused in a sentence with the net unchanged."""

from __future__ import annotations

import warnings

import pytest
import timm
import torch
from mobilenet_cases import SMALL

import growtas
from growtas.errors import GrowtasError, UsageError
from growtas.supernet import weights as foreign
from growtas.supernet.pretrained import PlainViT, load_vit
from growtas.supernet.published import load_autoformer, load_ofa

SPACE = growtas.SearchSpace(
    "small",
    (16, 24),
    (2, 3),
    (1, 2),
    (1, 2),
    image_size=16,
    patch_size=8,
    head_dim=8,
    max_relative_position=1,
)


def vit_weights():
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "mlp_ratio": 2}
    return timm.create_model("vit_tiny_patch16_224", num_classes=3, init_values=0.1, **sizes).state_dict()


def load_plain(net, weights):
    load_vit(net, PlainViT("the ViT", weights))


@pytest.fixture(scope="module")
def families():
    """Of each family a net, its loader, good weights, and the name of one of them."""
    torch.manual_seed(0)
    former, ofa = (growtas.Supernet(space, num_classes=3) for space in (SPACE, SMALL))
    plain = growtas.Supernet(SPACE, num_classes=3, global_pool="token", norm_eps=1e-6)
    return {
        "autoformer": (former, load_autoformer, former.state_dict(), "blocks.1.attn.proj.weight"),
        "ofa": (ofa, load_ofa, ofa.state_dict(), "stem_norm.running_var"),
        "vit": (plain, load_plain, vit_weights(), "blocks.1.attn.proj.weight"),
    }


@pytest.fixture(params=["autoformer", "ofa", "vit"])
def family(request, families):
    net, load, weights, name = families[request.param]
    before = {key: value.clone() for key, value in net.state_dict().items()}
    yield net, load, {key: value.clone() for key, value in weights.items()}, name
    net.load_state_dict(before)


def spoilt(value, number):
    value.flatten()[-1] = number
    return value


CHANGES = {
    "missing": (lambda w, n: w.pop(n), "missing|lacks"),
    "unknown": (lambda w, n: w.update(other=torch.zeros(3)), "other"),
    "number": (lambda w, n: w.update({n: 3}), "it is a int and not a tensor"),
    "list": (lambda w, n: w.update({n: w[n].tolist()}), "it is a list and not a tensor"),
    "key": (lambda w, n: w.update({10**5000: w.pop(n)}), "its name is not text"),
    "long name": (lambda w, n: w.update({"x" * 10**6: w.pop(n)}), "missing|lacks|xxx"),
    "numeral": (lambda w, n: w.update({f"blocks.{'9' * 5000}.norm1.weight": w.pop(n)}), "missing|has blocks"),
    "rows": (lambda w, n: w.update({n: w[n][:-1]}), "blocks.1.attn.proj.weight|running_var"),
    "scalar": (lambda w, n: w.update({n: torch.tensor(1.0)}), r"\(\)"),
    "empty": (lambda w, n: w.update({n: torch.zeros(0)}), r"\(0,\)"),
    "nan": (lambda w, n: spoilt(w[n], torch.nan), "has 1 of .* not finite"),
    "infinite": (lambda w, n: spoilt(w[n], -torch.inf), "not finite"),
    "too large": (lambda w, n: w.update({n: w[n].double() * 1e300 + 1e300}), "not finite in torch.float32"),
    "whole numbers": (lambda w, n: w.update({n: w[n].long()}), "is torch.int64"),
    "complex": (lambda w, n: w.update({n: w[n].to(torch.complex64)}), "is torch.complex64"),
    "8 bits": (lambda w, n: w.update({n: w[n].to(torch.float8_e4m3fn)}), "is torch.float8_e4m3fn"),
    "meta": (lambda w, n: w.update({n: w[n].to("meta")}), "on the device 'meta'"),
    "sparse": (lambda w, n: w.update({n: w[n].to_sparse()}), "it is sparse"),
    "nested": (lambda w, n: w.update({n: torch.nested.nested_tensor([w[n].flatten()])}), "nested tensor"),
    "quantised": (
        lambda w, n: w.update({n: torch.quantize_per_tensor(w[n], 0.1, 0, torch.qint8)}),
        "it is quantised",
    ),
}


@pytest.mark.filterwarnings("ignore:.*[qQ]uanti")
@pytest.mark.parametrize("change", CHANGES)
def test_what_does_not_fit_is_a_sentence_and_changes_nothing(family, change):
    net, load, weights, name = family
    before = {key: value.clone() for key, value in net.state_dict().items()}
    make, told = CHANGES[change]
    make(weights, name)
    with pytest.raises(UsageError, match=told) as error:
        load(net, weights)
    assert len(str(error.value)) < 600
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


@pytest.mark.parametrize("container", ["model", "state_dict", "model_ema", "state_dict_ema"])
def test_containers_are_opened(family, container):
    net, load, weights, _ = family
    random = {key: value.clone() for key, value in net.state_dict().items()}
    load(net, weights)
    expected = {key: value.clone() for key, value in net.state_dict().items()}
    net.load_state_dict(random)
    with warnings.catch_warnings(action="error"):
        load(net, {"epoch": 3, container: weights})
    assert all(torch.equal(expected[key], value) for key, value in net.state_dict().items())


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_a_wrappers_prefix_is_removed_with_one_notice(families, prefix):
    net, load, weights, _ = families["autoformer"]
    with pytest.warns(UserWarning, match="begin with 'module.'|begin with '_orig_mod.'") as told:
        load(net, {f"{prefix}{name}": value for name, value in weights.items()})
    assert len(told) == prefix.count(".")


def test_a_prefix_on_some_names_is_refused(families):
    net, load, weights, name = families["autoformer"]
    with pytest.raises(UsageError, match=f"1 parameters are missing.*such as module.{name}"):
        load(net, {f"module.{key}" if key == name else key: value for key, value in weights.items()})


def test_several_state_dicts_are_named(families):
    net, load, weights, _ = families["autoformer"]
    with pytest.warns(UserWarning, match="weights under 'model' and 'model_ema'; 'model' is taken"):
        load(net, {"model_ema": {}, "model": weights})


def test_two_tensors_of_one_name_are_refused(families):
    net, load, weights, _ = families["ofa"]
    with pytest.raises(
        UsageError, match="two tensors for 'stem.weight', one of them 'first_conv.conv.weight'"
    ):
        load(net, weights | {"first_conv.conv.weight": torch.zeros_like(weights["stem.weight"])})


def test_negative_variances_are_refused(families):
    net, load, weights, name = families["ofa"]
    with pytest.raises(UsageError, match=f"{name} has negative variances"):
        load(net, weights | {name: -weights[name]})


def test_a_bias_that_one_block_lacks_is_not_zero(families):
    """All blocks or none: a lost tensor is no model without biases."""
    net, load, weights, _ = families["vit"]
    for name in (
        "blocks.0.attn.qkv.bias",
        "blocks.1.norm1.bias",
        "blocks.0.ls1.gamma",
        "patch_embed.proj.bias",
    ):
        with pytest.raises(UsageError, match=f"not complete: it lacks {name}"):
            load(net, {key: value for key, value in weights.items() if key != name})
    load(net, {key: value for key, value in weights.items() if not key.endswith("qkv.bias")})


def test_a_head_that_is_torn_is_not_replaced(families):
    net, load, weights, _ = families["vit"]
    with pytest.raises(UsageError, match="lacks head.weight"):
        load(net, {key: value for key, value in weights.items() if key != "head.weight"})
    with pytest.raises(UsageError, match="head.weight of the ViT is"):
        load(net, weights | {"head.weight": weights["head.weight"][:, 1:]})


@pytest.mark.parametrize("found", [None, 3, [], {}, {"model": {}}, torch.zeros(3), torch.nn.Linear(1, 1)])
def test_what_is_no_state_dict(families, found):
    for net, load, _, _ in families.values():
        with pytest.raises(UsageError, match="state dict"):
            load(net, found)
    looped = {}
    looped["model"] = looped
    with pytest.raises(UsageError, match="it is a dict and not a tensor"):
        foreign.unwrapped(looped, "it")


def test_weights_of_16_and_64_bits_are_taken(family):
    net, load, weights, name = family
    load(
        net, weights | {name: weights[name].bfloat16(), list(weights)[0]: weights[list(weights)[0]].double()}
    )


def test_a_flipped_bit_in_a_file_of_torch_is_noticed(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.arange(4000.0)}, path)
    data = bytearray(path.read_bytes())
    data[data.index(torch.tensor([1500.0, 1501.0]).numpy().tobytes())] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        GrowtasError, match="cannot be read as weights .the record .* is damaged: its checksum is wrong"
    ):
        foreign.read(path)
