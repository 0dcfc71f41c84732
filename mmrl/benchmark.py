"""Times the model on this machine: forward passes by length, and decoding by context.

    python -m mmrl.benchmark

The shape is a small MiniMax: hidden 256, 7 lightning layers to 1 softmax layer, 4 experts of 512,
15.6M parameters, float32. Medians of the runs, after one that compiles; one JSON line.
"""

import dataclasses
import functools
import json
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from absl import flags
from flax import nnx

from mmrl import config as configs
from mmrl.compilation import enable_compilation_cache
from mmrl.models import Cache, Decoder, minimax_m1

_LENGTHS = flags.DEFINE_list("lengths", ["1024", "4096", "16384"], "Tokens of the forward passes.")
_CONTEXTS = flags.DEFINE_list("contexts", ["64", "2048"], "Tokens before the decoded ones.")
_BATCH = flags.DEFINE_integer("batch", 16, "Rows that decode together.", lower_bound=1)
_NEW_TOKENS = flags.DEFINE_integer("new_tokens", 64, "Tokens to decode.", lower_bound=1)
_REPEATS = flags.DEFINE_integer("repeats", 3, "Runs a figure is the median of.", lower_bound=1)
_LIGHTNING_ONLY = flags.DEFINE_boolean("lightning_only", False, "Leave the softmax layer out.")

MODEL = minimax_m1(
    vocab_size=1024,
    hidden_size=256,
    num_layers=8,
    num_heads=8,
    num_kv_heads=4,
    head_dim=32,
    intermediate_size=512,
    rope_theta=1_000_000.0,
    rotary_dim=None,
    num_experts=4,
    load_balance_coefficient=0.0,
    param_dtype="float32",
    dtype="float32",
    remat="none",
)


def median_seconds(function: Callable[[], object], repeats: int) -> float:
    """Median wall-clock seconds of `repeats` calls, after one that compiles."""
    jax.block_until_ready(function())
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function())
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


@functools.partial(jax.jit, static_argnames="graphdef")
def forward(graphdef: nnx.GraphDef, params: nnx.State, tokens: jax.Array) -> jax.Array:
    """Logits [B, T, V] of tokens [B, T], read without a cache."""
    return nnx.merge(graphdef, params)(tokens)[0]


@functools.partial(jax.jit, static_argnames=("graphdef", "slots"))
def prefill(graphdef: nnx.GraphDef, params: nnx.State, tokens: jax.Array, slots: int) -> Cache:
    """The cache after tokens [B, T], with room for `slots` tokens."""
    model = nnx.merge(graphdef, params)
    return model.hidden_states(tokens, cache=Cache.create(model.config, len(tokens), slots))[1]


@functools.partial(jax.jit, static_argnames=("graphdef", "new_tokens"))
def decode(
    graphdef: nnx.GraphDef, params: nnx.State, cache: Cache, key: jax.Array, new_tokens: int
) -> jax.Array:
    """Samples `new_tokens` tokens a row after the cache; [B] the last of them."""
    model = nnx.merge(graphdef, params)
    layers = model.unstacked()

    def step(index, carry):
        token, cache = carry
        logits, cache = model(token[:, None], cache=cache, layers=layers)
        drawn = jax.random.categorical(jax.random.fold_in(key, index), logits[:, 0])
        return drawn.astype(jnp.int32), cache

    first = jnp.zeros(cache.lengths.shape, jnp.int32)
    return jax.lax.fori_loop(0, new_tokens, step, (first, cache))[0]


def main(_: list[str]) -> None:
    enable_compilation_cache()
    config = MODEL
    if _LIGHTNING_ONLY.value:
        config = dataclasses.replace(config, layer_pattern=("lightning",))
    graphdef, params = nnx.split(Decoder(config, nnx.Rngs(0)))
    figures: dict[str, float] = {"params": sum(x.size for x in jax.tree.leaves(params))}
    for length in map(int, _LENGTHS.value):
        tokens = jax.random.randint(jax.random.key(0), (1, length), 0, config.vocab_size)
        run = functools.partial(forward, graphdef, params, tokens)
        figures[f"forward_tok_s_{length}"] = length / median_seconds(run, _REPEATS.value)
    for context in map(int, _CONTEXTS.value):
        shape = (_BATCH.value, context)
        tokens = jax.random.randint(jax.random.key(0), shape, 0, config.vocab_size)
        cache = prefill(graphdef, params, tokens, slots=context + _NEW_TOKENS.value)
        run = functools.partial(
            decode, graphdef, params, cache, jax.random.key(1), _NEW_TOKENS.value
        )
        seconds = median_seconds(run, _REPEATS.value)
        figures[f"decode_tok_s_b{_BATCH.value}_ctx{context}"] = (
            _BATCH.value * _NEW_TOKENS.value / seconds
        )
    print(json.dumps(figures))


if __name__ == "__main__":
    configs.run(main)
