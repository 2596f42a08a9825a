"""A few hundred mutated inputs of every target; make fuzz reads ten thousand."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import Fuzzer, Refused, Target, TooLong, call, counts, judge
from targets import TARGETS

from growtas import UsageError

MUTATIONS = 240  # of all targets together
SEED = 17


@pytest.mark.parametrize("name", TARGETS)
def test_mutated_inputs_end_in_success_or_one_sentence(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fuzzer = Fuzzer(TARGETS[name], SEED)
    count = counts(list(TARGETS.values()), MUTATIONS)[name]
    verdicts = list(fuzzer.run(range(len(fuzzer.corpus) + count), tmp_path / "case"))
    failures = [f"{number}: {said}" for number, verdict, said in verdicts if verdict == "failure"]
    assert not failures, f"python tests/fuzz/fuzz.py --target {name} --seed {SEED}\n" + "\n".join(failures)
    assert any(verdict == "sentence" for _, verdict, _ in verdicts)


def raising(error: BaseException):
    def run(folder: Path) -> None:
        raise error

    return run


def changing(folder: Path) -> None:
    (folder / "input").write_text("changed")


def leaving(folder: Path) -> None:
    (folder / "half").write_text("done")
    raise UsageError("No.")


@pytest.mark.parametrize(
    ("run", "verdict", "said"),
    [
        (lambda folder: None, "success", ""),
        (raising(UsageError("No.")), "sentence", "No."),
        (raising(Refused(2, "growtas: No.\n")), "sentence", "No."),
        (raising(ValueError("oh")), "failure", "a raw error: ValueError: oh"),
        (raising(AssertionError()), "failure", "a raw error: AssertionError"),
        (raising(UsageError("One.\nTwo.")), "failure", "no single sentence"),
        (raising(Refused(1, "growtas: unexpected KeyError: 'x'; GROWTAS_DEBUG=1")), "failure", "a raw error"),
        (raising(Refused(2, "growtas: One.\ngrowtas: Two.\n")), "failure", "2 sentences"),
        (raising(Refused(2, "growtas: " + "x" * 3000)), "failure", "a message of 3,009 characters"),
        (raising(Refused(3, "growtas: No.\n")), "failure", "exit status 3"),
        (raising(TooLong()), "failure", "processor time"),
        (changing, "failure", "it changed its input: input"),
        (leaving, "failure", "it was refused (No.) but left half"),
    ],
)
def test_the_judge_sees_each_kind_of_failure(run, verdict, said, tmp_path):
    found = judge(Target("own", lambda: [b""], lambda rng, data: data, run), b"x", tmp_path / "case")
    assert found[0] == verdict and said in found[1]


def test_the_judge_stops_a_loop(tmp_path, monkeypatch):
    def loop(folder: Path) -> None:
        while True:
            pass

    monkeypatch.setattr("harness.CPU_SECONDS", 0.05)
    verdict, said = judge(Target("own", lambda: [b""], lambda rng, data: data, loop), b"", tmp_path / "case")
    assert verdict == "failure" and "processor time" in said


def test_a_mutation_is_made_again_by_its_number():
    for target in TARGETS.values():
        first, second = (Fuzzer(target, SEED) for _ in range(2))
        numbers = range(len(first.corpus), len(first.corpus) + 20)
        inputs = [first.input(number) for number in numbers]
        assert inputs == [second.input(number) for number in reversed(numbers)][::-1]
        assert len(set(inputs)) > 10 and inputs != [Fuzzer(target, SEED + 1).input(n) for n in numbers]


def test_a_sentence_of_the_command_line_is_refused_with_its_status():
    with pytest.raises(Refused, match="^growtas: There is no verb 'trian'") as refused:
        call("trian")
    assert refused.value.status == 2
