"""Stages and transitions, with the numbers of the GrowTAS supplement."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from growtas.errors import UsageError
from growtas.methods.schedule import Stage, plan, stage_at, stage_groups, transition_epochs
from growtas.space import load_space


def test_stages_of_three_groups():
    assert stage_groups(1, 3) == ((0, 1, 2),)
    assert stage_groups(2, 3) == ((0, 1), (0, 1, 2))
    assert stage_groups(3, 3) == ((0,), (0, 1), (0, 1, 2))


def test_stages_of_other_spaces():
    assert stage_groups(2, 2) == ((0,), (0, 1))
    assert stage_groups(4, 5) == ((0, 1), (0, 1, 2), (0, 1, 2, 3), (0, 1, 2, 3, 4))
    assert stage_groups(2, 5) == ((0, 1), (0, 1, 2, 3, 4))
    assert stage_groups(3, 5) == ((0, 1), (0, 1, 2, 3), (0, 1, 2, 3, 4))


@given(st.integers(1, 8), st.data())
def test_stages_grow_to_every_group(num_groups, data):
    stages = stage_groups(data.draw(st.integers(1, num_groups)), num_groups)
    assert stages[-1] == tuple(range(num_groups))
    for before, after in zip(stages, stages[1:], strict=False):
        assert set(before) < set(after)


@pytest.mark.parametrize("stages", ["0,1/0,1,2", [[0, 1], [2, 1, 0]], ((0, 1), (0, 1, 2)), "2", 2])
def test_ways_to_write_two_stages(stages):
    assert stage_groups(stages, 3) == ((0, 1), (0, 1, 2))


def test_exclusive_and_shrinking_stages():
    assert stage_groups("0/1/2", 3) == ((0,), (1,), (2,))
    assert stage_groups("0,1/0/0,1,2", 3) == ((0, 1), (0,), (0, 1, 2))


@pytest.mark.parametrize(
    ("stages", "sentence"),
    [
        (0, "1 to 3 stages"),
        (4, "1 to 3 stages"),
        ("a", "slashes"),
        ([], "number or the groups"),
        ([[0], []], "Stage 2"),
        ([[0, 3]], "groups 0 to 2"),
        ([[0], [0]], "same groups"),
        (True, "number or the groups"),
    ],
)
def test_bad_stages(stages, sentence):
    with pytest.raises(UsageError, match=sentence):
        stage_groups(stages, 3)


@pytest.mark.parametrize(
    ("name", "first", "second"), [("tiny", 244, 366), ("small", 227, 341), ("base", 200, 300)]
)
@pytest.mark.parametrize("variant", ["", "-search"])
def test_size_aware_rule_of_the_paper(name, first, second, variant):
    if name == "small" and variant:
        return
    space = load_space(f"autoformer-{name}{variant}")
    assert [s.first_epoch for s in plan(space, 500, 2, "size-aware")] == [0, first]
    assert [s.first_epoch for s in plan(space, 500, 3, "size-aware")] == [0, first, second]
    assert [s.first_epoch for s in plan(space, 500, 3, "midpoint")] == [0, 250, 375]


def test_the_recursion_is_not_rounded():
    # S: T_1 = 227.33 and T_2 = 341.0; from a rounded T_1 of 227 it would be 340.83 and an offset of 23 more
    assert transition_epochs("size-aware", 3, 500, 34e6) == (227, 341)
    assert transition_epochs("size-aware", 3, 500, 34e6, beta=50) == (227, 341)
    # unrounded 2.5, 3.75; rounded in between 3, 4
    assert transition_epochs("midpoint", 4, 5000) == (2500, 3750, 4375)
    assert transition_epochs("midpoint", 3, 5) == (3, 4)


def test_beta_scales_with_the_epochs():
    assert transition_epochs("size-aware", 2, 100, 75e6) == (40,)
    assert transition_epochs("size-aware", 2, 100, 75e6, beta=5) == (45,)
    assert transition_epochs("size-aware", 2, 100, 10, max_params=10) == (40,)


def test_a_space_without_a_published_size_counts_its_largest_subnet():
    digits = load_space("digits")
    from growtas import cost

    params = cost.parameters(digits.largest(), digits, 10)
    assert plan(digits, 200, 2, num_classes=10, max_params=params)[1].first_epoch == 80
    assert plan(digits, 200, 2, num_classes=10)[1].first_epoch == 100
    assert plan(digits, 200, 2, num_classes=10, params=75e6)[1].first_epoch == 80


def test_explicit_transitions():
    space = load_space("digits")
    expected = (Stage((0,), 0), Stage((0, 1), 3), Stage((0, 1, 2), 7))
    assert plan(space, 10, 3, [3, 7]) == plan(space, 10, 3, "3,7") == plan(space, 10, 3, "3 7") == expected
    assert plan(space, 10, 2, "4")[1].first_epoch == 4


def test_stage_of_an_epoch_counts_from_zero():
    stages = plan(load_space("digits"), 10, 3, [3, 7])
    assert [stage_at(stages, epoch) for epoch in range(10)] == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize(
    ("stages", "transition", "epochs", "sentence"),
    [
        (2, [0], 10, "0 < T_1"),
        (2, [10], 10, "< 10"),
        (2, [-3], 10, "0 < T_1"),
        (3, [5, 5], 10, "do not satisfy"),
        (3, [7, 3], 10, "do not satisfy"),
        (3, [7], 10, "2 transitions"),
        (1, [7], 10, "no transition"),
        (2, "mid-point", 10, "'midpoint'"),
        (2, [2.5], 10, "whole numbers"),
        (2, "midpoint", 1, "Train for more epochs"),
        (3, "midpoint", 2, "Train for more epochs"),
        (2, "midpoint", 0, "positive whole number"),
    ],
)
def test_bad_transitions(stages, transition, epochs, sentence):
    with pytest.raises(UsageError, match=sentence):
        plan(load_space("digits"), epochs, stages, transition)


def test_an_offset_that_leaves_no_first_stage():
    with pytest.raises(UsageError, match="0 < T_1"):
        plan(load_space("digits"), 10, 2, "size-aware", params=1e9)
