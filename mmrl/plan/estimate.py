"""Bytes and times of an RL step on a mesh by arithmetic alone, to prune with before compiling.

A lower bound of what a device holds and of how long it takes: compiled programs keep temporaries
and move activations that are not counted here. Weights are cut by the rules of `mmrl.sharding`;
the rest follows the layout that those rules ask for:

- `data`, `fsdp`, `expert` cut rows where they divide them, `sequence` tokens, `tensor` heads, MLP
  and vocabulary.
- FSDP gathers every weight for the forward pass and again for the backward pass of each
  micro-batch, scatters the gradients, and gathers every weight for each token that is decoded.
- A tensor-parallel layer has two all-reduces of its activations each pass; an expert-parallel one
  two all-to-alls, of the rows that go to other devices' experts.
- With `remat` the input of each layer is kept, and the forward pass is run again.
- A rollout on a mesh of its own first sends each device its part of the weights.
"""

import dataclasses
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AbstractMesh, NamedSharding

from mmrl.models import DecoderConfig
from mmrl.plan.arithmetic import Flops, Workload, step_flops
from mmrl.plan.devices import Topology
from mmrl.plan.memory import cache_bytes, parameter_shapes, weights_read
from mmrl.plan.roofline import Cost, Efficiency, Phase, all_gather_sent, cost
from mmrl.sharding import MeshConfig, spec


@dataclass(frozen=True)
class DeviceBytes:
    """Bytes that one device holds; `activations` and `logits` are those of one micro-batch."""

    parameters: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    rollout_parameters: float
    cache: float

    @property
    def update(self) -> float:
        """All that an update holds at once."""
        state = self.parameters + self.gradients + self.optimizer
        return state + self.activations + self.logits

    @property
    def rollout(self) -> float:
        """All that a rollout holds at once; the optimizer's state waits."""
        return self.rollout_parameters + self.optimizer + self.cache

    @property
    def peak(self) -> float:
        return max(self.update, self.rollout)


@dataclass(frozen=True)
class Step:
    """An RL step to estimate; all mesh sizes are positive.

    `micro_batches` are those of all the updates on a rollout together, `updates` how often the
    optimizer runs. The rollout has `mesh` too unless it has a `rollout_mesh` of its own.
    """

    config: DecoderConfig
    work: Workload
    mesh: MeshConfig
    rollout_mesh: MeshConfig | None = None
    micro_batches: int = 1
    updates: int = 1

    @property
    def rollout(self) -> MeshConfig:
        return self.rollout_mesh or self.mesh

    @property
    def micro_batch(self) -> Workload:
        return dataclasses.replace(
            self.work, prompts=max(self.work.prompts // self.micro_batches, 1)
        )


def step_cost(
    step: Step,
    topology: Topology,
    *,
    steps: int = 1,
    dollars_per_hour: float | None = None,
    efficiency: Efficiency | None = None,
) -> Cost:
    """Time and dollars of `steps` such steps on the slice."""
    phases = [*_rollout_phases(step), _update_phase(step)]
    if step.rollout != step.mesh:
        phases.insert(0, _reshard_phase(step))
    useful = step_flops(step.config, step.work, recompute=False)
    return cost(
        phases,
        topology,
        tokens=step.work.response_tokens,
        model_flops=sum(flops.total for flops in useful.values()),
        steps=steps,
        dollars_per_hour=dollars_per_hour,
        efficiency=efficiency,
    )


def device_bytes(step: Step) -> DeviceBytes:
    """What one device holds in the step."""
    config, work, one, mesh = step.config, step.work, step.micro_batch, step.mesh
    params = parameter_shapes(config)
    trained = params if config.lora is None else nnx.filter_state(params, nnx.LoRAParam)
    tokens = one.response_tokens / row_shards(mesh, one.rows) / mesh.sequence
    kept = config.num_layers if config.remat != "none" else 0
    return DeviceBytes(
        parameters=sharded_bytes(params, mesh),
        gradients=sharded_bytes(trained, mesh),
        optimizer=2 * sharded_bytes(trained, mesh),
        activations=kept * tokens * config.hidden_size * jnp.dtype(config.dtype).itemsize,
        logits=tokens * config.vocab_size / mesh.tensor * 4,
        rollout_parameters=sharded_bytes(params, step.rollout),
        cache=_cache(step, work.rows, work.response_length)
        + _cache(step, work.prompts, work.prompt_length),
    )


def row_shards(mesh: MeshConfig, rows: int) -> int:
    """Devices that rows are cut over: those of all the batch's mesh axes, or one."""
    shards = mesh.data * mesh.fsdp * mesh.expert
    return 1 if rows % shards else shards


def sharded_bytes(tree: nnx.State, mesh: MeshConfig) -> float:
    """Bytes of one device's part of the parameters, by the rules of `mmrl.sharding`."""
    sizes = dataclasses.asdict(mesh)
    abstract = AbstractMesh(tuple(sizes.values()), tuple(sizes))
    total = 0.0
    for leaf in jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, nnx.Variable)):
        array, axes = leaf.get_value(), leaf.get_metadata("axes")
        part = NamedSharding(abstract, spec(axes, array.shape, abstract)).shard_shape(array.shape)
        total += math.prod(part) * array.dtype.itemsize
    return total


