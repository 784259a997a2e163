"""What the blocks' checks share: one sentence for each number that is out of its range."""

import math
from collections.abc import Iterable, Iterator


def not_positive(numbers: Iterable[tuple[str, float]]) -> Iterator[str]:
    """Yields a sentence for each named number that is not positive and finite."""
    for name, number in numbers:
        if not (number > 0 and math.isfinite(number)):
            yield f"{name} is {number}; expected a positive number"


def negative(numbers: Iterable[tuple[str, float]]) -> Iterator[str]:
    """Yields a sentence for each named number that is below 0 or not finite."""
    for name, number in numbers:
        if not (number >= 0 and math.isfinite(number)):
            yield f"{name} is {number}; expected 0 or more"


def not_a_share(numbers: Iterable[tuple[str, float]]) -> Iterator[str]:
    """Yields a sentence for each named number that is outside of [0, 1]."""
    for name, number in numbers:
        if not 0 <= number <= 1:
            yield f"{name} is {number}; expected a number from 0 to 1"
