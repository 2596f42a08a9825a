"""Threads that growtas chooses: for small nets, in its own processes, and never against the user."""

from __future__ import annotations

import os
import sys

import pytest
import torch

import growtas
from growtas import cli, threads


@pytest.fixture(autouse=True)
def _unset(monkeypatch):
    for name in (*threads.VARIABLES, *threads.WAITING):
        monkeypatch.delenv(name, raising=False)
    torch.set_num_threads(2)  # the fixture for all tests restores it


def test_small_nets_compute_on_one_thread_in_the_command_line_alone():
    threads.fit(growtas.load_space("digits"))
    assert torch.get_num_threads() == 2, "a library's user chooses"
    with threads.chosen():
        threads.fit(growtas.load_space("autoformer-tiny"))
        assert torch.get_num_threads() == 2
        threads.fit(growtas.load_space("digits"))
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("name", threads.VARIABLES)
def test_a_number_of_the_user_stays(monkeypatch, name):
    monkeypatch.setenv(name, "2")
    with threads.chosen():
        threads.fit(growtas.load_space("digits"))
    assert torch.get_num_threads() == 2


def test_the_command_line_chooses(monkeypatch):
    seen = []
    monkeypatch.setattr(threads, "fit", lambda space: seen.append((space.name, threads._ours)))
    assert cli.main(["train", "--space", "digits"]) == 2  # no folder for the run
    with pytest.raises(growtas.UsageError):
        growtas.train("glyphs")
    assert seen == [("digits", True), ("glyphs", False)]
    monkeypatch.setitem(cli.VERBS, "latency", lambda args: seen.append(threads._ours))
    assert cli.main(["latency"]) == 0
    assert seen[-1] is False, "what is measured is measured with torch's own threads"


def test_waiting_threads_sleep_where_others_compute(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(threads, "cores", lambda: 4)
    monkeypatch.setattr(os, "getloadavg", lambda: (0.2, 4, 4))
    with threads.chosen():
        assert os.environ == {}
    monkeypatch.setattr(os, "getloadavg", lambda: (1.1, 0, 0))
    with threads.chosen():
        assert os.environ == {"OMP_WAIT_POLICY": "passive"}
    for name in threads.WAITING:
        monkeypatch.setattr(os, "environ", {name: "7"})
        with threads.chosen():
            assert os.environ == {name: "7"}, "the user's own"


def test_a_loaded_openmp_is_left_alone(monkeypatch):
    monkeypatch.setattr(threads, "alone", lambda: False)
    with threads.chosen():
        assert "OMP_WAIT_POLICY" not in os.environ
