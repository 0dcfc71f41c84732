"""Bytes of a decoder, from its config alone: weights, gradients, optimizer, decode cache."""

import functools
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from mmrl.models import Decoder, DecoderConfig, parameter_count


@functools.cache
def parameter_shapes(config: DecoderConfig) -> nnx.State:
    """All parameters as shapes and dtypes, with their logical axes."""
    return jax.eval_shape(lambda: nnx.state(Decoder(config, nnx.Rngs(0)), nnx.Param))


@dataclass(frozen=True)
class TrainingBytes:
    """Bytes of all devices together that live through a training step."""

    parameters: float
    gradients: float
    optimizer: float

    @property
    def total(self) -> float:
        return self.parameters + self.gradients + self.optimizer


def training_bytes(config: DecoderConfig, *, moment_dtype: str | None = None) -> TrainingBytes:
    """Parameters, their gradients in the same dtypes and AdamW's two moments.

    The moments have the parameters' dtypes, as optax makes them, unless `moment_dtype` is given.
    With LoRA only the adapters have gradients and moments.
    """
    kind = nnx.Param if config.lora is None else nnx.LoRAParam
    trained = nnx.filter_state(parameter_shapes(config), kind)
    moments = sum(
        2 * leaf.size * jnp.dtype(moment_dtype or leaf.dtype).itemsize
        for leaf in jax.tree.leaves(trained)
    )
    return TrainingBytes(_bytes(parameter_shapes(config)), _bytes(trained), moments)


def parameter_bytes(config: DecoderConfig) -> float:
    """Bytes of all parameters in the dtypes that they are stored in."""
    return _bytes(parameter_shapes(config))


def _bytes(tree) -> float:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def cache_bytes(config: DecoderConfig, slots: int, *, itemsize: int | None = None) -> float:
    """Bytes of one row's cache with room for `slots` tokens.

    A lightning layer's state, H x D x D in float32, whatever the length; a softmax layer's keys and
    values, in the compute dtype unless `itemsize` says otherwise; and 4 bytes a slot for positions.
    """
    d, itemsize = config.head_dim, itemsize or jnp.dtype(config.dtype).itemsize
    softmax = config.num_groups * config.layer_pattern.count("softmax")
    state = (config.num_layers - softmax) * config.num_heads * d * d * 4
    return state + slots * (softmax * 2 * config.num_kv_heads * d * itemsize + 4)


def weights_read(config: DecoderConfig, tokens: int) -> float:
    """Weights that a forward pass of `tokens` tokens reads, the embedding's rows not counted.

    Of the experts those that at least one token chose: E (1 - (1 - k/E)^tokens) in expectation when
    each token chooses k of E evenly.
    """
    total, _ = parameter_count(config)
    embedding = 0 if config.tie_embeddings else config.vocab_size * config.hidden_size
    if not config.num_experts:
        return total - embedding
    e, k = config.num_experts, config.experts_per_token
    idle = e * (1 - k / e) ** tokens
    expert = 3 * config.hidden_size * config.intermediate_size
    return total - embedding - config.num_layers * idle * expert
