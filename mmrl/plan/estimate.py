"""Bytes and times of an RL step on a mesh by arithmetic alone, to prune with before compiling.

What lies where follows the rules of `mmrl.sharding`. What is counted:

- A device computes its share of rows, tokens, heads, MLP and vocabulary, where the mesh divides
  them; what it does not divide, every device does.
- Training gathers every weight over `fsdp` for the forward and again for the backward pass of each
  micro-batch, and scatters the gradients. A tensor-parallel layer has two all-reduces of its
  activations each pass, an expert-parallel one two all-to-alls; `sequence` gathers keys and values.
- In the sampler's layout weights stay where they are, and each layer's activations are summed over
  the devices that its weights are cut over. Every token reads all of a device's weights and cache.
- With `remat` the input of each layer is kept (and what `mmrl.models.decoder` names), and one layer
  at a time is computed again. What a layer works on is the larger of its two halves, of tokens sent
  to experts the copies in float32 of their rows among them.
- A rollout holds the prompts' cache and a layer at work on whole prompts, or later the whole cache
  and a layer at work on one token a row, never both.

Copies that the compiler makes beyond these are not, nor what lies between arrays in memory.
"""

import dataclasses
import functools
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding

from mmrl import sharding
from mmrl.models import DecoderConfig
from mmrl.plan.arithmetic import (
    Flops,
    Workload,
    backward_flops,
    decode_flops,
    forward_flops,
    recomputed_flops,
    step_flops,
)
from mmrl.plan.devices import Topology
from mmrl.plan.memory import cache_bytes, parameter_shapes, weights_read
from mmrl.plan.roofline import Cost, Efficiency, Phase, Transfer, all_gather_sent, cost
from mmrl.sharding import Layout, MeshConfig, abstract_mesh, spec

HEAD_PIECE = 8192  # rows of the head that the fused head multiplies at once


@dataclass(frozen=True)
class DeviceBytes:
    """Bytes that one device holds; gradients and activations are those of one micro-batch.

    `gradients` are those of the responses and, of several micro-batches, their sum. `activations`
    are kept for the backward pass, with the prompts' cache and its gradient; `working` is the
    backward pass of one layer, and the head's.
    """

    parameters: float
    gradients: float
    optimizer: float
    activations: float
    working: float
    rollout_parameters: float
    prompt_cache: float
    prefill_working: float
    cache: float
    decode_working: float

    @property
    def update(self) -> float:
        """All that an update holds at once."""
        state = self.parameters + self.gradients + self.optimizer
        return state + self.activations + self.working

    @property
    def rollout(self) -> float:
        """All that a rollout holds at once; the optimizer's state waits."""
        prefill, decode = self.prompt_cache + self.prefill_working, self.cache + self.decode_working
        return self.rollout_parameters + self.optimizer + max(prefill, decode)

    @property
    def peak(self) -> float:
        return max(self.update, self.rollout)


