"""What several seeds say of a score: mean and spread, and the difference between two methods with its interval."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.special import stdtrit

CONFIDENCE = 0.95


def mean_and_spread(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean of one or more values and their sample standard deviation; None for that of a single one."""
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return float(np.mean(values)), spread


def paired_differences(ours: Mapping[int, float], theirs: Mapping[int, float]) -> dict[int, float]:
    """Ours less theirs for each seed that both have, in the order of ours."""
    return {seed: value - theirs[seed] for seed, value in ours.items() if seed in theirs}


def interval(differences: Sequence[float]) -> tuple[float, float] | None:
    """The 95 % interval of the mean of n differences, by Student's t with n - 1 degrees of freedom.

    mean -+ t(0.975, n - 1) * spread / sqrt(n); None for a single difference.
    """
    mean, spread = mean_and_spread(differences)
    if spread is None:
        return None
    reach = float(stdtrit(len(differences) - 1, (1 + CONFIDENCE) / 2)) * spread / math.sqrt(len(differences))
    return mean - reach, mean + reach
