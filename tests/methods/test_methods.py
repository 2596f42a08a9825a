"""Which subnets a step trains: pure, private, and distributed as the paper says."""

from __future__ import annotations

import random
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from growtas.errors import GrowtasError, UsageError
from growtas.methods import Method, MethodSettings, TrainingContext, create_method, method_names
from growtas.methods.base import _REGISTRY, register
from growtas.methods.options import NoOptions, parse_options
from growtas.space import load_space
from growtas.supernet import Supernet

DIGITS = load_space("digits")
# shrinking is for convolutions, single draws nothing: test_shrinking.py and test_single.py have them.
VIT_METHODS = [name for name in method_names() if name not in ("shrinking", "single")]


def settings(**given) -> MethodSettings:
    values = {"space": DIGITS, "num_classes": 10, "epochs": 9, "steps_per_epoch": 400}
    return MethodSettings(**{**values, **given})


def started(name: str, seed: int = 0) -> Method:
    """A method as the loop has it before its first step: some choose their subnets only then."""
    method = create_method(name, settings(seed=seed))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = Supernet(DIGITS, 10)
    training = TrainingContext(
        net, torch.optim.AdamW(net.parameters()), torch.device("cpu"), None, nullcontext
    )
    method.prepare(training)
    method.begin_stage(0, training)
    return method


@pytest.mark.parametrize("name", VIT_METHODS)
def test_subnets_are_a_pure_function_of_seed_and_step(name):
    first, second = (started(name, seed=3) for _ in range(2))
    forwards = [first.subnets(step) for step in range(200)]
    random.seed(99)
    assert [second.subnets(step) for step in reversed(range(200))] == forwards[::-1]
    other = started(name, seed=4)
    assert [other.subnets(step) for step in range(200)] != forwards
    assert all(subnet in DIGITS for subnets in forwards for subnet in subnets)


@pytest.mark.parametrize("name", VIT_METHODS)
def test_no_global_generator_is_touched(name):
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    method = started(name)
    for step in range(50):
        method.subnets(step)
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def test_subnets_are_the_same_in_another_process(run_script):
    code = (
        "from growtas.methods import *; from growtas.space import load_space\n"
        "m = create_method('growtas', MethodSettings(load_space('digits'), 10, 9, 400, seed=5))\n"
        "print(*(m.subnets(s)[0] for s in range(1500, 1520)))"
    )
    done = run_script(code)
    assert done.returncode == 0, done.stderr
    method = create_method("growtas", settings(seed=5))
    assert done.stdout == " ".join(str(method.subnets(s)[0]) for s in range(1500, 1520)) + "\n"


def group_shares(method, epoch):
    start = epoch * method.settings.steps_per_epoch
    counts = Counter(DIGITS.group_of(method.subnets(step)[0]) for step in range(start, start + 400))
    return [counts[group] / 400 for group in range(3)]


@pytest.mark.parametrize(
    ("stages", "shares"),
    [
        (1, {0: (1 / 3, 1 / 3, 1 / 3), 8: (1 / 3, 1 / 3, 1 / 3)}),
        (2, {0: (1 / 2, 1 / 2, 0), 4: (1 / 2, 1 / 2, 0), 5: (1 / 3, 1 / 3, 1 / 3)}),
        (3, {0: (1, 0, 0), 4: (1, 0, 0), 5: (1 / 2, 1 / 2, 0), 7: (1 / 3, 1 / 3, 1 / 3)}),
        ("0/1/2", {0: (1, 0, 0), 5: (0, 1, 0), 8: (0, 0, 1)}),
    ],
)
def test_sampling_probability_per_group_and_stage(stages, shares):
    method = create_method("growtas", settings(stages=stages, transition="midpoint"))
    for epoch, expected in shares.items():
        found = group_shares(method, epoch)
        for share, probability in zip(found, expected, strict=True):
            if probability in (0, 1):
                assert share == probability
            else:
                assert abs(share - probability) < 0.1  # four standard deviations of 400 draws


def test_one_stage_is_autoformer():
    growth, uniform = (create_method(n, settings(stages=1)) for n in ("growtas", "uniform"))
    assert all(growth.subnets(step) == uniform.subnets(step) for step in range(100))


