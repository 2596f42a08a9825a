"""The log of a search: a search that was killed at any moment ends as one that never was."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from growtas.errors import GrowtasError, UsageError
from growtas.searching.evolution import Evolution, EvolutionConfig
from growtas.searching.feasible import feasible_set
from growtas.searching.folder import read_result
from growtas.searching.limits import Limits
from growtas.searching.log import SearchLog
from growtas.searching.loop import evolve
from growtas.searching.result import Evaluation, Score, best_of
from growtas.space import Subnet, load_space

IDENTITY = {"seed": 5, "limits": {"max_params": 50_000}, "weights": "a" * 64}


def accuracy(subnet: Subnet) -> float:
    """A stand-in for an evaluation: a fixed number per subnet, with ties."""
    return 100 * random.Random(str(subnet)).randrange(270) / 270


def scorer(evaluate):
    """Scores, one subnet after the other, of a function that gives one subnet's top-1."""
    return lambda subnets, seen: (Score(evaluate(subnet), 270) for subnet in subnets)


def evolution() -> Evolution:
    feasible = feasible_set(load_space("digits"), 10, Limits(max_params=50_000))
    return Evolution(feasible, EvolutionConfig(12, 5, 4, 6, 6), seed=5)


def run(path: Path, evaluate=accuracy, identity=IDENTITY):
    with SearchLog(path, identity, {"versions": {"growtas": "x"}}) as log:
        return evolve(evolution(), log, scorer(evaluate))


def test_a_log_holds_a_header_and_every_evaluation(tmp_path):
    history = run(tmp_path / "deep" / "search.jsonl")
    records = [json.loads(line) for line in (tmp_path / "deep" / "search.jsonl").read_text().splitlines()]
    assert records[0]["record"] == "search"
    assert records[0]["seed"] == 5
    assert records[0]["versions"] == {"growtas": "x"}
    assert [record["index"] for record in records[1:]] == list(range(60))
    assert [Subnet.from_json(record["subnet"]) for record in records[1:]] == [e.subnet for e in history]
    assert [record["top1"] for record in records[1:]] == [accuracy(e.subnet) for e in history]
    assert [e.generation for e in history] == [g for g in range(5) for _ in range(12)]


