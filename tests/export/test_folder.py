"""An exported folder serves itself: its model runs in a process without growtas."""

import importlib.util
import json
import warnings

import pytest
import timm
import torch

from growtas import export

WITHOUT_GROWTAS = """
import sys, warnings
sys.modules["growtas"] = None  # import growtas raises ImportError
import timm, torch
root = sys.argv[1]
logits = {}
for name in ("growtas_vit", "growtas_mobilenet"):
    folder = f"{root}/{name}"
    sys.path.insert(0, folder)
    with warnings.catch_warnings(action="error"):
        module = __import__(name)
    assert module.__file__.startswith(root)
    images = torch.load(f"{root}/{name}.pt", weights_only=True)
    model = module.load(folder)
    by_timm = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    program, script = torch.export.load(f"{root}/{name}.pt2").module(), torch.jit.load(f"{root}/{name}.ts")
    with torch.inference_mode():
        logits[name] = [run(images) for run in (model, by_timm, program, script)]
    try:
        model.fuse()
    except ImportError as error:
        assert "growtas, which is not installed here" in str(error)
    else:
        raise AssertionError("fused without growtas")
torch.save(logits, f"{root}/logits.pt")
"""


VIT = {"embed_dim": 24, "num_heads": [2], "mlp_ratio": [2], "head_dim": 12, "max_relative_position": 2} | {
    "img_size": 16,
    "patch_size": 4,
    "num_classes": 5,
}
CONV = {"kernel": [3, 5], "expand": [3, 4], "depth": [1, 1], "widths": [8, 16], "strides": [1, 2]} | {
    "stem_width": 8,
    "first_width": 8,
    "final_width": 32,
    "feature_width": 32,
    "activations": ["relu", "h-swish"],
    "squeeze_excite": [False, True],
    "img_size": 16,
    "num_classes": 5,
}


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    return {
        "growtas_vit": timm.create_model("growtas_vit", **VIT).eval(),
        "growtas_mobilenet": timm.create_model("growtas_mobilenet", **CONV).eval(),
    }


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_both_families_load_where_growtas_cannot_be_imported(models, tmp_path, run_script):
    expected = {}
    for name, model in models.items():
        folder = export.save(model, tmp_path / name)
        assert sorted(path.name for path in folder.iterdir()) == [
            "README.md",
            "config.json",
            f"{name}.py",
            "model.safetensors",
        ]
        images = torch.randn(
            3, *json.loads((folder / "config.json").read_text())["pretrained_cfg"]["input_size"]
        )
        torch.save(images, tmp_path / f"{name}.pt")
        batches = {0: torch.export.Dim("batch")}
        program = torch.export.export(model, (images[:2],), dynamic_shapes=(batches,))
        torch.export.save(program, tmp_path / f"{name}.pt2")
        torch.jit.script(model).save(tmp_path / f"{name}.ts")
        with torch.inference_mode():
            expected[name] = model(images)
    done = run_script(WITHOUT_GROWTAS, str(tmp_path))
    assert done.returncode == 0, done.stderr
    for name, logits in torch.load(tmp_path / "logits.pt", weights_only=True).items():
        for found in logits:
            torch.testing.assert_close(found, expected[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["growtas_vit", "growtas_mobilenet"])
def test_the_folders_file_beside_growtas_neither_warns_nor_takes_over(models, tmp_path, name):
    folder, before = export.save(models[name], tmp_path), timm.models.model_entrypoint(name)
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spec.loader.exec_module(module)
    assert timm.models.model_entrypoint(name) is before
    assert type(module.load(folder)) is type(models[name])
    theirs = getattr(module, type(models[name]).__name__)(**models[name].model_args())
    theirs.load_state_dict(models[name].state_dict())
    images = torch.randn(2, 3, 16, 16)
    with torch.inference_mode():
        torch.testing.assert_close(theirs.eval().fuse()(images), models[name](images), rtol=0, atol=1e-6)


def test_a_folder_of_an_older_growtas_without_code_and_batch_counters_loads(models, tmp_path):
    folder = export.save(models["growtas_mobilenet"], tmp_path)
    weights = {k: v for k, v in models["growtas_mobilenet"].state_dict().items() if "num_batches" not in k}
    export.files.safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (folder / "growtas_mobilenet.py").unlink()
    about = json.loads((folder / "config.json").read_text())
    del about["growtas"]["sha256"]
    (folder / "config.json").write_text(json.dumps(about))
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(export.load(folder)(images), models["growtas_mobilenet"](images))
