"""Jobs in fresh processes, none of which imports torch: what they get, how they end, which wait for which."""

from __future__ import annotations

import json

import pytest

from growtas.errors import GrowtasError, UsageError
from growtas.jobs import Job, Runner, worker
from growtas.jobs.folder import FORMAT, check_counts, read_plan
from growtas.jobs.local import Local
from growtas.locks import locked

RUNNER = Runner(Local(2, 3), "")


def write(folder, name, after=None, done=False, path=None):
    """A job that writes a file."""
    arguments = {"path": str(path or folder / name), "text": name}
    return Job(name, "growtas.atomic:write_text", arguments, folder / f"{name}.txt", after, done)


def test_jobs_run_in_processes_of_their_own(tmp_path, capsys):
    missing = tmp_path / "missing" / "file"
    jobs = [
        write(tmp_path, "broken", path=missing),
        write(tmp_path, "first", done=True),
        write(tmp_path, "second", after="first"),
        write(tmp_path, "third", after="broken"),
    ]
    failed = RUNNER.run(jobs, "write", "file")
    assert sorted(failed) == ["broken", "third"]
    assert "FileNotFoundError" in failed["broken"] and "exit status 1; see " in failed["broken"]
    assert failed["third"] == "broken failed, from which it goes on."
    assert (tmp_path / "second").read_text() == "second"
    assert not (tmp_path / "first").exists(), "it was done earlier"
    said = capsys.readouterr().err
    assert "4 of 4: " in said and "second is done" in said and "third failed: broken" in said


def test_a_worker_says_why_it_failed(tmp_path, capsys):
    given = json.dumps({"given": {"jobs": 0}, "least": {"jobs": 1}})
    assert worker.main(["growtas.jobs.folder:check_counts", given]) == UsageError.exit_status
    assert capsys.readouterr().err == "jobs=0 is not possible; it must be a whole number, 1 or more.\n"


@pytest.mark.parametrize("value", [True, 1.0, "2", -1])
def test_counts_are_whole_numbers(value):
    with pytest.raises(UsageError, match="seeds=.* must be a whole number, 0 or more"):
        check_counts({"seeds": value}, {"seeds": 0})
    check_counts({"seeds": None}, {"seeds": 0})


def test_a_lock_is_held_by_one(tmp_path):
    file = tmp_path / "folder" / ".lock"
    with locked(file, "Busy."), pytest.raises(UsageError, match="Busy"), locked(file, "Busy.", wait=0.3):
        pass
    with locked(file, "Busy."):
        pass


@pytest.mark.parametrize(
    ("text", "says"),
    [("{", "not the plan of a test"), ("{}", "not the plan of a test"), ('{"format": 9}', "has format 9")],
)
def test_damaged_plans_are_told(tmp_path, text, says):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(GrowtasError, match=says):
        read_plan(tmp_path / "plan.json", "test", dict)
    (tmp_path / "plan.json").write_text(json.dumps({"format": FORMAT, "a": 1}))
    assert read_plan(tmp_path / "plan.json", "test", lambda data: data["a"]) == 1
