"""Paired rounds: arms timed in turn, one of each a round, so that the machine's mood falls on all alike."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np


def rounds(
    arms: Mapping[str, Callable[[], Any]], count: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Returns the seconds of each arm by round. Each is called once before, which compiles.

    Args:
        arms: by name.
        count: rounds.
        clock: `time.process_time` counts the seconds of all CPUs that this process had: on a machine that others use,
            the seconds of the wall say more about them.
    """
    for run in arms.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(count):
        for name, run in arms.items():
            start = clock()
            run()
            seconds[name].append(clock() - start)
    return seconds


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> dict[str, Any]:
    """Returns the median of the rounds' ratios, with a 95% interval of it (bootstrap)."""
    found = np.asarray(numerator) / np.asarray(denominator)
    drawn = np.median(np.random.default_rng(0).choice(found, (2000, len(found))), axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {"median": round(float(np.median(found)), 3), "interval_95": [round(float(low), 3), round(float(high), 3)]}


def medians(seconds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Returns the median seconds of each arm."""
    return {name: round(float(np.median(times)), 5) for name, times in seconds.items()}
