"""Progress: lines where there is no terminal, a bar with room in 80 columns, silence on other ranks."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest

import growtas
from growtas import progress
from growtas.progress import Progress, track, track_images


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until a test moves it."""

    class Clock:
        now = 1000.0

        def __call__(self):
            return self.now

    made = Clock()
    monkeypatch.setattr(progress, "clock", made)
    monkeypatch.delenv("RANK", raising=False)
    return made


def lines(capsys):
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()


def test_a_line_a_minute_where_there_is_no_terminal(clock, capsys):
    with Progress(1000, "train", "step", done=100, images=32) as shown:
        assert not shown.has_bar
        for _ in range(150):  # two steps a second
            clock.now += 0.5
            shown.update(1, "loss 1.000", "stage 1/2")
    assert lines(capsys) == [
        "train: step 220 of 1,000 (22.0 %), loss 1.000, 6:30 left, 64 images/s, stage 1/2"
    ]


def test_a_line_when_asked_and_none_for_what_is_short(clock, capsys):
    with Progress(10, "train", "step") as shown:
        clock.now += 4
        shown.update(2, "loss 1.000")
        shown.line()
        clock.now += 59
        shown.update(8)
    assert lines(capsys) == ["train: step 2 of 10 (20.0 %), loss 1.000, 0:16 left, 0.50 step/s"]


def test_the_speed_is_that_of_the_last_minute(clock, capsys):
    """Not of the whole run: the time left follows a machine that has become slower."""
    with Progress(100_000, "train", "step") as shown:
        for _ in range(600):
            clock.now += 0.1
            shown.update()
        for _ in range(60):
            clock.now += 2
            shown.update()
    assert "0.50 step/s" in lines(capsys)[-1]


def test_images_per_second_of_an_evaluation(clock, capsys):
    def batches():
        for _ in range(8):
            clock.now += 10
            yield None, range(50)

    assert len(list(track_images(batches(), "evaluate", 400, passes=4))) == 8
    assert lines(capsys) == ["evaluate: image 300 of 400 (75.0 %), 0:20 left, 20 images/s"]


@pytest.mark.parametrize(
    "seconds, text", [(42.4, "0:42"), (725, "12:05"), (11_220, "3:07:00"), (190_000, "2 days 4:46:40")]
)
def test_times(seconds, text):
    assert progress._time(seconds) == text


def test_other_ranks_are_silent(clock, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    with Progress(10, "train", "step") as shown:
        clock.now += 1000
        shown.update()
        shown.line()
        shown.say("anything")
    assert list(track(range(3), "draw", "step")) == [0, 1, 2]
    assert lines(capsys) == []


IN_A_TERMINAL = """
import time
from growtas import progress
now = [0.0]
progress.clock = lambda: now[0]
with progress.Progress(625_500, "train", "step", images=1024) as shown:
    for step in range(100):
        now[0] += 0.17
        status = "loss 6.912", "stage 1/2", "epoch 1/500", "lr 1.0e-06"
        shown.update(1, *status)
    shown.say("a sentence")
"""


@pytest.mark.parametrize(
    "columns, kept", [(80, ["loss", "left", "images/s"]), (200, ["stage", "epoch", "lr"])]
)
def test_the_bar_has_room_in_a_terminal(columns, kept):
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    running = subprocess.Popen([sys.executable, "-c", IN_A_TERMINAL], stderr=writer, stdout=writer)
    os.close(writer)
    output = b""
    while True:
        try:
            output += os.read(reader, 65536)
        except OSError:  # how a pseudo-terminal ends
            break
    os.close(reader)
    assert running.wait() == 0, output
    text = output.decode()
    bars = [part for part in re.split(r"[\r\n]+|\x1b\[A", text) if part.startswith("train")]
    last = bars[-1]
    assert len(bars) > 10 and max(map(len, bars)) <= columns
    assert len(re.search(r"\|(.*?)\|", last)[1]) >= 10
    assert all(word in last for word in kept), last
    assert "| loss 6.912, " in last
    assert "a sentence" in re.split(r"[\r\n]+", text)
    assert "step 1" not in text  # no lines besides the bar


def test_a_redirected_run_says_where_it_is(tmp_path, capsys):
    settings = {"epochs": 2, "batch_size": 256, "eval_every": 1, "eval_subnets": 0, "tensorboard": False}
    growtas.train("digits", data="digits", out=tmp_path / "run", **settings)
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("train", "epoch"))]
    assert len(told) == 2 * 3
    step = r"train: step 4 of 8 \(50\.0 %\), loss \d\.\d+, .*\d images/s, stage 1/2, epoch 1/2, lr "
    assert re.match(step, told[0])
    for line, name in zip(told[1:3], ("smallest", "largest"), strict=True):
        assert re.match(rf"epoch 1: {name} d\S+: [\d,]+ parameters, top-1 \d+\.\d\d % on the", line)
