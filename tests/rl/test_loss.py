"""The configured loss: its terms, its defaults, and exactness under gradient accumulation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmrl.rl.aggregation import AGGREGATIONS
from mmrl.rl.loss import ObjectiveConfig, batch_weights, policy_loss
from mmrl.rl.metrics import combine_metrics
from mmrl.rl.objectives import OBJECTIVES, cispo

PROMPTS, GROUP, TIME = 4, 2, 5


def batch(seed=0):
    rng = np.random.default_rng(seed)
    shape = (PROMPTS, GROUP, TIME)
    logprobs, behaviour, old, reference = -rng.exponential(size=(4, *shape)).astype(np.float32)
    advantages = rng.normal(size=shape[:2]).astype(np.float32)
    lengths = np.array([[5, 1], [2, 4], [0, 3], [1, 1]])
    mask = (np.arange(TIME) < lengths[..., None]).astype(np.float32)
    optional = {"old_logprobs": old, "reference_logprobs": reference, "entropy": -old}
    return (logprobs, behaviour, advantages, mask), optional


def full_config(name, **options):
    terms = dict(kl_kind="k2", kl_coefficient=0.1, entropy_coefficient=0.01, tis_high=2.0)
    bins = () if name == "gspo" else (0.1, 0.6)
    return ObjectiveConfig(name=name, probability_bins=bins, **terms, **options)


@pytest.mark.parametrize("aggregation", [None, *AGGREGATIONS])
@pytest.mark.parametrize("name", sorted(OBJECTIVES))
@pytest.mark.parametrize("axis", [0, 1])
def test_micro_batches_add_up_to_the_batch(name, aggregation, axis):
    """Cut by prompts or through the groups, with uneven token counts."""
    config = full_config(name, aggregation=aggregation)
    arguments, optional = batch()
    weights = batch_weights(config, arguments[3])

    def evaluate(arguments, optional, **rest):
        logprobs, *others = arguments

        def loss(logprobs):
            return policy_loss(config, logprobs, *others, **optional, **rest)

        return jax.grad(loss, has_aux=True)(jnp.asarray(logprobs))

    gradient, metrics = evaluate(arguments, optional)
    cut = lambda tree, i: jax.tree.map(lambda x: np.split(x, 2, axis)[i], tree)  # noqa: E731
    parts = [
        evaluate(cut(arguments, i), cut(optional, i), weights=cut(weights, i)) for i in range(2)
    ]
    joined = np.concatenate([part[0] for part in parts], axis)
    np.testing.assert_allclose(joined, gradient, rtol=1e-6, atol=1e-9)
    merged = combine_metrics(jax.tree.map(lambda *x: jnp.stack(x), *[part[1] for part in parts]))
    assert merged.keys() == metrics.keys()
    for key in metrics:
        np.testing.assert_allclose(merged[key], metrics[key], rtol=1e-5, atol=1e-7, err_msg=key)


def test_per_micro_batch_normalisation_would_not_add_up():
    """What handing the batch's weights to its slices prevents."""
    config = ObjectiveConfig()
    arguments, _ = batch()
    whole, _ = policy_loss(config, *arguments)
    halves = [policy_loss(config, *(x[s] for x in arguments))[0] for s in (slice(3), slice(3, 4))]
    assert abs(sum(halves) / 2 - whole) > 1e-3


def test_loss_is_objective_plus_kl_minus_entropy_with_corrected_weights():
    config = full_config("reinforce", tis_low=0.5, aggregation="batch")
    (logprobs, behaviour, advantages, mask), optional = batch()
    loss, metrics = policy_loss(config, logprobs, behaviour, advantages, mask, **optional)
    policy = kl = bonus = 0.0
    for p, i, t in np.argwhere(mask):
        x = np.float64(logprobs)[p, i, t]
        old, reference = optional["old_logprobs"][p, i, t], optional["reference_logprobs"][p, i, t]
        tis = min(max(np.exp(np.float64(old) - behaviour[p, i, t]), 0.5), 2.0)
        policy -= tis * advantages[p, i] * x / mask.sum()
        kl += (x - reference) ** 2 / 2 / mask.sum()
        bonus += optional["entropy"][p, i, t] / mask.sum()
    np.testing.assert_allclose(metrics["loss/policy"], policy, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss/kl"], 0.1 * kl, rtol=1e-5)
    np.testing.assert_allclose(metrics["kl/reference"], kl, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss/entropy"], -0.01 * bonus, rtol=1e-5)
    np.testing.assert_allclose(metrics["policy/entropy"], bonus, rtol=1e-5)
    np.testing.assert_allclose(loss, policy + 0.1 * kl - 0.01 * bonus, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss/total"], loss)


def test_old_logprobs_take_the_sampler_s_place_in_the_ratio():
    arguments, optional = batch()
    logprobs, _, advantages, mask = arguments
    loss, metrics = policy_loss(
        ObjectiveConfig(), *arguments, old_logprobs=optional["old_logprobs"]
    )
    expected = cispo(logprobs, optional["old_logprobs"], advantages, mask, eps_high=4.0)
    np.testing.assert_array_equal(loss, expected[0])
    np.testing.assert_array_equal(metrics["ratio/mean"], expected[1]["ratio/mean"])


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_a_bare_name_means_the_objective_s_own_defaults(name):
    arguments, _ = batch()
    bounds = {"eps_high": 4.0} if name == "cispo" else {}
    expected, _ = OBJECTIVES[name](*arguments, **bounds)
    actual, _ = policy_loss(ObjectiveConfig(name=name), *arguments)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_none_is_no_bound_and_differs_from_the_default():
    arguments, _ = batch(seed=1)
    options = ObjectiveConfig(name="ppo", eps_high=None, eps_low=None).options()
    assert options == {"eps_high": None, "eps_low": None}
    _, metrics = policy_loss(ObjectiveConfig(name="ppo", eps_high=None, eps_low=None), *arguments)
    assert metrics["loss/clip_fraction"] == 0
    assert policy_loss(ObjectiveConfig(name="ppo"), *arguments)[1]["loss/clip_fraction"] > 0


def test_masked_garbage_does_not_reach_the_optional_terms():
    config = full_config("cispo")
    (logprobs, behaviour, advantages, mask), optional = batch()
    clean = policy_loss(config, logprobs, behaviour, advantages, mask, **optional)
    poison = lambda x: np.where(mask > 0, x, np.nan)  # noqa: E731
    dirty = policy_loss(
        config,
        poison(logprobs),
        poison(behaviour),
        advantages,
        mask,
        **{name: poison(x) for name, x in optional.items()},
    )
    jax.tree.map(np.testing.assert_array_equal, dirty, clean)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "cipso"}, "did you mean 'cispo'"),
        ({"aggregation": "tokens"}, "aggregation 'tokens' is unknown"),
        ({"kl_kind": "k9"}, "kl_kind 'k9' is unknown"),
        ({"eps_high": 0.0}, "eps_high is a delta from ratio 1"),
        ({"eps_low": -0.8}, "eps_low is a delta from ratio 1"),
        ({"eps_high": "none"}, "must be a number, None"),
        ({"name": "ppo", "dual_clip": 0.5}, "dual_clip is a ratio"),
        ({"name": "grpo", "mask_eps_high": 0.2}, "'grpo' has no option mask_eps_high"),
        ({"name": "reinforce", "eps_high": 0.2}, "'reinforce' has no option eps_high"),
        ({"dual_clip": 3.0}, "'cispo' has no option dual_clip"),
        ({"max_length": 0}, "max_length must be > 0"),
        ({"sample_fraction": 1.5}, "sample_fraction"),
        ({"kl_coefficient": -1.0}, "kl_coefficient"),
        ({"entropy_coefficient": -1.0}, "entropy_coefficient"),
        ({"tis_low": 3.0, "tis_high": 2.0}, "tis_low < tis_high"),
    ],
)
def test_a_mistake_in_the_config_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        ObjectiveConfig(**options)


