"""The optimizer against float64 AdamW, its schedules, decay groups and guards."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from mmrl.training.optimizer import (
    OptimizerConfig,
    check_skips,
    decayed,
    learning_rate,
    make_optimizer,
    make_schedule,
    skips,
)


def run(config, params, gradients):
    optimizer = make_optimizer(config)
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def adamw_loop(config, value, gradients, decay):
    """Decoupled AdamW on one array, without clipping, in float64."""
    value, mu, nu = np.float64(value), 0.0, 0.0
    for step, gradient in enumerate(np.float64(gradients), 1):
        mu = config.b1 * mu + (1 - config.b1) * gradient
        nu = config.b2 * nu + (1 - config.b2) * gradient**2
        direction = mu / (1 - config.b1**step) / (np.sqrt(nu / (1 - config.b2**step)) + config.eps)
        value = value - config.learning_rate * (direction + decay * value)
    return value


@pytest.mark.parametrize("scale", [1.0, 1e-5, 1e-14, 1e-18, 1e-20])
def test_equals_float64_adamw_over_the_paper_s_range_of_gradients(scale):
    """Squares of 1e-20 are subnormal in float32: eps hides what is lost."""
    config = OptimizerConfig(learning_rate=0.1, weight_decay=0.1, clip_norm=None)
    rng = np.random.default_rng(0)
    start = np.zeros((3, 4), np.float32)
    gradients = (scale * rng.normal(size=(20, 3, 4))).astype(np.float32)
    params, _ = run(config, {"w": start}, [{"w": g} for g in gradients])
    expected = adamw_loop(config, start, gradients, decay=0.1)
    np.testing.assert_allclose(params["w"], expected, rtol=1e-3, atol=1e-5 * abs(expected).max())
    assert abs(expected).max() > 0


def test_eps_1e_8_would_drown_the_paper_s_gradients():
    gradients = [{"w": jnp.full((2, 2), 1e-14)}] * 5
    start = {"w": jnp.zeros((2, 2))}
    paper, _ = run(OptimizerConfig(learning_rate=1.0), start, gradients)
    usual, _ = run(OptimizerConfig(learning_rate=1.0, eps=1e-8), start, gradients)
    assert abs(paper["w"]).min() > 4
    assert abs(usual["w"]).max() < 1e-5


def test_defaults_are_the_paper_s():
    config = OptimizerConfig()
    assert (config.b1, config.b2, config.eps) == (0.9, 0.95, 1e-15)


def test_gradients_are_clipped_by_their_global_norm():
    """Visible through Adam as the ratio between a long and a short gradient."""
    config = OptimizerConfig(learning_rate=1.0, clip_norm=2.0)
    gradients = [{"a": jnp.array([30.0]), "b": jnp.array([40.0])}]
    gradients.append({"a": jnp.array([0.3]), "b": jnp.array([0.4])})
    params, _ = run(config, {"a": jnp.zeros(1), "b": jnp.zeros(1)}, gradients)
    for name, sequence in (("a", [1.2, 0.3]), ("b", [1.6, 0.4])):
        expected = adamw_loop(config, [0.0], np.array(sequence)[:, None], decay=0)
        np.testing.assert_allclose(params[name], expected, rtol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_non_finite_gradient_changes_nothing_but_the_counters(bad):
    config = OptimizerConfig(learning_rate=0.1, weight_decay=0.1, warmup_steps=3)
    good = [{"w": jnp.full((2, 2), x), "b": jnp.ones(2)} for x in (0.3, -0.2)]
    broken = {"w": jnp.array([[1.0, bad], [1.0, 1.0]]), "b": jnp.ones(2)}
    start = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
    params, state = run(config, start, [good[0], broken, broken, good[1], broken])
    expected, clean = run(config, start, good)
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    jax.tree.map(np.testing.assert_array_equal, state.inner_state, clean.inner_state)
    assert skips(state) == (1, 3)


def test_non_finite_gradients_never_apply_and_stop_the_run_at_the_limit():
    config = OptimizerConfig(max_consecutive_skips=3)
    broken, start = {"w": jnp.full((2, 2), jnp.nan)}, {"w": jnp.ones((2, 2))}
    _, state = run(config, start, [broken] * 2)
    check_skips(config, state)
    params, state = run(config, start, [broken] * 12)
    np.testing.assert_array_equal(params["w"], 1)
    with pytest.raises(FloatingPointError, match="12 gradients in a row were not finite"):
        check_skips(config, state)
    _, state = run(config, start, [broken] * 12 + [start])
    check_skips(config, state)


def test_an_overflowing_norm_moves_nothing():
    config = OptimizerConfig(learning_rate=1.0)
    params, _ = run(config, {"w": jnp.ones((2, 2))}, [{"w": jnp.full((2, 2), 1e30)}])
    np.testing.assert_array_equal(params["w"], 1)


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 4])
def test_schedule_values(name, warmup):
    config = OptimizerConfig(
        learning_rate=0.5, schedule=name, warmup_steps=warmup, decay_steps=14, final_fraction=0.1
    )
    schedule = make_schedule(config)
    for count in range(20):
        if count < warmup:
            expected = 0.5 * (count + 1) / warmup
        else:
            p = min((count - warmup) / (14 - warmup), 1)
            decay = {"constant": 1, "linear": 1 - p, "cosine": (1 + math.cos(math.pi * p)) / 2}
            expected = 0.5 if name == "constant" else 0.5 * (0.1 + 0.9 * decay[name])
        np.testing.assert_allclose(schedule(count), expected, rtol=1e-5)


def test_learning_rate_is_the_one_the_latest_update_used():
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=4)
    good, bad = {"w": jnp.ones((2, 2))}, {"w": jnp.full((2, 2), jnp.nan)}
    start = {"w": jnp.zeros((2, 2))}
    before, state = run(config, start, [good])
    after, state = run(config, start, [good, good])
    np.testing.assert_allclose(learning_rate(config, state), 0.5)
    np.testing.assert_allclose(before["w"] - after["w"], 0.5, rtol=1e-5)
    _, state = run(config, start, [good, bad])
    np.testing.assert_allclose(learning_rate(config, state), 0.5)
    _, state = run(config, start, [])
    np.testing.assert_allclose(learning_rate(config, state), 0.25)


def test_weight_decay_goes_by_name_because_stacked_vectors_have_two_axes():
    stacked, matrix = jnp.ones((8, 4)), jnp.ones((8, 4, 4))
    params = {
        "embedding": jnp.ones((10, 4)),
        "layers": {
            "attention": {"q": matrix, "q_bias": stacked, "Norm": {"weight": stacked}},
            "router": matrix,
            "router_bias": stacked,
        },
        "final_norm": jnp.ones(4),
        "scale": jnp.ones(4),
        "head": jnp.ones((4, 10)),
    }
    expected = {
        "embedding": False,
        "layers": {
            "attention": {"q": True, "q_bias": False, "Norm": {"weight": False}},
            "router": True,
            "router_bias": False,
        },
        "final_norm": False,
        "scale": False,
        "head": True,
    }
    assert decayed(params) == expected
    assert decayed(params, embeddings=True) == expected | {"embedding": True}


def test_decay_applies_to_the_chosen_leaves_only():
    config = OptimizerConfig(learning_rate=0.1, weight_decay=0.5)
    params = {"w": jnp.ones((2, 2)), "norm": jnp.ones((2, 2))}
    after, _ = run(config, params, [jax.tree.map(jnp.zeros_like, params)])
    np.testing.assert_allclose(after["w"], 1 - 0.1 * 0.5, rtol=1e-6)
    np.testing.assert_array_equal(after["norm"], 1)


def test_state_of_an_nnx_model_has_the_parameters_shapes_and_shardings():
    class Model(nnx.Module):
        def __init__(self):
            self.w = nnx.Param(jnp.ones((8, 4)))
            self.norm = nnx.Param(jnp.ones((8, 4)))

    params = nnx.state(Model(), nnx.Param)
    mesh = jax.make_mesh((jax.device_count(),), ("fsdp",))
    spec = jax.sharding.PartitionSpec("fsdp")
    params = jax.device_put(params, jax.sharding.NamedSharding(mesh, spec))
    config = OptimizerConfig(learning_rate=0.1, weight_decay=0.5)
    after, state = run(config, params, [jax.tree.map(jnp.zeros_like, params)])
    adam = optax.tree.get(state, "ScaleByAdamState")
    for moments in (adam.mu, adam.nu):
        assert jax.tree.structure(moments) == jax.tree.structure(params)
        for moment, param in zip(jax.tree.leaves(moments), jax.tree.leaves(params), strict=True):
            assert moment.shape == param.shape
            assert moment.sharding.is_equivalent_to(param.sharding, param.ndim)
    np.testing.assert_allclose(after["w"][...], 0.95, rtol=1e-6)
    np.testing.assert_array_equal(after["norm"][...], 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": -1.0}, "learning_rate must be >= 0, not -1.0"),
        ({"schedule": "cosin"}, "schedule must be one of"),
        ({"schedule": "linear"}, "decay_steps must be > warmup_steps"),
        ({"schedule": "cosine", "warmup_steps": 9, "decay_steps": 9}, "decay_steps"),
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"final_fraction": 2.0}, "final_fraction"),
        ({"b1": 1.0}, "b1"),
        ({"b2": -0.1}, "b2"),
        ({"eps": 0.0}, "eps"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"clip_norm": 0.0}, "clip_norm must be > 0, or None"),
        ({"max_consecutive_skips": 0}, "max_consecutive_skips"),
    ],
)
def test_a_mistake_in_the_config_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**options)
