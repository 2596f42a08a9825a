"""Runs that earlier versions began are read and continued; tests/data/runs holds one of each format."""

from __future__ import annotations

import dataclasses
import re
import tarfile
from pathlib import Path

import pytest
import torch

import growtas
from growtas.errors import GrowtasError
from growtas.training import Run, checkpoint
from growtas.training.config import RUNTIME, TrainConfig, with_former
from growtas.training.log import read_log

FORMATS = sorted((Path(__file__).parents[1] / "data" / "runs").glob("*.tar.xz"))
DEFAULTS = {each.name: each.default for each in dataclasses.fields(growtas.SearchSpace)}


def unpacked(path, folder):
    with tarfile.open(path) as archive:
        archive.extractall(folder, filter="data")
    return folder / "run"


@pytest.mark.parametrize("path", FORMATS, ids=lambda path: path.name.partition(".")[0])
def test_a_run_of_each_format_is_continued(path, tmp_path, capsys):
    folder = unpacked(path, tmp_path)
    assert checkpoint.load(folder / "checkpoint.pt")["step"] == 2
    assert growtas.train(resume=folder).finished
    said = capsys.readouterr().err
    assert ("have no checksums, since an older version" in said) == path.name.startswith("without-checksums")
    assert [record["step"] for record in read_log(folder, "step")] == [0, 1, 2, 3]
    assert [record["event"] for record in read_log(folder)][-1] == "finish"
    assert growtas.check(folder).ok
    assert Run.open(folder).load_net().space.name == "tiny"


def test_settings_that_came_later_have_their_value_of_that_time(tmp_path):
    folder = unpacked(FORMATS[0], tmp_path)
    path, state = folder / "checkpoint.pt", checkpoint.load(folder / "checkpoint.pt")
    text = (folder / "config.yaml").read_text()
    later = [each.name for each in dataclasses.fields(TrainConfig) if each.default is not dataclasses.MISSING]
    at_default = {name for name in later if state["run"].get(name, ...) == with_former({})[name]}
    assert len(at_default) > 20
    for name in at_default:
        del state["run"][name]
    for name in at_default | set(RUNTIME):
        text = re.sub(rf"^  {name}: .*\n", "", text, flags=re.M)
    space = state["run"]["space"]
    del space[next(name for name, value in space.items() if value == DEFAULTS.get(name, ...))]
    del state["environment"], state["log_check"]
    state["run"]["workers"] = 3  # once, it was not one of those that a resume may change
    (folder / "config.yaml").write_text(text)
    torch.save(state, path)
    assert growtas.train(resume=folder).finished


def test_a_recipe_does_not_fill_in_what_an_older_run_did_not_know():
    old = {"space": "autoformer-tiny", "data": "digits", "recipe": "autoformer"}
    assert TrainConfig.from_dict(old).sched_step != with_former(old)["sched_step"] == "update"


def test_other_settings_still_belong_to_another_run(tmp_path):
    folder = unpacked(FORMATS[0], tmp_path)
    state = checkpoint.load(folder / "checkpoint.pt")
    for change in ({"lr": 0.5}, {"a_setting_of_the_future": 1}, {"space": 3}):
        torch.save(state | {"run": state["run"] | change}, folder / "checkpoint.pt")
        with pytest.raises(
            GrowtasError, match=f"belongs to another run: it differs .* in {next(iter(change))}"
        ):
            growtas.train(resume=folder)
