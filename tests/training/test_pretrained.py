"""A run that begins with a plain ViT: one subnet is that ViT, to the last place of its logits."""

from __future__ import annotations

import dataclasses
import json

import pytest
import safetensors.torch
import timm
import torch
from runs import SPACE

import growtas
from growtas.errors import GrowtasError, UsageError
from growtas.space import SearchSpace
from growtas.supernet.pretrained import PlainViT, load_vit
from growtas.training import Run, external, initial
from growtas.training.config import TrainConfig

IMAGE = {"image_size": 32, "patch_size": 8, "head_dim": 16, "max_relative_position": 3}
COLOUR = SearchSpace("colour", (32, 48), (3, 4), (2, 3), (1, 2), **IMAGE)
LARGER = SearchSpace("larger", (48, 80), (4, 5), (3, 5), (2, 4), **IMAGE)


def vit(seed=0, **arguments):
    """A timm ViT of COLOUR's largest sizes whose every weight matters."""
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 7}
    model = timm.create_model("vit_tiny_patch16_224", **(sizes | arguments)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.1, 0.3, generator=generator)
    return model


def source(model, **values):
    head_dim, eps = model.blocks[0].attn.head_dim, model.norm.eps
    return PlainViT("the ViT", model.state_dict(), head_dim, model.global_pool, eps, **values)


def supernet(space, model, num_classes=7, qkv_bias="interleaved"):
    options = {"global_pool": model.global_pool, "norm_eps": model.norm.eps}
    return growtas.Supernet(space, num_classes, qkv_bias, **options).eval()


@torch.no_grad()
def check_equal(net, subnet, model, images, theirs=None):
    expected = model(images if theirs is None else theirs)
    assert expected.abs().max() > 0.5
    torch.testing.assert_close(net(images, subnet), expected, rtol=1e-4, atol=1e-4)


IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))

