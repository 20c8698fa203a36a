"""Bootstrap intervals: of a mean over records, and of what follows from sums over records."""

import math
from collections.abc import Callable, Sequence

import numpy as np

SAMPLES = 1000
LEVEL = 0.95
Interval = tuple[float, float]
Intervals = dict[str, Interval]


def bootstrap(scores: Sequence[float], seed: int = 0, samples: int = SAMPLES) -> Interval:
    """95% interval of the mean of per-record scores, by the percentile bootstrap.

    Records are drawn with replacement. For CIDEr the document frequencies stay those of the whole set.

    Args:
        scores: one a record.
        seed: of the draws; the same scores and seed give the same interval.
        samples: draws of the whole set.

    Returns:
        (low, high); (nan, nan) for no scores.
    """
    values = np.asarray(scores, np.float64).reshape(-1, 1)
    if values.size == 0:
        return math.nan, math.nan
    low, high = bootstrap_sums(values, lambda sums: sums / len(values), seed, samples)[:, 0]
    return float(low), float(high)


def bootstrap_sums(
    statistics: np.ndarray, score: Callable[[np.ndarray], np.ndarray], seed: int = 0, samples: int = SAMPLES
) -> np.ndarray:
    """95% intervals of scores of a set that follow from sums over its records, such as BLEU's counts.

    Args:
        statistics: [n, k], what each record adds to the sums.
        score: makes scores [samples, m] of the sums [samples, k] of as many draws of n records.
        seed, samples: as in `bootstrap`.

    Returns:
        [2, m]: low and high of each score; a draw for which a score is nan does not count.
    """
    rng = np.random.default_rng(seed)
    count = len(statistics)
    # Equal records are drawn together: how often is all that counts, and hundreds of thousands of answers have few
    # different scores. One draw of the whole set at a time, so that memory does not grow with their number.
    different, times = np.unique(statistics, axis=0, return_counts=True)
    draws = (rng.multinomial(count, times / count) for _ in range(samples))
    scores = score(np.stack([drawn @ different for drawn in draws]))
    return np.nanpercentile(scores, [50 * (1 - LEVEL), 50 * (1 + LEVEL)], axis=0)
