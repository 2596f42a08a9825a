"""An extracted model is a timm model: built, loaded and used through timm's own interface."""

import json

import pytest
import timm
import torch
from timm.data import resolve_model_data_config
from timm.optim import create_optimizer_v2

from growtas import cost, export
from growtas.errors import GrowtasError, UsageError
from growtas.space import Subnet, load_space
from growtas.supernet import Supernet

DIGITS = load_space("digits")
SUBNET = Subnet(36, 4, (2, 3, 2, 3), (3, 2, 2, 3))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    net = Supernet("digits", 10)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return export.extract(net, SUBNET, mean=(0.3,), std=(0.4,))


@pytest.fixture
def images():
    return torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def rebuilt(model):
    """A copy that a test may change."""
    copy = timm.create_model("growtas_vit", pretrained_cfg=model.pretrained_cfg, **model.model_args()).eval()
    copy.load_state_dict(model.state_dict())
    return copy


def test_the_configuration_says_what_the_subnet_is_and_costs(model, tmp_path):
    content = json.loads((export.save(model, tmp_path) / "config.json").read_text())
    assert "license" not in content["pretrained_cfg"]  # the weights are the user's
    assert export.files.config(model, license="cc0-1.0")["pretrained_cfg"]["license"] == "cc0-1.0"
    assert content["architecture"] == "growtas_vit"
    assert content["model_args"]["num_heads"] == [2, 3, 2, 3]
    assert content["pretrained_cfg"]["mean"] == [0.3]
    assert content["pretrained_cfg"]["input_size"] == [1, 8, 8]
    assert Subnet.parse(content["growtas"]["subnet"]) == SUBNET
    assert content["growtas"]["parameters"] == cost.parameters(SUBNET, DIGITS, 10)
    assert content["growtas"]["macs"] == cost.macs(SUBNET, DIGITS, 10)
    assert content["growtas"]["extraction_error"] < 1e-6
    oblong = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, img_size=(8, 12))
    assert export.files.config(oblong)["growtas"]["macs"] == cost.macs(SUBNET, DIGITS, 10, (8, 12))


def test_timms_preprocessing_is_the_models(model, tmp_path):
    loaded = timm.create_model(f"local-dir:{export.save(model, tmp_path)}", pretrained=True)
    data = resolve_model_data_config(loaded)
    assert data["input_size"] == (1, 8, 8)
    assert (tuple(data["mean"]), tuple(data["std"])) == ((0.3,), (0.4,))


