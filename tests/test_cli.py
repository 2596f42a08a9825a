"""The command line: the names and defaults of the API, exit statuses, the way from train to evaluate."""

from __future__ import annotations

import dataclasses
import inspect
import io
import json
import os
import subprocess
import sys

import pytest
from bad_input.small_runs import SPACE

import growtas
from growtas import cli
from growtas.errors import GrowtasError, UsageError
from growtas.listing import CLASSES
from growtas.searching import read_result


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a small space, a trained run and its finished search; not to be changed."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "small.yaml").write_text(SPACE)
    args = [
        "--space",
        str(folder / "small.yaml"),
        "--data",
        "digits",
        "--batch-size",
        "96",
        "--no-tensorboard",
    ]
    assert cli.main(["train", *args, "--epochs", "2", "--out", str(folder / "run")]) == 0
    args = ["--max-params", "4000", "--population", "4", "--generations", "2"]
    assert cli.main(["search", str(folder / "run"), *args]) == 0
    return folder


# -- names and defaults ----------------------------------------------------------------------------------


def test_help_lists_every_verb(capsys):
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    for verb in ("train", "search", "extract", "evaluate", "doctor", "demo", "spaces"):
        assert f"  {verb} " in out
    assert cli.main([]) == 2


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"growtas {growtas.__version__}\n"


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_explains_every_option(verb, capsys):
    assert cli.main([verb, "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: growtas {verb}")
    assert ":func:" not in out and "``" not in out and "Raises" not in out


def test_train_has_the_names_and_defaults_of_the_api(monkeypatch):
    from growtas.training.config import TrainConfig

    calls = []
    monkeypatch.setattr(growtas, "train", lambda **values: calls.append(values))
    monkeypatch.setattr(cli, "_report_training", lambda run: None)
    assert cli.main(["train", "--space", "digits", "--stages", "0,1/0,1,2", "--transition", "3,5"]) == 0
    expected = {f.name: f.default for f in dataclasses.fields(TrainConfig)}
    expected |= {"space": "digits", "stages": "0,1/0,1,2", "transition": "3,5", "resume": None}
    expected |= {"config": None, "dry_run": False}
    assert calls == [expected]


def test_resume_passes_on_what_was_given_and_nothing_else(monkeypatch):
    calls = []
    monkeypatch.setattr(growtas, "train", lambda **values: calls.append(values))
    monkeypatch.setattr(cli, "_report_training", lambda run: None)
    assert cli.main(["train", "--resume", "runs/a"]) == 0
    assert cli.main(["train", "--resume=runs/a", "--workers", "2", "--no-tensorboard"]) == 0
    assert cli.main(["train", "--resume", "runs/a", "--epochs", "9"]) == 0
    assert cli.main(["train", "--recipe", "autoformer", "--space", "digits", "--unused-blocks", "skip"]) == 0
    assert cli.main(["train", "--config", "runs/a", "--out", "b", "--no-sandwich", "--dry-run"]) == 0
    assert calls == [
        {"resume": "runs/a"},
        {"resume": "runs/a", "workers": 2, "tensorboard": False},
        {"resume": "runs/a", "epochs": 9},
        {"recipe": "autoformer", "space": "digits", "unused_blocks": "skip"},
        {"config": "runs/a", "out": "b", "sandwich": False, "dry_run": True},
    ]


def test_search_has_the_names_and_defaults_of_the_api(monkeypatch):
    signature = inspect.signature(growtas.search)
    calls = []

    def search(*args, **values):
        calls.append(values)
        raise GrowtasError("enough")

    search.__signature__, search.__doc__ = signature, growtas.search.__doc__
    search.__module__, search.bounds = inspect.unwrap(growtas.search).__module__, growtas.search.bounds
    monkeypatch.setattr(growtas, "search", search)
    assert cli.main(["search", "runs/a", "--max-params", "6e6"]) == 1
    expected = {p.name: p.default for p in signature.parameters.values()}
    assert calls == [{**expected, "run": "runs/a", "max_params": 6e6}]


# -- exit statuses ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (GrowtasError("The device is full."), 1, "growtas: The device is full.\n"),
        (UsageError("There is no such thing."), 2, "growtas: There is no such thing.\n"),
        (KeyboardInterrupt(), 130, "growtas: Interrupted.\n"),
        (PermissionError(13, "Permission denied", "x"), 1, "growtas: [Errno 13] Permission denied: 'x'\n"),
        (
            ZeroDivisionError("oh"),
            1,
            "growtas: unexpected ZeroDivisionError: oh; GROWTAS_DEBUG=1 shows where.\n",
        ),
    ],
)
def test_errors_are_sentences_and_statuses(monkeypatch, capsys, error, status, sentence):
    def fail(args):
        raise error

    monkeypatch.setitem(cli.VERBS, "spaces", fail)
    monkeypatch.delenv("GROWTAS_DEBUG", raising=False)
    assert cli.main(["spaces"]) == status
    assert capsys.readouterr().err == sentence
    monkeypatch.setenv("GROWTAS_DEBUG", "1")
    with pytest.raises(type(error)):
        cli.main(["spaces"])


