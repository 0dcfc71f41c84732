"""The programs that a plan compiles are those that run, and its memory is what XLA says."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from mmrl import config as configs
from mmrl.errors import UserError
from mmrl.plan.buffers import memory
from mmrl.plan.compiler import compile_program, environment
from mmrl.plan.devices import parse_topology
from mmrl.plan.hlo import collectives
from mmrl.plan.programs import lower, parameters, rollout_prompts
from mmrl.rollout import generate
from mmrl.sharding import MeshConfig, make_mesh, resolve
from mmrl.training.optimizer import make_optimizer
from mmrl.training.state import abstract_model, init_optimizer, init_params, split_trained
from mmrl.training.update import policy_update
from pallas_kernels import gpu_compiler, tpu_schedule

CONFIG = configs.load(Path(__file__).parents[1] / "configs" / "small_plan.py")


def on(mesh: MeshConfig):
    return dataclasses.replace(CONFIG, mesh=mesh)


def stats(compiled):
    """XLA's own (arguments, outputs that replace no argument, temporaries)."""
    found = compiled.memory_analysis()
    outputs = found.output_size_in_bytes - found.alias_size_in_bytes
    return found.argument_size_in_bytes, outputs, found.temp_size_in_bytes


@pytest.mark.parametrize("name", ["reshard", "rollout", "update"])
def test_memory_of_a_program_is_that_of_xlas_own_analysis(name):
    program = compile_program(
        name, on(MeshConfig(data=1, fsdp=2, tensor=2)), parse_topology("cpu:4")
    )
    mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=2), jax.devices()[:4])
    expected = stats(lower(name, CONFIG, mesh).compile())
    found = program.memory
    # XLA counts the table of a tuple's pointers with its outputs.
    assert (found.arguments, found.temporaries) == (expected[0], expected[2])
    assert found.outputs == pytest.approx(expected[1], abs=1024)
    assert sum(buffer.bytes for buffer in found.largest) <= found.temporaries
    assert program.lower_seconds > 0 and program.compile_seconds > 0
    assert program.host_bytes > 1 << 26


def test_the_update_that_is_planned_is_the_one_that_runs():
    """Lowered from shapes or called with the arrays of a rollout: the same program."""
    mesh = make_mesh(MeshConfig(data=1, fsdp=2), jax.devices()[:2])
    planned = lower("update", CONFIG, mesh).as_text()
    with jax.set_mesh(mesh):
        params, frozen = split_trained(init_params(CONFIG.model, jax.random.key(0), mesh))
        optimizer = make_optimizer(CONFIG.optimizer)
        graphdef, _ = abstract_model(CONFIG.model)
        prompts = jnp.ones((8, 16), jnp.int32), jnp.full((8,), 16)
        model = nnx.merge(graphdef, params, frozen)
        rollout = generate(model, prompts, CONFIG.sampling, jax.random.key(1), layout="decode")
        ran = policy_update.lower(
            params,
            init_optimizer(optimizer, params, mesh),
            rollout.arrays(),
            {},
            frozen=frozen,
            graphdef=graphdef,
            optimizer=optimizer,
            objective=CONFIG.objective,
            temperature=1.0,
            micro_batches=1,
        ).as_text()
    assert count(planned) == count(ran)


def count(text: str) -> dict[str, int]:
    names = ("stablehlo.dot_general", "stablehlo.while", "stablehlo.add", "stablehlo.gather")
    return {name: text.count(name) for name in names}


def test_a_reshard_only_moves_and_is_left_out_where_nothing_moves():
    mesh = make_mesh(MeshConfig(data=1, fsdp=4), jax.devices()[:4])
    text = lower("reshard", CONFIG, mesh).compile().as_text()
    assert collectives(text) and " dot(" not in text and " while(" not in text
    assert lower("reshard", CONFIG, make_mesh(MeshConfig(data=4), jax.devices()[:4])) is None


def test_parameters_lie_where_the_layout_has_them():
    mesh = make_mesh(MeshConfig(data=1, fsdp=4), jax.devices()[:4])
    shapes = {
        layout: {
            x.sharding.shard_shape(x.shape)
            for x in jax.tree.leaves(parameters(CONFIG, mesh, layout))
        }
        for layout in ("train", "decode")
    }
    assert (2, 4, 16, 96) in shapes["train"]  # experts' embed axis of 64 over 4
    assert (2, 4, 64, 24) in shapes["decode"]  # their width of 96 over 4


