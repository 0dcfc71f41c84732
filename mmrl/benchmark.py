"""Times the model on this machine: forward passes by length, and decoding by context.

    python -m mmrl.benchmark
    python -m mmrl.benchmark --checkpoint=PATH --lengths= --contexts=64 --batch=1 --transformers

The shape is that of the checkpoint, read in float32, or a small MiniMax: hidden 256, 7 lightning
layers to 1 softmax layer, 4 experts of 512, 15.6M parameters, float32. Medians of the runs, after
one that compiles; one JSON line. `read_gb_s` is the memory bandwidth, by the faster of two programs
that do nothing else, and `decode_of_bandwidth` the share of it that decoding reaches, counting one
read of the parameters and of the filled cache a step (for mixtures too, so an upper bound there).
"""

import dataclasses
import functools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from absl import flags
from flax import nnx

from mmrl import config as configs
from mmrl.compilation import enable_compilation_cache
from mmrl.errors import UserError
from mmrl.models import Cache, Decoder, load, minimax_m1
from mmrl.rollout.sampling import categorical

_LENGTHS = flags.DEFINE_list("lengths", ["1024", "4096", "16384"], "Tokens of the forward passes.")
_CONTEXTS = flags.DEFINE_list("contexts", ["64", "2048"], "Tokens before the decoded ones.")
_BATCH = flags.DEFINE_integer("batch", 16, "Rows that decode together.", lower_bound=1)
_NEW_TOKENS = flags.DEFINE_integer("new_tokens", 64, "Tokens to decode.", lower_bound=1)
_REPEATS = flags.DEFINE_integer("repeats", 3, "Runs a figure is the median of.", lower_bound=1)
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Times this model [random weights].")
_TRANSFORMERS = flags.DEFINE_boolean(
    "transformers", False, "Times generate() of transformers on the checkpoint as well."
)
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
        keys = jax.random.split(jax.random.fold_in(key, index), len(token))
        return categorical(keys, logits[:, 0]), cache

    first = jnp.zeros(cache.lengths.shape, jnp.int32)
    return jax.lax.fori_loop(0, new_tokens, step, (first, cache))[0]


def read_bandwidth(gib: float = 0.5) -> float:
    """Bytes a second that a sum of, or a product of one row with, a large matrix reads."""
    rows = 1024
    matrix = jnp.ones((rows, int(gib * 2**30) // 4 // rows))
    row = jnp.ones((1, rows))
    programs = (
        functools.partial(jax.jit(jnp.sum), matrix),
        functools.partial(jax.jit(jnp.matmul), row, matrix),
    )
    return matrix.nbytes / min(median_seconds(program, 5) for program in programs)


def transformers_decode_seconds(path: Path, batch: int, context: int, new_tokens: int) -> float:
    """Median seconds of `new_tokens` tokens by transformers' generate(), its prefill taken off."""
    import torch
    from transformers import AutoModelForCausalLM

    where = (
        {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
        if path.suffix == ".gguf"
        else {"pretrained_model_name_or_path": str(path)}
    )
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    tokens = torch.randint(0, model.config.vocab_size, (batch, context))

    def generate(count: int) -> None:
        with torch.inference_mode():
            model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                do_sample=True,
                top_k=0,
                min_new_tokens=count,
                max_new_tokens=count,
                pad_token_id=0,
            )

    one, all_ = (
        median_seconds(functools.partial(generate, count), _REPEATS.value)
        for count in (1, new_tokens + 1)
    )
    return all_ - one


def model_from_flags() -> Decoder:
    if _CHECKPOINT.value is None:
        pattern = ("lightning",) if _LIGHTNING_ONLY.value else MODEL.layer_pattern
        return Decoder(dataclasses.replace(MODEL, layer_pattern=pattern), nnx.Rngs(0))
    if _LIGHTNING_ONLY.value:
        raise UserError("--lightning_only is for the random model: leave out --checkpoint")
    return load(_CHECKPOINT.value, dtype="float32", param_dtype="float32")[0]


def main(_: list[str]) -> None:
    enable_compilation_cache()
    if _TRANSFORMERS.value and _CHECKPOINT.value is None:
        raise UserError("--transformers needs a --checkpoint that both can load")
    model = model_from_flags()
    config = model.config
    graphdef, params = nnx.split(model)
    figures: dict[str, float] = {"params": sum(x.size for x in jax.tree.leaves(params))}
    bandwidth = read_bandwidth()
    figures["read_gb_s"] = bandwidth / 1e9
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
        name = f"b{_BATCH.value}_ctx{context}"
        generated = _BATCH.value * _NEW_TOKENS.value
        figures[f"decode_tok_s_{name}"] = generated / seconds
        filled = context / (context + _NEW_TOKENS.value)
        step_bytes = sum(x.nbytes for x in jax.tree.leaves(params))
        step_bytes += filled * sum(x.nbytes for x in jax.tree.leaves(cache))
        share = step_bytes * _NEW_TOKENS.value / seconds / bandwidth
        figures[f"decode_of_bandwidth_{name}"] = share
        if _TRANSFORMERS.value and _CHECKPOINT.value:
            theirs = transformers_decode_seconds(Path(_CHECKPOINT.value), *shape, _NEW_TOKENS.value)
            figures[f"transformers_decode_tok_s_{name}"] = generated / theirs
    print(json.dumps(figures))


if __name__ == "__main__":
    configs.run(main)
