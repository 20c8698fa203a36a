"""Perplexity and bootstrap intervals."""

import math

import numpy as np
import pytest

from vadapter.evaluation import bootstrap
from vadapter.evaluation.loss_evaluators import perplexity


def test_perplexity():
    assert perplexity(2 * math.log(8), 2) == pytest.approx(8)
    assert perplexity(1e6, 1) == math.inf
    assert math.isnan(perplexity(0, 0))


def test_bootstrap_interval_is_that_of_the_mean():
    scores = np.random.default_rng(0).normal(50, 10, 400)
    low, high = bootstrap.bootstrap(scores.tolist(), seed=1)
    error = 1.96 * scores.std() / math.sqrt(400)
    assert abs(low - (scores.mean() - error)) < 0.15 and abs(high - (scores.mean() + error)) < 0.15
    assert bootstrap.bootstrap(scores.tolist(), seed=1) == (low, high) != bootstrap.bootstrap(scores.tolist(), seed=2)


def test_bootstrap_of_equal_scores_and_of_none():
    assert bootstrap.bootstrap([3.0] * 5) == (3.0, 3.0)
    assert all(math.isnan(bound) for bound in bootstrap.bootstrap([]))
