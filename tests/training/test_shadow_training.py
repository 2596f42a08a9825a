"""Training in 16 bits ends with the same bits whether GEMMs read shadows or cast a slice in every call."""

from __future__ import annotations

import pytest
from ranks import launch
from runs import assert_same_result
from test_resume import Stop, stop_at

import growtas
from growtas import shadow

SHORT = {"amp": "bfloat16", "epochs": 2}
SETTINGS = [
    pytest.param({}, id="plain"),
    pytest.param(
        {"sandwich": True, "distill": "inplace", "ema_decay": 0.9},
        id="sandwich, averaged weights",
        marks=pytest.mark.slow,
    ),
    pytest.param(
        {"subnets_per_step": 2, "gradients": "mean", "clip_grad": 0.5},
        id="two subnets a step",
        marks=pytest.mark.slow,
    ),
    pytest.param(
        {"opt": "lamb", "distill": "ema", "ema_decay": 0.9},
        id="an optimizer of timm's",
        marks=pytest.mark.slow,
    ),
]


@pytest.fixture
def cast_each_time(monkeypatch):
    """Inside the context it returns, no weight has a shadow."""

    def without():
        context = monkeypatch.context()
        context.__enter__().setattr(shadow.Shadows, "refresh", lambda *_: False)
        shadow.expire()
        return context

    return without


def trained_without(cast_each_time, train):
    context = cast_each_time()
    try:
        return train()
    finally:
        context.__exit__(None, None, None)


@pytest.mark.parametrize("given", SETTINGS)
def test_shadows_leave_no_trace_in_a_run(small, tmp_path, cast_each_time, given):
    seen = []
    original = shadow.Shadows.refresh

    def spy(self, *arguments):
        seen.append(original(self, *arguments))
        return seen[-1]

    settings = {**small, **SHORT, **given}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shadow.Shadows, "refresh", spy)
        growtas.train(**settings, out=tmp_path / "shadows")
    assert sum(seen) >= 22, "the weights of some steps were not cast"
    trained_without(cast_each_time, lambda: growtas.train(**settings, out=tmp_path / "slices"))
    assert_same_result(tmp_path / "shadows", tmp_path / "slices")


def test_a_stopped_run_resumes_to_the_same_bits(monkeypatch, small, tmp_path):
    growtas.train(**{**small, **SHORT}, out=tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_at(patch, 13)
        with pytest.raises(Stop):
            growtas.train(**{**small, **SHORT}, out=tmp_path / "run")
    growtas.train(resume=tmp_path / "run")
    assert_same_result(tmp_path / "run", tmp_path / "whole")


def test_frozen_weights_of_a_second_phase(small, tmp_path, cast_each_time):
    run = growtas.train(**{**small, **SHORT}, out=tmp_path / "first")
    growtas.finetune(run, out=tmp_path / "shadows", epochs=2, lr=3e-3)
    trained_without(cast_each_time, lambda: growtas.finetune(run, out=tmp_path / "slices", epochs=2, lr=3e-3))
    assert_same_result(tmp_path / "shadows", tmp_path / "slices")


@pytest.mark.slow
def test_two_ranks(small, tmp_path, cast_each_time):
    settings = {**small, **SHORT, "mixup": 0, "cutmix": 0}
    statuses, outputs = launch(tmp_path, lambda _: growtas.train(**settings, out=tmp_path / "shadows"))
    assert statuses == [0, 0], outputs
    statuses, outputs = trained_without(
        cast_each_time,
        lambda: launch(tmp_path, lambda _: growtas.train(**settings, out=tmp_path / "slices")),
    )
    assert statuses == [0, 0], outputs
    assert_same_result(tmp_path / "shadows", tmp_path / "slices")
