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
        (143.1, 154.0, "143.1 G multiply-adds per pair are more than the promised 143.0"),
        (141.0, 141.0, "without enhanced training a pair costs 141.0 G multiply-adds, no more than with"),
    ],
)
def test_fails_above_what_is_promised(step_cost: ModuleType, with_et: float, without_et: float, message: str) -> None:
    step_cost.check_cost(142.9, 153.7)
    with pytest.raises(UserError, match=message):
        step_cost.check_cost(with_et, without_et)


def test_fails_above_the_memory_limit(step_cost: ModuleType) -> None:
    step_cost.check_peak(23.9)
    with pytest.raises(UserError, match=r"the peak memory of 24.5 GiB is above 24 GiB"):
        step_cost.check_peak(24.5)
