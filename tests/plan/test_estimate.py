"""A step on a mesh: bytes against sharded arrays, times against hand arithmetic."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from mmrl import config as configs
from mmrl.chips import GIB
from mmrl.models import DecoderConfig, LoraConfig
from mmrl.plan.arithmetic import Workload, decode_flops, forward_flops, step_flops
from mmrl.plan.device_bytes import Step, device_bytes, loop_weights, parameter_bytes
from mmrl.plan.devices import parse_topology
from mmrl.plan.estimate import phases, step_cost
from mmrl.plan.memory import cache_bytes, parameter_shapes
from mmrl.plan.predict import make_plan
from mmrl.plan.roofline import Efficiency
from mmrl.sharding import MeshConfig, layout, make_mesh, shardings

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
ROOT = Path(__file__).parents[2]
LONG = {"sampling.max_new_tokens": "32768"}
FOR_H100 = {
    "mesh.data": "2",
    "mesh.fsdp": "32",
    "mesh.expert": "4",
    "mesh.tensor": "2",
    "micro_batches": "1",
}
WIDE = {"mesh.fsdp": "2", "mesh.tensor": "4", "micro_batches": "32", "model.remat": "products"}
WORK = Workload(prompts=16, group_size=4, prompt_length=10, response_length=30)
EVERYTHING = Efficiency(compute=1.0, memory=1.0, network=1.0, latency=0.0)


def named(step: Step):
    return {phase.name: phase for phase in phases(step)}


@pytest.mark.parametrize("rules", ["train", "decode"])
@pytest.mark.parametrize(
    "mesh",
    [
        MeshConfig(data=1, fsdp=4, tensor=2),
        MeshConfig(data=2, expert=4),
        MeshConfig(data=1, fsdp=2, expert=2, tensor=2),
    ],
)
def test_parameters_of_a_device_are_its_shards(mesh, rules):
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), parameter_shapes(CONFIG))
    with layout(rules):
        placed = jax.device_put(params, shardings(params, make_mesh(mesh)))
    on_first = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(placed))
    assert parameter_bytes(CONFIG, mesh, rules) == on_first


def test_a_device_holds_its_share_of_rows_tokens_and_heads():
    mesh = MeshConfig(data=2, fsdp=2, sequence=3, tensor=2)
    found = device_bytes(Step(CONFIG, WORK, mesh, micro_batches=4, updates=4))
    # The inputs of two layers of 16 responses and of 4 prompts, whose 10 tokens 3 does not divide;
    # the prompts' cache and its gradient, with the states that the responses start from.
    tokens = 16 * 30 / (2 * 2) / 3 + 4 * 10 / (2 * 2)
    remembered = (4 * cache_bytes(CONFIG, 10) + 16 * cache_bytes(CONFIG, 0)) / (2 * 2) / 2
    assert found.activations == 2 * tokens * 8 / 2 * 4 + 2 * remembered
    # In the sampler rows of a cache are cut over data, sequence (3 divides no 64) and fsdp.
    rows, prompts = cache_bytes(CONFIG, 30) * 64, cache_bytes(CONFIG, 10) * 16
    assert found.cache == (rows + prompts) / 2 / 2
    assert found.optimizer == 2 * found.gradients == 2 * found.parameters


def test_rows_that_the_mesh_does_not_divide_are_cut_over_the_axes_that_do():
    mesh = MeshConfig(data=2, fsdp=4)

    def kept(prompts: int) -> float:
        work = dataclasses.replace(WORK, prompts=prompts, group_size=1)
        return device_bytes(Step(CONFIG, work, mesh)).activations

    # Rows of a micro-batch, prompts and responses alike, by all that one keeps.
    row = 2 * (30 + 10) * 8 * 4 + 2 * (cache_bytes(CONFIG, 10) + cache_bytes(CONFIG, 0))
    assert kept(6) == 6 / 2 * row
    assert kept(15) == 15 * row


COMPILED = {
    # GiB a device of `python -m mmrl.plan`'s compiled update and rollout, 32K tokens of M1 and M2.
    "M2 on 512 v5p": ("minimax_m2", "v5p:8x8x8", LONG, 29.45, 79.60),
    "M1 on 512 v5p": ("minimax_m1", "v5p:8x8x8", LONG, 46.06, 46.11),
    "M1 on 512 H100s": ("minimax_m1", "h100:512", LONG, 50.50, 44.57),
    "M2 on 512 H100s": ("minimax_m2", "h100:512", LONG | FOR_H100, 77.53, 54.98),
    "Qwen2.5-7B on 8 H100s": ("qwen2_5_7b", "h100:8", WIDE, 49.49, 29.15),
}


@pytest.mark.parametrize("name", COMPILED)
def test_arithmetic_is_close_to_the_compiled_programs(name):
    """Not 15% below, for what compilers add, nor 2% above, else a search drops what fits."""
    file, topology, changes, update, rollout = COMPILED[name]
    config = configs.override(configs.load(ROOT / "configs" / f"{file}.py"), changes)
    needed = make_plan(config, parse_topology(topology), compiled=False).needed
    for program, compiled in (("update", update), ("rollout", rollout)):
        assert 0.85 <= needed[program] / GIB / compiled <= 1.02, program


def test_adapters_alone_have_gradients_and_moments():
    config = dataclasses.replace(CONFIG, lora=LoraConfig(rank=2, targets=("q",)))
    found = device_bytes(Step(config, WORK, MeshConfig(data=1)))
    adapters = 1 * (8 * 2 + 2 * 4 * 4) * 4
    assert (found.gradients, found.optimizer) == (adapters, 2 * adapters)


def test_micro_batches_add_to_gradients_of_their_own():
    mesh = MeshConfig(data=1)
    once, summed = (device_bytes(Step(CONFIG, WORK, mesh, n)).gradients for n in (1, 2))
    assert summed == 2 * once


def test_fsdp_gathers_twice_and_scatters_once_a_micro_batch():
    mesh = MeshConfig(data=1, fsdp=8)
    step = Step(CONFIG, WORK, mesh, micro_batches=2)
    update = step_cost(step, parse_topology("h100:8"), efficiency=EVERYTHING).phases[-1]
    whole = parameter_bytes(CONFIG, MeshConfig(data=1))
    assert update.network == pytest.approx(2 * 3 * whole * 7 / 8 / 450e9)
    flops = step_flops(CONFIG, WORK)["update"]
    fast = (flops.total - flops.router - flops.head) / 989e12
    assert update.compute == pytest.approx((fast + (flops.router + flops.head) / 67e12) / 8)


def test_weights_are_gathered_in_the_compute_dtype():
    narrow = dataclasses.replace(CONFIG, dtype="bfloat16")
    mesh = MeshConfig(data=1, fsdp=8)
    sent = [named(Step(config, WORK, mesh))["update"].sent[0].bytes for config in (CONFIG, narrow)]
    assert sent[1] == pytest.approx(sent[0] * 2 / 3)


def test_each_axis_sends_its_part():
    mesh = MeshConfig(data=2, fsdp=2, expert=2, tensor=2)
    update = named(Step(CONFIG, WORK, mesh))["update"]
    gathered = parameter_bytes(CONFIG, dataclasses.replace(mesh, fsdp=1))
    tokens = 3 * (64 * 30 + 16 * 10) / 8  # of a device, in three passes
    activations, layers = tokens * 8 * 4, 2
    assert [x.bytes for x in update.sent] == [
        pytest.approx(3 * gathered / 2),
        pytest.approx(2 * 2 * layers * activations / 2),
        pytest.approx(2 * 2 * layers * activations / 2),
        0.0,
        pytest.approx(2 * parameter_bytes(CONFIG, mesh) / 2),
    ]
    # Of 16 devices in the order of the axes, tensor's are neighbours and data's eight apart.
    assert [x.span for x in update.sent] == [8, 2, 4, 1, 16]


def test_decoding_reads_all_weights_and_its_cache_each_token():
    config = dataclasses.replace(CONFIG, num_experts=0)
    decode = named(Step(config, WORK, MeshConfig(data=1)))["decode"]
    weights = parameter_bytes(config, MeshConfig(data=1))
    states = 64 * 4 * 4 * 4 * 4  # one lightning layer, read and written
    at_middle = 64 * (cache_bytes(config, 25))
    assert decode.hbm_bytes == pytest.approx(30 * (weights + states + at_middle), rel=1e-6)


def test_decoding_reads_a_copy_of_the_layers_where_it_makes_one():
    """In the compute dtype where that differs, and layer by layer on GPUs."""
    mesh = MeshConfig(data=1, tensor=2)
    layers = parameter_bytes(CONFIG, mesh) - 2 * 16 * 8 * 4 / 2 - 8 * 4
    router = 2 * 8 * 4 * 4  # stays in float32
    narrow = Step(dataclasses.replace(CONFIG, dtype="bfloat16"), WORK, mesh)
    assert loop_weights(narrow) == (layers - router) / 2 + router
    assert loop_weights(Step(CONFIG, WORK, mesh)) == 0
    assert loop_weights(Step(CONFIG, WORK, mesh, platform="gpu")) == layers
    without = dataclasses.replace(CONFIG, loop_copies=False)
    assert loop_weights(Step(without, WORK, mesh, platform="gpu")) == 0
    held, as_stored = device_bytes(narrow), device_bytes(Step(CONFIG, WORK, mesh))
    assert held.rollout_parameters == as_stored.rollout_parameters
    saved = 30 * (layers - loop_weights(narrow))
    decode, wide = named(narrow)["decode"], named(Step(CONFIG, WORK, mesh))["decode"]
    assert wide.hbm_bytes - decode.hbm_bytes >= 0.9 * saved


def test_the_sampler_leaves_weights_where_they_are_and_sends_activations():
    mesh = MeshConfig(data=1, fsdp=4)
    found = named(Step(CONFIG, WORK, mesh))
    a_token = 64 * 8 * 4  # activations of all rows: the sampler does not cut them over fsdp
    expected = 30 * 2 * 2 * (2 * a_token * 3 / 4)  # layers, sums a layer
    assert sum(x.bytes for x in found["decode"].sent) == pytest.approx(expected)
    assert found["decode"].flops == pytest.approx(
        decode_flops(CONFIG, 64, 30, context=10).total / 4,
        rel=0.3,  # the router runs on every device
    )
    assert set(found) == {"reshard", "prefill", "decode", "update"}
    assert set(named(Step(CONFIG, WORK, MeshConfig(data=4)))) == {"prefill", "decode", "update"}


def test_more_batches_of_a_rollout_hold_less_and_read_more():
    mesh = MeshConfig(data=2)
    one, four = (Step(CONFIG, WORK, mesh, rollout_batches=n) for n in (1, 4))
    assert device_bytes(four).cache == device_bytes(one).cache / 4
    assert named(four)["decode"].hbm_bytes > named(one)["decode"].hbm_bytes
    assert named(four)["prefill"].flops == pytest.approx(named(one)["prefill"].flops)
    assert named(one)["prefill"].flops == forward_flops(CONFIG, 16, 10, head=False).total / 2
