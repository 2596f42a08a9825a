"""The documents' generated parts: from result files alone, also where some are missing."""

from __future__ import annotations

import shutil

import pytest
import render_docs
from common import performance_docs, results, roofline_plot

MACHINE = {"device": "A Processor", "threads": 2, "processors": 2, "load_average": 0.1}
HEAD = {
    "machine": MACHINE,
    "versions": {"torch": "2.15", "timm": "1.0", "growtas": "0.1"},
    "commit": "abc",
    "date": "2026-11-22T10:00:00",
    "complete": True,
    "left_out": [],
}


def step(name: str, way: str, direction: str, seconds: float, **more) -> dict:
    own = {
        "space": "T",
        "name": name,
        "embed_dim": 216,
        "depth": 13,
        "batch": 8,
        "pass": direction,
        "way": way,
    }
    return {**own, "seconds": [seconds, 0.9 * seconds, 1.1 * seconds], **more}


@pytest.fixture
def folder(tmp_path):
    """benchmarks/results with a CPU's training steps and kernels."""
    path = tmp_path / "benchmarks" / "results" / "a-processor"
    settings = {"dtype": "float32", "quick": False, "backend": "auto", "methods": ["wall clock"], "rounds": 9}
    groups = {"products": {"seconds": 0.2, "calls": 9}, "attention": {"seconds": 0.1, "calls": 3}}
    profile = {"seconds": 0.4, "groups": groups, "flops": 40e9, "peak_flops": 250e9}
    records = []
    for name, published, timm in (("smallest", 2.5, 1.05), ("middle", 2.625, 1.1)):
        for direction in ("forward", "step"):
            ratios = {"vs_published": [published] * 3, "vs_timm": [timm] * 3}
            own = step(name, "growtas", direction, 0.5, **ratios)
            other = step(name, "published", direction, 1.25, vs_published=[1.0] * 3)
            if direction == "step":
                own |= {"saved_per_image": 34_200_000, "operations": 280, "profile": profile}
                other |= {"saved_per_image": 85_000_000, "operations": 2000}
            records += [own, other]
    results.write(path / "train_step.json", {**HEAD, "settings": settings}, records)
    results.write(path / "train_step_quick.json", {**HEAD, "settings": {**settings, "quick": True}}, records)
    ceiling = {"bandwidth": 2e10, "flops": 2e11}
    kernel = {"part": "products", "op": "fc1 forward", "flops": 1e9, "bytes": 1e7, "seconds": [0.01] * 3}
    kernel |= {"roofline": 0.5, "size": "T fc1 forward"}
    kernels = [
        {**kernel, "way": "cublas", "speed": [1.0] * 3},
        {**kernel, "way": "growtas torch", "speed": [0.96] * 3},
        {**kernel, "way": "growtas cpu", "speed": [1.2] * 3, "seconds": [0.008] * 3},
    ]
    head = {**HEAD, "settings": {"dtype": "float32", "batch": 8}, "roofline": ceiling}
    results.write(path / "kernels.json", head, kernels)
    return path.parent


def test_the_headline_comes_from_the_files(folder):
    sentence = performance_docs.headline(folder)
    assert "**2.50 to 2.62 times as fast as the published approach**" in sentence
    assert "1.05 to 1.10 times as fast as a dense timm ViT" in sentence
    assert "34 MB per image" in sentence and "in place of 85" in sentence
    assert "A Processor, 2 threads, float32, batch 8" in sentence
    (folder / "z").mkdir()
    shutil.copy(next(folder.glob("*/train_step.json")), folder / "z" / "train_step.json")
    another = performance_docs.headline(folder).removeprefix(sentence)
    assert another.startswith(
        " On A Processor, 2 threads, float32, batch 8, it is 2.50 to 2.62 times as fast"
    )


def test_steps_profile_and_kernels_are_shown(folder):
    steps = performance_docs.steps(folder)
    assert "| T middle d216 L13 " in steps and "2.62" in steps and steps.count("### Training steps") == 1
    assert "- training step at least 2.3 x published: lowest 2.50, highest 2.62: met" in steps
    profile = performance_docs.profiles(folder)
    assert "| GEMMs " in profile and "50%" in profile and "200 GFLOP/s, 80% of the 250" in profile
    kernels = performance_docs.kernels(folder)
    assert "fc1 forward" in kernels and "1.20" in kernels and "20 GB/s" in kernels and "bar" not in kernels


def test_missing_results_name_their_command(tmp_path):
    assert "benchmarks/train_step.py" in performance_docs.steps(tmp_path)
    assert "benchmarks/each_kernel.py" in performance_docs.kernels(tmp_path)
    assert performance_docs.headline(tmp_path) == ""
    assert "No GPU run is committed" in performance_docs.gpu_state(tmp_path)
    assert not roofline_plot.plot(tmp_path, tmp_path / "roofline.svg")


def test_a_result_that_was_cut_short_is_not_shown(folder):
    path = folder / "a-processor" / "train_step.json"
    data = results.read(path)
    records = data.pop("records")
    results.write(path, {**data, "complete": False}, records)
    (folder / "a-processor" / "train_step_quick.json").unlink()
    assert performance_docs.headline(folder) == "" and "No result" in performance_docs.steps(folder)


def test_the_picture_is_small_and_the_same_every_time(folder, tmp_path):
    pictures = [tmp_path / f"{index}.svg" for index in range(2)]
    for picture in pictures:
        assert roofline_plot.plot(folder, picture)
    texts = [picture.read_text() for picture in pictures]
    assert texts[0] == texts[1] and len(texts[0]) < 60_000
    assert "A Processor" in texts[0] and "#0072b2" in texts[0].lower()


def test_the_fastest_way_is_drawn(folder):
    records = results.read(folder / "a-processor" / "kernels.json")["records"]
    assert [record["way"] for record in roofline_plot.best(records)] == ["growtas cpu"]


def test_a_missing_mark_is_said(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("<!-- a -->\n<!-- end a -->\n")
    monkeypatch.setattr(render_docs, "ROOT", tmp_path)
    monkeypatch.setattr(render_docs, "DOCUMENTS", {page: {"a": lambda _: "1", "b": lambda _: ""}})
    with pytest.raises(SystemExit, match="has no <!-- b -->"):
        render_docs.rendered(page, tmp_path)
    page.write_text("<!-- a -->\nold\n<!-- end a -->\n<!-- b -->\nold\n<!-- end b -->\n")
    fresh = render_docs.rendered(page, tmp_path)
    assert fresh == "<!-- a -->\n\n1\n\n<!-- end a -->\n<!-- b -->\n<!-- end b -->\n"
    page.write_text(fresh)
    assert render_docs.rendered(page, tmp_path) == fresh
