"""benchmarks/step_cost.py: what it counts, and where it fails."""

from collections.abc import Iterator
from types import ModuleType

import jax
import pytest
from ml_collections import ConfigDict
from programs import loaded_benchmark
from small_model import config_values

from r2d2_jax.errors import UserError


@pytest.fixture(scope="module")
def step_cost() -> Iterator[ModuleType]:
    """The program."""
    with loaded_benchmark("step_cost") as module:
        yield module


def test_counts_two_matrix_products(step_cost: ModuleType) -> None:
    """[3 5] x [5 7] x [7 2]: 3 * 5 * 7 + 3 * 7 * 2 multiply-adds."""
    matrices = [jax.ShapeDtypeStruct(shape, "float32") for shape in ((3, 5), (5, 7), (7, 2))]
    assert step_cost.multiply_adds(lambda a, b, c: a @ b @ c, *matrices) == 3 * 5 * 7 + 3 * 7 * 2


def test_without_enhanced_training_a_pair_costs_more(step_cost: ModuleType) -> None:
    """The extra passes over the masked text: far more than rounding, far less than everything twice."""
    with_et, without_et = (
        step_cost.forward_cost(ConfigDict(config_values()), 8, enhanced) for enhanced in (True, False)
    )
    assert 1.02 * with_et < without_et < 2 * with_et


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
