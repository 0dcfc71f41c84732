"""Metrics of an objective, counted by hand, and their merging over micro-batches."""

import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.rl.metrics import combine_metrics, probability_correlation, token_mean
from mmrl.rl.objectives import cispo, ppo


def test_token_mean_skips_what_the_mask_drops():
    assert token_mean(jnp.array([1.0, 3.0, jnp.nan]), jnp.array([1, 1, 0])) == 2
    assert token_mean(jnp.array([jnp.nan]), jnp.zeros(1)) == 0


def test_probability_correlation_is_numpys_over_the_tokens_that_the_mask_keeps():
    rng = np.random.default_rng(0)
    one, other = np.log(rng.uniform(0.01, 1, (2, 3, 40)))
    mask = rng.integers(0, 2, (3, 40))
    expected = np.corrcoef(np.exp(one[mask > 0]), np.exp(other[mask > 0]))[0, 1]
    one[mask == 0] = np.nan
    measured = probability_correlation(jnp.asarray(one), jnp.asarray(other), jnp.asarray(mask))
    np.testing.assert_allclose(measured, expected, atol=1e-6)


def test_probabilities_that_do_not_vary_correlate_fully():
    assert probability_correlation(jnp.zeros(4), jnp.zeros(4), jnp.ones(4)) == 1


def test_combine_sums_losses_and_counts_takes_maxima_and_weights_means_by_tokens():
    stacked = {
        "loss/policy": [1.0, 2.0],
        "loss/supervised": [0.5, 0.25],
        "loss/clip_fraction": [0.5, 0.0],
        "ratio/max": [2.0, 7.0],
        "logprob/abs_diff_max": [0.3, 0.1],
        "policy/entropy": [4.0, 0.0],
        "tokens/loss": [1.0, 3.0],
    }
    combined = combine_metrics({key: jnp.array(values) for key, values in stacked.items()})
    expected = {
        "loss/policy": 3.0,
        "loss/supervised": 0.75,
        "loss/clip_fraction": 0.125,
        "ratio/max": 7.0,
        "logprob/abs_diff_max": 0.3,
        "policy/entropy": 1.0,
        "tokens/loss": 4.0,
    }
    assert combined.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_allclose(combined[key], value, rtol=1e-6, err_msg=key)


def test_clip_fraction_counts_both_sides_whatever_the_advantage():
    ratios = np.array([[0.5, 0.9, 1.0, 1.1, 3.0, 6.0, 9.0, 77.0]])
    mask = np.array([[1, 1, 1, 1, 1, 1, 1, 0]])
    behaviour = np.full_like(ratios, -5.0)
    arguments = (np.log(ratios) - 5, behaviour, np.array([-1.0]), mask)
    _, metrics = cispo(*arguments, eps_high=4.0, eps_low=0.2)
    assert metrics["loss/clip_fraction"] == pytest.approx(3 / 7)
    assert metrics["loss/clip_fraction_high"] == pytest.approx(2 / 7)
    assert metrics["loss/clip_fraction_low"] == pytest.approx(1 / 7)
    assert metrics["loss/dropped_fraction"] == 0
    assert metrics["tokens/loss"] == 7
    assert metrics["ratio/max"] == pytest.approx(9.0, rel=1e-5)
    assert metrics["ratio/mean"] == pytest.approx(ratios[0, :7].mean(), rel=1e-5)
    k3 = (ratios - 1 - np.log(ratios))[0, :7].mean()
    assert metrics["kl/behaviour"] == pytest.approx(k3, rel=1e-4)
    _, metrics = ppo(*arguments, eps_high=4.0, eps_low=0.2)
    assert metrics["loss/clip_fraction"] == pytest.approx(3 / 7)
    assert metrics["loss/dropped_fraction"] == pytest.approx(1 / 7)
    _, metrics = cispo(*arguments, eps_high=4.0)
    assert metrics["loss/clip_fraction_low"] == 0
