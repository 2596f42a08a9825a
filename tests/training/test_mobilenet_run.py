"""A MobileNetV3 supernet trained, evaluated, searched, taken out and saved, from the run's folder alone."""

from __future__ import annotations

import json

import pytest
import torch

import growtas
from growtas import export
from growtas.errors import UsageError
from growtas.searching import read_result
from growtas.searching.evaluate import Evaluator
from growtas.spaces.mobilenet import MobileNetSpace
from growtas.training import checkpoint
from growtas.training.calibration import calibration
from growtas.training.data import evaluation_loader
from growtas.training.evaluate import evaluate
from growtas.training.run import Run

SPACE = MobileNetSpace(
    "tiny-mobilenet",
    kernel=(3, 5),
    expand=(2, 3),
    depth=(1, 2),
    stem_width=8,
    first_width=8,
    widths=(16, 24),
    final_width=32,
    feature_width=48,
    strides=(2, 1),
    activations=("relu", "h-swish"),
    squeeze_excite=(False, True),
    stem_stride=1,
    image_size=8,
    in_channels=1,
)
SMALL = {"data": "digits", "epochs": 2, "batch_size": 64, "lr": 3e-3, "tensorboard": False} | {
    "eval_subnets": 1,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("runs") / "mobilenet"
    growtas.train(SPACE, method="uniform", out=out, eval_every=1, **SMALL)
    return out


def test_the_run_is_searched_extracted_and_saved(folder, tmp_path):
    evaluations = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    last = [line for line in evaluations if line["event"] == "eval"][-1]["results"]
    assert {result["name"] for result in last} == {"smallest", "largest", "random-0"}
    assert max(result["top1"] for result in last) > 30  # of ten classes: it learns

    found = growtas.search(folder, max_params=9_000, population=4, generations=2, parents=2)
    model = growtas.extract(folder, found.best.subnet)
    assert model.extraction_error < 1e-5
    assert sum(p.numel() for p in model.parameters()) == found.best.params <= 9_000
    loaded = export.load(export.save(model, tmp_path / "best"))
    splits = Run.open(folder).splits()
    with torch.inference_mode():
        hits = sum((loaded(x).argmax(1) == y).sum().item() for x, y in evaluation_loader(splits.test, 512))
    assert 100 * hits / len(splits.test) == pytest.approx(found.test_top1, abs=0.3)


def test_a_search_that_was_cut_off_ends_as_if_it_had_not_been(folder, tmp_path):
    settings = {"max_params": 9_000, "population": 4, "generations": 3, "parents": 2}
    whole = growtas.search(folder, out=tmp_path / "whole.jsonl", **settings)
    lines = whole.path.read_bytes().splitlines(keepends=True)
    (tmp_path / "cut.jsonl").write_bytes(b"".join(lines[:6]))
    resumed = growtas.search(folder, out=tmp_path / "cut.jsonl", **settings)
    assert resumed.path.read_bytes() == whole.path.read_bytes()
    assert read_result(resumed.path) == resumed


def test_a_space_that_is_given_is_known_by_its_name(folder):
    run = Run.open(folder)
    assert run.config.space == "tiny-mobilenet" and run.space == SPACE


def test_calibration_is_what_makes_a_subnet_accurate(folder):
    run = Run.open(folder)
    net, splits, largest = run.load_net(), run.splits(), SPACE.largest()
    top1 = Evaluator(net, splits.search, calibrate=calibration(net, splits.train)).top1(largest)
    assert top1 > Evaluator(run.load_net(), splits.search, calibrate=lambda subnet: None).top1(largest) + 5
    with pytest.raises(UsageError, match="is calibrated for each subnet"):
        Evaluator(net, splits.search)
    with pytest.raises(UsageError, match="is calibrated for each subnet"):
        evaluate(net, {"largest": largest}, splits.search, torch.device("cpu"))


def test_evaluation_does_not_change_the_training(folder, tmp_path):
    growtas.train(SPACE, method="uniform", out=tmp_path / "silent", eval_every=0, **SMALL)
    one, other = (
        checkpoint.load(Run.open(path).checkpoint_path)["weights"] for path in (folder, tmp_path / "silent")
    )
    assert all(torch.equal(value, other[name]) for name, value in one.items())
