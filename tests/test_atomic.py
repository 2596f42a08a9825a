"""Files that are the old version or the new one, whatever happens in between."""

from __future__ import annotations

import errno
import os

import pytest

from growtas import atomic
from growtas.errors import GrowtasError


def test_replaces_and_keeps_the_umask(tmp_path):
    path = tmp_path / "file"
    before = os.umask(0o027)
    try:
        atomic.write_text(path, "ä")
    finally:
        os.umask(before)
    assert path.read_bytes() == "ä".encode()
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [path]


def test_an_exception_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "file"
    atomic.write_text(path, "old")
    with pytest.raises(KeyError), atomic.replace(path) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("call", ["tempfile.mkstemp", "os.fsync", "os.replace"])
def test_a_full_device_is_one_sentence_wherever_it_shows(tmp_path, monkeypatch, call):
    path = tmp_path / "file"
    atomic.write_text(path, "old")

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(f"growtas.atomic.{call}", full)
    with pytest.raises(GrowtasError, match="No space is left on the device for .*file; the previous file is"):
        atomic.write_text(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
