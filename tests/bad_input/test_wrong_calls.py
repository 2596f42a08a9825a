"""Calls that cannot be meant end with status 2 and a sentence, and write nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from bad_input.small_runs import SPACE, digest, sentence, train

import growtas
from growtas import cli
from growtas.supernet import VisionTransformer

# -- the call: status 2, nothing written -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--space", "autoformer-tini"], "no space 'autoformer-tini'. Did you mean 'autoformer-tiny'"),
        (["--space", "nowhere.yaml"], "The space file nowhere.yaml does not exist."),
        (["--data", "digit"], "Did you mean 'digits'"),
        (["--data", "torch/cifar11"], "Did you mean 'torch/cifar10'"),
        (["--method", "growts"], "There is no method 'growts'. Did you mean 'growtas'"),
        (["--transition", "size-awre"], "There is no transition rule 'size-awre'. Did you mean 'size-aware'"),
        (
            ["--transition", "0"],
            "The transitions 0 of 2 stages in 2 epochs do not satisfy 0 < T_1 < ... < 2.",
        ),
        (["--transition", "2"], "do not satisfy 0 < T_1 < ... < 2."),
        (["--transition", "7"], "do not satisfy 0 < T_1 < ... < 2."),
        (["--transition", "1,1", "--stages", "3"], "do not satisfy 0 < T_1 < ... < 2."),
        (["--stages", "4"], "a space of 3 groups can be trained in 1 to 3 stages."),
        (["--new-region", "near-zero"], "Did you mean 'near_zero'"),
        (["--batch-size", "5000"], "batch_size=5000 is larger than the 1151 training images"),
        (["--device", "gpu"], "device='gpu' cannot be used here"),
        (["--opt", "adamm"], "opt='adamm' cannot be used"),
    ],
)
def test_a_wrong_call_to_train(given, expected, space, tmp_path, capsys):
    assert train(space, tmp_path / "out", *given) == 2
    assert expected in sentence(capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("yaml", "expected"),
    [
        ("super_embed_dim: 12", "embed_dim=16 of space 'bad' is over its supernet's embed_dim, 12"),
        ("super_num_heads: 1", "num_heads=2 of space 'bad' is over its supernet's num_heads, 1"),
        ("super_depth: 1", "depth=2 of space 'bad' is over its supernet's depth, 1"),
        ("super_mlp_ratio: 1.5", "mlp_ratio=2 of space 'bad' is over its supernet's mlp_ratio, 1.5"),
        ("embed_dims: [8]", "A space has no field 'embed_dims'. Did you mean 'embed_dim'"),
        ("image_size: 9", "patch"),
        ("depth: [2, 1", "is not YAML"),
    ],
)
def test_a_space_that_cannot_be(yaml, expected, tmp_path, capsys):
    path = tmp_path / "bad.yaml"
    key = yaml.split(":")[0] + ":"
    path.write_text("".join(line + "\n" for line in SPACE.splitlines() if not line.startswith(key)) + yaml)
    assert train(path, tmp_path / "out") == 2
    assert expected in sentence(capsys)
    assert not (tmp_path / "out").exists()


def test_widths_over_the_supernets_in_python(space):
    """The same, past the space's check: a transformer without a space and the operations check too."""
    net = growtas.Supernet(str(space), num_classes=10)
    small = VisionTransformer(net.dims.of_subnet(net.space.smallest()), num_classes=10)
    with pytest.raises(growtas.UsageError, match="does not fit into a transformer"):
        small(torch.zeros(1, 1, 8, 8), net.space.largest())
    with pytest.raises(growtas.UsageError, match="slice"):
        growtas.ops.linear(torch.zeros(1, 8), torch.zeros(4, 8), None, 5)


@pytest.mark.parametrize(
    ("subnet", "expected"),
    [
        ("d20-h1-r1", "embed_dim=20 is outside space 'small', which offers 8, 12, 16."),
        ("d8-h1,1,1-r1,1,1", "depth=3 is outside space 'small', which offers 1, 2."),
        ("d8-h1,3-r1,1", "num_heads=3 of layer 1 is outside space 'small', which offers 1, 2."),
        ("d8-h1,2-r1,4", "mlp_ratio=4 of layer 1 is outside space 'small', which offers 1, 2."),
        ("d8-h1,2-r1", "needs 2 entries in mlp_ratio, but 1 were given."),
        ("biggest", "'biggest' is not a subnet"),
    ],
)
@pytest.mark.parametrize("verb", ["extract", "evaluate"])
def test_a_subnet_outside_the_space(verb, subnet, expected, trained, tmp_path, capsys):
    out = ["--out", str(tmp_path / "model")] if verb == "extract" else []
    assert cli.main([verb, str(trained), "--subnet", subnet, *out]) == 2
    assert expected in sentence(capsys)
    assert not (tmp_path / "model").exists()


