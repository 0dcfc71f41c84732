"""Times of an RL step on a mesh by arithmetic alone, to prune with before compiling.

What lies where follows the rules of `mmrl.sharding`. What is counted:

- A device computes its share of rows, tokens, heads, MLP and vocabulary, where the mesh divides
  them; what it does not divide, every device does (`mmrl.plan.device_bytes`).
- Training gathers every weight over `fsdp` for the forward and again for the backward pass of each
  micro-batch, and scatters the gradients. A tensor-parallel layer has two all-reduces of its
  activations each pass, an expert-parallel one two all-to-alls; `sequence` gathers keys and values.
- In the sampler's layout weights stay where they are, and each layer's activations are summed over
  the devices that its weights are cut over. Every token reads all of a device's weights and cache.
"""

import dataclasses
import math

import jax.numpy as jnp

from mmrl.models import DecoderConfig
from mmrl.plan.arithmetic import (
    Flops,
    backward_flops,
    decode_flops,
    forward_flops,
    recomputed_flops,
    step_flops,
)
from mmrl.plan.device_bytes import (
    Cuts,
    Step,
    cache_of,
    cuts,
    device_bytes,
    loop_weights,
    parameter_bytes,
)
from mmrl.plan.devices import Topology
from mmrl.plan.memory import weights_read
from mmrl.plan.roofline import Cost, Efficiency, Phase, Transfer, all_gather_sent, cost
from mmrl.sharding import MeshConfig


def phases(step: Step) -> list[Phase]:
    """The phases of a step, one device's part of each; `reshard` is there and back."""
    found = [_prefill(step), _decode(step), _update(step)]
    arriving = parameter_bytes(step.config, step.mesh, "decode")
    back = parameter_bytes(step.config, step.mesh)
    if step.mesh.fsdp > 1:
        everywhere = tuple(dataclasses.asdict(step.mesh))
        sent = (_sent(step.mesh, everywhere, arriving + back, 2),)
        found.insert(0, Phase("reshard", 0.0, 2 * (arriving + back), sent=sent))
    return found


def _sent(mesh: MeshConfig, axes: tuple[str, ...], size: float, times: float = 1.0) -> Transfer:
    """Bytes that a device sends to those of mesh axes, in so many collectives.

    Devices are numbered along the last axis of the mesh first.
    """
    sizes = dataclasses.asdict(mesh)
    devices = math.prod(sizes[axis] for axis in axes)
    used = [axis for axis in axes if sizes[axis] > 1]
    inner = list(sizes)[min((list(sizes).index(axis) for axis in used), default=0) :]
    span = math.prod(sizes[axis] for axis in inner) if used else 1
    return Transfer(devices, size if used else 0.0, times if used else 0.0, span)


def _prefill(step: Step) -> Phase:
    config, mesh, drawn = step.config, step.mesh, step.rollout_batch
    cut = cuts(config, mesh, "decode", drawn.prompts, drawn.prompt_length)
    flops = cut.share(forward_flops(config, drawn.prompts, drawn.prompt_length, head=False))
    flops *= step.rollout_batches
    tokens = drawn.prompts * drawn.prompt_length / (cut.rows * cut.time)
    read = step.rollout_batches * parameter_bytes(config, mesh, "decode")
    sent = _decode_sent(step, cut, step.rollout_batches * tokens, step.rollout_batches)
    return Phase("prefill", flops.total, read, flops.float32, sent)


