"""Times a model: forward passes by length, and decoding by context.

The shape is that of the checkpoint, read in float32, or a small MiniMax: hidden 256, 7 lightning
layers to 1 softmax layer, 4 experts of 512, 15.6M parameters, float32. Medians of the runs, after
one that compiles; one JSON line. `read_gb_s` is the memory bandwidth, by the faster of two programs
that do nothing else, and `decode_of_bandwidth` the share of it that decoding reaches, counting one
read of the parameters and of the filled cache a step (for mixtures too, so an upper bound there).
Decoding begins with each layer's weights cut out of their stacks, which chat and server do once for
a model and a rollout once for its batch.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

from mmrl.benchmark.timing import median_seconds, read_bandwidth
from mmrl.compilation import model_jit
from mmrl.errors import UserError
from mmrl.models import Cache, Decoder, load, minimax_m1
from mmrl.models.decoder import LoopWeights
from mmrl.rollout.rows import loop_weights
from mmrl.rollout.sampling import categorical

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


@functools.partial(model_jit, static_argnames="graphdef")
def forward(graphdef: nnx.GraphDef, params: nnx.State, tokens: jax.Array) -> jax.Array:
    """Logits [B, T, V] of tokens [B, T], read without a cache."""
    return nnx.merge(graphdef, params)(tokens)[0]


@functools.partial(model_jit, static_argnames=("graphdef", "slots"))
def prefill(graphdef: nnx.GraphDef, params: nnx.State, tokens: jax.Array, slots: int) -> Cache:
    """The cache after tokens [B, T], with room for `slots` tokens, for a loop over tokens."""
    model = nnx.merge(graphdef, params)
    cache = Cache.create(model.config, len(tokens), slots)
    return model.cache_of_loop(model.config, model.hidden_states(tokens, cache=cache)[1])


@functools.partial(model_jit, static_argnames=("graphdef", "new_tokens"))
def decode(
    graphdef: nnx.GraphDef,
    params: nnx.State,
    layers: LoopWeights | None,
    cache: Cache,
    key: jax.Array,
    new_tokens: int,
) -> jax.Array:
    """Samples `new_tokens` tokens a row after the cache; [B] the last of them."""
    model = nnx.merge(graphdef, params)

    def step(index, carry):
        token, cache = carry
        logits, cache = model(token[:, None], cache=cache, layers=layers)
        keys = jax.random.split(jax.random.fold_in(key, index), len(token))
        return categorical(keys, logits[:, 0]), cache

    first = jnp.zeros(cache.lengths.shape, jnp.int32)
    return jax.lax.fori_loop(0, new_tokens, step, (first, cache))[0]


def transformers_decode_seconds(
    path: Path, batch: int, context: int, new_tokens: int, repeats: int
) -> float:
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
        median_seconds(functools.partial(generate, count), repeats) for count in (1, new_tokens + 1)
    )
    return all_ - one


def timed_model(checkpoint: str | None, lightning_only: bool) -> Decoder:
    if checkpoint is None:
        pattern = ("lightning",) if lightning_only else MODEL.layer_pattern
        return Decoder(dataclasses.replace(MODEL, layer_pattern=pattern), nnx.Rngs(0))
    if lightning_only:
        raise UserError("--lightning_only is for the random model: leave out --checkpoint")
    return load(checkpoint, dtype="float32", param_dtype="float32")[0]


def figures(
    model: Decoder,
    lengths: Sequence[int],
    contexts: Sequence[int],
    batch: int,
    new_tokens: int,
    repeats: int,
    transformers: str | None = None,
) -> dict[str, float]:
    """Tokens a second; with `transformers` its generate() on the checkpoint at that path too."""
    config = model.config
    graphdef, params = nnx.split(model)
    layers = loop_weights(graphdef, params, "train")
    found: dict[str, float] = {"params": sum(x.size for x in jax.tree.leaves(params))}
    bandwidth = read_bandwidth()
    found["read_gb_s"] = bandwidth / 1e9
    for length in lengths:
        tokens = jax.random.randint(jax.random.key(0), (1, length), 0, config.vocab_size)
        run = functools.partial(forward, graphdef, params, tokens)
        found[f"forward_tok_s_{length}"] = length / median_seconds(run, repeats)
    for context in contexts:
        shape = (batch, context)
        tokens = jax.random.randint(jax.random.key(0), shape, 0, config.vocab_size)
        cache = prefill(graphdef, params, tokens, slots=context + new_tokens)
        arrays = params, layers, cache, jax.random.key(1)
        run = functools.partial(decode, graphdef, *arrays, new_tokens)
        seconds = median_seconds(run, repeats)
        name, generated = f"b{batch}_ctx{context}", batch * new_tokens
        found[f"decode_tok_s_{name}"] = generated / seconds
        filled = context / (context + new_tokens)
        cache_bytes = sum(x.nbytes for x in jax.tree.leaves(cache))
        found[f"cache_mib_{name}"] = cache_bytes / 2**20
        step_bytes = sum(x.nbytes for x in jax.tree.leaves(params)) + filled * cache_bytes
        share = step_bytes * new_tokens / seconds / bandwidth
        found[f"decode_of_bandwidth_{name}"] = share
        if transformers:
            theirs = transformers_decode_seconds(Path(transformers), *shape, new_tokens, repeats)
            found[f"transformers_decode_tok_s_{name}"] = generated / theirs
    return found
