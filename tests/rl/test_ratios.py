"""Ratios against float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np

from mmrl.rl import ratios


def test_log_ratio_is_the_clamped_difference_where_the_mask_keeps_it():
    new = np.array([-1.0, -50.0, 0.0, -np.inf, np.nan])
    old = np.array([-2.5, 0.0, -50.0, np.nan, 0.0])
    actual = ratios.log_ratio(new, old, np.array([1, 1, 1, 0, 0]))
    np.testing.assert_allclose(actual, [1.5, -20, 20, 0, 0])


def test_log_ratio_of_bfloat16_is_computed_in_float32():
    actual = ratios.log_ratio(
        jnp.array([-1.0], jnp.bfloat16), jnp.array([-1.0009765625]), jnp.ones(1)
    )
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, [0.0009765625])


def test_the_greatest_ratio_is_finite_in_float32_and_so_is_its_square():
    greatest = jnp.exp(ratios.log_ratio(jnp.zeros(1), jnp.full(1, -1e30), jnp.ones(1)))
    assert np.isfinite(greatest**2).all()


def test_sequence_log_ratio_is_the_mean_over_kept_tokens():
    values = np.array([[1.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    mask = np.array([[1, 1, 0], [0, 0, 0]])
    np.testing.assert_allclose(ratios.sequence_log_ratio(values, mask), [[1.5], [0.0]])


def test_truncated_importance_weights_are_bounded_ratios_without_gradient():
    old, rollout = np.log([0.5, 0.9, 0.1, 0.3]), np.log([0.25, 0.1, 0.8, 1.0])
    mask = jnp.array([1, 1, 1, 0])

    def weights(old):
        return ratios.truncated_importance_weights(old, rollout, mask, low=0.5, high=3.0)

    np.testing.assert_allclose(weights(old), [2.0, 3.0, 0.5, 1.0], rtol=1e-6)
    gradient = jax.grad(lambda x: weights(x).sum())(jnp.asarray(old, jnp.float32))
    np.testing.assert_array_equal(gradient, 0)