KINDS = {
    "vit": {},
    "published qkv bias": {},
    "mean of the patches": {"global_pool": "avg", "fc_norm": False},
    "layer scale": {"init_values": 0.1},
    "no position of cls": {"no_embed_class": True},
    "no qkv bias": {"qkv_bias": False},
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_largest_subnet_has_the_logits_of_the_vit(kind):
    model = vit(**KINDS[kind])
    net = supernet(COLOUR, model, qkv_bias="published" if kind.startswith("published") else "interleaved")
    subnet, remarks = load_vit(net, source(model))
    assert subnet == COLOUR.largest() and not remarks
    check_equal(net, subnet, model, IMAGES)


@pytest.mark.parametrize("qkv_bias", ["interleaved", "published"])
def test_a_subnet_of_a_larger_supernet_has_the_logits_of_the_vit(qkv_bias):
    model = vit()
    net = supernet(LARGER, model, qkv_bias=qkv_bias)
    subnet, remarks = load_vit(net, source(model))
    assert str(subnet) == "d48-h3,3-r4,4" and not remarks
    check_equal(net, subnet, model, IMAGES)
    assert net(IMAGES, LARGER.largest()).isfinite().all()


def test_autoformer_tiny_takes_deit_tiny():
    """As the published names say: no weights are needed for this."""
    with torch.device("meta"):
        net = growtas.Supernet("autoformer-tiny", 1000)
        weights = timm.create_model("deit_tiny_patch16_224").state_dict()
    from growtas.supernet.pretrained import _subnet_of

    found = PlainViT("deit", weights, 64)
    subnet = _subnet_of(net, found, weights)
    assert str(subnet) == f"d192-h{','.join('3' * 12)}-r{','.join('4' * 12)}"


@pytest.mark.parametrize(
    "arguments, told",
    [
        ({"embed_dim": 64, "num_heads": 4}, ["embed_dim is 64 and may be 32 or 48", "num_heads is 4"]),
        ({"depth": 3}, ["depth is 3 and may be 1 or 2"]),
        ({"mlp_ratio": 2}, ["mlp_ratio is 2 and may be 3 or 4"]),
        ({"patch_size": 16}, ["patch_size is 16 and may be 8"]),
        ({"num_heads": 6}, ["head_dim is 8 and may be 16"]),
        ({"in_chans": 5}, ["in_channels is 5 and may be 3"]),
    ],
)
def test_sizes_that_do_not_fit_are_named(arguments, told):
    net = growtas.Supernet(COLOUR, 7)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(UsageError, match="does not fit into space 'colour'") as error:
        load_vit(net, source(vit(**arguments)))
    assert all(sentence in str(error.value) for sentence in told)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_positions_are_resampled_as_timm_does():
    model = vit()
    net = supernet(dataclasses.replace(COLOUR, image_size=48), model)
    subnet, remarks = load_vit(net, source(model))
    model.set_input_size(img_size=48)
    check_equal(net, subnet, model, torch.randn(2, 3, 48, 48))
    assert remarks == ["The positions of the ViT are resampled from 4 x 4 patches to 6 x 6."]


def test_grey_images_are_colour_images_of_equal_channels():
    model = vit()
    net = supernet(dataclasses.replace(COLOUR, in_channels=1), model)
    subnet, _ = load_vit(net, source(model))
    check_equal(net, subnet, model, IMAGES[:, :1], IMAGES[:, :1].expand(-1, 3, -1, -1))


def test_another_normalisation_of_the_images_is_folded_in():
    model, pixels = vit(), torch.rand(2, 3, 32, 32)
    ours, theirs = ((0.4, 0.5, 0.6), (0.2, 0.25, 0.3)), ((0.5,) * 3, (0.5, 0.4, 0.5))
    normalised = [
        (pixels - torch.tensor(m).view(-1, 1, 1)) / torch.tensor(s).view(-1, 1, 1) for m, s in (ours, theirs)
    ]
    net = supernet(COLOUR, model)
    subnet, _ = load_vit(net, source(model, mean=theirs[0], std=theirs[1]), *ours)
    check_equal(net, subnet, model, *normalised)


def test_the_head_starts_anew_where_the_classes_differ():
    model = vit()
    net = supernet(COLOUR, model, num_classes=5)
    head = net.head.weight.clone()
    _, remarks = load_vit(net, source(model))
    assert remarks == ["The head begins with random weights: the ViT has 7 classes, this run 5."]
    assert torch.equal(net.head.weight, head) and not net.blocks[1].attn.key_table_v.any()


@pytest.mark.parametrize(
    "suffix, wrap", [(".safetensors", None), (".pth", "model"), (".pth", "state_dict"), (".pt", None)]
)
def test_files_of_weights(tmp_path, suffix, wrap):
    model, path = vit(), tmp_path / f"weights{suffix}"
    weights = model.state_dict()
    if suffix == ".safetensors":
        safetensors.torch.save_file(weights, path)
    elif wrap == "state_dict":
        torch.save({"epoch": 3, wrap: {f"module.{name}": value for name, value in weights.items()}}, path)
    else:
        torch.save({wrap: weights} if wrap else weights, path)
    found = initial.open_source(str(path))
    net = supernet(COLOUR, model)
    check_equal(net, load_vit(net, found)[0], model, IMAGES)
    assert (found.global_pool, found.norm_eps) == ("token", model.norm.eps)


class Code:
    def __reduce__(self):
        return print, ("run",)


def test_files_that_are_no_weights_are_sentences(tmp_path, capsys):
    torch.save({"model": {}, "args": Code()}, tmp_path / "code.pth")
    (tmp_path / "torn.safetensors").write_bytes(b"\x00" * 7)
    torch.save([1, 2], tmp_path / "list.pth")
    for name in ("code.pth", "torn.safetensors"):
        with pytest.raises(GrowtasError, match="cannot be read as weights"):
            initial.open_source(str(tmp_path / name))
    with pytest.raises(UsageError, match="holds no state dict"):
        initial.open_source(str(tmp_path / "list.pth"))
    with pytest.raises(UsageError, match="There is no file .*none.pth"):
        initial.open_source(str(tmp_path / "none.pth"))
    assert capsys.readouterr().out == ""


def saved(model, folder, **cfg):
    """A folder as timm reads it."""
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 7}
    config = {"architecture": "vit_tiny_patch16_224", "model_args": sizes | cfg.pop("model_args", {})}
    config |= {"num_classes": model.num_classes, "pretrained_cfg": {"num_classes": model.num_classes, **cfg}}
    folder.mkdir()
    safetensors.torch.save_file(model.state_dict(), folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", ["timm:local-dir:{}", "{}"])
def test_a_folder_of_timm(tmp_path, name):
    model = vit()
    folder = saved(model, tmp_path / "vit", mean=[0.5] * 3, std=[0.5] * 3)
    found = initial.open_source(name.format(folder))
    assert (found.head_dim, found.global_pool, found.norm_eps, found.mean) == (16, "token", 1e-6, (0.5,) * 3)
    assert all(torch.equal(value, found.weights[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    "name, told",
    [
        ("resnet18", "it is a ResNet"),
        ("vit_base_patch16_clip_quickgelu_224", "its activation is QuickGELU"),
        ("vit_tiny_patch16_224:avg", "its last norm comes after the pooling"),
    ],
)
def test_models_that_are_no_plain_vit(monkeypatch, name, told):
    name, _, pool = name.partition(":")
    made, arguments = timm.create_model, {"global_pool": pool} if pool else {}

    def create(chosen, pretrained):
        assert pretrained
        with torch.device("meta"):
            return made(chosen, **arguments)

    monkeypatch.setattr(timm, "create_model", create)
    with pytest.raises(UsageError, match=f"timm:{name} is no plain vision transformer: .*{told}"):
        initial.open_source(f"timm:{name}")


def test_unknown_tensors_and_names_and_no_network_are_sentences(monkeypatch):
    with pytest.raises(UsageError, match="no plain vision transformer of timm or DeiT: it has reg_token"):
        load_vit(growtas.Supernet(COLOUR, 7), source(vit(reg_tokens=2)))
    with pytest.raises(UsageError, match="has no model 'deit_tyny_patch16_224'. Did you mean"):
        initial.open_source("timm:deit_tyny_patch16_224")

    def unreachable(*arguments, **options):
        raise ConnectionError("cannot reach the hub")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(GrowtasError, match=r"could not be loaded \(cannot reach the hub\).*no network"):
        external.create("timm:deit_tiny_patch16_224")


# -- runs ------------------------------------------------------------------------------------------------

TINY = {
    "img_size": 8,
    "patch_size": 4,
    "in_chans": 1,
    "embed_dim": 8,
    "depth": 3,
    "num_heads": 2,
    "mlp_ratio": 2,
}
STILL = {"lr": 0.0, "min_lr": 0.0, "warmup_lr": 0.0, "warmup_epochs": 0, "epochs": 2, "batch_size": 512}


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A small ViT, and a run of the digits that began with it and then stood still."""
    model = vit(num_classes=10, **TINY)
    folder = tmp_path_factory.mktemp("begun")
    path = saved(model, folder / "vit", model_args={**TINY, "num_classes": 10}, mean=[0.0], std=[1.0])
    options = {"initial": str(path), "eval_every": 0, "eval_subnets": 0, "tensorboard": False}
    return model, growtas.train(SPACE, data="digits", out=folder / "run", **STILL, **options)


def test_a_run_begins_with_a_vit(begun):
    model, run = begun
    run = Run.open(run.path)
    assert (run.config.global_pool, run.config.norm_eps) == ("token", 1e-6)
    subnet = SPACE.parse("d8-h2,2,2-r2,2,2")
    images = run.splits().test[0][0][None]
    known = growtas.training.data.preprocessing("digits", SPACE)
    check_equal(run.load_net(), subnet, model, images, images * known["std"][0] + known["mean"][0])


def test_a_subnet_of_it_is_extracted_with_its_pooling(begun, tmp_path):
    run = begun[1]
    exported = growtas.extract(run, SPACE.largest())
    assert (exported.global_pool, exported.norm_eps, exported.norm.eps) == ("token", 1e-6, 1e-6)
    images = torch.randn(2, 1, 8, 8)
    loaded = growtas.export.load(growtas.export.save(exported, tmp_path / "model"))
    with torch.no_grad():
        assert torch.equal(loaded(images), exported(images))


def test_a_finetune_of_it_keeps_its_pooling(begun, tmp_path):
    source = begun[1]
    config = TrainConfig(space="digits", initial=str(source.path))
    assert initial.adopted(config, source).global_pool == "token"


def test_methods_that_continue_a_run_do_not_begin_with_a_vit(begun, tmp_path):
    name = str(begun[1].config.initial)
    with pytest.raises(UsageError, match="it continues the weights of a finished run"):
        growtas.train(SPACE, data="digits", method="growtas+", initial=name, out=tmp_path / "run", **STILL)


def test_a_vit_is_nothing_for_convolutional_spaces(begun, tmp_path):
    name = str(begun[1].config.initial)
    for settings in ({"initial": name}, {"global_pool": "token"}):
        with pytest.raises(UsageError, match="vision transformer"):
            growtas.train("digits-mobilenet", data="digits", out=tmp_path / "run", **STILL, **settings)
