"""A step on a mesh: bytes against sharded arrays, times against hand arithmetic."""

import dataclasses

import jax
import numpy as np
import pytest

from mmrl.models import DecoderConfig, LoraConfig
from mmrl.plan.arithmetic import Workload, step_flops
from mmrl.plan.devices import parse_topology
from mmrl.plan.estimate import Step, device_bytes, sharded_bytes, step_cost
from mmrl.plan.memory import cache_bytes, parameter_shapes
from mmrl.plan.roofline import Efficiency
from mmrl.sharding import MeshConfig, make_mesh, shardings

CONFIG = DecoderConfig(
    vocab_size=16,
    hidden_size=8,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
    intermediate_size=12,
    layer_pattern=("lightning", "softmax"),
    num_experts=4,
    remat="full",
)
WORK = Workload(prompts=16, group_size=4, prompt_length=10, response_length=30)
EVERYTHING = Efficiency(compute=1.0, memory=1.0, network=1.0)


@pytest.mark.parametrize(
    "mesh",
    [
        MeshConfig(data=1, fsdp=4, tensor=2),
        MeshConfig(data=2, expert=4),
        MeshConfig(data=1, fsdp=2, expert=2, tensor=2),
    ],
)
def test_parameters_of_a_device_are_its_shards(mesh):
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), parameter_shapes(CONFIG))
    placed = jax.device_put(params, shardings(params, make_mesh(mesh)))
    on_first = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(placed))
    assert sharded_bytes(parameter_shapes(CONFIG), mesh) == on_first


def test_a_device_holds_its_share_of_rows_tokens_heads_and_vocabulary():
    mesh = MeshConfig(data=2, fsdp=2, sequence=3, tensor=2)
    found = device_bytes(Step(CONFIG, WORK, mesh, micro_batches=4))
    tokens = 16 * 4 * 30 / 4 / (2 * 2) / 3
    assert found.activations == 2 * tokens * 8 * 4
    assert found.logits == tokens * 16 / 2 * 4
    rows, prompts = cache_bytes(CONFIG, 30) * 64, cache_bytes(CONFIG, 10) * 16
    assert found.cache == (rows + prompts) / 4 / 2
    assert found.optimizer == 2 * found.gradients == 2 * found.parameters


def test_rows_that_the_mesh_does_not_divide_stay_whole():
    mesh = MeshConfig(data=1, fsdp=8)
    divided = device_bytes(Step(CONFIG, WORK, mesh))
    odd = device_bytes(Step(CONFIG, dataclasses.replace(WORK, prompts=15, group_size=1), mesh))
    assert odd.logits == 15 * 30 * 16 * 4 and divided.logits == 64 * 30 * 16 * 4 / 8


def test_adapters_alone_have_gradients_and_moments():
    config = dataclasses.replace(CONFIG, lora=LoraConfig(rank=2, targets=("q",)))
    found = device_bytes(Step(config, WORK, MeshConfig(data=1)))
    adapters = 1 * (8 * 2 + 2 * 4 * 4) * 4
    assert (found.gradients, found.optimizer) == (adapters, 2 * adapters)


def test_fsdp_gathers_twice_and_scatters_once_a_micro_batch():
    mesh = MeshConfig(data=1, fsdp=8)
    (_, _, update) = step_cost(
        Step(CONFIG, WORK, mesh, micro_batches=2), parse_topology("h100:8"), efficiency=EVERYTHING
    ).phases
    whole = sharded_bytes(parameter_shapes(CONFIG), MeshConfig(data=1))
    assert update.network == pytest.approx(2 * 3 * whole * 7 / 8 / 450e9)
    flops = step_flops(CONFIG, WORK)["update"]
    fast = (flops.total - flops.router - flops.head) / 989e12
    assert update.compute == pytest.approx((fast + (flops.router + flops.head) / 67e12) / 8)


def test_axes_of_equal_size_all_send():
    mesh = MeshConfig(data=2, fsdp=2, expert=2, tensor=2)
    step = Step(CONFIG, WORK, mesh)
    (_, decode, update) = step_cost(step, parse_topology("h100:16"), efficiency=EVERYTHING).phases
    gathered = sharded_bytes(parameter_shapes(CONFIG), dataclasses.replace(mesh, fsdp=1))
    a_token = 8 * 4 / 8  # activations of a token, over 8 devices of rows
    layers = 2
    tokens = 64 * 30
    reduced = layers * 2 * 2 * tokens * a_token / 2
    exchanged = layers * 2 * 2 * tokens * a_token / 2
    assert decode.network == pytest.approx((30 * gathered / 2 + reduced + exchanged) / 450e9)
    own = sharded_bytes(parameter_shapes(CONFIG), mesh)
    passed = 3 * (tokens + 16 * 10) / tokens
    rest = passed * (reduced + exchanged)
    assert update.network == pytest.approx((3 * gathered / 2 + rest + 2 * own / 2) / 450e9)


def test_decoding_reads_all_weights_and_its_cache_each_token():
    config = dataclasses.replace(CONFIG, num_experts=0)
    (_, decode, _) = step_cost(
        Step(config, WORK, MeshConfig(data=1)), parse_topology("h100:1"), efficiency=EVERYTHING
    ).phases
    weights = sharded_bytes(parameter_shapes(config), MeshConfig(data=1))
    states = 64 * 4 * 4 * 4 * 4  # one lightning layer, read and written
    at_middle = 64 * (cache_bytes(config, 25))
    assert decode.memory == pytest.approx(30 * (weights + states + at_middle) / 3350e9, rel=1e-6)


def test_a_rollout_on_its_own_mesh_gathers_nothing_but_is_sent_its_weights():
    train, rollout = MeshConfig(data=1, fsdp=8), MeshConfig(data=4, tensor=2)
    topology = parse_topology("h100:8")
    alone = step_cost(Step(CONFIG, WORK, train), topology)
    both = step_cost(Step(CONFIG, WORK, train, rollout), topology)
    assert [phase.name for phase in both.phases] == ["reshard", "prefill", "decode", "update"]
    assert both.phases[-1] == alone.phases[-1]
    part = sharded_bytes(parameter_shapes(CONFIG), rollout)
    assert both.phases[0].network == pytest.approx(part / 450e9 / 0.8)
    assert device_bytes(Step(CONFIG, WORK, train, rollout)).rollout_parameters == part
    no_gather = Step(CONFIG, WORK, MeshConfig(data=8), MeshConfig(data=8))
    assert step_cost(no_gather, topology).phases[1].network == 0
