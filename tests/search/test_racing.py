"""Racing: who is seen to be behind leaves, who is not stays, and nothing else decides it."""

import math
import multiprocessing
import os
import random
import socket
from collections import Counter

import numpy as np
import pytest
import torch
from test_search import DIGITS, Counted, FakeRun

import growtas
from growtas.errors import UsageError
from growtas.searching import noise, racing
from growtas.searching.evaluate import Evaluator
from growtas.searching.racing import Bar, behind, rungs, stratified_order
from growtas.searching.result import Evaluation, Score
from growtas.space import load_space, seeded_rng
from growtas.training.calibration import calibration
from growtas.training.data import load_splits
from growtas.training.ranks import Ranks

IMAGES = 4800
KEPT = 800  # for evaluations


def leaving(disagreement: float, difference: float, trials: int = 8000) -> float:
    """The share of subnets that leave before all images were seen.

    Args:
        disagreement: share of the images on which the subnet and the bar differ.
        difference: in accuracy on all images, 0 where both have the same.
        trials: orders of the images.
    """
    count, surplus = round(disagreement * IMAGES), round(difference * IMAGES)
    won = np.full(trials, (count - surplus) // 2)
    lost, draw = count - won, np.random.default_rng(0).hypergeometric
    lost_left, won_left, before, left = lost.copy(), won.copy(), 0, np.zeros(trials, bool)
    for seen in rungs(IMAGES)[:-1]:
        lost_here = draw(lost_left, IMAGES - before - lost_left, seen - before)
        agreed = IMAGES - before - lost_left - won_left
        won_here = draw(won_left, agreed, seen - before - lost_here)
        lost_left, won_left, before = lost_left - lost_here, won_left - won_here, seen
        counts = zip((lost - lost_left).tolist(), (won - won_left).tolist(), strict=True)
        left |= [behind(*each, seen, IMAGES) for each in counts]
    return left.mean()


def test_a_subnet_as_good_as_the_bar_leaves_in_one_of_a_hundred_races():
    for disagreement in (0.002, 0.02, 0.3):
        assert leaving(disagreement, 0) <= 0.01, disagreement
    assert leaving(0.3, 0) > 0.005  # not by never letting any go
    assert leaving(0.05, 0.01) > 0.5  # one that is a point behind and differs on a twentieth
    assert leaving(0.05, 0.02) > 0.99


def test_every_beginning_of_the_order_is_stratified():
    labels = [0] * 100 + [1] * 300 + [2] * 7
    order = stratified_order(labels)
    assert sorted(order) == list(range(407)) and order == stratified_order(labels)
    assert order[:100] != sorted(order[:100])
    for seen in (1, 10, 51, 200, 406):
        counts = Counter(labels[index] for index in order[:seen])
        for label, size in ((0, 100), (1, 300), (2, 7)):
            assert abs(counts[label] - seen * size / 407) < 2, (seen, label)


def test_few_images_are_not_divided():
    assert rungs(100) == [100] and rungs(999) == [999]
    assert rungs(1000) == [500, 1000] and rungs(50_000) == [6250, 12_500, 25_000, 50_000]


def test_who_left_is_not_raced_again(monkeypatch):
    """Of half the images it would be behind on an eighth of all, where it was not."""
    monkeypatch.setattr(racing, "LEAST", 100)
    bar, left = Bar(100.0, b"\xff" * 100), Score(98.0, 400, b"\x00" + b"\xff" * 49)
    assert racing.raced(left, bar, 800) is left
    assert racing.raced(left, bar, 400).images == 100


# -- evaluation ----------------------------------------------------------------------------------------------


class Answered(Counted):
    """Images whose labels are the answers of one subnet, but for some."""

    def __init__(self, net, subnet, length=KEPT, seed=1, wrong=0.15):
        super().__init__(length, seed)
        with torch.inference_mode():
            answers = net(self.images, subnet).argmax(1)
        self.labels = torch.where(torch.rand(length) < wrong, self.labels, answers)


@pytest.fixture(scope="module")
def race(tmp_path_factory):
    """A net, images on which subnets near to one are good, and these subnets, good and bad."""
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(racing, "LEAST", 100)
    net, rng = FakeRun(tmp_path_factory.mktemp("race")).load_net(), seeded_rng("race")
    best = DIGITS.smallest()
    torch.manual_seed(0)
    near = list(dict.fromkeys(DIGITS.mutate(best, rng, 0.0, 0.1, 0.0) for _ in range(30)))
    subnets = dict.fromkeys([best, *near[:7], DIGITS.sample(rng)])
    yield net, Answered(net, best), list(subnets)
    monkeypatch.undo()


def test_those_who_are_behind_leave_and_the_others_are_evaluated_as_ever(race):
    net, data, subnets = race
    evaluator = Evaluator(net, data, 64, workers=0)
    full = list(evaluator.score(subnets))
    assert full[1].top1 == evaluator.top1(subnets[1])
    assert {score.images for score in full} == {KEPT}
    bar = sorted(full, key=lambda score: -score.top1)[2]
    seen = []
    raced = list(evaluator.score(subnets, seen.append, Bar(bar.top1, bar.correct)))
    assert sum(seen) == KEPT * len(subnets) and min(seen) >= 0
    assert {score.images for score in raced} >= {100, KEPT}
    for whole, score in zip(full, raced, strict=True):
        if score.images == KEPT:
            assert score == whole
            continue
        assert whole.top1 < bar.top1 and score.top1 < bar.top1
        bits = [
            np.unpackbits(np.frombuffer(each.correct, np.uint8))[: score.images] for each in (whole, score)
        ]
        assert np.array_equal(*bits) and len(score.correct) == math.ceil(score.images / 8)
    assert [racing.raced(whole, Bar(bar.top1, bar.correct), KEPT) for whole in full] == raced
    assert [score for score in raced if score.top1 >= bar.top1] == [s for s in full if s.top1 >= bar.top1]
    # a score depends on the subnet and the bar alone, not on who else is evaluated or on the batches
    alone = Evaluator(net, data, 250, workers=0, keep=False)
    for number in (3, len(subnets) - 1):
        assert list(alone.score([subnets[number]], bar=Bar(bar.top1, bar.correct))) == [raced[number]]


# -- searches ------------------------------------------------------------------------------------------------

SEARCH = {"population": 6, "generations": 3, "parents": 3, "batch_size": 100, "workers": 0}


class RacingRun(FakeRun):
    """A run whose search split has enough images to be divided."""

    def __init__(self, path):
        super().__init__(path)
        self.data.search = Answered(self.load_net(), DIGITS.smallest())


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def search_on(rank: int, world: int, port: str, folder) -> None:
    os.environ.update(
        WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=port, RANK=str(rank), LOCAL_RANK=str(rank)
    )
    torch.set_num_threads(1)
    with Ranks.joined(torch.device("cpu")) as ranks:
        (folder / f"batchnorm-{rank}").write_text(repr(list(batchnorm_evaluator(ranks).score(CONVOLUTIONAL))))
        found = growtas.search(RacingRun(folder), max_params=24_000, **SEARCH)
    (folder / f"found-{rank}").write_text(repr((found.best, found.history, found.test_top1)))


MOBILENET = load_space("digits-mobilenet")
CONVOLUTIONAL = [MOBILENET.smallest(), MOBILENET.sample(random.Random(0))]


def batchnorm_evaluator(ranks: Ranks | None = None) -> Evaluator:
    """Of a network that is calibrated for each subnet, on two batches."""
    torch.manual_seed(0)
    net, splits = growtas.Supernet(MOBILENET, 10), load_splits("digits", MOBILENET)
    calibrate = calibration(net, splits.search)
    return Evaluator(net, splits.test, 40, workers=0, calibrate=calibrate, images=60, ranks=ranks)


def test_ranks_an_interruption_and_racing_change_nothing_but_the_cost(race, tmp_path, monkeypatch):
    full = growtas.search(RacingRun(tmp_path / "full"), max_params=24_000, racing=False, **SEARCH)
    one = growtas.search(RacingRun(tmp_path / "one"), max_params=24_000, **SEARCH)
    assert one.best == full.best and one.test_top1 == full.test_top1
    assert one.best.images == KEPT == full.best.images
    assert [each.subnet for each in one.history] == [each.subnet for each in full.history]
    seen = [sum(each.images for each in found.history) for found in (one, full)]
    assert seen[0] < 0.9 * seen[1]

    # two ranks, with BatchNorm too
    evaluator = batchnorm_evaluator()
    scores = list(evaluator.score(CONVOLUTIONAL))
    assert [score.top1 for score in scores] == [evaluator.top1(subnet) for subnet in CONVOLUTIONAL]
    assert len({score.correct for score in scores}) == 2
    folder, port = tmp_path / "two", free_port()
    folder.mkdir()
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=search_on, args=(rank, 2, port, folder)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(300)
    assert [process.exitcode for process in ranks] == [0, 0]
    log = folder / one.path.name
    assert log.read_bytes() == one.path.read_bytes()
    assert [(folder / f"batchnorm-{rank}").read_text() for rank in range(2)] == [repr(scores)] * 2
    expected = repr((one.best, one.history, one.test_top1))
    assert [(folder / f"found-{rank}").read_text() for rank in range(2)] == [expected] * 2

    # beside a log whose evaluations are known
    beside = growtas.search(RacingRun(tmp_path / "full"), max_params=24_000, **SEARCH)
    assert beside.path.read_bytes() == one.path.read_bytes()

    # killed in the middle of a generation
    log.write_bytes(b"".join(one.path.read_bytes().splitlines(keepends=True)[:12]))
    again = growtas.search(RacingRun(folder), max_params=24_000, **{**SEARCH, "batch_size": 70})
    assert again.path.read_bytes() == one.path.read_bytes()


def test_a_search_of_some_images_is_another_search(tmp_path):
    run = FakeRun(tmp_path)
    some = growtas.search(run, images=25, **SEARCH)
    assert {each.images for each in some.history} == {25} and some.path.name != "search.jsonl"
    assert run.data.search.fetched.count(1) == 25 and run.data.search.fetched.count(0) == 15
    assert run.data.test.fetched == [1] * 30
    with pytest.raises(UsageError, match="images=41 is not possible: the split has 40"):
        growtas.search(run, images=41, **SEARCH)


def test_subnets_are_told_apart_by_the_images_on_which_they_disagree():
    """Five images all for one of the two: a fair coin gives as clear a result one time in sixteen."""

    def right(count):
        bits = int("1" * count + "0" * (64 - count), 2).to_bytes(8, "big")
        return Evaluation(DIGITS.smallest(), 100 * count / 64, 0, 0, 0, 64, bits)

    assert not noise.differ(right(64), right(59)) and noise.differ(right(64), right(58))
    assert racing.estimate(Bar(90.0, b""), lost=6, won=2, seen=40) == 80.0
    assert noise.disagreements(b"\xff", b"\xf0", 4) == (0, 0)
    assert noise.disagreements(b"\xff", b"\xf0", 6) == (2, 0)
