"""Bytes that a device holds in an RL step on a mesh, by arithmetic alone.

- A device has its share of rows, tokens, heads, MLP and vocabulary, where the mesh divides them;
  what it does not divide, every device has.
- With `remat` the input of each layer is kept (and what `mmrl.models.decoder` names), and one layer
  at a time is computed again. What a layer works on is the larger of its two halves, of tokens sent
  to experts the copies in float32 of their rows among them.
- A rollout holds the prompts' cache and a layer at work on whole prompts, or later the whole cache,
  the layers' weights as decoding reads them and a layer at work on one token a row, never both.

Copies that the compiler makes beyond these are not counted, nor what lies between arrays in memory.
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
from mmrl.models import Decoder, DecoderConfig
from mmrl.plan.arithmetic import Flops, Workload
from mmrl.plan.memory import cache_bytes, parameter_shapes
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
    loop_weights: float
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
        prefill = self.prompt_cache + self.prefill_working
        decode = self.loop_weights + self.cache + self.decode_working
        return self.rollout_parameters + self.optimizer + max(prefill, decode)

    @property
    def peak(self) -> float:
        return max(self.update, self.rollout)


@dataclass(frozen=True)
class Step:
    """An RL step to estimate; all mesh sizes are positive.

    `micro_batches` are those of all the updates on a rollout together, `updates` how often the
    optimizer runs, `rollout_batches` how many the sampler draws its prompts in, the largest of
    `rollout_prompts` where they are not as even as can be; `platform` as `pallas_kernels.target`.
    """

    config: DecoderConfig
    work: Workload
    mesh: MeshConfig
    micro_batches: int = 1
    updates: int = 1
    rollout_batches: int = 1
    rollout_prompts: int | None = None
    platform: str = "tpu"

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
    config: DecoderConfig,
    mesh: MeshConfig,
    layout: Layout = "train",
    *,
    trained: bool = False,
    of_layers: bool = False,
) -> float:
    """Bytes of one device's part of the parameters, of those that are trained or of the layers'."""
    tree = parameter_shapes(config)
    if trained and config.lora is not None:
        tree = nnx.filter_state(tree, nnx.LoRAParam)
    if of_layers:
        tree = nnx.filter_state(tree, nnx.PathContains("runs"))
    abstract, total = abstract_mesh(mesh), 0.0
    with sharding.layout(layout):
        for leaf in jax.tree.leaves(tree, is_leaf=lambda x: isinstance(x, nnx.Variable)):
            array = leaf.get_value()
            place = NamedSharding(abstract, spec(leaf.get_metadata("axes"), array.shape, abstract))
            total += math.prod(place.shard_shape(array.shape)) * array.dtype.itemsize
    return total


def loop_weights(step: Step) -> float:
    """Bytes of the copy that decoding makes of the layers' weights (`Decoder.loop_weights`)."""
    config = step.config
    if not Decoder.copies_weights(config, step.platform):
        return 0.0
    narrow = dataclasses.replace(config, param_dtype=config.dtype)
    return parameter_bytes(narrow, step.mesh, "decode", of_layers=True)


def device_bytes(step: Step) -> DeviceBytes:
    """What one device holds in the step."""
    config, mesh, one, drawn = step.config, step.mesh, step.micro_batch, step.rollout_batch
    layers, trained = config.num_layers, parameter_bytes(config, mesh, trained=True)
    responses = cuts(config, mesh, "train", one.rows, one.response_length)
    prompts = cuts(config, mesh, "train", one.prompts, one.prompt_length)
    tokens = one.response_tokens / (responses.rows * responses.time)
    prompt_tokens = one.prompts * one.prompt_length / (prompts.rows * prompts.time)
    remembered = cache_of(step, one.prompts, one.prompt_length, "train")
    remembered += cache_of(step, one.rows, 0, "train")
    reading = cuts(config, mesh, "decode", drawn.prompts, drawn.prompt_length)
    writing = cuts(config, mesh, "decode", drawn.rows, 1)
    read = drawn.prompts * drawn.prompt_length / (reading.rows * reading.time)
    prompt_cache = cache_of(step, drawn.prompts, drawn.prompt_length)
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
        loop_weights=loop_weights(step),
        prompt_cache=prompt_cache,
        prefill_working=read * _forward_width(config, reading),
        cache=cache_of(step, drawn.rows, drawn.response_length) + prompt_cache,
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


def cache_of(step: Step, rows: int, slots: int, layout: Layout = "decode") -> float:
    """Bytes of a device's part of a cache."""
    cut = cuts(step.config, step.mesh, layout, rows, 1)
    states = cache_bytes(step.config, 0) * rows / (cut.batch * cut.activation_heads)
    filled = cache_bytes(step.config, slots) - cache_bytes(step.config, 0)
    return states + filled * rows / (cut.batch * cut.activation_kv_heads)
