"""Every pair of mesh axes, and three triples, computes what one device does."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from oracles.small_models import HYBRID

from mmrl.models import DecoderConfig, experts
from mmrl.rollout import Rollout, SamplingConfig, generate, score
from mmrl.rollout.sampler import packed_size
from mmrl.sharding import MeshConfig, batch_shardings, make_mesh, shardings
from mmrl.training.state import abstract_model, init_params

MODELS = {
    "hybrid": dataclasses.replace(
        HYBRID, vocab_size=40, num_layers=2, layer_pattern=("lightning", "softmax")
    ),
    "dense": dataclasses.replace(
        HYBRID,
        vocab_size=40,
        num_layers=2,
        layer_pattern=("softmax",),
        num_experts=0,
        postnorm=False,
        softmax_alpha=1.0,
        mlp_alpha=1.0,
        qk_norm="head",
        tie_embeddings=True,
    ),
}
AXES = ("data", "fsdp", "expert", "sequence", "tensor")
PAIRS = [
    {first: 2, second: 4} if number % 2 else {first: 4, second: 2}
    for number, (first, second) in enumerate(itertools.combinations(AXES, 2))
]
TRIPLES = [
    {"data": 2, "fsdp": 2, "tensor": 2},
    {"fsdp": 2, "expert": 2, "tensor": 2},
    {"data": 2, "sequence": 2, "tensor": 2},
    {"fsdp": 2, "expert": 2, "sequence": 2},
]
SAMPLING = SamplingConfig(group_size=2, max_new_tokens=8, stop_ids=(3,))
PROMPTS = np.random.default_rng(0).integers(4, 40, (8, 8)).astype(np.int32)
LENGTHS = np.asarray([8, 5, 1, 7, 8, 2, 6, 3], np.int32)


@functools.cache
def parameters(config: DecoderConfig):
    """On the host; that a mesh initialises the same is in `test_sharding.py`."""
    mesh = make_mesh(MeshConfig(data=1), devices=jax.devices()[:1])
    return jax.device_get(init_params(config, jax.random.key(0), mesh))


def run(
    config: DecoderConfig, mesh, prompts=(PROMPTS, LENGTHS), sampling=SAMPLING, packed=False
) -> dict:
    """Tokens that are sampled, and loss and gradients of their log-probabilities."""
    graphdef, _ = abstract_model(config)

    def loss(params, rollout: Rollout, size: int | None = None):
        scored = score(nnx.merge(graphdef, params), rollout, 1.0, size)
        signs = jnp.where(rollout.tokens % 3 == 0, 1.0, -0.5) * rollout.mask
        total = jnp.sum(signs * scored["logprobs"]) / signs.size
        total += 0.1 * jnp.sum(scored["entropy"] * rollout.mask) / signs.size
        return total + 0.01 * scored.get("load_balance", 0.0)

    with jax.set_mesh(mesh):
        params = jax.device_put(parameters(config), shardings(parameters(config), mesh))
        prompts = jax.device_put(prompts, batch_shardings(prompts, mesh))
        rollout = generate(nnx.merge(graphdef, params), prompts, sampling, jax.random.key(1))
        size = packed_size(np.asarray(rollout.lengths), sampling.max_new_tokens) if packed else None
        assert not packed or size is not None
        gradients = jax.jit(jax.value_and_grad(loss), static_argnums=2)
        value, grads = gradients(params, rollout.arrays(), size)
        return jax.device_get(
            {"rollout": rollout.arrays(), "loss": value, "grads": dict(nnx.to_flat_state(grads))}
        )


@pytest.fixture(scope="module")
def of_one_device():
    one = make_mesh(MeshConfig(data=1), devices=jax.devices()[:1])
    return {name: run(config, one) for name, config in MODELS.items()}


@pytest.mark.parametrize(
    "model, sizes",
    # What the models differ in, attention and the MLP, is cut by heads, width and time.
    [("hybrid", sizes) for sizes in PAIRS + TRIPLES] + [("dense", sizes) for sizes in TRIPLES],
    ids=lambda part: part if isinstance(part, str) else "-".join(part),
)
def test_a_mesh_gives_the_loss_gradients_and_tokens_of_one_device(
    model, sizes, of_one_device, monkeypatch
):
    # Tokens are few here; with this they take the way of many.
    monkeypatch.setattr(experts, "FEW_TOKENS", 4)
    found = run(MODELS[model], make_mesh(MeshConfig(**{"data": 1} | sizes)))
    assert_equal(found, of_one_device[model])


@pytest.mark.parametrize(
    "sizes", [{"data": 4, "tensor": 2}, {"data": 2, "fsdp": 2, "expert": 2}], ids="-".join
)
@pytest.mark.parametrize("model", MODELS)
def test_each_device_packs_and_moves_together_its_own_rows(model, sizes):
    """The rows that run on when others have ended, and the tokens of an update without padding."""
    sampling = dataclasses.replace(SAMPLING, group_size=4, max_new_tokens=16, stop_ids=(*range(9),))
    one = make_mesh(MeshConfig(data=1), devices=jax.devices()[:1])
    expected = run(MODELS[model], one, sampling=sampling)
    lengths = expected["rollout"].lengths
    assert lengths.max() > 8 and (lengths < 6).mean() > 0.4
    sampling = dataclasses.replace(sampling, compactions=2)
    mesh = make_mesh(MeshConfig(**{"data": 1} | sizes))
    assert_equal(run(MODELS[model], mesh, sampling=sampling, packed=True), expected)


@pytest.mark.parametrize(
    "prompts, group, sizes",
    [
        (1, 8, {"data": 2, "fsdp": 2, "expert": 2}),  # one prompt for all devices
        (2, 8, {"data": 2, "fsdp": 4}),  # cut over data alone, then shared by four devices
        (4, 4, {"data": 8}),  # half a group on each device
        (12, 6, {"data": 2, "fsdp": 4}),  # a group and a half
    ],
)
def test_fewer_prompts_than_devices_are_shared_by_the_devices_of_their_rows(prompts, group, sizes):
    rows = (np.resize(PROMPTS, (prompts, 8)), np.resize(LENGTHS, prompts))
    sampling = dataclasses.replace(SAMPLING, group_size=group)
    meshes = (
        make_mesh(MeshConfig(**{"data": 1} | sizes)),
        make_mesh(MeshConfig(data=1), devices=jax.devices()[:1]),
    )
    assert_equal(*(run(MODELS["hybrid"], mesh, rows, sampling) for mesh in meshes))


def assert_equal(found: dict, expected: dict) -> None:
    """The same tokens, and loss and gradients up to rounding."""
    np.testing.assert_array_equal(found["rollout"].tokens, expected["rollout"].tokens)
    np.testing.assert_allclose(
        found["rollout"].behaviour_logprobs, expected["rollout"].behaviour_logprobs, atol=1e-5
    )
    assert found["loss"] == pytest.approx(float(expected["loss"]), rel=1e-5)
    for path, gradient in expected["grads"].items():
        difference = np.abs(found["grads"][path][...] - gradient[...]).max()
        assert difference <= 1e-4 * max(np.abs(gradient[...]).max(), 1e-6), path
