"""Searches of one run beside each other: names, shared evaluations, several limits, the best by its name."""

import json
import math
from pathlib import Path

import pytest
from test_search import DIGITS, SMALL, FakeRun

import growtas
from growtas.errors import GrowtasError, UsageError
from growtas.searching import Evaluation, Limits, SearchResult, feasible_set, read_result
from growtas.searching.evaluate import Evaluator
from growtas.searching.loop import sharing
from growtas.searching.named import named_subnet, reference_to


@pytest.fixture
def evaluated(monkeypatch):
    """The subnets that were evaluated on images, in order."""
    score, top1, evaluated = Evaluator.score, Evaluator.top1, []

    def counted_score(self, subnets, *arguments):
        for subnet, each in zip(subnets, score(self, subnets, *arguments), strict=True):
            evaluated.append(subnet)
            yield each

    def counted_top1(self, subnet):
        evaluated.append(subnet)
        return top1(self, subnet)

    monkeypatch.setattr(Evaluator, "score", counted_score)
    monkeypatch.setattr(Evaluator, "top1", counted_top1)
    return evaluated


def test_another_limit_costs_only_what_is_new_and_ends_the_same(tmp_path, evaluated):
    run = FakeRun(tmp_path / "run")
    first = growtas.search(run, max_params=60_000, **SMALL)
    before = first.path.read_bytes()
    evaluated.clear()
    second = growtas.search(run, max_params=62_000, **SMALL)
    known = {each.subnet for each in first.history}
    new = [each.subnet for each in second.history if each.subnet not in known]
    assert evaluated == [*new, second.best.subnet] and len(new) < len(second.history)  # and the test split
    alone = growtas.search(FakeRun(tmp_path / "alone"), max_params=62_000, **SMALL)
    assert alone.path.name == second.path.name
    assert alone.path.read_bytes() == second.path.read_bytes()
    assert first.path.read_bytes() == before


def test_evaluations_of_other_weights_are_not_shared(tmp_path, evaluated):
    growtas.search(FakeRun(tmp_path), **SMALL)
    evaluated.clear()
    other = growtas.search(FakeRun(tmp_path, seed=1), **SMALL)
    assert len(evaluated) == 19
    assert other.path.stem.endswith("-2")
    assert growtas.search(FakeRun(tmp_path, seed=1), **SMALL) == other  # found again
    assert len(evaluated) == 19
    with pytest.raises(GrowtasError, match="finished searches of different weights: name one of search-"):
        named_subnet("best", DIGITS, FakeRun(tmp_path))
    assert named_subnet(other.path.name, DIGITS, FakeRun(tmp_path)) == other.best.subnet


def test_an_aborted_search_does_not_stand_in_the_way(tmp_path, monkeypatch, evaluated):
    run = FakeRun(tmp_path)

    def stop(self, subnets, *arguments):
        yield from score(self, subnets[:4], *arguments)
        raise KeyboardInterrupt

    score = Evaluator.score
    monkeypatch.setattr(Evaluator, "score", stop)
    with pytest.raises(KeyboardInterrupt):
        growtas.search(run, **SMALL)
    monkeypatch.setattr(Evaluator, "score", score)
    smaller = growtas.search(run, **{**SMALL, "generations": 2})  # the same first generation
    assert len(smaller.history) == 12 and len(evaluated) == 12 + 1  # four of them were known
    assert named_subnet("best", DIGITS, run) == smaller.best.subnet  # of the finished one


def test_a_search_log_of_an_older_version_is_resumed(tmp_path):
    """There all searches were called search.jsonl, and no evaluation had images, bits or a checksum."""
    run = FakeRun(tmp_path)
    whole = growtas.search(run, seed=2, **SMALL)
    lines = [json.loads(line) for line in whole.path.read_text().splitlines()]
    whole.path.unlink()
    del lines[0]["pareto"], lines[0]["crc"]
    for line in lines[1:]:
        del line["crc"]
        line.pop("images", None), line.pop("correct", None)
    old = tmp_path / "search.jsonl"
    for count in (8, len(lines)):
        old.write_text("".join(json.dumps(line) + "\n" for line in lines[:count]))
        resumed = growtas.search(run, seed=2, **SMALL)
        assert resumed.path == old
        assert (resumed.best, resumed.history, resumed.test_top1) == (
            whole.best,
            whole.history,
            whole.test_top1,
        )
    assert resumed.standard_error == whole.standard_error  # its header tells how many images there were