def make_nothing(folder: Path) -> None:
    pass


def make_empty(folder: Path) -> None:
    folder.mkdir()


def make_no_test_images(folder: Path) -> None:
    (folder / "train" / "a").mkdir(parents=True)


def make_empty_classes(folder: Path) -> None:
    for part in ("train", "val"):
        (folder / part / "a").mkdir(parents=True)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (make_nothing, "does not exist. Expected"),
        (make_empty, "is empty. Expected"),
        (make_no_test_images, "which hold the images to test on. Expected"),
        (make_empty_classes, "Expected"),
    ],
)
def test_a_missing_or_empty_data_folder(make, expected, space, tmp_path, capsys):
    make(tmp_path / "images")
    assert train(space, tmp_path / "out", "--data", f"folder:{tmp_path / 'images'}") == 2
    error = sentence(capsys)
    assert expected in error and str(tmp_path / "images") in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("limits", [["--max-params", "10"], ["--min-params", "1e9"], ["--max-macs", "10"]])
def test_an_impossible_limit_states_the_range(limits, trained, capsys):
    before = digest(trained)
    assert cli.main(["search", str(trained), *limits]) == 2
    low, high = (growtas.cost.macs_range if "macs" in limits[0] else growtas.cost.parameter_range)(
        growtas.training.Run.open(trained).space, 10
    )
    assert f"choose between {low:,} and {high:,}" in sentence(capsys)
    assert digest(trained) == before


# -- the output folder holds something: status 2, left as it is ------------------------------------------


def test_a_folder_that_holds_another_run(run, space, capsys):
    before = digest(run)
    assert train(space, run) == 2
    assert f"holds another run. Continue it with: growtas train --resume {run}" in sentence(capsys)
    assert digest(run) == before


def test_a_folder_that_holds_something_else(space, tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("two years of work")
    for verb in ("train", "demo"):
        call = train(space, tmp_path) if verb == "train" else cli.main(["demo", "--out", str(tmp_path)])
        assert call == 2
        assert "choose another folder" in sentence(capsys)
    assert train(space, tmp_path / "thesis.tex") == 2
    assert "is a file; choose a folder" in sentence(capsys)
    assert digest(tmp_path).keys() == {"thesis.tex"}
    assert (tmp_path / "thesis.tex").read_text() == "two years of work"


def test_a_model_is_not_replaced_unasked(trained, tmp_path, capsys):
    args = ["extract", str(trained), "--out", str(tmp_path), "--subnet"]
    assert cli.main([*args, "smallest"]) == 0
    before = digest(tmp_path)
    assert cli.main([*args, "largest"]) == 2
    assert "holds another model" in sentence(capsys)
    assert digest(tmp_path) == before
    assert cli.main([*args, "largest", "--overwrite"]) == 0
    assert digest(tmp_path) != before


def test_the_log_of_another_search_is_kept(run, capsys):
    search = ["search", str(run), "--population", "3", "--generations", "1", "--out", str(run / "mine.jsonl")]
    assert cli.main(search) == 0
    before = digest(run)
    assert cli.main([*search, "--seed", "1"]) == 2
    assert "is the log of another search (seed: 0 there, 1 here)" in sentence(capsys)
    assert digest(run) == before


def test_a_demo_of_other_settings_is_kept(run, tmp_path, capsys):
    shutil.move(run, tmp_path / "demo" / "run")
    before = digest(tmp_path)
    assert cli.main(["demo", "--out", str(tmp_path / "demo")]) == 2
    assert "holds a demo with" in sentence(capsys)
    assert digest(tmp_path) == before


@pytest.mark.parametrize("verb", ["search", "evaluate", "extract", "train"])
def test_a_run_that_is_not_there(verb, tmp_path, capsys):
    args = {
        "train": ["train", "--resume", str(tmp_path / "no")],
        "extract": ["extract", str(tmp_path / "no"), "--out", str(tmp_path / "model")],
    }
    assert cli.main(args.get(verb, [verb, str(tmp_path / "no")])) == 2
    assert f"The run folder {tmp_path / 'no'} does not exist" in sentence(capsys)
    assert not any(tmp_path.iterdir())
