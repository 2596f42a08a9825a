"""The demo in small: what it writes, what it says, and that a second call continues."""

from __future__ import annotations

import os
import re
import signal

import pytest
import timm
import torch

import growtas
from growtas import cli, plotting
from growtas.demo import demo
from growtas.training.log import read_log

SMALL = {"epochs": 2, "population": 4, "generations": 2}
ARGS = ["--epochs", "2", "--population", "4", "--generations", "2"]
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished small demo and its folder; not to be changed."""
    folder = tmp_path_factory.mktemp("demo") / "output"
    return demo(str(folder), **SMALL), folder


def test_every_file_is_there_and_nothing_else(made):
    result, folder = made
    names = {str(path.relative_to(folder)) for path in result.files}
    curves = {name for name in names if name.startswith("run/tensorboard/")}
    assert len(curves) == 1
    assert names - curves == {
        "demo.png",
        "best/README.md",
        "best/config.json",
        "best/growtas_vit.py",
        "best/model.safetensors",
        "run/checkpoint.pt",
        "run/config.yaml",
        "run/log.jsonl",
        "run/search-max-params-60000-population-4-generations-2.jsonl",
    }
    assert (folder / "demo.png").read_bytes().startswith(PNG)


def test_the_result_is_the_searchs_and_the_saved_model_the_slice(made):
    result, folder = made
    found = result.found
    assert len(found.history) == 8 and found.best.params <= 60_000
    assert all(evaluation.params <= 60_000 for evaluation in found.history)
    run = growtas.training.Run.open(folder / "run")
    images = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    saved = timm.create_model(f"local-dir:{folder / 'best'}", pretrained=True).eval()
    with torch.no_grad():
        expected = run.load_net()(images, found.best.subnet)
        assert (saved(images) - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert 0 <= result.logit_difference < 1e-3


def test_a_second_call_shows_the_results_again(made, capsys, monkeypatch):
    monkeypatch.setattr(plotting, "picture", lambda path, *shown: path)
    result, folder = made
    kept = {path: path.read_bytes() for path in result.files if path.name != "demo.png"}
    assert cli.main(["demo", "--out", str(folder), *ARGS]) == 0
    out = capsys.readouterr().out
    assert "training was finished earlier" in out
    best = result.found.best
    for line in (
        rf"best subnet +{re.escape(str(best.subnet))}",
        rf"parameters +{best.params:,} \(limit 60,000\)",
        rf"top-1, search split +{best.top1:.2f} % of 287 images",
        rf"top-1, test split +{result.found.test_top1:.2f} % of 359 images",
        rf"subnets evaluated +8 of {result.found.feasible:,} within the limit",
        r"logits +\S+ is the largest difference",
    ):
        assert re.search(line, out), line
    assert all(f"  {path}  " in out for path in result.files)
    assert {path: path.read_bytes() for path in kept} == kept


def test_ctrl_c_in_training_and_in_the_search_and_once_more(tmp_path, monkeypatch, capsys):
    from growtas.searching.evaluate import Evaluator
    from growtas.training.loop import Trainer

    step, correct = Trainer._step, Evaluator._correct
    calls = []
    monkeypatch.setattr(plotting, "picture", lambda path, *shown: path)  # that of `made` is drawn

    def interrupted_step(self, *args):
        calls.append("step")
        if len(calls) == 50:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, *args)

    def interrupted_correct(self, *args):
        calls.append("evaluation")
        if calls.count("evaluation") == 3:
            raise KeyboardInterrupt
        return correct(self, *args)

    args = ["demo", "--out", str(tmp_path / "demo"), *ARGS]
    monkeypatch.setattr(Trainer, "_step", interrupted_step)
    assert cli.main(args) == 130
    assert f"growtas demo --out {tmp_path / 'demo'} continues." in capsys.readouterr().err
    monkeypatch.setattr(Trainer, "_step", step)

    monkeypatch.setattr(Evaluator, "_correct", interrupted_correct)
    assert cli.main(args) == 130
    assert "continuing the training" in capsys.readouterr().out
    monkeypatch.setattr(Evaluator, "_correct", correct)

    assert cli.main(args) == 0
    assert "training was finished earlier" in capsys.readouterr().out
    assert len(list(read_log(tmp_path / "demo" / "run", "step"))) == 70  # 2 epochs of 35: none twice


def test_the_picture_is_a_function_of_its_points(tmp_path):
    evaluated = [plotting.EvaluatedSubnet(1000 * i, 90 + i % 7, i % 3) for i in range(1, 30)]
    steps = [plotting.Step(i / 10, None if i == 5 else 1 / (i + 1), i % 3) for i in range(100)]
    drawn = [
        plotting.picture(tmp_path / name, evaluated, 3, 20_000, 287, steps, [4], (24, 36, 48), "title")
        for name in ("a.png", "b.png", "c.svg")
    ]
    assert drawn[0].read_bytes() == drawn[1].read_bytes()
    assert drawn[0].read_bytes().startswith(PNG)
    assert b"</svg>" in drawn[2].read_bytes()
    without_limit = plotting.picture(
        tmp_path / "d.png", evaluated, 3, None, 287, steps, [], (24, 36, 48), "title"
    )
    assert without_limit.read_bytes() != drawn[0].read_bytes()
