"""pass@k against all subsets, bootstrap intervals against distributions that are known."""

import itertools
from fractions import Fraction
from math import comb

import numpy as np
import pytest
from scipy import stats

from mmrl.evaluation.estimators import bootstrap, paired_bootstrap, pass_at_k


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_pass_at_k_is_the_share_of_subsets_that_hold_a_correct_response(n):
    for k in range(1, n + 1):
        expected = [
            np.mean([min(chosen) < c for chosen in itertools.combinations(range(n), k)])
            for c in range(n + 1)  # responses 0 … c-1 are correct
        ]
        np.testing.assert_allclose(pass_at_k(n, np.arange(n + 1), k), expected, rtol=1e-14)


def test_pass_at_k_is_exact_where_binomials_overflow_and_where_it_is_tiny():
    n, k = 100_000, 100
    for c in (0, 1, 3, 50_000, n - k, n - k + 1, n):
        exact = float(1 - Fraction(comb(n - c, k), comb(n, k)))
        assert pass_at_k(n, np.asarray([c]), k)[0] == pytest.approx(exact, rel=1e-12)


def test_pass_at_k_is_unbiased():
    """Its mean over Binomial(n, p) counts is 1 - (1-p)^k, summed exactly; the plug-in's is not."""
    n, k, p = 10, 4, 0.17
    counts = np.arange(n + 1)
    weights = stats.binom.pmf(counts, n, p)
    assert weights @ pass_at_k(n, counts, k) == pytest.approx(1 - (1 - p) ** k, rel=1e-12)
    assert abs(weights @ (1 - (1 - counts / n) ** k) - (1 - (1 - p) ** k)) > 0.01


@pytest.mark.parametrize("k", [0, 5])
def test_pass_at_k_needs_k_responses(k):
    with pytest.raises(ValueError, match=f"pass@{k} needs at least {k} responses"):
        pass_at_k(4, np.asarray([1]), k)


def test_intervals_cover_the_truth_nineteen_times_in_twenty():
    """400 simulated evaluations of 80 problems; outside 92 to 98% is 3 standard errors or more."""
    rng = np.random.default_rng(5)
    covered = []
    for trial in range(400):
        estimate = bootstrap(rng.random(80) < 0.4, seed=trial, resamples=1_000)
        covered.append(estimate.low <= 0.4 <= estimate.high)
    assert 0.915 <= np.mean(covered) <= 0.98


def test_the_interval_is_that_of_the_binomial_that_resampling_draws_from():
    """Resampling 0-1 values draws Binomial(P, mean) / P, whose quantiles are known."""
    values = np.repeat([0.0, 1.0], [70, 30])
    estimate = bootstrap(values, resamples=50_000)
    assert estimate.mean == pytest.approx(0.3)
    expected = stats.binom(100, 0.3).ppf([0.025, 0.975]) / 100
    np.testing.assert_allclose([estimate.low, estimate.high], expected, atol=0.0101)


def test_chunks_do_not_change_what_is_resampled(monkeypatch):
    values = np.random.default_rng(0).random(37)
    whole = bootstrap(values, resamples=500)
    monkeypatch.setattr("mmrl.evaluation.estimators._CHUNK", 1_000)
    assert bootstrap(values, resamples=500) == whole
    assert bootstrap(values, resamples=500, seed=1) != whole


def test_pairing_finds_a_gain_that_two_intervals_hide():
    rng = np.random.default_rng(1)
    difficulty = rng.random(200)
    better = np.clip(difficulty + 0.03 + 0.02 * rng.standard_normal(200), 0, 1)
    first, second = bootstrap(difficulty), bootstrap(better)
    assert first.high > second.low  # the two intervals overlap
    gain = paired_bootstrap(better, difficulty)
    assert gain.excludes_zero and gain.low > 0.02
    assert gain.mean == pytest.approx(better.mean() - difficulty.mean())


def test_the_difference_of_equal_policies_includes_zero_nineteen_times_in_twenty():
    rng = np.random.default_rng(2)
    excluded = [
        paired_bootstrap(*rng.binomial(4, 0.3, (2, 60)) / 4, seed=t, resamples=500).excludes_zero
        for t in range(400)
    ]
    assert 0.02 <= np.mean(excluded) <= 0.09


def test_problems_must_pair_up_and_exist():
    with pytest.raises(ValueError, match="2 problems cannot be paired with 3"):
        paired_bootstrap(np.zeros(2), np.zeros(3))
    with pytest.raises(ValueError, match="at least one problem"):
        bootstrap(np.zeros(0))
