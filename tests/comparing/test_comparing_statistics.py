"""Intervals against numbers by hand and against scipy's own."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from growtas.comparing.statistics import mean_interval, paired_interval


def test_by_hand():
    """Differences 1, 2, 3: mean 2, s = 1, t(2) = 4.302653 at 97.5 %, half a width 4.302653 / sqrt 3."""
    found = paired_interval([11.0, 22.0, 33.0], [10.0, 20.0, 30.0])
    assert (found.count, found.mean) == (3, 2.0)
    assert found.low == pytest.approx(2 - 2.484138, abs=1e-6)
    assert found.high == pytest.approx(2 + 2.484138, abs=1e-6)
    assert not found.excludes(0.0) and found.excludes(-0.5) and found.excludes(4.5)


@pytest.mark.parametrize("count", [2, 5, 30])
def test_against_scipys_paired_test(count):
    noise = np.random.default_rng(count)
    first, second = noise.normal(80, 2, count), noise.normal(79, 2, count)
    theirs = stats.ttest_rel(first, second).confidence_interval(0.95)
    ours = paired_interval(first.tolist(), second.tolist())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), rel=1e-9)
    assert ours.mean == pytest.approx((first - second).mean(), rel=1e-12)
    assert ours.excludes(0.0) == (stats.ttest_rel(first, second).pvalue < 0.05)


def test_one_pair_has_no_interval():
    found = mean_interval([5.0])
    assert (found.mean, found.low, found.high) == (5.0, None, None)
    assert not found.excludes(0.0)


def test_equal_differences_have_an_interval_of_no_width():
    found = paired_interval([2.0, 3.0], [1.0, 2.0])
    assert (found.low, found.mean, found.high) == (1.0, 1.0, 1.0)
    assert found.excludes(0.0)
    assert not paired_interval([1.0, 2.0], [1.0, 2.0]).excludes(0.0)


def test_pairs_must_be_pairs():
    with pytest.raises(ValueError):
        paired_interval([1.0, 2.0], [1.0])
