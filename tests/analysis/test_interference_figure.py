"""The figure "Interference" of made-up logs: its tables, sentences and pictures."""

from __future__ import annotations

import json

import pytest
from comparisons import space_file

import growtas
from growtas.analysis import parts
from growtas.analysis.base import Analysis
from growtas.analysis.interference import GradientInterference, interference
from growtas.errors import UsageError
from growtas.space import load_space
from growtas.training import Run, TrainConfig
from growtas.training.run import versions

LAYERS = ("embedding", "blocks.0", "blocks.1", "head")
EPOCHS = range(0, 41, 10)


def cosine_of(method, seed, epoch):
    """Falls along training; a tenth higher with stages before epoch 20, and no lower after it."""
    return 0.9 - 0.01 * epoch + 0.01 * seed + (0.1 if method == "growtas" and 0 < epoch <= 20 else 0)


def record(method, seed, epoch, control=0.05, **changes):
    cosine = cosine_of(method, seed, epoch)

    def values(cosine):
        layers = {layer: cosine - 0.1 * place for place, layer in enumerate(LAYERS)}
        return {"cosine": cosine, "layers": layers, "negative": 0.25, "norm_ratio": 2.0, "pairs": 16}

    small = {**values(cosine + control), "pairs": 6, "negative": 0.125, "images": 64}
    event = {"event": "interference", "step": 10 * epoch, "epoch": epoch, "small": 0, "large": 2}
    return {**event, **values(cosine), "images": 64, "control": small, **changes}


