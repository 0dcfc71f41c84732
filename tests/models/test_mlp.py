"""The mixture of experts against a dense loop over tokens and experts in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from oracles.small_models import HYBRID

from mmrl.models import experts
from mmrl.models.config import DecoderConfig
from mmrl.models.layers import LayerInit
from mmrl.models.mlp import MixtureOfExperts


def layer(config: DecoderConfig) -> MixtureOfExperts:
    """One layer's experts, without the axis over layers."""
    graphdef, params = nnx.split(MixtureOfExperts(LayerInit(nnx.Rngs(3), config, layers=1)))
    return nnx.merge(graphdef, jax.tree.map(lambda x: x[0], params))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gated(x, gate, up, down):
    hidden = x @ gate
    return (hidden * sigmoid(hidden) * (x @ up)) @ down


def dense_loop(moe: MixtureOfExperts, x: np.ndarray) -> np.ndarray:
    """Every token through every expert, weighted by 0 where the router did not choose it."""
    config = moe.config
    weights = jax.tree.map(
        lambda w: np.asarray(w, np.float64), nnx.to_pure_dict(nnx.state(moe, nnx.Param))
    )
    out = np.zeros_like(x)
    for index in np.ndindex(x.shape[:2]):
        logits = x[index] @ weights["router"]
        if config.router == "softmax":
            scores = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
            ranking = scores
        else:
            scores = sigmoid(logits)
            ranking = scores + weights.get("router_bias", 0)
        chosen = np.argsort(-ranking)[: config.experts_per_token]
        for e in range(config.num_experts):
            weight = scores[e] / scores[chosen].sum() if e in chosen else 0
            out[index] += weight * gated(x[index], *(weights[n][e] for n in ("gate", "up", "down")))
        if config.shared_expert_size:
            share = sigmoid(x[index] @ weights["shared_coefficient"])
            shared = gated(x[index], *(weights["shared"][n] for n in ("gate", "up", "down")))
            out[index] = out[index] * (1 - share) + shared * share
    return out


CASES = {
    "softmax": {},
    "sigmoid": dict(router="sigmoid"),
    "sigmoid with bias": dict(router="sigmoid", router_bias=True, num_experts=8),
    "shared expert": dict(shared_expert_size=20),
    "one expert a token": dict(experts_per_token=1),
    "all experts": dict(experts_per_token=4),
}


@pytest.fixture(params=["few tokens", "many tokens"])
def amount(request, monkeypatch):
    """Both ways through the experts, whatever the number of tokens."""
    monkeypatch.setattr(experts, "FEW_TOKENS", 1 << 30 if request.param == "few tokens" else 0)


@pytest.mark.parametrize("case", CASES)
def test_experts_equal_the_dense_loop(case, amount):
    moe = layer(dataclasses.replace(HYBRID, **CASES[case]))
    if moe.config.router_bias:
        moe.router_bias[...] = jax.random.normal(jax.random.key(5), moe.router_bias.shape)
    x = np.asarray(jax.random.normal(jax.random.key(4), (2, 13, HYBRID.hidden_size)))
    out, _ = moe(x, jnp.ones((2, 13), jnp.int32))
    expected = dense_loop(moe, x.astype(np.float64))
    assert np.abs(out - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("case", CASES)
def test_the_gradient_of_the_input_equals_a_difference_quotient_of_the_dense_loop(case, amount):
    moe = layer(dataclasses.replace(HYBRID, **CASES[case]))
    x, cotangent, direction = np.asarray(
        jax.random.normal(jax.random.key(4), (3, 2, 13, HYBRID.hidden_size))
    )
    gradient = jax.grad(lambda x: (moe(x, jnp.ones((2, 13), jnp.int32))[0] * cotangent).sum())(x)
    step = 1e-5 * direction.astype(np.float64)
    difference = (dense_loop(moe, x + step) - dense_loop(moe, x - step)) / 2e-5
    expected = (cotangent * difference).sum()
    assert (gradient * direction).sum() == pytest.approx(expected, rel=1e-3)


def test_no_token_is_dropped_when_all_choose_the_same_expert(amount):
    moe = layer(dataclasses.replace(HYBRID, experts_per_token=1))
    moe.router[...] = jnp.zeros_like(moe.router).at[:, 2].set(1.0)
    x = np.abs(np.asarray(jax.random.normal(jax.random.key(4), (1, 50, HYBRID.hidden_size))))
    out, statistics = moe(x, jnp.ones((1, 50), jnp.int32))
    expected = dense_loop(moe, x.astype(np.float64))
    assert np.abs(out - expected).max() < 1e-5 * np.abs(expected).max()
    assert statistics["max_load"] == pytest.approx(4.0)


def test_statistics_count_the_tokens_that_are_not_padding(amount):
    """E Σ_e f_e P_e by a loop over the valid tokens; padding moves nothing."""
    moe = layer(HYBRID)
    x = np.asarray(jax.random.normal(jax.random.key(4), (1, 10, HYBRID.hidden_size)))
    segments = np.asarray([[1] * 6 + [0] * 4])
    _, statistics = moe(x, segments)
    loads, probs = np.zeros(4), np.zeros(4)
    for token in x[0, :6].astype(np.float64):
        logits = token @ np.asarray(moe.router[...], np.float64)
        p = np.exp(logits) / np.exp(logits).sum()
        loads[np.argsort(-p)[:2]] += 1 / 6
        probs += p / 6
    assert statistics["load_balance"] == pytest.approx(4 * (loads * probs).sum(), rel=1e-5)
    assert statistics["max_load"] == pytest.approx(loads.max() * 4 / 2, rel=1e-5)
