"""Models as files for other runtimes, and the whole way there from training."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import growtas
from growtas import cli, export
from growtas.errors import GrowtasError, UsageError
from growtas.export import formats

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from runs import SPACE
from test_mobilenet_run import SPACE as MOBILENET
from thinning import thinned

RUNTIME = """
import sys
import numpy as np, onnxruntime
for name in sys.argv[1:]:
    session = onnxruntime.InferenceSession(name + "/model.onnx", providers=["CPUExecutionProvider"])
    np.save(name + "/found.npy", session.run(None, {"images": np.load(name + "/images.npy")})[0])
assert not {"growtas", "torch", "timm"} & set(sys.modules)
"""


@pytest.fixture
def needs():
    """Skip where the packages of a format are not installed."""
    return lambda to, int8="none": [
        pytest.importorskip(name)
        for name in formats.FORMATS[to].packages + (("torchao",) if int8 != "none" else ())
    ]


@pytest.fixture(scope="module")
def model():
    """A transformer of two layers."""
    torch.manual_seed(0)
    net = growtas.Supernet(SPACE, num_classes=10)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return growtas.extract(net, "d12-h1,2-r2,1", mean=(0.3,), std=(0.4,))


@pytest.mark.parametrize(
    ("space", "method"),
    thinned([(MOBILENET, "uniform"), (SPACE, "growtas")], fast=(1,), several=True),
    ids=["mobilenet", "digits"],
)
def test_a_run_goes_from_training_to_onnx_without_growtas(needs, tmp_path, space, method):
    needs("onnx")
    import numpy as np

    settings = {"data": "digits", "epochs": 1, "batch_size": 192, "stages": 1, "tensorboard": False}
    run = growtas.train(space, method=method, out=tmp_path, eval_subnets=0, device="cpu", **settings)
    assert cli.main(["export", str(run.path), "--to", "onnx", "--subnet", "smallest"]) == 0
    images = torch.stack([image for image, _ in run.splits().test][:6])
    np.save(run.path / "images.npy", images.numpy())
    subprocess.run([sys.executable, "-c", RUNTIME, str(run.path)], check=True, cwd="/")
    net, found = run.load_net(), torch.from_numpy(np.load(run.path / "found.npy"))
    if net.needs_calibration:
        growtas.training.calibration.calibration(net, run.splits().train)(run.space.smallest())
    with torch.inference_mode():
        expected = net(images, run.space.smallest())
    assert found.shape == (6, 10) and expected.std() > 0.01
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    about = {
        p.key: json.loads(p.value)
        for p in pytest.importorskip("onnx").load(run.path / "model.onnx").metadata_props
    }
    assert about["label_names"] == list("0123456789") and about["input_size"] == [1, 8, 8]


@pytest.mark.parametrize("to", [pytest.param("pt2", marks=pytest.mark.slow), "torchscript"])
def test_a_file_is_equal_in_its_runtime_whatever_the_batch(model, to, tmp_path):
    out = tmp_path / "deep" / "model"
    found = export.write(model, to, out)
    assert found.difference <= 1e-5 * found.largest and found.size == out.stat().st_size
    extra = {"config.json": ""}
    if to == "pt2":
        loaded = torch.export.load(out.open("rb"), extra_files=extra).module()
    else:
        loaded = torch.jit.load(out, _extra_files=extra)
    assert json.loads(extra["config.json"])["mean"] == [0.3]
    images = torch.randn(9, 1, 8, 8)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(images), model(images))
    with pytest.raises(UsageError, match="exists; choose another file"):
        export.write(model, to, out)


def test_int8_keeps_the_accuracy_and_says_so(model, needs, tmp_path):
    needs("torchscript", "weights")
    folder = export.save(model, tmp_path / "saved")
    found = export.convert(folder, "torchscript", int8="weights", data="digits", out=tmp_path / "int8.pt")
    before, after = found.top1
    assert before == growtas.evaluate(folder, data="digits").top1 and abs(after - before) < 5
    assert (
        found.quantized == 9 and "% before and" in str(found) and "359 images of the test split" in str(found)
    )
    plain = export.convert(folder, "torchscript")
    assert plain.path == folder / "model.pt" and plain.top1 is None
    with torch.inference_mode():
        images = torch.randn(4, 1, 8, 8)
        assert not torch.equal(torch.jit.load(found.path)(images), torch.jit.load(plain.path)(images))
    assert all(
        parameter.dtype == torch.float32 for parameter in model.parameters()
    )  # the model is left alone


class Counting(torch.nn.Module):
    """A model that tracing freezes: its logits depend on the size of the batch."""

    pretrained_cfg = {"input_size": (1, 4, 4)}  # noqa: RUF012

    def forward(self, images):
        return images.flatten(1) * len(images)


def test_a_file_with_other_logits_is_not_left(tmp_path):
    with pytest.raises(GrowtasError, match=r"model\.pt was not written: its logits differ by"):
        export.write(Counting(), "torchscript", tmp_path / "model.pt")
    assert not list(tmp_path.iterdir())


def test_wrong_calls_are_sentences(model, tmp_path, monkeypatch, capsys):
    for given, sentence in (
        ({"to": "onxn"}, "Did you mean 'onnx'"),
        ({"to": "pt2", "int8": "8"}, "int8='8' is unknown"),
        ({"to": "onnx", "int8": "dynamic"}, "can be written to pt2, not to onnx"),
    ):
        with pytest.raises(UsageError, match=sentence):
            export.write(model, out=tmp_path / "model", **given)
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None)
    assert cli.main(["export", "timm:test_vit", "--to", "onnx", "--int8", "weights"]) == 2
    missing = "onnx, onnxscript, onnxruntime, torchao"
    assert f"needs packages that are not installed ({missing}): pip install 'growtas[export]'" in (
        capsys.readouterr().err
    )
    assert cli.main(["export", "timm:test_vit", "--to", "pt2"]) == 2
    assert "has no folder; give out=FILE" in capsys.readouterr().err