def write(folder, method, seed, records, epochs=40, space="digits"):
    """A folder of a run that holds no more than settings and a log."""
    config = TrainConfig(space=space, method=method, seed=seed, epochs=epochs, out=str(folder)).resolved()
    images = {"num_classes": 10, "train": 320, "search": 10, "test": 10}
    folder.mkdir(parents=True)
    Run(folder, config, load_space(space), 10, 10, images, versions()).write_config()
    stages = [{"event": "stage", "step": 0, "epoch": 0, "stage": 0, "groups": [0, 1]}]
    if method == "growtas":
        stages.append({"event": "stage", "step": 200, "epoch": 20, "stage": 1, "groups": [0, 1, 2]})
    lines = [json.dumps({**each, "time": 0}) for each in (*stages, *records)]
    (folder / "log.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("networks")
    return [
        write(root / f"{method}-{seed}", method, seed, [record(method, seed, epoch) for epoch in EPOCHS])
        for method in ("uniform", "growtas")
        for seed in range(3)
    ]


@pytest.fixture(scope="module")
def found(folders):
    return interference(folders)


def test_tables_hold_what_the_logs_say(found):
    cosines = found.tables["cosines"]
    assert len(cosines.rows) == 2 * 3 * 5 * (1 + len(LAYERS))
    whole = cosines.where(method="growtas", seed=2, epoch=10, layer="all")
    assert whole.column("cosine") == pytest.approx([0.92]) and whole.column("control") == pytest.approx(
        [0.97]
    )
    head = cosines.where(method="uniform", seed=0, epoch=40, layer="head")
    assert head.column("cosine") == pytest.approx([0.2]) and head.column("control") == pytest.approx([0.25])
    assert found.tables["transitions"].rows == tuple(("growtas", seed, 1, 20, None) for seed in range(3))
    assert found.begins("growtas") == [20] and found.begins("uniform") == []
    assert (found.facts["small"], found.facts["large"], found.facts["axis"]) == (24, 48, "embed_dim")
    assert set(found.tables["pairs"].column("norm_ratio")) == {2.0}


def test_sentences_say_the_numbers(found):
    uniform, growtas, difference, transition, signs, low_uniform, low_growtas = found.findings()
    assert "embed_dim 24 and 48 have a cosine of 0.91 at epoch 0 and of 0.51 at epoch 40" in uniform
    assert "seeds: 3, pairs: 16, images: 64" in uniform
    assert "0.66 on average, 0.050 below that of two subnets of 24 (6 pairs; 95 % interval" in uniform
    assert growtas.startswith("growtas: ") and "0.71 on average" in growtas
    # half of the measurements along training are a tenth higher, in every seed
    assert "cosine of growtas is 0.050 above that of uniform, paired by seed (pairs: 3)" in difference
    assert "interval +0.050 to +0.050, without zero" in difference
    assert "goes from 0.81 to 0.61 (means; transitions: 3)" in transition
    assert "uniform 25.0 % of the pairs (12.5 % of the control's)" in signs and "2.00 times" in signs
    assert "least in head (0.36) and most in embedding (0.66)" in low_uniform
    assert low_growtas.startswith("growtas, by layer")


def test_a_control_below_the_cosine_is_said_so(tmp_path):
    records = [record("uniform", 0, epoch, control=-0.05) for epoch in EPOCHS]
    (level, signs, _) = interference([write(tmp_path / "run", "uniform", 0, records)]).findings()
    assert "0.050 above that of two subnets of 24 (6 pairs)" in level and "seeds: 1," in level
    assert "uniform" in signs


def test_no_difference_is_claimed_where_there_is_none(tmp_path):
    folders = []
    for method, noise in (("uniform", 1), ("growtas", -1)):
        for seed in range(3):
            records = [record("uniform", noise * seed, epoch) for epoch in EPOCHS]
            folders.append(write(tmp_path / f"{method}-{seed}", method, seed, records))
    difference = interference(folders).findings()[2]
    assert "with zero in it: no difference is shown" in difference


def test_pictures(found):
    drawings = found.drawings()
    assert set(drawings) == {"", "layers"}
    left, right = drawings[""].figure.axes
    lines = {line.get_label(): line for line in left.get_lines()}
    assert list(lines["uniform: small, large"].get_ydata()) == pytest.approx(
        [cosine_of("uniform", 1, epoch) for epoch in EPOCHS]
    )
    assert list(lines["growtas: two small"].get_xdata()) == list(EPOCHS)
    assert len(left.collections) == 2  # a band per method
    assert all(value == pytest.approx(0.05) for value in right.get_lines()[0].get_ydata())
    heat = drawings["layers"].figure.axes[1].collections[0].get_array()
    assert heat.shape == (4, 5) and heat[0, 1] == pytest.approx(cosine_of("growtas", 1, 10))
    for drawing in drawings.values():
        assert "seeds per method: 3" in drawing.caption and drawing.alt


def test_kept_as_text_it_says_the_same(found):
    again = GradientInterference.from_json(found.to_json())
    assert isinstance(again, Analysis) and again.findings() == found.findings()
    assert again.drawings()[""].caption == found.drawings()[""].caption


def test_what_no_pair_shared_is_left_out(tmp_path):
    records = [record("uniform", 0, epoch) for epoch in EPOCHS]
    for each in records:
        each["layers"]["blocks.1"] = None
        each["control"] = {**each["control"], "cosine": None, "layers": dict.fromkeys(LAYERS), "pairs": 0}
    records.append(record("uniform", 0, 35, cosine=None))  # no gradient was finite
    found = interference([write(tmp_path / "run", "uniform", 0, records)])
    assert "blocks.1" not in found.tables["cosines"].column("layer")
    assert 35 not in found.tables["cosines"].column("epoch")
    assert "two subnets" not in found.findings()[0]
    assert found.drawings()["layers"].figure.axes[0].collections[0].get_array().mask[2].all()


def test_runs_that_cannot_be_compared(tmp_path, folders):
    silent = write(tmp_path / "silent", "uniform", 0, [])
    with pytest.raises(UsageError, match="interference_every=1"):
        interference([silent])
    longer = write(tmp_path / "longer", "uniform", 0, [record("uniform", 0, 0)], epochs=50)
    with pytest.raises(UsageError, match="50 epochs on the space 'digits'"):
        interference([folders[0], longer])
    with pytest.raises(UsageError, match="at least one run"):
        interference([])


def test_a_real_run_gives_what_is_read(tmp_path):
    settings = {"epochs": 2, "batch_size": 512, "eval_every": 0, "eval_subnets": 0, "tensorboard": False}
    settings |= {"data": "digits", "transition": "1", "interference_every": 1}
    run = growtas.train(space_file(tmp_path), out=tmp_path / "run", **settings)
    found = interference([run])
    assert list(found.course("growtas")) == [0, 1, 2] and found.begins("growtas") == [1]
    assert found.facts["layers"] == ["embedding", "blocks.0", "blocks.1", "head"]
    assert "transitions: 1)" in " ".join(found.findings()) and found.drawings()


def test_the_part_of_a_report():
    class Workspace:
        seeds, space = 2, load_space("digits")

    part = parts.part("interference")
    assert part.networks(Workspace) == ("uniform-0", "uniform-1", "growtas-0", "growtas-1")
    assert part.reason(Workspace) is None