@pytest.mark.parametrize("missing", ["old_logprobs", "reference_logprobs", "entropy"])
def test_a_term_without_its_array_is_an_error(missing):
    arguments, optional = batch()
    optional.pop(missing)
    with pytest.raises(ValueError, match=f"need.*{missing}"):
        policy_loss(full_config("cispo"), *arguments, **optional)


def test_the_config_is_hashable_so_it_can_be_static_under_jit():
    config = full_config("dapo")
    arguments, optional = batch()
    jitted = jax.jit(policy_loss, static_argnums=0)
    loss, _ = jitted(config, *arguments, **optional)
    np.testing.assert_allclose(loss, policy_loss(config, *arguments, **optional)[0], rtol=1e-5)
    assert dataclasses.replace(config) == config


@pytest.mark.parametrize("name", ["cispo", "dapo"])
def test_bins_of_the_behaviour_probability_are_those_counted_token_by_token(name):
    """By PPO's and CISPO's rules written out, where the mask keeps a token; two bins stay empty."""
    rng = np.random.default_rng(3)
    mask = (rng.uniform(size=(4, 2, 30)) < 0.8).astype(np.float32)
    probability = rng.choice([0.001, 0.04, 0.05, 0.3, 0.95], size=mask.shape).astype(np.float32)
    ratio = rng.uniform(0.2, 3, size=mask.shape).astype(np.float32)
    advantage = rng.choice([-1.0, 0.0, 1.0], size=(4, 2)).astype(np.float32)
    behaviour = np.where(mask > 0, np.log(probability), np.nan)
    edges = (0.01, 0.03, 0.31, 0.5)
    config = ObjectiveConfig(name=name, eps_low=0.5, eps_high=0.8, probability_bins=edges)
    logprobs = behaviour + np.log(ratio)
    _, metrics = policy_loss(config, logprobs, behaviour, advantage, mask)

    weight = 1 / mask.sum(axis=(1, 2)) / len(mask)
    counted = np.zeros((4, 5))
    for p, g, t in np.argwhere(mask > 0):
        r, a = ratio[p, g, t], advantage[p, g]
        place = sum(float(np.exp(np.float32(behaviour[p, g, t]))) >= edge for edge in edges)
        silent = name == "dapo" and ((a > 0 and r > 1.8) or (a < 0 and r < 0.5))
        scale = np.clip(r, 0.5, 1.8) if name == "cispo" else r
        gradient = 0 if silent else scale * abs(a) * weight[p]
        counted[:, place] += (1, r > 1.8 or r < 0.5, silent, gradient)
    counted /= mask.sum()
    for row, field in zip(counted, ("tokens", "clipped", "dropped", "gradient"), strict=True):
        found = [metrics[f"probability/{field}/{i}"] for i in range(5)]
        np.testing.assert_allclose(found, row, rtol=1e-5, err_msg=field)
    assert (
        counted[0, 1] == counted[0, 3] == 0
        and counted[1, 0] > 0
        and (counted[2].sum() > 0) == (name == "dapo")
    )


def test_bins_are_refused_where_they_have_no_meaning():
    with pytest.raises(ValueError, match="must rise between 0 and 1"):
        ObjectiveConfig(probability_bins=(0.5, 0.1))
    with pytest.raises(ValueError, match="gspo clips whole sequences"):
        ObjectiveConfig(name="gspo", probability_bins=(0.5,))
