"""Numbers that every evaluation needs: perplexity and bootstrap intervals. Captions and answers have their files."""

import math
from collections.abc import Sequence

import numpy as np


def perplexity(loss_sum: float, weight_sum: float) -> float:
    """exp of the mean loss (nats a target token); inf where that overflows, nan for no tokens."""
    if weight_sum <= 0:
        return math.nan
    try:
        return math.exp(loss_sum / weight_sum)
    except OverflowError:
        return math.inf


def bootstrap(scores: Sequence[float], seed: int = 0, samples: int = 1000) -> tuple[float, float]:
    """95% interval of the mean of per-record scores, by the percentile bootstrap.

    Records are drawn with replacement. For CIDEr the document frequencies stay those of the whole set.

    Args:
        scores: one a record.
        seed: of the draws; the same scores and seed give the same interval.
        samples: draws of the whole set.

    Returns:
        (low, high); (nan, nan) for no scores.
    """
    values = np.asarray(scores, np.float64)
    if values.size == 0:
        return math.nan, math.nan
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(0, values.size, values.size)].mean() for _ in range(samples)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
