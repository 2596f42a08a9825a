"""A process that is refused because another one holds a folder changes nothing in it."""

from __future__ import annotations

import shutil
from contextlib import contextmanager

import pytest

import growtas
import growtas.export
from growtas.analysis.report import report
from growtas.comparing import compare
from growtas.errors import GrowtasError, UsageError
from growtas.export.files import LOCK_NAME
from growtas.locks import lock, locked
from growtas.ops import records
from growtas.training import start
from growtas.training.data import pack
from growtas.training.log import RunLog
from growtas.tuning import driver


def state(folder):
    """Every file and folder with its times, and what is in it."""
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in (folder, *folder.rglob("*"))
    }


@contextmanager
def refused(folder, sentence):
    before = state(folder)
    with pytest.raises(GrowtasError, match=sentence):
        yield
    assert state(folder) == before


@pytest.fixture
def run(finished, tmp_path):
    """A finished run, with the temporary file of an unfinished write."""
    shutil.copytree(finished.path, tmp_path / "run")
    (tmp_path / "run" / ".checkpoint.pt.abc.tmp").write_text("half")
    return tmp_path / "run"


def test_train_beside_a_run_that_has_just_begun(small, tmp_path):
    (tmp_path / "run").mkdir()
    log = RunLog(tmp_path / "run")
    with refused(tmp_path, "Another process is writing the run"):
        growtas.train(**small, out=tmp_path / "run")
    log.close()


def test_train_that_another_process_overtook(small, run, monkeypatch):
    """It found the folder free, and loaded its data while the other one began; or began and finished."""
    check, seen = start.check_free, []
    monkeypatch.setattr(start, "check_free", lambda path: seen.append(path) or len(seen) > 1 and check(path))
    log = RunLog(run)
    with refused(run, "Another process is writing the run"):
        growtas.train(**small, out=run)
    log.close()
    seen.clear()
    with refused(run, "holds another run"):
        growtas.train(**small, out=run)
    assert len(seen) == 2


def test_resume_and_finetune(run):
    log = RunLog(run)
    with refused(run, "Another process is writing the run"):
        growtas.train(resume=run)
    log.close()
    (run / "finetune-growtas+").mkdir()
    log = RunLog(run / "finetune-growtas+")
    with refused(run, "Another process is writing the run"):
        growtas.finetune(run)
    log.close()


def test_a_log_that_was_removed_meanwhile_is_no_lock(tmp_path):
    log = RunLog(tmp_path)
    log.discard()
    log.close()
    assert not list(tmp_path.iterdir())
    with RunLog(tmp_path)._file as first:
        first.write(b"{}\n")
        first.flush()
        (tmp_path / "log.jsonl").rename(tmp_path / "moved")
        (tmp_path / "log.jsonl").touch()
        second = RunLog(tmp_path)
        second.discard()
        second.close()
    assert [path.name for path in tmp_path.iterdir()] == ["moved"]


def test_search(run):
    sizes = {"population": 4, "generations": 1, "parents": 2}
    found = growtas.search(run, **sizes)
    found.path.write_bytes(found.path.read_bytes().split(b"\n")[0] + b"\nhalf of a li")
    with open(found.path, "ab") as file, refused(run, "Another process is writing the search log"):
        lock(file)
        growtas.search(run, **sizes)


def test_extract(run, tmp_path):
    out = tmp_path / "model"
    growtas.export.save(growtas.extract(run, "smallest"), out)
    assert LOCK_NAME not in [path.name for path in out.iterdir()]
    largest = growtas.extract(run, "largest")
    with locked(out / LOCK_NAME, ""), refused(out, "Another process is writing a model"):
        growtas.export.save(largest, out, overwrite=True)


def test_data_pack(image_folder, tmp_path):
    out = tmp_path / "packed"
    pack.data_pack(image_folder, out, workers=0)
    assert sorted(path.name for path in out.iterdir()) == ["packing.json", "train", "val"]
    (out / "train" / ".000000.tar.abc.tmp").write_text("half")
    with locked(out / pack.LOCK, ""), refused(out, "Another process is packing images"):
        pack.data_pack(image_folder, out, workers=0)


def test_compare_and_report(tmp_path):
    for out, call in ((tmp_path / "a", compare), (tmp_path / "b", report)):
        folder = out if call is compare else out / "report"
        with locked(folder / ".lock", ""), refused(tmp_path, "Another process is"):
            call(space="digits", data="digits", out=out)


def test_tune(tmp_path, monkeypatch):
    monkeypatch.setenv("GROWTAS_CACHE", str(tmp_path))
    monkeypatch.setattr(driver, "WAIT", 0.0)
    path = records.path_of(records.key(driver._device("cpu")))
    with locked(path.with_suffix(".lock"), ""), refused(tmp_path, "Another process is tuning"):
        driver.tune("digits", "cpu")


def test_a_lock_that_is_free_after_all(tmp_path, capsys):
    file = tmp_path / "deep" / ".lock"
    with locked(file, "Busy.", remove=True):
        with pytest.raises(UsageError, match="Busy"), locked(file, "Busy.", wait=0.3):
            pass
        assert capsys.readouterr().err == "growtas: Busy.\n"
    assert not file.exists()
    with locked(file, "Busy."):
        pass
    assert file.read_bytes() == b""