@pytest.mark.parametrize("done", [0, 1, 11, 12, 13, 35, 59])
def test_a_search_that_stopped_resumes_to_the_same_end(tmp_path, done):
    whole = run(tmp_path / "whole.jsonl")

    class Stop(Exception):
        pass

    left, calls = iter(range(done)), []

    def stopping(subnet):
        if next(left, None) is None:
            raise Stop
        return accuracy(subnet)

    def counting(subnet):
        calls.append(subnet)
        return accuracy(subnet)

    with pytest.raises(Stop):
        run(tmp_path / "part.jsonl", stopping)
    assert run(tmp_path / "part.jsonl", counting) == whole
    assert len(calls) == 60 - done  # what stands in the log is not evaluated again
    assert (tmp_path / "part.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_search_killed_at_any_byte_resumes_to_the_same_end(tmp_path):
    """Cutting the file anywhere is what a kill between two writes, or in one, can leave."""
    whole = run(tmp_path / "whole.jsonl")
    content = (tmp_path / "whole.jsonl").read_bytes()
    rng = random.Random(0)
    header = content.index(b"\n") + 1
    cuts = [0, 1, 5, header - 1, header, header + 1, len(content) - 1, *rng.sample(range(len(content)), 25)]
    for cut in cuts:
        path = tmp_path / f"{cut}.jsonl"
        path.write_bytes(content[:cut])
        assert run(path) == whole, cut
        assert path.read_bytes() == content, cut


SCRIPT = """
import sys, time
sys.path.insert(0, {tests!r})
import test_search_log
def slow(subnet):
    time.sleep(0.02)
    return test_search_log.accuracy(subnet)
test_search_log.run(test_search_log.Path(sys.argv[1]), slow)
"""


def test_a_search_killed_by_the_system_resumes_to_the_same_end(tmp_path):
    whole = run(tmp_path / "whole.jsonl")
    path = tmp_path / "killed.jsonl"
    script = SCRIPT.format(tests=str(Path(__file__).parent))
    kills, lengths = 0, [0]
    while kills < 3:
        process = subprocess.Popen([sys.executable, "-c", script, str(path)], stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 300
            while (path.stat().st_size if path.exists() else 0) < lengths[-1] + 1500:
                assert process.poll() is None, "the search ended before it was killed"
                assert time.monotonic() < deadline, "the search writes nothing"
                time.sleep(0.005)
        finally:
            os.kill(process.pid, signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
        lengths.append(path.stat().st_size)
        kills += 1
    calls = []
    assert run(path, lambda subnet: calls.append(subnet) or accuracy(subnet)) == whole
    assert 0 < len(calls) < 60
    assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"seed": 6}, "seed: 5 there, 6 here"),
        ({"limits": {"max_params": 40_000}}, "max_params: 50000 there, 40000 here"),
        ({"weights": "b" * 64}, "weights: aaaaaaaaaaaa there, bbbbbbbbbbbb here"),
    ],
)
def test_the_log_of_another_search_is_refused_and_kept(tmp_path, change, sentence):
    path = tmp_path / "search.jsonl"
    run(path)
    before = path.read_bytes()
    with pytest.raises(UsageError, match="log of another search") as caught:
        run(path, identity={**IDENTITY, **change})
    assert sentence in str(caught.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", ["hello", "hello\nworld\n", '{"a": 1}\n', "[]\n"])
def test_a_file_that_is_no_search_log_is_refused_and_kept(tmp_path, content):
    path = tmp_path / "notes.jsonl"
    path.write_text(content)
    with pytest.raises(UsageError, match="not a search log"):
        run(path)
    assert path.read_text() == content


def test_a_log_of_another_format_is_refused(tmp_path):
    path = tmp_path / "search.jsonl"
    run(path)
    path.write_text(path.read_text().replace('"format": 1', '"format": 99', 1))
    with pytest.raises(UsageError, match="format 99"):
        run(path)


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "search.jsonl"
    run(path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:7] + ["{broken\n"] + lines[8:]))
    with pytest.raises(GrowtasError, match="Line 8 of the search log"):
        run(path)


