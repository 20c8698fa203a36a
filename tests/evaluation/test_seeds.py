"""Means over seeds with their intervals."""

import numpy as np
import pytest

from vadapter.evaluation.seeds import FEW, differences, estimate


def test_one_seed_has_no_interval():
    assert estimate([2.0]) == (2.0, None, None, "", 1)
    with pytest.raises(ValueError, match="at least one"):
        estimate([])


def test_few_seeds_have_student_s_interval():
    found = estimate([1.0, 2.0, 3.0])
    assert found.method == "Student"
    assert (found.low, found.high) == pytest.approx((2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5), abs=1e-3)


def test_three_seeds_hold_the_true_mean_in_95_of_100_repetitions_and_many_too():
    rng = np.random.default_rng(0)
    for count, repetitions, least in ((3, 400, 0.92), (20, 200, 0.88)):
        found = [estimate(list(rng.normal(size=count))) for _ in range(repetitions)]
        assert {e.method for e in found} == {"Student" if count < FEW else "bootstrap"}
        assert np.mean([e.low <= 0 <= e.high for e in found]) >= least


def test_differences_are_paired_by_seed():
    assert differences({2: 1.0, 0: 3.0, 5: 0.0}, {0: 1.0, 2: 0.5}) == {0: 2.0, 2: 0.5}
