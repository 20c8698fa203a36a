"""What repetitions with other seeds say: a mean with its interval, and differences seed by seed."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from vadapter.evaluation.bootstrap import LEVEL, bootstrap

# A bootstrap of n values knows no value outside of theirs: with 3 seeds its interval is little more than their range,
# and holds the true mean far more seldom than in 95 of 100 cases. Student's interval allows for the spread that so few
# values leave unknown, for values that are about normal. From ten on the bootstrap needs no such assumption.
FEW = 10


class Estimate(NamedTuple):
    """The mean of a figure over seeds.

    Attributes:
        mean: of the values.
        low, high: its 95% interval; None where there is one value only.
        method: `Student`, `bootstrap`, or "" without an interval.
        count: number of values.
    """

    mean: float
    low: float | None
    high: float | None
    method: str
    count: int


def estimate(values: Sequence[float]) -> Estimate:
    """Returns the mean of one value a seed with its 95% interval: Student's for fewer than `FEW` seeds, else bootstrap.

    The interval says how much a repetition with another seed would differ, and nothing about other data.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("A mean needs at least one value.")
    count, mean = len(values), float(np.mean(values))
    if count == 1:
        return Estimate(mean, None, None, "", 1)
    if count >= FEW:
        return Estimate(mean, *bootstrap(values), "bootstrap", count)
    from scipy import stats

    half = float(stats.t.ppf((1 + LEVEL) / 2, count - 1) * np.std(values, ddof=1)) / math.sqrt(count)
    return Estimate(mean, mean - half, mean + half, "Student", count)


def differences(first: Mapping[int, float], second: Mapping[int, float]) -> dict[int, float]:
    """Returns `first - second` at each seed that both have, by rising seed."""
    return {seed: first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())}
