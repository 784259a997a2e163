"""Means, spreads and intervals, against SciPy's."""

import numpy as np
import pytest
import scipy.stats

from r2d2_jax.ablation.statistics import interval, mean_and_spread, paired_differences


@pytest.mark.parametrize("count", [2, 3, 10])
def test_the_interval_is_that_of_students_t(count: int) -> None:
    values = np.random.default_rng(count).normal(3.0, 2.0, count)
    expected = scipy.stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert interval(values.tolist()) == pytest.approx((expected.low, expected.high), rel=1e-12)


def test_mean_and_spread() -> None:
    assert mean_and_spread([80.0, 82.0, 87.0]) == pytest.approx((83.0, scipy.stats.tstd([80.0, 82.0, 87.0])))


def test_a_single_seed_has_neither_spread_nor_interval() -> None:
    assert mean_and_spread([5.0]) == (5.0, None)
    assert interval([5.0]) is None


def test_differences_are_of_the_same_seed() -> None:
    assert paired_differences({2: 7.0, 0: 5.0, 4: 1.0}, {0: 4.0, 1: 9.0, 2: 9.0}) == {2: -2.0, 0: 1.0}
