"""Objectives against gradients derived by hand and naive loops, in float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrl.rl.aggregation import AGGREGATIONS, token_weights
from mmrl.rl.objectives import OBJECTIVES, cispo, dapo, dr_grpo, gspo, ppo, reinforce

PROMPTS, GROUP, TIME = 2, 3, 6
BOUNDED = {"cispo": {"eps_high": 4.0}}


def batch(seed=0, spread=1.0):
    """Ratios far from 1, ragged lengths, a tool's gap and an empty sample."""
    rng = np.random.default_rng(seed)
    shape = (PROMPTS, GROUP, TIME)
    behaviour = -rng.exponential(size=shape).astype(np.float32)
    logprobs = (behaviour + spread * rng.normal(size=shape)).astype(np.float32)
    advantages = rng.normal(size=shape[:2]).astype(np.float32)
    lengths = rng.integers(1, TIME + 1, size=shape[:2])
    mask = (np.arange(TIME) < lengths[..., None]).astype(np.float32)
    mask[0, 0, 1], mask[1, 2] = 0, 0
    return logprobs, behaviour, advantages, mask


def gradient(objective, logprobs, *rest, **options):
    loss = lambda x: objective(x, *rest, **options)[0]  # noqa: E731
    return np.asarray(jax.grad(loss)(jnp.asarray(logprobs)))


def weights_loop(mask, aggregation):
    """Group, batch and sample weights once more, from counts."""
    weights = np.zeros(mask.shape)
    counts = mask.sum(-1)
    groups, samples = (counts.sum(-1) > 0).sum(), (counts > 0).sum()
    for p, i, t in np.argwhere(mask):
        weights[p, i, t] = {
            "group": 1 / counts[p].sum() / groups,
            "batch": 1 / counts.sum(),
            "sample": 1 / counts[p, i] / samples,
            "constant": 1 / TIME / samples,
        }[aggregation]
    return weights


@pytest.mark.parametrize("aggregation", ["group", "batch", "sample", "constant"])
@pytest.mark.parametrize("bounds", [(None, 1.5), (0.2, 0.3), (None, None), (0.9, 4.0)])
def test_cispo_gradient_is_minus_capped_ratio_times_advantage_over_n(aggregation, bounds):
    logprobs, behaviour, advantages, mask = batch()
    low, high = bounds
    ratio = np.exp(np.float64(logprobs) - behaviour)
    ratio = np.clip(ratio, 0 if low is None else 1 - low, np.inf if high is None else 1 + high)
    expected = -ratio * advantages[..., None] * weights_loop(mask, aggregation)
    options = dict(eps_low=low, eps_high=high, aggregation=aggregation)
    actual = gradient(cispo, logprobs, behaviour, advantages, mask, **options)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-8)


def test_cispo_s_default_is_the_paper_s_group_normaliser_and_no_lower_bound():
    logprobs, behaviour, advantages, mask = batch()
    logprobs = logprobs - 3  # small ratios
    ratio = np.minimum(np.exp(np.float64(logprobs) - behaviour), 5)
    expected = -ratio * advantages[..., None] * weights_loop(mask, "group")
    actual = gradient(cispo, logprobs, behaviour, advantages, mask, eps_high=4.0)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-9)


def test_bounds_are_deltas_from_one():
    logprobs, behaviour = np.log([[8.0, 5.9, 0.1]]) - 5, np.full((1, 3), -5.0)
    one, mask = np.ones(1), np.ones((1, 3))
    options = dict(eps_high=5.0, eps_low=0.2, aggregation="constant")
    actual = -3 * gradient(cispo, logprobs, behaviour, one, mask, **options)
    np.testing.assert_allclose(actual, [[6.0, 5.9, 0.8]], rtol=1e-5)


def test_a_bad_token_with_a_huge_ratio_is_capped_but_still_pushed_down():
    """By design of CISPO; PPO without dual clip pushes with the whole ratio."""
    logprobs, behaviour = jnp.array([[0.0]]), jnp.array([[-9.0]])
    arguments = (logprobs, behaviour, -jnp.ones(1), jnp.ones((1, 1)))
    np.testing.assert_allclose(gradient(cispo, *arguments, eps_high=4.0), [[5.0]])
    np.testing.assert_allclose(gradient(ppo, *arguments), [[np.exp(9.0)]], rtol=1e-5)
    np.testing.assert_allclose(gradient(ppo, *arguments, dual_clip=3.0), [[0.0]])


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_on_policy_every_objective_has_reinforce_s_gradient(name, aggregation):
    _, behaviour, advantages, mask = batch()
    options = BOUNDED.get(name, {}) | {"aggregation": aggregation}
    actual = gradient(OBJECTIVES[name], behaviour, behaviour, advantages, mask, **options)
    expected = -advantages[..., None] * np.asarray(token_weights(mask, aggregation))
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-9)