def _gathered_bytes(config: DecoderConfig, mesh: MeshConfig) -> float:
    """Bytes of a device's part of the parameters after FSDP's gather."""
    return sharded_bytes(parameter_shapes(config), dataclasses.replace(mesh, fsdp=1))


def _cache(step: Step, rows: int, slots: int) -> float:
    """Bytes of a device's part of a cache."""
    heads = step.config.num_kv_heads
    parts = step.rollout.tensor if heads % step.rollout.tensor == 0 else 1
    return cache_bytes(step.config, slots) * rows / row_shards(step.rollout, rows) / parts


def _phase(
    name: str,
    step: Step,
    mesh: MeshConfig,
    flops: Flops,
    *,
    rows: int,
    hbm_bytes: float,
    gathers: float,
    tokens: float,
    reduced: float = 0.0,
) -> Phase:
    """One device's part of a phase.

    `gathers` is how often all weights are gathered or scattered, `tokens` how many pass through the
    layers, every pass counted, `reduced` the bytes that are summed over the data axis.
    """
    config = step.config
    parts = row_shards(mesh, rows) * mesh.sequence
    share = flops * (1 / (parts * mesh.tensor))
    activations = tokens / parts * config.hidden_size * jnp.dtype(config.dtype).itemsize
    to_experts = 2 * config.num_layers * config.experts_per_token * activations
    weights = _gathered_bytes(config, mesh)
    sent = (
        (mesh.fsdp, gathers * all_gather_sent(weights, mesh.fsdp)),
        (mesh.tensor, 4 * config.num_layers * all_gather_sent(activations, mesh.tensor)),
        (mesh.expert, all_gather_sent(to_experts, mesh.expert) if config.num_experts else 0.0),
        (mesh.data, 2 * all_gather_sent(reduced, mesh.data)),
    )
    return Phase(name, share.total, hbm_bytes, share.float32, sent)


def _rollout_phases(step: Step) -> list[Phase]:
    config, work, mesh = step.config, step.work, step.rollout
    flops = step_flops(config, work)
    weights = _gathered_bytes(config, mesh)
    length, rows = work.response_length, work.rows
    # Experts that no row chose are not read; a step of many rows reads all weights.
    read = weights_read(config, rows) / weights_read(config, 1_000_000)
    states = _cache(step, rows, 0)
    cache = states + _cache(step, rows, work.prompt_length + length // 2)
    prefill = _phase(
        "prefill",
        step,
        mesh,
        flops["prefill"],
        rows=work.prompts,
        hbm_bytes=weights,
        gathers=1,
        tokens=work.prompts * work.prompt_length,
    )
    decode = _phase(
        "decode",
        step,
        mesh,
        flops["decode"],
        rows=rows,
        hbm_bytes=length * (read * weights + cache),
        gathers=length,
        tokens=work.response_tokens,
    )
    return [prefill, decode]


def _update_phase(step: Step) -> Phase:
    config, work, mesh = step.config, step.work, step.mesh
    memory = device_bytes(step)
    passes = 2 if config.remat == "none" else 3
    # AdamW reads parameter, gradient and two moments, and writes all but the gradient.
    optimizer = 3 * memory.gradients + 2 * memory.optimizer
    return _phase(
        "update",
        step,
        mesh,
        step_flops(config, work)["update"],
        rows=step.micro_batch.rows,
        hbm_bytes=step.micro_batches * (passes + 1) * _gathered_bytes(config, mesh)
        + step.updates * optimizer,
        gathers=3 * step.micro_batches,
        tokens=passes * (work.prompts * work.prompt_length + work.response_tokens),
        reduced=step.updates * memory.gradients,
    )


def _reshard_phase(step: Step) -> Phase:
    """Each device gets its part of the weights by the rollout's layout from the others."""
    arriving = sharded_bytes(parameter_shapes(step.config), step.rollout)
    mesh = step.mesh
    devices = mesh.data * mesh.fsdp * mesh.expert * mesh.sequence * mesh.tensor
    return Phase("reshard", 0.0, 2 * arriving, sent=((devices, arriving),))