def test_a_model_loads_again_and_saves_the_same(model, images, tmp_path):
    loaded = export.load(export.save(model, tmp_path / "a"))
    with torch.inference_mode():
        assert torch.equal(loaded(images), model(images))
    loaded.extraction_error = model.extraction_error
    export.save(loaded, tmp_path / "b")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_saving_never_overwrites_another_model_unasked(model, tmp_path):
    export.save(model, tmp_path)
    export.save(model, tmp_path)  # the same again changes nothing
    other = rebuilt(model)
    other.reset_classifier(3)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UsageError, match="holds another model"):
        export.save(other, tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    export.save(other, tmp_path, overwrite=True)
    assert export.load(tmp_path).num_classes == 3
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        export.save(model, tmp_path / "file")


def test_what_cannot_be_loaded_is_a_sentence(model, tmp_path):
    with pytest.raises(UsageError, match="holds no saved model: config.json is missing"):
        export.load(tmp_path)
    export.save(model, tmp_path)
    weights, config = (tmp_path / name for name in ("model.safetensors", "config.json"))
    whole, text = weights.read_bytes(), config.read_text()
    weights.write_bytes(whole[:-100])
    with pytest.raises(GrowtasError, match="model.safetensors cannot be read as weights .*Copy it again"):
        export.load(tmp_path)
    weights.write_bytes(whole)
    config.write_text(text.replace('"embed_dim": 36', '"embed_dim": 24'))
    with pytest.raises(GrowtasError, match="does not belong to its config.json"):
        export.load(tmp_path)
    config.write_text(text[:50])
    with pytest.raises(GrowtasError, match="config.json is damaged"):
        export.load(tmp_path)
    config.write_text(text.replace('"architecture": "growtas_vit"', '"architecture": "resnet18"'))
    with pytest.raises(UsageError, match="another model than growtas_vit"):
        export.load(tmp_path)


# -- the interface that timm's users and scripts rely on -----------------------------------------------------


def test_without_sizes_it_is_autoformers_tiny():
    with torch.device("meta"):
        built = timm.create_model("growtas_vit")
    assert sum(p.numel() for p in built.parameters()) == 5_867_944  # the published subnet's exact count
    assert "growtas_vit" in timm.list_models("growtas*")


def test_features_and_head_compose_to_the_logits(model, images):
    with torch.inference_mode():
        features = model.forward_features(images)
        assert features.shape == (3, 17, 36)
        assert torch.equal(model.forward_head(features), model(images))
        pre = model.forward_head(features, pre_logits=True)
        assert pre.shape == (3, model.num_features)
        assert torch.equal(model.get_classifier()(pre), model(images))


def test_intermediates_are_the_blocks_outputs(model, images):
    with torch.inference_mode():
        final, outputs = model.forward_intermediates(images)
        assert torch.equal(final, model.forward_features(images))
        assert [tuple(output.shape) for output in outputs] == [(3, 36, 4, 4)] * 4
        last, prefix = model.forward_intermediates(
            images, [3], return_prefix_tokens=True, norm=True, output_fmt="NLC", intermediates_only=True
        )[0]
        assert torch.equal(torch.cat((prefix, last), 1), final)
        assert torch.equal(
            outputs[1].flatten(2).mT, model.forward_intermediates(images, [1], output_fmt="NLC")[1][0]
        )
        early = model.forward_intermediates(images, [0, 1], stop_early=True, intermediates_only=True)
        assert all(torch.equal(a, b) for a, b in zip(early, outputs[:2], strict=True))


def test_stop_early_stops(model, images):
    ran = []
    hooks = [b.register_forward_hook(lambda *_, i=i: ran.append(i)) for i, b in enumerate(model.blocks)]
    with torch.inference_mode():
        model.forward_intermediates(images, [1], stop_early=True)
    for hook in hooks:
        hook.remove()
    assert ran == [0, 1]


def test_features_only(model, images):
    backbone = timm.create_model("growtas_vit", features_only=True, out_indices=(1, 2), **model.model_args())
    assert backbone.feature_info.channels() == [36, 36]
    assert backbone.feature_info.reduction() == [2, 2]
    assert [tuple(output.shape) for output in backbone(images)] == [(3, 36, 4, 4)] * 2


def test_the_head_can_be_replaced(model, images):
    changed = rebuilt(model)
    changed.reset_classifier(7)
    assert changed(images).shape == (3, 7)
    assert changed.get_classifier().weight.shape == (7, 36)
    changed.reset_classifier(0)
    assert changed(images).shape == (3, 36)
    changed.reset_classifier(0, "")
    assert changed(images).shape == (3, 17, 36)
    changed.reset_classifier(5, "token")
    with torch.inference_mode():
        assert torch.equal(changed(images), changed.head(changed.forward_features(images)[:, 0]))
    changed.head = torch.nn.Linear(36, 4)
    assert changed(images).shape == (3, 4)


def test_timm_drops_the_head_where_the_classes_differ(model, images, tmp_path):
    folder = export.save(model, tmp_path)
    tuned = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=4).eval()
    assert tuned(images).shape == (3, 4)
    with torch.inference_mode():
        assert torch.equal(tuned.forward_features(images), model.forward_features(images))


def test_timm_adapts_the_input_channels_and_the_image_size(model, tmp_path):
    folder = export.save(model, tmp_path)
    colour = timm.create_model(f"local-dir:{folder}", pretrained=True, in_chans=3)
    grey = torch.randn(2, 1, 8, 8)
    with torch.inference_mode():
        torch.testing.assert_close(
            colour.eval()(grey.expand(-1, 3, -1, -1)), model(grey), rtol=1e-4, atol=1e-5
        )
    larger = timm.create_model(f"local-dir:{folder}", pretrained=True, img_size=12)
    assert larger.pos_embed.shape == (1, 37, 36)
    assert larger(torch.randn(1, 1, 12, 12)).shape == (1, 10)
    assert torch.equal(larger.pos_embed[:, 0], model.pos_embed[:, 0])


def test_gradient_checkpointing_changes_no_gradient(model, images):
    gradients = []
    for enable in (False, True):
        net = rebuilt(model).train()
        net.set_grad_checkpointing(enable)
        net(images).square().sum().backward()
        gradients.append([p.grad for p in net.parameters()])
    assert all(grad is not None for grad in gradients[0])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_every_parameter_belongs_to_a_group_of_the_matcher(model):
    from timm.models import group_parameters

    groups = group_parameters(model, model.group_matcher())
    named = [name for names in groups.values() for name in names]
    assert sorted(named) == sorted(name for name, _ in model.named_parameters())
    assert len(groups) == 1 + 4 + 1  # stem, blocks (the last with the norm, as timm has it), head


def test_timms_optimizer_spares_what_must_not_decay(model):
    optimizer = create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.7)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    parameters = dict(model.named_parameters())
    assert decays[id(parameters["pos_embed"])] == decays[id(parameters["cls_token"])] == 0
    assert decays[id(parameters["blocks.0.norm1.weight"])] == 0
    assert decays[id(parameters["blocks.0.attn.key_table_v"])] == 0.05
    rates = {
        id(p): group["lr"] * group.get("lr_scale", 1)
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert rates[id(parameters["pos_embed"])] < rates[id(parameters["head.weight"])]


def test_sizes_that_do_not_fit_are_a_sentence():
    with pytest.raises(ValueError, match="num_heads has 2 entries and mlp_ratio 1"):
        timm.create_model("growtas_vit", num_heads=[3, 3], mlp_ratio=[4])
