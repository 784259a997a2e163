"""benchmarks/step_cost.py: what it counts, and where it fails."""

from collections.abc import Iterator
from types import ModuleType

import pytest
from programs import loaded_benchmark

from r2d2_jax.errors import UserError


@pytest.fixture(scope="module")
def step_cost() -> Iterator[ModuleType]:
    """The program."""
    with loaded_benchmark("step_cost") as module:
        yield module


@pytest.mark.parametrize(
    "with_et, without_et, message",
    [
        (154.1, 160.0, "154.1 G multiply-adds per pair are more than the article's 154.0"),
        (150.0, 150.0, "without enhanced training a pair costs 150.0 G multiply-adds, no more than with"),
    ],
)
def test_fails_above_the_article(step_cost: ModuleType, with_et: float, without_et: float, message: str) -> None:
    step_cost.check_cost(146.9, 157.7)
    with pytest.raises(UserError, match=message):
        step_cost.check_cost(with_et, without_et)


def test_fails_above_the_memory_limit(step_cost: ModuleType) -> None:
    step_cost.check_peak(23.9)
    with pytest.raises(UserError, match=r"the peak memory of 24.5 GiB is above 24 GiB"):
        step_cost.check_peak(24.5)
