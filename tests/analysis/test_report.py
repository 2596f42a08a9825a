"""growtas report: what it trains, keeps, draws, refuses, and how it goes on."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal

import pytest
from comparisons import Fork, meanwhile, pending, runs, space_file, stopped_child, stopping_itself, wait_for
from thinning import thinned

import growtas
from growtas import cli
from growtas.analysis import parts, report
from growtas.analysis.plan import read_plan
from growtas.errors import GrowtasError, UsageError

SMALL = {"epochs": 2, "subnets": 4, "seeds": 1, "settings": ["batch_size=192"], "device": "cpu", "jobs": 2}


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def times(folder):
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def part_texts(out):
    return {path.name: path.read_text() for path in (out / "report" / "parts").iterdir()}


def test_a_part_that_needs_no_network(tmp_path, fork_work):
    out = tmp_path / "out"
    made = growtas.report(out=out, only=["figure-a"], **SMALL)
    assert list(made.parts) == ["figure-a"] and not made.failed
    assert set(made.missing) == set(parts.part_names()) - {"figure-a"}
    text = made.path.read_text()
    assert made.path == out / "report.html" and text.count("<svg") == len(made.parts["figure-a"].drawings())
    assert f"growtas report --out {out} --only table-a" in text
    assert not (out / "report" / "networks").exists()
    for link in re.findall(r'<a href="([^"#]+)"', text):
        assert (out / link).is_file(), link
    for name, table in made.parts["figure-a"].tables.items():
        assert (out / "figures" / f"figure-a-{name.replace(' ', '-')}.csv").read_text() == table.csv()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A small report of one figure that trains two networks, not to be changed."""
    from comparisons import forked

    from growtas.jobs import job

    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "start_process", forked)
        return growtas.report(
            out=folder / "out", space=space_file(folder), data="digits", only=["figure-1"], **SMALL
        )


def test_networks_are_trained_for_what_is_asked(small):
    folder = small.path.parent / "report" / "networks"
    assert {path.name for path in folder.iterdir()} == {"smallest", "largest"}
    for name in ("smallest", "largest"):
        workspace = read_plan(small.path.parent, "cpu")
        run = workspace.run(name)
        records = [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]
        drawn = {subnet for record in records if record["event"] == "step" for subnet in record["subnets"]}
        assert drawn == {str(getattr(run.space, name)())}
        assert (run.config.epochs, run.config.batch_size) == (2, 192)


def test_the_page_says_how_to_make_it_again(small):
    text = small.path.read_text()
    out = small.path.parent
    assert f"growtas report --space small.yaml --data digits --out {out} --epochs 2" in text
    assert "--settings batch_size=192 --seeds 1 --subnets 4" in text
    for sentence in small.parts["figure-1"].findings():
        assert sentence.split("<")[0][:40].replace("&", "&amp;") in text


def test_a_second_call_makes_nothing_twice(small, fork_work):
    before = times(small.path.parent / "report" / "networks") | times(small.path.parent / "report" / "parts")
    again = growtas.report(out=small.path.parent, only=["figure-1"], device="cpu")
    now = times(small.path.parent / "report" / "networks") | times(small.path.parent / "report" / "parts")
    assert now == before
    assert again.path.read_text() == small.path.read_text()


@pytest.mark.parametrize("how", thinned(["killed", "interrupted"], fast=["killed"]))
def test_stopped_in_the_middle(small, tmp_path, fork_work, no_pictures, how):
    """While the second network trains: what is made afterwards is what an undisturbed call makes."""
    out, space = tmp_path / "out", space_file(tmp_path)
    given = {"space": space, "data": "digits", "only": ["figure-1"], **SMALL, "jobs": 1}
    with stopping_itself("networks/largest"):
        process = Fork(lambda: growtas.report(out=out, **given) and 0, tmp_path / "output")
    worker = stopped_child(process)
    process.send_signal(signal.SIGINT if how == "interrupted" else signal.SIGKILL)
    if how == "interrupted":
        wait_for(lambda: pending(worker, signal.SIGINT))
    os.kill(worker, signal.SIGCONT)
    status = process.wait()
    wait_for(lambda: not runs(worker))  # by itself, where only its parent was killed
    if how == "interrupted":
        assert status == 130 and f"Continue with: growtas report --out {out}" in process.output.read_text()
    made = growtas.report(out=out, only=["figure-1"], device="cpu", jobs=1)
    assert not made.failed
    assert part_texts(out) == part_texts(small.path.parent)


def test_what_fails_does_not_keep_the_rest_from_being_made(tmp_path, fork_work, no_pictures, capsys):
    given = {**SMALL, "settings": ["opt=nonsense"]}
    made = growtas.report(out=tmp_path / "out", only=["figure-c", "figure-a"], **given)
    assert list(made.parts) == ["figure-a"]
    assert set(made.failed) == {"network smallest"}
    assert "nonsense" in made.failed["network smallest"]
    assert made.missing["figure-c"].startswith("network smallest failed: ")
    arguments = ["report", "--out", str(tmp_path / "out"), "--only", "figure-c", "--device", "cpu"]
    assert cli.main(arguments) == 1
    assert "growtas: network smallest failed" in capsys.readouterr().err


