"""Bytes from a config against the arrays themselves, and M1's published sizes."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

from mmrl.models import Cache, Decoder, DecoderConfig, LoraConfig, minimax_m1
from mmrl.plan.memory import cache_bytes, parameter_bytes, training_bytes, weights_read

TINY = DecoderConfig(
    vocab_size=11,
    hidden_size=8,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    intermediate_size=10,
    layer_pattern=("lightning", "softmax"),
    num_experts=3,
    experts_per_token=1,
    param_dtype="bfloat16",
    dtype="bfloat16",
)


def nbytes(tree) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def test_m1_has_the_bytes_of_its_released_weights():
    # metadata.total_size of MiniMax-M1-80k's safetensors index: float32 gates, bfloat16 else.
    assert parameter_bytes(minimax_m1()) == 912_210_767_872


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=2)])
def test_training_bytes_are_those_of_the_arrays(lora):
    config = dataclasses.replace(TINY, lora=lora)
    kind = nnx.LoRAParam if lora else nnx.Param
    _, trained, rest = nnx.split(nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(0))), kind, ...)
    moments = jax.eval_shape(optax.scale_by_adam().init, trained)
    found = training_bytes(config)
    assert found.parameters == nbytes(trained) + nbytes(rest)
    assert found.gradients == nbytes(trained)
    assert found.optimizer == nbytes((moments.mu, moments.nu))


def test_moments_may_have_a_dtype_of_their_own():
    in_float32 = training_bytes(minimax_m1(), moment_dtype="float32")
    assert in_float32.optimizer == 2 * 4 * 456_089_655_296
    assert in_float32.total == 2 * 912_210_767_872 + in_float32.optimizer


@pytest.mark.parametrize("slots", [0, 7])
def test_cache_bytes_are_those_of_the_cache(slots):
    cache = jax.eval_shape(lambda: Cache.create(TINY, 5, slots))
    assert 5 * cache_bytes(TINY, slots) == nbytes((cache.layers, cache.positions))


def test_m1s_cache_is_mostly_its_keys_and_values_at_length():
    # 4 MiB of state in each of 70 layers; 10 layers of 8 heads of 128, K and V, bfloat16.
    assert cache_bytes(minimax_m1(), 0) == 70 * 4 * 2**20
    a_token = cache_bytes(minimax_m1(), 1001) - cache_bytes(minimax_m1(), 1000)
    assert a_token == 10 * 2 * 8 * 128 * 2 + 4


def test_weights_read_are_those_of_the_experts_that_tokens_choose_on_average():
    config = dataclasses.replace(TINY, num_experts=4, experts_per_token=2)
    shapes = nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(0)))
    total = sum(x.size for x in jax.tree.leaves(nnx.state(shapes, nnx.Param)))
    expert, layers, embedding = 3 * 8 * 10, 4, 11 * 8
    choices = list(itertools.combinations(range(4), 2))
    for tokens in (1, 2, 3):
        used = [len(set().union(*drawn)) for drawn in itertools.product(choices, repeat=tokens)]
        idle = 4 - sum(used) / len(used)
        expected = total - embedding - layers * idle * expert
        assert weights_read(config, tokens) == pytest.approx(expected)
    assert weights_read(dataclasses.replace(config, num_experts=0), 1) == (
        total - embedding - layers * (4 * expert + 8 * 4) + layers * expert
    )


def test_a_tied_embedding_is_read_as_the_head():
    config = dataclasses.replace(TINY, num_experts=0, tie_embeddings=True)
    shapes = nnx.state(nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(0))), nnx.Param)
    assert weights_read(config, 1) == sum(x.size for x in jax.tree.leaves(shapes))
    assert jnp.dtype(config.param_dtype).itemsize == 2
