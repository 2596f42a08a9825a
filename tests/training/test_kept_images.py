"""Images that are kept are those that an evaluation decodes, wherever they are kept."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from runs import SPACE

from growtas.training.data import evaluation_loader, kept, load_splits, memory
from growtas.training.data.kept import DEVICE, DISK, NOWHERE, KeptImages

BATCHES = [[5, 0, 17], [3, 4], [16, 1]]
ALL = sum(BATCHES, [])


class Counting:
    """A split that notes which images are taken."""

    def __init__(self, split):
        self.split, self.channels, self.taken = split, split.channels, []

    def __getitem__(self, index):
        return self.split[index]

    def __getitems__(self, indices):
        self.taken += indices
        return self.split.__getitems__(indices)


@pytest.mark.parametrize(
    ("place", "memory_left", "disk_left", "said"),
    [
        (DEVICE, 2**40, 0, "7 images decoded once, 0.0 MB on cpu"),
        (DISK, 0, 2**40, "7 images decoded once, 0.0 MB in a temporary file in"),
        (NOWHERE, 0, 0, "7 images take 0.0 MB, for which neither memory nor"),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_kept_images_are_those_of_an_evaluation_to_the_bit(
    image_folder, monkeypatch, capsys, channels, place, memory_left, disk_left, said
):
    split = load_splits(f"folder:{image_folder}", dataclasses.replace(SPACE, in_channels=channels)).train
    images, labels = map(torch.cat, zip(*evaluation_loader(split, 64), strict=True))
    monkeypatch.setattr(kept, "free_bytes", lambda device: memory_left)
    monkeypatch.setattr(kept, "free_disk", lambda folder: disk_left)
    counted = Counting(split)
    found = KeptImages(counted, BATCHES)
    assert torch.equal(found.batch(0)[0], images[BATCHES[0]])
    with torch.inference_mode():  # the rest is decoded in another mode than the first batch
        assert torch.equal(torch.cat([found.batch(number)[0] for number in range(3)]), images[ALL])
    assert torch.equal(found.batch(1)[0], images[BATCHES[1]])
    assert torch.equal(found.batch(1)[1], labels[BATCHES[1]])
    assert found.place == place and said in capsys.readouterr().err
    again = [*BATCHES[0], *ALL, *BATCHES[1], *BATCHES[1]]
    assert counted.taken == (again if place == NOWHERE else ALL)


def test_embedded_images_are_kept_as_they_are():
    split = load_splits("digits", SPACE).search
    found = KeptImages(split, [[2, 1], [0]])
    images, labels = map(torch.cat, zip(found.batch(0), found.batch(1), strict=True))
    assert torch.equal(images, split.images[[2, 1, 0]]) and torch.equal(labels, split.labels[[2, 1, 0]])


def test_free_memory_is_what_a_control_group_leaves(tmp_path, monkeypatch):
    cpu, whole = torch.device("cpu"), memory.free_bytes(torch.device("cpu"))
    assert 2**20 < whole < 2**50
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(memory, "_cgroups", lambda: [tmp_path / "job", tmp_path])
    for name, text in (("max", "max"), ("current", "1"), ("stat", "inactive_file 0")):
        (tmp_path / f"memory.{name}").write_text(f"{text}\n")  # of the group above: without a limit
    (tmp_path / "job").mkdir()
    for name, text in (("max", "6000"), ("current", "5000"), ("stat", "anon 7\ninactive_file 400\n")):
        (tmp_path / "job" / f"memory.{name}").write_text(f"{text}\n")
    assert memory.free_bytes(cpu) == 700  # the files that it holds in memory are given up on demand
