"""Latency: the table of pieces, its predictions, and the search under a limit of it."""

import functools
import json
import random

import pytest
import torch
from test_search import DIGITS, SMALL, FakeRun

import growtas
from growtas import doctor
from growtas.cli import main
from growtas.errors import GrowtasError, UsageError
from growtas.searching import Limits, feasible_set, read_result
from growtas.searching.latency import LatencyFeasibleSet
from growtas.searching.named import named_subnet, reference_to
from growtas.space import load_space
from growtas.timing import LatencyTable, Validation, estimates, pieces, targets
from growtas.timing import table as tables
from growtas.training.run import Run

ON = {"on": "cpu", "batch": 1, "threads": 1}
plain_model = functools.cache(pieces.plain_model)


def cost_of(name: str) -> float:
    """Milliseconds of a piece on an imagined machine."""
    numbers = [float(word.lstrip("dhm")) for word in name.split()[1:]]
    return 0.1 + sum(numbers) / 1000


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine whose times are known; ``timed`` holds what was timed, and ``noise`` is added to subnets."""

    class Machine:
        timed, noise, slower, stop = [], staticmethod(lambda subnet: 0.0), 1, None

    def milliseconds(name, run, on, threads):
        Machine.timed.append(name)
        if len(Machine.timed) == Machine.stop:
            raise KeyboardInterrupt
        if " " in name:
            return cost_of(name)
        total = 0.5 + 2 * sum(map(cost_of, pieces.pieces_of(DIGITS, DIGITS.parse(name))))
        return Machine.slower * (total + Machine.noise(name))

    Machine.timed = []
    monkeypatch.setenv("GROWTAS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(pieces, "plain_model", plain_model)  # the imagined machine runs none of them
    monkeypatch.setattr(targets, "milliseconds", milliseconds)
    monkeypatch.setattr(targets, "prepare", lambda module, x, on, threads: lambda: None)
    for name in ("PIECES", "SUBNETS", "VALIDATION"):
        monkeypatch.setattr(tables, f"{name}_SECONDS", 0.0)  # the least rounds
    return Machine


def measured(validate=3) -> LatencyTable:
    return growtas.latency(DIGITS, validate=validate, threads=1)


@pytest.mark.parametrize("name", ["digits", "digits-mobilenet"])
def test_the_pieces_in_turn_are_the_model(name):
    space, rng = load_space(name), random.Random(0)
    covered = {piece for each in pieces.covering(space) for piece in pieces.pieces_of(space, each)}
    for subnet in (space.smallest(), space.sample(rng), space.largest()):
        model, x = pieces.plain_model(space, 10, subnet), pieces.images(space, 2)
        names, modules = pieces.pieces_of(space, subnet), pieces.modules_of(model)
        assert len(names) == len(modules) and covered.issuperset(names)
        with torch.no_grad():
            logits = model(x)
            for module in modules:
                x = module(x)
        assert torch.equal(x, logits)


def test_a_prediction_is_the_sum_of_the_pieces(machine):
    table = measured()
    assert table.fit == pytest.approx((0.5, 2))
    rng = random.Random(1)
    for subnet in (DIGITS.sample(rng) for _ in range(20)):
        total = sum(map(cost_of, pieces.pieces_of(DIGITS, subnet)))
        assert table.predict(subnet) == table.ms(subnet) == pytest.approx(0.5 + 2 * total)
    assert table.validation.good and not table.direct
    found = table.validation
    assert (found.rank_correlation, found.repeatability) == pytest.approx((1, 1)) and found.error < 1e-6
    assert "rank correlation 1.000" in str(table)


def test_an_interrupted_measurement_goes_on_where_it_stopped(machine):
    names = len(LatencyTable(DIGITS, 1000, **ON)._names)
    machine.stop = 4 * names + 3
    with pytest.raises(KeyboardInterrupt):
        measured(0)
    content = json.loads(LatencyTable(DIGITS, 1000, **ON).path.read_text())
    assert {len(taken) for taken in content["pieces"]["samples"].values()} == {4}
    machine.timed.clear()
    machine.stop = None
    table = measured(0)
    assert len(machine.timed) == (tables.LEAST_ROUNDS - 4) * names
    machine.timed.clear()
    assert measured(0).digest == table.digest and not machine.timed
    growtas.latency(DIGITS, batch=2, threads=1, validate=0)  # another key
    assert machine.timed


def test_a_limit_holds_for_every_evaluated_subnet_and_resuming_uses_the_same_numbers(machine, tmp_path):
    run = FakeRun(tmp_path)
    table = growtas.latency(run, validate=3, threads=1)
    times = sorted(table.predict(subnet) for subnet in feasible_set(DIGITS, 10, Limits()))
    limit = times[len(times) // 4]
    found = growtas.search(run, max_latency_ms=limit, latency=table, **SMALL)
    assert len(found.history) == 18 and found.feasible == sum(round(t, 4) <= limit for t in times)
    for each in found.history:
        assert each.latency_ms == round(table.predict(each.subnet), 4) <= limit
    assert f"{found.best.latency_ms:.3g} ms" in str(found) and read_result(found.path) == found
    assert f"max-latency-ms-{limit}-latency-on-cpu-latency-batch-1-latency-threads-1" in found.path.name
    lines = found.path.read_bytes().splitlines(keepends=True)
    assert json.loads(lines[0])["latency"]["digest"] == table.digest
    found.path.write_bytes(b"".join(lines[:9]))
    assert growtas.search(run, max_latency_ms=limit, latency=table, **SMALL) == found
    assert named_subnet("best", DIGITS, run) == found.best.subnet
    table.times |= {name: 2 * taken for name, taken in table.times.items()}
    del table.fit  # another machine's numbers make another search
    other = growtas.search(run, max_latency_ms=2 * limit, latency=table, **SMALL)
    assert other.path != found.path


def test_several_limits_give_a_result_each_and_milliseconds_name_it(machine, tmp_path):
    run = FakeRun(tmp_path)
    table = growtas.latency(run, validate=3, threads=1)
    times = sorted(table.predict(subnet) for subnet in feasible_set(DIGITS, 10, Limits()))
    limits = [round(times[len(times) // part], 1) for part in (4, 2)]
    found = growtas.search(run, max_latency_ms=limits, latency=table, **SMALL)
    for limit, each in zip(limits, found, strict=True):
        assert each.best.latency_ms <= limit and f"max-latency-ms-{limit}-" in each.path.name
        assert named_subnet(f"best:{limit}ms", DIGITS, run) == each.best.subnet
        assert reference_to(each) == f"best:{limit:g}ms"
        assert growtas.search(run, max_latency_ms=limit, latency=table, **SMALL) == each
    names = ", ".join(f"best:{limit:g}ms" for limit in sorted(limits))
    for name, message in (("best", f"limits of latency: name one of {names}"), ("best:9e6ms", "limit 9e6ms")):
        with pytest.raises(GrowtasError, match=message):
            named_subnet(name, DIGITS, run)
    with pytest.raises(UsageError, match="Give several max_macs or several max_latency_ms, not both"):
        growtas.search(run, max_macs=[1e6, 2e6], max_latency_ms=limits, latency=table, **SMALL)


def test_a_front_of_latency(machine, tmp_path):
    run = FakeRun(tmp_path)
    table = growtas.latency(run, validate=3, threads=1)
    few = {name: SMALL[name] for name in ("population", "generations", "batch_size", "workers")}
    found = growtas.search(run, pareto="latency", latency=table, **few)
    assert (found.objective, found.unit) == ("latency", "ms")
    assert all(each.objective == each.latency_ms for each in found.history)
    assert "latency (ms)" in found.files[0].read_text().splitlines()[0]
    with pytest.raises(UsageError, match="needs the latencies"):
        growtas.search(run, pareto="latency", **few)


def test_subnets_are_measured_where_predictions_are_bad(machine, tmp_path, capsys, monkeypatch):
    machine.noise = lambda name: random.Random(name).uniform(0, 3)
    run = FakeRun(tmp_path)
    table = growtas.latency(run, validate=4, threads=1)
    assert table.direct and not table.validation.good
    machine.timed.clear()
    machine.slower = 2  # than when the table was made, which the smallest subnet tells
    (largest,) = table.measure([DIGITS.largest()])
    assert set(machine.timed) == {str(DIGITS.smallest()), str(DIGITS.largest())}
    assert largest == pytest.approx(table.times[str(DIGITS.largest())])
    found = growtas.search(run, max_latency_ms=6, latency=table, **SMALL)
    assert "each subnet is measured end to end" in capsys.readouterr().err
    for each in found.history:
        assert each.latency_ms == round(table.measure([each.subnet])[0], 4) <= 6
    machine.timed.clear()
    assert growtas.search(run, max_latency_ms=6, latency=table, **SMALL) == found and not machine.timed
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="search in one process"):
        growtas.latency(run, validate=4, threads=1)


def test_the_level_of_a_round_is_taken_out():
    rng = random.Random(0)
    levels = [rng.uniform(1, 2) for _ in range(8)]
    samples = {
        name: [base * level for level in levels] for name, base in (("a", 1), ("b", 1.01), ("c", 1.02))
    }
    found = estimates.typical(samples)
    assert found["b"] / found["a"] == pytest.approx(1.01) and found["c"] / found["a"] == pytest.approx(1.02)
    assert estimates.repeatability(samples) == pytest.approx(1)
    samples["a"][3] = 100  # a round in which one was disturbed
    assert estimates.typical(samples)["b"] / estimates.typical(samples)["a"] == pytest.approx(1.01, rel=0.05)


def test_the_validation_goes_on_until_its_ranks_repeat(machine, monkeypatch):
    monkeypatch.setattr(tables, "VALIDATION_SECONDS", 1e6)
    table = growtas.latency(DIGITS, validate=4, threads=1)
    assert table.validation.rounds == tables.LEAST_ROUNDS
    rng = random.Random(0)
    machine.noise = lambda name: rng.uniform(0, 300)
    noisy = growtas.latency(DIGITS, validate=4, threads=1, batch=2)
    assert noisy.validation.rounds > tables.LEAST_ROUNDS and noisy.direct
    assert f"in {noisy.validation.rounds} rounds" in str(noisy)
    cpu, other = doctor.collect()["latency"]
    assert {cpu["batch"], other["batch"]} == {1, 2} and cpu["space"] == "digits"
    (tables.records.cache_folder() / "latency" / "old.json").write_text("[]")
    lines = doctor.report(doctor.collect(), []).partition("latency tables\n")[2].splitlines()
    assert "cpu, batch 1, 1 thread: predictions with rank correlation 1.000" in "".join(lines[:2])
    assert "old.json: damaged" in lines[2]


def test_sentences(machine, tmp_path, capsys, monkeypatch):
    table = measured(0)
    everything = feasible_set(DIGITS, 10, Limits())
    with pytest.raises(UsageError, match=r"No subnet of digits with no limit.*max_latency_ms=0\.5.*smallest"):
        LatencyFeasibleSet(everything, table, 0.5)
    with pytest.raises(UsageError, match="not a positive number"):
        LatencyFeasibleSet(everything, table, -1)
    with pytest.raises(UsageError, match="max_latency_ms=3 needs the latencies"):
        growtas.search(FakeRun(tmp_path), max_latency_ms=3, **SMALL)
    for wrong in ({"on": "gpu"}, {"batch": 0}, {"threads": 0}, {"validate": 2}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            growtas.latency(DIGITS, **wrong)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="measure first, by growtas latency"):
        growtas.latency(DIGITS, batch=3)
    monkeypatch.delenv("WORLD_SIZE")
    capsys.readouterr()
    assert main(["latency", "digits", "--threads", "1", "--validate", "0"]) == 0
    assert "18 pieces, 15 rounds each" in capsys.readouterr().out
    table.path.write_text("{}")
    with pytest.raises(UsageError, match="remove it"):
        measured(0)


def test_a_large_space_is_led_to_the_limit(machine):
    class Weighed:
        direct, on, batch = False, "cpu", 1

        def predict(self, subnet):
            return 1.0 * sum(subnet.depth)

        ms = predict

    space = load_space("ofa-mobilenetv3")
    fast = LatencyFeasibleSet(feasible_set(space, 10, Limits()), Weighed(), 10)  # all stages at their least
    assert fast.count is None
    assert all(sum(fast.sample(random.Random(seed)).depth) == 10 for seed in range(3))
    with pytest.raises(UsageError, match="take 10 to 20 ms"):
        LatencyFeasibleSet(feasible_set(space, 10, Limits()), Weighed(), 9)


def test_a_real_measurement(monkeypatch):
    for name in ("PIECES", "SUBNETS", "VALIDATION"):
        monkeypatch.setattr(tables, f"{name}_SECONDS", 0.0)
    space = load_space("digits")
    small = type(space).from_dict({**space.to_dict(), "embed_dim": [24], "mlp_ratio": [2], "depth": [3, 4]})
    table = growtas.latency(small, threads=1, validate=3)
    assert isinstance(table.validation, Validation)
    assert 0 < table.predict(small.smallest()) < 1000 and all(ms > 0 for ms in table.times.values())


def test_onnxruntime_runs_a_piece():
    pytest.importorskip("onnxruntime")
    block = pieces.modules_of(pieces.plain_model(DIGITS, 10, DIGITS.smallest()))[1]
    x = torch.randn(2, 17, 24)
    with targets.ready(1):
        run = targets.prepare([("block", block)], x, "onnxruntime", 1)
        torch.testing.assert_close(torch.from_numpy(run()[0]), block(x), atol=1e-5, rtol=1e-5)
    assert targets.milliseconds("block", run, "onnxruntime", 1) > 0


def compiled_run(counted, monkeypatch, **options):
    """The largest subnet of the digits on the target cpu-compiled, and its logits in plain PyTorch."""
    compile_ = torch.compile

    def counting(function, **given):
        counted.append(function.__name__)
        return compile_(function, **given, **options)

    monkeypatch.setattr(torch, "compile", counting)
    targets._compiled.cache_clear()
    table, subnet = LatencyTable(DIGITS, 10, "cpu-compiled", 2, 1), DIGITS.largest()
    plain, x = pieces.plain_model(DIGITS, 10, subnet), pieces.images(DIGITS, 2)
    monkeypatch.setattr(pieces, "plain_model", lambda *sizes: plain)
    with targets.ready(1):
        run = table._whole(subnet)
        torch.testing.assert_close(run(), plain(x), atol=1e-5, rtol=1e-5)
    assert len(counted) == len(set(pieces.pieces_of(DIGITS, subnet))) == 3
    targets._compiled.cache_clear()


def test_equal_pieces_are_compiled_once(monkeypatch):
    compiled_run([], monkeypatch, backend="eager")


@pytest.mark.slow
def test_the_compiler_runs_a_subnet(monkeypatch):
    compiled_run([], monkeypatch)


def test_a_compiler_that_is_missing_is_named(monkeypatch):
    def failing(graph, inputs):
        raise RuntimeError("no g++")

    with pytest.raises(UsageError, match=r"'cpu-compiled'.*no g\+\+.*C\+\+ compiler"):
        compiled_run([], monkeypatch, backend=failing)


def test_the_command_measures_what_its_options_name(monkeypatch):
    calls = []

    def search(**values):
        calls.append(values)
        raise UsageError("enough")

    def latency(run, **on):
        return run, on

    monkeypatch.setattr(growtas, "search", functools.wraps(growtas.search)(search))
    monkeypatch.setattr(growtas, "latency", functools.wraps(growtas.latency)(latency))
    monkeypatch.setattr(Run, "open", lambda run: f"open {run}")
    command = ["search", "runs/a", "--latency-on", "onnxruntime", "--latency-batch", "4"]
    assert main([*command, "--latency-threads", "2", "--max-latency-ms", "7.5"]) == 2
    assert main([*command, "--pareto", "latency"]) == 2
    assert main(command) == 2
    on = {"on": "onnxruntime", "batch": 4}
    limited, front, neither = calls
    assert limited["latency"] == ("open runs/a", {**on, "threads": 2}) and limited["max_latency_ms"] == 7.5
    assert front["latency"] == ("open runs/a", {**on, "threads": None}) and front["max_latency_ms"] is None
    assert neither["latency"] is None