class Terminal(io.StringIO):
    """Where tyro draws boxes, in colours."""

    encoding = "utf-8"

    def isatty(self):
        return True


def test_wrong_arguments_are_plain_sentences_on_a_terminal_too(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "stderr", screen)
    assert cli.main(["spaces", "--nonsense"]) == 2
    assert screen.getvalue() == ("growtas: Unrecognized options: --nonsense. See growtas spaces --help.\n")
    assert cli.main(["spaces", "--help"]) == 0
    assert "\033[" in screen.getvalue() and "╭" in screen.getvalue()


def test_unknown_verbs_and_options_are_usage_errors(capsys):
    assert cli.main(["trian"]) == 2
    assert "no verb 'trian'. Did you mean 'train'" in capsys.readouterr().err
    assert cli.main(["spaces", "--nonsense"]) == 2
    assert "--nonsense" in capsys.readouterr().err
    assert cli.main(["search", "x", "--population", "many"]) == 2
    assert "--population" in capsys.readouterr().err


def test_ctrl_c_says_how_to_go_on(monkeypatch, capsys, folder):
    import growtas.demo
    from growtas.training.loop import Interrupted

    def stop(*args, **values):
        raise KeyboardInterrupt

    monkeypatch.setattr("growtas.searching.evaluate.Evaluator.score", stop)
    args = ["search", str(folder / "run"), "--out", str(folder / "stopped.jsonl")]
    assert cli.main(args) == 130
    assert "repeat the command to continue" in capsys.readouterr().err

    def stop_training(folder, settings):
        raise Interrupted("Continue with: growtas train --resume x/run", 15)

    monkeypatch.setattr(growtas.demo, "_train", stop_training)
    assert cli.main(["demo", "--out", str(folder / "demo")]) == 128 + 15
    assert f"growtas demo --out {folder / 'demo'} continues." in capsys.readouterr().err


def test_a_closed_pipe_is_no_traceback(monkeypatch):
    script = "import sys; from growtas.cli import main; sys.exit(main(['spaces']))"
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert b"Traceback" not in process.stderr.read()
    process.stderr.close()
    process.wait()


# -- what the verbs do -----------------------------------------------------------------------------------