def test_unified_mask_drops_what_ppo_drops_by_the_unclipped_ratio():
    logprobs, behaviour, advantages, mask = batch(seed=3)
    ratio = np.exp(np.float64(logprobs) - behaviour)
    expected = np.zeros(mask.shape)
    for p, i, t in np.argwhere(mask):
        r, a = ratio[p, i, t], advantages[p, i]
        trusted = not ((a > 0 and r > 1.5) or (a < 0 and r < 0.7))
        expected[p, i, t] = -min(r, 1.2) * a * trusted
    expected *= weights_loop(mask, "group")
    options = dict(eps_high=0.2, mask_eps_high=0.5, mask_eps_low=0.3)
    arguments = (logprobs, behaviour, advantages, mask)
    np.testing.assert_allclose(gradient(cispo, *arguments, **options), expected, rtol=1e-5)
    dropped = cispo(*arguments, **options)[1]["loss/dropped_fraction"]
    np.testing.assert_allclose(dropped, ((expected == 0) & (mask > 0)).sum() / mask.sum())


def test_unified_mask_without_a_cap_is_ppo():
    arguments = batch(seed=4)
    mask_bounds = dict(mask_eps_high=0.28, mask_eps_low=0.2)
    np.testing.assert_allclose(
        gradient(cispo, *arguments, eps_high=None, **mask_bounds),
        gradient(dapo, *arguments),
        rtol=1e-5,
        atol=1e-9,
    )


@pytest.mark.parametrize("dual_clip", [None, 1.6])
@pytest.mark.parametrize(
    ("name", "low", "high", "aggregation"),
    [
        ("ppo", 0.2, 0.2, "batch"),
        ("grpo", 0.2, 0.2, "sample"),
        ("dapo", 0.2, 0.28, "group"),
        ("dr_grpo", 0.2, 0.2, "constant"),
    ],
)
def test_ppo_family_defaults_equal_a_naive_loop_in_value_and_gradient(
    name, low, high, aggregation, dual_clip
):
    logprobs, behaviour, advantages, mask = batch(seed=1)
    weights = weights_loop(mask, aggregation)

    def loop(logprobs):
        loss = 0.0
        for p, i, t in np.argwhere(mask):
            r, a = np.exp(logprobs[p, i, t] - np.float64(behaviour)[p, i, t]), advantages[p, i]
            surrogate = min(r * a, min(max(r, 1 - low), 1 + high) * a)
            if dual_clip is not None and a < 0:
                surrogate = max(surrogate, dual_clip * a)
            loss -= weights[p, i, t] * surrogate
        return loss

    arguments = (behaviour, advantages, mask)
    loss, _ = OBJECTIVES[name](logprobs, *arguments, dual_clip=dual_clip)
    np.testing.assert_allclose(loss, loop(np.float64(logprobs)), rtol=1e-5)
    actual = gradient(OBJECTIVES[name], logprobs, *arguments, dual_clip=dual_clip)
    np.testing.assert_allclose(actual, central_difference(loop, logprobs), atol=1e-6)


def central_difference(function, x, h=1e-6):
    x = np.float64(x)
    result = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[index] = h
        result[index] = (function(x + step) - function(x - step)) / (2 * h)
    return result


@pytest.mark.parametrize("bounds", [(3e-4, 4e-4), (0.3, 0.2), (None, None)])
def test_gspo_equals_the_sequence_loop_in_value_and_gradient(bounds):
    logprobs, behaviour, advantages, mask = batch(seed=2, spread=0.3)
    low, high = bounds
    least = -np.inf if low is None else 1 - low
    greatest = np.inf if high is None else 1 + high

    def loop(logprobs):
        losses = []
        for p, i in np.argwhere(mask.sum(-1)):
            kept = mask[p, i] > 0
            s = np.exp((logprobs[p, i] - np.float64(behaviour)[p, i])[kept].mean())
            a = advantages[p, i]
            losses.append(-min(s * a, np.clip(s, least, greatest) * a))
        return np.mean(losses)

    arguments = (behaviour, advantages, mask)
    loss, metrics = gspo(logprobs, *arguments, eps_low=low, eps_high=high)
    np.testing.assert_allclose(loss, loop(np.float64(logprobs)), rtol=1e-5)
    actual = gradient(gspo, logprobs, *arguments, eps_low=low, eps_high=high)
    np.testing.assert_allclose(actual, central_difference(loop, logprobs), atol=1e-6)
    assert np.isfinite(metrics["ratio/max"])