def _decode(step: Step) -> Phase:
    config, mesh, drawn = step.config, step.mesh, step.rollout_batch
    length, rows = drawn.response_length, drawn.rows
    cut = cuts(config, mesh, "decode", rows, 1)
    flops = cut.share(decode_flops(config, rows, length, context=drawn.prompt_length))
    # Experts that no row chose are not read; a step of many rows reads all weights.
    read = weights_read(config, rows) / weights_read(config, 1_000_000)
    states = cache_of(step, rows, 0)
    filled = states + cache_of(step, rows, drawn.prompt_length + length // 2)
    weights = parameter_bytes(config, mesh, "decode")
    if copy := loop_weights(step):
        weights += copy - parameter_bytes(config, mesh, "decode", of_layers=True)
    moved = length * (read * weights + filled)
    batches = step.rollout_batches
    sent = _decode_sent(step, cut, batches * length * rows / cut.rows, batches * length)
    return Phase("decode", batches * flops.total, batches * moved, batches * flops.float32, sent)


def _decode_sent(step: Step, cut: Cuts, tokens: float, passes: int) -> tuple[Transfer, ...]:
    """What a device sends for its `tokens` in so many passes: two sums a layer and the experts'."""
    config, mesh, layers = step.config, step.mesh, step.config.num_layers
    activations = tokens * config.hidden_size * jnp.dtype(config.dtype).itemsize
    heads = 2 * layers * all_gather_sent(activations, cut.heads)
    mlp = 2 * layers * all_gather_sent(activations, cut.mlp)
    experts = 2 * layers * all_gather_sent(activations * mesh.expert, mesh.expert)
    over = ("tensor", "fsdp")
    return (
        _sent(mesh, over if cut.heads > mesh.tensor else over[:1], heads, passes * layers),
        _sent(mesh, over if cut.mlp > mesh.tensor else over[:1], mlp, passes * layers),
        _sent(mesh, ("expert",), experts if config.num_experts else 0.0, 2 * passes * layers),
    )


def _update(step: Step) -> Phase:
    """All micro-batches of all updates, and the optimizer."""
    config, mesh, one, n = step.config, step.mesh, step.micro_batch, step.micro_batches
    width, length = one.prompt_length, one.response_length
    prompts = cuts(config, mesh, "train", one.prompts, width)
    responses = cuts(config, mesh, "train", one.rows, length)
    flops = prompts.share(_trained(config, one.prompts, width, head=False))
    flops += responses.share(_trained(config, one.rows, length, context=width))
    tokens = one.prompts * width / (prompts.rows * prompts.time)
    tokens += one.response_tokens / (responses.rows * responses.time)
    memory = device_bytes(step)
    passes = 2 if config.remat == "none" else 3
    gathered = parameter_bytes(config, dataclasses.replace(mesh, fsdp=1))
    # AdamW reads parameter, gradient and two moments, and writes all but the gradient.
    trained = parameter_bytes(config, mesh, trained=True)
    optimizer = step.updates * (3 * trained + 2 * memory.optimizer)
    return Phase(
        "update",
        n * flops.total,
        n * (passes + 1) * gathered + optimizer,
        n * flops.float32,
        _update_sent(step, n * passes * tokens, gathered, trained, responses),
    )


def _trained(config: DecoderConfig, rows: int, tokens: int, **options) -> Flops:
    """Forward and backward pass, and what is computed again."""
    forward = forward_flops(config, rows, tokens, **options)
    again = recomputed_flops(config, rows, tokens, **options)
    return forward + backward_flops(config, rows, tokens, **options) + again


def _update_sent(
    step: Step, tokens: float, gathered: float, trained: float, cut: Cuts
) -> tuple[Transfer, ...]:
    """`tokens` pass through the layers of one device, every pass counted."""
    config, mesh = step.config, step.mesh
    itemsize = jnp.dtype(config.dtype).itemsize
    activations = tokens * config.hidden_size * itemsize
    # Weights are cast to the compute dtype before they are gathered; gradients are not.
    narrow = gathered * itemsize / jnp.dtype(config.param_dtype).itemsize
    scattered = gathered if config.lora is None else trained * mesh.fsdp
    through_fsdp = all_gather_sent(2 * narrow + scattered, mesh.fsdp)
    softmax = config.num_groups * config.layer_pattern.count("softmax")
    keys = 2 * config.num_kv_heads / cut.activation_kv_heads * config.head_dim * itemsize
    keys = softmax * all_gather_sent(tokens * cut.time * keys, mesh.sequence)
    experts = 2 * config.num_layers * config.experts_per_token * activations
    experts = all_gather_sent(experts, mesh.expert) if config.num_experts else 0.0
    tensor = 4 * config.num_layers * all_gather_sent(activations, mesh.tensor)
    data = 2 * step.updates * all_gather_sent(trained, mesh.data)
    passes = step.micro_batches * config.num_layers
    return (
        _sent(mesh, ("fsdp",), step.micro_batches * through_fsdp, 3 * passes),
        _sent(mesh, ("tensor",), tensor, 6 * passes),
        _sent(mesh, ("expert",), experts, 6 * passes),
        _sent(mesh, ("sequence",), keys, 3 * passes),
        _sent(mesh, ("data",), data, step.updates),
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
    useful = step_flops(step.config, step.work, recompute=False)
    return cost(
        phases(step),
        topology,
        tokens=step.work.response_tokens,
        model_flops=sum(flops.total for flops in useful.values()),
        steps=steps,
        dollars_per_hour=dollars_per_hour,
        efficiency=efficiency,
    )
