"""KL estimators on a categorical small enough to enumerate, so expectations are exact sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.rl.kl import kl_penalty

LOGITS = jnp.array([0.3, -1.0, 2.0, 0.0, 0.7])
REFERENCE = jax.nn.log_softmax(jnp.array([1.0, 0.5, -0.4, 0.1, 1.3]))


def kl(logp, logq):
    return (jnp.exp(logp) * (logp - logq)).sum()


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_k1_and_k3_are_unbiased(kind):
    logp = jax.nn.log_softmax(LOGITS)
    expectation = (jnp.exp(logp) * kl_penalty(logp, REFERENCE, kind)).sum()
    np.testing.assert_allclose(expectation, kl(logp, REFERENCE), rtol=1e-5)


def test_k2_is_biased_but_agrees_to_second_order():
    logp = jax.nn.log_softmax(LOGITS)
    expectation = (jnp.exp(logp) * kl_penalty(logp, REFERENCE, "k2")).sum()
    assert abs(expectation - kl(logp, REFERENCE)) > 0.1
    near = jax.nn.log_softmax(LOGITS + 0.01 * REFERENCE)
    expectation = (jnp.exp(near) * kl_penalty(near, logp, "k2")).sum()
    np.testing.assert_allclose(expectation, kl(near, logp), rtol=0.02)


@pytest.mark.parametrize("kind", ["k2", "k3"])
def test_k2_and_k3_are_never_negative_and_zero_at_the_reference(kind):
    logp = jax.nn.log_softmax(LOGITS)
    assert (kl_penalty(logp, REFERENCE, kind) >= 0).all()
    np.testing.assert_array_equal(kl_penalty(logp, logp, kind), 0)


@pytest.mark.parametrize(
    ("kind", "objective"),
    [
        ("k1", lambda logits: jnp.zeros(())),
        ("k2", lambda logits: kl(jax.nn.log_softmax(logits), REFERENCE)),
        ("k3", lambda logits: kl(REFERENCE, jax.nn.log_softmax(logits))),
    ],
)
def test_mean_gradient_as_a_loss_is_that_of_the_documented_objective(kind, objective):
    probabilities = jax.nn.softmax(LOGITS)

    def expected_loss(logits):
        return (probabilities * kl_penalty(jax.nn.log_softmax(logits), REFERENCE, kind)).sum()

    np.testing.assert_allclose(
        jax.grad(expected_loss)(LOGITS), jax.grad(objective)(LOGITS), atol=2e-6
    )


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_the_reference_gets_no_gradient(kind):
    logp = jax.nn.log_softmax(LOGITS)
    gradient = jax.grad(lambda reference: kl_penalty(logp, reference, kind).sum())(REFERENCE)
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_masked_garbage_has_neither_value_nor_gradient(kind):
    logprobs = jnp.array([-1.0, jnp.nan, -jnp.inf, 1e38])
    reference = jnp.array([-2.0, -1.0, -jnp.inf, jnp.nan])
    mask = jnp.array([1, 0, 0, 0])
    values = kl_penalty(logprobs, reference, kind, mask=mask)
    expected = {"k1": 1.0, "k2": 0.5, "k3": np.exp(-1.0)}[kind]
    np.testing.assert_allclose(values, [expected, 0, 0, 0], rtol=1e-6)
    gradient = jax.grad(lambda x: kl_penalty(x, reference, kind, mask=mask).sum())(logprobs)
    assert np.isfinite(gradient).all()
    assert not gradient[1:].any()


def test_far_policies_do_not_overflow():
    values = kl_penalty(jnp.array([-200.0, 0.0]), jnp.array([0.0, -200.0]), "k3")
    assert np.isfinite(values).all()


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match="unknown KL estimator 'k4'"):
        kl_penalty(LOGITS, REFERENCE, "k4")