@dataclass(frozen=True)
class Step:
    """An RL step to estimate; all mesh sizes are positive.

    `micro_batches` are those of all the updates on a rollout together, `updates` how often the
    optimizer runs, `rollout_batches` how many the sampler draws its prompts in, the largest of
    `rollout_prompts` where they are not as even as can be.
    """

    config: DecoderConfig
    work: Workload
    mesh: MeshConfig
    micro_batches: int = 1
    updates: int = 1
    rollout_batches: int = 1
    rollout_prompts: int | None = None

    @property
    def micro_batch(self) -> Workload:
        return self._part(self.micro_batches)

    @property
    def rollout_batch(self) -> Workload:
        if self.rollout_prompts is None:
            return self._part(self.rollout_batches)
        return dataclasses.replace(self.work, prompts=self.rollout_prompts)

    def _part(self, parts: int) -> Workload:
        return dataclasses.replace(self.work, prompts=max(-(-self.work.prompts // parts), 1))


@dataclass(frozen=True)
class Cuts:
    """Over how many devices a layout cuts each part of the work on `rows` rows of `tokens`."""

    rows: int
    batch: int
    time: int
    hidden: int
    heads: int
    activation_heads: int
    activation_kv_heads: int
    mlp: int
    vocab: int

    def share(self, flops: Flops) -> Flops:
        """What one device computes."""
        tokens, mixing = self.rows * self.time, self.batch * self.time * self.activation_heads
        return Flops(
            projections=flops.projections / (tokens * self.heads),
            lightning=flops.lightning / mixing,
            softmax=flops.softmax / mixing,
            router=flops.router / tokens,
            mlp=flops.mlp / (tokens * self.mlp),
            head=flops.head / (tokens * self.vocab),
        )


@functools.cache
def cuts(config: DecoderConfig, mesh: MeshConfig, layout: Layout, rows: int, tokens: int) -> Cuts:
    """The cuts of a layout, by the rules of `mmrl.sharding`."""
    abstract = abstract_mesh(mesh)
    sizes = {
        "rows": rows,
        "batch": rows,
        "time": tokens,
        "hidden": config.hidden_size,
        "heads": config.num_heads,
        "activation_heads": config.num_heads,
        "activation_kv_heads": config.num_kv_heads,
        "mlp": config.intermediate_size,
        "vocab": config.vocab_size,
    }
    with sharding.layout(layout):
        return Cuts(**{axis: sharding.parts(axis, n, abstract) for axis, n in sizes.items()})


@functools.cache
def parameter_bytes(
    config: DecoderConfig, mesh: MeshConfig, layout: Layout = "train", trained: bool = False
) -> float:
    """Bytes of one device's part of the parameters, or of those that are trained."""
    tree = parameter_shapes(config)
    if trained and config.lora is not None:
        tree = nnx.filter_state(tree, nnx.LoRAParam)
    abstract, total = abstract_mesh(mesh), 0.0
    with sharding.layout(layout):
        for leaf in jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, nnx.Variable)):
            array = leaf.get_value()
            place = NamedSharding(abstract, spec(leaf.get_metadata("axes"), array.shape, abstract))
            total += math.prod(place.shard_shape(array.shape)) * array.dtype.itemsize
    return total


def device_bytes(step: Step) -> DeviceBytes:
    """What one device holds in the step."""
    config, mesh, one, drawn = step.config, step.mesh, step.micro_batch, step.rollout_batch
    layers, trained = config.num_layers, parameter_bytes(config, mesh, trained=True)
    responses = cuts(config, mesh, "train", one.rows, one.response_length)
    prompts = cuts(config, mesh, "train", one.prompts, one.prompt_length)
    tokens = one.response_tokens / (responses.rows * responses.time)
    prompt_tokens = one.prompts * one.prompt_length / (prompts.rows * prompts.time)
    remembered = _cache(step, one.prompts, one.prompt_length, "train")
    remembered += _cache(step, one.rows, 0, "train")
    reading = cuts(config, mesh, "decode", drawn.prompts, drawn.prompt_length)
    writing = cuts(config, mesh, "decode", drawn.rows, 1)
    read = drawn.prompts * drawn.prompt_length / (reading.rows * reading.time)
    prompt_cache = _cache(step, drawn.prompts, drawn.prompt_length)
    logits = 8 * config.vocab_size / writing.vocab
    return DeviceBytes(
        parameters=parameter_bytes(config, mesh),
        gradients=trained * (2 if step.micro_batches > step.updates else 1),
        optimizer=2 * trained,
        activations=layers * tokens * _kept_width(config, responses)
        + layers * prompt_tokens * _kept_width(config, prompts)
        + 2 * remembered,
        working=tokens
        * (_backward_width(config, responses) + 8 * min(config.vocab_size, HEAD_PIECE)),
        rollout_parameters=parameter_bytes(config, mesh, "decode"),
        prompt_cache=prompt_cache,
        prefill_working=read * _forward_width(config, reading),
        cache=_cache(step, drawn.rows, drawn.response_length) + prompt_cache,
        decode_working=drawn.rows / writing.rows * (_forward_width(config, writing) + logits),
    )


def _widths(config: DecoderConfig, cut: Cuts) -> tuple[float, float, int]:
    """Of one device's part of a token: its heads' width, its MLP's, and how many experts it has."""
    heads = config.num_heads * config.head_dim / min(cut.heads, cut.activation_heads)
    experts = config.experts_per_token if config.num_experts else 0
    return heads, config.intermediate_size / cut.mlp, experts


def _forward_width(config: DecoderConfig, cut: Cuts) -> float:
    """The most bytes that a layer's forward pass holds of a token at once, on one device.

    The products with an expert's last matrix are there in float32 and rounded.
    """
    heads, mlp, experts = _widths(config, cut)
    itemsize, hidden = jnp.dtype(config.dtype).itemsize, config.hidden_size
    if experts:
        rows = (itemsize + 4) * hidden + itemsize * mlp
        return 3 * itemsize * hidden + experts * rows
    return itemsize * max(2 * hidden + 5 * heads, 3 * hidden + 3 * mlp)


def _backward_width(config: DecoderConfig, cut: Cuts) -> float:
    """As `_forward_width`, of the backward pass, which finds what the forward pass computed.

    Of an expert's row the gradient of its result and those of its input by two matrices are there
    in float32 and rounded.
    """
    heads, mlp, experts = _widths(config, cut)
    itemsize, hidden = jnp.dtype(config.dtype).itemsize, config.hidden_size
    if experts:
        rows = 3 * (itemsize + 4) * hidden + 5 * itemsize * mlp
        return 4 * itemsize * hidden + experts * rows
    return itemsize * (4 * hidden + max(10 * heads, 6 * mlp))


def _layer_width(config: DecoderConfig, cut: Cuts) -> float:
    """Bytes of all that a layer computes for a token, on one device."""
    heads, mlp, experts = _widths(config, cut)
    inside = experts * (3 * mlp + 2 * config.hidden_size) if experts else 3 * mlp
    # The rows of experts are summed in float32.
    itemsize = jnp.dtype(config.dtype).itemsize
    return (
        itemsize * (5 * heads + 4 * config.hidden_size + inside) + 4 * experts * config.hidden_size
    )


def _kept_width(config: DecoderConfig, cut: Cuts) -> float:
    """Bytes a token and layer that the backward pass finds again, in the mean over layers."""
    itemsize, hidden = jnp.dtype(config.dtype).itemsize, config.hidden_size / cut.hidden
    if config.remat == "none":
        return _layer_width(config, cut)
    if config.remat == "full":
        return itemsize * hidden
    heads, mlp, experts = _widths(config, cut)
    kv = config.num_kv_heads * config.head_dim / min(cut.heads, cut.activation_kv_heads)
    softmax = config.layer_pattern.count("softmax") / len(config.layer_pattern)
    projected = softmax * (heads + 2 * kv) + (1 - softmax) * 4 * heads
    width = 2 * hidden + projected + (0 if experts else 2 * mlp)
    if config.remat == "products":
        width += heads + experts * (2 * mlp + config.hidden_size)
    return itemsize * width


def _cache(step: Step, rows: int, slots: int, layout: Layout = "decode") -> float:
    """Bytes of a device's part of a cache."""
    cut = cuts(step.config, step.mesh, layout, rows, 1)
    states = cache_bytes(step.config, 0) * rows / (cut.batch * cut.activation_heads)
    filled = cache_bytes(step.config, slots) - cache_bytes(step.config, 0)
    return states + filled * rows / (cut.batch * cut.activation_kv_heads)


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
    states = _cache(step, rows, 0)
    filled = states + _cache(step, rows, drawn.prompt_length + length // 2)
    moved = length * (read * parameter_bytes(config, mesh, "decode") + filled)
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
