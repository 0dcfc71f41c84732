"""The mesh, the rules, and that a model split over 8 devices computes what one device does."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from oracles.small_models import HYBRID

from mmrl.sharding import (
    MeshConfig,
    batch_shardings,
    layout,
    make_mesh,
    reshard,
    spec,
    split_mesh,
    uncut,
)
from mmrl.training.state import abstract_model, init_params

CONFIG = dataclasses.replace(HYBRID, vocab_size=40, num_layers=4)


def test_one_axis_takes_the_devices_that_are_left():
    assert dict(make_mesh(MeshConfig(data=-1, fsdp=2)).shape) == {
        "data": 4, "fsdp": 2, "expert": 1, "sequence": 1, "tensor": 1
    }  # fmt: skip


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MeshConfig(data=3), r"data=3 .* needs 3 devices but 8 are there"),
        (MeshConfig(data=-1, tensor=3), "needs 6 devices but 8 are there"),
    ],
)
def test_a_mesh_that_does_not_fit_names_both_numbers(config, message):
    with pytest.raises(ValueError, match=message):
        make_mesh(config)


def test_two_meshes_share_no_device_and_each_needs_one():
    whole = jax.devices()
    first, last = split_mesh(MeshConfig(tensor=2), MeshConfig(data=1, fsdp=2), whole)
    assert list(first.devices.flat) == whole[:6] and list(last.devices.flat) == whole[6:]
    assert dict(first.shape)["data"] == 3 and dict(last.shape)["fsdp"] == 2
    with pytest.raises(ValueError, match="rollout_mesh takes 8 of 8 devices"):
        split_mesh(MeshConfig(), MeshConfig(data=8), whole)


def test_two_free_axes_are_refused():
    with pytest.raises(ValueError, match="one of them may be -1"):
        MeshConfig(data=-1, fsdp=-1)


def test_a_mesh_axis_shards_one_dimension_and_only_if_it_divides():
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    assert tuple(spec(("embed", "heads", "head_dim"), (24, 4, 8), mesh)) == ("fsdp", "tensor", None)
    assert tuple(spec(("embed", "embed"), (24, 24), mesh)) == ("fsdp", None)
    assert tuple(spec(("vocab", "embed"), (37, 24), mesh)) == (None, "fsdp")
    # Of several mesh axes as many as divide it, from the first on.
    with layout("decode"):
        sizes = {size: tuple(spec(("heads",), (size,), mesh))[0] for size in (16, 6, 12, 3)}
    assert sizes == {16: ("tensor", "fsdp"), 6: "tensor", 12: "tensor", 3: None}
    assert uncut("vocab", 38, mesh) == () and uncut("vocab", 37, mesh) == ("tensor",)
    with pytest.raises(ValueError, match="unknown logical axis 'hats'"):
        spec(("hats",), (4,), mesh)


MESHES = {
    "data": MeshConfig(data=8),
    "fsdp": MeshConfig(data=1, fsdp=8),
    "fsdp and tensor": MeshConfig(data=1, fsdp=4, tensor=2),
    "data, expert and tensor": MeshConfig(data=2, expert=2, tensor=2),
}


@pytest.mark.parametrize("name", MESHES)
def test_loss_and_gradients_do_not_depend_on_the_mesh(name):
    """Parameters are initialised as shards; the numbers are those of one device."""
    tokens = np.asarray(jax.random.randint(jax.random.key(1), (8, 9), 0, CONFIG.vocab_size))
    graphdef, _ = abstract_model(CONFIG)

    def loss(params, tokens):
        logits = nnx.merge(graphdef, params)(tokens)[0]
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], axis=-1)
        return -chosen.mean()

    def on_mesh(mesh):
        with jax.set_mesh(mesh):
            params = init_params(CONFIG, jax.random.key(0), mesh)
            placed = jax.device_put(tokens, batch_shardings(tokens, mesh))
            value, grads = jax.jit(jax.value_and_grad(loss))(params, placed)
            return params, value, jax.device_get(grads)

    _, expected, expected_grads = on_mesh(make_mesh(MeshConfig(data=1), devices=jax.devices()[:1]))
    params, value, grads = on_mesh(make_mesh(MESHES[name]))
    assert value == pytest.approx(float(expected), rel=1e-5)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True):
        assert np.abs(a - b).max() <= 1e-4 * max(np.abs(b).max(), 1e-6)
    if name != "data":
        shard = params["embedding"].get_value().addressable_shards[0].data
        assert shard.size < params["embedding"].get_value().size


def test_parameters_go_to_the_samplers_layout_and_back_bit_for_bit_and_are_donated():
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    with jax.set_mesh(mesh):
        params = init_params(CONFIG, jax.random.key(0), mesh)
        before = jax.device_get(jax.tree.leaves(params))
        gate = params["runs"][0]["mlp"]["gate"].get_value()
        moved = reshard(params, "decode", mesh)
        of_decode = moved["runs"][0]["mlp"]["gate"].get_value()
        back = reshard(moved, "train", mesh)
    assert gate.is_deleted() and of_decode.is_deleted()
    # [layers, experts, hidden, width]: training cuts hidden and width, decoding width alone.
    assert gate.sharding.shard_shape(gate.shape)[2:] == (24 // 4, 16 // 2)
    assert of_decode.sharding.shard_shape(gate.shape)[2:] == (24, 16 // 8)
    for old, new in zip(before, jax.device_get(jax.tree.leaves(back)), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_layout_that_is_the_same_on_a_mesh_moves_nothing():
    mesh = make_mesh(MeshConfig(data=8))
    with jax.set_mesh(mesh):
        params = init_params(CONFIG, jax.random.key(0), mesh)
        moved = reshard(params, "decode", mesh)
    for old, new in zip(jax.tree.leaves(params), jax.tree.leaves(moved), strict=True):
        assert old is new