def test_a_share_of_memory_for_the_cache_bounds_the_prompts_at_once():
    mesh = make_mesh(MeshConfig(data=2), jax.devices()[:2])
    config = dataclasses.replace(CONFIG, cache_memory_fraction=0.5)
    assert rollout_prompts(CONFIG, mesh, 1.0) == 8
    row = rollout_prompts(config, mesh, 1e9)
    few = rollout_prompts(config, mesh, 3e5)
    assert row == 8 and few == 2


def test_a_mesh_has_all_sizes_once_the_devices_are_known():
    assert resolve(MeshConfig(data=1, fsdp=-1, tensor=2), 8) == MeshConfig(1, 4, 1, 1, 2)
    with pytest.raises(ValueError, match="needs 3 devices"):
        resolve(MeshConfig(data=3), 8)


def test_a_missing_compiler_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setattr(tpu_schedule, "available", lambda: False)
    monkeypatch.setattr(gpu_compiler, "available", lambda: False)
    with pytest.raises(UserError, match="pip install libtpu"):
        environment(parse_topology("v5e:2x2"))
    with pytest.raises(UserError, match="python -m pallas_kernels.gpu_compiler"):
        environment(parse_topology("h100:8"))


def test_buffers_of_other_memory_spaces_do_not_count():
    text = "\n".join(
        [
            "BufferAssignment:",
            "allocation 0: size 100, parameter 0, shape |f32[25]| at ShapeIndex {}:",
            "allocation 1: size 40, parameter 1, shape |f32[10]| at ShapeIndex {}, maybe-live-out:",
            "allocation 2: size 8, maybe-live-out:",
            "allocation 3: size 4, constant:",
            "allocation 4: size 999, color 1, preallocated-temp:",
            " value: <9 vmem{0} @0> (size=999,offset=0): f32[1]{0}",
            "allocation 5: size 70, preallocated-temp:",
            " value: <5 big.1 @0> (size=40,offset=0): f32[10]{0}",
            " value: <6 same.place @0> (size=36,offset=4): f32[9]{0}",
            " value: <7 beside @0> (size=24,offset=40): bf16[12]{0}",
            "",
            "Total bytes used: 1",
        ]
    )
    program = '  %big.1 = f32[10] add(), metadata={op_name="jit(f)/while/body/mlp/mul"}'
    found = memory(text, program)
    assert (found.arguments, found.outputs, found.temporaries, found.total) == (140, 8, 70, 218)
    named = [(b.bytes, b.shape, b.operation) for b in found.largest]
    assert named == [(40, "f32[10]", "mlp/mul"), (24, "bf16[12]", "beside")]


@pytest.mark.skipif(not tpu_schedule.available(), reason=tpu_schedule.REMEDY)
@pytest.mark.slow
def test_a_tpu_program_is_planned_before_its_code_is_made():
    topology = parse_topology("v5e:2x2")
    config = dataclasses.replace(
        on(MeshConfig(data=1, fsdp=2, tensor=2)),
        model=dataclasses.replace(CONFIG.model, dtype="bfloat16"),
    )
    for name in ("reshard", "rollout", "update"):
        program = compile_program(name, config, topology)
        assert program.memory.arguments > 0 and program.collectives
    # What the update holds: parameters, both moments and the rollout.
    mesh = make_mesh(config.mesh, jax.devices()[:4])
    on_cpu = lower("update", config, mesh).compile().memory_analysis().argument_size_in_bytes
    # A TPU pads arrays to whole tiles, and these are small.
    assert on_cpu <= program.memory.arguments <= 4 * on_cpu


@pytest.mark.skipif(not gpu_compiler.available(), reason=gpu_compiler.REMEDY)
@pytest.mark.slow
def test_a_gpu_program_is_planned():
    program = compile_program("update", on(MeshConfig(data=1, fsdp=4)), parse_topology("h100:4"))
    kinds = {c.kind for c in program.collectives if c.devices > 1}
    assert {"all-gather", "reduce-scatter"} <= kinds | {"all-reduce"} and "all-gather" in kinds
