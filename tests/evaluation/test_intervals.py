"""Confidence intervals, compared with SciPy's and by their coverage."""

import numpy as np
import pytest
from scipy.stats import binomtest

from aa_flax.evaluation.intervals import clustered_interval, wilson_interval


@pytest.mark.parametrize(("hits", "count"), [(0, 9), (9, 9), (1, 450), (397, 450), (450, 450)])
def test_the_interval_of_a_fraction_is_scipys(hits, count):
    expected = binomtest(hits, count).proportion_ci(method="wilson")
    assert wilson_interval(hits / count, count) == pytest.approx(
        [100 * expected.low, 100 * expected.high]
    )


def test_equal_pairs_count_as_one_image():
    fractions = np.array([1.0] * 90 + [0.0] * 10)
    assert clustered_interval(fractions, pairs=5) == pytest.approx(wilson_interval(0.9, 100))


def test_independent_pairs_count_individually(rng):
    fractions = rng.binomial(5, 0.7, 20_000) / 5
    found, expected = (
        clustered_interval(fractions, pairs=5),
        wilson_interval(fractions.mean(), 5 * 20_000),
    )
    assert np.subtract(*found) == pytest.approx(np.subtract(*expected), rel=0.02)


@pytest.mark.parametrize("fraction", [0.0, 0.6, 1.0])
def test_equal_images_give_an_interval_with_a_width(fraction):
    assert clustered_interval(np.full(100, fraction), pairs=5) == pytest.approx(
        wilson_interval(fraction, 100)
    )


@pytest.mark.parametrize("truth", [0.6, 0.9, 0.99])
@pytest.mark.parametrize("likeness", [0.02, 0.9])
def test_it_contains_the_truth_in_about_95_of_100_samples(truth, likeness, rng):
    """Images with beta-distributed probabilities have five pairs each.

    With similar pairs, ± 1.96 standard errors contain the last truth in 47 of 100 samples.
    """
    total = (1 - likeness) / likeness
    images = rng.beta(truth * total, (1 - truth) * total, (2000, 50))
    ends = [clustered_interval(sample, 5) for sample in rng.binomial(5, images) / 5]
    hits = np.mean([low <= 100 * truth <= high for low, high in ends])
    assert 0.91 < hits < 0.98