def test_several_limits_give_a_result_each(tmp_path):
    run, limits = FakeRun(tmp_path), (30_000, 45_000)
    found = growtas.search(run, max_params=limits, **SMALL)
    assert [each.best.params <= limit for each, limit in zip(found, limits, strict=True)] == [True, True]
    assert found == [growtas.search(run, max_params=limit, **SMALL) for limit in limits]
    assert run.loaded == 3
    assert growtas.search(run, max_params=limits[:1], **SMALL) == found[:1]
    with pytest.raises(GrowtasError, match="2 finished searches: name one of search-max-params-30000-"):
        read_result(tmp_path)
    with pytest.raises(GrowtasError, match="different limits: name one of best:30000, best:45000"):
        named_subnet("best", DIGITS, run)
    for each, limit in zip(found, limits, strict=True):
        assert named_subnet(f"best:{limit / 1000}e3", DIGITS, run) == each.best.subnet
        assert reference_to(each) == f"best:{limit}"
    with pytest.raises(GrowtasError, match="under the limit 7e6; there is best:30000, best:45000"):
        named_subnet("best:7e6", DIGITS, run)
    with pytest.raises(UsageError, match="'best:many' names no subnet"):
        named_subnet("best:many", DIGITS, run)
    with pytest.raises(UsageError, match="not both"):
        growtas.search(run, max_params=(1e5, 2e5), max_macs=(1e6, 2e6))
    with pytest.raises(UsageError, match="is empty"):
        growtas.search(run, max_params=())
    seeded = growtas.search(run, max_params=30_000, seed=1, **SMALL)
    most = max((found[0].best, seeded.best), key=lambda each: (each.top1, -each.params))
    assert named_subnet("best:3e4", DIGITS, run) == most.subnet


# -- noise ---------------------------------------------------------------------------------------------------


SUBNETS = list(feasible_set(DIGITS, 10, Limits(max_params=20_000)))


def found_with(correct: list[int], images: int = 80) -> SearchResult:
    """A search whose subnets classify correctly the images whose bits are set; the first one is the best."""
    history = []
    for subnet, bits in zip(SUBNETS, correct, strict=False):
        packed = (bits << -images % 8).to_bytes(-(-images // 8))
        history.append(Evaluation(subnet, 100 * bits.bit_count() / images, 1, 1, 0, images, packed))
    return SearchResult(history[0], tuple(history), 0.0, None, Path())


def test_the_standard_error_is_binomial():
    found = found_with([2**64 - 1])
    assert found.standard_error == pytest.approx(100 * math.sqrt(0.8 * 0.2 / 80))
    assert "standard error of its top-1 on the 80 search images: 4.47 points" in found.certainty


@pytest.mark.parametrize("images", [80, 77])
def test_subnets_are_told_apart_image_by_image(images):
    best = 2**70 - 1
    near = best & ~0b11111  # five images lost, none won: a chance of 2 * 2**-5
    far = best & ~0b111111  # six: 2 * 2**-6
    traded = best & ~(2**20 - 1) | 0b1111111 << 70  # 20 lost, 7 won: 0.019
    alike = best & ~(2**12 - 1) | 0b1111111 << 70  # 12 lost, 7 won: 0.36
    found = found_with([best, near, far, traded, alike], images)
    assert [each.subnet for each in found.indistinguishable] == [
        found.history[1].subnet,
        found.history[4].subnet,
    ]
    assert "2 of the other 4 subnets cannot be told apart" in found.certainty


def test_many_images_are_compared_by_the_normal_approximation():
    images = 8000
    best = 2**7000 - 1
    lost = [best & ~(2**700 - 1) | (2**won - 1) << 7000 for won in (600, 640)]  # z = 2.75 and 1.61
    found = found_with([best, *lost], images)
    assert [each.top1 for each in found.indistinguishable] == [found.history[2].top1]


def test_without_bits_the_accuracies_count_as_independent():
    accuracies = zip(SUBNETS, (80, 77, 76), strict=False)
    history = tuple(Evaluation(subnet, top1, 1, 1, 0, 1000) for subnet, top1 in accuracies)
    assert SearchResult(history[0], history, 0.0, None, Path()).indistinguishable == history[1:2]
    unknown = tuple(Evaluation(each.subnet, each.top1, 1, 1, 0) for each in history)
    assert SearchResult(unknown[0], unknown, 0.0, None, Path()).certainty == ""


def test_only_what_is_not_known_is_scored_and_the_order_stays():
    asked = []

    def score(subnets, seen):
        asked.extend(subnets)
        return iter([subnet.upper() for subnet in subnets])

    assert list(sharing(score, {"b": "known"})(["a", "b", "c"], len)) == ["A", "known", "C"]
    assert asked == ["a", "c"]
