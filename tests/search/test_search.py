"""growtas.search end to end on a small supernet: the best subnet, the log, the splits."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from thinning import thinned
from torch.utils.data import Dataset

import growtas
from growtas import cost
from growtas.errors import UsageError
from growtas.searching import read_result
from growtas.searching.evaluate import Evaluator
from growtas.space import load_space
from growtas.supernet import Supernet
from growtas.training.external import weights_hash

DIGITS = load_space("digits")
SMALL = {"population": 6, "generations": 3, "parents": 4, "batch_size": 32, "workers": 0}


class Counted(Dataset):
    """Random images; counts how often each was fetched."""

    def __init__(self, length: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.images = torch.randn(length, 1, 8, 8, generator=generator)
        self.labels = torch.randint(10, (length,), generator=generator)
        self.fetched = [0] * length

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        self.fetched[index] += 1
        return self.images[index], int(self.labels[index])


@dataclass
class Splits:
    search: Counted
    test: Counted
    name: str = "noise"
    num_classes: int = 10

    @property
    def train(self):
        raise AssertionError("a search has no business with the training split")


class FakeRun:
    """The parts of a training run that a search needs, with a supernet of random weights."""

    def __init__(self, path: Path, seed: int = 0) -> None:
        self.path, self.space, self.num_classes, self.seed = path, DIGITS, 10, seed
        self.data = Splits(Counted(40, 1), Counted(30, 2))
        self.loaded = 0

    def load_net(self, device="cpu", averaged=False):
        self.loaded += 1
        torch.manual_seed(self.seed)
        net = Supernet(DIGITS, 10)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        return net.to(device).eval()

    def splits(self):
        return self.data


def plainly(net, data: Counted, subnet) -> float:
    """Top-1 in one batch."""
    with torch.inference_mode():
        return 100 * (net(data.images, subnet).argmax(1) == data.labels).sum().item() / len(data)


def test_the_best_subnet_within_the_limits_is_found_and_tested_once(tmp_path):
    run = FakeRun(tmp_path)
    found = growtas.search(run, max_params=60_000, min_params=30_000, seed=3, **SMALL)
    net = run.load_net()
    assert len(found.history) == len({e.subnet for e in found.history}) == 18
    for e in found.history:
        assert e.top1 == plainly(net, run.data.search, e.subnet)
        assert e.params == cost.parameters(e.subnet, DIGITS, 10)
        assert e.macs == cost.macs(e.subnet, DIGITS, 10)
        assert 30_000 <= e.params <= 60_000
    assert found.best in found.history
    assert found.best.top1 == max(e.top1 for e in found.history) > min(e.top1 for e in found.history)
    assert found.test_top1 == plainly(net, run.data.test, found.best.subnet)
    # every image of the test split was fetched exactly once in the whole search, for the best subnet alone;
    # those of the search split once too, since they are kept
    assert run.data.test.fetched == [1] * 30
    assert run.data.search.fetched == [1] * 40
    assert str(found.best.subnet) in str(found)


def test_the_test_split_is_not_seen_before_the_search_is_over(tmp_path):
    run = FakeRun(tmp_path)
    evaluations = []

    class Watched(Counted):
        def __getitem__(self, index):
            (log,) = tmp_path.glob("search-*.jsonl")
            evaluations.append(len(log.read_text().splitlines()) - 1)
            return super().__getitem__(index)

    run.data.test = Watched(30, 2)
    growtas.search(run, **SMALL)
    assert evaluations == [18] * 30


def test_a_finished_search_is_read_from_its_log(tmp_path):
    run = FakeRun(tmp_path)
    found = growtas.search(run, seed=3, **SMALL)
    before = found.path.read_bytes()
    assert found.path == tmp_path / "search-seed-3-population-6-generations-3-parents-4.jsonl"
    assert growtas.search(run, seed=3, **SMALL) == found
    assert read_result(tmp_path) == found
    assert found.path.read_bytes() == before
    assert run.data.test.fetched == [1] * 30  # not touched again
    assert json.loads(before.splitlines()[0])["versions"]["torch"] == torch.__version__


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return growtas.search(FakeRun(tmp_path_factory.mktemp("whole")), **SMALL)


@pytest.mark.parametrize("done", thinned([0, 10, 18], fast=(1,)))
def test_an_interrupted_search_resumes_to_the_same_result(tmp_path, monkeypatch, whole, done):
    score, scored = Evaluator.score, []

    def interrupted(self, *args):
        for each in score(self, *args):
            if len(scored) == done:
                raise KeyboardInterrupt
            scored.append(each)
            yield each

    def interrupted_test(self, subnet):
        raise KeyboardInterrupt

    monkeypatch.setattr(Evaluator, "score", interrupted)
    monkeypatch.setattr(Evaluator, "top1", interrupted_test)
    with pytest.raises(KeyboardInterrupt):
        growtas.search(FakeRun(tmp_path / "part"), **SMALL)
    monkeypatch.undo()
    (log,) = (tmp_path / "part").iterdir()
    assert len(log.read_text().splitlines()) == 1 + done
    # the batch size is no part of a search's identity: it may shrink after running out of memory
    part = growtas.search(FakeRun(tmp_path / "part"), **{**SMALL, "batch_size": 7})
    assert (part.best, part.history, part.test_top1) == (whole.best, whole.history, whole.test_top1)
    assert part.path.read_bytes() == whole.path.read_bytes()


def test_another_search_does_not_touch_a_log_that_is_named(tmp_path):
    run, out = FakeRun(tmp_path), tmp_path / "mine.jsonl"
    before = growtas.search(run, out=out, **SMALL).path.read_bytes()
    with pytest.raises(UsageError, match="max_params: None there, 50000 here"):
        growtas.search(run, max_params=50_000, out=out, **SMALL)
    with pytest.raises(UsageError, match="weights: "):
        growtas.search(FakeRun(tmp_path, seed=1), out=out, **SMALL)
    assert out.read_bytes() == before


def test_out_chooses_the_log(tmp_path):
    run = FakeRun(tmp_path / "run")
    assert growtas.search(run, out=tmp_path / "a.jsonl", **SMALL).path == tmp_path / "a.jsonl"
    assert growtas.search(run, out=tmp_path / "b", **SMALL).path.parent == tmp_path / "b"
    assert not (tmp_path / "run").exists()


def test_an_impossible_limit_is_refused_before_anything_is_loaded_or_written(tmp_path):
    run = FakeRun(tmp_path)
    low, high = cost.parameter_range(DIGITS, 10)
    with pytest.raises(UsageError, match=f"max_params=1,000 .* choose between {low:,} and {high:,}"):
        growtas.search(run, max_params=1000)
    with pytest.raises(UsageError, match="population=0"):
        growtas.search(run, population=0)
    assert run.loaded == 0
    assert list(tmp_path.iterdir()) == []


def test_a_window_of_few_subnets_is_searched_whole(tmp_path):
    found = growtas.search(FakeRun(tmp_path), max_params=cost.parameter_range(DIGITS, 10)[0], **SMALL)
    assert [e.subnet for e in found.history] == [DIGITS.smallest()]
    assert found.feasible == 1


# -- evaluation ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def net():
    return FakeRun(Path()).load_net()


@pytest.mark.parametrize(("batch_size", "keep"), [(1, True), (7, True), (7, False), (40, False), (500, True)])
def test_top1_depends_on_neither_batch_size_nor_cache(net, batch_size, keep):
    data = Counted(40, 1)
    evaluator = Evaluator(net, data, batch_size, workers=0, keep=keep)
    for subnet in (DIGITS.smallest(), DIGITS.largest()):
        assert evaluator.top1(subnet) == plainly(net, data, subnet)
    assert set(data.fetched) == {1 if keep else 2}


def test_bfloat16_computes_in_bfloat16(net):
    data, seen = Counted(40, 1), []
    hook = net.norm.register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    value = Evaluator(net, data, amp="bfloat16", workers=0).top1(DIGITS.largest())
    hook.remove()
    assert seen == [torch.bfloat16]
    assert abs(value - plainly(net, data, DIGITS.largest())) < 10


def test_logits_that_are_not_finite_are_wrong():
    net = FakeRun(Path()).load_net()
    with torch.no_grad():
        net.head.bias[0] = float("nan")  # argmax picks the NaN, and a tenth of the labels would be "right"
    assert Evaluator(net, Counted(40, 1), workers=0).accuracy(DIGITS.largest()) == (0, 0)


def test_top_five_counts_labels_among_the_five_highest(net):
    data, subnet = Counted(40, 1), DIGITS.largest()
    found = Evaluator(net, data, batch_size=16, workers=0).accuracy(subnet, (1, 3, 5, 10, 99))
    with torch.inference_mode():
        logits = net(data.images, subnet)
    ranks = (logits > logits.gather(1, data.labels[:, None])).sum(1)
    assert found == tuple(100 * (ranks < top).sum().item() / 40 for top in (1, 3, 5, 10, 99))
    assert found[0] == plainly(net, data, subnet) < found[1] < found[2] < found[3] == found[4] == 100


def test_equal_logits_are_taken_in_order():
    net, data = FakeRun(Path()).load_net(), Counted(40, 1)
    with torch.no_grad():
        net.head.weight.zero_(), net.head.bias.zero_()
    shares = [100 * (data.labels < top).sum().item() / 40 for top in (1, 5)]
    assert Evaluator(net, data, workers=0).accuracy(DIGITS.smallest()) == tuple(shares)


def test_what_cannot_be_evaluated_is_a_sentence(net):
    with pytest.raises(UsageError, match="amp='bfloat' is unknown. Did you mean 'bfloat16'"):
        Evaluator(net, Counted(40, 1), amp="bfloat")
    with pytest.raises(UsageError, match="batch_size=0"):
        Evaluator(net, Counted(40, 1), batch_size=0)
    with pytest.raises(UsageError, match=r"top=\(5, 0\) is not possible"):
        Evaluator(net, Counted(40, 1), workers=0).accuracy(DIGITS.largest(), (5, 0))
    with pytest.raises(UsageError, match="split is empty"):
        Evaluator(net, Counted(0, 1))


def test_the_hash_of_weights_sees_every_entry(net):
    before = weights_hash(net)
    assert weights_hash(FakeRun(Path()).load_net()) == before
    changed = FakeRun(Path()).load_net()
    with torch.no_grad():
        changed.blocks[4].attn.key_table_h[-1, -1] += 1e-3
    assert weights_hash(changed) != before
