"""The optimizer's state in the host's memory: the same updates, and it is really there."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx
from jax.experimental import topologies

from mmrl.errors import UserError
from mmrl.models import DecoderConfig
from mmrl.sharding import MeshConfig, make_mesh, shardings
from mmrl.training import checkpoint
from mmrl.training.checkpoint import CheckpointConfig
from mmrl.training.optimizer import OptimizerConfig, learning_rate, make_optimizer
from mmrl.training.state import abstract_model, init_optimizer, init_params, optimizer_places
from mmrl.training.update import supervised_update
from pallas_kernels import tpu_schedule

MODEL = DecoderConfig(
    vocab_size=32,
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    intermediate_size=16,
    layer_pattern=("lightning", "softmax"),
    initializer_range=0.2,
)
RESIDENT = OptimizerConfig(learning_rate=1e-2, warmup_steps=4)
OFFLOADED = replace(RESIDENT, offload=True)
MESHES = [MeshConfig(data=1, fsdp=4), MeshConfig(data=2, tensor=2)]


@pytest.fixture(params=MESHES, ids=["fsdp", "data_tensor"])
def mesh(request):
    mesh = make_mesh(request.param, jax.devices()[:4])
    with jax.set_mesh(mesh):
        yield mesh


def batch(step: int) -> dict:
    tokens = np.random.default_rng(step).integers(0, 32, (4, 12)).astype(np.int32)
    ones = np.ones_like(tokens)
    return {"tokens": tokens, "segment_ids": ones, "mask": ones.astype(np.float32)}


def train(config: OptimizerConfig, mesh, steps: int, state=None):
    """(parameters, state) after the updates `steps`, from a fresh start or from `state`."""
    graphdef, _ = abstract_model(MODEL)
    optimizer = make_optimizer(config)
    if state is None:
        params = init_params(MODEL, jax.random.key(0), mesh)
        state = params, init_optimizer(optimizer, params, mesh, config.offload)
    params, opt_state = state
    for step in range(steps):
        params, opt_state, _ = supervised_update(
            params, opt_state, batch(step), graphdef=graphdef, optimizer=optimizer
        )
    return params, opt_state


def kinds(tree) -> set[tuple[bool, str]]:
    """(is it an array with axes, the kind of its memory) of every leaf."""
    return {(leaf.ndim > 0, leaf.sharding.memory_kind) for leaf in jax.tree.leaves(tree)}


def assert_equal(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_an_offloaded_state_gives_the_same_updates_bit_for_bit(mesh):
    assert_equal(train(RESIDENT, mesh, 3), train(OFFLOADED, mesh, 3))


def test_moments_lie_on_the_host_before_and_after_an_update_and_the_rest_does_not(mesh):
    for steps in (0, 2):
        params, opt_state = train(OFFLOADED, mesh, steps)
        assert kinds(opt_state) == {(True, "pinned_host"), (False, "device")}
        assert kinds(params) == {(True, "device")}
        assert float(learning_rate(OFFLOADED, opt_state)) == pytest.approx(1e-2 * max(steps, 1) / 4)


def test_moments_are_cut_over_the_mesh_as_their_parameters_are():
    mesh = make_mesh(MeshConfig(data=1, fsdp=4), jax.devices()[:4])
    with jax.set_mesh(mesh):
        params, opt_state = train(OFFLOADED, mesh, 1)
    largest = max(jax.tree.leaves(params), key=lambda leaf: leaf.size)
    moments = [x for x in jax.tree.leaves(opt_state) if x.shape == largest.shape]
    assert len(moments) >= 2
    assert all(m.addressable_shards[0].data.size == largest.size // 4 for m in moments)


@pytest.mark.parametrize("then", [RESIDENT, OFFLOADED], ids=["resident", "offloaded"])
def test_a_checkpoint_of_an_offloaded_state_continues_on_host_or_device(then, mesh, tmp_path):
    state = train(OFFLOADED, mesh, 2)
    with checkpoint.open_checkpoints(tmp_path, CheckpointConfig()) as manager:
        checkpoint.save(manager, 2, state, {})
        manager.wait_until_finished()
        restored, *_ = checkpoint.restore(manager, 2, train(then, mesh, 0))
    assert kinds(restored[1]) == {
        (True, "pinned_host" if then.offload else "device"),
        (False, "device"),
    }
    assert_equal(restored, state)
    assert_equal(train(then, mesh, 1, restored), train(OFFLOADED, mesh, 1, state))


def test_a_platform_without_such_memory_is_refused_in_one_line(monkeypatch):
    mesh = make_mesh(MeshConfig(data=1, fsdp=4), jax.devices()[:4])
    monkeypatch.setattr("mmrl.training.state.HOST_MEMORY", "host_of_another_platform")
    params = init_params(MODEL, jax.random.key(0), mesh)
    with pytest.raises(UserError, match="optimizer.offload needs .*pinned_host.*False"):
        init_optimizer(make_optimizer(OFFLOADED), params, mesh, True)


@pytest.mark.skipif(not tpu_schedule.available(), reason=tpu_schedule.REMEDY)
def test_compiled_for_tpus_the_state_is_an_argument_in_host_memory(monkeypatch):
    """Of a v5e program: the bytes of both moments, a device's quarter, move off the device."""
    for name in ("TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD"):
        monkeypatch.setenv(name, "1")
    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
    mesh = make_mesh(MeshConfig(data=1, fsdp=4), devices)
    graphdef, params = abstract_model(MODEL)

    def compiled(config: OptimizerConfig):
        optimizer = make_optimizer(config)
        opt_state, places = optimizer_places(optimizer, params, mesh, config.offload)
        arguments = at(params, shardings(params, mesh)), at(opt_state, places)
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch(0))
        with jax.set_mesh(mesh):
            lowered = supervised_update.lower(
                *arguments, shapes, graphdef=graphdef, optimizer=optimizer
            )
        return lowered.compile().memory_analysis(), opt_state

    resident, _ = compiled(RESIDENT)
    offloaded, opt_state = compiled(OFFLOADED)
    quarter = sum(4 * x.size for x in jax.tree.leaves(opt_state) if x.ndim) // 4
    assert resident.host_argument_size_in_bytes == 0
    assert offloaded.host_argument_size_in_bytes >= quarter
    assert offloaded.host_output_size_in_bytes >= quarter
    freed = resident.argument_size_in_bytes - offloaded.argument_size_in_bytes
    assert freed >= quarter


def at(shapes: nnx.State, places):
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes, places
    )
