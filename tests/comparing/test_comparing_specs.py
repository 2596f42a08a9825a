"""Specifications of methods: some are taken and others refused, before anything is written."""

from __future__ import annotations

import re

import pytest
from comparisons import SMALL, space_file

import growtas
from growtas.comparing.limits import Limit, default_limits
from growtas.comparing.specs import MethodSpec, check_known, common_settings, read_methods
from growtas.errors import UsageError
from growtas.space import load_space


@pytest.mark.parametrize(
    ("text", "same", "settings"),
    [
        ("uniform", "uniform", {}),
        ("growtas:stages=3", "growtas:stages=3", {"stages": 3}),
        (
            "growtas:transition=30,40,stages=0,1/0,1,2",
            "growtas:stages=0,1/0,1,2,transition=30,40",
            {"stages": "0,1/0,1,2", "transition": "30,40"},
        ),
        (" uniform:sandwich=true ", "uniform:sandwich=true", {"sandwich": True}),
        ("uniform:clip-grad=1", "uniform:clip_grad=1", {"clip_grad": 1}),
        ("uniform:epochs=7,ema_decay=0.9", "uniform:ema_decay=0.9,epochs=7", {"epochs": 7, "ema_decay": 0.9}),
    ],
)
def test_parsing(text, same, settings):
    spec = MethodSpec.parse(text)
    assert str(spec) == same and MethodSpec.parse(same) == spec
    assert spec.settings() == settings
    assert spec.first is None


def test_options_of_a_method_are_handed_on():
    spec = MethodSpec.parse("prenas:data=train,epochs=3,images=64")
    assert spec.settings() == {"epochs": 3, "method_options": "data=train,images=64"}


def test_a_second_phase_divides_its_settings():
    spec = MethodSpec.parse("growtas+:stages=3,lr=1e-4,frozen=literal")
    assert str(spec.first) == "growtas:stages=3"
    assert spec.settings() == {"lr": 1e-4, "method_options": "frozen=literal"}
    assert str(MethodSpec.parse("growtas+").first) == "growtas"


def test_folders_are_safe_and_differ():
    texts = ["growtas", "growtas+", "growtas:stages=0/0,1", "growtas:stages=0,0/1", "growtas:stages=../x"]
    folders = [MethodSpec.parse(text).folder for text in texts]
    assert len(set(folders)) == len(texts)
    assert all(re.fullmatch(r"[A-Za-z0-9.+_-]{1,80}", name) for name in folders)
    assert folders[:2] == texts[:2]


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ([], "at least one method"),
        (["uniform", "growtas", "uniform"], "'uniform' is given twice"),
        (["growtas:stages=2,epochs=3", "growtas:epochs=3,stages=2"], "given twice"),
        ([":stages=2"], "is no method"),
        (["growtas:"], "is no method"),
        (["growtas:stages"], "key=value"),
    ],
)
def test_lists_that_cannot_be_read(texts, says):
    with pytest.raises(UsageError, match=says):
        read_methods(texts)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("unifrom", "'unifrom'. Did you mean 'uniform'"),
        ("growtas:stagse=2", "'stagse'.* Did you mean 'stages'"),
        ("growtas:lr=1e-3", "chosen for the space, never per method"),
        ("growtas:seed=3", "seed .*the same for every method"),
        ("growtas:data=digits", "data .*the same for every method"),
        ("growtas:epochs=many", "epochs='many' is not possible; it must be a whole number"),
        ("uniform:sandwich=maybe", "true or false"),
        ("growtas:stages=9", "stages=9"),
        ("growtas+:stages=9", "stages=9"),
        ("growtas+:frozen=nothing", "frozen='nothing'"),
    ],
)
def test_methods_that_cannot_be_trained(tmp_path, text, says):
    with pytest.raises(UsageError, match=says):
        growtas.compare(tmp_path / "out", space_file(tmp_path), **SMALL | {"methods": ["uniform", text]})
    assert not (tmp_path / "out").exists()


def test_the_default_methods_are_there():
    from growtas.comparing.driver import METHODS

    check_known(read_methods(METHODS))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"seeds": 0}, "seeds=0"),
        ({"jobs": 0}, "jobs=0"),
        ({"epochs": 1.5}, "epochs=1.5"),
        ({"population": 1}, "population=1"),
        ({"lr": "fast"}, "lr='fast'"),
        ({"lr": -1}, "lr=-1"),
        ({"limits": [10]}, "below the smallest subnet"),
        ({"limits": ["latency=3"]}, "is no limit"),
        ({"settings": ["epochs=3"]}, "epochs cannot be a common setting"),
        ({"settings": ["batchsize=3"]}, "Did you mean 'batch_size'"),
        ({"settings": ["batch_size"]}, "write key=value"),
        ({"data": "digit"}, "There is no data set 'digit'"),
        ({"data": "/"}, "There is no data set '/'. That is a folder: write folder:/."),
    ],
)
def test_settings_that_make_no_sense(tmp_path, given, says):
    with pytest.raises(UsageError, match=says):
        growtas.compare(tmp_path / "out", space_file(tmp_path), **SMALL | given)
    assert not (tmp_path / "out").exists()


def test_folders_that_are_something_else(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.txt").write_text("mine")
    for name, says in (("file", "is a file"), ("folder", "holds no comparison but notes.txt")):
        with pytest.raises(UsageError, match=says):
            growtas.compare(tmp_path / name, space_file(tmp_path), **SMALL)
    with pytest.raises(UsageError, match="There is no comparison"):
        growtas.compare(tmp_path / "new", report_only=True)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "folder", "notes.txt", "small.yaml"]


def test_limits():
    assert Limit.parse("6e4") == Limit.parse(60_000) == Limit("params", 60_000)
    assert Limit.parse("macs=1e6").arguments() == {"max_macs": 1_000_000}
    space = load_space("autoformer-tiny")
    low, high = 4_000_000, 10_500_000
    assert all(low < limit.most < high for limit in default_limits(space, 1000))


def test_common_settings_are_typed():
    found = common_settings(("batch-size=64", "clip_grad=none", "amp=bfloat16", "drop_path=0.1"))
    assert found == {"batch_size": 64, "clip_grad": None, "amp": "bfloat16", "drop_path": 0.1}
