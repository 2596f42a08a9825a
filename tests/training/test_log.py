"""The log of a run: records that were changed, cut or removed are noticed; long runs keep what is needed."""

from __future__ import annotations

import random
import zlib
from base64 import b64encode

import pytest
import torch
from runs import SPACE

from growtas.errors import GrowtasError, UsageError
from growtas.training import steps
from growtas.training.environment import changes, environment
from growtas.training.log import RunLog, check_whole, last_record, read_log
from growtas.training.steps import spacing


def begun(folder, records=12):
    """A log of some records, and where a checkpoint says that it ends; three more came behind that."""
    log = RunLog(folder)
    log.write("stage", 0, 0, stage=0, groups=[0])
    for step in range(records - 1):
        log.write("step", step, step // 4, loss=1 / (step + 3))
    state = log.sync(), log.check, records - 1, 2
    for step in range(records - 1, records + 2):
        log.write("step", step, step // 4, loss=1.0)
    log.close()
    return state


def kept(folder, state):
    """The steps that a resume leaves in the log."""
    log = RunLog(folder)
    try:
        log.keep(*state)
        log.write("step", 11, 2, loss=0.5)
    finally:
        log.close()
    return [record["step"] for record in read_log(folder, "step")]


def test_a_resume_cuts_the_log_where_the_checkpoint_was_written(tmp_path):
    state = begun(tmp_path)
    assert kept(tmp_path, state) == list(range(12))


def test_other_line_ends_do_not_cut_a_record(tmp_path):
    state = begun(tmp_path)
    path = tmp_path / "log.jsonl"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert kept(tmp_path, state) == list(range(12))
    path.write_bytes(path.read_bytes().replace(b'"loss": 0.5', b'"loss": 0.6'))
    with pytest.raises(GrowtasError, match="Line 13 of .*log.jsonl is damaged .its checksum"):
        list(read_log(tmp_path))


@pytest.mark.parametrize("chained", [True, False], ids=["", "of an older version"])
def test_changed_logs_are_refused_and_left_as_they_are(tmp_path, chained, capsys):
    state, path, rng = begun(tmp_path), tmp_path / "log.jsonl", random.Random(0)
    if not chained:
        lines = path.read_bytes().splitlines()
        lines = [line.rpartition(b", ")[0] + b"}\n" for line in lines]
        state = (len(b"".join(lines[:12])), None, *state[2:])
        path.write_bytes(b"".join(lines))
        assert kept(tmp_path, state) == list(range(12))
        assert "have no checksums, since an older version" in capsys.readouterr().err
        path.write_bytes(b"".join(lines))
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    changed = [
        b"".join(lines[:5] + lines[6:]),
        b"".join(lines[:6] + lines[5:]),
        whole[: state[0] - 30],
        b"\n",
    ]
    if chained:
        changed.append(b"".join([*lines[:5], lines[6], lines[5], *lines[7:]]))
        for _ in range(60):
            content = bytearray(whole)
            bit = rng.randrange(8 * (state[0] - 30))  # the last check may look like a line without one
            content[bit // 8] ^= 1 << bit % 8
            changed.append(bytes(content))
    for content in changed:
        path.write_bytes(content)
        with pytest.raises(GrowtasError, match=r"Line \d+ of .* is damaged|was cut or changed"):
            kept(tmp_path, state)
        assert path.read_bytes() == content


def test_a_log_that_is_gone_begins_anew_and_says_so(tmp_path, capsys):
    state = begun(tmp_path)
    (tmp_path / "log.jsonl").unlink()
    assert kept(tmp_path, state) == [11]
    assert "log.jsonl is gone: the records before step 11 are lost" in capsys.readouterr().err
    assert last_record(tmp_path, "gap")["step"] == 11 and last_record(tmp_path, "eval") is None
    with pytest.raises(UsageError, match="records before step 11 are lost"):
        check_whole(tmp_path)


def test_a_log_that_is_removed_or_replaced_meanwhile_is_put_back(tmp_path, capsys):
    log, path = RunLog(tmp_path), tmp_path / "log.jsonl"
    log.write("step", 0, 0, loss=1.0)
    for change in (path.unlink, lambda: (path.rename(tmp_path / "moved"), path.write_text("mine\n"))):
        change()
        log.write("step", 1, 0, loss=1.0)
        log.sync()
        assert "was removed or replaced while the run went on; it was put back" in capsys.readouterr().err
        with pytest.raises(UsageError, match="Another process"):
            RunLog(tmp_path)  # it is locked like the former one
    log.write("step", 2, 0, loss=1.0)
    offset = log.sync()
    assert capsys.readouterr().err == "" and path.stat().st_size == offset
    log.close()
    assert [record["step"] for record in read_log(tmp_path)] == [0, 1, 1, 2]


def test_a_log_of_another_run_is_not_replaced(tmp_path):
    log, path = RunLog(tmp_path), tmp_path / "log.jsonl"
    log.write("step", 0, 0, loss=1.0)
    path.unlink()
    other = RunLog(tmp_path)
    other.write("step", 7, 0, loss=2.0)
    with pytest.raises(UsageError, match="Another process is writing the run"):
        log.sync()
    log.close(), other.close()
    assert [record["step"] for record in read_log(tmp_path)] == [7]


@pytest.mark.parametrize("left", [0, 100, 400])
def test_a_log_that_is_cut_meanwhile_goes_on_behind_what_is_left(tmp_path, capsys, left):
    log = RunLog(tmp_path)
    for step in range(8):
        log.write("step", step, 0, loss=1.0)
    with open(tmp_path / "log.jsonl", "r+b") as file:
        file.truncate(left)
    log.write("step", 8, 0, loss=1.0)
    state = log.sync(), log.check, 9, 0
    assert "was cut while the run went on: records from step" in capsys.readouterr().err
    log.close()
    assert kept(tmp_path, state)[-1] == 11
    assert last_record(tmp_path, "gap")["step"] == 8


# -- long runs -----------------------------------------------------------------------------------------------


def logged(folder, steps, log_every=1, log_steps=0, per_step=2):
    """The log that a run of random subnets has; every seventh step is skipped."""
    every, rng = spacing(steps, log_every, log_steps), random.Random(0)
    log = RunLog(folder)
    for step in range(0, steps, log_every):
        if step % 500 == 0:
            log.write("stage", step, step // 250, stage=step // 500, groups=[0])
        subnets = [SPACE.sample(rng) for _ in range(per_step)]
        skipped = {"skipped": True} if step % 7 == 5 else {}
        values = {
            "stage": step // 500,
            "groups": [0, 1],
            "group": [SPACE.group_of(subnet) for subnet in subnets],
            "subnets": [str(subnet) for subnet in subnets],
            "loss": None if skipped else 2 / (step + 1),
            "lr": 1e-3 / (step + 1),
            **skipped,
        }
        if every > log_every:
            log.write_step(step, step // 250, bool(skipped) or step % every == 0, **values)
        else:
            log.write("step", step, step // 250, **values)
        if step == 333:
            log.sync()  # a checkpoint within an epoch
    log.close()
    return every


def without_time(records):
    return [
        {name: value for name, value in record.items() if name not in ("time", "event")} for record in records
    ]


@pytest.mark.parametrize("log_every", [1, 3])
def test_the_log_of_a_long_run_keeps_every_draw_and_some_losses(tmp_path, log_every):
    for name in ("full", "thin"):
        (tmp_path / name).mkdir()
    assert logged(tmp_path / "full", 1200, log_every) == log_every
    every = logged(tmp_path / "thin", 1200, log_every, log_steps=40)
    assert every == 30
    full, thin = (without_time(read_log(tmp_path / name, "step")) for name in ("full", "thin"))
    assert thin == [record for record in full if record["step"] % every == 0 or record.get("skipped")]
    names = ("step", "epoch", "stage", "groups", "group", "subnets")
    drawn = [{name: record[name] for name in names} for record in full]
    assert without_time(read_log(tmp_path / "thin", "draw")) == drawn
    assert [{name: r[name] for name in names} for r in read_log(tmp_path / "full", "draw")] == drawn
    everything = list(read_log(tmp_path / "thin"))
    assert [record["step"] for record in everything] == sorted(record["step"] for record in everything)
    sizes = [(tmp_path / name / "log.jsonl").stat().st_size for name in ("thin", "full")]
    assert sizes[0] < sizes[1] / 3


@pytest.mark.parametrize(
    "drawn, says",
    [
        (zlib.compress(bytes(2 * steps.MOST_BYTES)), "cut short, or over 16,777,216 bytes"),
        (zlib.compress(b"{}")[:-3], "cut short"),
        (b"none", "cannot be unpacked"),
    ],
)
def test_steps_that_cannot_be_unpacked_are_a_sentence(tmp_path, drawn, says):
    """Somebody else's log has checksums too: a few kilobytes must not become gigabytes."""
    log = RunLog(tmp_path)
    log.write("steps", 0, 0, stage=0, groups=[0], last=0, complete={}, drawn=b64encode(drawn).decode())
    log.close()
    with pytest.raises(GrowtasError, match=f"log.jsonl is damaged .*the steps from 0 on .*{says}"):
        list(read_log(tmp_path))


def test_short_runs_keep_everything():
    assert spacing(20_000, 1, 20_000) == spacing(600_000, 1, 0) == 1
    assert spacing(625_000, 1, 20_000) == 32 and spacing(625_000, 50, 20_000) == 50


# -- surroundings --------------------------------------------------------------------------------------------


def test_other_surroundings_are_told_in_one_line():
    def now(**given):
        surroundings = environment(torch.device("cpu"))
        return {"ranks": 1, "environment": surroundings | given, "versions": {"torch": "2.9.0"}}

    state = now()
    assert changes(state, now()) == ""
    assert changes(state, now(threads=2, backend="torch")).startswith(
        "The number of threads changed from 1 to 2, backend changed from auto to torch: the result will be"
    )
    assert "Torch changed from 2.8.1 to 2.9.0:" in changes(state | {"versions": {"torch": "2.8.1"}}, now())
    assert changes({"versions": {}}, now()) == ""  # an older version's checkpoint
