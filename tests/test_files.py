"""Damaged files end in one sentence that names the file and the remedy, whatever is wrong with them."""

from __future__ import annotations

import json
import random

import pytest

from growtas import files
from growtas.errors import GrowtasError, UsageError

READERS = {"json": files.read_json, "yaml": files.read_yaml}


def read(path, use=lambda data: data):
    with files.reading(path, "a test", "Remove it."):
        return use(READERS[path.suffix[1:]](path))


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"{",
        b"[1]",
        b"7",
        b"null",
        b'"text"',
        b"[" * 100_000,
        b'{"a": ' + b"9" * 5000 + b"}",
    ],
)
def test_content_that_is_no_object(tmp_path, kind, content):
    path = tmp_path / f"file.{kind}"
    path.write_bytes(content)
    with pytest.raises(GrowtasError, match="is damaged or not a test .*Remove it") as caught:
        read(path, lambda data: data["missing"])
    sentence = str(caught.value)
    assert sentence.startswith(str(path)) and len(sentence) < 400 and "\n" not in sentence


def test_values_that_are_not_the_expected_ones(tmp_path):
    path = tmp_path / "file.json"
    path.write_text('{"a": [1], "b": "text"}')
    uses = [
        lambda data: data["c"],
        lambda data: data["a"]["b"],
        lambda data: data["a"][3],
        lambda data: float(data["b"]),
        lambda data: data["b"].items(),
        lambda data: 1 / (data["a"][0] - 1),
    ]
    for use in uses:
        with pytest.raises(GrowtasError, match="is damaged or not a test"):
            read(path, use)
    with pytest.raises(GrowtasError, match="'c' is missing"):
        read(path, uses[0])


def test_errors_with_a_sentence_of_their_own_pass(tmp_path):
    path = tmp_path / "file.json"
    path.write_text("{}")

    def another_format(data):
        raise GrowtasError("It has another format.")

    def wrong(data):
        raise UsageError("lr=-1 is not possible.")

    with pytest.raises(GrowtasError, match=r"^It has another format\.$"):
        read(path, another_format)
    with pytest.raises(GrowtasError, match=r"is damaged or not a test \(lr=-1 is not possible\)\. Remove it"):
        read(path, wrong)


def test_files_that_cannot_be_opened(tmp_path):
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "missing.json")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(GrowtasError, match="folder.json cannot be read .is a directory"):
        read(tmp_path / "folder.json")


def test_a_changed_value_is_noticed_where_there_is_a_checksum(tmp_path):
    path, data = tmp_path / "file.json", {"lr": 0.1, "names": ["é", None]}
    path.write_text(json.dumps(files.signed(data), indent=1))
    assert read(path) == data
    path.write_text(path.read_text().replace("0.1", "0.2"))
    with pytest.raises(GrowtasError, match="checksum does not match its values"):
        read(path)
    path.write_text(json.dumps(data))  # of an older version
    assert read(path) == data


def test_mutated_bytes_are_read_or_told(tmp_path):
    rng, path = random.Random(0), tmp_path / "file.json"
    whole = json.dumps({"format": 1, "settings": {"lr": 0.5, "names": ["a", "b"]}}).encode()
    told = 0
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(content)
        try:
            read(path, lambda data: (data["settings"]["names"][1], float(data["settings"]["lr"])))
        except GrowtasError:
            told += 1
    assert 100 < told < 300
