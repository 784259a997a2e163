"""Figures of parts add up to those of the whole, in bounded memory."""

import numpy as np
import pytest

from r2d2_jax.preparation.checks.figures import FIRST_NAMES, Named, Spread


def spread(values: list[int]) -> Spread:
    counted = Spread()
    for value in values:
        counted.add(value)
    return counted


def test_quantiles_are_those_of_the_sorted_numbers() -> None:
    values = np.random.default_rng(0).integers(0, 9_999, 501).tolist()
    for share in (0.0, 0.25, 0.5, 0.95, 1.0):
        assert spread(values).quantile(share) == np.quantile(values, share, method="inverted_cdf")


def test_large_numbers_keep_four_digits_and_the_extremes_all() -> None:
    counted = spread([12_345, 123_456_789, 9_999])
    assert (counted.minimum, counted.quantile(0.5), counted.maximum) == (9_999, 12_340, 123_456_789)
    assert set(counted.counts) == {9_999, 12_340, 123_400_000}


def test_there_are_few_counts_however_many_numbers() -> None:
    assert len(spread(np.random.default_rng(0).integers(100_000, 1_000_000, 50_000).tolist()).counts) <= 9_000


def test_parts_add_up() -> None:
    whole, first, second = spread([3, 1, 20_001, 7, 7]), spread([3, 1]), spread([20_001, 7, 7])
    first.merge(second)
    first.merge(Spread())
    assert first == whole


def test_above_and_below() -> None:
    counted = spread([1, 2, 2, 3, 50_000])
    assert (counted.above(2), counted.below(2)) == (2, 1)


def test_nothing_has_no_quantile() -> None:
    assert Spread().quantile(0.5) is None
    assert Spread().minimum is None


@pytest.mark.parametrize("cut", [0, 3, 10])
def test_the_first_names_are_those_of_the_first_parts(cut: int) -> None:
    parts = Named(), Named()
    for number in range(10):
        parts[number >= cut].add("missing", f"{number}")
    parts[0].merge(parts[1])
    assert parts[0].counts == {"missing": 10}
    assert parts[0].first.names == {"missing": [f"{number}" for number in range(FIRST_NAMES)]}