CHANGES = {
    "dropped": lambda lines, n: lines[:n] + lines[n + 1 :],
    "doubled": lambda lines, n: lines[: n + 1] + lines[n:],
    "swapped": lambda lines, n: lines[:n] + [lines[n + 1], lines[n]] + lines[n + 2 :],
    "changed": lambda lines, n: (
        lines[:n] + [lines[n].replace(b'"generation": ', b'"generation": 1', 1)] + lines[n + 1 :]
    ),
    "without its checksum": lambda lines, n: (
        lines[:n] + [lines[n].rpartition(b", ")[0] + b"}\n"] + lines[n + 1 :]
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_evaluations_that_were_tampered_with_are_refused_and_named(tmp_path, change):
    path, rng = tmp_path / "search.jsonl", random.Random(0)
    run(path)
    lines = path.read_bytes().splitlines(keepends=True)
    for number in (1, len(lines) - 3, *rng.sample(range(2, len(lines) - 3), 3)):
        changed = b"".join(CHANGES[change](lines, number))
        path.write_bytes(changed)
        named = number + 2 if change == "doubled" else number + 1
        with pytest.raises(
            GrowtasError, match=f"Line {named} of the search log {path} is damaged .*checksum"
        ):
            run(path)
        with pytest.raises(GrowtasError, match=f"Line {named} of "):
            read_result(path)
        assert path.read_bytes() == changed


def test_flipped_bits_are_refused_or_change_nothing(tmp_path):
    whole, path, rng = run(tmp_path / "whole.jsonl"), tmp_path / "flipped.jsonl", random.Random(0)
    content = (tmp_path / "whole.jsonl").read_bytes()
    refused = 0
    for _ in range(100):
        changed = bytearray(content)
        bit = rng.randrange(8 * len(content))
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        try:
            assert run(path) == whole
        except GrowtasError:
            refused += 1
    assert refused > 95


def test_a_log_with_other_line_ends_is_read(tmp_path):
    path = tmp_path / "search.jsonl"
    whole = run(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2].rpartition(b"\n")[0].replace(b"\n", b"\r\n") + b"\r\n")
    assert run(path) == whole == run(path)


def test_a_log_without_checksums_is_read_with_a_notice(tmp_path, capsys):
    path = tmp_path / "search.jsonl"
    whole = run(path)
    assert "no checksums" not in capsys.readouterr().err
    lines = path.read_bytes().splitlines(keepends=True)[:20]
    path.write_bytes(b"".join(line.rpartition(b", ")[0] + b"}\n" for line in lines))
    assert run(path) == whole
    assert capsys.readouterr().err.count("have no checksums, since an older version wrote them") == 1
    lines = path.read_bytes().splitlines(keepends=True)  # those that were added cover the older ones
    path.write_bytes(b"".join([*lines[:5], *lines[6:]]))
    with pytest.raises(GrowtasError, match="Line 20 of the search log"):
        run(path)


def test_a_log_whose_evaluations_are_not_this_searchs_is_refused(tmp_path):
    path = tmp_path / "search.jsonl"
    run(path)
    lines = path.read_text().splitlines(keepends=True)
    lines = [json.dumps({k: v for k, v in json.loads(line).items() if k != "crc"}) + "\n" for line in lines]
    path.write_text("".join(lines[:3] + [lines[4], lines[3]] + lines[5:]))  # as an older version wrote them
    before = path.read_bytes()
    with pytest.raises(GrowtasError, match="Evaluation 3 .* is not the one that this search asks for"):
        run(path)
    path.write_text("".join([*lines, lines[-1]]))
    with pytest.raises(GrowtasError, match="Evaluation 61"):
        run(path)
    assert len(path.read_bytes()) > len(before)  # still whole: nothing was cut


def test_a_second_writer_is_refused(tmp_path):
    with (
        SearchLog(tmp_path / "search.jsonl", IDENTITY, {}),
        pytest.raises(GrowtasError, match="Another process is writing"),
    ):
        SearchLog(tmp_path / "search.jsonl", IDENTITY, {})
    SearchLog(tmp_path / "search.jsonl", IDENTITY, {}).close()


def test_a_full_device_keeps_what_was_written_and_the_search_resumes(tmp_path):
    whole = run(tmp_path / "whole.jsonl")
    path = tmp_path / "full.jsonl"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))  # a write beyond fails as a full device does
    try:
        with pytest.raises(GrowtasError, match="cannot be written .* evaluations in it are kept"):
            run(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes().endswith(b"\n")
    assert 1000 < path.stat().st_size <= 3000
    assert run(path) == whole


def test_a_log_that_cannot_be_opened_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="cannot be opened"):
        run(tmp_path / "file" / "search.jsonl")


def test_the_best_of_equals_is_the_smallest_then_the_first():
    subnets = [load_space("digits").sample(random.Random(seed)) for seed in range(4)]
    values = [(90.0, 500), (95.0, 400), (95.0, 300), (95.0, 300)]
    history = [Evaluation(s, top1, params, 1, 0) for s, (top1, params) in zip(subnets, values, strict=True)]
    assert best_of(history) is history[2]


def test_the_choice_of_the_best_is_the_evolutions_own(tmp_path):
    searched = evolution()
    with SearchLog(tmp_path / "search.jsonl", IDENTITY, {}) as log:
        history = evolve(searched, log, scorer(lambda subnet: 90.0 + subnet.depth))  # nearly all are ties
    assert best_of(history).subnet == searched.best


def test_a_finished_search_is_read_from_its_log(tmp_path):
    path = tmp_path / "search.jsonl"
    history = run(path)
    with pytest.raises(GrowtasError, match="not finished"):
        read_result(path)
    best = best_of(history)
    with SearchLog(path, IDENTITY, {}) as log:
        log.add_result({"best": best.to_json(), "test_top1": 91.5, "feasible": 77})
    for place in (path, tmp_path):
        found = read_result(place)
        assert (found.best, list(found.history), found.test_top1, found.feasible) == (best, history, 91.5, 77)
    assert best.top1 == max(e.top1 for e in history)
    assert best.params == min(e.params for e in history if e.top1 == best.top1)
    with pytest.raises(GrowtasError, match="no search log"):
        read_result(tmp_path / "missing")