def test_a_stage_begins_once_at_its_first_step():
    method = create_method("growtas", settings(stages=3, transition="2,5"))
    starts = {step: method.begins_at(step) for step in range(3600) if method.begins_at(step) is not None}
    assert starts == {0: 0, 800: 1, 2000: 2}
    assert [method.stage_of(step) for step in (0, 799, 800, 1999, 2000, 3599)] == [0, 0, 1, 1, 2, 2]


def test_unknown_method_names_the_nearest():
    with pytest.raises(UsageError, match="Did you mean 'growtas'"):
        create_method("growtass", settings())


def test_unknown_new_region_names_the_nearest():
    with pytest.raises(UsageError, match="Did you mean 'near_zero'"):
        settings(new_region="nearzero")


def test_a_seventh_method_is_one_class():
    @register("always-smallest")
    class AlwaysSmallest(Method):
        def sample(self, step, rng):
            return self.space.smallest()

    try:
        assert "always-smallest" in method_names()
        method = create_method("always-smallest", settings())
        assert method.subnets(7) == (DIGITS.smallest(),)
        assert method.begin_stage(0, None) == {} and method.state_dict() == {}
        with pytest.raises(GrowtasError, match="does not keep"):
            method.load_state_dict({"sampler": 1})
        with pytest.raises(ValueError, match="taken"):
            register("uniform")(AlwaysSmallest)
    finally:
        del _REGISTRY["always-smallest"]


# -- what every method may be combined with ------------------------------------------------------------------


def test_sandwich_trains_the_largest_first_then_the_smallest_then_random_ones():
    method = create_method("growtas", settings(sandwich=True, subnets_per_step=3, transition="midpoint"))
    alone = create_method("growtas", settings(transition="midpoint"))
    for step, groups in ((0, (0, 1)), (8 * 400, (0, 1, 2))):
        largest, smallest, *drawn = method.subnets(step)
        assert (smallest, largest) == (DIGITS.smallest(groups), DIGITS.largest(groups))
        assert len(drawn) == 3 and drawn[0] == alone.subnets(step)[0] and len(set(drawn)) > 1


def test_in_place_distillation_puts_its_teacher_first():
    method = create_method("uniform", settings(distill="inplace", subnets_per_step=2))
    assert method.subnets(5)[0] == DIGITS.largest() and len(method.subnets(5)) == 3
    both = create_method("uniform", settings(distill="inplace", sandwich=True))
    assert both.subnets(5)[:2] == (DIGITS.largest(), DIGITS.smallest()) and len(both.subnets(5)) == 3


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"distill": "in-place"}, "Did you mean 'inplace'"),
        ({"subnets_per_step": 0}, "must be 1 or more"),
        ({"new_region_moments": "rest"}, "Did you mean 'reset'"),
    ],
)
def test_options_that_are_not_possible(given, sentence):
    with pytest.raises(UsageError, match=sentence):
        settings(**given)


@dataclass(frozen=True)
class ExampleOptions:
    images: int = 64
    share: float = 0.1
    data: str = "noise"
    depths: str | None = None
    sort: bool = False


def test_options_are_read_as_their_types():
    text = "images=1e2,share=2,data=train,depths=13,14,sort=true"
    assert parse_options(ExampleOptions, text, "it") == ExampleOptions(100, 2.0, "train", "13,14", True)
    assert parse_options(ExampleOptions, "", "it") == ExampleOptions()
    assert parse_options(ExampleOptions, "depths=none", "it") == ExampleOptions()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("image=3", "has no option 'image'. Did you mean 'images'"),
        ("images=2.5", "images='2.5' of method 'x' is not possible; it must be a whole number"),
        ("sort=maybe", "true or false"),
        ("64", "key=value"),
        ("images=1,images=2", "twice"),
    ],
)
def test_options_that_cannot_be_read(text, sentence):
    with pytest.raises(UsageError, match=sentence):
        parse_options(ExampleOptions, text, "method 'x'")


def test_a_method_without_options_says_so():
    with pytest.raises(UsageError, match="Method 'x' has no option 'stages'. It has none"):
        parse_options(NoOptions, "stages=3", "method 'x'")