# -- what is refused -------------------------------------------------------------------------------------


def refused(message, **given):
    with pytest.raises(UsageError, match=message):
        growtas.report(**given)


def test_settings_of_a_folder_stay(small):
    out = small.path.parent
    before = files(out)
    refused("was begun with seeds=1, not 2", out=out, seeds=2)
    refused("was begun with epochs=2, not 3", out=out, epochs=3)
    refused("was begun with batch_size=192, not 64", out=out, settings=["batch_size=64"])
    refused("was begun with data=digits, not glyphs", out=out, data="glyphs")
    refused("another one", out=out, space="digits")
    assert files(out) == before


def test_a_report_that_another_process_began_meanwhile_stays(small, tmp_path, monkeypatch):
    """Both found an empty folder; the first one's settings are not written over."""
    began, out = small.path.parent, tmp_path / "out"
    meanwhile(monkeypatch, report, lambda: shutil.copytree(began, out))
    with pytest.raises(UsageError, match="epochs=2, not 3"):
        growtas.report(out=out, space=space_file(tmp_path), data="digits", **SMALL | {"epochs": 3})
    assert read_plan(out, "cpu").config.epochs == 2


def test_what_makes_no_sense(tmp_path, small):
    refused("Give the folder of a run, or out=FOLDER")
    refused("no part 'figure-2'.*figure-", out=tmp_path / "out", only=["figure-2"])
    refused("subnets=0 is not possible", out=tmp_path / "out", subnets=0)
    refused("jobs=0 is not possible", out=tmp_path / "out", jobs=0)
    refused("no setting 'batchsize'.*batch_size", out=tmp_path / "out", settings=["batchsize=3"])
    refused("no space is called like it", out=tmp_path / "out", data="torch/cifar10")
    (tmp_path / "notes.txt").write_text("mine")
    refused("holds something else .notes.txt.", out=tmp_path)
    refused("is a file", out=tmp_path / "notes.txt")
    refused("does not exist", run=tmp_path / "missing")
    network = small.path.parent / "report" / "networks" / "smallest"
    refused(f"growtas report {network}", out=network)
    refused("is about its own space and data", run=network, space="autoformer-tiny")
    assert files(tmp_path) == {"notes.txt"}


def test_unfinished_runs_and_second_phases_are_refused(tmp_path):
    """The settings of a second phase are those of a few epochs from trained weights: no recipe for others."""
    settings = {"data": "digits", "eval_every": 0, "tensorboard": False, "batch_size": 192}
    first = growtas.train(space_file(tmp_path), epochs=2, out=tmp_path / "first", **settings)
    second = growtas.finetune(first, epochs=1, out=tmp_path / "second")
    before = files(tmp_path)
    refused("goes on from the weights of another one", run=second)
    assert files(tmp_path) == before
    os.unlink(first.checkpoint_path)
    refused("is not finished; go on with: growtas train --resume", run=first)


def test_a_damaged_plan_is_told(tmp_path):
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "report.json").write_text("{")
    with pytest.raises(GrowtasError, match="damaged or not the plan of a report"):
        growtas.report(out=tmp_path)


def test_a_report_of_a_run_lies_in_it_and_moves_with_it(tmp_path, fork_work, no_pictures):
    settings = {"data": "digits", "epochs": 2, "batch_size": 192, "eval_every": 0, "tensorboard": False}
    run = growtas.train(space_file(tmp_path), out=tmp_path / "run", **settings)
    made = growtas.report(run, only=["figure-a", "figure-g"], subnets=3, device="cpu")
    assert made.path == run.path / "report.html" and set(made.parts) == {"figure-a", "figure-g"}
    assert f"growtas report {run.path} --subnets 3" in made.path.read_text()
    moved = run.path.rename(tmp_path / "moved")
    again = growtas.report(moved, only=["figure-a"], device="cpu")
    assert set(again.parts) == {"figure-a", "figure-g"}
    assert read_plan(moved, "cpu").source.path.resolve() == moved.resolve()


def test_a_convolutional_report_has_figure_e_as_its_figure_1(tmp_path, fork_work, no_pictures):
    given = SMALL | {"only": ["figure-a", "figure-e"], "space": "digits-mobilenet", "data": "digits"}
    made = growtas.report(out=tmp_path / "out", **given)
    assert set(made.parts) == {"figure-a"} and not made.failed
    assert "its figure 1 is that figure" in made.missing["figure-e"]
    assert "its figure 1 is that figure" in made.path.read_text()
    assert not (tmp_path / "out" / "report" / "networks").exists()