def test_help_and_spaces_do_not_load_torch():
    code = (
        "import sys; from growtas.cli import main; main(['--help']); main(['spaces']); "
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_module_runs_and_exits_with_the_status():
    done = subprocess.run(
        [sys.executable, "-m", "growtas", "spaces", "digit"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("growtas: There is no space 'digit'. Did you mean 'digits'?")


def test_spaces_shows_exact_numbers(capsys, folder):
    assert cli.main(["spaces"]) == 0
    out = capsys.readouterr().out
    for preset in growtas.space.preset_names():
        space = growtas.load_space(preset)
        low, high = growtas.cost.parameter_range(space, CLASSES.get(preset, 1000))
        (row,) = (line for line in out.splitlines() if line.split()[:1] == [preset])
        assert f" {space.count():,} " in row and f" {low:,} to {high:,} " in row
    assert cli.main(["spaces", str(folder / "small.yaml"), "--num-classes", "7"]) == 0
    assert "(7 classes)" in capsys.readouterr().out


def test_train_and_resume_report(capsys, folder):
    """The finished run again, by --resume: nothing is trained, the same is told."""
    before = (folder / "run" / "checkpoint.pt").read_bytes()
    assert cli.main(["train", "--resume", str(folder / "run")]) == 0
    out = capsys.readouterr().out
    assert "2 epochs, 22 steps, 0 of them skipped" in out
    assert "smallest" in out and "largest" in out and "on the search split" in out
    assert (folder / "run" / "checkpoint.pt").read_bytes() == before


def test_extract_the_best_and_evaluate_it(capsys, folder, tmp_path):
    from growtas import export

    found = read_result(folder / "run")
    assert cli.main(["extract", str(folder / "run"), "--out", str(tmp_path / "best")]) == 0
    out = capsys.readouterr().out
    assert str(found.best.subnet) in out and f"{found.best.params:,} parameters" in out
    model = export.load(tmp_path / "best")
    assert export.subnet_of(model) == found.best.subnet
    assert sum(p.numel() for p in model.parameters()) == found.best.params
    assert json.loads((tmp_path / "best" / "config.json").read_text())["architecture"] == "growtas_vit"
    card = (tmp_path / "best" / "README.md").read_text()
    assert f"| top-1 on the test images | {found.test_top1:.2f} % of 359 |" in card
    assert f"{found.best.top1:.2f} % of 287 (standard error {found.standard_error:.2f})" in card
    assert f"a search that evaluated {len(found.history)} subnets" in card
    assert cli.main(["evaluate", str(tmp_path / "best"), "--data", "digits"]) == 0
    assert f"top-1 {found.test_top1:.2f} %, top-5 " in capsys.readouterr().out

    assert cli.main(["evaluate", str(folder / "run")]) == 0
    assert f"{found.best.subnet}: top-1 {found.test_top1:.2f} %" in capsys.readouterr().out
    args = ["--subnet", str(found.best.subnet), "--split", "search"]
    assert cli.main(["evaluate", str(folder / "run"), *args]) == 0
    assert f"top-1 {found.best.top1:.2f} % on the" in capsys.readouterr().out


def test_several_limits_and_a_front_are_searched_and_extracted_by_name(capsys, folder, tmp_path):
    import shutil

    run = shutil.copytree(folder / "run", tmp_path / "run")
    size = ["--population", "4", "--generations", "2"]
    assert cli.main(["search", str(run), "--max-params", "3e3", "5e3", "--predictor", *size]) == 0
    out = capsys.readouterr().out
    assert out.count("predictor: ") == 2
    assert out.count("standard error of its top-1 on the 287 search images") == 2
    assert f"next: growtas extract {run} --subnet best:3000 --out" in out
    assert f"next: growtas extract {run} --subnet best:5000 --out" in out
    assert cli.main(["search", str(run), "--pareto", "macs", "--predictor", *size]) == 0
    out = capsys.readouterr().out
    assert "held-out subnets (" in out and " by MACs alone), bar 0.4: " in out
    assert f"wrote {run / 'pareto-macs-population-4-generations-2-predictor-True.csv'}" in out
    assert f"next: growtas extract {run} --subnet pareto:1 --out" in out
    for name in ("best:5e3", "pareto:1"):
        assert cli.main(["evaluate", str(run), "--subnet", name]) == 0
    assert cli.main(["extract", str(run), "--subnet", "pareto:1", "--out", str(tmp_path / "model")]) == 0
    assert cli.main(["extract", str(run), "--out", str(tmp_path / "other")]) == 1
    assert "name one of best:3000, best:4000, best:5000" in capsys.readouterr().err


def test_subnets_have_the_same_names_in_python(folder):
    from growtas import export

    found = growtas.evaluate(folder / "run", split="search")
    best = read_result(folder / "run").best
    assert (found.subnet, found.top1, found.params) == (best.subnet, best.top1, best.params)
    space = growtas.load_space(folder / "small.yaml")
    smallest = growtas.evaluate(folder / "run", "smallest")
    assert smallest == growtas.evaluate(folder / "run", space.smallest())
    assert export.subnet_of(growtas.extract(folder / "run", "best")) == best.subnet
    net = growtas.Supernet(space, 10)
    assert export.subnet_of(growtas.extract(net, "largest")) == space.largest()
    with pytest.raises(UsageError, match="give the run, or the sizes"):
        growtas.extract(net, "best")
    with pytest.raises(UsageError, match="There is no split 'tset'. Did you mean 'test'"):
        growtas.evaluate(folder / "run", split="tset")


@pytest.mark.parametrize("name", ["smallest", "largest"])
def test_extract_by_name(capsys, folder, tmp_path, name):
    assert cli.main(["extract", str(folder / "run"), "--subnet", name, "--out", str(tmp_path / "x")]) == 0
    space = growtas.load_space(folder / "small.yaml")
    assert str(getattr(space, name)()) in capsys.readouterr().out


def test_doctor_runs_and_requires(capsys):
    assert cli.main(["doctor", "--as-json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["versions"]["growtas"] == growtas.__version__
    assert cli.main(["doctor", "--require", "torch", "nonsense"]) == 1
    assert "nonsense" in capsys.readouterr().out


def test_only_the_first_rank_reports(monkeypatch, capsys, folder):
    monkeypatch.setitem(os.environ, "RANK", "1")
    assert cli.main(["train", "--resume", str(folder / "run")]) == 0
    assert capsys.readouterr().out == ""
