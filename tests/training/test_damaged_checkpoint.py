"""A checkpoint in which a bit is flipped is refused, or is the same; torch alone reads over most of them."""

from __future__ import annotations

import random
import re

import pytest
import torch
from runs import same

from growtas.errors import GrowtasError
from growtas.training import checkpoint

DIRECTORY_ENTRY, ATTRIBUTES = b"PK\x01\x02", 38


@pytest.fixture(scope="module")
def smallest(tmp_path_factory):
    """A checkpoint of two tensors; not to be changed."""
    path = tmp_path_factory.mktemp("smallest") / "checkpoint.pt"
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(50, generator=generator) for name in ("a", "b")}
    state = dict.fromkeys(checkpoint.KEYS[1:], 0) | {"run": {"lr": 0.5}, "weights": weights}
    checkpoint.save(path, state)
    return path


def outcomes(path, copy, bits):
    """For each flipped bit ``refused``, ``equal`` or ``different``."""
    whole, state = path.read_bytes(), checkpoint.load(path)
    counts = {"refused": 0, "equal": 0, "different": 0}
    for bit in bits:
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        copy.write_bytes(content)
        try:
            counts["equal" if same(checkpoint.load(copy), state) else "different"] += 1
        except GrowtasError as error:
            counts["refused"] += 1
            assert str(copy) in str(error) and "Nothing was changed" in str(error)
    return counts


def test_flipped_bits(smallest, tmp_path):
    rng, size = random.Random(0), 8 * smallest.stat().st_size
    counts = outcomes(smallest, tmp_path / "copy.pt", [rng.randrange(size) for _ in range(150)])
    assert counts["different"] == 0 and counts["refused"] > 40, counts


def test_a_tensor_that_is_made_a_directory(smallest, tmp_path):
    """torch takes whatever is in memory for it."""
    content = smallest.read_bytes()
    entries = [match.start() for match in re.finditer(re.escape(DIRECTORY_ENTRY), content)]
    bits = [8 * (entry + ATTRIBUTES) + 4 for entry in entries]
    counts = outcomes(smallest, tmp_path / "copy.pt", bits)
    assert counts == {"refused": len(entries), "equal": 0, "different": 0} and len(entries) > 4


def test_the_damaged_record_is_named(smallest, tmp_path):
    content = bytearray(smallest.read_bytes())
    content[content.index(checkpoint.load(smallest)["weights"]["b"].numpy().tobytes()) + 7] ^= 1
    (tmp_path / "copy.pt").write_bytes(content)
    with pytest.raises(GrowtasError, match="the record archive/data/1 does not match its checksum"):
        checkpoint.load(tmp_path / "copy.pt")


def test_a_checkpoint_that_may_not_be_read(smallest, monkeypatch):
    def refuse(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(GrowtasError, match="cannot be read .permission denied.. Nothing .* make it readable"):
        checkpoint.load(smallest)


@pytest.mark.slow
def test_three_thousand_flipped_bits_of_a_run(finished, tmp_path):
    path, rng = finished.checkpoint_path, random.Random(0)
    bits = [rng.randrange(8 * path.stat().st_size) for _ in range(3000)]
    counts = outcomes(path, tmp_path / "copy.pt", bits)
    assert counts["different"] == 0 and counts["refused"] > 2000, counts