def test_gspo_takes_an_advantage_a_token():
    logprobs, behaviour, _, mask = batch(seed=2, spread=0.1)
    advantages = np.random.default_rng(5).normal(size=mask.shape).astype(np.float32)
    log_ratio = np.where(mask > 0, np.float64(logprobs) - behaviour, 0)
    s = np.exp(log_ratio.sum(-1) / np.maximum(mask.sum(-1), 1))[..., None]
    expected = -s * advantages * weights_loop(mask, "sample")
    options = dict(eps_low=None, eps_high=None)
    actual = gradient(gspo, logprobs, behaviour, advantages, mask, **options)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-9)


def test_reinforce_ignores_the_behaviour_policy():
    logprobs, behaviour, advantages, mask = batch()
    expected = -advantages[..., None] * weights_loop(mask, "batch")
    actual = gradient(reinforce, logprobs, behaviour, advantages, mask)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_dr_grpo_divides_by_the_given_length():
    arguments = batch()
    loss, _ = dr_grpo(*arguments)
    longer, _ = dr_grpo(*arguments, max_length=4 * TIME)
    np.testing.assert_allclose(loss, 4 * longer, rtol=1e-6)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 3e38])
def test_nothing_behind_the_mask_reaches_loss_gradient_or_metrics(name, garbage):
    logprobs, behaviour, advantages, mask = batch()
    objective, options = OBJECTIVES[name], BOUNDED.get(name, {})
    clean = objective(logprobs, behaviour, advantages, mask, **options)
    per_token = np.broadcast_to(advantages[..., None], mask.shape)
    poisoned = [np.where(mask > 0, x, garbage) for x in (logprobs, behaviour, per_token)]
    dirty = objective(*poisoned, mask, **options)
    jax.tree.map(np.testing.assert_array_equal, dirty, clean)
    actual = gradient(objective, *poisoned, mask, **options)
    np.testing.assert_array_equal(actual[mask == 0], 0)
    np.testing.assert_array_equal(
        actual, gradient(objective, logprobs, behaviour, advantages, mask, **options)
    )


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_an_empty_mask_gives_zero_and_finite_metrics(name):
    logprobs, behaviour, advantages, mask = batch()
    loss, metrics = OBJECTIVES[name](
        logprobs, behaviour, advantages, 0 * mask, **BOUNDED.get(name, {})
    )
    assert loss == 0
    assert all(np.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_extreme_log_ratios_do_not_overflow(name):
    logprobs = jnp.array([[[-1e4, 0.0]], [[0.0, -1e4]]])
    behaviour, advantages = logprobs[:, :, ::-1], jnp.array([[1.0], [-1.0]])
    objective, options = OBJECTIVES[name], BOUNDED.get(name, {})
    arguments = (logprobs, behaviour, advantages, jnp.ones_like(logprobs))
    loss, metrics = objective(*arguments, **options)
    assert all(np.isfinite(value) for value in [loss, *metrics.values()])
    assert np.isfinite(gradient(objective, *arguments, **options)).all()


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_only_the_policy_gets_a_gradient(name):
    logprobs, behaviour, advantages, mask = batch()

    def loss(behaviour, advantages):
        objective, options = OBJECTIVES[name], BOUNDED.get(name, {})
        return objective(logprobs, behaviour, advantages, mask, **options)[0]

    for value in jax.grad(loss, argnums=(0, 1))(jnp.asarray(behaviour), jnp.asarray(advantages)):
        np.testing.assert_array_equal(value, 0)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.05, 8.0), st.floats(0.05, 0.95))
def test_cispo_never_scales_a_token_beyond_its_bounds(seed, eps_high, eps_low):
    logprobs, behaviour, advantages, mask = batch(seed, spread=5.0)
    weights = np.where(mask > 0, 1.0, 0.0)
    options = dict(eps_high=eps_high, eps_low=eps_low, weights=weights)
    actual = gradient(cispo, logprobs, behaviour, advantages, mask, **options)
    scale = (-actual / advantages[..., None])[mask > 0]
    assert (scale <= (1 + eps_high) * (1 + 1e-5)).all()
    assert (scale >= (1 - eps_low) * (1 - 1e-5)).all()


def test_shapes_that_would_broadcast_by_accident_are_refused():
    logprobs, behaviour, advantages, mask = batch()
    with pytest.raises(ValueError, match="must have one shape"):
        reinforce(logprobs, behaviour[:, :, :1], advantages, mask)
    with pytest.raises(ValueError, match="advantages must be one a sample"):
        reinforce(logprobs, behaviour, advantages[0], mask)
