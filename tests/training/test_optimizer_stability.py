"""Spiky and tiny gradients under CISPO (MiniMax-M1 issue 31; section 4.2 of the paper)."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mmrl.rl.advantages import group_relative
from mmrl.rl.objectives import cispo
from mmrl.training.optimizer import OptimizerConfig, make_optimizer


def test_spikes_of_the_gradient_cannot_move_a_parameter_far():
    """By Cauchy-Schwarz a bias-corrected Adam step is under
    lr (1 - b1) / sqrt(1 - b2) / sqrt(1 - b1^2 / b2) * sqrt(1 - b2^t) / (1 - b1^t)."""
    config = OptimizerConfig(learning_rate=1e-3)
    rng = np.random.default_rng(0)
    optimizer = make_optimizer(config)
    params = {"w": jnp.zeros((4, 4))}
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    b1, b2 = config.b1, config.b2
    for step in range(1, 120):
        spike = 10.0 ** rng.uniform(-18, 12) if step % 7 == 0 else 1e-6
        gradient = {"w": jnp.asarray(spike * rng.normal(size=(4, 4)), jnp.float32)}
        updates, state = update(gradient, state, params)
        bound = (1 - b1) / math.sqrt(1 - b2) / math.sqrt(1 - b1**2 / b2)
        bound *= math.sqrt(1 - b2**step) / (1 - b1**step)
        assert abs(updates["w"]).max() <= 1e-3 * bound * (1 + 1e-4)


def bandit(config, *, loss_scale=1.0, spike=False, rounds=12, updates_per_round=16):
    """CISPO on 8 one-token prompts with 16 arms, with M1's 16 off-policy updates a batch.

    The right arm of prompt p is p. Returns the probabilities of right arms and gradient norms.
    """
    prompts, group, arms = 8, 16, 16
    optimizer = make_optimizer(config)
    params = {"w": jnp.zeros((prompts, arms))}
    state = optimizer.init(params)

    def logprobs(params, actions):
        return jnp.take_along_axis(jax.nn.log_softmax(params["w"]), actions, -1)[..., None]

    @jax.jit
    def update(params, state, actions, behaviour, advantages, scale):
        def loss(params):
            mask = jnp.ones_like(behaviour)
            value, _ = cispo(logprobs(params, actions), behaviour, advantages, mask, eps_high=4.0)
            return value * scale

        gradient = jax.grad(loss)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, optax.tree.norm(gradient)

    norms = []
    key = jax.random.key(0)
    for step in range(rounds):
        key, draw = jax.random.split(key)
        actions = jax.random.categorical(draw, params["w"][:, None], shape=(prompts, group))
        rewards = (actions == jnp.arange(prompts)[:, None]).astype(jnp.float32)
        advantages, behaviour = group_relative(rewards), logprobs(params, actions)
        for substep in range(updates_per_round):
            scale = 1e6 if spike and substep == 5 and step % 3 == 1 else 1.0
            scaled = jnp.float32(loss_scale * scale)
            params, state, norm = update(params, state, actions, behaviour, advantages, scaled)
            norms.append(float(norm))
    right = jax.nn.softmax(params["w"])[jnp.arange(prompts), jnp.arange(prompts)]
    return np.asarray(right), np.asarray(norms)


def test_cispo_with_the_paper_s_optimizer_is_stable_over_off_policy_rounds():
    """The guard for MiniMax-M1 issue 31 (norms from 0.2 to tens after 40 updates): 192 updates."""
    right, norms = bandit(OptimizerConfig(learning_rate=0.02))
    assert right.min() > 0.9
    assert norms[40:].max() <= 2 * norms[:40].max()


def test_cispo_learns_through_gradient_spikes_of_a_million_thanks_to_the_clip():
    """A third of the rounds has one: it delays learning, and without the clip stops it."""
    config = OptimizerConfig(learning_rate=0.02)
    right, norms = bandit(config, spike=True, rounds=16)
    assert norms.max() > 1e4
    assert right.min() > 0.9
    unclipped = dataclasses.replace(config, clip_norm=None)
    right, _ = bandit(unclipped, spike=True, rounds=16)
    assert right.mean() < 0.5


def test_cispo_learns_from_the_paper_s_tiny_gradients_only_with_its_eps():
    right, norms = bandit(OptimizerConfig(learning_rate=0.02), loss_scale=1e-12)
    assert norms.max() < 1e-12
    usual = OptimizerConfig(learning_rate=0.02, b2=0.999, eps=1e-8)
    stuck, _ = bandit(usual, loss_scale=1e-12)
    assert right.mean() > 0.8
    np.testing.assert_allclose(stuck, 1 / 16, atol=1e-3)
